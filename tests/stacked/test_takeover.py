"""A stack that takes its runs over from an earlier attempt of its job."""

from __future__ import annotations

import contextlib
import fcntl
import time

import pytest

from optlab import store as stores
from optlab.stacked import run as stacked
from optlab.stop import StopFlag
from optlab.store import Owner, RunStore, write_json
from optlab.sweep import ad_hoc
from support import shrunk


def test_a_leftover_that_hangs_is_waited_for_once_and_not_by_every_run(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def hangs(file: object, seconds: float) -> bool:
        del file
        waits.append(seconds)
        time.sleep(seconds)
        return False

    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    leftover = Owner.here()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(stores, "_lock_within", hangs)
    monkeypatch.setattr(stores, "_LEASE_WAIT", 0.0)
    monkeypatch.setattr(stacked, "TAKEOVER", 0.5)
    sweep, ends = ad_hoc(shrunk("optimizer=adamw", "seed=0,1,2")), {}
    with contextlib.ExitStack() as held:
        for run in sweep.runs:
            store.freeze(run)
            lock = held.enter_context((store.folder(run.id) / "lock").open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            write_json(store.folder(run.id) / "owner.json", vars(leftover))
        stacked.run_stack(
            [run.id for run in sweep.runs],
            store,
            sweep.settings,
            stop=StopFlag(),
            report=lambda run_id, record: None,
            ended=lambda run_id, outcome: ends.update({run_id: outcome.status}),
            say=print,
        )

    assert ends == {run.id: "finished" for run in sweep.runs}
    assert len(waits) == 6 and sum(waits) <= 0.5
