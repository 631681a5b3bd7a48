"""What launching a sweep would do: which runs are done, which are not, what they would cost."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Run
from ..store import DONE, RunStore
from ..sweep import Sweep
from .standing import ALIVE, State, standings


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep by what launching would do with them."""

    sweep: Sweep
    counts: Counter[State]
    pending: tuple[Run, ...]  # to be trained: missing, preempted, failed or lost
    forecast: float | None  # seconds of training in one worker; None without an earlier run

    @property
    def total(self) -> int:
        return len(self.sweep.runs)

    @property
    def done(self) -> int:
        return sum(self.counts[status] for status in DONE)


def make_plan(sweep: Sweep, store: RunStore) -> Plan:
    """Compare the sweep with what the store holds."""
    found = standings([run.id for run in sweep.runs], store).of
    pending = tuple(run for run in sweep.runs if found[run.id].state not in (*DONE, *ALIVE))
    counts: Counter[State] = Counter(found[run.id].state for run in sweep.runs)
    return Plan(sweep, counts, pending, _forecast(sweep, pending, store))


def _forecast(sweep: Sweep, pending: Sequence[Run], store: RunStore) -> float | None:
    """Seconds for the pending runs, from the steps per second of done runs of the same parts."""
    pace: dict[str, list[float]] = {}
    for run in sweep.runs:
        records = store.records(run.id) if store.is_done(run.id) else []
        if records and records[-1]["step"]:
            pace.setdefault(_parts(run), []).append(records[-1]["seconds"] / records[-1]["step"])
    known = {parts: statistics.median(seconds) for parts, seconds in pace.items()}
    if not known and pending:
        return None
    fallback = statistics.median(known.values()) if known else 0.0
    return sum(known.get(_parts(run), fallback) * run.train.steps for run in pending)


def _parts(run: Run) -> str:
    return json.dumps(dict(run.choices), sort_keys=True)


def describe(plan: Plan) -> str:
    """The plan in one or two lines."""
    words = ", ".join(f"{count} {status}" for status, count in sorted(plan.counts.items()))
    lines = [f"Sweep {plan.sweep.name}: {plan.total} runs ({words}).", *plan.sweep.notes]
    if plan.pending and plan.forecast is not None:
        lines.append(
            f"About {duration(plan.forecast)} of training for the {len(plan.pending)} runs to do, "
            "measured on the runs that are done."
        )
    elif plan.pending:
        lines.append(f"{len(plan.pending)} runs to do; none is done yet, so there is no forecast.")
    else:
        lines.append("Nothing to start.")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """``seconds`` in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
