"""When a grid of learning rates must grow, and to where: pure functions of one curve's points.

A curve is one method's loss against its learning rate. Its *basin* is the connected interval around
the best point where the loss stays within a share ``Q`` of what was learned: the usable width of
``analysis.robustness``, and the same one. A grid says where an optimum lies, and how wide its
basin is, only where it reaches beyond the basin on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise, zip_longest
from typing import Any, Literal

from .errors import ConfigError, nearest

Q = 0.05  # share of the loss drop (initial loss - best) that a usable learning rate may lose
LOWEST, HIGHEST = 1e-8, 1e5  # no extension goes beyond these learning rates

# What ends a side of a curve:
# - bounded: ``guard`` points beyond the basin, or a later one that no longer learns;
# - divergence: the next point beyond the basin diverged, or ended above its initial loss;
# - certified: the edge is in the basin, and every larger learning rate repeats it bit by bit;
# - open: the edge is in the basin, or fewer than ``guard`` points lie beyond it;
# - limit: open, and the next point would lie beyond LOWEST or HIGHEST.
Ending = Literal["bounded", "divergence", "certified", "open", "limit"]


@dataclass(frozen=True)
class Extend:
    """What a sweep file says under ``extend``."""

    rounds: int = 3  # how often a curve may be extended
    per_decade: int | None = None  # spacing of the new points; null: that of the declared grid
    guard: int = 2  # points wanted beyond the basin, on either side


@dataclass(frozen=True)
class Points:
    """The n points of one curve, by ascending learning rate."""

    lr: Sequence[float]
    loss: Sequence[float]  # mean over seeds in nats, each run's at most its initial loss
    initial: float  # mean loss at initialisation, nats
    diverged: Sequence[bool]  # some seed diverged
    ceiling: Sequence[bool]  # some seed diverged, or ended above its initial loss
    done: Sequence[bool]  # all seeds have a result
    certified: Sequence[bool]  # every seed certifies all larger learning rates


@dataclass(frozen=True)
class Side:
    """One side of a curve: what ends it, and the learning rates that are wanted next."""

    ending: Ending
    beyond: int  # points outside of the basin on this side
    wanted: tuple[float, ...] = ()  # to be run where open, drawn where certified

    @property
    def censored(self) -> bool:
        """Whether the basin goes on beyond the edge of what was run."""
        return self.ending in ("open", "limit") and self.beyond == 0


@dataclass(frozen=True)
class Decision:
    """What one curve's points say; without sides where some of them are not done."""

    best: int | None = None  # index of the optimum; None where nothing was learned
    left: Side | None = None
    right: Side | None = None

    @property
    def waiting(self) -> bool:
        return self.left is None

    @property
    def to_run(self) -> tuple[float, ...]:
        """The learning rates to be run next, those next to the grid's edges first."""
        sides = [side.wanted for side in self.sides if side.ending == "open"]
        return tuple(lr for both in zip_longest(*sides) for lr in both if lr is not None)

    @property
    def to_draw(self) -> tuple[float, ...]:
        """The learning rates that are certified instead of run."""
        return tuple(lr for side in self.sides if side.ending == "certified" for lr in side.wanted)

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(side for side in (self.left, self.right) if side is not None)


def parse_extend(value: Any, where: str) -> Extend:
    """The settings under the key ``extend`` of the sweep file ``where``.

    Raises:
        ConfigError: no mapping, an unknown key, a value that is no count above 0.
    """
    known = [field.name for field in fields(Extend)]
    example = "extend: {rounds: 3, per_decade: 2, guard: 2}"
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: extend must be a mapping such as '{example}', not {value!r}.")
    for key, count in value.items():
        if key not in known:
            raise ConfigError(
                f"{where}: extend has the unknown key '{key}'.{nearest(str(key), known)} "
                f"It may have: {', '.join(known)}."
            )
        if key == "per_decade" and count is None:
            continue
        if type(count) is not int or count < 1:
            raise ConfigError(f"{where}: extend.{key} must be a count above 0, not {count!r}.")
    return Extend(**value)


def grid_point(k: int, per_decade: int) -> float:
    """10^(k / per_decade) in four significant digits: what every log grid is made of."""
    return float(f"{10 ** (k / per_decade):.4g}")


def spacing(lr: Sequence[float]) -> int:
    """Points per decade of a declared grid: the median of its steps; 2 where it has one point."""
    steps = sorted(math.log10(b / a) for a, b in pairwise(lr))
    return max(1, round(1 / steps[len(steps) // 2])) if steps else 2


def drop(best: float, initial: float) -> float:
    """The largest loss within the basin that the grids grow by."""
    return best + Q * (initial - best)


def decide(
    points: Points,
    guard: int,
    per_decade: int,
    top: Callable[[float, float], float] = drop,
) -> Decision:
    """Where a curve's grid must grow, so that ``guard`` points lie beyond its basin on each side.

    The basin: the points connected to the best one whose loss is at most ``top(best, initial)``.

    A hole (a point with a seed that is not done) decides nothing: the point may yet be the best, or
    diverge. Divergence beyond the basin ends a side whatever the guard, for further out all
    diverges. Where nothing was learned, all learning rates were too large, and only smaller ones
    are wanted.
    """
    if not points.lr or not all(points.done):
        return Decision()
    best = _best(points)
    if best is None:
        none_wanted = Side("divergence", len(points.lr))
        return Decision(None, _side(points, -1, 0, guard, per_decade), none_wanted)
    level = top(points.loss[best], points.initial)
    low = high = best
    while low > 0 and points.loss[low - 1] <= level:
        low -= 1
    while high < len(points.lr) - 1 and points.loss[high + 1] <= level:
        high += 1
    left = _side(points, -1, low, guard, per_decade)
    return Decision(best, left, _side(points, +1, len(points.lr) - 1 - high, guard, per_decade))


def _best(points: Points) -> int | None:
    """Index of the lowest loss without divergence; None where nothing was learned."""
    usable = [i for i, loss in enumerate(points.loss) if not points.diverged[i] and loss == loss]
    best = min(usable, key=lambda i: points.loss[i], default=None)
    return best if best is not None and points.loss[best] < points.initial else None


def _side(points: Points, step: int, beyond: int, guard: int, per_decade: int) -> Side:
    """The side with ``beyond`` points outside of the basin, to the left (-1) or right (+1)."""
    outside = points.ceiling[:beyond][::-1] if step < 0 else points.ceiling[-beyond or None :]
    if beyond and outside[0]:
        return Side("divergence", beyond)
    if beyond >= guard or (beyond and any(outside)):
        return Side("bounded", beyond)
    edge = points.lr[0 if step < 0 else -1]
    wanted = _next(edge, step, guard - beyond, per_decade)
    if step > 0 and points.certified[-1]:
        return Side("certified", beyond, wanted)
    return Side("open" if wanted else "limit", beyond, wanted)


def _next(edge: float, step: int, count: int, per_decade: int) -> tuple[float, ...]:
    """The ``count`` points of the log grid beyond ``edge``, those within the bounds."""
    k = round(math.log10(edge) * per_decade)
    points = [grid_point(k + step * n, per_decade) for n in range(1, count + 1)]
    return tuple(lr for lr in points if LOWEST <= lr <= HIGHEST)


def refinement(lr: Sequence[float], best: int) -> tuple[float, ...]:
    """The points half way, in log lr, between the best one and its neighbours."""
    neighbours = [lr[i] for i in (best - 1, best + 1) if 0 <= i < len(lr)]
    return tuple(sorted(_half_way(lr[best], other) for other in neighbours))


def _half_way(a: float, b: float) -> float:
    x, per_decade = math.log10(a * b) / 2, round(2 / abs(math.log10(a / b))) or 1
    k = round(x * per_decade)
    on_grid = abs(x * per_decade - k) < 0.01  # the rounding to four digits aside
    return grid_point(k, per_decade) if on_grid else float(f"{10**x:.4g}")


@dataclass(frozen=True)
class Wanted:
    """A curve's part in a round: the learning rates to run, all seeds of each."""

    curve: str
    lr: tuple[float, ...]


def plan_round(
    decisions: Mapping[str, Decision],
    spent: Mapping[str, int],
    rounds: int,
    *,
    cost: Callable[[str], float] = lambda curve: 0.0,
    room: float = math.inf,
) -> list[Wanted]:
    """The next points of all curves that want some and have rounds left, as far as ``room`` goes.

    ``spent``: rounds that each curve has had. ``cost``: of one point of a curve, all its seeds, in
    the unit of ``room``. A point that does not fit is left out, with all that are further out on
    the same side. Curves that have had fewer rounds come first; the order of ``decisions`` does not
    matter.
    """
    plan = []
    for curve in sorted(decisions, key=lambda curve: (spent.get(curve, 0), curve)):
        wanted = decisions[curve].to_run if spent.get(curve, 0) < rounds else ()
        each = cost(curve) if wanted and math.isfinite(room) else 0.0
        fitting = math.floor(room / each) if each > 0 else len(wanted)
        wanted = wanted[: max(0, fitting)]
        room -= len(wanted) * each
        if wanted:
            plan.append(Wanted(curve, wanted))
    return plan


def account(decision: Decision, points: Points) -> list[str]:
    """What a curve's grid leaves open, and what ends it, in words; a sentence a side at most."""
    if decision.waiting:
        return []
    if decision.best is None:
        return [f"nothing was learned at any lr from {points.lr[0]:.4g} on"]
    ends = (("left", points.lr[0]), ("right", points.lr[-1]))
    words = [_words(*end, side) for end, side in zip(ends, decision.sides, strict=True)]
    return [f"{name}: {text}" for (name, _), text in zip(ends, words, strict=True) if text]


def _words(name: str, edge: float, side: Side) -> str:
    beyond = "smaller" if name == "left" else "larger"
    if side.ending == "bounded":
        return ""
    if side.ending == "divergence":
        return "bounded by divergence"
    if side.ending == "certified":
        return f"every lr above {edge:.4g} repeats it bit by bit (certified)"
    bounds = f", and {LOWEST:g} and {HIGHEST:g} are the bounds" if side.ending == "limit" else ""
    if side.censored:
        return f"the basin reaches {edge:.4g}, the edge of the grid: a {beyond} lr may do{bounds}"
    return f"only {side.beyond} of the points wanted lie beyond the basin{bounds}"
