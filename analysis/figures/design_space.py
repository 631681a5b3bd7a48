"""Small multiples of final loss against learning rate: a panel per setting, a line per norms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..curves import Curve, Study
from ..layout import CannotDraw, loss_name, scale_losses
from ..style import SPARE_MARKERS

COLUMNS = 3  # panels in a row
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
CEILING = {"color": "0.35", "linestyle": (0, (4, 3)), "linewidth": 0.8}


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Panels by what varies besides norms; colour says the norms, the dash a Momo form."""
    if not study.curves:
        raise CannotDraw("the sweep has no runs, so there is nothing to draw")
    looks = [(_panel(curve), _norms(curve), _is_momo(curve)) for curve in study.curves]
    if len(set(looks)) < len(looks):
        raise CannotDraw(
            "it tells lines apart by their norms (optimizer/norms, or a column norms), and here "
            "methods differ otherwise; lr_sensitivity draws a line per method"
        )
    panels = sorted({_panel(curve) for curve in study.curves})
    colours = _colours(study.curves)
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(6.6, 0.7 + 1.9 * rows))
    grid = figure.subplots(rows, min(COLUMNS, len(panels)), sharex=True, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw_panel(axes, panel, [c for c in study.curves if _panel(c) == panel], colours)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    _scale(grid.flat[0], study.curves)
    figure.suptitle(study.name)
    figure.supxlabel("learning rate", fontsize=8.5)
    figure.supylabel(loss_name(study.curves), fontsize=8.5)
    _legend(figure, study.curves, colours)
    figure.tight_layout()
    return figure, _table(study.curves)


def _draw_panel(
    axes: Axes, panel: str, curves: Sequence[Curve], colours: dict[str, tuple[str, str]]
) -> None:
    for curve in curves:
        colour, marker = colours[_norms(curve)]
        shown = np.where(curve.n > 0, np.minimum(curve.mean, curve.ceiling), np.nan)
        axes.plot(curve.lr, shown, _dash(curve), color=colour, marker=marker, markersize=3)
    axes.axhline(curves[0].ceiling, **CEILING)
    axes.set_title(panel.replace("optimizer.", "").replace(" ", ", ") or "all", fontsize=7)


def _panel(curve: Curve) -> str:
    return " ".join(word for word in curve.setting.split() if not word.startswith("norms="))


def _norms(curve: Curve) -> str:
    words = [word for word in curve.setting.split() if word.startswith("norms=")]
    return words[0].removeprefix("norms=") if words else ""


def _is_momo(curve: Curve) -> bool:
    return curve.method.endswith("_momo")


def _dash(curve: Curve) -> str:
    return "--" if _is_momo(curve) else "-"


def _colours(curves: Sequence[Curve]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each assignment of norms."""
    names = sorted({_norms(curve) for curve in curves})
    looks = zip(COLOURS * len(names), ("o", "s", "^", *SPARE_MARKERS) * len(names), strict=False)
    return dict(zip(names, looks, strict=False))


def _scale(axes: Axes, curves: Sequence[Curve]) -> None:
    axes.set_xscale("log")
    ends = np.concatenate([[curve.ceiling, *curve.mean] for curve in curves])
    ends = np.minimum(ends, max(curve.ceiling for curve in curves))
    if np.isfinite(ends).any():
        scale_losses(axes, float(np.nanmin(ends)), float(np.nanmax(ends)))


def _legend(figure: Figure, curves: Sequence[Curve], colours: dict[str, tuple[str, str]]) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, markersize=3, label=norms or "all norms")
        for norms, (colour, marker) in colours.items()
    ]
    if len({_is_momo(curve) for curve in curves}) == 2:
        handles.append(Line2D([], [], color="0.35", label="constant step size"))
        handles.append(Line2D([], [], color="0.35", linestyle="--", label="Momo"))
    handles.append(Line2D([], [], label="initial loss", **CEILING))
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _table(curves: Sequence[Curve]) -> pd.DataFrame:
    """One row per point, as drawn."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "method": curve.method,
                    "setting": curve.setting,
                    "panel": _panel(curve),
                    "norms": _norms(curve),
                    "lr": curve.lr,
                    "mean": curve.mean,
                    "seeds_done": curve.n,
                    "seeds_diverged": curve.n_diverged,
                    "ceiling": curve.ceiling,
                }
            )
            for curve in curves
        ],
        ignore_index=True,
    )
