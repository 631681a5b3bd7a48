"""A worker process of the local pool: imports torch once, then trains the runs it is sent."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import Settings
from ..distributed import Ranks
from ..stop import StopFlag
from ..store import Record, RunStore

if TYPE_CHECKING:
    from ..attempt import Outcome  # imports torch

# SLURM's for "save, the end is near", and everybody's for "end".
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True)
class Check:
    """Ask a worker whether these runs can be built."""

    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Probe:
    """Ask a worker how many of these runs of one kind, ``most`` at most, to train together."""

    run_ids: tuple[str, ...]
    most: int
    workers: int = 1  # as of Train


@dataclass(frozen=True)
class Train:
    """Ask a worker to train runs of one kind together; a single one by itself."""

    run_ids: tuple[str, ...]
    workers: int = 1  # that train at the same time, and share the memory


@dataclass(frozen=True)
class Ready:
    """A worker has started: what happens to it from now on comes of what it is asked to do."""


@dataclass(frozen=True)
class Checked:
    """What stands against the runs of a ``Check``: id to message, empty if nothing does."""

    problems: dict[str, str]
    gpus: int  # that the workers share; 0 where they train on the CPU


@dataclass(frozen=True)
class Probed:
    """The answer to a ``Probe``."""

    size: int
    gain: float  # over the same runs one by one
    reason: str  # for the size 1


@dataclass(frozen=True)
class Said:
    """Something has happened to the runs at work."""

    line: str


@dataclass(frozen=True)
class Step:
    """A run has reached a step."""

    run_id: str
    step: int
    val_loss: float


@dataclass(frozen=True)
class Ended:
    """An attempt at a run is over."""

    run_id: str
    status: str
    cause: str
    disk_full: bool


def serve(
    connection: Connection, store_root: Path, settings: Settings, device_index: int, ranks: Ranks
) -> None:
    """Serve requests until the connection closes or a stop signal arrives.

    A signal stops the runs at work; the process ends after them, with exit code 0, and so it does
    on one that comes between two requests. What it is sent from then on, it leaves untouched.

    A worker trains a run alone, or with the workers of the other ``ranks``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool decides
    stop = StopFlag()
    stop.listen(*STOP_SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked by the pool until here
    os.environ["OMP_NUM_THREADS"] = str(settings.runtime.threads)
    from ..build import problems  # imports torch, with the number of threads set

    if not ranks.together:  # else each takes its own when the run begins
        _choose_gpu(device_index)
    store = RunStore(store_root)
    _send(connection, Ready())
    while not stop.is_set:
        try:
            request = connection.recv()
        except (EOFError, ConnectionResetError):  # the pool is gone, the second with news unread
            return
        if stop.is_set:  # while it waited: the stop was for the run before, not for this one
            return
        if isinstance(request, Check):
            runs, micro_batch = map(store.load, request.run_ids), settings.runtime.micro_batch
            _send(connection, Checked(problems(runs, micro_batch), _gpus(settings)))
        elif isinstance(request, Probe):
            _send(connection, _probed(request, store, settings))
        else:
            _train(request, connection, store, settings, stop, ranks)


def _send(connection: Connection, message: Any) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the next recv ends it
        connection.send(message)


def _train(
    request: Train,
    connection: Connection,
    store: RunStore,
    settings: Settings,
    stop: StopFlag,
    ranks: Ranks,
) -> None:
    """Train the runs, telling the pool of each; it takes back those that are not told of."""
    from ..run import run_one

    run_ids = request.run_ids

    def told(message: Step | Said) -> None:
        try:
            connection.send(message)
        except (BrokenPipeError, ConnectionResetError):  # the pool was killed: save and stop
            stop.is_set = True

    def report(run_id: str, record: Record) -> None:
        told(Step(run_id, record.step, record.val_loss))

    def ended(run_id: str, outcome: Outcome) -> None:
        if outcome.status == "preempted" and len(run_ids) > 1 and not store.records(run_id):
            return  # stopped before it began, beside another
        _send(connection, Ended(run_id, outcome.status, outcome.cause, outcome.disk_full))

    if len(run_ids) == 1:
        (run_id,) = run_ids
        alone = partial(report, run_id)
        ended(run_id, run_one(run_id, store, settings, stop=stop, report=alone, ranks=ranks))
        return
    from ..stacked.run import run_stack

    def say(line: str) -> None:
        told(Said(line))

    run_stack(
        run_ids,
        store,
        settings,
        stop=stop,
        report=report,
        ended=ended,
        say=say,
        workers=request.workers,
    )


def _probed(request: Probe, store: RunStore, settings: Settings) -> Probed:
    from ..stacked.probe import choose_size

    choice = choose_size(request.run_ids, store, settings, request.most, request.workers)
    return Probed(choice.size, choice.gain, choice.reason)


def _gpus(settings: Settings) -> int:
    import torch

    uses = settings.runtime.device != "cpu" and torch.cuda.is_available()
    return torch.cuda.device_count() if uses else 0


def _choose_gpu(index: int) -> None:
    """Spread the workers over the GPUs of this machine."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())
