"""MNIST and Fashion-MNIST, from gzipped files in the IDX format."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from .base import Batch, Data, check_size, classify_images, find_file
from .prepare import RemoteFile

UNSIGNED_BYTE = 0x08  # the type code of IDX that images and labels use
TRAIN = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def idx_files(
    folder: str, places: tuple[str, ...], hashes: tuple[str, str, str, str]
) -> tuple[RemoteFile, ...]:
    """The four files of a dataset in MNIST's layout, from places that name them all alike."""
    sizes = (47_040_016, 60_008, 7_840_016, 10_008)
    return tuple(
        RemoteFile(f"{folder}/{name}", tuple(place + name for place in places), size, sha256)
        for name, size, sha256 in zip(TRAIN + TEST, sizes, hashes, strict=True)
    )


@dataclass(frozen=True)
class Mnist:
    """MNIST (LeCun, Cortes and Burges): 60,000 training images; the 10,000 test images validate."""

    files: ClassVar[tuple[RemoteFile, ...]] = idx_files(
        "mnist",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        (
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    )

    input_size: int
    output_size: int
    loss_lower_bound: float | None
    drop_last: bool = False  # an epoch ends with its last whole batch

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs are float32 (B, 1, 28, 28), standardized."""
        train, val = read_images(folder, "mnist", dataset="mnist")
        check_size("input_size", self.input_size, train[0].shape[1:].numel())
        check_size("output_size", self.output_size, int(train[1].max()) + 1)
        return classify_images(
            train, val, seed=seed, batch_size=batch_size, drop_last=self.drop_last
        )


@dataclass(frozen=True)
class FashionMnist:
    """Fashion-MNIST (arXiv 1708.07747): 60,000 training images; the 10,000 test images validate."""

    files: ClassVar[tuple[RemoteFile, ...]] = idx_files(
        "fashion-mnist",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    )

    input_size: int
    output_size: int
    loss_lower_bound: float | None

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs are float32 (B, 1, 28, 28), standardized."""
        train, val = read_images(folder, "fashion-mnist", dataset="fashion_mnist")
        check_size("input_size", self.input_size, train[0].shape[1:].numel())
        check_size("output_size", self.output_size, int(train[1].max()) + 1)
        return classify_images(train, val, seed=seed, batch_size=batch_size)


def read_images(folder: Path, name: str, *, dataset: str) -> tuple[Batch, Batch]:
    """Training and test part: images, uint8 (N, H, W), and labels, int64 (N,)."""

    def read(file: str) -> Tensor:
        path = find_file(folder, f"{name}/{file}", dataset=dataset)
        try:
            return read_idx(path, path.stat().st_mtime_ns)
        except (EOFError, gzip.BadGzipFile, ValueError, zlib.error) as error:
            raise ConfigError(
                f"{path} is not a whole gzipped IDX file: {error}. Get it again, by hand or with"
                f" `python -m optlab data prepare {dataset}`."
            ) from error

    def pair(images: Tensor, labels: Tensor) -> Batch:
        if images.dim() != 3 or labels.dim() != 1 or len(images) != len(labels):
            raise ConfigError(
                f"The files of images and labels in {folder / name} do not belong together:"
                " expected N images (N, H, W) and N labels (N,),"
                f" found {tuple(images.shape)} and {tuple(labels.shape)}."
            )
        return images, labels.long()

    train, test = (pair(read(images), read(labels)) for images, labels in (TRAIN, TEST))
    return train, test


@lru_cache(maxsize=4)  # one dataset: a worker that trains many runs decompresses it once
def read_idx(file: Path, modified: int) -> Tensor:
    """The array in a gzipped IDX file, uint8; ``modified`` (ns) tells a replaced file apart."""
    with gzip.open(file) as stream:
        return parse_idx(stream.read())


def parse_idx(content: bytes) -> Tensor:
    """The array of unsigned bytes that IDX ``content`` holds (format: yann.lecun.com/exdb/mnist).

    Two zero bytes, a type code, the number of axes; each axis as a big-endian uint32; the bytes.
    Raises ValueError for anything else.
    """
    magic = content[:4]
    if len(magic) < 4 or magic[:3] != bytes([0, 0, UNSIGNED_BYTE]) or magic[3] == 0:
        raise ValueError(
            f"expected the bytes 00 00 08 and the number of axes, found '{magic.hex(' ')}'"
        )
    start = 4 + 4 * magic[3]
    if len(content) < start:
        raise ValueError(f"expected a header of {start} bytes, found {len(content)}")
    shape = struct.unpack(f">{magic[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"its header {shape} announces {math.prod(shape)} bytes, found {len(content) - start}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).reshape(shape)
