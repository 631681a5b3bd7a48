"""Jobs that reach their time limit, and jobs whose node is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optlab.launch.here import launch_here
from optlab.store import RunStore
from slurm import ask, wait_until

# SLURM counts time limits in minutes, so the run must be longer than one.
ENDLESS = ("optimizer=muonmax_momo", "train.steps=2000000", "train.eval_every=200")
LONG = ("optimizer=muonmax_momo", "train.steps=30000", "train.eval_every=200")
STACK = ("optimizer=adamw", "train.steps=4000", "train.eval_every=200", "seed=0,1,2")


def numbers(store: RunStore, run_id: str) -> list[str]:
    """A run's records without their times."""
    lines = (store.folder(run_id) / "records.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [json.dumps({**row, "seconds": 0}) for row in rows]


@pytest.fixture(scope="module")
def limited(cluster) -> Any:
    """An endless run in a job of one minute; submitted first, looked at last."""
    sweep, store = cluster.sweep(*ENDLESS), cluster.store("limited")
    cluster.submit(sweep, store, time=1, save_within=30)
    return sweep.runs[0].id, store, cluster.job(store, sweep.runs[0].id)


def daemon(node: str) -> int:
    """The process of a node's slurmd on this machine, from its pid file."""
    config = ask("scontrol", "show", "config")
    (path,) = [line.split("=")[1].strip() for line in config.split("\n") if "SlurmdPidFile" in line]
    return int(Path(path.replace("%n", node).replace("%h", node)).read_text())


@pytest.fixture
def cut_off() -> Iterator[Any]:
    """Stop a node's slurmd, so that what runs there goes on unseen; undone at the end."""
    stopped: list[tuple[str, int]] = []

    def call(node: str) -> None:
        try:
            stopped.append((node, daemon(node)))
        except OSError:
            pytest.skip("the node's slurmd does not run on this machine")
        os.kill(stopped[-1][1], signal.SIGSTOP)
        ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    yield call
    for node, process in stopped:
        os.kill(process, signal.SIGCONT)
        wait_until(lambda node=node: _serves(node))  # the next test may ask for it


def _serves(node: str) -> bool:
    """Whether SLURM gives jobs to the node; a node that is down, or drained, is resumed."""
    states = set(ask("sinfo", "-h", "-n", node, "-o", "%T").split())
    if states <= {"idle", "mixed", "allocated"}:
        return True
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)
    return False


def test_a_lost_node_costs_nothing_and_its_leftover_writes_nothing(
    limited, cluster, cut_off, tmp_path: Path
) -> None:
    """The old copy of the job lives on beside the requeued one, and must notice."""
    sweep, store = cluster.sweep(*LONG), cluster.store("lost")
    run = sweep.runs[0].id
    cluster.submit(sweep, store, time=20, save_within=60, additional={"nodelist": "node2"})
    job = cluster.job(store, run)
    cluster.training(store, run)
    leftover = int((store.folder(run) / "lock").read_text())
    cut_off("node2")
    wait_until(lambda: ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING")
    ask("scontrol", "update", f"jobid={job}", "reqnodelist=", "nodelist=node1")
    wait_until(lambda: "attempt 1" in cluster.log(store, run))
    cluster.done(store, sweep)
    wait_until(lambda: not Path(f"/proc/{leftover}").exists() or _dead(leftover))

    owner = json.loads((store.folder(run) / "owner.json").read_text())
    assert owner["attempt"] == 1 and owner["pid"] != leftover
    assert "taken over by process" in cluster.log(store, run)
    here = RunStore(tmp_path / "here")
    launch_here(sweep, here, lambda line: None, dry_run=False)
    assert numbers(store, run) == numbers(here, run)


def test_a_stack_on_a_lost_node_is_taken_over_run_by_run(cluster, cut_off, tmp_path: Path) -> None:
    """Every run ends with the later attempt, each record once, whoever has written it."""
    sweep, store = cluster.sweep(*STACK), cluster.store("lost-stack")
    ids = [run.id for run in sweep.runs]
    more = {"additional": {"nodelist": "node2"}, "stack": 3}
    cluster.submit(sweep, store, time=20, save_within=60, **more)
    job = cluster.job(store, ids[0])
    begun = wait_until(lambda: [i for i in ids if len(store.records(i)) > 1])
    leftover = int((store.folder(begun[-1]) / "lock").read_text())
    os.kill(leftover, signal.SIGSTOP)  # it hangs, and holds what it holds
    try:
        assert not all(store.is_done(run_id) for run_id in ids), "it is too short for this test"
        cut_off("node2")
        wait_until(lambda: ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING")
        ask("scontrol", "update", f"jobid={job}", "reqnodelist=", "nodelist=node1")
        wait_until(lambda: "attempt 1" in cluster.log(store, ids[0]))
        wait_until(lambda: 1 in [_attempt_of(store, run_id) for run_id in ids])
    finally:
        os.kill(leftover, signal.SIGCONT)
    cluster.done(store, sweep)

    here = RunStore(tmp_path / "here")
    launch_here(sweep, here, lambda line: None, dry_run=False)
    assert _attempt_of(store, ids[0]) == 1
    assert "taken over by process" in cluster.log(store, ids[0])
    for run_id in ids:
        rows, alone = store.records(run_id), here.records(run_id)
        assert [row["step"] for row in rows] == [row["step"] for row in alone]
        assert rows[-1]["val_loss"] == pytest.approx(alone[-1]["val_loss"], rel=1e-3)


def _attempt_of(store: RunStore, run_id: str) -> int:
    """The attempt of the job that has written a run last."""
    return json.loads((store.folder(run_id) / "owner.json").read_text())["attempt"]


def _dead(process: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{process}/status").read_text()


def test_a_run_saves_before_its_time_limit_and_goes_on_in_the_requeued_job(
    limited, cluster
) -> None:
    run, store, job = limited
    log = store.folder(run) / "log.txt"
    wait_until(lambda: log.exists() and "Resumed at step" in log.read_text())
    ask("scancel", job)

    assert cluster.ended(job) == "CANCELLED"
    before, after = log.read_text().split("Resumed at step ")[:2]
    assert f"Stopped by a signal at step {after.split('.')[0]}; saved." in before
    assert "Stopped by USR2 with 1 run to go on with." in cluster.log(store, run)
    assert "TIMEOUT" not in ask("sacct", "-D", "-X", "-n", f"--jobs={job}", "--format=State")
