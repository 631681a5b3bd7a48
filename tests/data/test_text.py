"""Laws of the windows of text, shown on texts whose tokens are their own positions."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optlab.data.base import Data
from optlab.data.text import (
    PythonDocs,
    Shakespeare,
    encode_characters,
    epoch_offset,
    predict_next_token,
    python_docs,
    spread_starts,
    training_windows,
)
from optlab.errors import ConfigError

NOWHERE = Path("does not matter")


def positions(length: int, **options: int) -> Data:
    """A text whose token at each position is the position."""
    defaults = {"context": 4, "val_windows": 1000, "seed": 0, "batch_size": 3}
    return predict_next_token(torch.arange(length), **(defaults | options))


def all_val(data: Data) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*data.val, strict=True)
    return torch.cat(inputs), torch.cat(targets)


@given(st.integers(2, 400), st.integers(1, 20), st.integers(1, 50), st.integers(0, 99))
def test_an_epoch_cuts_the_training_part_into_windows_side_by_side(
    length: int, context: int, batch_size: int, seed: int
) -> None:
    """Without overlap, each once, targets one ahead; fewer than two windows are left over."""
    if length < 2 * context:
        return
    tokens = torch.arange(length)
    windows = (length - context) // context
    batch_size = min(batch_size, windows)
    batch = training_windows(tokens, context, seed=seed, batch_size=batch_size)
    steps = -(-2 * windows // batch_size)
    inputs, targets = map(torch.cat, zip(*map(batch, range(steps)), strict=True))

    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs, inputs[:, :1] + torch.arange(context))
    for epoch, taken in enumerate(inputs[: 2 * windows].split(windows)):
        offset = epoch_offset(context, seed, epoch)
        assert sorted(taken[:, 0].tolist()) == [offset + context * i for i in range(windows)]
        assert length - taken.numel() < 2 * context


def test_over_the_epochs_windows_start_everywhere() -> None:
    assert {epoch_offset(8, 0, epoch) for epoch in range(200)} == set(range(8))
    assert [epoch_offset(64, 0, e) for e in range(9)] != [epoch_offset(64, 1, e) for e in range(9)]


@given(st.integers(40, 600), st.integers(1, 3), st.integers(1, 300))
def test_training_never_sees_the_validation_part(length: int, context: int, windows: int) -> None:
    boundary = int(0.9 * length)
    epoch = (boundary - context) // context
    data = positions(length, context=context, val_windows=windows, batch_size=epoch)

    for step in range(2 * context):
        inputs, targets = data.train(step)
        assert max(inputs.max(), targets.max()) < boundary
    inputs, targets = all_val(data)
    assert min(inputs.min(), targets.min()) >= boundary
    assert torch.equal(targets, inputs + 1)


@given(st.integers(2, 1000), st.integers(1, 30), st.integers(1, 100))
def test_validation_windows_are_spread_evenly_without_overlap(
    length: int, context: int, most: int
) -> None:
    fitting = (length - 1) // context
    if fitting == 0:
        return
    starts = spread_starts(length, context, most)
    gaps = np.diff([*starts, context * fitting]) // context

    assert len(starts) == min(most, fitting)
    assert starts[0] == 0
    assert starts[-1] + context + 1 <= length
    assert np.all(starts % context == 0)
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


def test_a_small_validation_part_is_taken_whole() -> None:
    inputs, _ = all_val(positions(1000, context=4, val_windows=1000))

    assert inputs.flatten().tolist() == list(range(900, 996))


def test_the_number_of_validation_windows_is_the_one_asked_for() -> None:
    data = positions(5000, context=2, val_windows=100)

    assert [len(inputs) for inputs, _ in data.val] == [64, 36]


def test_the_seed_and_the_batch_size_leave_validation_alone() -> None:
    first = all_val(positions(1000, seed=0, batch_size=3))
    second = all_val(positions(1000, seed=1, batch_size=50))

    assert all(map(torch.equal, first, second))


def test_batches_are_a_function_of_seed_and_step() -> None:
    """Also where a batch crosses epochs, whose offsets differ."""
    undisturbed = positions(100, batch_size=13)
    batches = [undisturbed.train(step) for step in range(20)]
    epoch_offset.cache_clear()
    resumed, other = positions(100, batch_size=13), positions(100, batch_size=13, seed=1)

    for step in reversed(range(20)):
        assert all(map(torch.equal, resumed.train(step), batches[step]))
    assert not torch.equal(other.train(0)[0], batches[0][0])


def test_the_chance_loss_is_the_unigram_entropy_of_the_training_part() -> None:
    tokens = torch.cat([torch.arange(90) % 2, torch.full((10,), 2)])
    data = predict_next_token(tokens, context=3, val_windows=9, seed=0, batch_size=1)

    assert data.chance_loss == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"context": 10}, "validation part of the text has only 10 tokens"),
        ({"context": 0}, "at least 1"),
        ({"val_windows": 0}, "at least 1"),
        ({"batch_size": 0}, "batch_size"),
    ],
)
def test_impossible_windows_are_refused(options: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        positions(100, **options)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_characters_are_encoded_without_loss(text: str) -> None:
    tokens, alphabet = encode_characters(text)

    assert "".join(alphabet[token] for token in tokens) == text
    assert list(alphabet) == sorted(set(text))


def test_python_docs_are_the_topics_of_help_byte_by_byte() -> None:
    from pydoc_data.topics import topics

    dataset = PythonDocs(256, 256, None, context=50, val_windows=10**6)
    inputs, targets = all_val(dataset.load(NOWHERE, seed=0, batch_size=1))
    end = bytes(torch.cat([inputs.flatten(), targets[-1, -1:]]).tolist())

    whole = python_docs().encode()
    assert end in whole[int(0.9 * len(whole)) :]
    assert len(whole) // 10 - len(end) <= 50
    assert all(topic in python_docs() for topic in topics.values())
    assert len(whole) > 400_000


def test_topics_are_joined_in_the_order_of_their_names(monkeypatch) -> None:
    """Whatever order the module of this Python has them in."""
    topics = SimpleNamespace(topics={"b": "second", "c": "third", "a": "first"})
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", topics)

    assert python_docs() == "first\n\nsecond\n\nthird"


def test_python_docs_are_refused_where_they_are_not_installed(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)

    with pytest.raises(ConfigError, match="pydoc_data"):
        PythonDocs(256, 256, None, 4, 4).load(NOWHERE, seed=0, batch_size=1)


def write_text(folder: Path, content: bytes) -> Path:
    (folder / "tiny-shakespeare").mkdir()
    (folder / "tiny-shakespeare" / "input.txt").write_bytes(content)
    return folder


def test_shakespeare_reads_the_characters_of_its_file(tmp_path: Path) -> None:
    folder = write_text(tmp_path, b"to be\r\n" * 40)
    data = Shakespeare(7, 7, None, context=7, val_windows=99).load(folder, seed=0, batch_size=9)
    alphabet = sorted(set("to be\r\n"))

    for inputs, _ in [data.train(0), *data.val]:
        for window in inputs:
            assert "".join(alphabet[token] for token in window) in "to be\r\n" * 2


@pytest.mark.parametrize("key", ["input_size", "output_size"])
def test_an_alphabet_of_another_size_is_refused(tmp_path: Path, key: str) -> None:
    folder = write_text(tmp_path, b"abcd" * 40)
    sizes = {"input_size": 4, "output_size": 4, key: 65}

    with pytest.raises(ConfigError, match=rf"dataset\.{key} .* 65, but the data have 4"):
        Shakespeare(**sizes, loss_lower_bound=None, context=4, val_windows=1).load(
            folder, seed=0, batch_size=1
        )


@pytest.mark.parametrize("size", [(255, 256), (256, 255)])
def test_python_docs_have_the_vocabulary_of_bytes(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="255, but the data have 256"):
        PythonDocs(*size, None, context=4, val_windows=1).load(NOWHERE, seed=0, batch_size=1)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    folder = write_text(tmp_path, b"\xff\xfe\x00")

    with pytest.raises(ConfigError, match=r"input\.txt is not UTF-8 text"):
        Shakespeare(65, 65, None, 4, 4).load(folder, seed=0, batch_size=1)


def test_a_missing_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data prepare shakespeare"):
        Shakespeare(65, 65, None, 4, 4).load(tmp_path, seed=0, batch_size=1)


def test_the_real_shakespeare_has_its_65_characters(real_data: Callable[..., Path]) -> None:
    dataset = Shakespeare(65, 65, None, context=64, val_windows=10**6)
    data = dataset.load(real_data(Shakespeare.files), seed=0, batch_size=16)
    alphabet = "\n !$&',-.3:;?" + "".join(map(chr, itertools.chain(range(65, 91), range(97, 123))))

    inputs, _ = all_val(data)
    text = "".join(alphabet[token] for token in inputs.flatten())

    assert len(inputs) == (111_540 - 1) // 64
    assert text.startswith("?\n\nGREMIO:\nGood morrow")
    assert data.chance_loss == pytest.approx(3.31, abs=0.01)
