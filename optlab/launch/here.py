"""Launching in this process, one run after the other."""

from __future__ import annotations

import signal

from ..config import Run, Settings
from ..distributed import ONE, Ranks
from ..stop import StopFlag
from ..store import Record, RunStore
from ..sweep import Sweep
from .launch import Report, Say, conclude, prepare, refuse, representatives
from .plan import train_loss


def launch_here(sweep: Sweep, store: RunStore, say: Say, *, dry_run: bool) -> Report:
    """Train what is pending of the sweep in this process, where a debugger can follow."""
    plan = prepare(sweep, store, say, dry_run=dry_run)
    report = Report()
    if dry_run or not plan.pending:
        return report
    from ..build import problems  # imports torch

    refuse(
        problems(representatives(plan.pending), sweep.settings.runtime.micro_batch), plan.pending
    )
    for number, run in enumerate(plan.pending, start=1):
        say(f"[{number}/{len(plan.pending)}] {run.name} ({run.id})")
        status, cause, disk_full = train_here(run, store, sweep.settings, say)
        report.counts[status] += 1
        if status == "failed":
            report.failures[run.name] = cause
        if disk_full:
            report.stopped = f"Stopped: the disk of {store.root} is full. Free some and go on."
            break
        if status == "preempted":
            raise KeyboardInterrupt
    conclude(report, store, say, sweep, plan.pending)
    return report


def train_here(
    run: Run, store: RunStore, settings: Settings, say: Say, ranks: Ranks = ONE
) -> tuple[str, str, bool]:
    """Train one frozen run, saying every record; (status, cause, whether the disk is full)."""
    from ..run import run_one  # imports torch

    def report(record: Record) -> None:
        say(
            f"  step {record.step:6d}  train {train_loss(record.step, record.train_loss)}  "
            f"val {record.val_loss:.4f}  lr {record.lr:.3g}  step size {record.step_size:.3g}"
        )

    stop = StopFlag()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stop.listen(*before)
    try:
        outcome = run_one(run.id, store, settings, stop=stop, report=report, ranks=ranks)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return outcome.status, outcome.cause, outcome.disk_full
