"""The IDX parser on files made here, sound and broken, and on the real datasets."""

from __future__ import annotations

import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optlab.data.idx import TEST, TRAIN, FashionMnist, Mnist, parse_idx
from optlab.errors import ConfigError

MNIST = Mnist(input_size=12, output_size=3, loss_lower_bound=0.0)


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def by_message(value: object) -> str:
    """A test's name from the expected message, not from kilobytes of content."""
    return value if isinstance(value, str) else "content"


def idx(*shape: int, values: bytes | None = None, magic: bytes = b"\0\0\x08") -> bytes:
    """IDX content of this shape; its bytes count up from 0 where no ``values`` are given."""
    count = int(torch.tensor(shape).prod())
    content = values if values is not None else bytes(i % 256 for i in range(count))
    return magic + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + content


def write_mnist(folder: Path, **replaced: bytes) -> Path:
    """A tiny dataset in MNIST's layout: 5 and 2 images of 4x3; ``replaced`` by kind."""
    contents = {
        "images": idx(5, 4, 3),
        "labels": idx(5, values=bytes([0, 1, 2, 1, 0])),
        "test_images": idx(2, 4, 3),
        "test_labels": idx(2, values=bytes([2, 0])),
    }
    (folder / "mnist").mkdir(exist_ok=True)
    for kind, name in zip(contents, TRAIN + TEST, strict=True):
        content = replaced.get(kind, zipped(contents[kind]))
        (folder / "mnist" / name).write_bytes(content)
    return folder


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_an_array_survives_the_format(shape: list[int]) -> None:
    count = int(torch.tensor(shape).prod())

    array = parse_idx(idx(*shape))

    assert array.dtype == torch.uint8
    assert torch.equal(array, torch.arange(count, dtype=torch.uint8).reshape(shape))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "found ''"),
        (b"\x89PNG....", "expected the bytes 00 00 08 .* found '89 50 4e 47'"),
        (idx(2, 3, magic=b"\0\0\x0d"), "found '00 00 0d 02'"),
        (b"\0\0\x08\0", "found '00 00 08 00'"),
        (idx(2, 3)[:9], "expected a header of 12 bytes, found 9"),
        (idx(2, 3)[:-1], r"header \(2, 3\) announces 6 bytes, found 5"),
        (idx(2, 3) + b"x", r"header \(2, 3\) announces 6 bytes, found 7"),
        (idx(2**31, 2**31, values=b""), "found 0"),
    ],
    ids=by_message,
)
def test_broken_content_is_refused_with_what_was_found(content: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_idx(content)


def test_images_and_labels_stay_together(tmp_path: Path) -> None:
    data = MNIST.load(write_mnist(tmp_path), seed=0, batch_size=5)
    inputs, classes = data.train(0)

    first_pixels = inputs[:, 0, 0, 0]
    assert inputs.shape == (5, 1, 4, 3)
    assert classes[first_pixels.argsort()].tolist() == [0, 1, 2, 1, 0]
    assert data.val[0][1].tolist() == [2, 0]


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    folder = write_mnist(tmp_path)
    MNIST.load(folder, seed=0, batch_size=5)

    write_mnist(folder, test_labels=zipped(idx(2, values=bytes([1, 1]))))
    labels = folder / "mnist" / TEST[1]
    os.utime(labels, ns=(0, labels.stat().st_mtime_ns + 1))

    assert MNIST.load(folder, seed=0, batch_size=5).val[0][1].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "images-idx3.*is not a whole gzipped IDX file"),
        (b"<html>Not found</html>", "Not a gzipped file"),
        (zipped(idx(5, 4, 3))[:-12], "is not a whole gzipped IDX file"),
        (zipped(idx(5, 4, 3))[:-1] + b"\xff", "is not a whole gzipped IDX file"),
        (zipped(idx(5, 4, 3))[:10] + b"\xff" * 30, "is not a whole gzipped IDX file"),
        (zipped(idx(5, 4, 3)[:-1]), "announces 60 bytes, found 59"),
        (zipped(idx(0, 4, 3)), "is not a whole gzipped IDX file"),
        (zipped(idx(4, 4, 3)), r"do not belong together.*\(4, 4, 3\) and \(5,\)"),
        (zipped(idx(5, 12)), r"do not belong together.*\(5, 12\) and \(5,\)"),
        (zipped(idx(5, 4, 4)), r"dataset\.input_size .* 12, but the data have 16"),
    ],
    ids=by_message,
)
def test_a_broken_file_of_images_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MNIST.load(write_mnist(tmp_path, images=content), seed=0, batch_size=1)


def test_a_broken_file_says_how_to_get_it_again(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data prepare mnist"):
        MNIST.load(write_mnist(tmp_path, test_labels=b"x"), seed=0, batch_size=1)


def test_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.output_size .* 10, but the data have 3"):
        Mnist(12, 10, 0.0).load(write_mnist(tmp_path), seed=0, batch_size=1)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (write_mnist(tmp_path) / "mnist" / TEST[0]).unlink()

    with pytest.raises(ConfigError, match=rf"{TEST[0]}, which does not exist.*prepare mnist"):
        MNIST.load(tmp_path, seed=0, batch_size=1)
    with pytest.raises(ConfigError, match="data prepare fashion_mnist"):
        FashionMnist(12, 3, 0.2).load(tmp_path, seed=0, batch_size=1)


@pytest.mark.parametrize(
    ("dataset", "first_classes"),
    [
        (Mnist(784, 10, 0.0), [7, 2, 1, 0, 4]),
        (FashionMnist(784, 10, 0.2), [9, 2, 1, 1, 6]),
    ],
    ids=["mnist", "fashion_mnist"],
)
def test_the_real_files_are_whole(dataset, first_classes, real_data: Callable[..., Path]) -> None:
    data = dataset.load(real_data(dataset.files), seed=0, batch_size=60_000)
    inputs, classes = data.train(0)

    assert inputs.shape == (60_000, 1, 28, 28)
    assert inputs.mean().item() == pytest.approx(0, abs=1e-4)
    assert inputs.std().item() == pytest.approx(1, abs=1e-4)
    assert len(classes.bincount()) == 10
    assert data.val[0][1][:5].tolist() == first_classes
    assert sum(len(targets) for _, targets in data.val) == 10_000
