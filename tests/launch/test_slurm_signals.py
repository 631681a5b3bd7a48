"""What a cluster does to jobs: preemption, requeue, cancel, kill. No record is lost or changed."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest

from optlab.launch.here import launch_here
from optlab.launch.standing import standings
from optlab.store import RunStore
from slurm import ask, wait_until

# Ten seconds of training: SLURM needs two for a preemption.
LONG = ("optimizer=muonmax_momo", "train.steps=8000", "train.eval_every=500")
SCENES = (
    "preempted", "requeued", "told", "bounded", "cancelled", "told_and_cancelled", "killed", "oom",
)  # fmt: skip


def numbers(store: RunStore, run_id: str) -> list[dict[str, Any]]:
    """A run's records without its times; NaN as a word, so that it equals itself."""
    rows = [dict(record) for record in store.records(run_id)]
    for row in rows:
        del row["seconds"]
    return [{k: "nan" if v != v else v for k, v in row.items()} for row in rows]


def processes(scene: str, store: RunStore, run_id: str) -> list[str]:
    """Those to kill: the worker that trains the run, or the whole job, which is its parent."""
    worker = (store.folder(run_id) / "lock").read_text()
    if scene == "killed":
        status = Path(f"/proc/{worker}/status").read_text()
        return [line.split()[1] for line in status.split("\n") if line.startswith("PPid")]
    return [worker] if scene == "oom" else []


@pytest.fixture(scope="module")
def scenes(cluster) -> Any:
    """One long run per scene, all submitted, and the scenes' blows dealt once they train."""
    sweep = cluster.sweep(*LONG)
    run = sweep.runs[0].id
    stores = {name: cluster.store(name) for name in SCENES}
    gpus = {"gpus_per_run": 0, "additional": {"gres": "gpu:2", "nodelist": "node1"}}
    for name, store in stores.items():
        own = {"preempted": gpus, "bounded": {"max_requeues": 0}}.get(name, {})
        cluster.submit(sweep, store, time=20, save_within=60, **own)
    jobs = {name: cluster.job(store, run) for name, store in stores.items()}
    blows = {
        "preempted": ("sbatch", "-p", "high", "-w", "node1", "--gres=gpu:2", "--mem=50M",
                      "-o", "/dev/null", "-J", jobs["preempted"], "--wrap", "sleep 3"),
        "requeued": ("scontrol", "requeue", jobs["requeued"]),
        "told": ("scancel", "--signal=USR2", jobs["told"]),
        "bounded": ("scancel", "--signal=USR2", jobs["bounded"]),
        "cancelled": ("scancel", jobs["cancelled"]),
        "told_and_cancelled": ("scancel", "--signal=USR2", jobs["told_and_cancelled"]),
        "killed": ("kill", "-KILL"),
        "oom": ("kill", "-KILL"),
    }  # fmt: skip
    waiting = dict(stores)
    while waiting:
        name = wait_until(
            lambda: next((n for n, store in waiting.items() if len(store.records(run)) > 1), None)
        )
        assert not waiting.pop(name).is_done(run), "it is too short for this test"
        ask(*blows[name], *processes(name, stores[name], run))
        if name == "told_and_cancelled":
            ask("scancel", jobs[name])
    return sweep, run, stores, jobs


@pytest.fixture(scope="module")
def undisturbed(scenes, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    sweep, run, _, _ = scenes
    here = RunStore(tmp_path_factory.mktemp("here"))
    launch_here(sweep, here, lambda line: None, dry_run=False)
    return numbers(here, run)


@pytest.mark.parametrize("scene", ["preempted", "requeued", "told"])
def test_a_requeued_run_gives_bitwise_the_records_of_an_undisturbed_one(
    scenes, undisturbed, cluster, scene: str
) -> None:
    sweep, run, stores, jobs = scenes
    cluster.done(stores[scene], sweep)

    assert numbers(stores[scene], run) == undisturbed
    assert cluster.ended(jobs[scene]) == "COMPLETED"
    log = (stores[scene].folder(run) / "log.txt").read_text()
    step = int(log.split("Stopped by a signal at step ")[1].split(";")[0])
    assert f"Resumed at step {step}." in log  # nothing is computed twice
    assert not math.isnan(step) and 500 <= step < 8000


@pytest.mark.parametrize("scene", ["preempted", "requeued", "told"])
def test_a_requeue_keeps_the_job_and_is_counted(scenes, cluster, scene: str) -> None:
    sweep, run, stores, jobs = scenes
    cluster.done(stores[scene], sweep)
    note = (stores[scene].folder(run) / "slurm.json").read_text()

    assert f'"job": "{jobs[scene]}"' in note and '"requeues": 1' in note


@pytest.mark.parametrize("scene", ["cancelled", "told_and_cancelled"])
def test_a_cancelled_run_saves_and_stays_cancelled(scenes, cluster, scene: str) -> None:
    _, run, stores, jobs = scenes

    assert cluster.ended(jobs[scene]) == "CANCELLED"
    assert (stores[scene].folder(run) / "checkpoint.pt").exists()
    assert standings([run], stores[scene], explain=True).of[run].state == "preempted"


def test_a_run_that_was_requeued_too_often_is_failed_and_says_so(scenes, cluster) -> None:
    _, run, stores, jobs = scenes

    assert cluster.ended(jobs["bounded"]) == "FAILED"
    failure = stores["bounded"].failure(run)
    assert failure and "hydra.launcher.max_requeues allows 0" in failure["cause"]
    assert (stores["bounded"].folder(run) / "checkpoint.pt").exists()


def test_a_killed_job_is_noticed_and_launched_again(scenes, undisturbed, cluster) -> None:
    sweep, run, stores, jobs = scenes
    store = stores["killed"]

    assert cluster.ended(jobs["killed"]) == "FAILED"
    # Its worker notices at its next record that nobody listens any more, unless it is killed first.
    wait_until(lambda: store.status(run) != "running")
    found = standings([run], store, explain=True).of[run]
    assert (found.state, found.cause) in [("lost", "FAILED (exit code 137)"), ("preempted", "")]
    cluster.submit(sweep, store, wait=True)
    assert cluster.job(store, run) != jobs["killed"]
    assert numbers(store, run) == undisturbed


def test_a_killed_worker_fails_its_run_and_says_so(scenes, cluster) -> None:
    _, run, stores, jobs = scenes

    assert cluster.ended(jobs["oom"]) == "FAILED"
    found = standings([run], stores["oom"], explain=True).of[run]
    assert found.state == "failed" and "killed by SIGKILL (out of memory?)" in found.cause


def test_a_signal_before_the_training_begins_is_honoured(cluster) -> None:
    """The job is told to stop while Python imports, and goes on after its requeue."""
    sweep, store = cluster.sweep("seed=0,1"), cluster.store("early")
    cluster.submit(sweep, store, runs_per_job=2, time=20, save_within=60)
    run, job = sweep.runs[0].id, cluster.job(store, sweep.runs[0].id)
    wait_until(lambda: "Job " in cluster.log(store, run) or store.is_done(run))
    subprocess.run(["scancel", "--signal=USR2", job], check=False)
    cluster.done(store, sweep)

    assert cluster.ended(job) == "COMPLETED"
    assert "Stopped by USR2" in cluster.log(store, run)
    assert Path(store.folder(run) / "slurm.json").read_text().count('"requeues": 1') == 1
