"""Runs in the queue that an edit has taken out of their sweep: seen, announced and cancelled."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm import cancel_batches
from support import TINY

from ..conftest import Command
from .conftest import SMALL, Wait

SWEEP = """
fixed: {model.width: 8, model.depth: 1, train.steps: %d, train.batch_size: 16}
grid:
  - {optimizer: [adamw, scion], optimizer.lr: [0.01]}
seeds: 2
"""
Ask = Callable[..., str]


@pytest.fixture
def root(slurm: None, clone: Path) -> Iterator[Path]:
    """A copy of the code with the sweep ``x``, four runs of which are held in the queue."""
    (clone / "sweeps" / "x.yaml").write_text(SWEEP % 6)
    yield clone
    cancel_batches(clone)


@pytest.fixture
def ask(root: Path, command: Command) -> Ask:
    def call(*words: str) -> str:
        done = command(*words, root=root)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return call


def launch(*more: str) -> list[str]:
    hold = "hydra.launcher.additional={hold:true}"
    return ["launch.py", "-m", "sweeps=x", "hydra/launcher=slurm", *SMALL, hold, *more]


def queued(root: Path) -> set[str]:
    """The jobs of all batches of the store."""
    names = ",".join(path.name for path in (root / "runs" / "slurm").iterdir())
    done = subprocess.run(
        ["squeue", "-h", "-r", f"--name={names}", "-o", "%i"], capture_output=True, text=True
    )
    return set(done.stdout.split())


def test_jobs_of_before_an_edit_are_seen_and_can_be_cancelled(
    root: Path, ask: Ask, wait_until: Wait
) -> None:
    ask(*launch())
    before = queued(root)
    assert len(before) == 4
    assert "Also in the queue" not in ask("-m", "optlab", "status", "x")
    (root / "sweeps" / "x.yaml").write_text(SWEEP % 8)
    line = "Also in the queue: 4 runs of x in 4 jobs, with a config that the sweep no longer has"

    told = ask("-m", "optlab", "status", "x", "--runs")
    assert line in told and "4 missing" not in told and "optlab cancel x --former" in told
    assert all(job in told for job in before)
    listed = json.loads(ask("-m", "optlab", "status", "x", "--json"))["former"]
    assert {each["job"] for each in listed} == before
    assert {each["standing"] for each in listed} == {"queued"}
    assert line in ask("-m", "optlab", "plan", "x")
    assert line in ask(*launch("hydra.launcher.dry_run=true"))
    assert line in ask(*launch())  # and does not refuse
    after = queued(root) - before
    assert len(after) == 4

    scions = json.loads(
        ask("-m", "optlab", "cancel", "x", "--method", "scion", "--former", "--yes", "--json")
    )
    assert len(scions["jobs"]) == 2 and set(scions["jobs"]) <= before
    assert len(scions["former"]) == 2
    wait_until(lambda: len(queued(root)) == 6)
    name = next(each["name"] for each in listed if each["name"].startswith("adamw"))
    both = json.loads(ask("-m", "optlab", "cancel", "x", "--run", name, "--yes", "--json"))
    assert len(both["jobs"]) == 2 and len(set(both["jobs"]) & before) == 1
    told = ask("-m", "optlab", "cancel", "x", "--yes")
    assert "1 of them with a config that the sweep no longer has" in told
    wait_until(lambda: not queued(root))
    assert "Also in the queue" not in ask("-m", "optlab", "status", "x")
    assert "lost" not in ask("-m", "optlab", "status", "x")


def test_without_a_batch_of_the_sweep_slurm_is_not_asked(
    store, optlab, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optlab.launch import standing

    monkeypatch.setattr(standing, "alive", lambda: pytest.fail("asked"))
    (store.root / "slurm" / "other.12345678").mkdir(parents=True)
    assert optlab("status", *TINY, "seed=0").code == 0
