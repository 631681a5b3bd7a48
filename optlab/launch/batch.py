"""Batches of runs for SLURM: written before they are submitted, so that no submission is lost.

``runs/slurm/<batch>/`` holds ``batch.json`` (which task of the job array trains which runs, and
with what), the job script, ``submitted.json`` (the number that SLURM gave it) and a log per job.
``runs/<id>/slurm.json`` names the batch, then the job, that a run belongs to. A launch that dies
between the two leaves a batch without a number; the next launch finds its job by its name.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..config import RuntimeConfig, Settings, TrackingConfig
from ..errors import ConfigError
from ..store import RunStore, read_if_there, write_json

FOLDER = "slurm"  # below the root of the run store


@dataclass(frozen=True)
class Batch:
    """One job array: ``tasks[k]`` holds the ids of the runs that its task ``k`` trains."""

    name: str  # also the job's name in SLURM
    sweep: str
    command: str  # that launched it, after ``python launch.py -m``
    store: str  # the run store's folder
    code: str  # folder of the code that the jobs run from
    tasks: tuple[tuple[str, ...], ...]
    settings: Settings
    side_by_side: int
    gpus_per_run: int
    save_within: float  # seconds between the signal to stop and the end
    max_requeues: int

    @property
    def folder(self) -> Path:
        return batch_folder(RunStore(Path(self.store)), self.name)

    @property
    def file(self) -> Path:
        return self.folder / "batch.json"

    def log(self, job: str) -> Path:
        """The log of one job, such as ``35_0``; what ``job.py`` and the run's own code print."""
        return self.folder / f"{job}_0_log.out"


def batch_folder(store: RunStore, name: str) -> Path:
    return store.root / FOLDER / name


def new_name(sweep: str) -> str:
    """A name that no other batch has, and that says whose it is in ``squeue``."""
    return f"{sweep.replace('/', '-')}.{uuid.uuid4().hex[:8]}"


def write_batch(batch: Batch) -> None:
    batch.folder.mkdir(parents=True, exist_ok=True)
    write_json(batch.file, asdict(batch))


def read_batch(path: Path) -> Batch:
    """The batch of a ``batch.json``.

    Raises:
        ConfigError: the file is not there, or holds something else.
    """
    content = read_if_there(path)
    if content is None:
        raise ConfigError(f"{path} cannot be read: is the folder shared with this machine?")
    settings = Settings(
        RuntimeConfig(**content["settings"]["runtime"]),
        TrackingConfig(**content["settings"]["tracking"]),
    )
    tasks = tuple(tuple(ids) for ids in content["tasks"])
    return Batch(**{**content, "settings": settings, "tasks": tasks})


def note(store: RunStore, run_id: str) -> dict[str, Any] | None:
    """What ``slurm.json`` says of the submission of a run; None if it was never submitted."""
    return read_if_there(store.folder(run_id) / "slurm.json")


def note_intent(batch: Batch) -> None:
    """Say in every run's folder that it is about to be submitted with ``batch``."""
    for ids in batch.tasks:
        for run_id in ids:
            _write_note(batch, run_id, ids, None)


def note_job(batch: Batch, array: str) -> None:
    """Say in every run's folder which job of the array ``array`` trains it."""
    write_json(batch.folder / "submitted.json", {"job": array})
    for index, ids in enumerate(batch.tasks):
        for run_id in ids:
            _write_note(batch, run_id, ids, f"{array}_{index}")


def note_withdrawn(batch: Batch) -> None:
    """Undo ``note_intent`` for a batch that SLURM has refused."""
    store = RunStore(Path(batch.store))
    for ids in batch.tasks:
        for run_id in ids:
            if owns(batch, run_id):
                (store.folder(run_id) / "slurm.json").unlink(missing_ok=True)


def owns(batch: Batch, run_id: str) -> bool:
    """Whether ``batch`` is the last one that the run was submitted with."""
    said = note(RunStore(Path(batch.store)), run_id)
    return said is None or said.get("batch") == batch.name


def note_requeues(batch: Batch, ids: Iterable[str], job: str, count: int) -> None:
    """Count the restarts of a job in the folders of its runs."""
    for run_id in ids:
        _write_note(batch, run_id, tuple(ids), job, count)


def _write_note(
    batch: Batch, run_id: str, packed: Sequence[str], job: str | None, requeues: int = 0
) -> None:
    said = {
        "job": job,
        "batch": batch.name,
        "submitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sweep": batch.sweep,
        "log": str(batch.log(job)) if job else None,
        "packed": len(packed),
        "gpus": batch.gpus_per_run,
        "requeues": requeues,
    }
    # Not synced to disk: a thousand of them would take long, and after a crash of the whole machine
    # the batch still knows.
    write_json(RunStore(Path(batch.store)).folder(run_id) / "slurm.json", said, sync=False)
