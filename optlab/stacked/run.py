"""The life of the runs of a stack."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..attempt import Outcome
from ..config import Settings
from ..run import run_one
from ..stop import StopFlag
from ..store import Record, RunStore


def run_stack(
    run_ids: Sequence[str],
    store: RunStore,
    settings: Settings,
    *,
    stop: StopFlag,
    report: Callable[[str, Record], None],
    ended: Callable[[str, Outcome], None],
    say: Callable[[str], None],
) -> None:
    """Train the frozen runs to their ends, each from its checkpoint where it has one."""
    del say
    for run_id in run_ids:

        def told(record: Record, run_id: str = run_id) -> None:
            report(run_id, record)

        ended(run_id, run_one(run_id, store, settings, stop=stop, report=told))
