"""Launching on this machine: a pool of worker processes that survives the death of any of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from ..config import Run, Settings
from ..store import RunStore
from ..sweep import Sweep
from .launch import Report, Say, conclude, prepare, refuse, representatives
from .progress import Display
from .worker import Check, Checked, Ended, Train, work

_ATTEMPTS = 2  # of a run whose worker is killed
_STOP_WITHIN = 60.0  # seconds that running runs have to save after Ctrl-C


def launch_local(sweep: Sweep, store: RunStore, say: Say, *, workers: int, dry_run: bool) -> Report:
    """Train what is pending of the sweep in a pool of worker processes.

    Ctrl-C lets the running runs save and stop, then raises ``KeyboardInterrupt``; launching again
    goes on where they stopped. A worker that is killed costs its run one attempt.
    """
    plan = prepare(sweep, store, say, dry_run=dry_run)
    if dry_run or not plan.pending:
        return Report()
    count = min(workers or default_workers(sweep.settings), len(plan.pending))
    say(f"Starting {count} workers; Ctrl-C stops, and the same command goes on.")
    with _terminate_as_interrupt(), Pool(count, store, sweep.settings) as pool:
        refuse(pool.check(representatives(plan.pending)), plan.pending)
        with Display(len(plan.pending), count) as display:
            report = pool.train(plan.pending, display)
    conclude(report, store, say)
    return report


def default_workers(settings: Settings) -> int:
    """As many as the cores that this process may use can feed."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinities
        cores = os.cpu_count() or 1
    return max(1, cores // settings.runtime.threads)


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    run: Run | None = None  # at work on it
    answered: bool = False  # has ever sent a message, so that it can start at all


class Pool:
    """Worker processes, each with a pipe; use as a context manager."""

    def __init__(self, count: int, store: RunStore, settings: Settings) -> None:
        self._count, self._store, self._settings = count, store, settings
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
            raise RuntimeError(self._cannot_start(worker)) from None
        assert isinstance(answer, Checked)
        worker.answered = True
        return answer.problems

    def train(self, runs: tuple[Run, ...], display: Display) -> Report:
        """Train all runs; the report says how each ended."""
        queue = deque(runs)
        crashes: Counter[str] = Counter()
        report = Report()
        try:
            while (queue and not report.stopped) or self._busy():
                self._assign(queue, report)
                self._collect(queue, crashes, report, display)
                display.update(report.counts, len(self._busy()))
        except KeyboardInterrupt:
            display.say("Stopping: the running runs save and end (Ctrl-C again to kill them).")
            self._stop(report)
            display.say(f"Stopped with {len(queue)} runs not started; the same command goes on.")
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
        self, queue: deque[Run], crashes: Counter[str], report: Report, display: Display
    ) -> None:
        """Wait for news, at most a second."""
        ready = wait([worker.connection for worker in self._workers], timeout=1.0)
        for worker in [w for w in self._workers if w.connection in ready]:
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker, queue, crashes, report, display)
                continue
            worker.answered = True
            if isinstance(message, Ended):
                self._count_in(worker, message, report)

    def _count_in(self, worker: _Worker, message: Ended, report: Report) -> None:
        assert worker.run is not None
        report.counts[message.status] += 1
        if message.status == "failed":
            report.failures[worker.run.name] = message.cause
        if message.disk_full:
            report.stopped = (
                f"Stopped: the disk of {self._store.root} is full. Free some space and launch "
                "again; finished runs are intact."
            )
        worker.run = None

    def _replace(
        self,
        worker: _Worker,
        queue: deque[Run],
        crashes: Counter[str],
        report: Report,
        display: Display,
    ) -> None:
        """A worker has died: give its run a second attempt, or mark it failed."""
        worker.process.join()
        if not worker.answered:
            raise RuntimeError(self._cannot_start(worker))
        run, death = worker.run, _death(worker.process.exitcode)
        if run is not None:
            crashes[run.id] += 1
            if crashes[run.id] < _ATTEMPTS:
                display.say(f"The worker training {run.name} {death}; trying that run once more.")
                queue.appendleft(run)
            else:
                cause = f"its worker {death}, {_ATTEMPTS} times (out of memory?)"
                self._store.fail(run.id, cause, cause)
                report.counts["failed"] += 1
                report.failures[run.name] = cause
        index = self._workers.index(worker)
        worker.connection.close()
        self._workers[index] = self._spawn(index)
        self._workers[index].answered = True  # its predecessor could start

    def _spawn(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=work, args=(theirs, self._store.root, self._settings, index), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _stop(self, report: Report) -> None:
        """Let the busy workers save and stop; kill those that take too long."""
        for worker in self._busy():
            worker.process.terminate()  # SIGTERM sets the run's stop flag
        deadline = time.monotonic() + _STOP_WITHIN
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: no more waiting
            while self._busy() and time.monotonic() < deadline:
                for worker in self._busy():
                    self._await_end(worker, report)
        for worker in self._busy():
            worker.process.kill()

    def _await_end(self, worker: _Worker, report: Report) -> None:
        if not worker.connection.poll(0.1):
            return
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.run = None
            return
        if isinstance(message, Ended):
            self._count_in(worker, message, report)

    @staticmethod
    def _cannot_start(worker: _Worker) -> str:
        worker.process.join()
        return f"A worker process {_death(worker.process.exitcode)} before its first answer."


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM stops a launch as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
