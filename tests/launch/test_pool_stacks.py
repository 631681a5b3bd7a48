"""A worker that trains several runs: what its death, a stop and a probe cost."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from optlab.config import Run
from optlab.distributed import ONE
from optlab.errors import ConfigError
from optlab.launch import worker
from optlab.launch.here import launch_here
from optlab.launch.launch import Report
from optlab.launch.local import launch_local
from optlab.launch.pool import CannotStart, Pool
from optlab.launch.worker import Ended, Step
from optlab.stop import StopFlag
from optlab.store import RunStore
from optlab.sweep import ad_hoc
from support import shrunk

# Long enough to be caught in the middle.
SWEEP = shrunk("optimizer=adamw", "train.steps=400", "train.eval_every=20", "seed=0,1,2,3")


@dataclass
class Watch:
    """Remembers what it is told; does something at every step or look at the counts."""

    at_step: Callable[[Watch, Run], object] = lambda watch, run: None
    at_look: Callable[[Watch], object] = lambda watch: None
    said: list[str] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)  # by run
    ends: Counter[str] = field(default_factory=Counter)

    def say(self, line: str) -> None:
        self.said.append(line)

    def step(self, run: Run, step: Step) -> None:
        self.steps[run.id] += 1
        if step.step > 0:
            self.at_step(self, run)

    def ended(self, run: Run, ended: Ended) -> None:
        del ended
        self.ends[run.id] += 1

    def update(self, ended: Counter[str], running: int) -> None:
        del ended, running
        self.at_look(self)


def kill(number: int = signal.SIGKILL) -> None:
    """Send the worker a signal; what it has sent before still arrives."""
    for process in multiprocessing.active_children():
        os.kill(process.pid or 0, number)


def train(store: RunStore, watch: Watch, size: int = 4) -> Report:
    """Train the sweep in stacks of ``size`` in one worker, each run with a single attempt."""
    sweep = ad_hoc(SWEEP)
    for run in sweep.runs:
        store.freeze(run)
    with Pool(1, store, sweep.settings, attempts=1, stop_within=60) as pool:
        return pool.train_stacks([sweep.runs[i : i + size] for i in range(0, 4, size)], watch)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The final losses of the runs, each trained by itself."""
    sweep, store = ad_hoc(SWEEP), RunStore(tmp_path_factory.mktemp("undisturbed"))
    launch_here(sweep, store, lambda line: None, dry_run=False)
    return losses(sweep.runs, store)


@pytest.fixture
def undisturbed(alone: dict[str, float]) -> dict[str, float]:
    return dict(alone)


def losses(runs: Sequence[Run], store: RunStore) -> dict[str, float]:
    """Final losses; every run has each of its records once."""
    found = {}
    for run in runs:
        rows = store.records(run.id)
        assert [row["step"] for row in rows] == list(range(0, 401, 20))
        found[run.id] = rows[-1]["val_loss"]
    return found


def test_a_stack_that_kills_its_worker_is_halved_until_only_the_culprit_fails(
    store: RunStore, undisturbed: dict[str, float]
) -> None:
    """As by a lack of memory: 4, then 2, then one. A death beside others is no attempt."""
    first = ad_hoc(SWEEP).runs[0].id
    watch = Watch(at_step=lambda watch, run: kill() if run.id == first else None)
    report = train(store, watch)

    assert watch.said == [
        f"The worker training {count} runs together was killed by SIGKILL (out of memory?); "
        "they go on in two halves."
        for count in (4, 2)
    ]
    assert report.counts == Counter(failed=1, finished=3)
    assert list(report.failures.values()) == ["its worker was killed by SIGKILL (out of memory?)"]
    assert store.status(first) == "failed" and watch.ends == Counter(undisturbed.keys())
    del undisturbed[first]
    assert losses(ad_hoc(SWEEP).runs[1:], store) == pytest.approx(undisturbed, rel=1e-3)


def test_a_stack_that_kills_a_worker_before_its_first_record_is_halved_too(
    store: RunStore, undisturbed: dict[str, float]
) -> None:
    """As where the stack does not even fit: the worker has started, and is to blame no more."""
    runs, kills = ad_hoc(SWEEP).runs, [signal.SIGKILL]

    def at_look(watch: Watch) -> None:
        if kills and any((store.folder(run.id) / "lock").exists() for run in runs):
            kill(kills.pop())

    watch = Watch(at_look=at_look)
    report = train(store, watch)

    assert watch.said == [
        "The worker training 4 runs together was killed by SIGKILL (out of memory?); "
        "they go on in two halves."
    ]
    assert report.counts == Counter(finished=4)
    assert losses(runs, store) == pytest.approx(undisturbed, rel=1e-3)


def test_a_worker_that_cannot_even_start_ends_the_launch_in_a_sentence(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = ad_hoc(SWEEP)
    for run in sweep.runs:
        store.freeze(run)
    with Pool(1, store, sweep.settings, attempts=1, stop_within=60) as pool:
        kill()
        with pytest.raises(CannotStart, match=r"was killed by SIGKILL before it could do anything"):
            pool.train_stacks([sweep.runs], Watch())

    def cannot(self: Pool, runs: list[Run]) -> dict[str, str]:
        raise CannotStart("there is no memory")

    monkeypatch.setattr(Pool, "check", cannot)
    with pytest.raises(ConfigError, match="there is no memory"):
        launch_local(sweep, store, lambda line: None, workers=1, dry_run=False)


def test_who_does_not_wait_is_told_what_was_not_saved(store: RunStore) -> None:
    def interrupt(watch: Watch) -> None:
        if watch.steps:
            raise KeyboardInterrupt

    sweep, watch = ad_hoc(SWEEP), Watch(at_look=interrupt)
    for run in sweep.runs:
        store.freeze(run)
    with (
        pytest.raises(KeyboardInterrupt),
        Pool(1, store, sweep.settings, attempts=1, stop_within=0) as pool,
    ):
        pool.train_stacks([sweep.runs], watch)

    (line,) = [line for line in watch.said if line.startswith("Not stopped yet: ")]
    killed = {run.name for run in sweep.runs if run.name in line}
    saved = {run.name for run in sweep.runs if (store.folder(run.id) / "preempted.json").exists()}
    assert line.endswith("killed.") and killed and not killed & saved


def test_a_stack_stopped_by_ctrl_c_saves_and_goes_on(
    store: RunStore, undisturbed: dict[str, float]
) -> None:
    """Those that it has begun are preempted; those that it has not are back in the queue."""

    def interrupt(watch: Watch) -> None:
        if watch.steps:
            raise KeyboardInterrupt

    watch = Watch(at_look=interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(store, watch, size=2)

    sweep = ad_hoc(SWEEP)
    states = Counter(store.status(run.id) for run in sweep.runs)
    assert set(states) == {"preempted", "missing"} and states["missing"] >= 2
    waiting = states["missing"]
    assert watch.said[-1] == f"Stopped with {waiting} runs not started; the same command goes on."
    for run in sweep.runs:
        begun = store.status(run.id) == "preempted"
        assert (store.folder(run.id) / "checkpoint.pt").exists() == begun
    assert train(store, Watch()).counts == Counter(finished=4)
    assert losses(sweep.runs, store) == pytest.approx(undisturbed, rel=1e-3)


def test_a_worker_told_to_stop_saves_its_runs_and_gives_back_those_not_begun(
    store: RunStore,
) -> None:
    told: list[str] = []

    def tell(watch: Watch, run: Run) -> None:
        del watch
        if not told:
            told.append(run.id)
            kill(signal.SIGTERM)

    watch = Watch(at_step=tell)
    report = train(store, watch)

    states = Counter(store.status(run.id) for run in ad_hoc(SWEEP).runs)
    assert states == report.counts and set(states) <= {"preempted", "finished"}
    assert store.status(told[0]) == "preempted" and report.ok and not watch.said


def test_a_stopped_worker_does_not_tell_of_runs_of_a_stack_that_it_has_not_begun(
    store: RunStore,
) -> None:
    """So that the pool takes them back."""
    sweep, stop = ad_hoc(shrunk("seed=0,1")), StopFlag()
    stop.is_set = True
    ours, theirs = multiprocessing.Pipe()
    for run in sweep.runs:
        store.freeze(run)
    ids = tuple(run.id for run in sweep.runs)
    worker._train(worker.Train(ids), theirs, store, sweep.settings, stop, ONE)

    assert not ours.poll()
    worker._train(worker.Train(ids[:1]), theirs, store, sweep.settings, stop, ONE)
    assert ours.recv() == Ended(ids[0], "preempted", "stopped before it began", False)


def test_a_probe_that_kills_its_worker_is_tried_with_half_as_many(store: RunStore) -> None:
    sweep, said, kills = ad_hoc(SWEEP), [], [signal.SIGKILL]

    def stop() -> bool:
        while kills:  # before the worker has answered
            kill(kills.pop())
        return False

    for run in sweep.runs:
        store.freeze(run)
    with Pool(1, store, sweep.settings, attempts=1, stop_within=60) as pool:
        assert pool.check(list(sweep.runs)) == {}
        (small,) = pool.probe([(sweep.runs, 2)], said.append, stop)
        (answer,) = pool.probe([(sweep.runs, 4)], said.append)

    assert (small.size, small.reason) == (1, "no probe has survived")
    assert said == ["The probe of a stack of 2 was killed by SIGKILL (out of memory?)."]
    assert 1 <= answer.size <= 4


def test_auto_trains_every_run_once_and_says_what_it_picked(
    store: RunStore, tmp_path: Path
) -> None:
    sweep, said = ad_hoc(shrunk("optimizer=adamw,adam", "seed=0,1,2", "train.steps=200")), []
    report = launch_local(sweep, store, said.append, workers=1, dry_run=False, stack="auto")
    here = RunStore(tmp_path / "here")
    launch_here(sweep, here, lambda line: None, dry_run=False)

    assert report.ok and report.counts == Counter(finished=6)
    assert [line.startswith("Stacked: ") for line in said].count(True) == 1
    for run in sweep.runs:
        alone, together = here.result(run.id), store.result(run.id)
        assert alone and together
        assert together.final_loss == pytest.approx(alone.final_loss, rel=1e-4)
        assert together.batch_fingerprint == alone.batch_fingerprint
        assert together.weights_fingerprint == alone.weights_fingerprint


def test_a_group_with_finished_members_trains_the_missing_ones_alone(store: RunStore) -> None:
    launch_here(ad_hoc(shrunk("seed=0,1")), store, lambda line: None, dry_run=False)
    sweep, said = ad_hoc(shrunk("seed=range(0,4)")), []
    report = launch_local(sweep, store, said.append, workers=1, dry_run=False, stack=8)

    assert report.counts == Counter(finished=2)
    assert "Stacked: 2 runs in 1 stack of up to 2." in said
