"""Usable width of each method, with its interval over seeds: a forest plot."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..compared import Usable
from ..curves import Curve, Study
from ..layout import GREY, CannotDraw, note, panels, within
from ..robustness import usable_width, width
from ..statistics import Interval, interval
from ..style import Style, styles
from ..tables import width_text

MOST = 120  # rows
COLUMNS = [
    *("method", "setting", "label", "width", "low", "high", "level", "seeds", "censoring"),
    *("left", "left_bound", "right", "right_bound"),
]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A row per method: the width in decades of learning rate, and its interval of confidence.

    An arrow instead of an end says that the grid's edge or a hole cuts the width, so that it is at
    least as large.
    """
    curves = study.curves
    if not curves:
        raise CannotDraw("the sweep has no runs, so there is nothing to draw")
    if len(curves) > MOST:
        raise CannotDraw(f"its {len(curves)} rows fit no page; robustness.csv holds them")
    rule = Usable(study.q, study.level)
    measure = width(rule.q, rule.level)
    found = [interval(curve, measure) for curve in curves]
    looks = styles((curve.method, curve.setting) for curve in curves)
    grid = panels(1, columns=1, width=3.6, height=0.16 + 0.2 * len(curves))
    (axes,) = grid.axes
    end = _limit(found)
    for row, (curve, look, estimate) in enumerate(zip(curves, looks, found, strict=True)):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0, linewidth=0)
        _draw_row(axes, row, curve, look, estimate, end, rule)
    _frame(axes, study, end, rule)
    handles = _handles(found)
    if handles:
        grid.legend(handles)
    rows = [_row(curve, estimate, rule) for curve, estimate in zip(curves, found, strict=True)]
    return grid.figure, pd.DataFrame(rows, columns=COLUMNS)


def _limit(found: list[Interval]) -> float:
    """Right end of the axis, in decades: a little beyond all that is known."""
    ends = [end for each in found for end in (each.value, each.high) if math.isfinite(end)]
    return max([*ends, 0.5]) * 1.12


def _draw_row(
    axes: Axes, row: int, curve: Curve, look: Style, estimate: Interval, end: float, rule: Usable
) -> None:
    words = _words(curve, estimate, rule)
    axes.annotate(
        words,
        (1.02, row),
        xycoords=axes.get_yaxis_transform(),
        va="center",
        fontsize=7,
        annotation_clip=False,
    )
    if not math.isfinite(estimate.value):
        return
    low, high = max(estimate.low, 0.0), min(estimate.high, end)
    if not math.isnan(estimate.low):
        solid = [low, estimate.value if math.isinf(estimate.high) else high]
        axes.plot(solid, [row, row], color=look.colour, linewidth=1.6, zorder=2)
        ends = solid[:1] if math.isinf(estimate.high) else solid
        axes.plot(ends, [row] * len(ends), "|", color=look.colour, markersize=6, zorder=2)
    if _is_open(curve, estimate, rule):
        axes.annotate(
            "",
            (end, row),
            (estimate.value, row),
            arrowprops={
                "arrowstyle": "->",
                "color": look.colour,
                "linewidth": 0.9,
                "linestyle": (0, (2, 2)),
                "shrinkA": 0,
                "shrinkB": 0,
            },
            zorder=1,
        )
    axes.plot([estimate.value], [row], look.marker, color=look.colour, markersize=5, zorder=3)
    note(axes, estimate.value, row, f"{curve.label}\nusable width {words}")


def _is_open(curve: Curve, estimate: Interval, rule: Usable) -> bool:
    """Whether the true width may be any larger; with one seed, as the grid alone says."""
    found = usable_width(curve, rule.q, rule.level)
    cut = found is not None and found.censored
    return math.isinf(estimate.high) or (cut and math.isnan(estimate.high))


def _words(curve: Curve, estimate: Interval, rule: Usable) -> str:
    """'1.01 [0.86, 1.20]', '>= 3.56 (right) [3.41, -]'."""
    if not curve.done.any():
        return "no results yet"
    if not math.isfinite(estimate.value):
        return "nothing learned"
    text = width_text(curve, rule).replace(">=", "≥")
    if math.isnan(estimate.low):
        return f"{text}, 1 seed"
    high = "∞" if math.isinf(estimate.high) else f"{estimate.high:.2f}"
    return f"{text}  [{max(estimate.low, 0):.2f}, {high}]"


def _frame(axes: Axes, study: Study, end: float, rule: Usable) -> None:
    n = len(study.curves)
    axes.set_yticks(range(n), [curve.label for curve in study.curves])
    axes.set_ylim(n - 0.4, -0.6)
    axes.set_xlim(-0.02 * end, end)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color="0.9", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"usable width (decades of learning rate, {within(rule)})")
    axes.set_title(study.name)


def _handles(found: list[Interval]) -> list[Line2D]:
    handles = []
    if any(math.isfinite(each.low) for each in found):
        handles.append(
            Line2D([], [], color=GREY, marker="|", label=f"{found[0].level:.0%} interval")
        )
    if any(math.isinf(each.high) for each in found):
        line = Line2D([], [], color=GREY, linestyle=(0, (2, 2)), linewidth=0.9, marker=">")
        line.set(label="not bounded (grid's edge, hole)", markevery=[1], markersize=3)
        handles.append(line)
    return handles


def _row(curve: Curve, estimate: Interval, rule: Usable) -> dict[str, object]:
    found = usable_width(curve, rule.q, rule.level)
    return {
        "method": curve.method,
        "setting": curve.setting,
        "label": curve.label,
        "width": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "level": estimate.level,
        "seeds": estimate.seeds,
        "censoring": estimate.censoring,
        "left": found.left.lr if found else np.nan,
        "left_bound": found.left.bound if found else "",
        "right": found.right.lr if found else np.nan,
        "right_bound": found.right.bound if found else "",
    }
