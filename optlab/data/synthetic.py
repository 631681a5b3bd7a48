"""Linear regression on drawn data, without noise: a problem whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError
from .base import Batch, Data, Sampler, check_size
from .prepare import RemoteFile

SHIFT = 1.0  # mean of an entry before the columns are scaled
SPREAD = 10.0  # standard deviation of a column's scale; it chooses signs, lengths are set after
COLUMN_NORM = 10.0
DENSITY = 30.0  # entries of a column that are not zero, as a multiple of ln(rows)


@dataclass(frozen=True)
class LinearRegression:
    """Targets ⟨w, a⟩ for rows a of a sparse matrix with equally long columns; ‖w‖ = 1.

    The problem of the Momo paper's ``synthetic_small`` (arXiv 2305.07583), number for number: its
    generator and seeds are those of the published experiment, whose validation rows are other ones
    in each of its runs.
    """

    files: ClassVar[tuple[RemoteFile, ...]] = ()

    input_size: int
    output_size: int
    rows: int  # for training, and as many for validation
    solution_seed: int  # of w
    train_seed: int  # of the training rows
    val_seed: int  # of the validation rows, plus the seed of the run
    loss_lower_bound: float | None

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs are float32 (B, input_size), targets (B,); ``folder`` is not used."""
        check_size("output_size", self.output_size, 1)
        if self.input_size < 1 or self.rows < 2:
            raise ConfigError(
                "dataset.input_size must be at least 1 and dataset.rows at least 2,"
                f" but they are {self.input_size} and {self.rows}."
            )
        w = solution(self.input_size, self.solution_seed)
        inputs, targets = draw(w, self.rows, self.train_seed)
        sampler = Sampler(self.rows, batch_size, seed)

        def batch(step: int) -> Batch:
            chosen = sampler(step)
            return inputs.index_select(0, chosen), targets.index_select(0, chosen)

        return Data(
            train=batch,
            val=[draw(w, self.rows, self.val_seed + seed)],
            loss=mean_squared_error,
            metrics={},
            chance_loss=targets.double().var(correction=0).item(),
            unit="MSE",
        )


def solution(size: int, seed: int) -> np.ndarray:
    """w, float64 (size,), of length 1."""
    w = np.random.RandomState(seed).randn(size)  # frozen by NumPy's policy (NEP 19)
    return w / np.linalg.norm(w)


def draw(w: np.ndarray, rows: int, seed: int) -> Batch:
    """Inputs, float32 (rows, len(w)), and targets, float32 (rows,), from float64 numbers."""
    random = np.random.RandomState(seed)
    a = random.randn(rows, len(w)) + SHIFT
    a = a * (SPREAD * random.randn(len(w)))
    a = a * (random.rand(*a.shape) < DENSITY * np.log(rows) / rows)
    a = COLUMN_NORM * a / np.maximum(np.linalg.norm(a, axis=0), 1e-6)
    return torch.from_numpy(a).float(), torch.from_numpy(a @ w).float()


def mean_squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean, shape (), of the squared differences of outputs (B, 1) and targets (B,)."""
    return F.mse_loss(outputs.flatten(), targets)
