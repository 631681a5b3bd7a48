"""The life of one run: build, train, record, checkpoint, resume, end."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

import torch

from . import provenance
from .build import batch_fingerprint, build, choose_device, weights_fingerprint
from .card import norm_card
from .config import Run, Settings
from .diagnostics import Gauge, due_every
from .optim.memory import keep_freed_memory
from .store import Busy, Record, Result, RunStore, write_json
from .tracking.mirror import Mirror
from .train import Parts, Progress, random_states, set_random_states, train


@dataclass(frozen=True)
class Outcome:
    """What one attempt at a run came to."""

    status: Literal["finished", "diverged", "failed", "preempted", "busy"]
    cause: str = ""
    disk_full: bool = False


class StopFlag:
    """Set by a signal; the run saves and stops at the next step boundary."""

    def __init__(self) -> None:
        self.is_set = False

    def listen(self, *signals: signal.Signals) -> None:
        """Let these signals set the flag instead of ending the process."""
        for number in signals:
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.is_set = True


class UnusableCheckpoint(Exception):
    """A checkpoint that is torn, corrupt, or does not fit the run."""


def run_one(
    run_id: str,
    store: RunStore,
    settings: Settings,
    *,
    stop: StopFlag,
    report: Callable[[Record], None],
) -> Outcome:
    """Train the frozen run to its end, from its checkpoint where it has one.

    Errors of the run itself do not raise: they end it as failed, with the traceback in
    ``log.txt`` and ``failure.json``.
    """
    try:
        with store.lease(run_id):
            return _attempt(run_id, store, settings, stop, report)
    except Busy as error:
        return Outcome("busy", str(error))
    except OSError as error:  # the folder itself cannot be used
        return Outcome("failed", f"{type(error).__name__}: {error}", error.errno == errno.ENOSPC)


def _attempt(
    run_id: str,
    store: RunStore,
    settings: Settings,
    stop: StopFlag,
    report: Callable[[Record], None],
) -> Outcome:
    result = store.result(run_id)
    if result is not None:  # another process finished it in the meantime
        return Outcome(result.outcome, result.cause)
    try:
        (store.folder(run_id) / "failure.json").unlink(missing_ok=True)
        store.reserve(run_id)
        return _Attempt(store.load(run_id), store, settings).go(stop, report)
    except Exception as error:  # a failing run must not end the sweep; it is marked and told
        cause = f"{type(error).__name__}: {error}"
        store.fail(run_id, cause, traceback.format_exc())
        _log(store.folder(run_id), traceback.format_exc())
        return Outcome("failed", cause, getattr(error, "errno", None) == errno.ENOSPC)


class _Attempt:
    """One execution of a run whose lease is held."""

    def __init__(self, run: Run, store: RunStore, settings: Settings) -> None:
        self.run, self.store, self.settings = run, store, settings
        self.folder = store.folder(run.id)
        self.checkpoint = self.folder / "checkpoint.pt"

    def go(self, stop: StopFlag, report: Callable[[Record], None]) -> Outcome:
        torch.set_num_threads(self.settings.runtime.threads)
        keep_freed_memory()
        parts = build(self.run, choose_device(self.settings.runtime.device))
        prints = weights_fingerprint(parts.model), batch_fingerprint(parts.data.train(0))
        parts, progress = self._resume(parts)
        self._write_meta(parts, prints, progress)
        mirror = Mirror.start(self.run, self.store, self.settings.tracking)
        try:
            outcome = self._train(parts, progress, mirror, stop, report)
            if outcome is None:
                outcome = self._finish(parts, progress, prints, mirror)
        except BaseException as error:
            mirror.finish("failed", f"{type(error).__name__}: {error}")
            raise
        return outcome

    def _train(
        self,
        parts: Parts,
        progress: Progress,
        mirror: Mirror,
        stop: StopFlag,
        report: Callable[[Record], None],
    ) -> Outcome | None:
        """Train to the end (None) or to a stop, saving on the way."""
        saved = time.monotonic()
        every = self.settings.tracking.diagnostics_every
        due = due_every(every, self.run.train.eval_every, self.run.train.steps)
        gauge = Gauge(parts.optimizer, due)
        for record in train(parts, self.run.train, progress, gauge):
            self._keep(record, gauge.take(), mirror, report)
            if progress.finished:
                break
            due = time.monotonic() - saved > self.settings.runtime.checkpoint_every
            if stop.is_set or due:
                self._save(parts, progress)
                saved = time.monotonic()
            if stop.is_set:
                self._log(f"Stopped by a signal at step {progress.step}; saved.")
                mirror.finish("preempted")
                return Outcome("preempted", f"stopped at step {progress.step}")
        return None

    def _keep(
        self,
        record: Record | None,
        diagnostics: dict[str, Any],
        mirror: Mirror,
        report: Callable[[Record], None],
    ) -> None:
        """Keep what a step boundary has brought, if anything."""
        if diagnostics:
            self.store.append_diagnostics(self.run.id, diagnostics)
        if record is not None:
            self.store.append(self.run.id, record)
        mirror.log(record, diagnostics)
        if record is not None:
            report(record)

    def _finish(
        self, parts: Parts, progress: Progress, prints: tuple[str, str], mirror: Mirror
    ) -> Outcome:
        last = self.store.records(self.run.id)[-1]
        outcome = "diverged" if progress.cause else "finished"
        result = Result(
            outcome=outcome,
            cause=progress.cause,
            step=progress.step,
            diverged_at=progress.step if progress.cause else None,
            initial_loss=progress.initial_loss,
            final_loss=last["val_loss"],
            final_train_loss=last["train_loss"],
            accuracy=last.get("accuracy", float("nan")),
            chance_loss=parts.data.chance_loss,
            at_chance=outcome == "finished" and not last["val_loss"] < parts.data.chance_loss,
            weights_fingerprint=prints[0],
            batch_fingerprint=prints[1],
        )
        self._log(f"{outcome} at step {progress.step}. {progress.cause}".strip())
        self.store.finish(self.run.id, result)
        mirror.finish(outcome)
        return Outcome(outcome, progress.cause)

    def _resume(self, parts: Parts) -> tuple[Parts, Progress]:
        """Parts and progress of the checkpoint; those of a start where there is no usable one."""
        if not self.checkpoint.exists():
            self.store.keep_records(self.run.id, 0)
            self.store.keep_diagnostics(self.run.id, 0)
            return parts, Progress()
        try:
            progress = self._load(parts)
            self.store.keep_records(self.run.id, progress.records)
            self.store.keep_diagnostics(self.run.id, progress.step)
        except UnusableCheckpoint as error:
            aside = self.checkpoint.with_name(f"checkpoint.unusable-{uuid.uuid4().hex[:6]}.pt")
            self.checkpoint.rename(aside)
            self._log(f"{error} Set aside as {aside.name}; the run starts over.")
            self.store.keep_records(self.run.id, 0)
            self.store.keep_diagnostics(self.run.id, 0)
            return build(self.run, parts.device), Progress()  # the load may have touched the parts
        self._log(f"Resumed at step {progress.step}.")
        return parts, progress

    def _save(self, parts: Parts, progress: Progress) -> None:
        content = {
            "run": self.run.id,
            "progress": asdict(progress),
            "records": self.store.records_digest(self.run.id, progress.records),
            "model": parts.model.state_dict(),
            "optimizer": parts.optimizer.state_dict(),
            "random": random_states(),
        }
        save_checkpoint(self.checkpoint, content)

    def _load(self, parts: Parts) -> Progress:
        try:
            content = load_checkpoint(self.checkpoint)
            if content["run"] != self.run.id:
                raise ValueError(f"it belongs to run {content['run']}")
            progress = Progress(**content["progress"])
            if content["records"] != self.store.records_digest(self.run.id, progress.records):
                raise ValueError("records.jsonl does not hold the records that it follows")
            parts.model.load_state_dict(content["model"])
            parts.optimizer.load_state_dict(content["optimizer"])
            set_random_states(content["random"])
        except Exception as error:  # torch raises many kinds for torn files; all mean the same
            raise UnusableCheckpoint(f"checkpoint.pt cannot be used: {error}.") from error
        return progress

    def _write_meta(self, parts: Parts, prints: tuple[str, str], progress: Progress) -> None:
        meta = {
            **provenance.collect(),
            "device": provenance.device_name(parts.device),
            "threads": self.settings.runtime.threads,
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_step": progress.step,
            "weights_fingerprint": prints[0],
            "batch_fingerprint": prints[1],
        }
        write_json(self.folder / "meta.json", meta)
        write_json(self.folder / "norms.json", norm_card(self.run).as_json())

    def _log(self, line: str) -> None:
        _log(self.folder, line)


class _HashingFile:
    """A file to write to that knows the SHA-256 of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with its SHA-256 behind it; the file is whole, or the old one stays."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            torch.save(content, hashing)  # type: ignore[arg-type]  # it only writes and flushes
            file.write(hashing.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, on the CPU; torch itself does not notice a flipped bit.

    Raises:
        ValueError: the content is not the one that was written.
    """
    size = path.stat().st_size - hashlib.sha256().digest_size
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while size > 0:
            digest.update(block := file.read(min(size, 1 << 20)))
            size -= len(block)
        if digest.digest() != file.read():
            raise ValueError("it is torn or corrupt: its content does not have its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def _log(folder: Path, text: str) -> None:
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with (folder / "log.txt").open("a") as file:
        file.write(f"{stamp} {text}\n")
