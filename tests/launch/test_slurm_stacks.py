"""Stacks in jobs of a real SLURM: every run is done once, whatever happens to its job."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from optlab.launch.batch import batch_folder, note, read_batch
from optlab.launch.here import launch_here
from optlab.launch.standing import standings
from optlab.stacked.grouping import kind
from optlab.store import RunStore
from optlab.sweep import Sweep
from slurm import ask, wait_until

# Ten seconds of training, so that each blow finds it in the middle.
LONG = ("optimizer=adamw", "train.steps=4000", "train.eval_every=100", "seed=0,1,2")
SCENES = ("requeued", "told", "preempted")


def losses(sweep: Sweep, store: RunStore) -> dict[str, float]:
    """Final losses; every run has each of its records once."""
    found = {}
    for run in sweep.runs:
        rows = store.records(run.id)
        steps = range(0, run.train.steps + 1, run.train.eval_every)
        assert [row["step"] for row in rows] == list(steps)
        found[run.id] = rows[-1]["val_loss"]
    return found


def trained_here(sweep: Sweep, folder: Path) -> dict[str, float]:
    """The final losses of the runs, each trained by itself."""
    here = RunStore(folder)
    launch_here(sweep, here, lambda line: None, dry_run=False)
    return losses(sweep, here)


@pytest.fixture(scope="module")
def scenes(cluster) -> Any:
    """A stack of three long runs per scene, and the scenes' blows dealt once they train."""
    sweep = cluster.sweep(*LONG)
    stores = {name: cluster.store(name) for name in SCENES}
    gpus = {"additional": {"gres": "gpu:2", "nodelist": "node1"}}
    for name, store in stores.items():
        own = gpus if name == "preempted" else {}
        cluster.submit(sweep, store, time=20, save_within=60, stack=4, **own)
    jobs = {name: cluster.job(store, sweep.runs[0].id) for name, store in stores.items()}
    blows = {
        "requeued": ("scontrol", "requeue", jobs["requeued"]),
        "told": ("scancel", "--signal=USR2", jobs["told"]),
        "preempted": ("sbatch", "-p", "high", "-w", "node1", "--gres=gpu:2", "--mem=50M",
                      "-o", "/dev/null", "-J", jobs["preempted"], "--wrap", "sleep 3"),
    }  # fmt: skip
    waiting = dict(stores)
    while waiting:
        name = wait_until(lambda: next((n for n, s in waiting.items() if _begun(sweep, s)), None))
        store = waiting.pop(name)
        assert not all(store.is_done(run.id) for run in sweep.runs), "it is too short for this test"
        ask(*blows[name])
    return sweep, stores, jobs


def _begun(sweep: Sweep, store: RunStore) -> bool:
    return any(len(store.records(run.id)) > 1 for run in sweep.runs)


@pytest.fixture(scope="module")
def curves(cluster, scenes) -> Any:
    """Two curves in jobs that hold a stack of at most three; submitted after the long runs."""
    del scenes
    sweep = cluster.sweep("optimizer=adamw,adam", "seed=range(0,4)")
    store = cluster.store("curves")
    cluster.submit(sweep, store, stack=3)
    cluster.done(store, sweep)
    return sweep, store


def test_a_job_holds_one_kind_and_its_stack(curves, cluster) -> None:
    sweep, store = curves
    said = note(store, sweep.runs[0].id)
    batch = read_batch(batch_folder(store, said["batch"]) / "batch.json")

    assert batch.stack == 3
    assert [len(ids) for ids in batch.tasks] == [2, 2, 2, 2]
    kinds = {run.id: kind(run) for run in sweep.runs}
    assert all(len({kinds[run_id] for run_id in ids}) == 1 for ids in batch.tasks)
    for run in sweep.runs:
        assert "Stacked: 2 runs in 1 stack of up to 2." in cluster.log(store, run.id)


def test_every_run_of_a_stack_has_its_own_note_and_state(curves, cluster) -> None:
    sweep, store = curves
    notes = [json.loads((store.folder(run.id) / "slurm.json").read_text()) for run in sweep.runs]

    assert [said["packed"] for said in notes] == [2] * 8
    assert sorted(Counter(said["job"] for said in notes).values()) == [2, 2, 2, 2]
    found = standings([run.id for run in sweep.runs], store)
    assert {standing.state for standing in found.of.values()} == {"finished"}
    assert cluster.ended(notes[0]["job"]) == "COMPLETED"


def test_a_stack_in_a_job_gives_what_one_process_gives(curves, tmp_path: Path) -> None:
    sweep, store = curves
    assert losses(sweep, store) == pytest.approx(trained_here(sweep, tmp_path), rel=1e-4)


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return trained_here(scenes[0], tmp_path_factory.mktemp("here"))


@pytest.mark.parametrize("scene", SCENES)
def test_a_requeued_stack_does_every_run_once_and_gives_what_an_undisturbed_one_gives(
    scenes, undisturbed, cluster, scene: str
) -> None:
    sweep, stores, jobs = scenes
    store = stores[scene]
    cluster.done(store, sweep)

    assert losses(sweep, store) == pytest.approx(undisturbed, rel=1e-3)
    assert cluster.ended(jobs[scene]) == "COMPLETED"
    assert cluster.log(store, sweep.runs[0].id).count("finished\n") == 3
    logs = "".join((store.folder(run.id) / "log.txt").read_text() for run in sweep.runs)
    assert "Stopped by a signal at step " in logs and "Resumed at step " in logs
    for run in sweep.runs:
        said = note(store, run.id)
        assert said and said["job"] == jobs[scene] and said["requeues"] == 1


def test_auto_stacks_what_a_job_holds(cluster) -> None:
    sweep = cluster.sweep("optimizer=adamw", "seed=range(0,3)", "train.steps=200")
    store = cluster.store("auto")
    cluster.submit(sweep, store, stack="auto", runs_per_job=3)
    cluster.done(store, sweep)

    assert cluster.log(store, sweep.runs[0].id).count(" Stacked: ") == 1
    assert {standings([run.id], store).of[run.id].state for run in sweep.runs} == {"finished"}
