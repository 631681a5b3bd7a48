"""Batches of runs for SLURM: written before they are submitted, so that no submission is lost.

``runs/slurm/<batch>/`` holds ``batch.json`` (which task of the job array trains which runs, and
with what), the job script, ``submitted.json`` (the number that SLURM gave it) and a log per job.
``runs/<id>/slurm.json`` names the batch, then the job, that a run belongs to. A launch that dies
between the two leaves a batch without a number; the next launch finds its job by its name.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..config import RuntimeConfig, Settings, TrackingConfig
from ..errors import ConfigError
from ..store import RunStore, read_if_there, write_json
from .queue import array_named

FOLDER = "slurm"  # below the root of the run store


@dataclass(frozen=True)
class Batch:
    """One job array: ``tasks[k]`` holds the ids of the runs that its task ``k`` trains."""

    name: str  # also the job's name in SLURM
    sweep: str
    store: str  # the run store's folder
    code: str  # folder of the code that the jobs run from
    tasks: tuple[tuple[str, ...], ...]
    settings: Settings
    side_by_side: int
    gpus_per_run: int
    save_within: float  # seconds between the signal to stop and the end
    max_requeues: int
    words: tuple[str, ...] = ()  # hydra.launcher.* as the command line stated them
    stack: int | str = 1  # runs of one kind that a task trains together at most, or auto

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
    return f"{stem(sweep)}{uuid.uuid4().hex[:8]}"


def stem(sweep: str) -> str:
    """What the names of all batches of a sweep begin with; another sweep's may do so, too."""
    return f"{sweep.replace('/', '-')}."


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
    words = tuple(content["words"])
    return Batch(**{**content, "settings": settings, "tasks": tasks, "words": words})


def note(store: RunStore, run_id: str) -> dict[str, Any] | None:
    """What ``slurm.json`` says of the submission of a run; None if it was never submitted."""
    return read_if_there(store.folder(run_id) / "slurm.json")


def note_intent(batch: Batch) -> None:
    """Say in every run's folder that it is about to be submitted with ``batch``."""
    for ids in batch.tasks:
        for run_id in ids:
            said = {
                "job": "",
                "batch": batch.name,
                "submitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "sweep": batch.sweep,
                "log": "",
                "packed": len(ids),
                "gpus": batch.gpus_per_run,
                "requeues": 0,
                "words": list(batch.words),
            }
            _write(_note_file(batch, run_id), said)


def note_job(batch: Batch, array: str) -> None:
    """Say in every run's folder which job of the array ``array`` trains it."""
    write_json(batch.folder / "submitted.json", {"job": array})
    for index, ids in enumerate(batch.tasks):
        job = f"{array}_{index}"
        for run_id in ids:
            _change(batch, run_id, job=job, log=str(batch.log(job)))


def note_requeues(batch: Batch, ids: Sequence[str], job: str, count: int) -> None:
    """Count the restarts of a job in the folders of its runs."""
    for run_id in ids:
        _change(batch, run_id, job=job, log=str(batch.log(job)), requeues=count)


def note_cancelled(store: RunStore, run_ids: Iterable[str], job: str) -> None:
    """Say in the runs' folders that their job was cancelled, until they are submitted again.

    SLURM's accounting need not know a task that was cancelled before it started.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for run_id in run_ids:
        path = store.folder(run_id) / "slurm.json"
        said = read_if_there(path)
        if said is not None and said.get("job") == job:
            _write(path, {**said, "cancelled": now}, path.stat().st_mtime_ns)


def note_withdrawn(batch: Batch) -> None:
    """Undo ``note_intent`` for a batch that SLURM has refused."""
    for ids in batch.tasks:
        for run_id in ids:
            said = note(RunStore(Path(batch.store)), run_id)
            if said is not None and said.get("batch") == batch.name:
                _note_file(batch, run_id).unlink(missing_ok=True)


def owns(batch: Batch, run_id: str) -> bool:
    """Whether ``batch`` is the last one that the run was submitted with."""
    said = note(RunStore(Path(batch.store)), run_id)
    return said is None or said.get("batch") == batch.name


def adopt(run_ids: Iterable[str], store: RunStore, say: Callable[[str], None]) -> None:
    """Find the jobs of batches whose launch was killed before it could write them down.

    A batch without a job was never submitted; should its job turn up later, it leaves the runs to
    the batch that they were submitted with since.
    """
    notes = [note(store, run_id) for run_id in run_ids]
    cut_short = {said["batch"] for said in notes if said and said.get("batch") and not said["job"]}
    for name in sorted(cut_short):
        batch = read_batch(batch_folder(store, name) / "batch.json")
        written = read_if_there(batch.folder / "submitted.json")
        array = written["job"] if written else array_named(name)
        if array:
            say(f"Job {array} ({name}) was submitted by a launch that did not end; it is kept.")
            note_job(batch, array)


def _change(batch: Batch, run_id: str, **changes: Any) -> None:
    """Change a run's note, if the run is still with this batch.

    Its time stays the time of the submission: what is newer than that has come of it.
    """
    path = _note_file(batch, run_id)
    said = read_if_there(path)
    if said is not None and said.get("batch") == batch.name:
        stamp = path.stat().st_mtime_ns
        _write(path, {**said, **changes}, stamp)


def _write(path: Path, said: dict[str, Any], stamp: int | None = None) -> None:
    # Not synced to disk: a thousand of them would take long, and after a crash of the whole machine
    # the batch still knows.
    write_json(path, said, sync=False)
    if stamp is not None:
        os.utime(path, ns=(stamp, stamp))


def _note_file(batch: Batch, run_id: str) -> Path:
    return RunStore(Path(batch.store)).folder(run_id) / "slurm.json"
