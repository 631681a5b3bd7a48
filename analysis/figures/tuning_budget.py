"""What tuning costs: the loss to be expected after k learning rates drawn at random."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ..curves import Curve, Study
from ..layout import (
    CEILING,
    WIDTH,
    CannotDraw,
    legend_beside,
    loss_name,
    note,
    panels,
    scale_losses,
)
from ..robustness import tuning_budget
from ..style import Style, styles

TRIALS = np.unique(np.round(np.geomspace(1, 100, 25)).astype(int))
MARKED = (1, 3, 10, 30, 100)  # trials with a marker
MANY, MOST = 14, 80  # lines in one panel, panels
COLUMNS = [
    *("method", "setting", "label", "trials", "expected_best", "grid_first", "grid_last"),
    *("grid_points", "points_done"),
]

Line = tuple[Curve, Style, np.ndarray]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A line per method: expected best seed mean against the number of trials on its own grid.

    Where a hole leaves the expectation unknown, the method is named in the legend without a line.
    """
    looks = styles((curve.method, curve.setting) for curve in study.curves)
    lines = [
        (curve, look, tuning_budget(curve, TRIALS))
        for curve, look in zip(study.curves, looks, strict=True)
    ]
    known = [line for line in lines if np.isfinite(line[2]).any()]
    if not known:
        raise CannotDraw(
            "no method has a result at every learning rate of its grid yet, and an expectation "
            "over part of a grid would flatter"
        )
    if len(lines) > MOST:
        raise CannotDraw(
            f"its {len(lines)} lines fit no page; choose among them (optimizer=NAME,NAME)"
        )
    draws = _one_panel if len(lines) <= MANY else _small_multiples
    return draws(study, lines, known), _table(lines)


def _one_panel(study: Study, lines: list[Line], known: list[Line]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.add_subplot()
    for line in known:
        _draw_line(axes, *line)
    _scale(axes, known)
    axes.set_xlabel("random trials, log-uniform over the method's grid")
    axes.set_ylabel(f"expected best {loss_name(study.curves)}")
    axes.set_title(study.name)
    handles = [
        Line2D(
            [],
            [],
            color=s.colour,
            linestyle=s.dash if np.isfinite(values).any() else "none",
            marker=s.marker,
            markerfacecolor=s.colour if np.isfinite(values).any() else "white",
            label=c.label if np.isfinite(values).any() else f"{c.label} (holes in its grid)",
        )
        for c, s, values in lines
    ]
    legend_beside(axes, [*handles, Line2D([], [], label="initial loss", **CEILING)])
    return figure


def _small_multiples(study: Study, lines: list[Line], known: list[Line]) -> Figure:
    grid = panels(
        len(lines), columns=5, width=1.3, height=0.95, gap=(0.12, 0.38), sharex=True, sharey=True
    )
    backdrop = [np.column_stack([TRIALS, values]) for _, _, values in known]
    for axes, line in zip(grid.axes, lines, strict=True):
        axes.add_collection(LineCollection(backdrop, colors="0.85", linewidths=0.5, zorder=0))
        _draw_line(axes, *line)
        hole = "" if np.isfinite(line[2]).any() else "\nholes in its grid"
        axes.set_title(line[0].label + hole, fontsize=6.5, loc="left", pad=3)
        axes.tick_params(labelsize=6.5)
    _scale(grid.axes[0], known)
    grid.title(study.name)
    grid.x_label("random trials, log-uniform over the method's grid", below=0.25)
    grid.y_label(f"expected best {loss_name(study.curves)}")
    return grid.figure


def _draw_line(axes: Axes, curve: Curve, look: Style, values: np.ndarray) -> None:
    marks = [int(np.argmin(np.abs(TRIALS - k))) for k in MARKED]
    axes.plot(
        TRIALS, values, look.dash, color=look.colour, marker=look.marker, markevery=marks, zorder=3
    )
    axes.axhline(curve.ceiling, **CEILING, zorder=1)
    for k, value in zip(TRIALS, values, strict=True):
        if np.isfinite(value):
            text = f"{curve.label}\nexpected best after {k} trials: {value:.4g} {curve.unit}"
            note(axes, float(k), float(value), text)


def _scale(axes: Axes, known: list[Line]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(MARKED)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda k, _: f"{k:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    ends = np.concatenate([[curve.ceiling, *values] for curve, _, values in known])
    scale_losses(axes, float(np.nanmin(ends)), float(np.nanmax(ends)))


def _table(lines: list[Line]) -> pd.DataFrame:
    """One row per method and number of trials; the expectation is NaN where holes hide it."""
    frames = [
        pd.DataFrame(
            {
                "method": curve.method,
                "setting": curve.setting,
                "label": curve.label,
                "trials": TRIALS,
                "expected_best": values,
                "grid_first": float(curve.lr[0]),
                "grid_last": float(curve.lr[-1]),
                "grid_points": len(curve.lr),
                "points_done": int((curve.n > 0).sum()),
            }
        )
        for curve, _, values in lines
    ]
    return pd.concat(frames, ignore_index=True).reindex(columns=COLUMNS)
