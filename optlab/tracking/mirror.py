"""The mirror of a run in Weights & Biases; whatever goes wrong there never hurts the run."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from ..config import Run, TrackingConfig
from ..store import Record, RunStore
from . import client, memory, rows

if TYPE_CHECKING:
    import wandb

END_WITHIN = 15.0  # seconds that the end of a run waits for W&B


class Mirror:
    """One W&B run; after its first error it is dropped, with a line in the run's log."""

    def __init__(self, run: Run, store: RunStore, config: TrackingConfig) -> None:
        self._run, self._store, self._config = run, store, config
        self._folder = store.folder(run.id)
        self._wandb: wandb.Run | None = None
        self._mode = config.mode
        self._before: Mapping[str, Any] | None = None  # the last record
        self._ahead = 0  # rows that W&B has from an attempt that had come further

    @classmethod
    def start(cls, run: Run, store: RunStore, config: TrackingConfig) -> Mirror:
        """Open the mirror, or none where ``tracking.mode`` is ``off``.

        A server that cannot be had costs at most 10 s; the mirror is then an offline one.
        """
        mirror = cls(run, store, config)
        mirror._guarded(lambda: memory.end_stream(mirror._folder))  # of a killed attempt
        if config.mode == "online":
            try:
                mirror._open("online")
            except Exception as error:
                mirror._tell(f"W&B: {client.explain(error)} Mirrored offline instead.")
                mirror._drop()
                mirror._guarded(lambda: mirror._open("offline"))
        elif config.mode == "offline":
            mirror._guarded(lambda: mirror._open("offline"))
        return mirror

    def log(self, record: Record | None, diagnostics: Mapping[str, Any]) -> None:
        """Send what a step has shown: a record, numbers per role, both, or nothing."""
        if record is not None:
            flat = rows.flat(record)
            row = rows.row(flat, self._before, diagnostics)
            self._before = flat
        elif diagnostics:
            row = dict(diagnostics)
        else:
            return
        self._guarded(lambda: self._send(row))

    def finish(self, outcome: str, cause: str = "") -> None:
        """Close the W&B run with its outcome and the run's final numbers."""
        self._guarded(lambda: self._close(outcome, cause))

    def _open(self, mode: Literal["online", "offline"]) -> None:
        known = memory.recall(self._folder, client.target(self._config))
        published = memory.grouped(known, self._run.id, self._config.group)
        tags = {*published.tags, *self._config.tags, *filter(None, [self._config.group])}
        opened = client.init(
            self._config,
            self._folder,
            mode=mode,
            id=published.id,
            name=self._run.name,
            group=published.group,
            tags=sorted(tags),
            job_type="train",
            values=rows.config(self._run),
        )
        self._wandb = opened
        self._mode = mode
        self._remember(live=True)
        self._catch_up(opened)

    def _remember(self, *, live: bool) -> None:
        """Write down that this process streams to W&B, or that it has ended doing so."""
        if self._mode == "online" and self._wandb is not None:
            run = self._wandb
            tags = tuple(run.tags or ())
            now = memory.Published(run.id, run.group, tags, live=live, url=run.url or "")
            memory.remember(self._folder, client.target(self._config), now)

    def _catch_up(self, opened: wandb.Run) -> None:
        """Send the rows of earlier attempts that W&B lacks; an offline file lacks them all."""
        records = self._store.records(self._run.id)
        mine = rows.history(records, self._store.diagnostics(self._run.id))
        self._before = records[-1] if records else None
        there = opened.starting_step
        check_same(opened, mine)
        self._ahead = max(0, there - len(mine))
        for row in mine[there:]:
            opened.log(row)
        opened.summary.update({"outcome": "running"})

    def _send(self, row: Mapping[str, Any]) -> None:
        if self._ahead:
            self._ahead -= 1  # the same row: a resumed run repeats its numbers
        elif self._wandb is not None:
            self._wandb.log(dict(row))

    def _close(self, outcome: str, cause: str) -> None:
        if self._wandb is None:
            return
        of_run = {**self._store.row(self._run), "outcome": outcome}
        if cause:
            of_run["cause"] = cause
        self._wandb.summary.update(rows.summary(of_run, self._store.records(self._run.id)))
        if outcome == "preempted":
            self._wandb.mark_preempting()
        finish_within(self._wandb, END_WITHIN, exit_code=1 if outcome == "failed" else 0)
        self._remember(live=False)
        self._wandb = None

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # the local records are the truth, the mirror is a convenience
            self._tell(
                "W&B failed and is dropped for the rest of this run "
                f"({type(error).__name__}: {error}); training goes on, and "
                "`python -m optlab sync`, with the words of its launch, publishes what is lacking."
            )
            self._drop()

    def _tell(self, line: str) -> None:
        stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
        with contextlib.suppress(OSError), (self._folder / "log.txt").open("a") as file:
            file.write(f"{stamp} {line}\n")  # a full disk is the run's business, not the mirror's

    def _drop(self) -> None:
        """Let go of the W&B run, so that its id is free for another attempt."""
        dropped, self._wandb = self._wandb, None
        if dropped is not None:
            with contextlib.suppress(Exception):  # the failure has been told already
                finish_within(dropped, END_WITHIN, exit_code=1)
        client.reset(dropped)
        with contextlib.suppress(OSError):
            memory.end_stream(self._folder)


class OtherHistory(Exception):
    """W&B holds rows of this run that are not those of the run store."""


def check_same(opened: wandb.Run, mine: list[rows.Row]) -> None:
    """Raise unless the rows that W&B has are the beginning of ``mine``, by the last one's step."""
    there = opened.starting_step
    if not 0 < there <= len(mine):
        return
    step = dict(opened.summary).get("step")
    if step != mine[there - 1]["step"]:
        raise OtherHistory(
            f"W&B holds another history of this run: its row {there} is of step {step}, that of "
            f"the run store of step {mine[there - 1]['step']}"
        )


def finish_within(opened: wandb.Run, seconds: float, exit_code: int) -> None:
    """Finish a W&B run; raise TimeoutError where that takes longer than ``seconds``."""
    errors: list[Exception] = []

    def finish() -> None:
        try:
            opened.finish(exit_code=exit_code)
        except Exception as error:  # raised again below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=finish, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"its end was not confirmed within {seconds:g} s")
