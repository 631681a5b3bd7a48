"""GPT-2 (Radford et al. 2019): a decoder-only transformer with LayerNorm, biases and a tied head.

Shape suffixes as in gpt.py: B batch, T tokens, V vocabulary, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .gpt import STD, TO_RESIDUAL, check, check_word


class GPT2(nn.Module):
    """Pre-norm blocks of attention and a 4x GELU perceptron, with biases, without dropout.

    The head is the token embedding, so the model has no parameter of role ``head``. Weights start
    normal with standard deviation 0.02, those that write to the residual stream with
    0.02 / sqrt(2 depth) (section 2.3); biases start at zero. ``qkv``: queries, keys and values from
    one matrix ('fused') or from three ('split'), which start alike but are three matrices to an
    optimizer.
    """

    roles: ClassVar[dict[str, str]] = {r"^(tok|pos)_emb\.weight$": "embedding"}

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        context: int,
        width: int,
        depth: int,
        heads: int,
        qkv: str,
    ) -> None:
        super().__init__()
        check(input_size, output_size, context=context, width=width, depth=depth, heads=heads)
        check_word("qkv", qkv, ("fused", "split"))
        self.tok_emb = nn.Embedding(input_size, width)
        self.pos_emb = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads, fused=qkv == "fused") for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                to_residual = name.endswith(TO_RESIDUAL)
                nn.init.normal_(parameter, std=STD / math.sqrt(2 * depth) if to_residual else STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of ``tokens_BT``, int64, T up to ``context``."""
        x_BTD = self.tok_emb(tokens_BT) + self.pos_emb.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.linear(self.norm(x_BTD), self.tok_emb.weight)


class Block(nn.Module):
    """Causal attention, then a perceptron, each on the normalized stream and added to it."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        parts = {"qkv": 3 * width} if fused else dict.fromkeys("qkv", width)
        self.attend = nn.ModuleDict({name: nn.Linear(width, size) for name, size in parts.items()})
        self.proj = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.proj(self._attention(self.norm1(x_BTD)))
        # the tanh form is the one that GPT-2 was trained with
        return x_BTD + self.down(F.gelu(self.up(self.norm2(x_BTD)), approximate="tanh"))

    def _attention(self, x_BTD: Tensor) -> Tensor:
        qkv_BT3D = torch.cat([linear(x_BTD) for linear in self.attend.values()], dim=-1)
        q_BHTK, k_BHTK, v_BHTK = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in qkv_BT3D.chunk(3, dim=-1)
        )
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return y_BHTK.transpose(1, 2).flatten(2)
