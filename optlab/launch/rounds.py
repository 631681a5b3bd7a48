"""Rounds of extension: what a sweep's results ask for next, remembered, and launched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import combinations
from statistics import fmean

from ..certify import contradict, why_not, why_not_any
from ..config import Composer, Run
from ..errors import ConfigError
from ..extend import Decision, Extend, Points, account, decide, plan_round, refinement, spacing
from ..extension import (
    LR,
    Addition,
    CurveIds,
    Extension,
    Round,
    path_of,
    read,
    without_lr,
    write,
)
from ..store import Result, RunStore
from ..sweep import Point, Sweep
from .launch import Report, Say
from .plan import duration, make_plan, requested

_SHOWN = 6  # curves that a waiting extension names


@dataclass(frozen=True)
class Grown:
    """A curve of the store: one method in one setting, its runs by learning rate and seed."""

    id: str
    label: str
    method: str
    at: Point  # the overrides that its runs share
    declared: tuple[float, ...]  # learning rates of the sweep's own grid, ascending
    runs: Mapping[tuple[float, int], Run]
    results: Mapping[str, Result]  # of those that are done, by id

    @property
    def lr(self) -> list[float]:
        return sorted({lr for lr, _ in self.runs})

    @property
    def lacking(self) -> int:
        """Runs that are not done."""
        return len(self.runs) - len(self.results)

    @property
    def seeds(self) -> int:
        return len({seed for _, seed in self.runs})

    def gpus(self, requested: Mapping[str, int]) -> int:
        """GPUs of the largest of its runs; 1 where they use none."""
        return max(1, *(requested[run.id] for run in self.runs.values()))

    def at_lr(self, lr: float) -> list[Run]:
        return [run for (other, _), run in self.runs.items() if other == lr]

    def doubt(self) -> str:
        """Two runs that should be the same bit by bit and are not; '' where none are.

        Wherever a run that certifies larger learning rates has such a neighbour, trained too, the
        certificate is put to the test.
        """
        for one, other in combinations(sorted(self.runs.values(), key=lambda run: run.lr), 2):
            first, second = self.results.get(one.id), self.results.get(other.id)
            if first is None or second is None or one.seed != other.seed:
                continue
            if not why_not(one, first, other) and contradict(first, second):
                return f"{one.name} ({one.id}) and {other.name} ({other.id})"
        return ""

    def points(self) -> Points:
        """The curve as ``extend.decide`` sees it; the ceiling rule is that of ``Curve``."""
        whole = not self.doubt()
        cells = [[self._cell(run, whole) for run in self.at_lr(lr)] for lr in self.lr]
        initial = [result.initial_loss for result in self.results.values()]
        return Points(
            lr=self.lr,
            loss=[_mean([each.loss for each in row]) for row in cells],
            initial=_mean([loss for loss in initial if math.isfinite(loss)]),
            diverged=[any(each.diverged for each in row) for row in cells],
            ceiling=[any(each.ceiling for each in row) for row in cells],
            done=[all(each.done for each in row) for row in cells],
            certified=[all(each.certifies for each in row) for row in cells],
        )

    def _cell(self, run: Run, may_certify: bool) -> _Cell:
        result = self.results.get(run.id)
        if result is None:
            return _Cell(False, math.nan, False, False, False)
        diverged = result.outcome == "diverged" or not math.isfinite(result.final_loss)
        above = diverged or result.final_loss >= result.initial_loss
        loss = result.initial_loss if above else result.final_loss
        return _Cell(True, loss, diverged, above, may_certify and not why_not_any(run, result))


@dataclass(frozen=True)
class _Cell:
    """One run of a curve."""

    done: bool
    loss: float  # nats, at most the initial one
    diverged: bool
    ceiling: bool
    certifies: bool


@dataclass(frozen=True)
class Proposal:
    """The next round of a sweep, and what to say about it."""

    kind: str  # extend, refine
    additions: tuple[Addition, ...]
    lines: tuple[str, ...]
    waiting: bool  # for runs that are not done

    @property
    def runs(self) -> int:
        """Learning rates to be run, over all curves."""
        return sum(len(each.lr) for each in self.additions)


def curves_of(sweep: Sweep, store: RunStore, extension: Extension) -> list[Grown]:
    """The curves of a sweep whose learning rate is an axis, by method and setting."""
    curve_id = CurveIds(Composer())
    found: dict[str, dict[tuple[float, int], Run]] = {}
    at: dict[str, Point] = {}
    for run, point in zip(sweep.runs, sweep.points, strict=True):
        if LR in point:
            of_curve = curve_id(point)
            at.setdefault(of_curve, without_lr(point))
            found.setdefault(of_curve, {})[run.lr, run.seed] = run
    return [
        Grown(
            id=of_curve,
            label=_label(of_curve, at, runs),
            method=next(iter(runs.values())).method,
            at=at[of_curve],
            declared=tuple(sorted({lr for lr, _ in runs} - set(extension.lr(of_curve)))),
            runs=runs,
            results={run.id: result for run in runs.values() if (result := store.result(run.id))},
        )
        for of_curve, runs in sorted(
            found.items(), key=lambda item: repr(sorted(at[item[0]].items(), key=repr))
        )
    ]


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
        cost=lambda key: _seconds(curves[key], store) * curves[key].gpus(gpus),
        room=_room(sweep, store) if room is None else room,
    )
    wanted = {each.curve: each.lr for each in plan}
    costs = {key: len(lr) * _seconds(curves[key], store) for key, lr in wanted.items()}
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

    Each round is remembered beside the store before it is launched, and only its runs are. Runs
    that another launch or a queue still trains end the rounds; the same command goes on.
    ``rounds``: so many from here on, whatever has been spent; by default what the sweep declares.
    """
    report = Report()
    start = remembered(load(), store) if rounds is not None else None
    while report.ok:
        sweep = load()
        proposal = propose(sweep, store, rounds=rounds, since=start)
        say("\n".join(proposal.lines))
        if not proposal.additions and refine:
            refine, proposal = False, propose_refinement(sweep, store)
            say("\n".join(proposal.lines) or "Nothing to refine: no curve is whole.")
        if not proposal.additions:
            return report
        added = remember(sweep, store, proposal)
        grown = load()
        new = frozenset(run.id for run in _added(grown, added))
        if new:
            latest = launch(replace(grown, only=new), store)
            report = replace(latest, counts=report.counts + latest.counts)
    return report


def remember(sweep: Sweep, store: RunStore, proposal: Proposal) -> Round:
    """Add a round to what the store remembers of the sweep."""
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    added = Round(proposal.kind, now, proposal.additions)
    extension = remembered(sweep, store)
    write(path_of(store.root, sweep.grows_as), Extension((*extension.rounds, added)))
    return added


def remembered(sweep: Sweep, store: RunStore) -> Extension:
    """The rounds of a sweep so far.

    Raises:
        ConfigError: the sweep has no file to grow with.
    """
    if not sweep.file:
        raise ConfigError(
            f"Only the sweeps of files grow, and only where no override states {LR}: leave it out, "
            "or declare the sweep in sweeps/."
        )
    return read(path_of(store.root, sweep.grows_as))


def _added(sweep: Sweep, added: Round) -> Iterator[Run]:
    """The runs of a sweep that a round has added."""
    curve_id = CurveIds(Composer())
    lr = {each.curve: each.lr for each in added.additions}
    for run, point in zip(sweep.runs, sweep.points, strict=True):
        if LR in point and run.lr in lr.get(curve_id(point), ()):
            yield run


def _room(sweep: Sweep, store: RunStore) -> float:
    """Seconds of training, times GPUs where they are used, that the sweep's budget leaves."""
    if sweep.budget is None:
        return math.inf
    plan = make_plan(sweep, store)
    return max(0.0, 3600 * (sweep.budget - plan.spent - plan.committed))


def _seconds(curve: Grown, store: RunStore) -> float:
    """What one learning rate of a curve costs: all its seeds, at the pace of its slowest run."""
    last = [store.records(run_id)[-1] for run_id in curve.results]
    paces = [record["seconds"] / record["step"] for record in last if record["step"]]
    steps = next(iter(curve.runs.values())).train.steps
    return max(paces, default=0.0) * steps * curve.seeds


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else math.nan


def _label(curve: str, at: Mapping[str, Point], runs: Mapping[tuple[float, int], Run]) -> str:
    """The method, and what tells the curve apart from its others."""
    mine = at[curve]
    same = [other for other in at.values() if other.get("optimizer") == mine.get("optimizer")]
    keys = sorted({key for other in same for key in other if other.get(key) != mine.get(key)})
    words = [f"{key}={mine[key]}" for key in keys if key in mine]
    method = next(iter(runs.values())).method
    return f"{method} ({', '.join(words)})" if words else method


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
