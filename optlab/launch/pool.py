"""A pool of worker processes that survives the death of any of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Protocol

from ..config import Run, Settings
from ..distributed import ONE, Ranks
from ..store import RunStore
from .launch import Report
from .plan import plural
from .worker import STOP_SIGNALS, Check, Checked, Ended, Probe, Probed, Said, Step, Train, serve

_POLL = 0.25  # seconds between two looks at whether to stop
Stack = tuple[Run, ...]  # runs that a worker trains together; one, mostly
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
    runs: dict[str, Run] = field(default_factory=dict)  # at work on them, by id
    probes: int | None = None  # at work on the probe of this number
    most: int = 0  # runs of it
    answered: bool = False  # has ever sent a message, so that it can start at all


@dataclass
class _Work:
    """What is to be done, and how it has gone so far."""

    queue: deque[Stack]
    watcher: Watcher
    report: Report = field(default_factory=Report)
    crashes: Counter[str] = field(default_factory=Counter)  # of workers, by the run's id


class Pool:
    """Worker processes, each with a pipe; use as a context manager.

    A run whose worker is killed is tried ``attempts`` times in all; a stack of several is then cut
    in two, which is no attempt, so that a lack of memory ends in stacks that fit. Runs at work have
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
        self.gpus = 0  # that the workers share, once one was asked to check

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
            while not isinstance(answer := worker.connection.recv(), Checked):
                worker.answered = True
        except (EOFError, ConnectionResetError):
            raise CannotStart(self._cannot_start(worker)) from None
        worker.answered = True
        self.gpus = answer.gpus
        return answer.problems

    def probe(
        self,
        kinds: Sequence[tuple[Stack, int]],
        say: Callable[[str], None],
        stop: Callable[[], bool] = lambda: False,
    ) -> list[Probed]:
        """How many runs of each kind, at most the number beside them, to train together.

        All workers are asked at once, on GPUs one for each. One that dies of it is asked for half
        as many. Nothing is saved: an interrupt kills them, and a ``stop`` leaves the rest unknown.
        """
        queue = deque((number, most) for number, (_, most) in enumerate(kinds))
        found: dict[int, Probed] = {}
        try:
            while len(found) < len(kinds) and not stop():
                self._assign_probes(queue, kinds)
                self._collect_probes(queue, found, say)
        finally:
            for worker in [each for each in self._workers if each.probes is not None]:
                worker.probes = None
                worker.process.kill()  # without an answer; replaced when it is next needed
        return [found.get(number, Probed(1, 1.0, "not probed")) for number in range(len(kinds))]

    def _assign_probes(
        self, queue: deque[tuple[int, int]], kinds: Sequence[tuple[Stack, int]]
    ) -> None:
        for worker in self._workers[: self.gpus or self._count]:
            if worker.probes is None and queue:
                number, most = queue.popleft()
                worker.probes, worker.most = number, most
                ids = tuple(run.id for run in kinds[number][0])
                with contextlib.suppress(BrokenPipeError):  # its death is seen below
                    worker.connection.send(Probe(ids, most, self._count))

    def _collect_probes(
        self,
        queue: deque[tuple[int, int]],
        found: dict[int, Probed],
        say: Callable[[str], None],
    ) -> None:
        for worker in self._ready():
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                if not worker.answered and worker.process.exitcode not in _TOLD:
                    raise CannotStart(self._cannot_start(worker)) from None
                self._probe_less(worker, queue, found, say)
                continue
            worker.answered = True
            if isinstance(message, Probed) and worker.probes is not None:
                found[worker.probes] = message
                worker.probes = None

    def _probe_less(
        self,
        worker: _Worker,
        queue: deque[tuple[int, int]],
        found: dict[int, Probed],
        say: Callable[[str], None],
    ) -> None:
        """A worker has died: ask another one for half as many, unless it was told to stop."""
        number, code = worker.probes, worker.process.exitcode
        if number is not None:
            most = worker.most if code in _TOLD else worker.most // 2
            if most < worker.most:
                say(f"The probe of a stack of {worker.most} {_death(code)} (out of memory?).")
            if most > 1:
                queue.appendleft((number, most))
            else:
                found[number] = Probed(1, 1.0, "no probe has survived")
        self._succeed(worker)

    def train(
        self, runs: Sequence[Run], watcher: Watcher, stop: Callable[[], bool] = lambda: False
    ) -> Report:
        """Train all runs, each by itself, or until ``stop``; the report says how each ended."""
        return self.train_stacks([(run,) for run in runs], watcher, stop)

    def train_stacks(
        self, stacks: Sequence[Stack], watcher: Watcher, stop: Callable[[], bool] = lambda: False
    ) -> Report:
        """Train the runs of all stacks, or until ``stop``; the report says how each ended."""
        work = _Work(deque(stacks), watcher)
        try:
            while (work.queue and not work.report.stopped) or self._busy():
                if stop():
                    self._stop(work)
                    break
                self._assign(work)
                self._collect(work)
                at_work = sum(len(worker.runs) for worker in self._workers)
                watcher.update(work.report.counts, at_work)
        except KeyboardInterrupt:
            watcher.say("Stopping: the running runs save and end (Ctrl-C again to kill them).")
            self._stop(work)
            left = plural(sum(map(len, work.queue)), "run")
            watcher.say(f"Stopped with {left} not started; the same command goes on.")
            raise
        return work.report

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.runs]

    def _ready(self) -> list[_Worker]:
        """The workers that have sent something, or died; after a while, none."""
        ready = wait([worker.connection for worker in self._workers], timeout=_POLL)
        return [worker for worker in self._workers if worker.connection in ready]

    def _assign(self, work: _Work) -> None:
        for worker in self._workers:
            if not worker.runs and work.queue and not work.report.stopped:
                worker.runs = {run.id: run for run in work.queue.popleft()}
                with contextlib.suppress(BrokenPipeError):  # its death is seen in _collect
                    worker.connection.send(Train(tuple(worker.runs), self._count))

    def _collect(self, work: _Work) -> None:
        """Wait for news, but not for long."""
        for worker in self._ready():
            try:
                message = worker.connection.recv()
            except (EOFError, ConnectionResetError):
                self._replace(worker, work)
                continue
            worker.answered = True
            if isinstance(message, Step) and message.run_id in worker.runs:
                work.watcher.step(worker.runs[message.run_id], message)
            if isinstance(message, Said):
                work.watcher.say(message.line)
            if isinstance(message, Ended):
                self._count_in(worker, message, work)
                if message.status == "failed" and self._ranks.together and work.queue:
                    self._renew(worker)

    def _count_in(self, worker: _Worker, message: Ended, work: _Work) -> None:
        run, report = worker.runs.pop(message.run_id), work.report
        work.watcher.ended(run, message)
        report.counts[message.status] += 1
        if message.status == "failed":
            report.failures[run.name] = message.cause
        if message.disk_full:
            report.stopped = (
                f"Stopped: the disk of {self._store.root} is full. Free some space and launch "
                "again; finished runs are intact."
            )

    def _renew(self, worker: _Worker) -> None:
        """Start a new process: what a run has left unfinished with its peers stays in the old."""
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        fresh = self._spawn(self._workers.index(worker))
        worker.process, worker.connection = fresh.process, fresh.connection

    def _replace(self, worker: _Worker, work: _Work) -> None:
        """A worker has died: try its runs again, several in two halves, or mark one failed."""
        worker.process.join()
        if worker.process.exitcode in _TOLD:  # told to stop, by a signal to it alone
            self._take_back(worker, work)
            worker.answered = True  # nothing is wrong with it
        if not worker.answered and self._ranks.leads:  # the others report no steps
            raise CannotStart(self._cannot_start(worker))
        runs, death = tuple(worker.runs.values()), _death(worker.process.exitcode)
        if len(runs) > 1:
            work.watcher.say(
                f"The worker training {len(runs)} runs together {death} (out of memory?); "
                "they go on in two halves."
            )
            middle = (len(runs) + 1) // 2
            work.queue.extendleft([runs[middle:], runs[:middle]])
        elif runs:
            self._try_again(runs[0], death, worker, work)
        self._succeed(worker)

    def _try_again(self, run: Run, death: str, worker: _Worker, work: _Work) -> None:
        """Give a run whose worker has died another attempt, or mark it failed."""
        work.crashes[run.id] += 1
        if work.crashes[run.id] < self._attempts:
            work.watcher.say(f"The worker training {run.name} {death}; trying that run once more.")
            work.queue.appendleft((run,))
            return
        times = f", {self._attempts} times" if self._attempts > 1 else ""
        cause = f"its worker {death}{times} (out of memory?)"
        if self._ranks.leads:  # the others are told by their peers
            self._store.fail(run.id, cause, cause)
        self._count_in(worker, Ended(run.id, "failed", cause, False), work)

    def _succeed(self, worker: _Worker) -> None:
        """Put a new process in the place of a dead one."""
        index = self._workers.index(worker)
        worker.connection.close()
        self._workers[index] = self._spawn(index)
        self._workers[index].answered = True  # its predecessor could start

    @staticmethod
    def _take_back(worker: _Worker, work: _Work) -> None:
        """Put the runs that a worker has left untouched back to the front of the queue."""
        if worker.runs:
            work.queue.appendleft(tuple(worker.runs.values()))
        worker.runs = {}

    def _spawn(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=serve,
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

    def _stop(self, work: _Work) -> None:
        """Let the busy workers save and stop; kill those that take too long.

        Runs that they have not begun are back in the queue.
        """
        for worker in self._busy():
            worker.process.terminate()  # SIGTERM sets the run's stop flag
        deadline = time.monotonic() + self._stop_within
        with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C: no more waiting
            while self._busy() and time.monotonic() < deadline:
                for worker in self._busy():
                    self._await_end(worker, work)
        for worker in self._busy():
            while worker.runs and worker.connection.poll():  # what was saved in the meantime
                self._await_end(worker, work)
            if worker.runs:
                names = ", ".join(run.name for run in worker.runs.values())
                what = "they are killed" if len(worker.runs) > 1 else "it is killed"
                work.watcher.say(f"Not stopped yet: {names}; {what}.")
            worker.process.kill()

    def _await_end(self, worker: _Worker, work: _Work) -> None:
        if not worker.connection.poll(0.1):
            return
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            if worker.process.exitcode in _TOLD:
                self._take_back(worker, work)
            worker.runs = {}
            return
        if isinstance(message, Ended):
            self._count_in(worker, message, work)

    @staticmethod
    def _cannot_start(worker: _Worker) -> str:
        worker.process.join()
        return (
            f"A worker process {_death(worker.process.exitcode)} before it could do anything: is "
            "there memory for as many workers (hydra.launcher.workers), and can torch be imported?"
        )


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return f"was killed by {signal.Signals(-exitcode).name}"
    return f"ended with exit code {exitcode}"
