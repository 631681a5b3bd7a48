"""The second stage of a sweep: what its file states under ``then``, at each curve's best lr."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

from ..config import Composer, Run
from ..extend import Extend, decide, spacing
from ..extension import Addition, CurveIds
from ..store import RunStore
from ..sweep import Sweep
from .grown import Grown, Proposal, curves_of, remembered, room_of, seconds_of
from .plan import duration, plural, requested


def propose_second(sweep: Sweep, store: RunStore) -> Proposal:
    """Where the second stage of each curve is to be run, from the first; changes nothing.

    The best learning rate is that of ``extend.decide``: of the lowest mean final validation loss
    over the seeds, among those where none diverged. A curve with a hole waits. Where the best one
    has changed since it was chosen, the second stage follows it; what was run before stays in the
    store, and is no part of the sweep any more.
    """
    extension = remembered(sweep, store)
    room, gpus = room_of(sweep, store), requested(sweep)
    additions, lines, waiting, settled = [], [], 0, 0
    for curve in curves_of(sweep, store, extension):
        if not curve.then:
            continue
        lr, why = _best(sweep, curve)
        before = extension.then(curve.id)
        if lr is None:
            waiting += curve.lacking > 0
            lines.append(f"  {curve.label}: {why}.")
        elif lr == before:
            settled += 1
        elif (cost := _cost(curve, store)) * curve.gpus(gpus) > room:
            lines.append(f"  {curve.label}: {why}; not run, the budget does not allow more.")
        else:
            room -= cost * curve.gpus(gpus)
            moved = "" if before is None else f", no longer {before:.4g}: the second stage follows"
            lines.append(f"  {curve.label}: {why}{moved}; about {duration(cost)} of training.")
            additions.append(Addition(curve.id, curve.method, curve.at, (why,), then=lr))
    head = f"Second stage of {sweep.name}: "
    head += f"{plural(len(additions), 'curve')} to run, {settled} chosen before"
    lines += _lacking(sweep, store) if not additions else []
    return Proposal("then", tuple(additions), (f"{head}.", *lines), bool(waiting))


def second_of(sweep: Sweep, curves: Collection[str]) -> Iterator[Run]:
    """The runs of the second stage of these curves that are not in the first stage too."""
    curve_id = CurveIds(Composer())
    for each in sweep.second:
        if each.run.id not in sweep.first_ids and curve_id(each.curve) in curves:
            yield each.run


def _best(sweep: Sweep, curve: Grown) -> tuple[float | None, str]:
    """The best learning rate of a curve, if it has one yet, and a word about it."""
    if curve.lacking:
        return None, f"waits for {plural(curve.lacking, 'run')} of the first stage not done"
    settings = sweep.extend or Extend()
    points = curve.points()
    decision = decide(points, settings.guard, settings.per_decade or spacing(curve.declared))
    if decision.best is None:
        return None, "nothing was learned at any learning rate, so there is no best one"
    lr = points.lr[decision.best]
    edge = decision.best in (0, len(points.lr) - 1)
    censored = any(side.censored for side in decision.sides)
    warning = ", at the edge of the grid: another may be better" if edge and censored else ""
    return lr, f"best lr {lr:.4g}{warning}"


def _cost(curve: Grown, store: RunStore) -> float:
    """Seconds of training of the second stage of a curve, at the pace of its slowest run."""
    return seconds_of(curve, store) * math.prod(len(values) for values in curve.then.values())


def _lacking(sweep: Sweep, store: RunStore) -> list[str]:
    """What of the second stage is not done, where nothing new is to be run."""
    ids = [each.run.id for each in sweep.second]
    lacking = [run_id for run_id in ids if not store.is_done(run_id)]
    if not lacking:
        return []
    return [
        f"  {len(lacking)} of its {plural(len(ids), 'run')} are not done; the launch of the sweep "
        "starts those that are not queued or running."
    ]
