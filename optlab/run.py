"""The life of one run: build, train, record, checkpoint, resume, end."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, Literal

import torch

from . import provenance
from .build import batch_fingerprint, build, choose_device, weights_fingerprint
from .card import norm_card
from .config import Run, Settings
from .diagnostics import Gauge, due_every
from .distributed import ONE, Ranks
from .link import LeaderEnded, Link, Stopped, join
from .optim.memory import keep_freed_memory
from .stop import StopFlag
from .store import Busy, Lease, Record, Result, RunStore, write_json
from .team import Group, own_device
from .tracking.mirror import Mirror
from .train import (
    Parts,
    Progress,
    batch_loss,
    micro_batches,
    random_states,
    set_random_states,
    train,
)

_CHECK_EVERY = 5.0  # seconds between two looks at whether the run is still ours


@dataclass(frozen=True)
class Outcome:
    """What one attempt at a run came to."""

    status: Literal["finished", "diverged", "failed", "preempted", "busy"]
    cause: str = ""
    disk_full: bool = False


class UnusableCheckpoint(Exception):
    """A checkpoint that is torn, corrupt, or does not fit the run."""


def run_one(
    run_id: str,
    store: RunStore,
    settings: Settings,
    *,
    stop: StopFlag,
    report: Callable[[Record], None],
    ranks: Ranks | None = None,
) -> Outcome:
    """Train the frozen run to its end, from its checkpoint where it has one.

    Errors of the run itself do not raise: they end it as failed, with the traceback in
    ``log.txt`` and ``failure.json``. Where several processes train the run together, each calls
    this with its ``ranks``; all return the same outcome, and rank 0 alone writes and reports.
    """
    if ranks is not None and ranks.together:
        return _together(run_id, store, settings, stop, report, ranks)
    return _lead(run_id, store, settings, stop, report, None)


def _lead(
    run_id: str,
    store: RunStore,
    settings: Settings,
    stop: StopFlag,
    report: Callable[[Record], None],
    link: Link | None,
) -> Outcome:
    try:
        with store.lease(run_id) as lease:
            return _attempt(run_id, store, settings, lease, stop, report, link)
    except Busy as error:
        return Outcome("busy", str(error))
    except OSError as error:  # the folder itself cannot be used
        return Outcome("failed", f"{type(error).__name__}: {error}", error.errno == errno.ENOSPC)


def _attempt(
    run_id: str,
    store: RunStore,
    settings: Settings,
    lease: Lease,
    stop: StopFlag,
    report: Callable[[Record], None],
    link: Link | None,
) -> Outcome:
    result = store.result(run_id)
    if result is not None:  # another process finished it in the meantime
        return Outcome(result.outcome, result.cause)
    if stop.is_set:
        return Outcome("preempted", "stopped before it began")
    try:
        store.begin(run_id)
        return _Attempt(store.load(run_id), store, settings, lease, link).go(stop, report)
    except Busy:
        raise
    except Exception as error:  # a failing run must not end the sweep; it is marked and told
        cause, detail = f"{type(error).__name__}: {error}", traceback.format_exc()
        if link is not None:
            cause, detail = link.explain(error)
            if stop.is_set and link.gone:  # the job is being ended, and some processes were first
                return Outcome("preempted", cause)
        lease.check()  # not beside a successor
        _fail(run_id, store, cause, detail)
        return Outcome("failed", cause, getattr(error, "errno", None) == errno.ENOSPC)


def _fail(run_id: str, store: RunStore, cause: str, detail: str) -> None:
    store.fail(run_id, cause, detail)
    _log(store.folder(run_id), detail)


def _together(
    run_id: str,
    store: RunStore,
    settings: Settings,
    stop: StopFlag,
    report: Callable[[Record], None],
    ranks: Ranks,
) -> Outcome:
    """``run_one`` in one of several processes."""

    def bury(cause: str, detail: str) -> None:
        """Mark the run as failed, for a process that cannot go on in the usual way."""
        if ranks.leads:  # and holds the lease
            _fail(run_id, store, cause, detail)
        else:
            _fail_if_free(run_id, store, cause, detail)

    try:
        link = join(ranks, store.folder(run_id), stop, bury)
    except Stopped:
        return Outcome("preempted", "stopped before all processes had come")
    except Exception as error:  # too late, or no way to rank 0
        cause = f"{type(error).__name__}: {error}"
        _fail_if_free(run_id, store, cause, traceback.format_exc())
        return Outcome("failed", cause)
    try:
        if not ranks.leads:
            return _follow(run_id, store, settings, stop, link)
        outcome = _lead(run_id, store, settings, stop, report, link)
        link.conclude(asdict(outcome))
        return outcome
    finally:
        link.close()


def _follow(
    run_id: str, store: RunStore, settings: Settings, stop: StopFlag, link: Link
) -> Outcome:
    """Train along with rank 0, which writes; the outcome is what rank 0 says."""
    failure = None
    try:
        _Attempt(store.load(run_id), store, settings, None, link).go(stop, lambda record: None)
    except LeaderEnded:
        pass  # busy, done, or failed before it began
    except Exception as error:  # told to rank 0, or found there
        failure = link.explain(error)
    outcome = link.outcome()
    if outcome is not None:
        return Outcome(**outcome)
    cause, detail = failure or ("rank 0 is gone", "rank 0 is gone")
    if stop.is_set:  # the job is being ended, and rank 0 was first
        return Outcome("preempted", cause)
    _fail_if_free(run_id, store, cause, detail)
    return Outcome("failed", cause)


def _fail_if_free(run_id: str, store: RunStore, cause: str, detail: str) -> None:
    """Mark a run as failed for a process that is gone, unless another one has taken the run."""
    if not store.folder(run_id).is_dir():  # it never began
        return
    try:
        with store.lease(run_id):
            if not store.is_done(run_id) and store.failure(run_id) is None:
                _fail(run_id, store, cause, detail)
    except Busy:
        pass


class _Attempt:
    """One execution of a run whose lease is held, by this process or by its rank 0."""

    def __init__(
        self,
        run: Run,
        store: RunStore,
        settings: Settings,
        lease: Lease | None,  # None in the processes that do not write
        link: Link | None,
    ) -> None:
        self.run, self.store, self.settings, self.lease = run, store, settings, lease
        self.link, self.ranks = link, ONE if link is None else link.ranks
        self.folder = store.folder(run.id)
        self.checkpoint = self.folder / "checkpoint.pt"

    def go(self, stop: StopFlag, report: Callable[[Record], None]) -> Outcome:
        torch.set_num_threads(self.settings.runtime.threads)
        keep_freed_memory()
        device = choose_device(self.settings.runtime.device)
        if self.link is None:
            return self._go(device, None, stop, report)
        with Group(self.link, own_device(device, self.ranks.local_rank), stop) as group:
            return self._go(group.device, group, stop, report)

    def _go(
        self,
        device: torch.device,
        group: Group | None,
        stop: StopFlag,
        report: Callable[[Record], None],
    ) -> Outcome:
        parts = self._build(device)
        prints = weights_fingerprint(parts.model), batch_fingerprint(parts.data.train(0))
        parts, progress = self._resume(parts) if self.ranks.leads else self._resume_along(parts)
        if group is not None:
            self._tell_resume(progress)
            parts = self._shared(parts, group)
        mirror = Mirror(self.run, self.store, self.settings.tracking)
        if self.ranks.leads:
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

    def _build(self, device: torch.device) -> Parts:
        runtime = self.settings.runtime
        return build(self.run, device, runtime.micro_batch, compiles=runtime.compile)

    def _shared(self, parts: Parts, group: Group) -> Parts:
        """The parts as one process of the group has them."""
        parts = replace(parts, team=group)
        batch = micro_batches(parts, 0)[0]

        def loss(forward: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            return batch_loss(replace(parts, replica=forward), batch)

        size = self.run.train.batch_size
        return replace(parts, replica=group.replicate(parts.model, parts.optimizer, size, loss))

    def _train(
        self,
        parts: Parts,
        progress: Progress,
        mirror: Mirror,
        stop: StopFlag,
        report: Callable[[Record], None],
    ) -> Outcome | None:
        """Train to the end (None) or to a stop, saving on the way."""
        saved = checked = time.monotonic()
        gauge = self._gauge(parts)
        for record in train(parts, self.run.train, progress, gauge):
            self._keep(record, gauge.take(), mirror, report)
            if progress.finished:
                break
            if self.lease is not None and time.monotonic() - checked > _CHECK_EVERY:
                self.lease.check()
                checked = time.monotonic()
            due = time.monotonic() - saved > self.settings.runtime.checkpoint_every
            stops = parts.team.stops(stop)
            if stops or due:
                self._save(parts, progress)
                saved = time.monotonic()
            if stops:
                self._log(f"Stopped by a signal at step {progress.step}; saved.")
                mirror.finish("preempted")
                if self.lease is not None:
                    self.store.preempt(self.run.id, progress.step)
                return Outcome("preempted", f"stopped at step {progress.step}")
        return None

    def _gauge(self, parts: Parts) -> Gauge:
        every = self.settings.tracking.diagnostics_every
        due = due_every(every, self.run.train.eval_every, self.run.train.steps)
        return Gauge(parts.optimizer, due if self.ranks.leads else lambda step: False)

    def _keep(
        self,
        record: Record | None,
        diagnostics: dict[str, Any],
        mirror: Mirror,
        report: Callable[[Record], None],
    ) -> None:
        """Keep what a step boundary has brought, if anything."""
        if self.lease is None or (record is None and not diagnostics):
            return
        self.lease.check()
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
        if self.lease is None:
            return Outcome("diverged" if progress.cause else "finished", progress.cause)
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
            capped_steps=capped_steps(self.store.records(self.run.id)),
        )
        self.lease.check()
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
            return self._build(parts.device), Progress()  # the load may have touched the parts
        self._log(f"Resumed at step {progress.step}.")
        return parts, progress

    def _resume_along(self, parts: Parts) -> tuple[Parts, Progress]:
        """What rank 0 goes on from, from the same checkpoint."""
        assert self.link is not None
        told = self.link.hear()
        if not told["checkpoint"]:
            return parts, Progress()
        if checkpoint_digest(self.checkpoint) != told["checkpoint"]:
            raise RuntimeError(
                f"Rank 0 has read another {self.checkpoint} than this process on"
                f" {socket.gethostname()}: is the folder of the runs shared by all nodes?"
            )
        return parts, self._load(parts)

    def _tell_resume(self, progress: Progress) -> None:
        if self.link is not None and self.ranks.leads:
            resumes = progress.records > 0
            digest = checkpoint_digest(self.checkpoint) if resumes else ""
            self.link.tell({"checkpoint": digest})

    def _save(self, parts: Parts, progress: Progress) -> None:
        if self.lease is None:
            return
        self.lease.check()
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
            "processes": self.ranks.world,
            "micro_batch": parts.micro_batch,
            "compile": self.settings.runtime.compile,
            "hosts": self.link.hosts if self.link else [socket.gethostname()],
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_step": progress.step,
            "weights_fingerprint": prints[0],
            "batch_fingerprint": prints[1],
        }
        write_json(self.folder / "meta.json", meta)
        write_json(self.folder / "norms.json", norm_card(self.run).as_json())

    def _log(self, line: str) -> None:
        if not self.ranks.leads:
            return
        _log(self.folder, line)


def capped_steps(records: Sequence[Mapping[str, Any]]) -> int | None:
    """Steps of a run whose size was lr itself; None where that was not counted at every step.

    From the shares in its records, of which those that an older version wrote have none: a run
    that was begun by it and resumed has not been counted from its first step.
    """
    if not all("capped" in record for record in records) or not records[-1]["step"]:
        return None
    total = 0.0
    for before, record in pairwise(records):
        steps = record["step"] - before["step"]
        total += record["capped"] * steps if steps else 0.0  # NaN where there are no steps
    return None if math.isnan(total) else round(total)


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


def checkpoint_digest(path: Path) -> str:
    """The checksum that ``save_checkpoint`` wrote, as hex digits."""
    size = hashlib.sha256().digest_size
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        return file.read().hex()


def _log(folder: Path, text: str) -> None:
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with (folder / "log.txt").open("a") as file:
        file.write(f"{stamp} {text}\n")
