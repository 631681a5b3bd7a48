"""A pool of worker processes that survives the death of any of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from ..config import Run, Settings
from ..distributed import ONE, Ranks
from ..store import RunStore
from .launch import Report
from .plan import plural
from .worker import STOP_SIGNALS, Check, Checked, Ended, Step, Train, work

_POLL = 0.25  # seconds between two looks at whether to stop
# Exit codes of a worker that was told to stop and had no run at work; a second signal may come when
# Python, on its way out, no longer handles it.
_TOLD = (0, *(-number for number in STOP_SIGNALS))


class Watcher(Protocol):
    """Who is told how the work goes on."""

    def say(self, line: str) -> None:
        """Something has happened."""
        ...

    def step(self, run: Run, step: Step) -> None:
        """A run has reached a step."""
        ...

    def ended(self, run: Run, ended: Ended) -> None:
        """An attempt at a run is over."""
        ...

    def update(self, ended: Counter[str], running: int) -> None:
        """The counts, at least once a second."""
        ...


class CannotStart(Exception):
    """A worker died before it could train anything: no other would fare better."""


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    run: Run | None = None  # at work on it
    answered: bool = False  # has ever sent a message, so that it can start at all


class Pool:
    """Worker processes, each with a pipe; use as a context manager.

    A run whose worker is killed is tried ``attempts`` times in all. Runs at work have
    ``stop_within`` seconds to save when the pool is stopped. Where the pools of several processes
    train each run together, ``ranks`` says which of them this is.
    """

    def __init__(
        self,
        count: int,
        store: RunStore,
        settings: Settings,
        *,
        attempts: int,
        stop_within: float,
        ranks: Ranks = ONE,
    ) -> None:
        self._count, self._store, self._settings = count, store, settings
        self._attempts, self._stop_within, self._ranks = attempts, stop_within, ranks
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []

    def __enter__(self) -> Pool:
        # Read when a worker imports torch, which sizes its thread pool then.
        os.environ["OMP_NUM_THREADS"] = str(self._settings.runtime.threads)
        self._workers = [self._spawn(index) for index in range(self._count)]
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.connection.close()  # ends an idle worker
        for worker in self._workers:
            worker.process.join(timeout=5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def check(self, runs: list[Run]) -> dict[str, str]:
        """What stands against building these runs: id to message. Asked of one worker."""
        worker = self._workers[0]
        worker.connection.send(Check(tuple(run.id for run in runs)))
        try:
            answer = worker.connection.recv()
        except EOFError:
            raise CannotStart(self._cannot_start(worker)) from None
        assert isinstance(answer, Checked)
        worker.answered = True
        return answer.problems

    def train(
        self, runs: Sequence[Run], watcher: Watcher, stop: Callable[[], bool] = lambda: False
    ) -> Report:
        """Train all runs, or until ``stop``; the report says how each ended."""
        queue = deque(runs)
        crashes: Counter[str] = Counter()
        report = Report()
        try:
            while (queue and not report.stopped) or self._busy():
                if stop():
                    self._stop(queue, report, watcher)
                    break
                self._assign(queue, report)
                self._collect(queue, crashes, report, watcher)
                watcher.update(report.counts, len(self._busy()))
        except KeyboardInterrupt:
            watcher.say("Stopping: the running runs save and end (Ctrl-C again to kill them).")
            self._stop(queue, report, watcher)
            left = plural(len(queue), "run")
            watcher.say(f"Stopped with {left} not started; the same command goes on.")
            raise
        return report

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.run is not None]

    def _assign(self, queue: deque[Run], report: Report) -> None:
        for worker in self._workers:
            if worker.run is None and queue and not report.stopped:
                worker.run = queue.popleft()
                with contextlib.suppress(BrokenPipeError):  # its death is seen in _collect
                    worker.connection.send(Train(worker.run.id))

    def _collect(
        self, queue: deque[Run], crashes: Counter[str], report: Report, watcher: Watcher
    ) -> None:
        """Wait for news, but not for long."""
        ready = wait([worker.connection for worker in self._workers], timeout=_POLL)
        for worker in [w for w in self._workers if w.connection in ready]:
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker, queue, crashes, report, watcher)
                continue
            worker.answered = True
            if isinstance(message, Step) and worker.run is not None:
                watcher.step(worker.run, message)
            if isinstance(message, Ended):
                self._count_in(worker, message, report, watcher)
                if message.status == "failed" and self._ranks.together and queue:
                    self._renew(worker)

    def _count_in(self, worker: _Worker, message: Ended, report: Report, watcher: Watcher) -> None:
        assert worker.run is not None
        watcher.ended(worker.run, message)
        report.counts[message.status] += 1
        if message.status == "failed":
            report.failures[worker.run.name] = message.cause
        if message.disk_full:
            report.stopped = (
                f"Stopped: the disk of {self._store.root} is full. Free some space and launch "
                "again; finished runs are intact."
            )
        worker.run = None

    def _renew(self, worker: _Worker) -> None:
        """Start a new process: what a run has left unfinished with its peers stays in the old."""
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        fresh = self._spawn(self._workers.index(worker))
        worker.process, worker.connection = fresh.process, fresh.connection

    def _replace(
        self,
        worker: _Worker,
        queue: deque[Run],
        crashes: Counter[str],
        report: Report,
        watcher: Watcher,
    ) -> None:
        """A worker has died: give its run another attempt, or mark it failed."""
        worker.process.join()
        if worker.process.exitcode in _TOLD:  # told to stop, by a signal to it alone
            self._take_back(worker, queue)
            worker.answered = True  # nothing is wrong with it
        if not worker.answered and self._ranks.leads:  # the others report no steps
            raise CannotStart(self._cannot_start(worker))
        run, death = worker.run, _death(worker.process.exitcode)
        if run is not None:
            crashes[run.id] += 1
            if crashes[run.id] < self._attempts:
                watcher.say(f"The worker training {run.name} {death}; trying that run once more.")
                queue.appendleft(run)
            else:
                times = f", {self._attempts} times" if self._attempts > 1 else ""
                cause = f"its worker {death}{times} (out of memory?)"
                if self._ranks.leads:  # the others are told by their peers
                    self._store.fail(run.id, cause, cause)
                worker.run = run
                self._count_in(worker, Ended(run.id, "failed", cause, False), report, watcher)
        index = self._workers.index(worker)
        worker.connection.close()
        self._workers[index] = self._spawn(index)
        self._workers[index].answered = True  # its predecessor could start

    @staticmethod
    def _take_back(worker: _Worker, queue: deque[Run]) -> None:
        """Put the run that a worker has left untouched back to the front of the queue."""
        if worker.run is not None:
            queue.appendleft(worker.run)
        worker.run = None

    def _spawn(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work,
            args=(theirs, self._store.root, self._settings, index, self._ranks),
            daemon=True,
        )
        # Inherited, and undone once the worker can handle them: a signal must not kill it earlier.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours)

    def _stop(self, queue: deque[Run], report: Report, watcher: Watcher) -> None:
        """Let the busy workers save and stop; kill those that take too long.

        Runs that they have not begun are back in the queue.
        """
        for worker in self._busy():
            worker.process.terminate()  # SIGTERM sets the run's stop flag
        deadline = time.monotonic() + self._stop_within
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: no more waiting
            while self._busy() and time.monotonic() < deadline:
                for worker in self._busy():
                    self._await_end(worker, queue, report, watcher)
        for worker in self._busy():
            if worker.run is not None:
                watcher.say(f"{worker.run.name} has not stopped in time: it is killed.")
            worker.process.kill()

    def _await_end(
        self, worker: _Worker, queue: deque[Run], report: Report, watcher: Watcher
    ) -> None:
        if not worker.connection.poll(0.1):
            return
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            if worker.process.exitcode in _TOLD:
                self._take_back(worker, queue)
            worker.run = None
            return
        if isinstance(message, Ended):
            self._count_in(worker, message, report, watcher)

    @staticmethod
    def _cannot_start(worker: _Worker) -> str:
        worker.process.join()
        return f"A worker process {_death(worker.process.exitcode)} before its first answer."


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
