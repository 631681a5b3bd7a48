"""A small GPT: a decoder-only transformer with RMSNorm, learned positions and a tied head.

Shape suffixes: B batch, T tokens, V vocabulary, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError

STD = 0.02  # of the initial weights (GPT-2)


class GPT(nn.Module):
    """Pre-norm blocks of attention and a 4x GELU perceptron, without biases or dropout.

    The head is the token embedding, so the model has no parameter of role ``head``. Weights start
    normal with standard deviation 0.02, those that write to the residual stream with
    0.02 / sqrt(2 depth) (GPT-2, section 2.3).
    """

    roles: ClassVar[dict[str, str]] = {r"^(tok|pos)_emb\.weight$": "embedding"}

    def __init__(
        self, input_size: int, output_size: int, *, context: int, width: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        check(input_size, output_size, context=context, width=width, depth=depth, heads=heads)
        self.tok_emb = nn.Embedding(input_size, width)
        self.pos_emb = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                to_residual = name.endswith(("proj.weight", "down.weight"))
                nn.init.normal_(weight, std=STD / math.sqrt(2 * depth) if to_residual else STD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of ``tokens_BT``, int64, T up to ``context``."""
        x_BTD = self.tok_emb(tokens_BT) + self.pos_emb.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.linear(self.norm(x_BTD), self.tok_emb.weight)


class Block(nn.Module):
    """Attention, then a perceptron, each on the normalized stream and added to it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width)
        self.mlp = Perceptron(width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD))
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values from one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv_BTD3 = self.qkv(x_BTD).chunk(3, dim=-1)
        q_BHTK, k_BHTK, v_BHTK = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv_BTD3
        )
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.proj(y_BHTK.transpose(1, 2).flatten(2))


class Perceptron(nn.Module):
    """Up to four times the width, GELU, and down."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD)))


def check(
    input_size: int, output_size: int, *, context: int, width: int, depth: int, heads: int
) -> None:
    """Raise ConfigError for sizes that make no GPT."""
    if min(context, width, depth, heads) < 1:
        raise ConfigError(
            "model.context, width, depth and heads must be at least 1,"
            f" but they are {context}, {width}, {depth} and {heads}."
        )
    if width % heads:
        raise ConfigError(
            f"model.width must be a multiple of model.heads, but they are {width} and {heads}."
        )
    if input_size != output_size:
        raise ConfigError(
            "A GPT with a tied head needs one vocabulary for inputs and outputs, but the dataset"
            f" declares input_size {input_size} and output_size {output_size}: is it a text?"
        )
