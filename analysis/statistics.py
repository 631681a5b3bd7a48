"""Uncertainty over seeds: intervals, paired comparisons, and sentences that claim no more.

The whole metric is recomputed on resampled seeds. With few seeds the usual percentile interval of
such a bootstrap is too short whatever one does: its ends cannot leave the range of the seeds, so
for a mean of S values it covers at most 1 - 2^(1-S), 75 % with three seeds and 94 % with five. The
interval used here is Student's: the bootstrap's standard error, with its bias (S - 1) / S undone,
times the quantile of t with S - 1 degrees of freedom. For a mean that is the textbook interval.

What the grid leaves open (see ``Metric.low`` and ``high``) comes on top of what the seeds do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np
from scipy.special import stdtr, stdtrit  # distribution and quantile of Student's t

from .curves import Curve
from .kernels import Values
from .robustness import Measure
from .stack import stacked

Method = Literal["student", "percentile"]

LEVEL = 0.95
POWER = 0.8  # of the number of seeds that a comparison would need
MOST_SEEDS = 1000
ENUMERATED = (
    6  # up to so many seeds all resamples are counted, 462 distinct ones; no chance is left
)
DRAWS = 2000  # above
NO_RESULTS = "no results"  # beside the words of ``Censoring``


@dataclass(frozen=True)
class Interval:
    """A metric with its interval of confidence, which holds what censoring leaves open.

    Of a learning rate: the learning rates, the interval taken in log lr.
    """

    name: str
    unit: str
    value: float
    low: float  # -inf (0 for a learning rate): not bounded; NaN: fewer than two seeds
    high: float
    level: float
    seeds: int
    censoring: str


@dataclass(frozen=True)
class Comparison:
    """Is a metric larger for curve ``a`` than for curve ``b``? Differences are a - b, in ``unit``.

    Of learning rates the difference is in decades.
    """

    name: str
    unit: str
    a: str  # labels
    b: str
    a_value: float
    b_value: float
    difference: float
    low: float
    high: float
    p: float  # two-sided, after Holm's correction where that was applied; NaN: no test
    level: float
    seeds: int
    paired: bool
    unpaired_because: str  # '' where paired
    seeds_needed: int | None  # to resolve a difference as large as this one; None: no number would
    a_censoring: str
    b_censoring: str
    higher_is_better: bool | None
    lacking: tuple[str, ...] = ()  # labels of the curves that lack seeds at some of their points

    @property
    def is_resolved(self) -> bool:
        return bool(self.p <= 1 - self.level)

    def sentence(self) -> str:
        """What was found and how sure it is, in one sentence."""
        if self.is_resolved:
            return _resolved(self)
        return _undefined(self) if math.isnan(self.difference) else _unresolved(self)


def interval(
    curve: Curve, metric: Measure, *, level: float = LEVEL, method: Method = "student"
) -> Interval:
    """The metric's interval over seeds, by recomputing the whole metric on resampled seeds.

    'student' is honest with 3 to 5 seeds; 'percentile' is there to be compared with it.
    """
    seeds = len(curve.seeds)
    point = metric.values(stacked(curve))
    value, low, high = (float(each[0]) for each in (point.value, point.low, point.high))
    if seeds < 2:
        low = high = math.nan
    elif not math.isnan(value) or not math.isnan(low):
        weights, chance = resamples(seeds)
        drawn = metric.values(stacked(curve, weights))
        ends = (_End(low, drawn.low, chance, seeds), _End(high, drawn.high, chance, seeds))
        low, high = _percentiles(ends, level) if method == "percentile" else _students(ends, level)
    low = max(low, metric.least) if not math.isnan(low) else low
    if metric.is_log:
        value, low, high = 10.0**value, 10.0**low, 10.0**high
    return Interval(
        metric.name,
        _unit(metric, curve),
        value,
        low,
        high,
        level,
        seeds,
        str(point.censoring[0]),
    )


def compare(a: Curve, b: Curve, metric: Measure, *, level: float = LEVEL) -> Comparison:
    """The difference a - b of a metric, with its interval, p-value and the seeds it would need.

    Paired over seeds (both curves resampled alike) where the fingerprints of initial weights and
    first batch prove that the seeds began alike; else the two are resampled independently, with
    Welch's degrees of freedom, and the comparison says why.
    """
    because = unpaired_because(a, b)
    if because:
        seeds = min(len(a.seeds), len(b.seeds))
        ends, points, freedom = _independent(a, b, metric)
    else:
        common = [seed for seed in a.seeds if seed in set(b.seeds)]
        a, b = of_seeds(a, common), of_seeds(b, common)
        seeds = len(common)
        ends, points, freedom = _together(a, b, metric)
    of_a, of_b = points
    low, high = _spread(ends, level, freedom) if seeds > 1 else (math.nan, math.nan)
    back = (lambda v: float(10.0**v)) if metric.is_log else float
    return Comparison(
        name=metric.name,
        unit="decades" if metric.is_log else _unit(metric, a),
        a=a.label,
        b=b.label,
        a_value=back(of_a.value[0]),
        b_value=back(of_b.value[0]),
        difference=float(of_a.value[0] - of_b.value[0]),
        low=low,
        high=high,
        p=_p_value(ends, freedom, level),
        level=level,
        seeds=seeds,
        paired=not because,
        unpaired_because=because,
        seeds_needed=_seeds_needed(ends, level),
        a_censoring=str(of_a.censoring[0]) if a.done.any() else NO_RESULTS,
        b_censoring=str(of_b.censoring[0]) if b.done.any() else NO_RESULTS,
        higher_is_better=metric.higher_is_better,
        lacking=tuple(c.label for c in (a, b) if _lacks_seeds(c)),
    )


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with Holm's p-values; those without a test count for nothing."""
    tested = [c for c in comparisons if not math.isnan(c.p)]
    adjusted = iter(holm([c.p for c in tested]))
    return [c if math.isnan(c.p) else replace(c, p=float(next(adjusted))) for c in comparisons]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the order given: p_(j) (m - j + 1), made monotone."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1.0)
    return result


def unpaired_because(a: Curve, b: Curve) -> str:
    """Why the seeds of two curves may not be paired; '' where their fingerprints prove it."""
    common = [seed for seed in a.seeds if seed in set(b.seeds)]
    if not common:
        return "no seed in common"
    prints = [
        dict(zip(c.seeds, c.fingerprints or [""] * len(c.seeds), strict=True)) for c in (a, b)
    ]
    unknown = [seed for seed in common if not (prints[0][seed] and prints[1][seed])]
    if unknown:
        return f"no fingerprints for seed {unknown[0]}"
    apart = [seed for seed in common if prints[0][seed] != prints[1][seed]]
    if apart:
        return f"the fingerprints of seed {apart[0]} differ"
    return ""


def of_seeds(curve: Curve, seeds: Sequence[int]) -> Curve:
    """The curve over some of its seeds."""
    kept = np.isin(curve.seeds, seeds)
    names = ("run", "loss", "initial", "done", "diverged", "at_chance")
    return replace(
        curve,
        seeds=curve.seeds[kept],
        fingerprints=tuple(itertools.compress(curve.fingerprints, kept)),
        **{name: getattr(curve, name)[:, kept] for name in names},
    )


@cache
def resamples(seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """(B, S) how often each resample holds each seed, and (B,) the probability of each.

    All of them up to ``ENUMERATED`` seeds, so that the same data give the same interval to the last
    digit; ``DRAWS`` drawn from a fixed stream above.
    """
    if seeds > ENUMERATED:
        rng = np.random.default_rng(seeds)
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS)
        return drawn.astype(float), np.full(DRAWS, 1 / DRAWS)
    bars = itertools.combinations(range(2 * seeds - 1), seeds - 1)
    counts = np.array([np.diff([-1, *bar, 2 * seeds - 1]) - 1 for bar in bars])
    ways = [math.factorial(seeds) / math.prod(map(math.factorial, row)) for row in counts.tolist()]
    return counts.astype(float), np.array(ways) / seeds**seeds


@dataclass(frozen=True)
class _End:
    """One end of what the grid leaves open: as measured, and on each resample."""

    point: float
    drawn: np.ndarray  # (B,)
    chance: np.ndarray  # (B,) probabilities
    seeds: int

    def bounded(self, level: float) -> bool:
        """Finite as measured, and on all resamples but a tail that the level allows."""
        lost = self.chance[~np.isfinite(self.drawn)].sum()
        return math.isfinite(self.point) and lost <= (1 - level) / 2

    @property
    def error(self) -> float:
        """Standard error: the bootstrap's, times sqrt(S / (S - 1)); NaN with one seed."""
        if self.seeds < 2:
            return math.nan
        finite = np.isfinite(self.drawn)
        weight, drawn = self.chance[finite], self.drawn[finite]
        if not len(drawn):
            return math.nan
        weight = weight / weight.sum()
        variance = weight @ (drawn - weight @ drawn) ** 2
        error = math.sqrt(variance * self.seeds / (self.seeds - 1))
        rounding = 1e-9 * max(1.0, abs(self.point))  # of equal values
        return error if error > rounding else 0.0


def _students(ends: tuple[_End, _End], level: float) -> tuple[float, float]:
    return _spread(ends, level, tuple(end.seeds - 1.0 for end in ends))


def _spread(ends: tuple[_End, _End], level: float, freedom: Sequence[float]) -> tuple[float, float]:
    spread = [
        stdtrit(degrees, (1 + level) / 2) * end.error
        for end, degrees in zip(ends, freedom, strict=True)
    ]
    low = ends[0].point - spread[0] if ends[0].bounded(level) else -math.inf
    high = ends[1].point + spread[1] if ends[1].bounded(level) else math.inf
    return float(low), float(high)


def _percentiles(ends: tuple[_End, _End], level: float) -> tuple[float, float]:
    found = []
    for end, q in zip(ends, ((1 - level) / 2, (1 + level) / 2), strict=True):
        order = np.argsort(end.drawn)
        below = np.cumsum(end.chance[order])
        place = min(int(np.searchsorted(below, q - 1e-12)), len(below) - 1)
        found.append(float(end.drawn[order][place]))
    return found[0], found[1]


Points = tuple[Values, Values]


def _together(
    a: Curve, b: Curve, metric: Measure
) -> tuple[tuple[_End, _End], Points, tuple[float, float]]:
    """The ends of a - b, both curves resampled with the same seeds."""
    seeds = len(a.seeds)
    weights, chance = resamples(seeds)
    points = metric.values(stacked(a)), metric.values(stacked(b))
    drawn = metric.values(stacked(a, weights)), metric.values(stacked(b, weights))
    low = _End(
        float(points[0].low[0] - points[1].high[0]), drawn[0].low - drawn[1].high, chance, seeds
    )
    high = _End(
        float(points[0].high[0] - points[1].low[0]), drawn[0].high - drawn[1].low, chance, seeds
    )
    return (low, high), points, (seeds - 1.0, seeds - 1.0)


def _independent(
    a: Curve, b: Curve, metric: Measure
) -> tuple[tuple[_End, _End], Points, tuple[float, float]]:
    """The ends of a - b, each curve resampled by itself: errors add up in squares."""
    points = metric.values(stacked(a)), metric.values(stacked(b))
    own = []
    for curve, point in zip((a, b), points, strict=True):
        weights, chance = resamples(len(curve.seeds))
        drawn = metric.values(stacked(curve, weights))
        own.append(
            [
                _End(float(p[0]), d, chance, len(curve.seeds))
                for p, d in ((point.low, drawn.low), (point.high, drawn.high))
            ]
        )
    (a_low, a_high), (b_low, b_high) = own
    low, freedom_low = _difference(a_low, b_high)
    high, freedom_high = _difference(a_high, b_low)
    return (low, high), points, (freedom_low, freedom_high)


def _difference(a: _End, b: _End) -> tuple[_End, float]:
    """a - b of independent ends, and Welch's degrees of freedom."""
    drawn = (a.drawn[:, None] - b.drawn).ravel()
    chance = (a.chance[:, None] * b.chance).ravel()
    errors = np.array([a.error, b.error]) ** 2
    degrees = np.array([a.seeds - 1.0, b.seeds - 1.0])
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = errors.sum() ** 2 / (errors**2 / degrees).sum()
    if not math.isfinite(freedom):
        freedom = float(degrees.min())
    # both errors are corrected one by one, so the product of the resamples is scaled to their sum
    joint = _End(a.point - b.point, drawn, chance, min(a.seeds, b.seeds))
    raw = joint.error
    wanted = math.sqrt(errors.sum())
    if raw > 0 and math.isfinite(wanted):
        middle = chance[np.isfinite(drawn)] @ drawn[np.isfinite(drawn)]
        drawn = middle + (drawn - middle) * wanted / raw
    return replace(joint, drawn=drawn), freedom


def _p_value(ends: tuple[_End, _End], freedom: Sequence[float], level: float) -> float:
    """Two-sided, for a difference of zero, by the end of the open range that is nearer to it.

    1 where that range holds zero. Where all resamples agree there is no error to divide by: then
    the chance that all seeds fall on the same side, 2^(1-S).
    """
    if any(end.seeds < 2 or math.isnan(end.point) for end in ends):
        return math.nan
    low, high = ends
    for end, degrees, away in ((low, freedom[0], low.point), (high, freedom[1], -high.point)):
        if end.bounded(level) and away > 0:
            if end.error == 0:
                return 2.0 ** (1 - end.seeds)
            return float(2 * stdtr(degrees, -away / end.error))
    return 1.0


def _seeds_needed(ends: tuple[_End, _End], level: float) -> int | None:
    """Seeds at which a difference as large as measured is resolved with 80 % power, 2 at least.

    None where the grid, not the seeds, leaves it open, or where one seed shows no noise.
    """
    for end, away in ((ends[0], ends[0].point), (ends[1], -ends[1].point)):
        if end.seeds > 1 and end.bounded(level) and away > 0:
            if end.error == 0:
                return max(2, math.ceil(1 - math.log2(1 - level)))
            per_seed = end.error * math.sqrt(end.seeds)
            for n in range(2, MOST_SEEDS + 1):
                quantiles = stdtrit(n - 1, [(1 + level) / 2, POWER]).sum()
                if quantiles * per_seed / math.sqrt(n) <= away:
                    return n
            return MOST_SEEDS + 1
    return None


def _lacks_seeds(curve: Curve) -> bool:
    return bool(((curve.n > 0) & (curve.n < len(curve.seeds))).any())


def _unit(metric: Measure, curve: Curve) -> str:
    return curve.unit if metric.unit == "loss" else metric.unit


def _undefined(c: Comparison) -> str:
    causes = {
        "undefined": "nothing was learned",
        "left": "the grid ends too early on the left",
        "right": "the grid ends too early on the right",
        "both": "the grid ends too early on both sides",
        "hole": "points of the grid have no result",
    }
    which, censoring = (c.a, c.a_censoring) if math.isnan(c.a_value) else (c.b, c.b_censoring)
    if censoring == NO_RESULTS:
        return (
            f"{c.a}'s {c.name} cannot be compared with {c.b}'s yet: {which} has no results so far."
        )
    cause = causes.get(censoring, "the optimum is not between two stable points")
    return f"{c.a}'s {c.name} cannot be compared with {c.b}'s: {which} has none ({cause})."


def _resolved(c: Comparison) -> str:
    positive = c.low > 0
    size, low, high = (
        (c.difference, c.low, c.high) if positive else (-c.difference, -c.high, -c.low)
    )
    word = "larger" if positive else "smaller"
    if math.isinf(high):
        least = _number(_rounded_down(low), c.unit)
        return (
            f"{c.a}'s {c.name} is at least {least} {word} than {c.b}'s "
            f"({_percent(c.level)} confidence, {_evidence(c)}; "
            f"{_open(c) or _resampled(c)})."
        )
    return (
        f"{c.a}'s {c.name} is {_number(size, c.unit)} {word} than {c.b}'s "
        f"({_range(c, low, high, size)}, {_evidence(c)})."
    )


def _unresolved(c: Comparison) -> str:
    head = f"Whether {c.a}'s {c.name} differs from {c.b}'s is not resolved"
    if math.isnan(c.low):
        return f"{head}: {_evidence(c)} cannot show the noise."
    found = (
        f"the difference is {_number(c.difference, c.unit)} "
        f"({_range(c, c.low, c.high, c.difference)}, {_evidence(c)})"
    )
    if c.seeds_needed is None:
        is_zero = c.difference == 0 and math.isfinite(c.low) and math.isfinite(c.high)
        why = _open(c) or ("it is zero as measured" if is_zero else _resampled(c))
        return f"{head}: {found}; {why}."
    if c.seeds_needed > MOST_SEEDS:
        return f"{head}: {found}; more than {MOST_SEEDS} seeds would be needed."
    if c.seeds_needed > c.seeds and (c.low > 0 or c.high < 0):
        return (
            f"{head}: {found}; {c.seeds} seeds agree exactly, as by chance they do with p = "
            f"{_plain(2.0 ** (1 - c.seeds))}, and about {c.seeds_needed} would be needed."
        )
    if c.seeds_needed <= c.seeds:
        return f"{head} among all comparisons made: {found}; more seeds would help."
    return f"{head}: {found}; about {c.seeds_needed} seeds would be needed."


def _range(c: Comparison, low: float, high: float, middle: float) -> str:
    """The interval, and why the difference is not in its middle."""
    words = f"{_percent(c.level)} interval {_plain(low)} to {_plain(high)}"
    off = abs((low + high) / 2 - middle) if math.isfinite(low + high) else 0.0
    if off <= 0.02 * (high - low):
        return words
    what = "missing seeds leave" if c.lacking else "the grid leaves"
    return f"{words}, wider on the side that {what} open"


def _resampled(c: Comparison) -> str:
    """Why an end has no bound although nothing cuts the metric as measured."""
    if c.lacking:
        return (
            f"{' and '.join(c.lacking)} lack{'s' if len(c.lacking) == 1 else ''} seeds at some "
            "learning rates, so not every choice of the seeds has a value"
        )
    return "some choices of the seeds move the optimum to where the grid cuts it"


def _open(c: Comparison) -> str:
    """Whose range the grid leaves open, and how."""
    words = {
        "left": "cut by the left edge of its grid",
        "right": "cut by the right edge of its grid",
        "both": "cut by both edges of its grid",
        "hole": "cut by points without results",
        "divergence": "known to within a step of its grid, where divergence ends it",
        "flat": "hidden by noise on a plateau",
    }
    return ", ".join(
        f"{label}'s is {words[censoring]}"
        for label, censoring in ((c.a, c.a_censoring), (c.b, c.b_censoring))
        if censoring in words
    )


def _evidence(c: Comparison) -> str:
    seeds = f"{c.seeds} seed{'s' if c.seeds != 1 else ''}"
    return seeds if c.paired else f"{seeds}, not paired: {c.unpaired_because}"


def _number(value: float, unit: str) -> str:
    one = _plain(abs(value)) == "1"
    return f"{_plain(value)} {unit.removesuffix('s') if one else unit}".removesuffix(" share")


def _plain(value: float) -> str:
    """Two significant digits, more where the number is larger than 10; words for infinity."""
    if math.isinf(value):
        return "unbounded"
    return f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def _rounded_down(value: float) -> float:
    """To two significant digits, since 'at least' must hold as printed."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.floor(value / unit) * unit


def _percent(level: float) -> str:
    return f"{100 * level:g} %"
