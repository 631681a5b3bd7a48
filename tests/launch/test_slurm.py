"""Runs inside jobs of a real SLURM."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optlab.config import ROOT, compose_run
from optlab.store import RunStore
from support import TINY, environment, shrunk

LONG = ("optimizer=muonmax_momo", "train.steps=3000", "train.eval_every=100")


@pytest.fixture(scope="module", autouse=True)
def _slurm() -> None:
    """A SLURM that answers; demanded by ``OPTLAB_REQUIRE_SLURM=1``, else optional."""
    if shutil.which("sinfo") and not subprocess.run(["sinfo"], capture_output=True).returncode:
        return
    reason = "no SLURM answers here (sinfo fails)"
    if os.environ.get("OPTLAB_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def submit(tmp_path: Path, *overrides: str, wait: bool) -> str:
    """Submit ``python launch.py``; the job's id."""
    launch = f"srun {sys.executable} {ROOT}/launch.py {' '.join(overrides)}"
    flags = ["--wait"] if wait else []
    done = subprocess.run(
        ["sbatch", "--parsable", *flags, f"--output={tmp_path}/job.txt", f"--wrap={launch}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr + (tmp_path / "job.txt").read_text()
    return done.stdout.strip()


def test_a_run_trains_in_a_job_as_it_trains_here(tmp_path: Path, command) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    submit(tmp_path, *TINY, f"runtime.runs={there}", wait=True)
    command("launch.py", *TINY, f"runtime.runs={here}")
    run, _ = compose_run(list(TINY))

    assert RunStore(there).status(run.id) == "finished"
    assert RunStore(there).result(run.id) == RunStore(here).result(run.id)


def test_a_cancelled_job_saves_and_the_next_one_goes_on(tmp_path: Path) -> None:
    overrides = shrunk(*LONG)
    store = RunStore(tmp_path / "runs")
    run, _ = compose_run(overrides)
    job = submit(tmp_path, *overrides, f"runtime.runs={store.root}", wait=False)
    _wait_until(lambda: len(store.records(run.id)) > 2)
    subprocess.run(["scancel", job], check=True)
    _wait_until(lambda: store.status(run.id) != "running")
    assert store.status(run.id) == "preempted"
    assert (store.folder(run.id) / "checkpoint.pt").exists()

    submit(tmp_path, *overrides, f"runtime.runs={store.root}", wait=True)
    assert store.status(run.id) == "finished"
    assert "Resumed at step" in (store.folder(run.id) / "log.txt").read_text()


def _wait_until(condition: object, timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
