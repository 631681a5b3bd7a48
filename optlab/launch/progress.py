"""Live progress of a launch: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..config import Run
from .plan import duration
from .worker import Ended, Step

_LINE_EVERY = 10.0  # seconds between two lines in a log file


class Display:
    """Counts of outcomes, runs at work and the time that is left."""

    def __init__(self, total: int, workers: int) -> None:
        self._total, self._workers = total, workers
        self._ended: Counter[str] = Counter()
        self._running = 0
        self._started = self._last_line = time.monotonic()
        self._bar = _bar() if sys.stdout.isatty() else None
        self._task = self._bar.add_task("", total=total, text="") if self._bar else None

    def __enter__(self) -> Display:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del kind, error, trace
        if self._bar:
            self._bar.stop()

    def say(self, line: str) -> None:
        """A line above the bar."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, flush=True)

    def step(self, run: Run, step: Step) -> None:
        """Nothing: with many runs at a time, only the counts can be read."""
        del run, step

    def ended(self, run: Run, ended: Ended) -> None:
        """Nothing: the counts tell."""
        del run, ended

    def update(self, ended: Counter[str], running: int) -> None:
        """Show the counts."""
        self._ended, self._running = ended, running
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=ended.total(), text=self._text())
        elif time.monotonic() - self._last_line > _LINE_EVERY:
            self._last_line = time.monotonic()
            print(f"{ended.total()}/{self._total} runs; {self._text()}", flush=True)

    def _text(self) -> str:
        names = ("finished", "diverged", "failed")
        parts = [f"{self._ended[name]} {name}" for name in names if self._ended[name]]
        return ", ".join([f"{self._running} running", *parts, self._eta()])

    def _eta(self) -> str:
        ended = self._ended.total()
        if ended < self._workers:
            return "ETA unknown"
        pace = (time.monotonic() - self._started) / ended
        return f"ETA {duration(pace * (self._total - ended))}"


def _bar() -> Progress:
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        console=Console(),
    )
