"""Which differences between methods the seeds resolve: for people to read, and for bold type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, get_args

import numpy as np

from optlab.errors import ConfigError, nearest

from . import robustness
from .curves import Curve, among
from .kernels import Level
from .robustness import Measure
from .statistics import Comparison, compare, corrected

FACTOR = 10.0  # by which a learning rate is wrong
HEADLINES = ("best loss", "usable width", "LR sensitivity")


@dataclass(frozen=True)
class Usable:
    """What a usable learning rate may lose, as in ``robustness.width``."""

    q: float = 0.05
    level: Level = "drop"

    @property
    def words(self) -> str:
        return {
            "drop": f"{100 * self.q:g}% of the loss drop (initial loss - best)",
            "relative": f"{100 * self.q:g}% of the best loss",
            "absolute": f"{self.q:g} of the best loss, in its unit",
        }[self.level]


USABLE = Usable()


def usable(text: str) -> Usable:
    """The rule that Q or Q:LEVEL stands for, such as 0.01:absolute. Raises ConfigError."""
    q, _, level = text.partition(":")
    try:
        number = float(q)
    except ValueError:
        number = math.nan
    if number >= 1 and level in ("", "drop"):
        raise ConfigError(
            f"--width {text} would call every learning rate usable that learns at all: as a share "
            "of the loss drop Q lies below 1. Write 0.05 for 5 %, or Q:absolute for so much of the "
            "metric."
        )
    if not 0 < number < math.inf or (level or "drop") not in get_args(Level):
        raise ConfigError(
            f"Expected --width Q or Q:LEVEL with Q above 0 and LEVEL one of "
            f"{', '.join(get_args(Level))}, such as 0.05:drop; found '{text}'."
        )
    return Usable(number, cast(Level, level or "drop"))


def chosen(curves: Sequence[Curve], text: str) -> tuple[float, ...]:
    """The learning rates of ``--lr LR,...``. Raises ConfigError for one that no curve has."""
    try:
        lrs = tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        lrs = ()
    if text and not (lrs and all(map(math.isfinite, lrs))):
        raise ConfigError(f"Expected --lr LR,... such as 0.01,0.1; found '{text}'.")
    grid = np.unique(np.concatenate([np.zeros(0), *(curve.lr for curve in curves)]))
    for lr in lrs:
        if len(grid) and not among(grid, [lr]).any():
            near = grid[int(np.argmin(np.abs(np.log(grid) - math.log(lr))))] if lr > 0 else grid[0]
            raise ConfigError(
                f"--lr {lr:g}: no method has that learning rate. The nearest of the grids is "
                f"{near:.4g}."
            )
    return lrs


def headline(name: str, rule: Usable = USABLE) -> Measure:
    """The measure of one of ``HEADLINES``."""
    return {
        "best loss": robustness.best_loss(),
        "usable width": robustness.width(rule.q, rule.level),
        "LR sensitivity": robustness.sensitivity(),
    }[name]


def against_best(
    curves: Sequence[Curve], measure: Measure
) -> tuple[int, dict[int, Comparison]] | None:
    """The best curve by its point value, and every other one compared with it, Holm-corrected.

    Keys are positions in ``curves``; a curve without a value is not compared. None where fewer than
    two have one.
    """
    values = [measure(curve).value for curve in curves]
    there = [i for i, value in enumerate(values) if not math.isnan(value)]
    if len(there) < 2:
        return None
    sign = -1.0 if measure.higher_is_better else 1.0
    best = min(there, key=lambda i: sign * values[i])
    others = [i for i in there if i != best]
    found = corrected([compare(curves[best], curves[i], measure) for i in others])
    return best, dict(zip(others, found, strict=True))


def as_good_as_best(curves: Sequence[Curve], measure: Measure) -> set[int]:
    """Positions of the best curve and of those that no test tells from it; empty without a test."""
    found = against_best(curves, measure)
    if found is None or any(math.isnan(c.p) for c in found[1].values()):
        return set()
    best, comparisons = found
    return {best, *(i for i, comparison in comparisons.items() if not comparison.is_resolved)}


def share_grid(curves: Sequence[Curve]) -> bool:
    """All curves stand on one grid, so that means over it compare."""
    first = curves[0].lr
    return all(len(c.lr) == len(first) and np.allclose(c.lr, first, rtol=1e-3) for c in curves)


def summary(curves: Sequence[Curve], rule: Usable = USABLE) -> list[str]:
    """For each headline metric, from which methods the best one really differs; lines of text."""
    lines = [
        "Are the differences resolved? (95 %; for each metric by itself, all methods against its "
        "best are corrected together, by Holm)"
    ]
    for name in HEADLINES:
        if name == "LR sensitivity" and not share_grid(curves):
            continue
        found = against_best(curves, headline(name, rule))
        if found is not None:
            lines.append(f"  {_line(curves, name, *found)}")
    return lines if len(lines) > 1 else []


def _line(curves: Sequence[Curve], name: str, best: int, found: dict[int, Comparison]) -> str:
    head = f"{name}: {curves[best].label} has the best"
    if all(math.isnan(c.p) for c in found.values()):
        return f"{head}; no test with fewer than two seeds."
    apart = [curves[i].label for i, c in found.items() if c.is_resolved]
    near = [curves[i].label for i, c in found.items() if not c.is_resolved]
    if not apart:
        others = f"the other{'s' if len(near) > 1 else ''}"
        words = f"; no difference to {others} is resolved: {', '.join(near)}"
    else:
        words = f", better than {', '.join(apart)}"
        words += f"; not resolved from {', '.join(near)}" if near else ""
    reasons = sorted({c.unpaired_because for c in found.values() if c.unpaired_because})
    note = f" Not paired: {'; '.join(reasons)}." if reasons else ""
    return f"{head}{words}.{note}"


def pair(curves: Sequence[Curve], a: str, b: str, rule: Usable = USABLE) -> list[Comparison]:
    """All metrics of two curves compared, Holm-corrected over the metrics.

    ``a``, ``b``: methods, or labels where a method has several curves. Raises ConfigError for a
    name that no curve, or more than one, has.
    """
    one, other = named(curves, a), named(curves, b)
    measures = [
        robustness.best_loss(),
        robustness.best_lr(),
        robustness.width(rule.q, rule.level),
        robustness.centred_sensitivity(),
        robustness.misset(1 / FACTOR),
        robustness.misset(FACTOR),
        robustness.largest_stable_lr(),
    ]
    if share_grid([one, other]):
        measures[3:3] = [robustness.sensitivity(), robustness.tuning_area()]
    return corrected([compare(one, other, measure) for measure in measures])


def claim(a: Curve, b: Curve, metric: str, rule: Usable = USABLE) -> list[Comparison]:
    """One of the ``HEADLINES`` of two curves compared, as a claim that was made beforehand.

    Raises ConfigError for another metric, or a mean over grids that differ.
    """
    if metric not in HEADLINES:
        raise ConfigError(
            f"There is no metric '{metric}' to claim.{nearest(metric, HEADLINES)} There are: "
            f"{', '.join(HEADLINES)}."
        )
    if metric == "LR sensitivity" and not share_grid([a, b]):
        raise ConfigError(f"The LR sensitivities of {a.label} and {b.label} are over other grids.")
    return [compare(a, b, headline(metric, rule))]


def named(curves: Sequence[Curve], name: str) -> Curve:
    """The curve of a method or label. Raises ConfigError where it is none or several."""
    found = [c for c in curves if name == c.label] or [c for c in curves if name == c.method]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"'{name}' has {len(found)} curves. Name one of them: "
            f"{', '.join(repr(c.label) for c in found)}."
        )
    known = [c.method for c in curves]
    raise ConfigError(
        f"There is no curve '{name}'.{nearest(name, known)} There are: "
        f"{', '.join(dict.fromkeys(known))}."
    )
