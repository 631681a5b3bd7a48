"""A process of a run on several GPUs is killed: the run fails soon, and what is left can go on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from slurm import ask, wait_until

LONG = ("train.steps=2000", "train.eval_every=100")


def task(job: str, rank: int) -> list[int]:
    """The processes of one rank of a job."""
    array, _, index = job.partition("_")
    wanted = {
        f"SLURM_ARRAY_JOB_ID={array}",
        f"SLURM_ARRAY_TASK_ID={index}",
        f"SLURM_PROCID={rank}",
        "SLURM_STEP_NUM_TASKS=2",
    }
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            words = set(path.read_text(errors="replace").split("\0"))
        except OSError:  # not ours, or gone
            continue
        if wanted <= words:
            found.append(int(path.parent.name))
    return found


def test_a_killed_rank_fails_the_run_which_a_requeue_finishes(cluster) -> None:
    sweep = cluster.sweep(*LONG)
    run = sweep.runs[0].id
    stores = [cluster.store(f"killed_{rank}") for rank in range(2)]
    for store in stores:
        cluster.submit(sweep, store, gpus_per_run=2)
    jobs = [cluster.job(store, run) for store in stores]
    for rank, (store, job) in enumerate(zip(stores, jobs, strict=True)):
        cluster.training(store, run)
        for process in task(job, rank):
            os.kill(process, signal.SIGKILL)
    for rank, (store, job) in enumerate(zip(stores, jobs, strict=True)):
        failure = wait_until(lambda store=store: store.failure(run), timeout=60)
        assert failure["cause"].startswith(f"rank {rank} of 2 (")
        assert "is gone: killed, or out of memory?" in failure["cause"]
        assert cluster.ended(job) == "FAILED"

        # As SLURM does by itself where the node of that rank is lost.
        ask("scontrol", "requeue", job)
        ask("scontrol", "update", f"JobId={job}", "StartTime=now+5")  # else in two minutes
    for store, job in zip(stores, jobs, strict=True):
        cluster.done(store, sweep)
        assert cluster.ended(job) == "COMPLETED", cluster.log(store, run)
        assert store.failure(run) is None


def test_a_killed_rank_costs_a_packed_job_one_run(cluster) -> None:
    sweep = cluster.sweep("train.steps=500", "train.eval_every=20", "seed=0,1")
    store = cluster.store("packed")
    first, second = (run.id for run in sweep.runs)
    cluster.submit(sweep, store, gpus_per_run=2, runs_per_job=2)
    job = cluster.job(store, first)
    cluster.training(store, first)
    worker = max(task(job, 1), key=_resident)  # it trains; the smaller ones only watch
    os.kill(worker, signal.SIGKILL)

    failure = wait_until(lambda: store.failure(first), timeout=60)
    assert failure["cause"].startswith("rank 1 of 2 (")
    wait_until(lambda: store.is_done(second), timeout=120)
    assert store.failure(second) is None


def _resident(process: int) -> int:
    """Pages of memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1])
