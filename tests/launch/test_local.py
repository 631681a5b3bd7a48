"""The pool of workers: interrupted by anything, it loses no finished run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from optlab.launch.here import launch_here
from optlab.launch.launch import Report, conclude
from optlab.launch.local import launch_local
from optlab.paths import ROOT
from optlab.store import RunStore
from optlab.sweep import Sweep, ad_hoc
from support import environment, shrunk

T = TypeVar("T")

# Long enough to be caught in the middle, short enough for a test.
LONG = ("train.steps=1500", "train.eval_every=100", "optimizer=adamw,muonmax_momo", "seed=0,1")


def sweep_of(*overrides: str) -> Sweep:
    return ad_hoc(shrunk(*overrides))


def results(sweep: Sweep, store: RunStore) -> dict[str, str]:
    return {run.id: (store.folder(run.id) / "result.json").read_text() for run in sweep.runs}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, dict[str, str]]:
    """The long sweep and what it gives when nothing happens to it."""
    sweep, store = sweep_of(*LONG), RunStore(tmp_path_factory.mktemp("undisturbed"))
    launch_here(sweep, store, print, dry_run=False)
    return sweep, results(sweep, store)


@pytest.fixture
def launcher(store: RunStore) -> Iterator[subprocess.Popen[str]]:
    """``python launch.py -m`` of the long sweep, each run by itself, in a session of its own."""
    alone = "hydra.launcher.stack=1"
    arguments = [*sweep_of(*LONG).command.split(), f"runtime.runs={store.root}", alone]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), "-m", *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.wait()
    if process.stdout:
        process.stdout.close()


def wait_until(condition: Callable[[], T], timeout: float = 60) -> T:
    """The first value of ``condition`` that is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def at_work(store: RunStore, sweep: Sweep) -> list[int]:
    """Process ids of the workers that are in the middle of a run."""
    return [
        writer(store, run.id)
        for run in sweep.runs
        if store.status(run.id) == "running" and len(store.records(run.id)) > 1
    ]


def writer(store: RunStore, run_id: str) -> int:
    """The process that holds a run's lease; its id is written a moment after the lock is taken."""
    path = store.folder(run_id) / "lock"
    return int(wait_until(path.read_text))


def test_a_pool_gives_what_one_process_gives(store: RunStore, tmp_path: Path) -> None:
    sweep = sweep_of("optimizer=adamw,muonmax_momo", "seed=0,1,2")
    report = launch_local(sweep, store, print, workers=2, dry_run=False)
    here = RunStore(tmp_path / "here")
    launch_here(sweep, here, print, dry_run=False)

    assert report.ok and report.counts.total() == 6
    assert results(sweep, store) == results(sweep, here)


def test_launching_twice_runs_nothing(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of("seed=0,1")
    launch_here(sweep, store, print, dry_run=False)
    before = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    capsys.readouterr()
    report = launch_local(sweep, store, print, workers=2, dry_run=False)

    after = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    assert after == before and not report.counts
    assert "2 runs (2 finished).\nNothing to start." in capsys.readouterr().out


def test_a_run_shared_by_two_sweeps_is_trained_once(store: RunStore) -> None:
    launch_here(sweep_of("seed=0,1"), store, print, dry_run=False)
    report = launch_here(sweep_of("seed=1,2"), store, print, dry_run=False)

    assert report.counts.total() == 1


def test_a_dry_run_writes_nothing(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    launch_local(sweep_of("seed=0,1"), store, print, workers=2, dry_run=True)

    assert not store.root.exists()
    assert "2 runs (2 missing)" in capsys.readouterr().out


def test_the_plan_forecasts_from_the_runs_that_are_done(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    launch_here(sweep_of("seed=0"), store, print, dry_run=False)
    launch_here(sweep_of("seed=0,1"), store, print, dry_run=True)

    assert re.search(r"About \d+ s of training for the 1 runs to do", capsys.readouterr().out)


def test_ctrl_c_loses_nothing_and_the_same_command_goes_on(
    store: RunStore,
    undisturbed: tuple[Sweep, dict[str, str]],
    launcher: subprocess.Popen[str],
) -> None:
    sweep, expected = undisturbed
    wait_until(lambda: at_work(store, sweep))
    os.killpg(launcher.pid, signal.SIGINT)  # as a terminal does: to the whole group
    output, _ = launcher.communicate(timeout=60)

    assert launcher.returncode == 130, output
    assert "the same command goes on" in output
    stopped = [run.id for run in sweep.runs if store.status(run.id) == "preempted"]
    assert stopped and all((store.folder(i) / "checkpoint.pt").exists() for i in stopped)
    report = launch_local(sweep, store, print, workers=2, dry_run=False)
    assert report.ok
    assert results(sweep, store) == expected


def test_a_killed_worker_costs_its_run_one_attempt(
    store: RunStore,
    undisturbed: tuple[Sweep, dict[str, str]],
    launcher: subprocess.Popen[str],
) -> None:
    sweep, expected = undisturbed
    os.kill(wait_until(lambda: at_work(store, sweep))[0], signal.SIGKILL)
    output, _ = launcher.communicate(timeout=120)

    assert launcher.returncode == 0, output
    assert "was killed by SIGKILL; trying that run once more" in output
    assert results(sweep, store) == expected


def test_a_run_that_kills_its_worker_twice_is_failed_and_the_others_go_on(
    store: RunStore, undisturbed: tuple[Sweep, dict[str, str]], launcher: subprocess.Popen[str]
) -> None:
    sweep, expected = undisturbed
    victim = sweep.runs[0].id
    for _ in range(2):
        wait_until(lambda: store.status(victim) == "running" and len(store.records(victim)) > 1)
        killed = writer(store, victim)
        os.kill(killed, signal.SIGKILL)
        wait_until(
            lambda killed=killed: (
                store.status(victim) == "failed" or writer(store, victim) != killed
            )
        )
    output, _ = launcher.communicate(timeout=120)

    assert launcher.returncode == 1, output
    assert "its worker was killed by SIGKILL, 2 times" in output
    assert store.status(victim) == "failed"
    others = {run.id for run in sweep.runs} - {victim}
    assert all((store.folder(i) / "result.json").read_text() == expected[i] for i in others)
    assert launch_local(sweep, store, print, workers=1, dry_run=False).ok
    assert results(sweep, store) == expected


def test_a_killed_launcher_leaves_runs_that_the_next_launch_completes(
    store: RunStore, undisturbed: tuple[Sweep, dict[str, str]], launcher: subprocess.Popen[str]
) -> None:
    sweep, expected = undisturbed
    wait_until(lambda: at_work(store, sweep))
    launcher.kill()
    launcher.wait()
    # Its workers notice at their next record, save and end.
    wait_until(lambda: all(store.status(run.id) != "running" for run in sweep.runs))

    assert launch_local(sweep, store, print, workers=2, dry_run=False).ok
    assert results(sweep, store) == expected


def test_two_launches_at_once_train_every_run_once(
    store: RunStore, undisturbed: tuple[Sweep, dict[str, str]], launcher: subprocess.Popen[str]
) -> None:
    sweep, expected = undisturbed
    wait_until(lambda: at_work(store, sweep))
    launch_local(sweep, store, print, workers=1, dry_run=False)
    launcher.communicate(timeout=120)

    assert results(sweep, store) == expected
    for run in sweep.runs:
        assert len(store.records(run.id)) == 16  # step 0, then every 100 of 1500


def test_what_another_process_was_left_and_has_done_by_now_is_no_trouble(store: RunStore) -> None:
    sweep, lines = sweep_of("seed=0,1"), []
    launch_here(sweep, store, lines.append, dry_run=False)
    report = Report(Counter(busy=2))
    conclude(report, store, lines.append, sweep, sweep.runs)
    assert report.ok and lines[-1] == "Ended: 2 done by another process."

    (store.folder(sweep.runs[0].id) / "result.json").unlink()
    report = Report(Counter(busy=2))
    conclude(report, store, lines.append, sweep, sweep.runs)
    assert not report.ok and lines[-1] == "Left alone: 2 runs that another process trains."


def test_a_failing_run_does_not_stop_the_others(
    store: RunStore, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = sweep_of("seed=0,1,2")
    victim = store.folder(sweep.runs[1].id)
    victim.mkdir(parents=True)
    (victim / "records.jsonl").mkdir()  # it cannot append there
    report = launch_local(sweep, store, print, workers=1, dry_run=False)

    assert dict(report.counts) == {"finished": 2, "failed": 1}
    assert "Failed: " + sweep.runs[1].name in capsys.readouterr().out
    assert store.status(sweep.runs[1].id) == "failed"
