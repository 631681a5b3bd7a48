"""B versions of one curve over one grid: as measured (B = 1), or resampled over its seeds.

Every metric of ``analysis.robustness`` is written on such a stack, so that an interval recomputes
the whole metric in one pass over arrays, and the point estimate is the case B = 1 of the same code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.special import stdtrit  # quantile of Student's t

from .curves import Curve

NEAR = 0.01  # decades; grids are written in four digits, so 10^-1.5 stands as 0.03162
PLATEAU = 3  # points that tell a plateau from two neighbours of one optimum


@dataclass(frozen=True, eq=False)
class Stack:
    """B curves: seed means in the unit of the loss, lower is better; holes are NaN."""

    x: np.ndarray  # (n,) log10 of the learning rates, ascending
    mean: np.ndarray  # (B, n) diverged seeds count with the ceiling
    known: np.ndarray  # (B, n) bool, some seed has a result
    diverged: np.ndarray  # (B, n) bool, some seed diverged
    capped: np.ndarray  # (B, n) bool, some seed counts with the ceiling
    ceiling: np.ndarray  # (B,) l_0
    plateau: tuple[int, int] | None = None  # first and last point of a best that noise hides

    @cached_property
    def best(self) -> np.ndarray:
        """(B,) Index of the lowest seed mean where no seed diverged, the smaller lr in a tie."""
        return np.argmin(np.where(self._usable, self.mean, np.inf), axis=1)

    @cached_property
    def found(self) -> np.ndarray:
        """(B,) bool: there is a best point at all."""
        return np.any(self._usable, axis=1)

    @cached_property
    def learned(self) -> np.ndarray:
        """(B,) bool: the best point is below the initial loss."""
        return np.less(self.best_loss, self.ceiling)  # NaN where there is none

    @cached_property
    def best_loss(self) -> np.ndarray:
        """(B,) l*; NaN where there is none."""
        loss = self.mean[np.arange(len(self.mean)), self.best]
        return np.where(self.found, loss, np.nan)

    @property
    def best_x(self) -> np.ndarray:
        """(B,) log10 of the best learning rate of the grid."""
        return self.x[self.best]

    @property
    def _usable(self) -> np.ndarray:
        return self.known & ~self.diverged & np.isfinite(self.mean)

    @property
    def is_uniform(self) -> bool:
        """The grid is evenly spaced in log lr, up to rounding."""
        spacing = np.diff(self.x)
        return len(spacing) < 2 or bool(np.ptp(spacing) < 1e-2 * spacing.max())

    def mirrored(self) -> Stack:
        """The same curves with log lr running the other way."""
        flipped = {
            name: getattr(self, name)[:, ::-1] for name in ("mean", "known", "diverged", "capped")
        }
        last = len(self.x) - 1
        mirror = replace(self, x=-self.x[::-1], plateau=None, **flipped)
        # a tie of the best goes to the smaller lr on both sides
        mirror.__dict__["best"] = last - self.best
        return mirror

    def at(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) losses at (B,) log learning rates, on straight lines in log lr, and their censoring.

        NaN with 'left' or 'right' outside of the grid, with 'hole' where a neighbour has no result.
        """
        outside = np.where(
            x < self.x[0] - NEAR, "left", np.where(x > self.x[-1] + NEAR, "right", "")
        )
        rows = np.arange(len(self.mean))
        nearest = np.argmin(np.abs(self.x - x[:, None]), axis=1)
        on_grid = np.abs(self.x[nearest] - x) <= NEAR
        k, share = self._cell(x)
        right = np.minimum(k + 1, len(self.x) - 1)
        line = (1 - share) * self.mean[rows, k] + share * self.mean[rows, right]
        loss = np.where(on_grid, self.mean[rows, nearest], line)
        hole = (outside == "") & np.isnan(loss)
        return np.where(outside == "", loss, np.nan), np.where(hole, "hole", outside)

    def integral(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(B,) integrals of the loss over log lr from a to b, and their censoring, as ``at``."""
        a, b = self._snapped(a), self._snapped(b)
        left, right = a < self.x[0] - NEAR, b > self.x[-1] + NEAR
        outside = np.select([left & right, left, right], ["both", "left", "right"], "")
        a, b = np.clip(a, *self.x[[0, -1]]), np.clip(b, *self.x[[0, -1]])
        total = self._primitive(np.nan_to_num(self.mean), b) - self._primitive(
            np.nan_to_num(self.mean), a
        )
        gap = np.isnan(self.mean).astype(float)
        missing = self._primitive(gap, b) - self._primitive(gap, a) > 1e-9
        code = np.where((outside == "") & missing, "hole", outside)
        return np.where(code == "", total, np.nan), code

    def _cell(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The grid point left of x, and how far towards the next one x lies, in [0, 1]."""
        if len(self.x) == 1:
            return np.zeros(len(x), int), np.zeros(len(x))
        k = np.clip(np.searchsorted(self.x, x, side="right") - 1, 0, len(self.x) - 2)
        return k, np.clip((x - self.x[k]) / (self.x[k + 1] - self.x[k]), 0, 1)

    def _snapped(self, x: np.ndarray) -> np.ndarray:
        nearest = self.x[np.argmin(np.abs(self.x - x[:, None]), axis=1)]
        return np.where(np.abs(nearest - x) <= NEAR, nearest, x)

    def _primitive(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """(B,) integral of the piecewise linear y, (B, n), from the first grid point to x."""
        if len(self.x) == 1:
            return np.zeros(len(x))
        spacing = np.diff(self.x)
        steps = spacing * (y[:, 1:] + y[:, :-1]) / 2
        whole = np.concatenate([np.zeros((len(y), 1)), np.cumsum(steps, axis=1)], axis=1)
        k, share = self._cell(x)
        rows = np.arange(len(y))
        left, right = y[rows, k], y[rows, k + 1]
        part = spacing[k] * share * (left + share * (right - left) / 2)
        return whole[rows, k] + part


def stacked(curve: Curve, weights: np.ndarray | None = None) -> Stack:
    """The curve as measured, or with its seeds counted ``weights``, (B, S), times each."""
    own = np.ones((1, len(curve.seeds))) if weights is None else np.asarray(weights, float)
    done, planned = curve.done.astype(float), (curve.run != "").astype(float)
    count = own @ done.T
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (own @ np.where(curve.done, curve.loss, 0.0).T) / count
        initial = np.where(planned > 0, curve.initial, 0.0)
        ceiling = (own @ initial.sum(axis=0)) / (own @ planned.sum(axis=0))
    at_ceiling = curve.diverged | (curve.done & (curve.loss >= curve.initial))
    return Stack(
        x=np.log10(curve.lr),
        mean=mean,
        known=count > 0,
        diverged=own @ curve.diverged.T.astype(float) > 0,
        capped=own @ at_ceiling.T.astype(float) > 0,
        ceiling=ceiling,
        plateau=_plateau(curve),
    )


def _plateau(curve: Curve) -> tuple[int, int] | None:
    """First and last of the points, connected to the best, that its noise does not tell from it.

    A point belongs if its loss exceeds the best one's by no more than t_{S-1} (two-sided, 95 %)
    standard errors of the difference, taken seed by seed over the S seeds that both have; with one
    seed, if it does not exceed it. None where fewer than ``PLATEAU`` points belong.
    """
    usable = (curve.n > 0) & (curve.n_diverged == 0) & np.isfinite(curve.mean)
    if not usable.any():
        return None
    best = int(np.argmin(np.where(usable, curve.mean, np.inf)))
    first = last = best
    while first > 0 and usable[first - 1] and _is_hidden(curve, first - 1, best):
        first -= 1
    while last + 1 < len(usable) and usable[last + 1] and _is_hidden(curve, last + 1, best):
        last += 1
    return (first, last) if last - first + 1 >= PLATEAU else None


def _is_hidden(curve: Curve, j: int, best: int) -> bool:
    both = curve.done[j] & curve.done[best]
    gap = curve.loss[j, both] - curve.loss[best, both]
    if len(gap) < 2:
        return bool(gap.size and gap[0] <= 0)
    noise = gap.std(ddof=1) / np.sqrt(len(gap))
    return bool(gap.mean() <= stdtrit(len(gap) - 1, 0.975) * noise)
