"""A small vision transformer (arXiv 2010.11929).

Shape suffixes: B batch, C channels, S side of the image, N patches, P values of a patch, T tokens,
D width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .images import as_images, image_shape


class ViT(nn.Module):
    """Patches and a class token through pre-norm blocks; logits from the class token.

    Attention without biases on queries, keys and values; GELU perceptrons of ``hidden`` units;
    ``dropout`` after the positions, the projection of the attention and both perceptron layers.
    Positions and class token start standard normal, linear layers as torch starts them.
    """

    roles: ClassVar[dict[str, str]] = {
        r"^(pos_emb|class_token)$": "embedding",
        r"^head\.weight$": "head",
    }

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.channels, self.side = image_shape(input_size, "vit")
        _check(self.side, patch, width, depth, heads, hidden, dropout)
        self.patch = patch
        patches = (self.side // patch) ** 2
        self.patch_emb = nn.Linear(self.channels * patch * patch, width)
        self.class_token = nn.Parameter(torch.randn(1, width))
        self.pos_emb = nn.Parameter(torch.randn(patches + 1, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, output_size) of images (B, ...) with ``input_size`` values each."""
        x_BCSS = as_images(x, self.channels, self.side, "vit")
        x_BNP = F.unfold(x_BCSS, self.patch, stride=self.patch).transpose(1, 2)
        x_BND = self.patch_emb(x_BNP)
        token_B1D = self.class_token.expand(len(x), 1, -1)
        x_BTD = self.dropout(torch.cat([token_B1D, x_BND], dim=1) + self.pos_emb)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.head(self.norm(x_BTD[:, 0]))


class Block(nn.Module):
    """Attention, then a perceptron, each on the normalized stream and added to it."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.proj(self._attend(self.norm1(x_BTD))))
        y_BTD = self.dropout(F.gelu(self.up(self.norm2(x_BTD))))
        return x_BTD + self.dropout(self.down(y_BTD))

    def _attend(self, x_BTD: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BTD).chunk(3, dim=-1)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _check(
    side: int, patch: int, width: int, depth: int, heads: int, hidden: int, dropout: float
) -> None:
    if min(patch, width, depth, heads, hidden) < 1 or not 0 <= dropout < 1:
        raise ConfigError(
            "model.patch, width, depth, heads and hidden must be at least 1 and dropout in [0, 1), "
            f"but they are {patch}, {width}, {depth}, {heads}, {hidden} and {dropout}."
        )
    if side % patch or width % heads:
        raise ConfigError(
            f"model.patch {patch} must divide the image's side {side}, and model.heads {heads} "
            f"the width {width}."
        )
