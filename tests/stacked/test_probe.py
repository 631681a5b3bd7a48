"""The probe that picks the size of stacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from optlab.stacked import probe
from optlab.stacked.probe import Choice, choose_size
from optlab.stacked.stack import CannotStack, Stack
from optlab.store import RunStore
from stacked.sidebyside import frozen, settings, tinies


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return lasting(tmp_path, 1000)


def lasting(folder: Path, steps: int) -> RunStore:
    """A store with 40 runs of one kind."""
    each = [[f"seed={seed}", f"train.steps={steps}"] for seed in range(40)]
    return frozen(folder, tinies(each=each))


@pytest.fixture
def ids(store: RunStore) -> list[str]:
    return sorted(path.name for path in store.root.iterdir())


def chosen(ids: list[str], store: RunStore, most: int = 40) -> Choice:
    return choose_size(ids, store, settings(), most)


def gains(monkeypatch: pytest.MonkeyPatch, of_size: dict[int, float]) -> list[int]:
    """Let stacks of these sizes, and of no other, have these gains; the sizes that are tried."""
    tried: list[int] = []

    def gain(config: object, copied: object, size: int) -> float:
        tried.append(size)
        return of_size[size]

    monkeypatch.setattr(probe, "_gain", gain)
    return tried


def test_a_tiny_model_is_worth_stacking_and_nothing_is_written(
    store: RunStore, ids: list[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*")}
    choice = chosen(ids, store)

    assert choice.size > 1 and choice.gain > probe.WORTH and choice.reason == ""
    assert {path: path.stat().st_mtime_ns for path in store.root.rglob("*")} == before


@pytest.mark.parametrize(
    ("of_size", "most", "size", "gain"),
    [
        ({8: 2.0, 32: 3.0}, 40, 32, 3.0),
        ({8: 2.0, 32: 1.0}, 40, 8, 2.0),  # no longer in the cache
        ({8: 2.0, 32: 1.99}, 40, 32, 1.99),  # level: fewer costs beside the steps
        ({8: 2.0, 20: 2.5}, 20, 20, 2.5),
        ({5: 1.5}, 5, 5, 1.5),
        ({8: 1.05}, 40, 1, 1.05),
        ({8: 0.9}, 40, 1, 0.9),
    ],
)
def test_the_size_is_that_of_the_largest_gain_if_there_is_one(
    store: RunStore,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    of_size: dict[int, float],
    most: int,
    size: int,
    gain: float,
) -> None:
    tried = gains(monkeypatch, of_size)
    choice = chosen(ids, store, most)

    assert (choice.size, choice.gain) == (size, gain)
    assert bool(choice.reason) == (size == 1)
    assert tried == list(of_size)


@pytest.mark.parametrize(
    ("steps", "of_8", "tried", "size"),
    [
        (29, 2.0, [], 1),  # 6 x 8 steps are more than 0.04 of 40 runs
        (30, 2.0, [8], 8),
        (120, 1.2, [8], 8),  # 160 more if a stack of 32 gains no more than one of 8
        (120, 2.0, [8, 32], 32),
    ],
)
def test_a_probe_takes_a_small_share_of_the_time_of_the_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    of_8: float,
    tried: list[int],
    size: int,
) -> None:
    store = lasting(tmp_path, steps)
    sizes = gains(monkeypatch, {8: of_8, 32: 3.0})
    choice = chosen(sorted(path.name for path in store.root.iterdir()), store)
    assert (sizes, choice.size) == (tried, size)
    assert (choice.reason == "too short for a probe") == (size == 1)


@pytest.mark.parametrize(("alone", "together", "gain"), [(0.01, 0.02, 4.0), (0.09, 0.01, 8.0)])
def test_what_else_the_machine_does_does_not_count(
    store: RunStore,
    ids: list[str],
    monkeypatch: pytest.MonkeyPatch,
    alone: float,
    together: float,
    gain: float,
) -> None:
    """Most steps are disturbed, each by another amount; and eight runs take no less than one."""
    noise = iter([0.0, 5.0, 0.3, 7.0, 2.0, 0.0, 1.0, 0.0] * 20)

    def seconds(action: Callable[[], object]) -> float:
        of_stack = isinstance(getattr(action, "__self__", None), Stack)
        return (together if of_stack else alone) + next(noise)

    monkeypatch.setattr(probe, "_seconds", seconds)
    monkeypatch.setattr(probe, "_FOR", 5.0)
    assert chosen(ids, store, 8) == Choice(8, pytest.approx(gain), "")


def test_memory_bounds_the_size(
    store: RunStore, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    gains(monkeypatch, {6: 2.0})
    monkeypatch.setattr(probe, "most_that_fit", lambda parts, free: 6)
    assert chosen(ids, store).size == 6
    monkeypatch.setattr(probe, "most_that_fit", lambda parts, free: 1)
    assert chosen(ids, store) == Choice(1, 1.0, "two of them do not fit into memory")


def test_a_step_that_takes_long_is_not_tried_in_a_stack(
    store: RunStore, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_seconds", lambda action: 0.25)
    choice = chosen(ids, store)
    assert choice == Choice(1, 1.0, "a step takes 0.25 s, which keeps the device busy")


def test_what_cannot_be_stacked_says_why(
    store: RunStore, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(replicas: object) -> object:
        raise CannotStack("it depends")

    monkeypatch.setattr(probe, "Stack", cannot)
    assert chosen(ids, store) == Choice(1, 1.0, "it depends")


def test_a_learning_rate_that_would_diverge_does_not_disturb(tmp_path: Path) -> None:
    each = [["optimizer.lr=1e30"], ["optimizer.lr=2e30"], ["optimizer.lr=3e30"]]
    runs = tinies("optimizer=sgd_momentum", each=each)
    store = frozen(tmp_path, runs)
    assert chosen([run.id for run in runs], store, 3).gain > 0


def test_random_numbers_are_drawn_without_a_trace_in_the_runs(
    store: RunStore, ids: list[str]
) -> None:
    """A worker trains after it has probed: what it trains starts from its own seeds."""
    torch.manual_seed(5)
    chosen(ids, store)
    from stacked.sidebyside import alone

    run = store.load(ids[0])
    alone([run], store)
    first = store.records(run.id)
    other = RunStore(store.root.with_name("other"))
    other.freeze(run)
    alone([run], other)
    assert [row["val_loss"] for row in first] == [row["val_loss"] for row in other.records(run.id)]
