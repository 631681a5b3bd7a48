"""Second axes of a sweep: families of curves that differ in one setting alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .curves import Curve
from .robustness import best
from .style import natural


@dataclass(frozen=True)
class Slice:
    """The curves of one method along one axis, all their other settings fixed."""

    key: str  # the axis, an override key such as 'optimizer.weight_decay'
    method: str
    fixed: str  # the other settings, in words
    values: tuple[str, ...]  # of the axis, in their natural order
    curves: tuple[Curve, ...]  # one per value

    @property
    def label(self) -> str:
        """The method, and the settings that are fixed."""
        curve = self.curves[0]
        own = curve.label.removesuffix(f" ({curve.setting})")
        return f"{own} ({self.fixed})" if self.fixed else own

    @property
    def numbers(self) -> tuple[float, ...]:
        """The values as numbers; NaN where they are words."""
        return tuple(number(value) for value in self.values)

    @property
    def is_numeric(self) -> bool:
        return all(math.isfinite(value) for value in self.numbers)


def slices(curves: Sequence[Curve]) -> list[Slice]:
    """All families of two curves or more, by axis, then in the order of the curves."""
    families: dict[tuple[str, str, str], dict[str, Curve]] = defaultdict(dict)
    for curve in curves:
        words = settings_of(curve.setting)
        for key, value in words.items():
            fixed = " ".join(f"{k}={v}" for k, v in words.items() if k != key)
            families[key, curve.method, fixed][value] = curve
    found = [
        Slice(key, method, fixed, tuple(values), tuple(family[value] for value in values))
        for (key, method, fixed), family in families.items()
        if len(values := sorted(family, key=natural)) > 1
    ]
    return sorted(found, key=lambda each: each.key)


def through_the_best(found: Sequence[Slice]) -> list[Slice]:
    """Of the slices of one method along one axis, the one that holds its lowest loss."""
    chosen: dict[tuple[str, str], Slice] = {}
    for each in found:
        other = chosen.get((each.key, each.method))
        if other is None or _lowest(each) < _lowest(other):
            chosen[each.key, each.method] = each
    return list(chosen.values())


def settings_of(setting: str) -> dict[str, str]:
    """The words of a curve's setting: {'model.width': '64', ...}."""
    return dict(word.split("=", 1) for word in setting.split() if "=" in word)


def number(text: str) -> float:
    """The finite number that a word is; NaN where it is none."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _lowest(each: Slice) -> float:
    optima = [best(curve) for curve in each.curves]
    return min((optimum.loss for optimum in optima if optimum), default=math.inf)
