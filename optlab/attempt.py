"""One execution of a run by a process that may write it: begin, keep, save, end."""

from __future__ import annotations

import math
import socket
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from . import provenance
from .build import batch_fingerprint, build, choose_device, weights_fingerprint
from .card import Card, card_of, norm_card
from .checkpoint import UnusableCheckpoint, checkpoint_digest, load_checkpoint, save_checkpoint
from .config import Run, Settings
from .data.base import Data
from .diagnostics import Gauge, due_every
from .distributed import ONE
from .link import Link
from .optim.memory import keep_freed_memory
from .optim.roles import Assignment
from .stop import StopFlag
from .store import Lease, Record, Result, RunStore, write_json
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

CHECK_EVERY = 5.0  # seconds between two looks at whether the run is still ours


@dataclass(frozen=True)
class Outcome:
    """What one attempt at a run came to."""

    status: Literal["finished", "diverged", "failed", "preempted", "busy"]
    cause: str = ""
    disk_full: bool = False


class Attempt:
    """One execution of a run whose lease is held, by this process or by its rank 0.

    ``begin`` and ``open``; then ``train``, or, where another loop trains the run together with
    others, ``take`` what each step boundary brings and ``save`` or ``preempt``; at last ``finish``
    or ``abandon``.
    """

    parts: Parts
    progress: Progress
    gauge: Gauge

    def __init__(
        self,
        run: Run,
        store: RunStore,
        settings: Settings,
        lease: Lease | None,  # None in the processes that do not write
        link: Link | None = None,
        data: Data | None = None,  # of the run, where they are loaded already
    ) -> None:
        self.run, self.store, self.settings, self.lease = run, store, settings, lease
        self.link, self.ranks = link, ONE if link is None else link.ranks
        self._data = data
        self.folder = store.folder(run.id)
        self.checkpoint = self.folder / "checkpoint.pt"
        self._mirror = Mirror(run, store, settings.tracking)  # not open yet
        self._prints = ("", "")  # of the initial weights and of the first batch

    def go(self, stop: StopFlag, report: Callable[[Record], None]) -> Outcome:
        """From where the run stands to its end, or to a stop."""
        device = prepare_process(self.settings)
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
        self.begin(device, group)
        if self.ranks.leads:
            self.open()
        try:
            return self.train(stop, report) or self.finish()
        except BaseException as error:
            self.abandon(error)
            raise

    def begin(self, device: torch.device, group: Group | None = None) -> None:
        """Build the parts, and go back to the checkpoint where there is one."""
        parts = self._build(device)
        self._prints = weights_fingerprint(parts.model), batch_fingerprint(parts.data.train(0))
        parts, self.progress = self._resume(parts) if self.ranks.leads else self._follow(parts)
        if group is not None:
            self._tell_resume()
            parts = self._shared(parts, group)
        self.parts, self.gauge = parts, self._gauge(parts)

    def open(self, *, beside: int = 0) -> None:
        """Write down where the run is trained, ``beside`` how many others, and open its mirror."""
        self._write_meta(beside)
        self._mirror = Mirror.start(self.run, self.store, self.settings.tracking)

    def train(self, stop: StopFlag, report: Callable[[Record], None]) -> Outcome | None:
        """Train to the end (None) or to a stop, saving on the way."""
        saved = checked = time.monotonic()
        for record in train(self.parts, self.run.train, self.progress, self.gauge):
            self.take(record, report)
            if self.progress.finished:
                break
            if time.monotonic() - checked > CHECK_EVERY:
                self.check()
                checked = time.monotonic()
            due = time.monotonic() - saved > self.settings.runtime.checkpoint_every
            stops = self.parts.team.stops(stop)
            if stops or due:
                self.save()
                saved = time.monotonic()
            if stops:
                return self.preempt()
        return None

    def check(self) -> None:
        """Raise ``Busy`` if another process has taken the run over."""
        if self.lease is not None:
            self.lease.check()

    def take(self, record: Record | None, report: Callable[[Record], None]) -> None:
        """Keep what a step boundary has brought, if anything: a record, numbers per role."""
        diagnostics = self.gauge.take()
        if self.lease is None or (record is None and not diagnostics):
            return
        self.lease.check()
        if diagnostics:
            self.store.append_diagnostics(self.run.id, diagnostics)
        if record is not None:
            self.store.append(self.run.id, record)
        self._mirror.log(record, diagnostics)
        if record is not None:
            report(record)

    def save(self, random: Mapping[str, Any] | None = None) -> None:
        """Write the checkpoint.

        ``random``: the states of the run's own generators, where it is one of a stack. Its tensors
        are views then, of which a file would hold the whole, and are copied.
        """
        if self.lease is None:
            return
        self.lease.check()
        content = {
            "run": self.run.id,
            "progress": asdict(self.progress),
            "records": self.store.records_digest(self.run.id, self.progress.records),
            "model": self.parts.model.state_dict(),
            "optimizer": self.parts.optimizer.state_dict(),
            "random": random_states() if random is None else dict(random),
        }
        save_checkpoint(self.checkpoint, content if random is None else _apart(content))

    def preempt(self) -> Outcome:
        """Say that the run, which is saved, was stopped."""
        self._log(f"Stopped by a signal at step {self.progress.step}; saved.")
        self._mirror.finish("preempted")
        if self.lease is not None:
            self.store.preempt(self.run.id, self.progress.step)
        return Outcome("preempted", f"stopped at step {self.progress.step}")

    def finish(self) -> Outcome:
        """Write the result."""
        progress, data = self.progress, self.parts.data
        outcome = "diverged" if progress.cause else "finished"
        if self.lease is None:
            return Outcome(outcome, progress.cause)
        records = self.store.records(self.run.id)
        last = records[-1]
        result = Result(
            outcome=outcome,
            cause=progress.cause,
            step=progress.step,
            diverged_at=progress.step if progress.cause else None,
            initial_loss=progress.initial_loss,
            final_loss=last["val_loss"],
            final_train_loss=last["train_loss"],
            accuracy=last.get("accuracy", float("nan")),
            chance_loss=data.chance_loss,
            at_chance=outcome == "finished" and not last["val_loss"] < data.chance_loss,
            weights_fingerprint=self._prints[0],
            batch_fingerprint=self._prints[1],
            capped_steps=capped_steps(records),
            unit=data.unit,
        )
        self.lease.check()
        self._log(f"{outcome} at step {progress.step}. {progress.cause}".strip())
        self.store.finish(self.run.id, result)
        self._mirror.finish(outcome)
        return Outcome(outcome, progress.cause)

    def abandon(self, error: BaseException) -> None:
        """Close the mirror of a run that cannot go on."""
        self._mirror.finish("failed", f"{type(error).__name__}: {error}")

    def _build(self, device: torch.device) -> Parts:
        runtime = self.settings.runtime
        compiles, data = runtime.compile, self._data
        return build(self.run, device, runtime.micro_batch, compiles=compiles, data=data)

    def _shared(self, parts: Parts, group: Group) -> Parts:
        """The parts as one process of the group has them."""
        parts = replace(parts, team=group)
        batch = micro_batches(parts, 0)[0]

        def loss(forward: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            return batch_loss(replace(parts, replica=forward), batch)

        size = self.run.train.batch_size
        return replace(parts, replica=group.replicate(parts.model, parts.optimizer, size, loss))

    def _gauge(self, parts: Parts) -> Gauge:
        every = self.settings.tracking.diagnostics_every
        due = due_every(every, self.run.train.eval_every, self.run.train.steps)
        return Gauge(parts.optimizer, due if self.ranks.leads else lambda step: False)

    def _resume(self, parts: Parts) -> tuple[Parts, Progress]:
        """Parts and progress of the checkpoint; those of a start where there is no usable one."""
        if not self.checkpoint.exists():
            self._keep(0, 0)
            return parts, Progress()
        try:
            progress = self._load(parts)
            self._keep(progress.records, progress.step)
        except UnusableCheckpoint as error:
            aside = self.checkpoint.with_name(f"checkpoint.unusable-{uuid.uuid4().hex[:6]}.pt")
            self.checkpoint.rename(aside)
            self._log(f"{error} Set aside as {aside.name}; the run starts over.")
            self._keep(0, 0)
            return self._build(parts.device), Progress()  # the load may have touched the parts
        self._log(f"Resumed at step {progress.step}.")
        return parts, progress

    def _keep(self, records: int, step: int) -> None:
        """Drop what was written after the point that the run goes on from."""
        self.store.keep_records(self.run.id, records)
        self.store.keep_diagnostics(self.run.id, step)

    def _follow(self, parts: Parts) -> tuple[Parts, Progress]:
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

    def _tell_resume(self) -> None:
        if self.link is not None and self.ranks.leads:
            resumes = self.progress.records > 0
            digest = checkpoint_digest(self.checkpoint) if resumes else ""
            self.link.tell({"checkpoint": digest})

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

    def _write_meta(self, beside: int) -> None:
        meta = {
            **provenance.collect(),
            "device": provenance.device_name(self.parts.device),
            "threads": self.settings.runtime.threads,
            "processes": self.ranks.world,
            "stacked_with": beside,
            "micro_batch": self.parts.micro_batch,
            "compile": self.settings.runtime.compile,
            "hosts": self.link.hosts if self.link else [socket.gethostname()],
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "from_step": self.progress.step,
            "weights_fingerprint": self._prints[0],
            "batch_fingerprint": self._prints[1],
        }
        write_json(self.folder / "meta.json", meta)
        write_json(self.folder / "norms.json", self._card().as_json())

    def _card(self) -> Card:
        """As ``norm_card``, from the parts at hand where the optimizer keeps its norms."""
        norms = getattr(self.parts.optimizer, "norms", None)
        if isinstance(norms, Assignment):
            return card_of(self.parts.model, norms, self.run)
        return norm_card(self.run)

    def _log(self, line: str) -> None:
        if self.ranks.leads:
            log(self.folder, line)


def prepare_process(settings: Settings) -> torch.device:
    """Set this process up for training; the device to train on."""
    torch.set_num_threads(settings.runtime.threads)
    keep_freed_memory()
    return choose_device(settings.runtime.device)


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


def _apart(node: Any) -> Any:
    """``node`` with copies of its tensors that share memory with others."""
    if isinstance(node, Tensor):
        whole = node.untyped_storage().nbytes() == node.numel() * node.element_size()
        return node if whole else node.clone()
    if isinstance(node, dict):
        return {key: _apart(value) for key, value in node.items()}
    return [_apart(value) for value in node] if isinstance(node, list) else node


def log(folder: Path, text: str) -> None:
    """Add a line to the log of the run in ``folder``."""
    stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with (folder / "log.txt").open("a") as file:
        file.write(f"{stamp} {text}\n")
