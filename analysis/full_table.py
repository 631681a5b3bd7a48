"""The table of robustness in full precision: every metric that one curve has by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from . import robustness as metrics
from . import tables
from .compared import USABLE, Usable
from .curves import Curve
from .robustness import Measure
from .statistics import interval


def robustness(curves: Sequence[Curve], rule: Usable = USABLE) -> pd.DataFrame:
    """``tables.robustness``, the 95 % interval of the width over seeds, and further metrics.

    Beside a metric NAME stands ``NAME_censoring``, as in ``analysis.robustness.Metric``. NaN:
    undefined, or an interval of fewer than two seeds; infinite: the grid bounds it on no side.
    """
    measures = _measures(rule)
    rows = [_row(curve, measures, rule) for curve in curves]
    return pd.concat([tables.robustness(curves, rule), pd.DataFrame(rows)], axis=1)


def _measures(rule: Usable) -> Mapping[str, Measure]:
    return {
        "best_lr_interpolated": metrics.best_lr_interpolated(),
        "best_loss_interpolated": metrics.best_loss_interpolated(),
        "width_pchip": metrics.width(rule.q, rule.level, "pchip"),
        "width_left": metrics.width_left(rule.q, rule.level),
        "width_right": metrics.width_right(rule.q, rule.level),
        "largest_stable_lr": metrics.largest_stable_lr(),
        "first_diverging_lr": metrics.first_diverging_lr(),
        "stable_range": metrics.stable_range(),
        "centred_sensitivity": metrics.centred_sensitivity(),
        "misset_tenth": metrics.misset(1 / 10),
        "misset_third": metrics.misset(1 / 3),
        "misset_3": metrics.misset(3),
        "misset_10": metrics.misset(10),
        "tuning_area": metrics.tuning_area(),
    }


def _row(curve: Curve, measures: Mapping[str, Measure], rule: Usable) -> dict[str, object]:
    width = interval(curve, metrics.width(rule.q, rule.level))
    row: dict[str, object] = {"width_low": width.low, "width_high": width.high}
    for name, measure in measures.items():
        found = measure(curve)
        row |= {name: found.value, f"{name}_censoring": found.censoring}
    return row
