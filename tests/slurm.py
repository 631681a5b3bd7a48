"""A real SLURM for tests: sweeps submitted to it, and what it says of them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from optlab.launch.batch import note
from optlab.launch.launch import Report
from optlab.launch.slurm import launch_slurm, options
from optlab.paths import CONF
from optlab.store import RunStore
from optlab.sweep import Sweep, ad_hoc
from support import shrunk

T = TypeVar("T")

NODES = 2
_DEFAULTS = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
# Small jobs, so that many tests may run on one small cluster at the same time.
SMALL = {"gpus_per_run": 0, "cpus": 1, "memory": "100M", "partition": "test"}


def wait_until(condition: Callable[[], T], timeout: float = 240) -> T:
    """The first value of ``condition`` that is true."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)
    return value


def ask(*command: str) -> str:
    """What a command prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass
class Cluster:
    """Submits sweeps into stores below a folder; cancels at the end what is left of them."""

    folder: Path
    batches: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def sweep(self, *overrides: str) -> Sweep:
        return ad_hoc(shrunk(*overrides))

    def store(self, name: str = "runs") -> RunStore:
        return RunStore(self.folder / name)

    def submit(self, sweep: Sweep, store: RunStore, **settings: Any) -> Report:
        """Launch in this process, with small jobs unless ``settings`` say otherwise."""
        known = {key: value for key, value in _DEFAULTS.items() if key != "_target_"}
        chosen = options(
            {**known, **SMALL, **settings}, [f"hydra.launcher.{key}=" for key in settings]
        )
        return launch_slurm(sweep, store, self.said.append, chosen)

    def job(self, store: RunStore, run_id: str) -> str:
        """The job that a run was given to last."""
        said = note(store, run_id)
        assert said and said["job"], said
        return said["job"]

    def state(self, job: str) -> str:
        """SLURM's last word on a job, such as COMPLETED; '' as long as it has none."""
        words = ask("sacct", "-X", "-n", "-P", f"--jobs={job}", "--format=State").split("\n")
        return words[0].split(" ")[0]

    def ended(self, job: str) -> str:
        """Wait for the end of a job; its state."""
        busy = ("", "PENDING", "RUNNING", "REQUEUED", "COMPLETING")
        wait_until(lambda: job not in self.alive())
        return wait_until(lambda: (state := self.state(job)) not in busy and state)

    def alive(self) -> list[str]:
        return ask("squeue", "--noheader", "--array", "--format=%i").split()

    def log(self, store: RunStore, run_id: str) -> str:
        """The log of a run's job."""
        said = note(store, run_id)
        path = Path(said["log"]) if said else None
        return path.read_text() if path and path.exists() else ""

    def training(self, store: RunStore, run_id: str, records: int = 2) -> None:
        """Wait until a run is in the middle of its training."""
        wait_until(lambda: len(store.records(run_id)) >= records)
        assert not store.is_done(run_id), "it is too short for this test"

    def done(self, store: RunStore, sweep: Sweep) -> None:
        """Wait until all runs of a sweep are done."""
        wait_until(lambda: all(store.is_done(run.id) for run in sweep.runs))


def cancel_batches(folder: Path) -> None:
    """Cancel the jobs of every batch below ``folder``."""
    for path in folder.glob("**/slurm/*"):  # scancel takes one name at a time
        subprocess.run(["scancel", f"--name={path.name}"], check=True)


def revive() -> None:
    """Take nodes back into service that SLURM drained, as it does where a job's end takes long."""
    drained = ask("sinfo", "-h", "-N", "-t", "drain", "-o", "%N").split()
    for node in sorted(set(drained)):
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=False)


def lacking() -> str:
    """What this machine lacks for these tests; '' if nothing."""
    if not shutil.which("sinfo"):
        return "no SLURM here (sinfo: not found)"
    done = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True)
    if done.returncode:
        return "no SLURM answers here (sinfo fails)"
    nodes = len(set(done.stdout.split()))
    if nodes < NODES:
        return f"the SLURM here has {nodes} nodes, and these tests need {NODES}"
    return ""
