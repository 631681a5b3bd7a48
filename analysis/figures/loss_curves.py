"""Validation loss against training step, each method at its best or at chosen learning rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from ..curves import Curve, Study, among
from ..layout import WIDTH, CannotDraw, note, panels, range_text, scale_losses, unit_of
from ..robustness import best
from ..style import Style, styles
from ..tables import lr_text

MARKS = 6  # on a line; shifted from line to line, so that no marker hides another
MANY, MOST = 14, 80  # lines in one panel, panels
COLUMNS = ["method", "setting", "label", "lr", "step", "mean", "low", "high", "seeds"]

Line = tuple[pd.DataFrame, Style]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Seed means with their range, at the steps that every finished seed has evaluated.

    More than a dozen lines or so are drawn in a panel each, over the others in grey.
    """
    points = [(curve, i) for curve in study.curves for i in _shown(curve, study.lrs)]
    looks = styles((curve.method, _look_of(curve, i, study.lrs)) for curve, i in points)
    traced = [
        (_losses(study.records, curve, i), look)
        for (curve, i), look in zip(points, looks, strict=True)
    ]
    lines = [(line, look) for line, look in traced if len(line)]
    if not study.curves:
        raise CannotDraw("the sweep has no runs, so there is nothing to draw")
    which = "the chosen learning rates" if study.lrs else "the best learning rates"
    if not lines and points:
        raise CannotDraw(
            f"it needs the evaluations of the runs at {which}, and there are none "
            "(of a table: --records FILE, a row per evaluation)"
        )
    at = which if study.lrs else "its best learning rate"
    title = f"{study.name}: each method at {at}"
    if len(lines) > MOST:
        raise CannotDraw(
            f"its {len(lines)} lines fit no page; choose among them (optimizer=NAME,NAME)"
        )
    table = (
        pd.concat([line for line, _ in lines], ignore_index=True)
        if lines
        else pd.DataFrame(columns=COLUMNS)
    )
    if len(lines) > MANY:
        return _small_multiples(
            lines, title, f"validation loss ({unit_of(study.curves)})", table
        ), table
    figure = Figure(figsize=(WIDTH, 3.4))
    axes = figure.add_subplot()
    for i, (line, look) in enumerate(lines):
        _draw_line(axes, line, look, shift=i)
    if lines:
        scale_losses(axes, table["low"].min(), table["high"].max())
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.8)
    else:
        axes.text(0.5, 0.5, "no run has learned yet", transform=axes.transAxes, ha="center")
    axes.set_xlabel("step")
    axes.set_ylabel(f"validation loss ({unit_of(study.curves)})")
    axes.set_title(title)
    return figure, table


def _small_multiples(lines: Sequence[Line], title: str, up: str, table: pd.DataFrame) -> Figure:
    grid = panels(
        len(lines), columns=5, width=1.3, height=0.95, gap=(0.12, 0.4), sharex=True, sharey=True
    )
    backdrop = [line[["step", "mean"]].to_numpy(float) for line, _ in lines]
    for axes, (line, look) in zip(grid.axes, lines, strict=True):
        axes.add_collection(LineCollection(backdrop, colors="0.85", linewidths=0.5, zorder=0))
        _draw_line(axes, line, look, shift=0)
        words = f"{line['label'].iloc[0]}\nlr {lr_text(line['lr'].iloc[0])}"
        axes.set_title(words, fontsize=6.5, loc="left", pad=3)
        axes.tick_params(labelsize=6.5)
    scale_losses(grid.axes[0], table["low"].min(), table["high"].max())
    grid.title(title)
    grid.x_label("step", below=0.25)
    grid.y_label(up)
    return grid.figure


def _draw_line(axes: Axes, line: pd.DataFrame, look: Style, *, shift: int) -> None:
    step, colour = line["step"], look.colour
    every = max(1, round(len(line) / MARKS))
    axes.fill_between(step, line["low"], line["high"], color=colour, alpha=0.12, linewidth=0)
    label = f"{line['label'].iloc[0]}, lr {lr_text(line['lr'].iloc[0])}"
    axes.plot(
        step,
        line["mean"],
        look.dash,
        color=colour,
        marker=look.marker,
        markevery=(shift % every, every),
        label=label,
    )
    for point in line.iloc[:: max(1, len(line) // 60)].itertuples():
        spread = range_text(point.low, point.high, point.seeds)
        text = f"{label}, step {point.step:g}\nloss {point.mean:.4g} ({spread})"
        note(axes, point.step, point.mean, text)


def _shown(curve: Curve, lrs: Sequence[float]) -> list[int]:
    """Places in the curve's grid: of the chosen learning rates, by default of the best one."""
    if lrs:
        return [int(i) for i in np.flatnonzero(among(curve.lr, lrs).any(axis=1))]
    optimum = best(curve)
    return [] if optimum is None else [optimum.index]


def _look_of(curve: Curve, i: int, lrs: Sequence[float]) -> str:
    """What tells a line from the others of its method: with several, also the learning rate."""
    return f"{curve.setting} lr={lr_text(curve.lr[i])}".strip() if len(lrs) > 1 else curve.setting


def _losses(records: pd.DataFrame, curve: Curve, i: int) -> pd.DataFrame:
    """One row per step that all seeds with records have: mean, min, max of the validation loss."""
    ids = curve.run[i][curve.done[i]]
    own = records.loc[records["run"].isin(ids), ["run", "step", "val_loss"]]
    own = own.astype({"step": float, "val_loss": float})
    losses = own.loc[np.isfinite(own["val_loss"])].groupby("step")["val_loss"]
    steps = losses.agg(mean="mean", low="min", high="max", seeds="count").reset_index()
    steps = steps.loc[steps["seeds"] == own["run"].nunique()]
    named = {"method": curve.method, "setting": curve.setting, "label": curve.label}
    return steps.assign(**named, lr=float(curve.lr[i]))[COLUMNS]
