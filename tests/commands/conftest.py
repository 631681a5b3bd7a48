"""Fixtures of the tests around the queue: a real SLURM, a machine without one, a store to fill."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from optlab.__main__ import main
from optlab.store import RunStore
from optlab.sweep import Sweep, ad_hoc
from support import shrunk

# Settings of jobs so small that many fit on a small cluster.
SMALL = tuple(
    f"hydra.launcher.{setting}" for setting in ("gpus_per_run=0", "cpus=1", "memory=100M")
)
Submit = Callable[..., str]
Wait = Callable[[Callable[[], Any]], Any]


@pytest.fixture
def submit(slurm: None, tmp_path: Path) -> Iterator[Submit]:
    """``sbatch OPTIONS --wrap SCRIPT``; the id of the job, which ends with the test."""
    jobs = []

    def call(script: str, *options: str) -> str:
        output = () if any("--output" in option for option in options) else ("--output=/dev/null",)
        words = ["sbatch", "--parsable", *output, *options, f"--wrap={script}"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        jobs.append(done.stdout.strip())
        return jobs[-1]

    yield call
    for job in jobs:
        subprocess.run(["scancel", "--full", job], capture_output=True)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine on which no command of SLURM is installed."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python3").symlink_to(shutil.which("python3") or "/usr/bin/python3")
    monkeypatch.setenv("PATH", str(programs))


@pytest.fixture
def unanswering(slurm: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands of a real SLURM whose controller is down."""
    shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True).stdout
    (path,) = re.findall(r"^SLURM_CONF\s*= (.+)$", shown, re.MULTILINE)
    settings, count = re.subn(r"(?im)^(SlurmctldPort=).*$", r"\g<1>1", Path(path).read_text())
    assert count == 1
    (tmp_path / "down.conf").write_text(f"{settings}\nMessageTimeout=2\n")  # how long it tries
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "down.conf"))


@pytest.fixture
def wait_until() -> Wait:
    """The first value of a condition that is true."""

    def wait(condition: Callable[[], Any], timeout: float = 60) -> Any:
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, "it did not happen"
            time.sleep(0.05)
        return value

    return wait


@dataclass(frozen=True)
class Told:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Optlab = Callable[..., Told]


@pytest.fixture
def optlab(store: RunStore, capsys: pytest.CaptureFixture[str]) -> Optlab:
    """``python -m optlab COMMAND ...`` in this process, about the runs of ``store``.

    ``SWEEP`` stands for the words of the sweep that ``sweep`` holds.
    """

    def call(*words: str) -> Told:
        given = [part for word in words for part in (SWEEP if word == "SWEEP" else [word])]
        capsys.readouterr()
        code = main([*given, f"runtime.runs={store.root}"])
        printed = capsys.readouterr()
        return Told(code, printed.out, printed.err)

    return call


SWEEP = shrunk("optimizer=adamw,scion", "optimizer.lr=0.01,0.1", "seed=0,1")


@pytest.fixture
def sweep() -> Sweep:
    """Two methods, two learning rates, two seeds: eight tiny runs."""
    return ad_hoc(SWEEP)
