"""A linear model."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn


class Linear(nn.Module):
    """One matrix, without bias; torch's initial weights."""

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.head = nn.Linear(input_size, output_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, output_size) of inputs (B, ...) with ``input_size`` features each."""
        return self.head(x.flatten(1))
