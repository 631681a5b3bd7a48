"""Sweeps as job arrays of a real SLURM: what is submitted, what comes of it, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optlab.config import compose_run
from optlab.errors import ConfigError
from optlab.launch import slurm as slurm_launcher
from optlab.launch.here import launch_here
from optlab.launch.standing import standings
from optlab.paths import ROOT
from optlab.store import RunStore
from slurm import ask, wait_until
from support import TINY, environment, shrunk

LONG = ("optimizer=muonmax_momo", "train.steps=3000", "train.eval_every=100")


def sbatch(tmp_path: Path, *overrides: str, wait: bool) -> str:
    """Submit ``python launch.py``; the job's id."""
    launch = f"srun {sys.executable} {ROOT}/launch.py {' '.join(overrides)}"
    flags = ["--wait"] if wait else []
    done = subprocess.run(
        ["sbatch", "--parsable", *flags, f"--output={tmp_path}/job.txt", f"--wrap={launch}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "job.txt").read_text()
    return done.stdout.strip()


def test_a_run_trains_in_a_job_as_it_trains_here(cluster, tmp_path: Path, command) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    sbatch(tmp_path, *TINY, f"runtime.runs={there}", wait=True)
    command("launch.py", *TINY, f"runtime.runs={here}")
    run, _ = compose_run(list(TINY))

    assert RunStore(there).status(run.id) == "finished"
    assert RunStore(there).result(run.id) == RunStore(here).result(run.id)


def test_a_cancelled_job_saves_and_the_next_one_goes_on(cluster, tmp_path: Path) -> None:
    overrides = shrunk(*LONG)
    store = RunStore(tmp_path / "runs")
    run, _ = compose_run(overrides)
    job = sbatch(tmp_path, *overrides, f"runtime.runs={store.root}", wait=False)
    wait_until(lambda: len(store.records(run.id)) > 2)
    subprocess.run(["scancel", job], check=True)
    wait_until(lambda: store.status(run.id) != "running")
    assert store.status(run.id) == "preempted"
    assert (store.folder(run.id) / "checkpoint.pt").exists()

    sbatch(tmp_path, *overrides, f"runtime.runs={store.root}", wait=True)
    assert store.status(run.id) == "finished"
    assert "Resumed at step" in (store.folder(run.id) / "log.txt").read_text()


@pytest.fixture(scope="module")
def packed(cluster) -> Any:
    """Five runs in jobs of two, one of which fails, in arrays of at most two jobs."""
    sweep, store = cluster.sweep("seed=range(0,5)"), cluster.store("packed")
    victim = sweep.runs[0].id
    store.folder(victim).mkdir(parents=True)
    (store.folder(victim) / "records.jsonl").mkdir()  # it cannot append there
    gpu = {"gpus_per_run": 1, "runs_per_job": 2, "side_by_side": 2, "max_array": 2}
    report = cluster.submit(sweep, store, **gpu)
    assert report.waiting == 5
    jobs = [cluster.job(store, run.id) for run in sweep.runs]
    states = [cluster.ended(job) for job in jobs]
    return sweep, store, jobs, states


def test_a_sweep_is_cut_into_arrays_of_packed_jobs(packed) -> None:
    _, _, jobs, _ = packed
    first, second = jobs[0].split("_")[0], jobs[4].split("_")[0]

    assert jobs == [f"{first}_0"] * 2 + [f"{first}_1"] * 2 + [f"{second}_0"]
    assert first != second


def test_an_array_gives_what_one_process_gives(packed, tmp_path: Path) -> None:
    sweep, store, _, _ = packed
    here = RunStore(tmp_path / "here")
    launch_here(sweep, here, print, dry_run=False)

    for run in sweep.runs[1:]:
        there = (store.folder(run.id) / "result.json").read_text()
        assert there == (here.folder(run.id) / "result.json").read_text()


def test_one_failing_run_of_a_pack_fails_its_job_and_nothing_else(packed) -> None:
    sweep, store, _, states = packed

    assert states == ["FAILED", "FAILED", "COMPLETED", "COMPLETED", "COMPLETED"]
    assert [store.status(run.id) for run in sweep.runs] == ["failed"] + ["finished"] * 4


def test_a_failing_run_tells_its_traceback_in_the_jobs_log_and_in_its_own(packed, cluster) -> None:
    sweep, store, _, _ = packed
    victim = sweep.runs[0].id
    failure = store.failure(victim)

    assert failure and "IsADirectoryError" in failure["cause"]
    for text in (cluster.log(store, victim), (store.folder(victim) / "log.txt").read_text()):
        assert "Traceback (most recent call last)" in text and "IsADirectoryError" in text


def test_a_job_sees_the_gpu_that_it_asked_for(packed, cluster) -> None:
    sweep, store, _, _ = packed

    assert "CUDA_VISIBLE_DEVICES=0" in cluster.log(store, sweep.runs[0].id) or (
        "CUDA_VISIBLE_DEVICES=1" in cluster.log(store, sweep.runs[0].id)
    )


def test_launching_again_submits_what_failed_and_nothing_else(packed, cluster) -> None:
    sweep, store, jobs, _ = packed
    (store.folder(sweep.runs[0].id) / "records.jsonl").rmdir()
    report = cluster.submit(sweep, store, wait=True)

    assert report.ok and dict(report.counts) == {"finished": 5}
    assert cluster.job(store, sweep.runs[0].id) != jobs[0]
    assert [cluster.job(store, run.id) for run in sweep.runs[1:]] == jobs[1:]
    assert cluster.submit(sweep, store).waiting == 0


def test_queued_runs_are_left_alone_and_cost_a_queue_nothing(cluster) -> None:
    sweep, store = cluster.sweep("seed=0,1"), cluster.store("queued")
    cluster.submit(sweep, store, additional={"hold": True})
    before = [cluster.job(store, run.id) for run in sweep.runs]
    cluster.said.clear()
    report = cluster.submit(sweep, store)

    assert report.waiting == 2
    assert [cluster.job(store, run.id) for run in sweep.runs] == before
    assert "2 runs (2 queued).\nNothing to start." in cluster.said[0]
    (array,) = {job.split("_")[0] for job in before}
    subprocess.run(["scancel", array], check=True)


def test_runs_of_other_resources_are_an_array_of_their_own(cluster, monkeypatch) -> None:
    sweep, store = cluster.sweep("seed=0,1,2"), cluster.store("classes")
    asked = ({}, {"time": 30}, {})
    monkeypatch.setattr(type(sweep), "resources", asked, raising=False)
    object.__setattr__(sweep, "resources", asked)
    cluster.submit(sweep, store, additional={"hold": True})
    jobs = [cluster.job(store, run.id) for run in sweep.runs]
    limits = [
        subprocess.run(["squeue", "-h", "-j", job, "-o", "%l"], capture_output=True, text=True)
        for job in jobs
    ]

    assert [done.stdout.strip() for done in limits] == ["1:00:00", "30:00", "1:00:00"]
    assert jobs[0].split("_")[0] == jobs[2].split("_")[0] != jobs[1].split("_")[0]
    for job in jobs:
        subprocess.run(["scancel", job], check=True)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"partition": "nowhere"}, "invalid partition specified: nowhere"),
        ({"gpus_per_run": 1, "additional": {"gres": "gpu:99"}}, "configuration is not available"),
        ({"constraint": "moon"}, "Invalid feature specification"),
    ],
)
def test_what_slurm_refuses_is_refused_in_its_words_and_can_be_launched_again(
    cluster, tmp_path: Path, settings: dict[str, Any], reason: str
) -> None:
    sweep, store = cluster.sweep("seed=0,1"), RunStore(tmp_path / "runs")
    with pytest.raises(ConfigError, match=reason) as refusal:
        cluster.submit(sweep, store, **settings)
    assert "Nothing was submitted" in str(refusal.value)
    assert list((store.root / "slurm").iterdir()) == []
    found = standings([run.id for run in sweep.runs], store)
    assert [standing.state for standing in found.of.values()] == ["missing"] * 2

    assert cluster.submit(sweep, store, additional={"hold": True}).waiting == 2
    array = cluster.job(store, sweep.runs[0].id).split("_")[0]
    subprocess.run(["scancel", array], check=True)


def test_a_refused_second_array_takes_the_first_back(cluster, monkeypatch) -> None:
    """All arrays or none, also where SLURM changes its mind between two of them."""
    sweep, store = cluster.sweep("seed=0,1"), cluster.store("halfway")
    object.__setattr__(sweep, "resources", ({}, {"constraint": "moon"}))
    monkeypatch.setattr("optlab.launch.slurm._try", lambda executor, batch: None)
    with pytest.raises(ConfigError, match="Invalid feature specification"):
        cluster.submit(sweep, store, additional={"hold": True})

    first = next(line for line in cluster.said if line.startswith("Submitted"))
    array = first.split(" as job ")[1].split(";")[0]
    wait_until(lambda: f"{array}_0" not in cluster.alive())
    assert not any((store.folder(run.id) / "slurm.json").exists() for run in sweep.runs)


def test_a_job_that_cannot_write_the_store_says_so(cluster, tmp_path: Path) -> None:
    """The store is gone, by another name of the same path, when the job starts."""
    sweep, real = cluster.sweep("seed=0"), tmp_path / "real"
    real.mkdir()
    link = tmp_path / "link"
    link.symlink_to(real)
    store = RunStore(link)
    cluster.submit(sweep, store, additional={"hold": True})
    job = cluster.job(store, sweep.runs[0].id)
    batch = next((real / "slurm").iterdir())
    content = json.loads((batch / "batch.json").read_text())
    (batch / "batch.json").write_text(json.dumps({**content, "store": "/proc/nowhere"}))
    subprocess.run(["scontrol", "release", job], check=True)

    assert cluster.ended(job) == "FAILED"
    assert "cannot be written" in cluster.log(store, sweep.runs[0].id)
    found = standings([sweep.runs[0].id], store, explain=True).of[sweep.runs[0].id]
    assert found.state == "lost" and "FAILED" in found.cause


def test_the_command_submits_and_returns(cluster, command, tmp_path: Path) -> None:
    words = [*TINY, "seed=0,1", f"runtime.runs={tmp_path / 'runs'}", "hydra/launcher=slurm"]
    small = ["gpus_per_run=0", "cpus=1", "additional={hold:true}"]
    done = command("launch.py", "-m", *words, *(f"hydra.launcher.{word}" for word in small))

    assert done.returncode == 0, done.stderr
    assert "Submitting 2 runs as 2 jobs" in done.stdout
    assert "2 runs are queued or running. Watch: python -m optlab status" in done.stdout
    batch = next((tmp_path / "runs" / "slurm").iterdir()).name
    subprocess.run(["scancel", f"--name={batch}"], check=True)


def test_a_run_on_two_gpus_of_two_nodes_gives_what_one_process_gives(cluster) -> None:
    """The same id, and the same losses to the precision of sums in another order."""
    sweep, store = cluster.sweep("seed=0,1"), cluster.store("together")
    two = {"gpus_per_run": 2, "nodes": 2, "runs_per_job": 2}
    report = cluster.submit(sweep, store, wait=True, **two)
    assert report.ok, cluster.log(store, sweep.runs[0].id)
    here = cluster.store("alone")
    launch_here(sweep, here, print, dry_run=False)

    assert "process 1 of 2" in cluster.log(store, sweep.runs[0].id)
    for run in sweep.runs:
        alone = [record["val_loss"] for record in here.records(run.id)]
        together = [record["val_loss"] for record in store.records(run.id)]
        assert together == pytest.approx(alone, rel=1e-4)


def test_the_largest_array_is_what_this_slurm_says(cluster) -> None:
    (line,) = [
        each for each in ask("scontrol", "show", "config").split("\n") if "MaxArraySize" in each
    ]

    assert slurm_launcher._max_array_size() == int(line.split("=")[1])
