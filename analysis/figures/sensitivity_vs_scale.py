"""Robustness against scale: sensitivity, usable width and best learning rate along an axis."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..compared import Usable
from ..curves import Study
from ..layout import GREY, CannotDraw, note, panels, unit_of, within
from ..robustness import Measure, best_lr, sensitivity, usable_width, width
from ..slices import Slice, slices
from ..statistics import Interval, interval
from ..style import Style, styles

MOST = 4  # axes in one figure
COLUMNS = [
    *("axis", "method", "fixed", "label", "value", "metric", "unit", "estimate", "low", "high"),
    *("level", "seeds", "censoring"),
]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A row of panels per axis: LR sensitivity, usable width, best learning rate, by its value.

    Axes of the problem (width, depth, steps) go before those of the optimizer. Hollow markers: the
    grid's edge or a hole cuts the number.
    """
    found = [each for each in slices(study.curves) if each.is_numeric]
    axes = sorted({each.key for each in found}, key=lambda key: (_is_optimizers(key), key))
    if not axes:
        raise CannotDraw(
            "it needs an axis of numbers besides the learning rate, such as model.width or "
            "train.steps, with two values or more for one method"
        )
    axes = [key for key in axes if not _is_optimizers(key)] or axes
    axes = axes[:MOST]
    rule = Usable(study.q, study.level)
    measures = (sensitivity(), width(rule.q, rule.level), best_lr())
    grid = panels(len(axes) * len(measures), columns=3, width=1.75, height=1.5, gap=(0.62, 0.62))
    looks, rows = _looks(found), []
    for i, key in enumerate(axes):
        family = [each for each in found if each.key == key]
        for k, measure in enumerate(measures):
            panel = grid.axes[i * len(measures) + k]
            rows += _draw_panel(panel, family, measure, looks, rule)
            _frame(panel, family, measure, rule)
    grid.title(study.name)
    grid.legend(_handles([each for each in found if each.key in axes], looks))
    return grid.figure, pd.DataFrame(rows, columns=COLUMNS)


def _is_optimizers(key: str) -> bool:
    return key.startswith("optimizer")


def _looks(found: Sequence[Slice]) -> dict[tuple[str, str], Style]:
    """One look per method and what is fixed of its settings."""
    lines = list(dict.fromkeys((each.method, each.fixed) for each in found))
    return dict(zip(lines, styles(lines), strict=True))


def _draw_panel(
    axes: Axes,
    family: Sequence[Slice],
    measure: Measure,
    looks: dict[tuple[str, str], Style],
    rule: Usable,
) -> list[dict[str, object]]:
    rows = []
    for each in family:
        look = looks[each.method, each.fixed]
        x = np.array(each.numbers)
        estimates = [interval(curve, measure) for curve in each.curves]
        y = np.array([estimate.value for estimate in estimates])
        whole = np.array([_is_whole(each, i, measure, rule) for i in range(len(x))])
        axes.plot(x, y, look.dash, color=look.colour, zorder=3)
        for some, face in ((whole, look.colour), (~whole, "white")):
            axes.plot(
                x[some], y[some], look.marker, color=look.colour, markerfacecolor=face, zorder=4
            )
        for value, estimate in zip(x, estimates, strict=True):
            _draw_interval(axes, float(value), estimate, look)
            rows.append(_row(each, float(value), estimate))
            if math.isfinite(estimate.value):
                text = f"{each.label}, {each.key} {value:g}\n{_words(estimate)}"
                note(axes, float(value), estimate.value, text)
    return rows


def _is_whole(each: Slice, i: int, measure: Measure, rule: Usable) -> bool:
    """Whether neither the grid's edge nor a hole cuts the number."""
    curve = each.curves[i]
    if measure.unit == "decades":
        found = usable_width(curve, rule.q, rule.level)
        return found is not None and not found.censored
    metric = measure(curve)
    return metric.censoring not in ("left", "right", "both", "hole")


def _draw_interval(axes: Axes, x: float, estimate: Interval, look: Style) -> None:
    low, high = estimate.low, estimate.high
    if math.isnan(low) or math.isnan(high) or not math.isfinite(estimate.value):
        return
    low = low if math.isfinite(low) else estimate.value
    high = high if math.isfinite(high) else estimate.value
    axes.plot([x, x], [low, high], color=look.colour, linewidth=0.8, alpha=0.7, zorder=2)


def _words(estimate: Interval) -> str:
    text = f"{estimate.name} {estimate.value:.3g}"
    if math.isnan(estimate.low):
        return text
    return f"{text} [{estimate.low:.3g}, {estimate.high:.3g}], {estimate.censoring}"


def _frame(axes: Axes, family: Sequence[Slice], measure: Measure, rule: Usable) -> None:
    values = sorted({value for each in family for value in each.numbers})
    if values[0] > 0 and values[-1] >= 4 * values[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(FixedLocator(values[:: -(-len(values) // 6)]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.1)
    if measure.unit == "lr":
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.set_xlabel(family[0].key, fontsize=7.5)
    name = {"lr": "best learning rate", "decades": f"usable decades ({within(rule)})"}
    axes.set_title(
        name.get(measure.unit, f"{measure.name} ({unit_of(family[0].curves)})"), fontsize=7.5
    )
    axes.tick_params(labelsize=7)


def _handles(found: Sequence[Slice], looks: dict[tuple[str, str], Style]) -> list[Line2D]:
    labels: dict[tuple[str, str], str] = defaultdict(str)
    for each in found:
        labels[each.method, each.fixed] = each.label
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=labels[line])
        for line, s in looks.items()
        if line in labels
    ]
    hollow = Line2D([], [], color=GREY, linestyle="none", marker="o", markerfacecolor="white")
    hollow.set_label("cut by the grid or a hole")
    return [*handles, hollow]


def _row(each: Slice, value: float, estimate: Interval) -> dict[str, object]:
    return {
        "axis": each.key,
        "method": each.method,
        "fixed": each.fixed,
        "label": each.label,
        "value": value,
        "metric": estimate.name,
        "unit": estimate.unit,
        "estimate": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "level": estimate.level,
        "seeds": estimate.seeds,
        "censoring": estimate.censoring,
    }
