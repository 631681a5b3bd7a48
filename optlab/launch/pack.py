"""The runs of one job: trained in worker processes, so that none takes the others with it."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from ..config import Run
from ..distributed import Ranks, ranks_from_environment
from ..errors import ConfigError
from ..store import DONE, Owner, RunStore, check_writable
from .batch import Batch, note_requeues, owns, read_batch
from .job import Stop
from .plan import plural
from .pool import CannotStart, Pool, Stack
from .stacking import arrange
from .worker import Ended, Step

_LINE_EVERY = 10.0  # seconds between two lines of one run


def train_pack(file: str, stop: Stop) -> int:
    """Train the runs that the batch gives to this task of the array; the exit code."""
    ranks = ranks_from_environment()
    together = f"process {ranks.rank + 1} of {ranks.world}, " if ranks.together else ""
    say(
        f"Job {Owner.here().job} on {socket.gethostname()}, {together}"
        f"attempt {Owner.here().attempt}; "
        f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}; "
        f"code in {Path.cwd()}."
    )
    try:
        batch = read_batch(Path(file))
        store = RunStore(Path(batch.store))
        check_writable(store.root, "runtime.runs")
        runs = _ours(batch, store, ranks)
    except ConfigError as error:
        say(str(error))
        return 1
    code = _train(batch, store, runs, stop, ranks)
    # SLURM takes the largest exit code of all; that of the first process is to be it.
    return code if ranks.leads else 0


def say(line: str) -> None:
    """A line of the job's log."""
    print(f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} {line}", flush=True)


def _ours(batch: Batch, store: RunStore, ranks: Ranks) -> list[Run]:
    """The runs of this task, without those that were submitted again with another batch."""
    task = int(os.environ["SLURM_ARRAY_TASK_ID"])
    kept = [run_id for run_id in batch.tasks[task] if owns(batch, run_id)]
    left = len(batch.tasks[task]) - len(kept)
    if left:
        again = "1 run was" if left == 1 else f"{left} runs were"
        say(f"{again} submitted again since, and left to that job.")
    if ranks.leads:
        note_requeues(batch, kept, Owner.here().job, Owner.here().attempt)
    return [store.load(run_id) for run_id in kept]


def _train(batch: Batch, store: RunStore, runs: Sequence[Run], stop: Stop, ranks: Ranks) -> int:
    attempt = Owner.here().attempt
    # Of several processes, all must take the same runs, and may not see the same files yet: they
    # take all, and rank 0 tells which are done. One that has failed is tried again, for it may have
    # failed because a peer was lost with the node for which the job was requeued.
    again = attempt and not ranks.together
    failed = {run.id for run in runs if again and _failed_here(batch, store, run)}
    todo = [run for run in runs if run.id not in failed and not store.is_done(run.id)]
    if attempt > batch.max_requeues:
        if ranks.leads:
            _give_up(batch, store, todo)
        return 1
    if ranks.together:
        todo = list(runs)
    say(f"{plural(len(runs), 'run')}, {len(todo)} of them to train.")
    pool = Pool(
        min(batch.side_by_side, len(todo)),
        store,
        batch.settings,
        attempts=1,
        # A save that hangs must not cost the requeue: the run then goes on from the one before.
        stop_within=0.75 * batch.save_within,
        ranks=ranks,
    )
    try:
        with pool:
            made = _stacked(batch, store, todo, pool, stop, ranks)
            report = pool.train_stacks(made, JobLog(store, len(todo)), stop)
    except CannotStart as error:
        for run in todo if ranks.leads else ():
            store.fail(run.id, str(error), f"{error} The job's log says more.")
        say(str(error))
        return 1
    if report.stopped:
        say(report.stopped)
    left = [run for run in todo if store.status(run.id) not in (*DONE, "failed")]
    if stop() and left and ranks.leads:
        return _stopped(batch, store, left, stop)
    return 1 if failed or report.failures or report.stopped else 0


def _stacked(
    batch: Batch, store: RunStore, runs: Sequence[Run], pool: Pool, stop: Stop, ranks: Ranks
) -> list[Stack]:
    """The runs as the workers of this job are to train them."""
    if ranks.together or not runs:
        return [(run,) for run in runs]
    workers = min(batch.side_by_side, len(runs))
    return arrange(runs, batch.stack, batch.settings, pool, workers, store, say, stop)


def _failed_here(batch: Batch, store: RunStore, run: Run) -> bool:
    """Whether the run has failed since this batch was submitted: it is not tried again."""
    try:
        failed = (store.folder(run.id) / "failure.json").stat().st_mtime_ns
    except OSError:
        return False
    return failed > batch.file.stat().st_mtime_ns  # both by the file server's clock


def _stopped(batch: Batch, store: RunStore, left: Sequence[Run], stop: Stop) -> int:
    word = "USR2" if stop.user else "TERM"
    say(f"Stopped by {word} with {plural(len(left), 'run')} to go on with.")
    if stop.user and Owner.here().attempt >= batch.max_requeues:
        _give_up(batch, store, left)
        return 1
    return stop.exit_code


def _give_up(batch: Batch, store: RunStore, left: Sequence[Run]) -> None:
    cause = (
        f"its job was requeued {Owner.here().attempt} times, and hydra.launcher.max_requeues allows"
        f" {batch.max_requeues}; launch again to go on from its checkpoint"
    )
    for run in left:
        store.fail(run.id, cause, cause)
    say(f"Given up: {plural(len(left), 'run')}: {cause}.")


class JobLog:
    """Writes what happens to the runs into the job's log."""

    def __init__(self, store: RunStore, total: int) -> None:
        self._store, self._total = store, total
        self._ended = 0
        self._said: dict[str, float] = {}  # run -> time of its last line

    def say(self, line: str) -> None:
        say(line)

    def step(self, run: Run, step: Step) -> None:
        """A line now and then."""
        now = time.monotonic()
        if now - self._said.get(run.id, 0.0) > _LINE_EVERY or run.id not in self._said:
            self._said[run.id] = now
            of = f"step {step.step} of {run.train.steps}"
            say(f"{run.name} ({run.id}): {of}, validation loss {step.val_loss:.4f}")

    def ended(self, run: Run, ended: Ended) -> None:
        """A line, with the traceback of a failure."""
        self._ended += 1
        cause = f": {ended.cause}" if ended.cause else ""
        say(f"[{self._ended}/{self._total}] {run.name} ({run.id}) {ended.status}{cause}")
        failure = self._store.failure(run.id) if ended.status == "failed" else None
        if failure is not None:
            print(failure["detail"], flush=True)

    def update(self, ended: Counter[str], running: int) -> None:
        """Nothing: the lines tell."""
        del ended, running
