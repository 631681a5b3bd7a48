"""Tiny runs and sweeps, trained in this process, and a backend for them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import wandb

from optlab.certify import Certified
from optlab.config import Run, Settings, compose_run
from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import Record, RunStore
from optlab.sweep import Sweep, from_arguments
from optlab.tracking import client, publish
from support import shrunk
from tracking.backend import Backend


@contextlib.contextmanager
def connected(patch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend that this process and its children talk to; it must know every request.

    Nothing leaves the loopback: beyond it there is only a proxy where nobody listens.
    """
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    with Backend() as running:
        alone = {**running.environment(), **nowhere, "NO_PROXY": "127.0.0.1"}
        for name, value in alone.items():
            patch.setenv(name, value)
        patch.setattr(publish, "CONFIRM_WITHIN", 1.0)
        _forget()
        yield running
    _forget()
    assert running.unknown == []


def _forget() -> None:
    """Let the client read its environment anew."""
    client.api.cache_clear()
    wandb.teardown()


def compose(mode: str, *overrides: str) -> tuple[Run, Settings]:
    """A tiny run that is tracked."""
    words = [word for word in shrunk(*overrides) if not word.startswith("tracking.mode")]
    return compose_run([*words, f"tracking.mode={mode}"])


def train(
    store: RunStore,
    mode: str,
    *overrides: str,
    group: str | None = None,
    report: Callable[[Record], None] = lambda record: None,
    stop_at: int | None = None,
) -> tuple[str, str]:
    """Train a tiny run, or stop it behind the record of a step; (id, status)."""
    run, settings = compose(mode, *overrides)
    settings = dataclasses.replace(
        settings, tracking=dataclasses.replace(settings.tracking, group=group)
    )
    store.freeze(run)
    stop = StopFlag()

    def say(record: Record) -> None:
        report(record)
        stop.is_set = stop.is_set or record.step == stop_at

    return run.id, run_one(run.id, store, settings, stop=stop, report=say).status


def sweep_in(folder: Path, *overrides: str) -> Sweep:
    """A tiny sweep of two methods and two learning rates, with its store below ``folder``."""
    grid = ("optimizer=adamw,muonmax_momo", "optimizer.lr=0.01,1.0e+30", "seed=0,1")
    chosen = {override.split("=")[0] for override in overrides}
    kept = [word for word in grid if word.split("=")[0] not in chosen]
    tiny = [w for w in shrunk() if w.split("=")[0] not in {*chosen, "tracking.mode"}]
    places = [f"runtime.runs={folder}/runs", f"runtime.results={folder}/results"]
    return from_arguments(["sweeps=demo", *tiny, *places, *kept, *overrides])


def train_all(sweep: Sweep, *, lacking: int = 0) -> RunStore:
    """Train the runs of a sweep without tracking, all but the last few."""
    store = RunStore(sweep.settings.runtime.runs_folder)
    tracking = dataclasses.replace(sweep.settings.tracking, mode="off")
    settings = dataclasses.replace(sweep.settings, tracking=tracking)
    for run in sweep.runs[: len(sweep.runs) - lacking]:
        store.freeze(run)
        run_one(run.id, store, settings, stop=StopFlag(), report=lambda record: None)
    return store


def with_certified(sweep: Sweep) -> Sweep:
    """The sweep, and above each of its uncapped Momo runs a certified one, which is not trained."""
    at = [
        (run, point)
        for run, point in zip(sweep.runs, sweep.points, strict=True)
        if run.method == "muonmax_momo" and run.lr == 1e30
    ]
    certified = [Certified(_at(run, 1e31), run) for run, _ in at]
    points = [{**point, "optimizer.lr": 1e31} for _, point in at]
    return dataclasses.replace(sweep, certified=tuple(certified), certified_points=tuple(points))


def _at(run: Run, lr: float) -> Run:
    """The same run at another learning rate."""
    config = {**run.config, "optimizer": {**run.config["optimizer"], "lr": lr}}
    return dataclasses.replace(run, config=config)
