"""The curves of a sweep as its rounds see them, and what a round proposes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from ..certify import contradict, why_not, why_not_any
from ..config import Composer, Run
from ..errors import ConfigError
from ..extend import Points
from ..extension import LR, Addition, CurveIds, Extension, path_of, read, without_lr
from ..store import Result, RunStore
from ..sweep import Axes, Point, Sweep
from .plan import make_plan


@dataclass(frozen=True)
class Grown:
    """A curve of the store: one method in one setting, its runs by learning rate and seed."""

    id: str
    label: str
    method: str
    at: Point  # the overrides that its runs share
    declared: tuple[float, ...]  # learning rates of the sweep's own grid, ascending
    then: Axes  # of its second stage; {} for none
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

    kind: str  # extend, refine, then
    additions: tuple[Addition, ...]
    lines: tuple[str, ...]
    waiting: bool  # for runs that are not done

    @property
    def runs(self) -> int:
        """Learning rates to be run, over all curves."""
        return sum(len(each.lr) for each in self.additions)


def curves_of(sweep: Sweep, store: RunStore, extension: Extension) -> list[Grown]:
    """The curves of a sweep whose learning rate is an axis, by method and setting.

    The runs of the second stage are no part of them.
    """
    curve_id = CurveIds(Composer())
    found: dict[str, dict[tuple[float, int], Run]] = {}
    at: dict[str, Point] = {}
    then: dict[str, Axes] = {}
    for run, point, axes in zip(sweep.runs, sweep.points, sweep.then, strict=True):
        if LR in point and run.id in sweep.first_ids:
            of_curve = curve_id(point)
            then.setdefault(of_curve, axes)
            at.setdefault(of_curve, without_lr(point))
            found.setdefault(of_curve, {})[run.lr, run.seed] = run
    return [
        Grown(
            id=of_curve,
            label=_label(of_curve, at, runs),
            method=next(iter(runs.values())).method,
            at=at[of_curve],
            declared=tuple(sorted({lr for lr, _ in runs} - set(extension.lr(of_curve)))),
            then=then[of_curve],
            runs=runs,
            results={run.id: result for run in runs.values() if (result := store.result(run.id))},
        )
        for of_curve, runs in sorted(
            found.items(), key=lambda item: repr(sorted(at[item[0]].items(), key=repr))
        )
    ]


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


def room_of(sweep: Sweep, store: RunStore) -> float:
    """Seconds of training, times GPUs where they are used, that the sweep's budget leaves."""
    if sweep.budget is None:
        return math.inf
    plan = make_plan(sweep, store)
    return max(0.0, 3600 * (sweep.budget - plan.spent - plan.committed))


def seconds_of(curve: Grown, store: RunStore) -> float:
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
