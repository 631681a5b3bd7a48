"""The life of one run: who trains it, and what becomes of its errors."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from dataclasses import asdict

from .attempt import Attempt, Outcome, log
from .config import Settings
from .distributed import Ranks
from .link import LeaderEnded, Link, Stopped, join
from .stop import StopFlag
from .store import Busy, Lease, Record, RunStore


def run_one(
    run_id: str,
    store: RunStore,
    settings: Settings,
    *,
    stop: StopFlag,
    report: Callable[[Record], None],
    ranks: Ranks | None = None,
) -> Outcome:
    """Train the frozen run to its end, from its checkpoint where it has one.

    Errors of the run itself do not raise: they end it as failed, with the traceback in
    ``log.txt`` and ``failure.json``. Where several processes train the run together, each calls
    this with its ``ranks``; all return the same outcome, and rank 0 alone writes and reports.
    """
    if ranks is not None and ranks.together:
        return _together(run_id, store, settings, stop, report, ranks)
    return _lead(run_id, store, settings, stop, report, None)


def _lead(
    run_id: str,
    store: RunStore,
    settings: Settings,
    stop: StopFlag,
    report: Callable[[Record], None],
    link: Link | None,
) -> Outcome:
    try:
        with store.lease(run_id) as lease:
            return _attempt(run_id, store, settings, lease, stop, report, link)
    except Busy as error:
        return Outcome("busy", str(error))
    except OSError as error:  # the folder itself cannot be used
        return Outcome("failed", f"{type(error).__name__}: {error}", error.errno == errno.ENOSPC)


def _attempt(
    run_id: str,
    store: RunStore,
    settings: Settings,
    lease: Lease,
    stop: StopFlag,
    report: Callable[[Record], None],
    link: Link | None,
) -> Outcome:
    result = store.result(run_id)
    if result is not None:  # another process finished it in the meantime
        return Outcome(result.outcome, result.cause)
    if stop.is_set:
        return Outcome("preempted", "stopped before it began")
    try:
        store.begin(run_id)
        return Attempt(store.load(run_id), store, settings, lease, link).go(stop, report)
    except Busy:
        raise
    except Exception as error:  # a failing run must not end the sweep; it is marked and told
        return buried(run_id, store, lease, error, stop, link)


def buried(
    run_id: str,
    store: RunStore,
    lease: Lease,
    error: Exception,
    stop: StopFlag,
    link: Link | None = None,
) -> Outcome:
    """The outcome of a run that ``error``, which is being handled, has ended; it is marked so.

    Raises:
        Busy: another process has taken the run over.
    """
    cause, detail = f"{type(error).__name__}: {error}", traceback.format_exc()
    if link is not None:
        cause, detail = link.explain(error)
        if stop.is_set and link.gone:  # the job is being ended, and some processes were first
            return Outcome("preempted", cause)
    lease.check()  # not beside a successor
    _fail(run_id, store, cause, detail)
    return Outcome("failed", cause, getattr(error, "errno", None) == errno.ENOSPC)


def _fail(run_id: str, store: RunStore, cause: str, detail: str) -> None:
    store.fail(run_id, cause, detail)
    log(store.folder(run_id), detail)


def _together(
    run_id: str,
    store: RunStore,
    settings: Settings,
    stop: StopFlag,
    report: Callable[[Record], None],
    ranks: Ranks,
) -> Outcome:
    """``run_one`` in one of several processes."""

    def bury(cause: str, detail: str) -> None:
        """Mark the run as failed, for a process that cannot go on in the usual way."""
        if ranks.leads:  # and holds the lease
            _fail(run_id, store, cause, detail)
        else:
            _fail_if_free(run_id, store, cause, detail)

    try:
        link = join(ranks, store.folder(run_id), stop, bury)
    except Stopped:
        return Outcome("preempted", "stopped before all processes had come")
    except Exception as error:  # too late, or no way to rank 0
        cause = f"{type(error).__name__}: {error}"
        _fail_if_free(run_id, store, cause, traceback.format_exc())
        return Outcome("failed", cause)
    try:
        if not ranks.leads:
            return _follow(run_id, store, settings, stop, link)
        outcome = _lead(run_id, store, settings, stop, report, link)
        link.conclude(asdict(outcome))
        return outcome
    finally:
        link.close()


def _follow(
    run_id: str, store: RunStore, settings: Settings, stop: StopFlag, link: Link
) -> Outcome:
    """Train along with rank 0, which writes; the outcome is what rank 0 says."""
    failure = None
    try:
        Attempt(store.load(run_id), store, settings, None, link).go(stop, lambda record: None)
    except LeaderEnded:
        pass  # busy, done, or failed before it began
    except Exception as error:  # told to rank 0, or found there
        failure = link.explain(error)
    outcome = link.outcome()
    if outcome is not None:
        return Outcome(**outcome)
    cause, detail = failure or ("rank 0 is gone", "rank 0 is gone")
    if stop.is_set:  # the job is being ended, and rank 0 was first
        return Outcome("preempted", cause)
    _fail_if_free(run_id, store, cause, detail)
    return Outcome("failed", cause)


def _fail_if_free(run_id: str, store: RunStore, cause: str, detail: str) -> None:
    """Mark a run as failed for a process that is gone, unless another one has taken the run."""
    if not store.folder(run_id).is_dir():  # it never began
        return
    try:
        with store.lease(run_id):
            if not store.is_done(run_id) and store.failure(run_id) is None:
                _fail(run_id, store, cause, detail)
    except Busy:
        pass
