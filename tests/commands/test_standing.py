"""Where runs stand: every combination of files and queue that a cluster can leave behind."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Callable, Mapping

import pytest

from optlab.config import Run
from optlab.launch import standing
from optlab.launch.queue import Job, NoSlurm, alive
from optlab.launch.standing import ALIVE, STATES, Standing, standings
from optlab.store import RunStore
from support import tiny

from .conftest import Submit, Wait
from .stores import fill

Queue = Callable[[Mapping[str, Job]], None]

WAITS = Job("queued", "Priority", 0.0, "")
RUNS = Job("running", "", 60.0, "node7")


@pytest.fixture
def run() -> Run:
    return tiny()[0]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    """Lets the queue hold these jobs, and accounting explain none."""

    def hold(jobs: Mapping[str, Job]) -> None:
        monkeypatch.setattr(standing, "alive", lambda: dict(jobs))

    monkeypatch.setattr(standing, "why_ended", lambda jobs: dict.fromkeys(jobs, "NODE_FAIL"))
    return hold


def where(store: RunStore, run: Run, *, explain: bool = False) -> Standing:
    return standings([run.id], store, explain=explain).of[run.id]


def test_without_submissions_slurm_is_never_asked(
    store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing, "alive", lambda: pytest.fail("asked"))
    for files, state in (
        ([], "missing"),
        (["records"], "preempted"),
        (["records", "failure"], "failed"),
        (["records", "result"], "finished"),
        (["records", "damaged result"], "failed"),
    ):
        fill(store, run, files)
        assert where(store, run).state == state


@pytest.mark.parametrize("files", [[], ["records"], ["records", "failure"], ["damaged result"]])
def test_a_run_whose_job_is_alive_is_queued_or_running_whatever_its_files_say(
    store: RunStore, run: Run, queue: Queue, files: list[str]
) -> None:
    fill(store, run, [*files, "slurm"])
    queue({"7_0": WAITS})
    assert where(store, run) == Standing("queued", "Priority", "7_0")
    queue({"7_0": RUNS})
    assert where(store, run) == Standing("running", "", "7_0", "node7")


def test_a_run_waits_in_a_packed_job_until_it_is_its_turn(
    store: RunStore, run: Run, queue: Queue
) -> None:
    """Which it is while its lease is held."""
    fill(store, run, ["slurm"], packed=4)
    queue({"7_0": RUNS})
    assert (where(store, run).state, where(store, run).node) == ("queued", "node7")
    with store.lease(run.id):
        assert where(store, run) == Standing("running", "", "7_0", "node7")
    queue({"7_0": WAITS})
    assert where(store, run) == Standing("queued", "Priority", "7_0")


@pytest.mark.parametrize(("files", "state"), [([], "missing"), (["records"], "preempted")])
def test_a_run_whose_job_was_cancelled_here_is_not_lost(
    store: RunStore, run: Run, queue: Queue, files: list[str], state: str
) -> None:
    fill(store, run, ["slurm", *files], cancelled="2026-01-01T00:00:00+00:00")
    queue({"7_0": RUNS})
    assert where(store, run).state == "running"  # it still saves
    queue({})
    assert where(store, run, explain=True).state == state


def test_a_run_with_a_result_is_done_while_its_job_goes_on(
    store: RunStore, run: Run, queue: Queue
) -> None:
    queue({"7_0": RUNS})
    fill(store, run, ["slurm", "records", "result"])

    assert where(store, run).state == "finished"


def test_a_run_that_failed_in_a_pack_is_failed_while_the_pack_goes_on(
    store: RunStore, run: Run, queue: Queue
) -> None:
    for job in (RUNS, WAITS):  # and when the pack is requeued
        queue({"7_0": job})
        fill(store, run, ["slurm", "records", "failure"], packed=4)
        assert where(store, run) == Standing("failed", "ValueError: no", "7_0")

        fill(store, run, ["failure", "slurm", "records"], packed=4)  # from before this job
        assert where(store, run).state in ALIVE


def test_a_run_alone_in_its_job_is_running_until_the_job_has_gone(
    store: RunStore, run: Run, queue: Queue
) -> None:
    fill(store, run, ["slurm", "records", "failure"])
    queue({"7_0": RUNS})
    assert where(store, run).state == "running"
    queue({})
    assert where(store, run) == Standing("failed", "ValueError: no", "7_0")


@pytest.mark.parametrize("files", [[], ["records"], ["failure"], ["records", "stopped"]])
def test_a_job_that_is_gone_without_a_word_is_lost(
    store: RunStore, run: Run, queue: Queue, files: list[str]
) -> None:
    """What a run wrote before it was submitted again says nothing about that job."""
    queue({})
    fill(store, run, [*files, "slurm"])

    assert where(store, run) == Standing("lost", "its job is gone", "7_0")
    assert where(store, run, explain=True) == Standing("lost", "NODE_FAIL", "7_0")


def test_a_run_that_saved_and_stopped_is_preempted(store: RunStore, run: Run, queue: Queue) -> None:
    queue({})
    fill(store, run, ["slurm", "records", "stopped"])

    assert where(store, run) == Standing("preempted", "", "7_0")


def test_a_run_whose_job_was_cancelled_is_not_lost(
    store: RunStore, run: Run, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "CANCELLED (by user 7)"
    monkeypatch.setattr(standing, "why_ended", lambda jobs: dict.fromkeys(jobs, reason))
    queue({})
    fill(store, run, ["slurm"])
    assert where(store, run, explain=True) == Standing("missing", reason, "7_0")
    fill(store, run, ["slurm", "records"])
    assert where(store, run, explain=True) == Standing("preempted", reason, "7_0")


def test_a_held_lease_is_running_whoever_holds_it(store: RunStore, run: Run, queue: Queue) -> None:
    queue({})
    fill(store, run, ["slurm", "records"])
    with store.lease(run.id):
        assert where(store, run) == Standing("running")
        queue({"7_0": RUNS})
        assert where(store, run) == Standing("running", "", "7_0", "node7")


def test_a_submission_that_cannot_be_read_is_a_lost_one(
    store: RunStore, run: Run, queue: Queue
) -> None:
    queue({"7_0": WAITS})
    fill(store, run, ["slurm"])
    for damaged in ("", "{", "[]", '{"job": 3, "x": 1}', "null"):
        (store.folder(run.id) / "slurm.json").write_text(damaged)

        assert where(store, run, explain=True) == Standing("lost", "its submission broke off")


def test_where_slurm_does_not_answer_submitted_runs_count_as_alive(
    store: RunStore, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent() -> dict[str, Job]:
        raise NoSlurm("squeue does not answer: down", installed=True)

    monkeypatch.setattr(standing, "alive", silent)
    for files, state in (([], "queued"), (["records"], "queued"), (["result"], "finished")):
        fill(store, run, ["slurm", *files])
        found = standings([run.id], store)

        assert found.of[run.id].state == state
        assert found.problem == "squeue does not answer: down"


def test_on_a_machine_without_slurm_files_decide(store: RunStore, run: Run, no_slurm: None) -> None:
    for files, state in (
        ([], "lost"),
        (["records"], "lost"),
        (["stopped", "records"], "preempted"),
        (["failure"], "failed"),
        (["result"], "finished"),
    ):
        fill(store, run, ["slurm", *files])
        found = standings([run.id], store, explain=True)

        assert found.of[run.id].state == state
        assert "no SLURM on this machine" in found.problem


FILES = ("slurm", "records", "stopped", "failure", "damaged result", "result")


@pytest.mark.parametrize("jobs", [{}, {"7_0": WAITS}, {"7_0": RUNS}], ids=["gone", "waits", "runs"])
def test_whatever_order_the_files_came_in_a_run_stands_somewhere(
    store: RunStore, run: Run, queue: Queue, jobs: Mapping[str, Job]
) -> None:
    queue(jobs)
    orders = [order for size in range(6) for order in itertools.permutations(FILES, size)]
    for order in orders[::25]:
        fill(store, run, order)
        found = where(store, run, explain=True)

        assert found.state in STATES
        assert ("result" in order and order.index("result") > _last_damage(order)) == (
            found.state == "finished"
        )
        if found.state != "finished" and "slurm" in order and jobs:
            assert found.state in ALIVE
        assert found.job == ("7_0" if "slurm" in order else "")


def _last_damage(order: tuple[str, ...]) -> int:
    return order.index("damaged result") if "damaged result" in order else -1


def test_real_jobs_are_followed_from_queue_to_loss(
    submit: Submit, store: RunStore, run: Run, wait_until: Wait
) -> None:
    go = store.root.parent / "go"
    killed = f"until [ -e {go} ]; do sleep 0.1; done; kill -KILL $$"
    array = submit(killed, "--array=0-1%1", "--hold")
    fill(store, run, ["slurm"], job=f"{array}_1")
    assert where(store, run) == Standing("queued", "JobHeldUser", f"{array}_1")

    subprocess.run(["scontrol", "release", array], check=True)
    subprocess.run(["scancel", f"{array}_0"], check=True)
    wait_until(lambda: where(store, run).state == "running")
    assert where(store, run).node

    go.touch()
    wait_until(lambda: f"{array}_1" not in alive())
    fill(store, run, ["slurm", "records"], job=f"{array}_1")
    wait_until(lambda: "FAILED" in where(store, run, explain=True).cause)
    assert where(store, run, explain=True).state == "lost"


def test_a_thousand_runs_are_looked_at_in_a_moment(store: RunStore, run: Run, queue: Queue) -> None:
    """One call of squeue for all: a generous bound, against one call per run."""
    calls = []
    standing_alive = lambda: calls.append(1) or {"7_0": WAITS}  # noqa: E731
    fill(store, run, ["slurm", "records"])
    ids = [run.id, *(f"{number:012x}" for number in range(999))]
    for run_id in ids[1:]:
        os.symlink(store.folder(run.id), store.folder(run_id))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standing, "alive", standing_alive)
        found = standings(ids, store)

    assert len(calls) == 1
    assert found.among("queued") == ids
