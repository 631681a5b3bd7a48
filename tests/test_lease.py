"""Leases between the attempts of a job: a leftover of an earlier one writes nothing more."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import Busy, Owner, Record, RunStore
from support import environment, tiny


def as_job(monkeypatch: pytest.MonkeyPatch, job: str, attempt: int) -> None:
    """Make this process look like an attempt of a job."""
    array, task = job.split("_")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", array)
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(attempt))


@pytest.mark.parametrize(
    ("job", "attempt", "expected"),
    [("7_1", 1, True), ("7_1", 0, False), ("7_2", 1, False), ("", 1, False)],
)
def test_only_a_later_attempt_of_the_same_job_succeeds(
    job: str, attempt: int, expected: bool
) -> None:
    assert Owner("b", 2, job, attempt).succeeds(Owner("a", 1, "7_1", 0)) is expected


def test_a_later_attempt_takes_the_run_over_from_a_leftover_that_holds_the_lock(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leftover is another process; it holds the lock, and finds out before it writes."""
    run, _ = tiny()
    store.freeze(run)
    script = textwrap.dedent(f"""
        from pathlib import Path
        from optlab.store import Busy, RunStore
        with RunStore(Path({str(store.root)!r})).lease({run.id!r}) as lease:
            lease.check()
            print("held", flush=True)
            input()
            try:
                lease.check()
            except Busy as error:
                print(error, flush=True)
    """)
    as_job(monkeypatch, "7_1", 0)
    leftover = subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert leftover.stdout and leftover.stdout.readline() == "held\n"
    as_job(monkeypatch, "7_2", 3)
    with pytest.raises(Busy), store.lease(run.id):
        pass
    as_job(monkeypatch, "7_1", 1)
    with store.lease(run.id, takeover=0.1) as lease:
        lease.check()
        said, _ = leftover.communicate("\n", timeout=60)
        lease.check()

    assert "taken over by process" in said and "(job 7_1, attempt 1)" in said


def test_a_leftover_ends_without_another_record_checkpoint_or_result(store: RunStore) -> None:
    """Where locks do not reach: the file alone tells it that it has a successor."""
    run, settings = tiny()
    store.freeze(run)
    folder = store.folder(run.id)

    def report(record: Record) -> None:
        if record.step == 2:
            (folder / "owner.json").write_text('{"host":"b","pid":1,"job":"7_1","attempt":1}')

    outcome = run_one(run.id, store, settings, stop=StopFlag(), report=report)

    assert outcome.status == "busy" and "taken over by process 1 on b" in outcome.cause
    assert [record["step"] for record in store.records(run.id)] == [0, 2]
    names = {path.name for path in folder.iterdir()}
    assert not names & {"result.json", "failure.json", "checkpoint.pt", "preempted.json"}


def test_a_run_that_is_stopped_before_it_begins_begins_nothing(store: RunStore) -> None:
    run, settings = tiny()
    store.freeze(run)
    stop = StopFlag()
    stop.is_set = True
    outcome = run_one(run.id, store, settings, stop=stop, report=lambda record: None)

    assert outcome.status == "preempted"
    assert not (store.folder(run.id) / "records.jsonl").exists()
