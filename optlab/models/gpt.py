"""GPT: a decoder-only transformer with RMSNorm and without biases, in the forms of recent years.

Shape suffixes: B batch, T tokens, V vocabulary, D width, H heads, K width of a head.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError, nearest

STD = 0.02  # of the initial weights (GPT-2)
TO_RESIDUAL = ("proj.weight", "down.weight")  # ends of the names of what writes to the stream
BASE = 10_000.0  # of the rotary angles (arXiv 2104.09864, section 3.2.2)

Positions = Literal["learned", "rotary"]
Activation = Literal["gelu", "swiglu", "relu2"]
Rotation = tuple[Tensor, Tensor]  # cosines and sines, each (T, K/2)


class GPT(nn.Module):
    """Pre-norm blocks of causal attention and a perceptron, without biases or dropout.

    ``positions``: an embedding that is learned, or queries and keys rotated by their position
    (``rotary``, arXiv 2104.09864). ``mlp``: ``gelu``, ``relu2`` (squared ReLU, arXiv 2109.08668) or
    ``swiglu`` (arXiv 2002.05202). ``tied``: the head is the token embedding, and the model has no
    parameter of role ``head``. ``qkv``: queries, keys and values from one matrix ('fused') or from
    three ('split'). Weights start normal with standard deviation 0.02, those that write to the
    residual stream with 0.02 / sqrt(2 depth) (GPT-2, section 2.3).
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        context: int,
        width: int,
        depth: int,
        heads: int,
        positions: Positions = "learned",
        mlp: Activation = "gelu",
        tied: bool = True,
        qkv: Literal["fused", "split"] = "fused",
    ) -> None:
        super().__init__()
        check(input_size, output_size, context=context, width=width, depth=depth, heads=heads)
        _check_forms(width // heads, positions, mlp, qkv)
        self.roles = {r"^(tok|pos)_emb\.weight$": "embedding"}
        self.rotary, self.head_width = positions == "rotary", width // heads
        self.tok_emb = nn.Embedding(input_size, width)
        if not self.rotary:
            self.pos_emb = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp, fused=qkv == "fused") for _ in range(depth)
        )
        self.norm = nn.RMSNorm(width)
        self.head = None
        if not tied:
            self.head = nn.Linear(width, output_size, bias=False)
            self.roles[r"^head\.weight$"] = "head"
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                to_residual = name.endswith(TO_RESIDUAL)
                nn.init.normal_(weight, std=STD / math.sqrt(2 * depth) if to_residual else STD)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V) of the token after each of ``tokens_BT``, int64.

        T is up to ``context`` where positions are learned.
        """
        x_BTD, rotation = self.tok_emb(tokens_BT), None
        if self.rotary:
            rotation = rotary(tokens_BT.shape[1], self.head_width, x_BTD)
        else:
            x_BTD = x_BTD + self.pos_emb.weight[: tokens_BT.shape[1]]
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation)
        return F.linear(self.norm(x_BTD), (self.head or self.tok_emb).weight)


class Block(nn.Module):
    """Attention, then a perceptron, each on the normalized stream and added to it."""

    def __init__(
        self, width: int, heads: int, mlp: Activation = "gelu", *, fused: bool = True
    ) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attn = Attention(width, heads, fused=fused)
        self.norm2 = nn.RMSNorm(width)
        self.mlp = Perceptron(width, mlp)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None = None) -> Tensor:
        x_BTD = x_BTD + self.attn(self.norm1(x_BTD), rotation)
        return x_BTD + self.mlp(self.norm2(x_BTD))


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values from one matrix or from three."""

    def __init__(self, width: int, heads: int, *, fused: bool = True) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        if fused:
            self.qkv = nn.Linear(width, 3 * width, bias=False)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None = None) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self._parts(x_BTD)
        )
        if rotation is not None:
            q_BHTK, k_BHTK = rotated(q_BHTK, rotation), rotated(k_BHTK, rotation)
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        return self.proj(y_BHTK.transpose(1, 2).flatten(2))

    def _parts(self, x_BTD: Tensor) -> tuple[Tensor, ...]:
        if self.fused:
            return self.qkv(x_BTD).chunk(3, dim=-1)
        return self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)


class Perceptron(nn.Module):
    """Up to several times the width, an activation, and down.

    The hidden width is four times the width; that of ``swiglu``, which has three matrices, is
    8 round(width / 3): 8/3 of the width, so that the parameters are as many, to a multiple of 8.
    """

    def __init__(self, width: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.activation = activation
        hidden = swiglu_hidden(width) if activation == "swiglu" else 4 * width
        self.up = nn.Linear(width, hidden, bias=False)
        if activation == "swiglu":
            self.gate = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.activation == "swiglu":
            return self.down(F.silu(self.gate(x_BTD)) * self.up(x_BTD))
        if self.activation == "relu2":
            return self.down(F.relu(self.up(x_BTD)).square())
        return self.down(F.gelu(self.up(x_BTD)))


def swiglu_hidden(width: int) -> int:
    """Hidden units of a SwiGLU perceptron with the parameters of one of four times the width."""
    return 8 * max(1, round(width / 3))


def rotary(length: int, head_width: int, like: Tensor) -> Rotation:
    """Cosines and sines, each (T, K/2), of position times BASE^(-2i/K), as ``like``'s kind.

    Angles are taken in float64: those of late positions have few digits left in float32.
    """
    exponents = torch.arange(0, head_width, 2, device=like.device, dtype=torch.float64)
    frequencies = BASE ** (-exponents / head_width)
    positions = torch.arange(length, device=like.device, dtype=torch.float64)
    angles_TK = torch.outer(positions, frequencies)
    return angles_TK.cos().to(like.dtype), angles_TK.sin().to(like.dtype)


def rotated(x_BHTK: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys, the pairs of entries (i, i + K/2) turned by their position's angles."""
    cos_TK, sin_TK = rotation
    a, b = x_BHTK.chunk(2, dim=-1)
    turned = torch.cat([a * cos_TK - b * sin_TK, b * cos_TK + a * sin_TK], dim=-1)
    return turned.to(x_BHTK.dtype)  # with autocast, lower than that of the angles


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
            "A GPT reads and predicts tokens of one vocabulary, but the dataset declares"
            f" input_size {input_size} and output_size {output_size}: is it a text?"
        )


def check_word(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raise ConfigError unless ``value`` is one of the ``known`` words."""
    if value not in known:
        words = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ConfigError(f"model.{key} must be {words}, not {value!r}.{nearest(value, known)}")


def _check_forms(head_width: int, positions: str, mlp: str, qkv: str) -> None:
    check_word("positions", positions, ("learned", "rotary"))
    check_word("mlp", mlp, ("gelu", "swiglu", "relu2"))
    check_word("qkv", qkv, ("fused", "split"))
    if positions == "rotary" and head_width % 2:
        raise ConfigError(
            "model.positions=rotary turns pairs of entries, so model.width / model.heads must be"
            f" even, but it is {head_width}."
        )
