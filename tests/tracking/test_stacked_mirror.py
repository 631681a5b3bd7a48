"""Stacked runs in W&B: each is a run of its own there, streamed at the same time."""

from __future__ import annotations

from optlab.attempt import Outcome
from optlab.stacked.run import run_stack
from optlab.stop import StopFlag
from optlab.store import Record, RunStore
from tracking.backend import Backend
from tracking.test_mirror import assert_whole
from tracking.trained import compose

EACH = ("optimizer.lr=0.1", "optimizer.lr=1e30", "seed=1")


def stacked(store: RunStore, mode: str, stop_at: int | None = None) -> dict[str, str]:
    """Train three runs of one kind together; the status of each, by id."""
    made = [compose(mode, "optimizer=sgd_momentum", own) for own in EACH]
    for run, _ in made:
        store.freeze(run)
    stop, status = StopFlag(), {}

    def report(run_id: str, record: Record) -> None:
        del run_id
        stop.is_set = stop.is_set or record.step == stop_at

    def ended(run_id: str, outcome: Outcome) -> None:
        status[run_id] = outcome.status

    ids = [run.id for run, _ in made]
    run_stack(ids, store, made[0][1], stop=stop, report=report, ended=ended, say=print)
    return status


def test_each_has_its_own_history_and_outcome(backend: Backend, store: RunStore) -> None:
    status = stacked(store, "online")

    assert sorted(status.values()) == ["diverged", "finished", "finished"]
    for run_id, outcome in status.items():
        assert_whole(backend, store, run_id)
        assert backend.run(run_id).summary["outcome"] == outcome
        assert backend.run(run_id).state == "finished"


def test_each_goes_on_where_it_was_stopped(backend: Backend, store: RunStore) -> None:
    assert "preempted" in stacked(store, "online", stop_at=2).values()
    status = stacked(store, "online")

    assert sorted(status.values()) == ["diverged", "finished", "finished"]
    for run_id in status:
        assert_whole(backend, store, run_id)


def test_offline_each_has_a_file_of_its_own(store: RunStore) -> None:
    for run_id in stacked(store, "offline"):
        (file,) = store.folder(run_id).rglob("offline-run-*/*.wandb")
        assert file.stat().st_size > 0
