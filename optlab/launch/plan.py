"""What launching a sweep would do: which runs are done, which are not, what they would cost."""

from __future__ import annotations

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config import Run
from ..errors import ConfigError
from ..store import DONE, RunStore
from ..sweep import Sweep
from .former import Former, former
from .pace import Pace, guess, last_record, paces, parts
from .standing import ALIVE, Standing, State, standings, submission


@dataclass(frozen=True)
class Forecast:
    """What the runs to do would cost, from measured step times."""

    seconds: float  # of training, one run after the other; evaluation comes on top
    hours: float  # of GPUs, or of runs where they use none
    measured: int  # runs to do whose kind was measured
    guessed: int  # those with the pace of other methods on the same model and data
    unknown: int  # those about which nothing is known
    samples: int  # runs that were measured
    devices: tuple[str, ...]  # that they were measured on
    kept: int | None  # bytes that the runs to do leave; None: not known for all
    checkpoint: int | None  # bytes of the largest checkpoint while a run trains


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep by what launching would do with them."""

    sweep: Sweep
    counts: Counter[State]
    pending: tuple[Run, ...]  # to be trained: missing, preempted, failed or lost
    forecast: Forecast
    spent: float  # hours, as in the forecast, of all runs of the sweep so far
    committed: float  # hours that queued and running ones have before them
    unit: str  # of the hours
    free: int | None  # bytes on the disk of the store
    problem: str = ""  # why the queue could not be asked
    standing: Mapping[str, Standing] = field(default_factory=dict)
    former: Former = field(default_factory=Former)  # alive, and no longer among the runs

    @property
    def total(self) -> int:
        return len(self.sweep.runs)

    @property
    def done(self) -> int:
        return sum(self.counts[status] for status in DONE)


def make_plan(sweep: Sweep, store: RunStore, gpus: Mapping[str, int] | None = None) -> Plan:
    """Compare the sweep with what the store holds; ``gpus`` of each run, by id.

    A run without a GPU counts its own hours.
    """
    found = standings([run.id for run in sweep.runs], store)
    since = former(sweep, store, found)
    state: dict[str, State] = {run.id: found.of[run.id].state for run in sweep.runs}
    allowed = sweep.runs if sweep.only is None else [r for r in sweep.runs if r.id in sweep.only]
    pending = tuple(run for run in allowed if state[run.id] not in (*DONE, *ALIVE))
    alive = tuple(run for run in sweep.runs if state[run.id] in ALIVE)
    given = gpus or requested(sweep)
    known, kinds = paces(store, sweep.runs), {parts(run): run for run in sweep.runs}
    records = {run.id: last_record(store, run.id) for run in sweep.runs}
    spent = sum(
        record["seconds"] / 3600 * max(1, _gpus_had(run_id, store, given[run_id]))
        for run_id, record in records.items()
        if record
    )
    remaining = _forecast(alive, known, kinds, given, {
        run.id: record["step"] for run in alive if (record := records[run.id])
    })  # fmt: skip
    return Plan(
        sweep,
        Counter[State](state.values()),
        pending,
        _forecast(pending, known, kinds, given, {}),
        spent,
        remaining.hours,
        "GPU-hours" if any(given.values()) and (gpus or sweep.budget) else "hours",
        _free(store.root),
        found.problem or since.problem,
        found.of,
        since,
    )


def _gpus_had(run_id: str, store: RunStore, asked: int) -> int:
    """Of a run that was submitted, the GPUs of that time, whatever is asked for now."""
    before = submission(run_id, store)
    return before.gpus if before else asked


def requested(sweep: Sweep) -> dict[str, int]:
    """The GPUs of each run as the sweep's files ask for them, else one."""
    asked = sweep.resources or ({},) * len(sweep.runs)
    counts = [request.get("gpus_per_run", 1) for request in asked]
    return {
        run.id: count if type(count) is int else 1
        for run, count in zip(sweep.runs, counts, strict=True)
    }


def _forecast(
    runs: Sequence[Run],
    known: Mapping[str, Pace],
    kinds: Mapping[str, Run],
    gpus: Mapping[str, int],
    steps_done: Mapping[str, int],
) -> Forecast:
    own = {run.id: known.get(parts(run)) for run in runs}
    taken = {run.id: own[run.id] or guess(run, known, kinds) for run in runs}
    seconds = {
        run.id: pace.seconds_per_step * max(0, run.train.steps - steps_done.get(run.id, 0))
        for run in runs
        if (pace := taken[run.id])
    }
    measured = sum(pace is not None for pace in own.values())
    used = {id(pace): pace for pace in taken.values() if pace}.values()
    kept = [pace.kept if pace else None for pace in taken.values()]
    whole = [size for size in kept if size is not None]
    return Forecast(
        seconds=sum(seconds.values()),
        hours=sum(value / 3600 * max(1, gpus[run_id]) for run_id, value in seconds.items()),
        measured=measured,
        guessed=len(seconds) - measured,
        unknown=len(runs) - len(seconds),
        samples=sum(pace.runs for pace in used),
        devices=tuple(sorted({device for pace in used for device in pace.devices})),
        kept=sum(whole) if len(whole) == len(kept) else None,
        checkpoint=max((pace.checkpoint for pace in used if pace.checkpoint), default=None),
    )


def _free(folder: Path) -> int | None:
    """Bytes that can be written below a folder, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free if os.path.isdir(folder) else None
    except OSError:
        return None


def describe(plan: Plan) -> str:
    """The plan, a sentence a line."""
    words = ", ".join(f"{count} {status}" for status, count in sorted(plan.counts.items()))
    lines = [f"Sweep {plan.sweep.name}: {plural(plan.total, 'run')} ({words}).", *plan.sweep.notes]
    if sentence := plan.former.sentence(plan.sweep):
        lines.append(sentence)
    if plan.problem:
        lines.append(f"{plan.problem}: submitted runs stand as their files say.")
    if plan.pending:
        lines += [*_cost(plan), *_disk(plan)]
    else:
        lines.append("Nothing to start.")
    if plan.sweep.budget is not None:
        lines.append(_budget(plan))
    return "\n".join(lines)


def _cost(plan: Plan) -> list[str]:
    cost, count = plan.forecast, len(plan.pending)
    if cost.unknown == count:
        return [
            f"{plural(count, 'run')} to do; none of their kind was measured yet, so there is no "
            "forecast (python -m optlab plan ... --probe makes one)."
        ]
    hours = f" ({cost.hours:.3g} {plan.unit})" if plan.unit == "GPU-hours" else ""
    lines = [
        f"About {duration(cost.seconds)} of training{hours} for the {count - cost.unknown} runs to "
        f"do, measured on {plural(cost.samples, 'run')} of the same parts "
        f"({', '.join(cost.devices)}); evaluation comes on top."
    ]
    if cost.guessed:
        lines.append(
            f"Among them, {cost.guessed} of methods that were never measured, at the pace of "
            "others on the same model and data."
        )
    if cost.unknown:
        lines.append(
            f"{cost.unknown} further runs to do are of a kind that was never measured: no forecast."
        )
    return lines


def _disk(plan: Plan) -> list[str]:
    cost = plan.forecast
    parts = [f"about {size(cost.kept)} when they are done"] if cost.kept is not None else []
    if cost.checkpoint:
        parts.append(f"{size(cost.checkpoint)} of checkpoint for each that is training")
    if not parts:
        return []
    free = f"; {size(plan.free)} are free" if plan.free is not None else ""
    lines = [f"Disk: {', '.join(parts)}{free}."]
    if plan.free is not None and (cost.kept or 0) + (cost.checkpoint or 0) > plan.free:
        lines.append("That is more than is free: make room, or launch a part of the sweep.")
    return lines


def _budget(plan: Plan) -> str:
    return (
        f"Budget: {plan.sweep.budget:g} {plan.unit}; {plan.spent:.3g} spent, "
        f"{plan.committed:.3g} in queued and running runs, {plan.forecast.hours:.3g} forecast."
    )


def refusal(plan: Plan) -> str:
    """Why the sweep's budget forbids to start what is pending; '' if it does not."""
    budget, cost = plan.sweep.budget, plan.forecast
    if budget is None or not plan.pending:
        return ""
    lift = "give budget.gpu_hours on the command line (null: no budget)"
    whose = f"The sweep {plan.sweep.name} has a budget of {budget:g} {plan.unit}"
    if cost.unknown:
        return (
            f"{whose}, and nothing tells what {cost.unknown} of the {len(plan.pending)} runs to do "
            "would cost: measure a few steps of each kind with python -m optlab plan "
            f"{plan.sweep.command.removeprefix('sweeps=')} --probe, or {lift}."
        )
    total = plan.spent + plan.committed + cost.hours
    if total <= budget:
        return ""
    return (
        f"{whose}, and would need {total:.3g}: {plan.spent:.3g} spent, {plan.committed:.3g} in "
        f"queued and running runs, and a forecast of {cost.hours:.3g} for the {len(plan.pending)} "
        "runs to do. Launch a part of it, such as one seed, raise budget.gpu_hours in its file, or "
        f"{lift}."
    )


def refuse_beyond_budget(plan: Plan) -> None:
    """Raise if the budget forbids the launch; nothing was started yet."""
    if message := refusal(plan):
        raise ConfigError(message)


def plural(count: int, noun: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def duration(seconds: float) -> str:
    """``seconds`` in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def train_loss(step: int, loss: float) -> str:
    """A training loss; before the first step there is none."""
    return "-" if step == 0 and math.isnan(loss) else f"{loss:.4f}"


def size(count: int) -> str:
    """``count`` bytes in the unit a person would use."""
    number = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
