"""Final validation loss against learning rate, a line per method: the figure optlab is for."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from matplotlib.transforms import offset_copy

from ..compared import Usable
from ..curves import Curve, Study
from ..layout import (
    CEILING,
    GREY,
    WIDTH,
    CannotDraw,
    certified,
    legend_beside,
    loss_name,
    lr_axis,
    note,
    panels,
    range_text,
    scale_losses,
    within,
)
from ..robustness import Side, best, usable_width
from ..style import Style, styles
from ..tables import lr_text

FIRST_ROW, ROW = 7.0, 5.0  # points from the ceiling to the marks of divergence, row to row
EVERY, SOME = 1.4, 0.5  # stroke widths of a cross, in points
POINTING = {"left": "<", "right": ">", "both": "d"}
ENDS = {"crossing": "|", "ceiling": "|", "hole": "$?$"}  # of a usable width; an edge is an arrow
BEYOND = 4.5  # points from the end of a usable width to the arrow that says that it goes on
BARS = {  # dashes short enough for a short bar, in its widths
    "-": "-",
    "--": (0, (1.3, 0.6)),
    "-.": (0, (1.6, 0.5, 0.4, 0.5)),
    ":": (0, (0.5, 0.5)),
}
MANY, TOGETHER, MOST = 12, 6, 60  # lines in one panel, settings in a method's panel, panels

CERTIFIED = {"color": "white", "markersize": 3.0, "markeredgewidth": 0.0}

Look = tuple[Curve, Style]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Seed means with their range; crosses above the ceiling mark what diverged.

    Up to a dozen lines share one panel, with the usable learning rates of each in the bars below
    (an arrow: the grid's edge cuts them, a question mark: a hole does); more lines are drawn as
    small multiples, each over the others in grey, the usable learning rates shaded.
    """
    looks = styles((curve.method, curve.setting) for curve in study.curves)
    repeats = certified(study.runs)
    drawn = list(zip(study.curves, looks, strict=True))
    if not drawn:
        raise CannotDraw("the sweep has no runs, so there is nothing to draw")
    figure = _one_panel(study, drawn) if len(drawn) <= MANY else _small_multiples(study, drawn)
    return figure, _table(study.curves, Usable(study.q, study.level)).assign(
        seeds_certified=np.concatenate([_n_certified(curve, repeats) for curve in study.curves])
    )


def _one_panel(study: Study, drawn: Sequence[Look]) -> Figure:
    strip = 0.14 + 0.085 * len(drawn)  # inches
    figure = Figure(figsize=(WIDTH, 3.5 + strip))
    axes, below = figure.subplots(
        2, 1, sharex=True, height_ratios=[3.0, strip], gridspec_kw={"hspace": 0.04}
    )
    unstable = _draw_lines(figure, axes, drawn, certified(study.runs))
    _scale(axes, study.curves)
    axes.set_ylabel(loss_name(study.curves))
    axes.set_title(study.name, pad=FIRST_ROW + 3 + ROW * unstable)
    axes.tick_params(which="both", bottom=False, labelbottom=False)
    _draw_usable(figure, below, drawn, Usable(study.q, study.level))
    below.set_xlabel("learning rate")
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=c.label)
        for c, s in drawn
    ]
    legend_beside(axes, [*handles, *_keys(study), *_width_key(study)])
    return figure


def _small_multiples(study: Study, drawn: Sequence[Look]) -> Figure:
    groups = [list(group) for _, group in groupby(drawn, key=lambda look: look[0].method)]
    if max(map(len, groups)) > TOGETHER or len(groups) == 1:
        groups = [[look] for look in drawn]
    if len(groups) > MOST:
        raise CannotDraw(
            f"its {len(drawn)} lines would need {len(groups)} panels; choose among them "
            "(optimizer=NAME,NAME), or draw design_space"
        )
    rows = max(1 + sum(c.diverged.any() for c, _ in group) for group in groups)
    labels = [group[0][0].label if len(group) == 1 else _method_label(group) for group in groups]
    titles = [_broken(label) for label in labels]
    more = 0.11 * max(0, max(title.count("\n") for title in titles) - 1)  # inches
    gap = (0.14, 0.36 + ROW * rows / 72 + more)
    grid = panels(
        len(groups), columns=4, width=1.65, height=1.15, gap=gap, sharex=True, sharey=True
    )
    backdrop = [np.column_stack([curve.lr, _shown(curve)]) for curve, _ in drawn]
    for axes, group, title in zip(grid.axes, groups, titles, strict=True):
        axes.add_collection(LineCollection(backdrop, colors="0.85", linewidths=0.5, zorder=0))
        unstable = _draw_lines(grid.figure, axes, group, certified(study.runs))
        if len(group) == 1:
            _shade_usable(axes, *group[0], Usable(study.q, study.level))
        pad = 4 + (FIRST_ROW + ROW * unstable - 2 if unstable else 0)
        axes.set_title(title, fontsize=7, loc="left", pad=pad)
        if len(group) > 1:
            _settings_legend(axes, group)
    _scale(grid.axes[0], study.curves)
    for axes in grid.axes:
        axes.tick_params(labelsize=6.5)
        axes.xaxis.set_minor_locator(NullLocator())
    grid.title(study.name, above=0.42 + more)
    grid.x_label("learning rate")
    grid.y_label(loss_name(study.curves))
    grid.legend([*_keys(study), *_width_key(study)])
    return grid.figure


def _draw_lines(figure: Figure, axes: Axes, drawn: Sequence[Look], repeats: set[str]) -> int:
    """Lines, ceilings and rows of crosses of one panel; how many rows there are."""
    for curve, look in drawn:
        _draw_curve(figure, axes, curve, look)
        _mark_certified(axes, curve, repeats)
    _draw_ceiling(axes, [curve for curve, _ in drawn])
    unstable = [look for look in drawn if look[0].diverged.any()]
    for row, (curve, look) in enumerate(reversed(unstable)):
        _draw_diverged(figure, axes, curve, look, row)
    return len(unstable)


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
    for i in np.flatnonzero(curve.n > 0):
        note(axes, lr[i], min(curve.mean[i], curve.ceiling), _point_text(curve, int(i)))


def _mark_certified(axes: Axes, curve: Curve, repeats: set[str]) -> None:
    """A white dot in the marker of a point that was not trained, as it would repeat another."""
    shown = (_n_certified(curve, repeats) > 0) & ~_all_diverged(curve)
    if shown.any():
        axes.plot(curve.lr[shown], curve.mean[shown], ".", **CERTIFIED, clip_on=False, zorder=6)


def _n_certified(curve: Curve, repeats: set[str]) -> np.ndarray:
    """(n,) Number of seeds whose run was not trained."""
    return np.array([sum(run in repeats for run in row) for row in curve.run])


def _point_text(curve: Curve, i: int) -> str:
    lines = [
        f"{curve.label}, lr {lr_text(curve.lr[i])}",
        f"loss {curve.mean[i]:.4g} {curve.unit} "
        f"({range_text(curve.low[i], curve.high[i], curve.n[i])})",
    ]
    if curve.n_diverged[i]:
        lines.append(f"{curve.n_diverged[i]} diverged, counted with the initial loss")
    if curve.n[i] < curve.planned[i]:
        lines.append(f"{curve.planned[i] - curve.n[i]} of {curve.planned[i]} seeds lacking")
    return "\n".join(lines)


def _shown(curve: Curve) -> np.ndarray:
    return np.where(_inside_cliff(curve), np.nan, np.fmin(curve.mean, curve.ceiling))


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
            diverged = f"{curve.label}, lr {lr_text(lr)}\n{count} of {n} seeds diverged"
            note(axes, lr, 1.0, diverged, transform=above)


def _draw_usable(figure: Figure, axes: Axes, drawn: Sequence[Look], rule: Usable) -> None:
    """A bar per line, in the order of the legend: the learning rates close to its best loss."""
    for row, (curve, look) in enumerate(drawn):
        width, optimum = usable_width(curve, rule.q, rule.level), best(curve)
        if width is None or optimum is None:
            continue
        ends = [width.left.lr, width.right.lr]
        dash, colour = BARS[look.dash], look.colour
        axes.plot(ends, [row, row], linestyle=dash, color=colour, linewidth=2.6, alpha=0.45)
        axes.plot([optimum.lr], [row], look.marker, color=look.colour, markersize=3.2, zorder=4)
        for side, arrow in ((width.left, "<"), (width.right, ">")):
            _draw_end(figure, axes, side, row, look, arrow)
        text = (
            f"{curve.label}: usable from lr {lr_text(ends[0])} to {lr_text(ends[1])}, "
            f"{'at least ' if width.censored else ''}{width.decades:.2f} decades"
        )
        for x in {*ends, optimum.lr}:
            note(axes, x, row, text)
    axes.set_ylim(len(drawn) - 0.3, -0.7)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_ylabel("usable", rotation=0, ha="right", va="center", fontsize=7)


def _draw_end(figure: Figure, axes: Axes, side: Side, row: int, look: Style, arrow: str) -> None:
    is_cut = side.bound == "edge"
    marker = arrow if is_cut else ENDS[side.bound]
    # beside the end, which may be the best point and have its marker
    shift = (BEYOND if arrow == ">" else -BEYOND) if is_cut else 0.0
    axes.plot(
        [side.lr],
        [row],
        marker=marker,
        linestyle="none",
        color=look.colour,
        transform=offset_copy(axes.transData, fig=figure, x=shift, units="points"),
        markersize=3.4,
        markeredgewidth=0.9,
        clip_on=False,
        zorder=3,
    )


def _shade_usable(axes: Axes, curve: Curve, look: Style, rule: Usable) -> None:
    width = usable_width(curve, rule.q, rule.level)
    if width is not None:
        axes.axvspan(width.left.lr, width.right.lr, color=look.colour, alpha=0.13, linewidth=0)


def _scale(axes: Axes, curves: Sequence[Curve]) -> None:
    """Ceiling on top, best loss at the bottom."""
    lr_axis(axes, np.concatenate([curve.lr for curve in curves]))
    ends = np.concatenate([[curve.ceiling, *curve.low, *curve.high] for curve in curves])
    if np.isfinite(ends).any():
        scale_losses(axes, float(np.nanmin(ends)), float(np.nanmax(ends)))
    if all(((curve.n == 0) | _all_diverged(curve)).all() for curve in curves):
        done = any(curve.done.any() for curve in curves)
        words = "every run diverged" if done else "no run has a result yet"
        axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", color=GREY)


def _keys(study: Study) -> list[Line2D | Patch]:
    """The marks that this figure really uses."""
    curves = study.curves
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
        (bool(certified(study.runs)), _certified_key()),
    ]
    return [key for used, key in keys if used]


def _width_key(study: Study) -> list[Line2D]:
    rule = Usable(study.q, study.level)
    if not any(usable_width(curve, rule.q, rule.level) for curve in study.curves):
        return []
    label = f"usable: {within(rule)}"
    return [Line2D([], [], color=GREY, linewidth=2.6, alpha=0.45, label=label)]


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


def _certified_key() -> Line2D:
    key = _key("certified: repeats a smaller lr", "o")
    key.set(markerfacecolor="white", markeredgewidth=1.5, markersize=4)
    return key


def _method_label(group: Sequence[Look]) -> str:
    curve = group[0][0]
    return curve.label.removesuffix(f" ({curve.setting})")


def _broken(title: str) -> str:
    """A title in lines that fit a small panel."""
    if len(title) <= 24:
        return title
    name, *setting = title.split(" (", 1)
    wrapped = (textwrap.fill(f"({words}", 30, break_on_hyphens=False) for words in setting)
    return "\n".join([name, *wrapped])


def _settings_legend(axes: Axes, group: Sequence[Look]) -> None:
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=c.setting)
        for c, s in group
    ]
    axes.legend(handles=handles, fontsize=5, handlelength=1.6, loc="upper left", borderpad=0)


def _all_diverged(curve: Curve) -> np.ndarray:
    return (curve.n > 0) & (curve.n_diverged == curve.n)


def _partial(curve: Curve) -> np.ndarray:
    return (curve.n > 0) & (curve.n < curve.planned)


def _whole(curve: Curve) -> np.ndarray:
    return (curve.n > 0) & (curve.n == curve.planned)


def _table(curves: Sequence[Curve], rule: Usable) -> pd.DataFrame:
    """One row per point; ``low`` and ``high`` (over seeds) are the band, NaN is a gap."""
    return pd.concat([_points(curve, rule) for curve in curves], ignore_index=True)


def _points(curve: Curve, rule: Usable) -> pd.DataFrame:
    optimum, width = best(curve), usable_width(curve, rule.q, rule.level)
    at_best = np.zeros(len(curve.lr), bool)
    if optimum:
        at_best[optimum.index] = True
    inside = (
        (curve.lr >= width.left.lr) & (curve.lr <= width.right.lr)
        if width
        else np.zeros(len(curve.lr), bool)
    )
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
            "usable": inside,
            "usable_left": width.left.lr if width else np.nan,
            "usable_left_bound": width.left.bound if width else "",
            "usable_right": width.right.lr if width else np.nan,
            "usable_right_bound": width.right.bound if width else "",
        }
    )
