"""How much a method's result depends on its learning rate, in numbers with their censoring.

A metric is a ``Measure``: called with a curve, it gives a ``Metric``. All of them are defined here
and nowhere else. ``l(lr)``: mean over seeds of the final loss, never above the initial loss l_0;
l*: its value at lr*, the best learning rate of the grid (see ``best``); x: log10 lr, in decades.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from . import kernels
from .curves import Curve
from .kernels import Interpolation, Level, Values, trapezoidal_mean
from .stack import Stack, stacked

Censoring = Literal["interior", "left", "right", "both", "divergence", "flat", "hole", "undefined"]
Where = Literal["interior", "left", "right", "both", "hole"]
Bound = Literal["crossing", "ceiling", "edge", "hole"]


@dataclass(frozen=True)
class Optimum:
    """The best point of a curve's grid."""

    index: int
    lr: float
    loss: float  # l*, nats, mean over seeds
    std: float  # sample standard deviation, nats; NaN with one seed
    seeds: int
    where: Where  # on which edge of the grid, beside a point without results, or truly inside


@dataclass(frozen=True)
class Side:
    """One end of the usable interval."""

    lr: float
    bound: Bound  # 'edge' and 'hole' censor: the true end lies beyond

    @property
    def censored(self) -> bool:
        return self.bound in ("edge", "hole")


@dataclass(frozen=True)
class Width:
    """The usable interval of learning rates, and what bounds it on either side."""

    left: Side
    right: Side

    @property
    def decades(self) -> float:
        return float(np.log10(self.right.lr / self.left.lr))

    @property
    def censored(self) -> bool:
        return self.left.censored or self.right.censored


def best(curve: Curve) -> Optimum | None:
    """The grid point with the lowest seed mean, of those where no seed diverged.

    Ties go to the smaller learning rate. None where every point diverged or is a hole.
    """
    usable = (curve.n > 0) & (curve.n_diverged == 0) & np.isfinite(curve.mean)
    if not usable.any():
        return None
    i = int(np.argmin(np.where(usable, curve.mean, np.inf)))
    return Optimum(
        index=i,
        lr=float(curve.lr[i]),
        loss=float(curve.mean[i]),
        std=float(curve.std[i]),
        seeds=int(curve.n[i]),
        where=_where(curve, i),
    )


def usable_width(curve: Curve, q: float = 0.05, level: Level = "drop") -> Width | None:
    """The connected interval around the best lr where l <= l* + q (l_0 - l*).

    Or below another level, see ``width``.

    l: mean final loss over seeds; l*: its value at the best lr; l_0: mean initial loss. From the
    best point outwards, an end of the interval is
    - 'crossing': where the line between the last point inside and the first one outside, drawn in
      log lr, reaches the level;
    - 'ceiling': the last point inside itself, where some seed of the next one counts with the
      ceiling (it diverged, or ended above its initial loss). The ceiling is a convention, so
      nothing is interpolated towards it;
    - 'edge' or 'hole': the last point itself, where the grid ends or the next point has no result.
    None where nothing was learned: no best point, or l* >= l_0.
    """
    optimum = best(curve)
    if optimum is None or not optimum.loss < curve.ceiling:
        return None
    top = float(kernels.top(optimum.loss, curve.ceiling, q, level))
    return Width(
        left=_side(curve, optimum.index, -1, top), right=_side(curve, optimum.index, +1, top)
    )


def lr_sensitivity(curve: Curve) -> float:
    """Mean over the grid of min(l, l_0) - l*, in nats (arXiv 2309.14322, section 2.2).

    On a grid that is not uniform in log lr, the trapezoidal mean over log lr, so that a refined
    region does not weigh more. Points without results are left out. NaN where nothing was learned:
    no best point, or none below the initial loss.
    The grid is the curve's own: values over different grids do not compare.
    """
    optimum = best(curve)
    if optimum is None or not optimum.loss < curve.ceiling:
        return float("nan")
    there = curve.n > 0
    excess = curve.mean[there] - optimum.loss
    x = np.log10(curve.lr)
    if len(x) < 3 or np.ptp(np.diff(x)) < 1e-2 * np.diff(x).max():
        return float(excess.mean())
    return trapezoidal_mean(x[there], excess)


def _where(curve: Curve, i: int) -> Where:
    last = len(curve.lr) - 1
    if i in (0, last):
        return "both" if last == 0 else "left" if i == 0 else "right"
    return "interior" if curve.n[i - 1] and curve.n[i + 1] else "hole"


def _side(curve: Curve, i: int, step: Literal[-1, 1], level: float) -> Side:
    """Walk from point ``i``, which is inside, until the first point that is not."""
    j = i + step
    while 0 <= j < len(curve.lr) and curve.mean[j] <= level:
        i, j = j, j + step
    if not 0 <= j < len(curve.lr):
        return Side(float(curve.lr[i]), "edge")
    if curve.n[j] == 0:
        return Side(float(curve.lr[i]), "hole")
    if curve.capped[j]:
        return Side(float(curve.lr[i]), "ceiling")
    share = (level - curve.mean[i]) / (curve.mean[j] - curve.mean[i])
    x_i, x_j = np.log10(curve.lr[i]), np.log10(curve.lr[j])
    return Side(float(10 ** (x_i + share * (x_j - x_i))), "crossing")


@dataclass(frozen=True)
class Metric:
    """One robustness number of one curve, with what cuts it off and the grid it was computed on.

    The grid may not pin the truth down even without noise: then it lies between ``low`` and
    ``high`` (infinite where the grid's edge or a hole cuts it, a grid step away where divergence
    does), and ``value`` is what the grid shows. ``censoring``:
    - 'interior': nothing cuts it, low = value = high;
    - 'left', 'right', 'both': the edge of the grid, on the side named;
    - 'hole': a point without results;
    - 'divergence': a diverged neighbour, so known to within one step of the grid;
    - 'flat': the optimum's place is hidden by the noise between seeds (its plateau has three points
      or more that the noise does not tell apart);
    - 'undefined': nothing was learned, value is NaN.
    """

    name: str
    value: float
    unit: str
    censoring: Censoring
    grid: tuple[float, ...]  # learning rates with results
    low: float
    high: float


@dataclass(frozen=True)
class Measure:
    """A metric as a function of a curve, its options fixed.

    ``is_log``: the values are log10 of a learning rate; ``Metric`` holds the learning rate, and
    differences are in decades.
    """

    name: str
    unit: str
    values: Callable[[Stack], Values] = field(repr=False)
    is_log: bool = False
    higher_is_better: bool | None = False  # None: neither, such as the place of the optimum
    least: float = 0.0  # no value lies below: an interval ends there

    def __call__(self, curve: Curve) -> Metric:
        found = self.values(stacked(curve))
        back = (lambda v: float(10.0**v)) if self.is_log else float
        return Metric(
            name=self.name,
            value=back(found.value[0]),
            unit=self.unit,
            censoring=str(found.censoring[0]),  # pyright: ignore[reportArgumentType]
            grid=tuple(float(lr) for lr in curve.lr[curve.n > 0]),
            low=back(found.low[0]),
            high=back(found.high[0]),
        )


def best_lr() -> Measure:
    """The learning rate of the lowest seed mean on the grid, of those where no seed diverged.

    The truth lies between its two neighbours, or anywhere on its plateau where that is flat.
    """
    return Measure(
        "best lr", "lr", kernels.best_lr, is_log=True, higher_is_better=None, least=-np.inf
    )


def best_loss() -> Measure:
    """l*, the lowest seed mean on the grid; 'at most' where the optimum is on the grid's edge."""
    return Measure("best loss", "loss", kernels.best_loss, least=-np.inf)


def best_lr_interpolated() -> Measure:
    """The vertex of the parabola in log lr through the best point and its two neighbours.

    A monotone cubic (PCHIP) cannot give it: it never goes below its data, so its minimum is the
    grid's (a test shows it). Undefined at an edge, beside a hole or a diverged point.
    """
    return Measure(
        "best lr, interpolated",
        "lr",
        lambda s: kernels.vertex(s)[0],
        is_log=True,
        higher_is_better=None,
        least=-np.inf,
    )


def best_loss_interpolated() -> Measure:
    """The loss at that vertex."""
    return Measure("best loss, interpolated", "loss", lambda s: kernels.vertex(s)[1], least=-np.inf)


def width(
    q: float = 0.05, level: Level = "drop", interpolation: Interpolation = "linear"
) -> Measure:
    """W_q: decades of the connected interval around lr* where l stays below a level.

    The level is l* + q (l_0 - l*) ('drop'), (1 + q) l* ('relative') or l* + q ('absolute', in the
    unit of the loss). Ends as in ``usable_width``; between the last point inside and the first one
    outside, the crossing lies on a straight line in log lr, or on the monotone cubic (PCHIP)
    through the points that do not count with the ceiling.
    """
    return Measure(
        f"usable width at {_level_name(q, level)}",
        "decades",
        lambda s: kernels.width(s, q, level, interpolation, ("left", "right")),
        higher_is_better=True,
    )


def width_left(
    q: float = 0.05, level: Level = "drop", interpolation: Interpolation = "linear"
) -> Measure:
    """The part of W_q below lr*: how far the learning rate may be too small."""
    return Measure(
        f"usable width below the optimum at {_level_name(q, level)}",
        "decades",
        lambda s: kernels.width(s, q, level, interpolation, ("left",)),
        higher_is_better=True,
    )


def width_right(
    q: float = 0.05, level: Level = "drop", interpolation: Interpolation = "linear"
) -> Measure:
    """The part of W_q above lr*: how far the learning rate may be too large."""
    return Measure(
        f"usable width above the optimum at {_level_name(q, level)}",
        "decades",
        lambda s: kernels.width(s, q, level, interpolation, ("right",)),
        higher_is_better=True,
    )


def sensitivity() -> Measure:
    """LR sensitivity: mean over the grid of min(l, l_0) - l* (arXiv 2309.14322, section 2.2).

    As ``lr_sensitivity``. A hole makes it uncertain by what it could cost, between 0 and l_0 - l*.
    Over different grids the numbers do not compare.
    """
    return Measure("LR sensitivity", "loss", kernels.sensitivity)


def centred_sensitivity(decades: float = 1.0) -> Measure:
    """The same over lr* 10^-decades to lr* 10^decades: the integral over log lr, by its length.

    It does not depend on where the grid lies. Undefined, with the side named, where the grid does
    not cover that window.
    """
    return Measure(
        f"LR sensitivity within {decades:g} decade{'s' if decades != 1 else ''} of the optimum",
        "loss",
        lambda s: kernels.centred(s, decades),
    )


def misset(factor: float) -> Measure:
    """l(factor lr*) - l*: what a learning rate wrong by this factor costs.

    On straight lines in log lr between grid points; undefined off the grid.
    """
    return Measure(f"loss at {factor:g} x the best lr", "loss", lambda s: kernels.misset(s, factor))


def largest_stable_lr() -> Measure:
    """The last learning rate, going up from lr*, at which every seed ends below its initial loss.

    The truth lies between it and the next point of the grid.
    """
    return Measure(
        "largest stable lr", "lr", kernels.largest_stable, is_log=True, higher_is_better=True
    )


def stable_range() -> Measure:
    """Decades of the connected range around lr* where every seed ends below its initial loss."""
    return Measure("stable range", "decades", kernels.stable_range, higher_is_better=True)


def first_diverging_lr() -> Measure:
    """The first learning rate, going up from lr*, at which some seed diverged.

    Undefined with censoring 'right' where none did: it lies beyond the grid.
    """
    return Measure(
        "first diverging lr", "lr", kernels.first_diverging, is_log=True, higher_is_better=True
    )


def regret_area(best_of_any: float) -> Measure:
    """Mean over the grid's log lr of min(1, (l - L) / (l_0 - L)), L: best loss of any method.

    Joins quality and robustness: 0 is the best loss everywhere, 1 is nothing learned anywhere.
    """
    return Measure("regret area", "share", lambda s: kernels.regret_area(s, best_of_any))


def success_rate(loss: float) -> Measure:
    """Share of the grid's points whose seed mean is at most ``loss``, no seed having diverged.

    Holes count as either. Over different grids the numbers do not compare.
    """
    return Measure(
        f"share of lrs at or below {loss:g}",
        "share",
        lambda s: kernels.success(s, loss),
        higher_is_better=True,
    )


def tuning_area(trials: int = 10) -> Measure:
    """Mean over k = 1..trials of E_k - l*: what random search over the grid leaves on the table."""
    return Measure(
        f"cost of tuning with up to {trials} trials",
        "loss",
        lambda s: kernels.tuning_area(s, trials),
    )


def tuning_budget(curve: Curve, k: int | np.ndarray) -> np.ndarray:
    """E_k: expected best seed mean after k learning rates drawn log-uniformly from the grid.

    With replacement: on an even grid E_k = sum_j l_(j) [(n-j+1)^k - (n-j)^k] / n^k over the sorted
    losses; on an uneven one each point weighs what it covers of log lr. A point where seeds
    diverged counts with its capped mean. NaN where a hole leaves the curve unknown. Shape of ``k``.
    """
    trials = np.asarray(k)
    if (trials < 1).any():
        raise ValueError(f"Expected counts of trials from 1 up, found {trials.min()}.")
    expected = kernels.expected_best(stacked(curve), trials.ravel())[0]
    return expected.reshape(trials.shape)


def transfer_regret(source: Curve, target: Curve) -> Metric:
    """l(lr*_A) - l* on B, lr* tuned on A (another model, scale or horizon), used on B.

    On straight lines in log lr between the grid points of B; undefined off its grid.
    """
    a, b = stacked(source), stacked(target)
    values = kernels.excess_at(b, a.best_x, a.found & b.found)
    return Metric(
        name=f"transfer regret from {source.label} to {target.label}",
        value=float(values.value[0]),
        unit="loss",
        censoring=str(values.censoring[0]),  # pyright: ignore[reportArgumentType]
        grid=tuple(float(lr) for lr in target.lr[target.n > 0]),
        low=float(values.low[0]),
        high=float(values.high[0]),
    )


def performance_profile(table: pd.DataFrame, taus: np.ndarray | None = None) -> pd.DataFrame:
    """rho_s(tau): share of the problems on which method s costs at most tau times the cheapest.

    ``table``: one row per method and problem, columns ``method``, ``problem``, ``cost`` (above 0,
    lower is better; inf: never got there). Gives a row per method and tau, columns ``method``,
    ``tau``, ``share``; a method without a row for a problem never got there.
    """
    ratios = _ratios(table)
    taus = np.linspace(1, 4, 301) if taus is None else np.asarray(taus, float)
    share = (ratios.to_numpy()[:, :, None] <= taus).mean(axis=1)
    return pd.DataFrame(
        {
            "method": np.repeat(ratios.index.to_numpy(), len(taus)),
            "tau": np.tile(taus, len(ratios)),
            "share": share.ravel(),
        }
    )


def profile_score(table: pd.DataFrame, tau_max: float = 4.0) -> pd.Series:
    """AlgoPerf's score: the integral of rho over tau from 1 to ``tau_max``, by its length.

    In closed form: the mean over problems of (tau_max - ratio)_+ / (tau_max - 1).
    """
    ratios = _ratios(table)
    return ((tau_max - ratios).clip(lower=0) / (tau_max - 1)).mean(axis=1).rename("score")


def _ratios(table: pd.DataFrame) -> pd.DataFrame:
    """Methods by problems: cost over the cheapest method's, inf where it never got there."""
    if (table["cost"] <= 0).any():
        raise ValueError("A performance profile needs costs above 0.")
    costs = table.pivot(index="method", columns="problem", values="cost").fillna(np.inf)
    cheapest = costs.min(axis=0).replace(np.inf, np.nan)
    return (costs / cheapest).fillna(np.inf)


def _level_name(q: float, level: Level) -> str:
    return {"drop": f"{100 * q:g} %", "relative": f"{100 * q:g} % of l*", "absolute": f"{q:g}"}[
        level
    ]
