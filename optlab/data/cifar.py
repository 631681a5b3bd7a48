"""CIFAR-10 and CIFAR-100, from their official archives in the binary format."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .base import (
    VAL_BATCH,
    Batch,
    Data,
    Sampler,
    accuracy,
    check_size,
    cross_entropy,
    find_file,
    marginal_entropy,
    pixel_statistics,
    random_stream,
)
from .prepare import RemoteFile

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32  # bytes of an image
SHIFT = 4  # pixels that a crop is moved by at most, over a black rim
DRAWS = 2  # key of the random numbers of an epoch; 1 are a text's offsets


@dataclass(frozen=True)
class Layout:
    """Where an archive keeps its images: bytes of labels, of which the last counts, and pixels.

    Red, then green, then blue, each row by row (format: www.cs.toronto.edu/~kriz/cifar.html).
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: int  # bytes
    images: int  # of each training file
    tests: int  # images of the test file


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training images; the 10,000 test images validate."""

    files: ClassVar[tuple[RemoteFile, ...]] = (
        RemoteFile(
            path="cifar10/cifar-10-binary.tar.gz",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
            size=170_052_171,
            sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    )
    layout: ClassVar[Layout] = Layout(
        train=tuple(f"cifar-10-batches-bin/data_batch_{n}.bin" for n in range(1, 6)),
        test=("cifar-10-batches-bin/test_batch.bin",),
        labels=1,
        images=10_000,
        tests=10_000,
    )

    input_size: int
    output_size: int
    loss_lower_bound: float | None
    augment: bool  # flip and crop the training images
    drop_last: bool  # an epoch ends with its last whole batch

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs are float32 (B, 3, 32, 32), standardized per channel."""
        train, val = read_cifar(folder, self.files[0], self.layout, dataset="cifar10")
        check_size("input_size", self.input_size, PIXELS)
        check_size("output_size", self.output_size, int(train[1].max()) + 1)
        sampler = Sampler(len(train[1]), batch_size, seed, self.drop_last)
        return classify_colour_images(train, val, sampler, augment=self.augment)


@dataclass(frozen=True)
class Cifar100:
    """CIFAR-100 (Krizhevsky 2009), its fine labels; otherwise as CIFAR-10."""

    files: ClassVar[tuple[RemoteFile, ...]] = (
        RemoteFile(
            path="cifar100/cifar-100-binary.tar.gz",
            urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
            size=168_513_733,
            sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    )
    layout: ClassVar[Layout] = Layout(
        train=("cifar-100-binary/train.bin",),
        test=("cifar-100-binary/test.bin",),
        labels=2,  # coarse, fine
        images=50_000,
        tests=10_000,
    )

    input_size: int
    output_size: int
    loss_lower_bound: float | None
    augment: bool  # flip and crop the training images
    drop_last: bool  # an epoch ends with its last whole batch

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs are float32 (B, 3, 32, 32), standardized per channel."""
        train, val = read_cifar(folder, self.files[0], self.layout, dataset="cifar100")
        check_size("input_size", self.input_size, PIXELS)
        check_size("output_size", self.output_size, int(train[1].max()) + 1)
        sampler = Sampler(len(train[1]), batch_size, seed, self.drop_last)
        return classify_colour_images(train, val, sampler, augment=self.augment)


def read_cifar(
    folder: Path, file: RemoteFile, layout: Layout, *, dataset: str
) -> tuple[Batch, Batch]:
    """Training and test part: images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""
    path = find_file(folder, file.path, dataset=dataset)
    try:
        train, test = unpacked(path, layout, path.stat().st_mtime_ns)
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError, zlib.error) as error:
        raise ConfigError(
            f"{path} is not the whole archive of {dataset}: {error}. Get it again, by hand or with"
            f" `python -m optlab data prepare {dataset}`."
        ) from error
    return train, test


@lru_cache(maxsize=1)  # a worker that trains many runs unpacks once, which takes two seconds
def unpacked(path: Path, layout: Layout, modified: int) -> tuple[Batch, Batch]:
    """Both parts; ``modified`` (ns) tells a replaced file apart."""
    with gzip.open(path) as stream:  # to its end, where its checksum is; tarfile stops before
        content = stream.read()
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:

        def part(names: Sequence[str], images: int) -> Batch:
            records = b"".join(member(archive, name, layout, images) for name in names)
            table = torch.frombuffer(bytearray(records), dtype=torch.uint8)
            table = table.view(-1, layout.labels + PIXELS)
            pixels = table[:, layout.labels :].reshape(-1, *SHAPE).contiguous()
            return pixels, table[:, layout.labels - 1].long()

        return part(layout.train, layout.images), part(layout.test, layout.tests)


def member(archive: tarfile.TarFile, name: str, layout: Layout, images: int) -> bytes:
    """The content of a file of the archive; ValueError where it is not ``images`` records."""
    stream = archive.extractfile(name)  # KeyError where there is none
    content = stream.read() if stream else b""
    expected = images * (layout.labels + PIXELS)
    if len(content) != expected:
        raise ValueError(f"its {name} holds {len(content):,} bytes instead of {expected:,}")
    return content


def classify_colour_images(train: Batch, val: Batch, sampler: Sampler, *, augment: bool) -> Data:
    """Data from colour images, uint8 (N, 3, S, S), and classes, int64 (N,).

    Inputs are float32 (B, 3, S, S), each channel shifted and scaled by the mean and standard
    deviation of its training pixels. Where training augments, half of the images are mirrored and
    each is moved by up to ``SHIFT`` pixels over a black rim, as the sampler's seed and the epoch
    say: step t is a pure function of (seed, t).
    """
    images, classes = train
    statistics = [pixel_statistics(channel) for channel in images.unbind(1)]
    mean, std = (torch.tensor(values)[:, None, None] for values in zip(*statistics, strict=True))

    def scaled(pixels: Tensor) -> Tensor:
        return (pixels.float() - mean) / std

    def batch(step: int) -> Batch:
        chosen = sampler(step)
        pixels = images.index_select(0, chosen)
        if augment:
            pixels = moved(pixels, *draws_of(sampler, step))
        return scaled(pixels), classes.index_select(0, chosen)

    return Data(
        train=batch,
        val=Scaled(val, scaled),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        chance_loss=marginal_entropy(classes),
    )


class Scaled(Sequence[Batch]):
    """Validation batches, scaled when they are asked for: bytes are a quarter of the memory."""

    def __init__(self, val: Batch, scaled: Callable[[Tensor], Tensor]) -> None:
        self._parts = list(zip(*(part.split(VAL_BATCH) for part in val), strict=True))
        self._scaled = scaled

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # no slices are asked for
        pixels, classes = self._parts[index]
        return self._scaled(pixels), classes


def draws_of(sampler: Sampler, step: int) -> tuple[Tensor, Tensor]:
    """For each image of a step: whether it is mirrored, bool (B,), and its shift, int64 (B, 2)."""
    parts = list(sampler.parts(step))
    drawn = [epoch_draws(sampler.size, sampler.seed, epoch) for epoch, _ in parts]
    taken = [
        (mirror[index], shift[index])
        for (mirror, shift), (_, index) in zip(drawn, parts, strict=True)
    ]
    mirror, shift = (
        torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*taken, strict=True)
    )
    return mirror, shift.long()


@lru_cache(maxsize=8)  # a worker that trains many runs of one seed draws each epoch once
def epoch_draws(size: int, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """For each image of an epoch: mirrored, bool (size,), and rows and columns, int8 (size, 2)."""
    random = random_stream(seed, epoch, DRAWS)
    mirror = random.randint(2, size=size).astype(bool)
    shift = random.randint(-SHIFT, SHIFT + 1, size=(size, 2)).astype(np.int8)
    return mirror, shift


def moved(images: Tensor, mirror: Tensor, shift: Tensor) -> Tensor:
    """Images (B, C, S, S): mirrored left to right where told, then moved, zero where nothing was.

    ``shift`` (B, 2), rows and columns, at most ``SHIFT``: pixel (r, c) of the result is pixel
    (r + rows, c + columns).
    """
    images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
    padded = torch.nn.functional.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    side = torch.arange(images.shape[-1]) + SHIFT
    rows, columns = shift[:, 0, None] + side, shift[:, 1, None] + side
    b = torch.arange(len(images))[:, None, None, None]
    c = torch.arange(images.shape[1])[None, :, None, None]
    return padded[b, c, rows[:, None, :, None], columns[:, None, None, :]]
