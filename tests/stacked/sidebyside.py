"""Runs trained alone and in a stack, side by side, in float64 where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from optlab import attempt
from optlab.attempt import Outcome
from optlab.config import Run, Settings
from optlab.run import run_one
from optlab.stacked.run import run_stack
from optlab.stop import StopFlag
from optlab.store import Record, RunStore
from optlab.train import Parts
from support import tiny

Change = Callable[[Run, Parts], Parts]


@dataclass
class Told:
    """What ``run_stack`` has told, in order."""

    outcomes: list[tuple[str, Outcome]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    steps: list[tuple[str, int]] = field(default_factory=list)

    @property
    def status(self) -> dict[str, str]:
        assert len({run_id for run_id, _ in self.outcomes}) == len(self.outcomes), "told twice"
        return {run_id: outcome.status for run_id, outcome in self.outcomes}


def tinies(*overrides: str, each: Sequence[Sequence[str]]) -> list[Run]:
    """Tiny runs that have ``overrides`` in common, and each some of its own."""
    return [tiny(*overrides, *own)[0] for own in each]


def frozen(folder: Path, runs: Sequence[Run]) -> RunStore:
    store = RunStore(folder)
    for run in runs:
        store.freeze(run)
    return store


def settings() -> Settings:
    return tiny()[1]


def alone(runs: Sequence[Run], store: RunStore, stop_at: int | None = None) -> None:
    for run in runs:
        stop = StopFlag()

        def report(record: Record, stop: StopFlag = stop) -> None:
            stop.is_set = record.step == stop_at

        run_one(run.id, store, settings(), stop=stop, report=report)


def together(
    runs: Sequence[Run],
    store: RunStore,
    *,
    stop_at: int | None = None,
    with_settings: Settings | None = None,
) -> Told:
    told, stop = Told(), StopFlag()

    def report(run_id: str, record: Record) -> None:
        told.steps.append((run_id, record.step))
        if record.step == stop_at:
            stop.is_set = True

    run_stack(
        [run.id for run in runs],
        store,
        with_settings or settings(),
        stop=stop,
        report=report,
        ended=lambda run_id, outcome: told.outcomes.append((run_id, outcome)),
        say=told.lines.append,
    )
    return told


def assert_same(runs: Sequence[Run], ours: RunStore, theirs: RunStore, within: float) -> None:
    """Results, records and diagnostics agree, numbers to a relative error; 0 is bitwise."""
    for run in runs:
        a, b = ours.result(run.id), theirs.result(run.id)
        assert a is not None and b is not None, run.name
        assert_close(vars(a), vars(b), within, run.name)
        rows = [*ours.records(run.id), *ours.diagnostics(run.id)]
        others = [*theirs.records(run.id), *theirs.diagnostics(run.id)]
        assert len(rows) == len(others), run.name
        for row, other in zip(rows, others, strict=True):
            assert_close(row, other, within, f"{run.name}, step {row['step']}")


def assert_close(a: dict[str, Any], b: dict[str, Any], within: float, where: str) -> None:
    assert a.keys() == b.keys(), where
    for key in a.keys() - {"seconds"}:
        x, y = a[key], b[key]
        if isinstance(x, float) and isinstance(y, float) and math.isfinite(y):
            # near a loss of 0 its logarithm, not its value, is what is computed to some digits
            assert abs(x - y) <= within * max(abs(y), 1e-3), f"{where}: {key} {x!r} {y!r}"
        else:
            assert x == y or (x != x and y != y), f"{where}: {key} {x!r} {y!r}"


def doubled(parts: Parts) -> Parts:
    """The parts in float64."""
    parts.model.double()

    def in_double(batch: Any) -> Any:
        inputs, targets = batch
        return (inputs.double() if inputs.is_floating_point() else inputs), targets

    data = parts.data
    train = data.train
    val = [in_double(batch) for batch in data.val]
    doubles = replace(data, train=lambda step: in_double(train(step)), val=val)
    return replace(parts, data=doubles)


@contextmanager
def built(change: Callable[[Run, Parts], Parts]) -> Iterator[None]:
    """Let every run be built with ``change``."""
    build = attempt.build

    def changed(run: Run, device: torch.device, *how: Any, **more: Any) -> Parts:
        return change(run, build(run, device, *how, **more))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "build", changed)
        yield


def in_float64() -> Any:
    return built(lambda run, parts: doubled(parts))
