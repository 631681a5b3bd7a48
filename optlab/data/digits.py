"""Handwritten digits, 8x8 pixels: a real dataset that comes with scikit-learn, no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from ..errors import ConfigError
from .base import Data, check_size, classify_images
from .prepare import RemoteFile

SPLIT_SEED = 0  # one split for all runs: a run's own seed orders the batches only
VAL_FRACTION = 0.2


@dataclass(frozen=True)
class Digits:
    """1797 grey images of 10 classes (UCI "Optical Recognition of Handwritten Digits", test part).

    Validation is a fifth of every class, 359 images, drawn once and for all; 1438 train.
    """

    files: ClassVar[tuple[RemoteFile, ...]] = ()

    input_size: int
    output_size: int
    loss_lower_bound: float | None

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs are float32 (B, 1, 8, 8), standardized; ``folder`` is not used."""
        table = np.loadtxt(bundled_file(), delimiter=",", dtype=np.uint8)
        images, classes = table[:, :-1], table[:, -1].astype(np.int64)
        check_size("input_size", self.input_size, images.shape[1])
        check_size("output_size", self.output_size, int(classes.max()) + 1)
        pixels, labels = torch.from_numpy(images.reshape(-1, 8, 8)), torch.from_numpy(classes)
        train, val = stratified_split(classes)
        return classify_images(
            (pixels[train], labels[train]),
            (pixels[val], labels[val]),
            seed=seed,
            batch_size=batch_size,
        )


def bundled_file() -> Path:
    """scikit-learn's data file, found without importing it, which would take about a second."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise ConfigError(
            "Dataset digits needs scikit-learn, which is not installed: pip install scikit-learn."
        )
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if not file.is_file():
        raise ConfigError(
            f"Dataset digits expects scikit-learn's file {file}, which does not exist:"
            " reinstall scikit-learn (1.4 or later)."
        )
    return file


def stratified_split(classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the training and the validation samples, the same for every run."""
    random = np.random.RandomState(SPLIT_SEED)  # frozen by NumPy's policy (NEP 19)
    in_val = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        members = random.permutation(np.flatnonzero(classes == label))
        in_val[members[: round(VAL_FRACTION * len(members))]] = True
    return np.flatnonzero(~in_val), np.flatnonzero(in_val)
