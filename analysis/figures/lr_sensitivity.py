"""Final validation loss against learning rate, a line per method: the figure optlab is for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator
from matplotlib.transforms import offset_copy

from ..curves import Curve, Study
from ..robustness import best
from ..style import Style, scale_losses, styles

FIRST_ROW, ROW = 7.0, 5.0  # points from the ceiling to the marks of divergence, row to row
EVERY, SOME = 1.4, 0.5  # stroke widths of a cross, in points
GREY = "0.35"
CEILING = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 0.8}
POINTING = {"left": "<", "right": ">", "both": "d"}


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Seed means with their range; a row per method above the ceiling marks what diverged."""
    figure = Figure(figsize=(6.6, 3.7))
    axes = figure.add_subplot()
    looks = styles(curve.method for curve in study.curves)
    for curve, look in zip(study.curves, looks, strict=True):
        _draw_curve(figure, axes, curve, look)
    _draw_ceiling(axes, study.curves)
    unstable = [(c, s) for c, s in zip(study.curves, looks, strict=True) if c.diverged.any()]
    for row, (curve, look) in enumerate(reversed(unstable)):
        _draw_diverged(figure, axes, curve, look, row)
    _scale(axes, study.curves)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("final validation loss (nats)")
    axes.set_title(study.name, pad=FIRST_ROW + 3 + ROW * len(unstable))
    _legend(axes, study.curves, looks)
    return figure, _table(study.curves)


def _draw_curve(figure: Figure, axes: Axes, curve: Curve, look: Style) -> None:
    lr, colour = curve.lr, look.colour
    mean, low, high = np.where(_inside_cliff(curve), np.nan, [curve.mean, curve.low, curve.high])
    axes.fill_between(lr, low, high, color=colour, alpha=0.12, linewidth=0, zorder=1)
    axes.plot(lr, mean, look.dash, color=colour, zorder=3)
    for some, face in ((_whole(curve), colour), (_partial(curve), "white")):
        shown = some & ~_all_diverged(curve)
        if shown.any():  # an unclipped line without points would stretch the figure to its corner
            axes.plot(
                lr[shown],
                mean[shown],
                look.marker,
                color=colour,
                markerfacecolor=face,
                clip_on=False,
                zorder=4,
            )
    _draw_edge_optimum(figure, axes, curve, look)


def _inside_cliff(curve: Curve) -> np.ndarray:
    """Points with nothing but divergence on either side: a line along the ceiling says nothing."""
    dead = np.pad(_all_diverged(curve), 1, constant_values=True)
    return dead[:-2] & dead[1:-1] & dead[2:]


def _draw_edge_optimum(figure: Figure, axes: Axes, curve: Curve, look: Style) -> None:
    """An arrowhead beside the best point, pointing to where a better one may lie."""
    optimum = best(curve)
    if optimum is None or optimum.where not in POINTING:
        return
    shift = {"left": -7.0, "right": 7.0, "both": 7.0}[optimum.where]
    beside = offset_copy(axes.transData, fig=figure, x=shift, units="points")
    axes.plot(
        [optimum.lr],
        [optimum.loss],
        POINTING[optimum.where],
        color=look.colour,
        markeredgecolor="black",
        markeredgewidth=0.6,
        transform=beside,
        clip_on=False,
        zorder=5,
    )


def _draw_ceiling(axes: Axes, curves: Sequence[Curve]) -> None:
    """The initial loss of each problem; one line for those within 1 % of each other."""
    drawn = np.inf
    ceilings = [curve.ceiling for curve in curves if np.isfinite(curve.ceiling)]
    for level in sorted(ceilings, reverse=True):
        if level < 0.99 * drawn:
            drawn = level
            axes.axhline(level, **CEILING, clip_on=False)


def _draw_diverged(figure: Figure, axes: Axes, curve: Curve, look: Style, row: int) -> None:
    """Crosses above the ceiling, in a row of their own; heavy where every seed diverged."""
    above = offset_copy(
        axes.get_xaxis_transform(), fig=figure, y=FIRST_ROW + ROW * row, units="points"
    )
    for lr, count, n in zip(curve.lr, curve.n_diverged, curve.n, strict=True):
        if count:
            weight = EVERY if count == n else SOME
            axes.plot(
                [lr],
                [1.0],
                "x",
                color=look.colour,
                markeredgewidth=weight,
                transform=above,
                clip_on=False,
            )


def _scale(axes: Axes, curves: Sequence[Curve]) -> None:
    """Ceiling on top, best loss at the bottom."""
    lr = np.concatenate([curve.lr for curve in curves])
    air = 1.5 * (lr.max() / lr.min()) ** 0.02
    axes.set_xscale("log")
    axes.set_xlim(lr.min() / air, lr.max() * air)
    axes.xaxis.set_major_locator(LogLocator(numticks=20))
    ends = np.concatenate([[curve.ceiling, *curve.low, *curve.high] for curve in curves])
    if np.isfinite(ends).any():
        scale_losses(axes, float(np.nanmin(ends)), float(np.nanmax(ends)))


def _legend(axes: Axes, curves: Sequence[Curve], looks: Sequence[Style]) -> None:
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=c.label)
        for c, s in zip(curves, looks, strict=True)
    ]
    axes.legend(
        handles=[*handles, *_keys(curves)],
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        handlelength=2.6,
    )


def _keys(curves: Sequence[Curve]) -> list[Line2D | Patch]:
    """The marks that this figure really uses."""
    every = any(_all_diverged(curve).any() for curve in curves)
    some = any(((c.n_diverged > 0) & ~_all_diverged(c)).any() for c in curves)
    optima = [best(curve) for curve in curves]
    at_edge = any(optimum is not None and optimum.where in POINTING for optimum in optima)
    band = Patch(color=GREY, alpha=0.2, linewidth=0, label="min to max over seeds")
    keys = [
        (True, Line2D([], [], label="initial loss (ceiling)", **CEILING)),
        (any((curve.n > 1).any() for curve in curves), band),
        (every, _key("all seeds diverged", "x", weight=EVERY)),
        (some, _key("some seeds diverged", "x", weight=SOME)),
        (any(_partial(curve).any() for curve in curves), _key("seeds missing", "o", face="white")),
        (at_edge, _key("best at the grid's edge", ">")),
    ]
    return [key for used, key in keys if used]


def _key(label: str, marker: str, *, weight: float = 0.8, face: str = GREY) -> Line2D:
    return Line2D(
        [],
        [],
        color=GREY,
        linestyle="none",
        marker=marker,
        markeredgewidth=weight,
        markerfacecolor=face,
        label=label,
    )


def _all_diverged(curve: Curve) -> np.ndarray:
    return (curve.n > 0) & (curve.n_diverged == curve.n)


def _partial(curve: Curve) -> np.ndarray:
    return (curve.n > 0) & (curve.n < curve.planned)


def _whole(curve: Curve) -> np.ndarray:
    return (curve.n > 0) & (curve.n == curve.planned)


def _table(curves: Sequence[Curve]) -> pd.DataFrame:
    """One row per point; ``low`` and ``high`` (over seeds) are the band, NaN is a gap."""
    return pd.concat([_points(curve) for curve in curves], ignore_index=True)


def _points(curve: Curve) -> pd.DataFrame:
    optimum = best(curve)
    at_best = np.zeros(len(curve.lr), bool)
    if optimum:
        at_best[optimum.index] = True
    return pd.DataFrame(
        {
            "method": curve.method,
            "setting": curve.setting,
            "label": curve.label,
            "lr": curve.lr,
            "mean": curve.mean,
            "low": curve.low,
            "high": curve.high,
            "std": curve.std,
            "seeds_planned": curve.planned,
            "seeds_done": curve.n,
            "seeds_diverged": curve.n_diverged,
            "ceiling": curve.ceiling,
            "best": at_best,
            "best_where": np.where(at_best, optimum.where if optimum else "", ""),
        }
    )
