"""The run store: a folder per run, read back as tidy tables.

``runs/<id>/`` holds ``config.yaml`` (resolved, frozen at launch), ``job.json`` (labels),
``records.jsonl`` (one line per record), ``diagnostics.jsonl`` (numbers per parameter role),
``checkpoint.pt`` (while unfinished), ``log.txt``, ``meta.json`` (provenance), ``norms.json`` (which
norm each parameter got), ``wandb.json`` (what W&B has of it), ``failure.json`` (why it failed,
until it is run again), ``preempted.json`` (where it was stopped, until it goes on) and
``result.json``, written last: its existence is "done". ``lock`` is held by whoever writes the run,
and ``owner.json`` says who that is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from omegaconf import OmegaConf
from yaml import YAMLError

from .certify import Certified, why_not
from .config import Run
from .errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd  # imported where tables are made: workers need none of it

Status = Literal["finished", "diverged", "failed", "preempted", "running", "missing"]
DONE = ("finished", "diverged")

_LEASE_WAIT = 0.2  # seconds
TAKEOVER = 60.0  # seconds that a run is waited for which an earlier attempt still holds
_RESERVE = 64 * 1024  # bytes kept back in a run's folder, so that a full disk can still be reported

RUN_COLUMNS = (
    "run",  # id, 12 hex digits
    "method",  # option of the group optimizer
    "lr",  # peak learning rate
    "seed",
    "model",  # options of the other groups
    "dataset",
    "norms",  # '' where a method has none
    "schedule",
    "steps",  # planned
    "outcome",  # Status
    "cause",  # of a divergence or a failure, else ''
    "step",  # last recorded
    "initial_loss",  # validation loss at step 0
    "final_loss",  # validation loss of the last full evaluation
    "final_train_loss",  # mean over the steps since the record before
    "accuracy",  # of the last full evaluation
    "chance_loss",  # of a constant prediction
    "at_chance",  # finished, but no better than a constant prediction
    "diverged_at",  # step
    "weights_fingerprint",  # of the initial weights
    "batch_fingerprint",  # of the first batch
    "certified_by",  # id of the run that this one, not trained, would repeat bit by bit; else ''
    "capped_steps",  # steps whose size was lr itself, the cap; NaN where no rule truncates it at lr
    "unit",  # of the losses; none where a run has no result
)
RECORD_COLUMNS = (
    "run",
    "step",  # optimizer steps taken
    "samples",  # samples seen
    "seconds",  # of training, evaluation excluded
    "train_loss",  # mean over the steps since the record before, nats; NaN at step 0
    "val_loss",  # over the whole validation set, nats
    "lr",  # after the schedule
    "step_size",  # tau actually taken; lr where the method has no rule
    "dual_norm",  # of the averaged gradient in the product norm; NaN where the method has none
    # share of the steps since the record before whose size was lr itself, the cap; NaN at step 0,
    # where no step was taken, and where the method has no rule that truncates the step at lr
    "capped",
)


@dataclass(frozen=True)
class Record:
    """What one full evaluation of a run saw."""

    step: int
    samples: int
    seconds: float  # of training, evaluation excluded
    train_loss: float
    val_loss: float
    lr: float
    step_size: float
    dual_norm: float
    capped: float = math.nan
    extra: dict[str, float] = field(default_factory=dict)  # e.g. accuracy


@dataclass(frozen=True)
class Result:
    """How a run ended; holds nothing that differs between two executions of the same run."""

    outcome: Literal["finished", "diverged"]
    cause: str
    step: int
    diverged_at: int | None
    initial_loss: float
    final_loss: float
    final_train_loss: float
    accuracy: float
    chance_loss: float
    at_chance: bool
    weights_fingerprint: str
    batch_fingerprint: str
    # Steps whose size was lr itself; null where no rule truncates the step at lr. With 0 no larger
    # lr would change a bit, if nothing else depends on it. Results from before it was counted have
    # no such key: a field that is added later has a default, and only such a field may be absent.
    capped_steps: int | None = None
    unit: str = "nats"  # of the losses


_KNOWN = {each.name for each in fields(Result)}
_REQUIRED = {each.name for each in fields(Result) if each.default is MISSING}


class Busy(Exception):
    """Another process writes this run."""


@dataclass(frozen=True)
class Owner:
    """Who writes a run: a process, and the job and its attempt where it is in one."""

    host: str
    pid: int
    job: str  # '' outside of a job
    attempt: int  # restarts of the job so far

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
        job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
        attempt = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        return cls(socket.gethostname(), os.getpid(), job, attempt)

    def succeeds(self, other: Owner) -> bool:
        """Whether this is a later attempt of the same job, so that the other is a leftover."""
        return bool(self.job) and self.job == other.job and self.attempt > other.attempt


class Lease:
    """The right to write a run, for as long as nobody has taken it over."""

    def __init__(self, path: Path, owner: Owner) -> None:
        self._path, self._owner = path, owner

    def claim(self) -> None:
        """Take the run over; its previous owner finds out before it writes again."""
        write_json(self._path, asdict(self._owner))

    def check(self) -> None:
        """Raise ``Busy`` if another process has taken the run over.

        A file and not the lock is asked: where locks do not reach across machines, or where this
        process was cut off for a while, it may hold a lock that is worth nothing.
        """
        now = recorded_owner(self._path)
        if now != self._owner:
            whose = f"process {now.pid} on {now.host}" if now else "another process"
            job = f" (job {now.job}, attempt {now.attempt})" if now and now.job else ""
            raise Busy(f"The run was taken over by {whose}{job}; this one writes no more.")


def recorded_owner(path: Path) -> Owner | None:
    """The owner that an ``owner.json`` names; None where there is none."""
    content = read_if_there(path)
    return Owner(**content) if content else None


class RunStore:
    """The runs below the folder ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, run_id: str) -> Path:
        return self.root / run_id

    def freeze(self, run: Run) -> None:
        """Write the run's config and labels; a queued run never reads the YAML files again."""
        folder = self.folder(run.id)
        folder.mkdir(parents=True, exist_ok=True)
        job = {"id": run.id, "name": run.name, "choices": dict(run.choices)}
        if self._frozen(run.id) != run:
            config = OmegaConf.create(dict(run.config))
            write_text(folder / "config.yaml", OmegaConf.to_yaml(config))
            write_json(folder / "job.json", job)

    def _frozen(self, run_id: str) -> Run | None:
        try:
            return self.load(run_id)
        except (ConfigError, OSError):
            return None

    def load(self, run_id: str) -> Run:
        """The frozen run of a folder.

        Raises:
            ConfigError: its config is not the one that the folder's name stands for.
        """
        folder = self.folder(run_id)
        try:
            config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
            choices = json.loads((folder / "job.json").read_text())["choices"]
            run = Run(config, choices)  # type: ignore[arg-type]
            if run.id == run_id:
                return run
        except (YAMLError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{folder} holds no readable run: {error}") from error
        raise ConfigError(
            f"{folder}/config.yaml was changed after the run was launched: it now has the id "
            f"{run.id}. Delete the folder and launch again."
        )

    def result(self, run_id: str) -> Result | None:
        """The result of a run that is done; None if it is not, or if the file is damaged."""
        content = read_if_there(self.folder(run_id) / "result.json")
        if content is None or not _REQUIRED <= set(content) <= _KNOWN:
            return None
        return Result(**content)

    def is_done(self, run_id: str) -> bool:
        return self.result(run_id) is not None

    def status(self, run_id: str) -> Status:
        """Where a run stands, read from its files and its lock alone."""
        result = self.result(run_id)
        if result is not None:
            return result.outcome
        folder = self.folder(run_id)
        if _is_locked(folder / "lock"):
            return "running"
        if (folder / "failure.json").exists() or (folder / "result.json").exists():
            return "failed"  # a result that cannot be read is none
        return "preempted" if (folder / "records.jsonl").exists() else "missing"

    @contextlib.contextmanager
    def lease(self, run_id: str, *, takeover: float = TAKEOVER) -> Iterator[Lease]:
        """The exclusive right to write a run; the system takes it back when the process ends.

        A requeued job takes a run over from what is left of its attempt before, for which it waits
        ``takeover`` seconds at most: that one notices, and ends without writing.

        Raises:
            Busy: another process has it.
        """
        owner = Owner.here()
        path = self.folder(run_id) / "owner.json"
        lease = Lease(path, owner)
        with (self.folder(run_id) / "lock").open("a+") as file:
            # Held for good, or for a moment by somebody's look at the status.
            if not _lock_within(file, _LEASE_WAIT):
                before = recorded_owner(path)
                if before is None or not owner.succeeds(before):
                    file.seek(0)
                    raise Busy(f"Run {run_id} is being written by process {file.read()}.")
                lease.claim()
                _lock_within(file, takeover)  # a leftover that hangs writes nothing either
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            lease.claim()
            yield lease

    def reserve(self, run_id: str) -> None:
        """Keep some bytes of disk back, for the report that the disk is full."""
        write_bytes(self.folder(run_id) / "reserve", b"\0" * _RESERVE)

    def append(self, run_id: str, record: Record) -> None:
        """Add one line to the run's records."""
        row = asdict(record)
        row.update(row.pop("extra"))
        with (self.folder(run_id) / "records.jsonl").open("a") as file:
            file.write(json.dumps(_encode(row)) + "\n")

    def records(self, run_id: str) -> list[dict[str, Any]]:
        """The run's records; a last line torn by a kill is left out."""
        path = self.folder(run_id) / "records.jsonl"
        if not path.exists():
            return []
        try:
            lines = path.read_text().split("\n")
            return [decode(json.loads(line)) for line in lines[:-1]]
        except (ValueError, AttributeError) as error:
            raise ConfigError(
                f"{path} is damaged ({error}). Delete the folder {path.parent.name} and launch "
                "again to train that run anew."
            ) from error

    def append_diagnostics(self, run_id: str, row: Mapping[str, Any]) -> None:
        """Add one line to the run's diagnostics; ``step`` is among its keys."""
        with (self.folder(run_id) / "diagnostics.jsonl").open("a") as file:
            file.write(json.dumps(_encode(row)) + "\n")

    def diagnostics(self, run_id: str) -> list[dict[str, Any]]:
        """The run's diagnostics by step; a last line torn by a kill is left out."""
        try:
            lines = (self.folder(run_id) / "diagnostics.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        return [decode(json.loads(line)) for line in lines[:-1]]

    def keep_diagnostics(self, run_id: str, step: int) -> None:
        """Drop the diagnostics of the steps after ``step``: the run goes on from there."""
        path = self.folder(run_id) / "diagnostics.jsonl"
        if path.exists():
            kept = [row for row in self.diagnostics(run_id) if row["step"] <= step]
            write_text(path, "".join(json.dumps(_encode(row)) + "\n" for row in kept))

    def records_digest(self, run_id: str, count: int) -> str:
        """SHA-256 of the first ``count`` records, for a checkpoint to know them by."""
        lines = (self.folder(run_id) / "records.jsonl").read_text().split("\n")[:count]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def keep_records(self, run_id: str, count: int) -> None:
        """Drop all records but the first ``count``: the run goes on from before the others."""
        path = self.folder(run_id) / "records.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        if len(lines) < count:
            raise ValueError(f"{path} holds {len(lines)} records, and the checkpoint {count}.")
        write_text(path, "".join(f"{line}\n" for line in lines[:count]))

    def finish(self, run_id: str, result: Result) -> None:
        """Write the result, last of the run's files and by rename; clear what resuming needs."""
        folder = self.folder(run_id)
        write_json(folder / "result.json", asdict(result))
        for name in ("checkpoint.pt", "failure.json", "preempted.json", "reserve"):
            (folder / name).unlink(missing_ok=True)

    def preempt(self, run_id: str, step: int) -> None:
        """Note that a run was saved and stopped on purpose, at ``step``."""
        write_json(self.folder(run_id) / "preempted.json", {"step": step})

    def begin(self, run_id: str) -> None:
        """Clear what the attempt before has left to say, and keep back the reserve."""
        for name in ("failure.json", "preempted.json"):
            (self.folder(run_id) / name).unlink(missing_ok=True)
        self.reserve(run_id)

    def fail(self, run_id: str, cause: str, detail: str) -> None:
        """Mark a run as failed; it will be tried again when it is launched again."""
        folder = self.folder(run_id)
        (folder / "reserve").unlink(missing_ok=True)  # makes room on a full disk
        write_json(folder / "failure.json", {"cause": cause, "detail": detail})

    def failure(self, run_id: str) -> dict[str, str] | None:
        """Cause and detail of a failed run, else None."""
        return read_if_there(self.folder(run_id) / "failure.json")

    def runs_table(self, runs: Sequence[Run], certified: Sequence[Certified] = ()) -> pd.DataFrame:
        """One row per run, with the columns ``RUN_COLUMNS``; runs that do not exist are missing.

        A ``certified`` run that was not trained has the outcome and the numbers of the one that it
        would repeat, and that run's id in ``certified_by``; it is missing where that one certifies
        it no longer.
        """
        rows = [self.row(run) for run in runs]
        return runs_frame([*rows, *(self.certified_row(each) for each in certified)])

    def certified_row(self, certified: Certified) -> dict[str, Any]:
        """As ``row``, of a run that is certified."""
        row, result = self.row(certified.run), self.result(certified.by.id)
        if self.is_done(certified.run.id) or why_not(certified.by, result, certified.run):
            return row
        assert result is not None
        return {**row, **asdict(result), "certified_by": certified.by.id}

    def row(self, run: Run) -> dict[str, Any]:
        """What is known of one run, by those of ``RUN_COLUMNS`` that it has.

        One without a result whose records are damaged counts as failed.
        """
        row: dict[str, Any] = {
            "run": run.id,
            "certified_by": "",
            "method": run.method,
            "lr": run.lr,
            "seed": run.seed,
            "model": run.choices["model"],
            "dataset": run.choices["dataset"],
            "norms": run.choices.get("optimizer/norms", ""),
            "schedule": run.choices["schedule"],
            "steps": run.train.steps,
            "outcome": self.status(run.id),
        }
        result = self.result(run.id)
        if result is not None:
            return {**row, **asdict(result)}
        row.update({"cause": "", "at_chance": False, "weights_fingerprint": ""})
        row["batch_fingerprint"] = ""
        failure = self.failure(run.id)
        if row["outcome"] == "failed":
            row["cause"] = failure["cause"] if failure else "result.json is damaged"
        try:
            records = self.records(run.id)
            ends = {"step": records[-1]["step"], "initial_loss": records[0]["val_loss"]}
        except IndexError:  # none yet
            return row
        except (ConfigError, KeyError):
            return {**row, "outcome": "failed", "cause": "records.jsonl is damaged"}
        return {**row, **ends}

    def records_table(self, runs: Sequence[Run]) -> pd.DataFrame:
        """One row per record, with the columns ``RECORD_COLUMNS`` and the extra metrics."""
        return records_frame(
            [{"run": run.id, **record} for run in runs for record in self.records(run.id)]
        )


def runs_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of runs whose rows are as ``RunStore.row`` gives them, wherever they come from."""
    import pandas as pd

    return pd.DataFrame(rows, columns=list(RUN_COLUMNS)).astype({"capped_steps": float})


def records_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of records, each with the id of its run, wherever they come from."""
    import pandas as pd

    table = pd.DataFrame(rows)
    extra = [name for name in table.columns if name not in RECORD_COLUMNS]
    return table.reindex(columns=[*RECORD_COLUMNS, *extra])


def check_writable(folder: Path, key: str) -> None:
    """Raise unless files can be written below ``folder``, which the setting ``key`` names."""
    probe = folder / f".write-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"The folder {folder} cannot be written ({os.strerror(error.errno or 0)}). "
            f"Choose one that can: {key}=/path/to/folder."
        ) from error


def _is_locked(path: Path) -> bool:
    try:
        with path.open("r") as file:
            return not _lock(file)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _lock_within(file: IO[str], seconds: float) -> bool:
    """Take the lock of an open file as soon as it is free."""
    deadline = time.monotonic() + seconds
    while not _lock(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _lock(file: IO[str]) -> bool:
    """Take the lock of an open file, unless another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file so that it is either whole or not there: temporary file, sync, rename.

    Without ``sync`` this holds when the process dies, but not when the machine does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str, *, sync: bool = True) -> None:
    write_bytes(path, content.encode(), sync=sync)


def write_json(path: Path, content: Mapping[str, Any], *, sync: bool = True) -> None:
    write_text(path, json.dumps(_encode(content), indent=1) + "\n", sync=sync)


def read_json(path: Path) -> dict[str, Any]:
    return decode(json.loads(path.read_text()))


def read_if_there(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None where there is none, or none that can be read."""
    try:
        return read_json(path)
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError):
        return None


def _encode(row: Mapping[str, Any]) -> dict[str, Any]:
    """Non-finite numbers as words, since JSON has none."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def decode(row: Mapping[str, Any]) -> dict[str, Any]:
    words = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
    return {
        key: words.get(value, value) if isinstance(value, str) else value
        for key, value in row.items()
    }
