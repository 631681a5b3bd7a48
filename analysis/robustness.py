"""How much a method's result depends on its learning rate, in numbers with their censoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .curves import Curve

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


def usable_width(curve: Curve, q: float = 0.05) -> Width | None:
    """The connected interval around the best lr where l <= l* + q (l_0 - l*).

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
    level = optimum.loss + q * (curve.ceiling - optimum.loss)
    return Width(
        left=_side(curve, optimum.index, -1, level), right=_side(curve, optimum.index, +1, level)
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
    return _trapezoidal_mean(x[there], excess)


def _trapezoidal_mean(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) == 1:
        return float(y[0])
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))


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
