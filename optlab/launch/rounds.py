"""Rounds of extension: what a sweep's results ask for next, remembered, and launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from ..config import Composer, Run
from ..errors import ConfigError
from ..extend import Decision, Extend, account, decide, plan_round, refinement, spacing
from ..extension import LR, Addition, CurveIds, Extension, Round, path_of, write
from ..store import RunStore
from ..sweep import Sweep
from .grown import Grown, Proposal, curves_of, remembered, room_of, seconds_of
from .launch import Report, Say
from .plan import duration, requested
from .second import propose_second, second_of

_SHOWN = 6  # curves that a waiting extension names


def next_round(
    sweep: Sweep, store: RunStore, *, rounds: int | None, since: Extension | None
) -> Proposal:
    """As ``propose``; nothing for a sweep that states a second stage and not that it be extended.

    Unless ``rounds`` are asked for.
    """
    if sweep.in_stages and not sweep.extend and rounds is None:
        return Proposal("extend", (), (), False)
    return propose(sweep, store, rounds=rounds, since=since)


def propose(
    sweep: Sweep,
    store: RunStore,
    *,
    rounds: int | None = None,
    since: Extension | None = None,
    room: float | None = None,
) -> Proposal:
    """The next round of extension of a sweep, from its results as they stand; changes nothing.

    ``rounds``: that a curve may have, beyond those of ``since`` where that is given; by default
    what the sweep declares. ``room``: seconds of training that may be spent; by default what its
    budget leaves.
    """
    settings = sweep.extend or Extend()
    extension = remembered(sweep, store)
    curves = {curve.id: curve for curve in curves_of(sweep, store, extension)}
    points = {key: curve.points() for key, curve in curves.items()}
    decisions = {
        key: decide(points[key], settings.guard, settings.per_decade or spacing(curve.declared))
        for key, curve in curves.items()
    }
    allowed = settings.rounds if rounds is None else rounds
    spent = {
        key: extension.spent(key) - (since.spent(key) if since is not None else 0) for key in curves
    }
    gpus = requested(sweep)
    plan = plan_round(
        decisions,
        spent,
        allowed,
        cost=lambda key: seconds_of(curves[key], store) * curves[key].gpus(gpus),
        room=room_of(sweep, store) if room is None else room,
    )
    wanted = {each.curve: each.lr for each in plan}
    costs = {key: len(lr) * seconds_of(curves[key], store) for key, lr in wanted.items()}
    additions, lines = [], []
    for key, curve in curves.items():
        why = account(decisions[key], points[key])
        lr = wanted.get(key, ())
        drawn = tuple(lr for lr in decisions[key].to_draw if lr not in extension.certified(key))
        if lr or drawn:
            by = curve.lr[-1] if drawn else None
            additions.append(Addition(key, curve.method, curve.at, tuple(why), lr, drawn, by))
        exhausted = spent[key] >= allowed
        lines += _lines(curve, decisions[key], why, lr, drawn, costs.get(key, 0.0), exhausted)
    waiting = [curve for key, curve in curves.items() if decisions[key].waiting]
    head = _head(sweep, len(curves), lines, waiting)
    return Proposal("extend", tuple(additions), (head, *lines), bool(waiting))


def propose_refinement(sweep: Sweep, store: RunStore) -> Proposal:
    """Points half way between each optimum and its neighbours, of the curves that are whole."""
    extension = remembered(sweep, store)
    additions, lines = [], []
    for curve in curves_of(sweep, store, extension):
        points = curve.points()
        best = decide(points, 1, spacing(curve.declared)).best if all(points.done) else None
        if best is None:
            continue
        lr = tuple(lr for lr in refinement(points.lr, best) if lr not in points.lr)
        why = f"around the optimum {points.lr[best]:.4g}"
        if lr:
            additions.append(Addition(curve.id, curve.method, curve.at, (why,), lr))
            lines.append(f"  {curve.label}: {why}: {_listed(lr)} next.")
    return Proposal("refine", tuple(additions), tuple(lines), False)


def extend_rounds(
    load: Callable[[], Sweep],
    store: RunStore,
    launch: Callable[[Sweep, RunStore], Report],
    say: Say,
    *,
    rounds: int | None = None,
    refine: bool = False,
) -> Report:
    """Extend a sweep round by round until its curves are settled, its rounds or its budget spent.

    Then comes the second stage of a sweep that states one. Each round is remembered beside
    the store before it is launched, and only its runs are. Runs that another launch or a queue
    still trains end the rounds; the same command goes on.
    ``rounds``: so many from here on, whatever has been spent; by default what the sweep declares.
    """
    report = Report()
    start = remembered(load(), store) if rounds is not None else None
    while report.ok:
        sweep = load()
        proposal = next_round(sweep, store, rounds=rounds, since=start)
        if proposal.lines:
            say("\n".join(proposal.lines))
        if not proposal.additions and refine:
            refine, proposal = False, propose_refinement(sweep, store)
            say("\n".join(proposal.lines) or "Nothing to refine: no curve is whole.")
        if not proposal.additions and sweep.in_stages:
            proposal = propose_second(sweep, store)
            say("\n".join(proposal.lines))
        if not proposal.additions:
            return report
        before = remembered(sweep, store)
        added = remember(sweep, store, proposal)
        grown = load()
        new = frozenset(run.id for run in _added(grown, added))
        if new:
            try:
                latest = launch(replace(grown, only=new), store)
            except ConfigError:  # nothing was launched, so that there was no round
                write(path_of(store.root, sweep.grows_as), before)
                raise
            report = replace(latest, counts=report.counts + latest.counts)
    return report


def remember(sweep: Sweep, store: RunStore, proposal: Proposal) -> Round:
    """Add a round to what the store remembers of the sweep."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    added = Round(proposal.kind, now, proposal.additions)
    extension = remembered(sweep, store)
    write(path_of(store.root, sweep.grows_as), Extension((*extension.rounds, added)))
    return added


def _added(sweep: Sweep, added: Round) -> Iterator[Run]:
    """The runs of a sweep that a round has added."""
    if added.kind == "then":
        yield from second_of(sweep, [each.curve for each in added.additions])
        return
    curve_id = CurveIds(Composer())
    lr = {each.curve: each.lr for each in added.additions}
    for run, point in zip(sweep.runs, sweep.points, strict=True):
        if LR in point and run.lr in lr.get(curve_id(point), ()):
            yield run


def _lines(
    curve: Grown,
    decision: Decision,
    why: Sequence[str],
    lr: Sequence[float],
    drawn: Sequence[float],
    cost: float,
    exhausted: bool,
) -> list[str]:
    """What is said of a curve: nothing where it is settled by what was run."""
    found = [f"  {curve.label}: {'; '.join(why)}."] if decision.to_run or drawn else []
    if lr:
        seeds = f"{curve.seeds} seeds each" if curve.seeds > 1 else "1 seed"
        found.append(f"    to run: lr {_listed(lr)}; {seeds}, about {duration(cost)} of training")
    elif decision.to_run:
        spent = "its rounds are spent" if exhausted else "the budget does not allow more"
        found.append(f"    not run, {spent}: lr {_listed(decision.to_run)}")
    if drawn:
        found.append(f"    certified, not run: lr {_listed(drawn)}, from {curve.lr[-1]:.4g}")
    doubt = curve.doubt()
    if doubt:
        found.append(
            f"  {curve.label}: nothing is certified, for {doubt} should be the same bit by bit and "
            "are not. Were they trained on different machines or versions?"
        )
    return found


def _head(sweep: Sweep, total: int, lines: Sequence[str], waiting: Sequence[Grown]) -> str:
    if waiting:
        names = [f"{curve.label} ({curve.lacking})" for curve in waiting[:_SHOWN]]
        more = f" and {len(waiting) - _SHOWN} more" if len(waiting) > _SHOWN else ""
        return (
            f"Extension of {sweep.name}: {len(waiting)} of {total} curves wait for runs that are "
            f"not done: {', '.join(names)}{more}. Run python -m optlab extend {sweep.words} "
            "when these are done."
        )
    if not lines:
        return f"Extension of {sweep.name}: all {total} curves are settled."
    return f"Extension of {sweep.name}:"


def _listed(lr: Sequence[float]) -> str:
    return ", ".join(f"{each:.4g}" for each in sorted(lr))
