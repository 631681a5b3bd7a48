"""Launches that are killed, that come in pairs, or after which somebody edits files."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optlab.launch.batch import note
from optlab.store import RunStore
from slurm import ask, cancel_batches, wait_until
from support import TINY, environment

HELD = ("gpus_per_run=0", "cpus=1", "memory=100M", "additional={hold:true}")
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(cluster, tmp_path: Path) -> Launch:
    """``python launch.py -m`` of three tiny runs as held jobs, from a root, in its own process."""

    def call(root: Path, *overrides: str, patch: str = "") -> subprocess.Popen[str]:
        words = [*TINY, "seed=0,1,2", f"runtime.runs={tmp_path / 'runs'}", "hydra/launcher=slurm"]
        words += [*(f"hydra.launcher.{word}" for word in HELD), *overrides]
        script = (
            f"import sys; sys.argv = {['launch.py', '-m', *words]!r}\n{patch}\n"
            f"import runpy; runpy.run_path({str(root / 'launch.py')!r}, run_name='__main__')"
        )
        return subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=tmp_path,  # not the repository, which would be imported before the root
            env=environment(root),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return call


def output(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    return text


def ids(store: RunStore) -> list[str]:
    return sorted(path.parent.name for path in store.root.glob("*/slurm.json"))


def jobs(store: RunStore) -> list[str]:
    return sorted((note(store, run_id) or {})["job"] for run_id in ids(store))


def held(store: RunStore) -> list[str]:
    """The jobs in the queue that any batch of the store has ever submitted."""
    names = ",".join(path.name for path in (store.root / "slurm").iterdir())
    return sorted(ask("squeue", "-h", "-r", f"--name={names}", "-o", "%i").split())


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    yield
    cancel_batches(tmp_path)


@pytest.mark.parametrize(
    "moment",
    [
        "batch.write_json",  # the job exists, and nothing says so yet
        "batch._change",  # the batch knows its job, the runs do not
        "slurm._sbatch",  # the intent is written, nothing is submitted
    ],
)
def test_a_launch_that_is_killed_in_the_middle_is_taken_up_by_the_next(
    launch, clone: Path, store: RunStore, moment: str
) -> None:
    module, function = moment.split(".")
    condition = "'submitted' in str(a[0])" if function == "write_json" else "True"
    patch = (
        f"import os, signal, optlab.launch.{module} as m\n"
        f"before = m.{function}\n"
        f"def die(*a, **k):\n"
        f"    if {condition}: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"    return before(*a, **k)\n"
        f"m.{function} = die"
    )
    killed = launch(clone, patch=patch)
    text, _ = killed.communicate(timeout=240)
    assert killed.returncode == -signal.SIGKILL, text
    text = output(launch(clone))

    assert len(jobs(store)) == 3 and held(store) == jobs(store)
    assert ("by a launch that did not end; it is kept" in text) == (module == "batch")


def test_two_launches_at_once_submit_every_run_once(launch, clone: Path, store: RunStore) -> None:
    first, second = launch(clone), launch(clone)
    texts = [output(first), output(second)]

    assert sorted("Submitted" in text for text in texts) == [False, True]
    assert len(held(store)) == 3 and held(store) == jobs(store)


def test_a_job_leaves_a_run_alone_that_was_submitted_again_since(cluster) -> None:
    """What holds where the launches' lock does not reach from one machine to the other."""
    sweep, store = cluster.sweep("seed=0"), cluster.store("again")
    run = sweep.runs[0].id
    cluster.submit(sweep, store, additional={"hold": True})
    first = cluster.job(store, run)
    (store.folder(run) / "slurm.json").unlink()
    cluster.submit(sweep, store, additional={"hold": True})
    second = cluster.job(store, run)
    ask("scontrol", "release", first)
    assert cluster.ended(first) == "COMPLETED"
    assert store.status(run) == "missing"

    ask("scontrol", "release", second)
    assert cluster.ended(second) == "COMPLETED"
    assert store.status(run) == "finished"


def test_edits_after_the_launch_do_not_reach_a_job_that_waits(
    launch, clone: Path, store: RunStore, cluster
) -> None:
    """Neither of a YAML file nor of the code: the run is the one that was launched."""
    output(launch(clone))
    released = jobs(store)
    method = clone / "conf" / "optimizer" / "muonmax_momo.yaml"
    method.write_text(method.read_text().replace("momentum: 0.95", "momentum: 0.5"))
    train = clone / "optlab" / "train.py"
    train.write_text(train.read_text() + "\nraise RuntimeError('edited')\n")
    ask("scontrol", "release", *released)
    states: dict[str, Any] = {job: cluster.ended(job) for job in released}

    assert set(states.values()) == {"COMPLETED"}
    assert (store.root / "code").is_dir() and str(clone) not in cluster.log(store, ids(store)[0])
    for run_id in ids(store):
        assert store.status(run_id) == "finished"
        assert "momentum: 0.95" in (store.folder(run_id) / "config.yaml").read_text()
    wait_until(lambda: not held(store))
