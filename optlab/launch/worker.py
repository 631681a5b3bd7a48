"""A worker process of the local pool: imports torch once, then trains the runs it is sent."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from ..config import Settings
from ..distributed import Ranks
from ..stop import StopFlag
from ..store import Record, RunStore

# SLURM's for "save, the end is near", and everybody's for "end".
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True)
class Check:
    """Ask a worker whether these runs can be built."""

    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Train:
    """Ask a worker to train a run."""

    run_id: str


@dataclass(frozen=True)
class Checked:
    """What stands against the runs of a ``Check``: id to message, empty if nothing does."""

    problems: dict[str, str]


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


def work(
    connection: Connection, store_root: Path, settings: Settings, device_index: int, ranks: Ranks
) -> None:
    """Serve requests until the connection closes or a stop signal arrives.

    A signal stops one run; the process ends after it, with exit code 0, and so it does on one that
    comes between two runs. What it is sent from then on, it leaves untouched.

    A worker trains a run alone, or with the workers of the other ``ranks``.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the pool decides
    stop = StopFlag()
    stop.listen(*STOP_SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked by the pool until here
    os.environ["OMP_NUM_THREADS"] = str(settings.runtime.threads)
    from ..build import problems  # imports torch, with the number of threads set
    from ..run import run_one

    if not ranks.together:  # else each takes its own when the run begins
        _choose_gpu(device_index)
    store = RunStore(store_root)
    while not stop.is_set:
        try:
            request = connection.recv()
        except EOFError:  # the pool is gone
            return
        if stop.is_set:  # while it waited: the stop was for the run before, not for this one
            return
        if isinstance(request, Check):
            with contextlib.suppress(BrokenPipeError):  # the pool has ended: so does the next recv
                runs, micro_batch = map(store.load, request.run_ids), settings.runtime.micro_batch
                connection.send(Checked(problems(runs, micro_batch)))
            continue
        run_id = request.run_id

        def report(record: Record, run_id: str = run_id) -> None:
            try:
                connection.send(Step(run_id, record.step, record.val_loss))
            except BrokenPipeError:  # the pool was killed: save and stop, nobody is waiting
                stop.is_set = True

        outcome = run_one(run_id, store, settings, stop=stop, report=report, ranks=ranks)
        with contextlib.suppress(BrokenPipeError):
            connection.send(Ended(run_id, outcome.status, outcome.cause, outcome.disk_full))


def _choose_gpu(index: int) -> None:
    """Spread the workers over the GPUs of this machine."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(index % torch.cuda.device_count())
