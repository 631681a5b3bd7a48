"""A worker that is told to stop: it costs the pool the run that it trains, and no other."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from optlab.config import Run
from optlab.launch.launch import Report
from optlab.launch.pool import Pool
from optlab.launch.worker import Ended, Step
from optlab.store import RunStore
from optlab.sweep import ad_hoc
from support import shrunk

SWEEP = shrunk("train.steps=40", "train.eval_every=1", "seed=0,1,2")


def nothing(*anything: object) -> None:
    del anything


@dataclass
class Watch:
    """Does something at the first step or at the end of a run, or at a look at the counts."""

    at_step: Callable[[Run], object] = nothing
    at_end: Callable[[Run], object] = nothing
    at_look: Callable[[Counter[str], int], object] = nothing
    said: list[str] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.said.append(line)

    def step(self, run: Run, step: Step) -> None:
        if step.step == 1:
            self.at_step(run)

    def ended(self, run: Run, ended: Ended) -> None:
        del ended
        self.at_end(run)

    def update(self, ended: Counter[str], running: int) -> None:
        self.at_look(ended, running)


def terminate(run: Run) -> None:
    """Tell the worker to stop, where the run is the first one."""
    if run.seed == 0:
        (worker,) = multiprocessing.active_children()
        os.kill(worker.pid or 0, signal.SIGTERM)


def train(store: RunStore, watch: Watch) -> Report:
    sweep = ad_hoc(SWEEP)
    for run in sweep.runs:
        store.freeze(run)
    with Pool(1, store, sweep.settings, attempts=1, stop_within=60) as pool:
        return pool.train(sweep.runs, watch)


@pytest.mark.parametrize("moment", ["at_step", "at_end"])
def test_a_stopped_worker_costs_no_run_but_its_own(store: RunStore, moment: str) -> None:
    """The next one is not begun by it, and has lost no attempt."""
    watch = Watch(**{moment: terminate})
    report = train(store, watch)
    first = "preempted" if moment == "at_step" else "finished"

    assert [store.status(run.id) for run in ad_hoc(SWEEP).runs] == [first, "finished", "finished"]
    assert report.counts == Counter([first, "finished", "finished"])
    assert report.ok and not watch.said


def test_runs_that_no_worker_has_begun_are_counted_when_a_launch_stops(store: RunStore) -> None:
    def interrupt(ended: Counter[str], running: int) -> None:
        if ended and running:  # the second run is given to a fresh worker, which still imports
            raise KeyboardInterrupt

    watch = Watch(at_step=terminate, at_look=interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(store, watch)

    assert watch.said[-1] == "Stopped with 2 runs not started; the same command goes on."
    assert [store.status(run.id) for run in ad_hoc(SWEEP).runs[1:]] == ["missing", "missing"]
