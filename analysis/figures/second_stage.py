"""The second stage: final loss along what was varied at each method's best learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from ..curves import Curve, Study
from ..layout import GREY, CannotDraw, note, panels, unit_of
from ..slices import Slice, slices
from ..style import Style, styles
from ..tables import lr_text

MOST = 4  # panels
COLUMNS = [
    *("axis", "method", "fixed", "label", "lr", "value", "mean", "low", "high", "std"),
    *("seeds_planned", "seeds_done", "seeds_diverged", "ceiling"),
]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A panel per axis, a line per method at the learning rate that its first stage found best.

    The line is the mean over seeds, the bar their range. Hollow: seeds are lacking; a cross: a seed
    diverged, or ended above its initial loss, and counts with that.
    """
    found = [each for each in slices(study.second) if each.key in study.second_axes]
    if not any(curve.done.any() for each in found for curve in each.curves):
        raise CannotDraw(
            "it shows the second stage of a sweep ('then' in its file), and there are no results "
            "of one along an axis of two values or more"
        )
    axes = list(dict.fromkeys(each.key for each in found))[:MOST]
    found = [each for each in found if each.key in axes]
    lines = list(dict.fromkeys((each.method, each.fixed) for each in found))
    looks = dict(zip(lines, styles(lines), strict=True))
    grid = panels(len(axes), columns=2, width=2.9, height=2.1, gap=(0.62, 0.62))
    for panel, key in zip(grid.axes, axes, strict=False):
        family = [each for each in found if each.key == key]
        places = _places(family)
        for each in family:
            _draw_line(panel, each, looks[each.method, each.fixed], places)
        _frame(panel, family, places)
    grid.axes[0].set_ylabel(f"final validation loss ({unit_of(study.second)})")
    grid.title(study.name)
    grid.legend(_handles(found, looks))
    rows = [_row(each, i) for each in found for i in range(len(each.values))]
    return grid.figure, pd.DataFrame(rows, columns=COLUMNS)


def _places(family: Sequence[Slice]) -> dict[str, float]:
    """Where each value stands: at its number, or side by side where some are words."""
    values = dict.fromkeys(value for each in family for value in each.values)
    if all(each.is_numeric for each in family):
        return {value: float(value) for value in values}
    return {value: float(i) for i, value in enumerate(sorted(values))}


def _draw_line(axes: Axes, each: Slice, look: Style, places: dict[str, float]) -> None:
    x = np.array([places[value] for value in each.values])
    mean, low, high = (
        np.array([getattr(curve, name)[0] for curve in each.curves])
        for name in ("mean", "low", "high")
    )
    axes.plot(x, mean, look.dash, color=look.colour, zorder=2)
    axes.vlines(x, low, high, color=look.colour, linewidth=0.8, alpha=0.7, zorder=2)
    for place, loss, value, curve in zip(x, mean, each.values, each.curves, strict=True):
        if not math.isfinite(loss):
            continue
        whole = curve.n[0] == curve.planned[0]
        marker = "x" if curve.capped[0] else look.marker
        face = look.colour if whole else "white"
        axes.plot(place, loss, marker, color=look.colour, markerfacecolor=face, zorder=3)
        note(axes, float(place), float(loss), _words(each, value, curve))


def _words(each: Slice, value: str, curve: Curve) -> str:
    text = f"{_label(each)}, {each.key} {value}\nloss {curve.mean[0]:.4g} {curve.unit}"
    text += f" ({curve.low[0]:.4g} to {curve.high[0]:.4g} over {curve.n[0]} seeds)"
    diverged = curve.n_diverged[0]
    return f"{text}\n{diverged} of {curve.n[0]} seeds diverged" if diverged else text


def _label(each: Slice) -> str:
    rates = dict.fromkeys(lr_text(curve.lr[0]) for curve in each.curves)
    return f"{each.label}, lr {' or '.join(rates)}"


def _frame(axes: Axes, family: Sequence[Slice], places: dict[str, float]) -> None:
    ticks = sorted(set(places.values()))
    if all(each.is_numeric for each in family) and ticks[0] > 0 and ticks[-1] >= 4 * ticks[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    names = {place: value for value, place in places.items()}
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticks(ticks, [names[tick] for tick in ticks])
    axes.margins(x=0.1)
    axes.set_xlabel(family[0].key, fontsize=7.5)
    axes.tick_params(labelsize=7)


def _handles(found: Sequence[Slice], looks: dict[tuple[str, str], Style]) -> list[Line2D]:
    labels = {(each.method, each.fixed): _label(each) for each in found}
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=labels[line])
        for line, s in looks.items()
    ]
    curves = [curve for each in found for curve in each.curves]
    if any(0 < curve.n[0] < curve.planned[0] for curve in curves):
        hollow = Line2D([], [], color=GREY, linestyle="none", marker="o", markerfacecolor="white")
        handles.append(hollow)
        hollow.set_label("seeds lacking")
    if any(curve.capped[0] for curve in curves):
        handles.append(Line2D([], [], color=GREY, linestyle="none", marker="x", label="diverged"))
    return handles


def _row(each: Slice, i: int) -> dict[str, object]:
    curve = each.curves[i]
    return {
        "axis": each.key,
        "method": each.method,
        "fixed": each.fixed,
        "label": each.label,
        "lr": float(curve.lr[0]),
        "value": each.values[i],
        "mean": curve.mean[0],
        "low": curve.low[0],
        "high": curve.high[0],
        "std": curve.std[0],
        "seeds_planned": int(curve.planned[0]),
        "seeds_done": int(curve.n[0]),
        "seeds_diverged": int(curve.n_diverged[0]),
        "ceiling": curve.ceiling,
    }
