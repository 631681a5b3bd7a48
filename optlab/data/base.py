"""What a dataset gives to training: batches by step, a validation set, a loss, its chance level."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ConfigError

Batch = tuple[Tensor, Tensor]  # inputs, targets

VAL_BATCH = 1000  # images a validation batch


@dataclass(frozen=True)
class Data:
    """A loaded dataset. Tensors are on the CPU."""

    train: Callable[[int], Batch]  # the batch of training step 0, 1, ...: pure, so resuming is free
    val: Sequence[Batch]  # the whole validation set in fixed order; the last batch may be smaller
    loss: Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> (), mean over targets
    metrics: Mapping[str, Callable[[Tensor, Tensor], Tensor]]  # as ``loss``; more is better
    chance_loss: float  # the best that a constant prediction reaches on training targets
    unit: str = "nats"  # of the losses


class Dataset(Protocol):
    """What a file of ``conf/dataset`` builds: facts about a dataset, and how to load it."""

    @property
    def input_size(self) -> int:
        """Features of an input; for text, tokens of the vocabulary."""
        ...

    @property
    def output_size(self) -> int:
        """Classes, or tokens of the vocabulary."""
        ...

    @property
    def loss_lower_bound(self) -> float | None:
        """Of the training loss, in nats; None where no honest value is known."""
        ...

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """The data below ``folder``; ``seed`` orders the training batches.

        It decides nothing else, but where training augments its inputs, how, and where the
        validation rows are drawn, which.

        Raises ConfigError where files are missing or differ from the declared facts.
        """
        ...


def data_folder() -> Path:
    """``OPTLAB_DATA`` where it is set, else ``optlab`` in the user's cache folder."""
    if chosen := os.environ.get("OPTLAB_DATA"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "optlab"


def find_file(folder: Path, path: str, *, dataset: str) -> Path:
    """The file ``path`` below the data folder; a ConfigError with the remedy if it is missing."""
    file = folder / path
    if file.is_file():
        return file
    raise ConfigError(
        f"Dataset {dataset} needs the file {file}, which does not exist: run `python -m optlab"
        f" data prepare {dataset}`, or set OPTLAB_DATA to the folder that holds {path}."
    )


def check_size(key: str, declared: int, found: int) -> None:
    """Refuse a declared ``dataset.<key>`` that the loaded data contradict."""
    if declared != found:
        raise ConfigError(
            f"dataset.{key} is declared as {declared}, but the data have {found}:"
            f" set it to {found} in the dataset's YAML file."
        )


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, shape (), of logits (..., C) against classes (...)."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Fraction, shape (), of logits (..., C) whose largest entry is at the class (...)."""
    return (outputs.argmax(-1) == targets).float().mean()


def marginal_entropy(targets: Tensor) -> float:
    """Entropy in nats of the frequencies of ``targets``: the best constant prediction's loss."""
    counts = torch.bincount(targets.flatten()).double()
    p = counts[counts > 0] / counts.sum()
    return -(p * p.log()).sum().item()


def random_stream(seed: int, *key: int) -> np.random.RandomState:
    """An independent source of random numbers for every ``seed`` and ``key``."""
    # RandomState on purpose: NumPy freezes its streams, those of Generator may change (NEP 19).
    return np.random.RandomState(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


@lru_cache(maxsize=8)  # a worker that trains many runs of one seed draws each epoch once
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """Order of the samples in one epoch, (size,), read-only."""
    order = random_stream(seed, epoch).permutation(size)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class Sampler:
    """Which samples a training step takes: every one once per epoch, each epoch in its own order.

    A batch that crosses the end of an epoch goes on with the next permutation, so any batch size up
    to that of the dataset works. With ``drop_last`` no batch does: an epoch ends with its last
    whole batch, and the few samples behind that sit it out. Step t is a pure function of (seed, t).
    """

    size: int  # samples
    batch_size: int
    seed: int
    drop_last: bool = False

    def __post_init__(self) -> None:
        for name, value, least in [
            ("train.batch_size", self.batch_size, 1),
            ("seed", self.seed, 0),
            ("number of training samples", self.size, 1),
        ]:
            if value < least:
                raise ConfigError(f"The {name} must be at least {least}, but is {value}.")
        if self.batch_size > self.size:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}, and there are {self.size} training"
                f" samples, so that every batch would hold some twice: choose at most {self.size}."
            )

    @property
    def epoch_size(self) -> int:
        """Samples that an epoch takes."""
        return self.size - self.size % self.batch_size if self.drop_last else self.size

    def parts(self, step: int) -> Iterator[tuple[int, np.ndarray]]:
        """The batch as pieces of one epoch each: (epoch, indices)."""
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            epoch, first = divmod(position, self.epoch_size)
            last = min(first + end - position, self.epoch_size)
            yield epoch, permutation(self.size, self.seed, epoch)[first:last]
            position += last - first

    def __call__(self, step: int) -> Tensor:
        """Indices of the batch of training step 0, 1, ..., (batch_size,)."""
        return torch.from_numpy(np.concatenate([indices for _, indices in self.parts(step)]))


def classify_images(
    train: Batch, val: Batch, *, seed: int, batch_size: int, drop_last: bool = False
) -> Data:
    """Data from grey images, uint8 (N, H, W), and classes, int64 (N,).

    Inputs are float32 (B, 1, H, W), shifted and scaled by the mean and standard deviation of all
    training pixels. They are stored as bytes and scaled per batch, a quarter of the memory.
    """
    images, classes = train
    mean, std = pixel_statistics(images)
    sampler = Sampler(len(images), batch_size, seed, drop_last)

    def scaled(pixels: Tensor) -> Tensor:
        return (pixels.unsqueeze(1).float() - mean) / std

    def batch(step: int) -> Batch:
        chosen = sampler(step)
        return scaled(images.index_select(0, chosen)), classes.index_select(0, chosen)

    return Data(
        train=batch,
        val=list(zip(scaled(val[0]).split(VAL_BATCH), val[1].split(VAL_BATCH), strict=True)),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        chance_loss=marginal_entropy(classes),
    )


def pixel_statistics(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of all pixels of uint8 images, from their exact histogram."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values) / counts.sum()
    std = ((counts @ (values - mean).square()) / counts.sum()).sqrt()
    return mean.item(), std.item()
