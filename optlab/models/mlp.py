"""A plain multi-layer perceptron."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` ReLU units, a linear head; torch's initial weights."""

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(self, input_size: int, output_size: int, *, width: int, depth: int) -> None:
        super().__init__()
        if width < 1 or depth < 0:
            raise ConfigError(
                "model.width must be at least 1 and model.depth at least 0,"
                f" but they are {width} and {depth}."
            )
        sizes = [input_size] + depth * [width]
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out) for fan_in, fan_out in pairwise(sizes)
        )
        self.head = nn.Linear(sizes[-1], output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, output_size) of inputs (B, ...) with ``input_size`` features each."""
        if not x.is_floating_point():
            raise ConfigError(
                "model=mlp takes real-valued inputs, but this dataset gives tokens"
                f" ({x.dtype}): choose a language model such as model=gpt_tiny."
            )
        x = x.flatten(1)
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.head(x)
