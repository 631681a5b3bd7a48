"""Launching on this machine: a pool of worker processes, one per core."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from ..config import Settings
from ..errors import ConfigError
from ..store import RunStore
from ..sweep import Sweep
from .launch import Report, Say, conclude, prepare, refuse, representatives
from .plan import plural
from .pool import CannotStart, Pool
from .progress import Display
from .stacking import arrange, foreseen, obstacle, refuse_stack

_ATTEMPTS = 2  # of a run whose worker is killed
_STOP_WITHIN = 60.0  # seconds that running runs have to save after Ctrl-C


def launch_local(
    sweep: Sweep,
    store: RunStore,
    say: Say,
    *,
    workers: int,
    dry_run: bool,
    stack: int | str = 1,
) -> Report:
    """Train what is pending of the sweep in a pool of worker processes.

    Runs of one kind are trained together, at most ``stack`` of them; ``auto`` leaves the number to
    a probe.

    Ctrl-C lets the running runs save and stop, then raises ``KeyboardInterrupt``; launching again
    goes on where they stopped. A worker that is killed costs its run one attempt.
    """
    refuse_stack(stack, obstacle(sweep.settings))
    plan = prepare(sweep, store, say, dry_run=dry_run)
    if dry_run and (line := foreseen(plan.pending, stack, sweep.settings)):
        say(line)
    if dry_run or not plan.pending:
        return Report()
    count = min(workers or default_workers(sweep.settings), len(plan.pending))
    say(f"Starting {plural(count, 'worker')}; Ctrl-C stops, and the same command goes on.")
    pool = Pool(count, store, sweep.settings, attempts=_ATTEMPTS, stop_within=_STOP_WITHIN)
    try:
        with _terminate_as_interrupt(), pool:
            refuse(pool.check(representatives(plan.pending)), plan.pending)
            busy = pool.gpus or count  # several stacks on one GPU would only take turns
            made = arrange(plan.pending, stack, sweep.settings, pool, min(busy, count), store, say)
            with Display(len(plan.pending), count) as display:
                report = pool.train_stacks(made, display)
    except CannotStart as error:
        raise ConfigError(str(error)) from error
    conclude(report, store, say, sweep, plan.pending)
    return report


def default_workers(settings: Settings) -> int:
    """As many as the cores that this process may use can feed."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinities
        cores = os.cpu_count() or 1
    return max(1, cores // settings.runtime.threads)


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
