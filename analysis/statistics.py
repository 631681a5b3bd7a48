"""Uncertainty over seeds: intervals, paired comparisons, and sentences that claim no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .curves import Curve
from .robustness import Measure

Method = Literal["student", "percentile"]


@dataclass(frozen=True)
class Interval:
    """A metric with its interval of confidence, which holds what censoring leaves open."""

    name: str
    unit: str
    value: float
    low: float  # -inf: not bounded; NaN: one seed, so nothing is known
    high: float
    level: float
    seeds: int
    censoring: str


@dataclass(frozen=True)
class Comparison:
    """Is a metric of curve ``a`` larger than of curve ``b``? Differences are a - b."""

    name: str
    unit: str
    a: str  # labels
    b: str
    a_value: float
    b_value: float
    difference: float
    low: float
    high: float
    p: float  # two-sided; after Holm's correction where ``holm`` was applied
    level: float
    seeds: int
    paired: bool
    unpaired_because: str  # '' where paired
    seeds_needed: int | None  # to resolve a difference as large as this one; None: cannot be said
    a_censoring: str
    b_censoring: str
    higher_is_better: bool | None

    @property
    def is_resolved(self) -> bool:
        return bool(self.p <= 1 - self.level)

    def sentence(self) -> str:
        """One sentence that says what was found and with what certainty."""
        raise NotImplementedError


def interval(
    curve: Curve, metric: Measure, *, level: float = 0.95, method: Method = "student"
) -> Interval:
    """The metric's interval over seeds, by recomputing the whole metric on resampled seeds."""
    raise NotImplementedError


def compare(a: Curve, b: Curve, metric: Measure, *, level: float = 0.95) -> Comparison:
    """The difference of a metric between two curves, paired over seeds where that is proven."""
    raise NotImplementedError


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty(len(p))
    result[order] = np.minimum(adjusted, 1.0)
    return result
