"""Final loss over learning rate and a second axis, such as weight decay or the ratio of rates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PatchCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from ..curves import Curve, Study
from ..layout import CannotDraw, Panels, loss_name, lr_columns, note, panels, range_text
from ..robustness import best
from ..slices import Slice, slices, through_the_best
from ..tables import lr_text

COLOURS = colormaps["cividis"]  # safe for colour-blind readers, and rising evenly in grey
MISSING = {"facecolor": "white", "hatch": "////", "edgecolor": "0.6", "linewidth": 0.0}
MOST, WRITTEN = 24, 90  # panels; cells of a panel up to which their numbers are written
COLUMNS = [
    *("axis", "method", "fixed", "value", "lr", "mean", "low", "high"),
    *("seeds_planned", "seeds_done", "seeds_diverged", "ceiling", "best_of_row", "best"),
]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A panel per axis and method, the other settings as where the method's loss is lowest.

    A dot marks the best learning rate of each row, a ring the best cell of the panel, a cross what
    diverged; hatched cells have no result yet.
    """
    found = through_the_best(slices(study.curves))
    if not found:
        raise CannotDraw(
            "it needs a second axis besides the learning rate, such as optimizer.weight_decay, "
            "with two values or more for one method"
        )
    if len(found) > MOST:
        raise CannotDraw(f"{len(found)} panels fit no page; choose methods (optimizer=NAME,NAME)")
    rows, columns = max(len(s.values) for s in found), max(len(_lrs(s)) for s in found)
    width, height = max(1.5, 0.27 * columns), max(0.5, 0.24 * rows)
    names = any(not s.is_numeric for s in found)
    gap = (1.5 if names else 0.75, 0.95)
    across = max(1, int((7.4 + gap[0]) / (width + gap[0])))
    grid = panels(len(found), columns=across, width=width, height=height, gap=gap)
    norm = _norm(study.curves)
    for axes, each in zip(grid.axes, found, strict=True):
        _draw_panel(axes, each, norm)
    bar = grid.colour_bar(ScalarMappable(norm, COLOURS), loss_name(study.curves))
    bar.tick_params(labelsize=7)
    if isinstance(norm, LogNorm):
        low, high = bar.get_ylim()
        few = LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,))
        bar.yaxis.set_major_locator(few)
        bar.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        bar.yaxis.set_minor_locator(NullLocator())
    grid.title(study.name, above=0.38)
    _legend(grid, found)
    return grid.figure, pd.concat([_table(each) for each in found], ignore_index=True)


def _lrs(each: Slice) -> np.ndarray:
    return np.unique(np.concatenate([curve.lr for curve in each.curves]))


def _norm(curves: Sequence[Curve]) -> Normalize:
    """From the best loss to the initial one; logarithmic where that is over a decade."""
    seen = np.concatenate([[curve.ceiling, *curve.mean] for curve in curves])
    seen = seen[np.isfinite(seen)]
    if not len(seen):
        return Normalize(0, 1)
    low, high = float(seen.min()), float(seen.max())
    return LogNorm(low, high) if 0 < low < high / 10 else Normalize(low, max(high, low + 1e-12))


def _draw_panel(axes: Axes, each: Slice, norm: Normalize) -> None:
    lrs = _lrs(each)
    loss = np.full((len(each.values), len(lrs)), np.nan)
    missing = []
    for row, curve in enumerate(each.curves):
        columns = np.searchsorted(lrs, curve.lr)
        loss[row, columns] = curve.mean
        empty = columns[curve.n == 0]
        missing += [Rectangle((x - 0.5, row - 0.5), 1.0, 1.0) for x in empty]
    axes.pcolormesh(
        np.arange(len(lrs) + 1) - 0.5,
        np.arange(len(each.values) + 1) - 0.5,
        np.ma.masked_invalid(loss),
        norm=norm,
        cmap=COLOURS,
        edgecolors="white",
        linewidth=0.4,
    )
    axes.add_collection(PatchCollection(missing, **MISSING))
    for row, curve in enumerate(each.curves):
        _mark_row(axes, curve, row, each, np.searchsorted(lrs, curve.lr), norm, loss.size)
    _ring_the_best(axes, each, lrs)
    _frame(axes, each, lrs)


def _mark_row(
    axes: Axes,
    curve: Curve,
    row: int,
    each: Slice,
    columns: np.ndarray,
    norm: Normalize,
    cells: int,
) -> None:
    optimum = best(curve)
    for i, x in enumerate(columns):
        dark = curve.n[i] > 0 and norm(curve.mean[i]) < 0.5
        ink = "white" if dark else "black"
        if curve.n_diverged[i]:
            weight = 1.2 if curve.n_diverged[i] == curve.n[i] else 0.5
            axes.plot([x], [row], "x", color=ink, markersize=4, markeredgewidth=weight)
        elif optimum and i == optimum.index:
            axes.plot([x - 0.37], [row + 0.36], "o", color=ink, markersize=2.2)
        if curve.n[i] and not curve.n_diverged[i] and cells <= WRITTEN:
            text = f"{curve.mean[i]:.3g}" if curve.mean[i] >= 0.01 else f"{curve.mean[i]:.0e}"
            axes.text(x, row, text, ha="center", va="center", fontsize=4.6, color=ink)
        note(axes, float(x), row, _cell_text(each, curve, i, row))


def _cell_text(each: Slice, curve: Curve, i: int, row: int) -> str:
    lines = [f"{each.label}, lr {lr_text(curve.lr[i])}, {each.key} {each.values[row]}"]
    if curve.n[i]:
        spread = range_text(curve.low[i], curve.high[i], curve.n[i])
        lines.append(f"loss {curve.mean[i]:.4g} {curve.unit} ({spread})")
    if curve.n_diverged[i]:
        lines.append(f"{curve.n_diverged[i]} of {curve.n[i]} seeds diverged")
    if curve.n[i] < curve.planned[i]:
        lines.append(f"{curve.planned[i] - curve.n[i]} of {curve.planned[i]} seeds lacking")
    return "\n".join(lines)


def _best_row(each: Slice) -> int | None:
    optima = [best(curve) for curve in each.curves]
    losses = [optimum.loss if optimum else np.inf for optimum in optima]
    return int(np.argmin(losses)) if np.isfinite(losses).any() else None


def _ring_the_best(axes: Axes, each: Slice, lrs: np.ndarray) -> None:
    row = _best_row(each)
    optimum = best(each.curves[row]) if row is not None else None
    if row is None or optimum is None:
        return
    corner = (np.searchsorted(lrs, optimum.lr) - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="#D55E00", linewidth=1.4))


def _frame(axes: Axes, each: Slice, lrs: np.ndarray) -> None:
    lr_columns(axes, lrs)
    axes.set_xlim(-0.5, len(lrs) - 0.5)
    axes.set_ylim(-0.5, len(each.values) - 0.5)
    axes.set_yticks(range(len(each.values)), each.values)
    axes.tick_params(length=0, labelsize=6)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(each.label.replace(" (", "\n(", 1), fontsize=7)
    axes.set_xlabel("learning rate", fontsize=7)
    axes.set_ylabel(each.key.rpartition("optimizer.")[2], fontsize=7)


def _legend(grid: Panels, found: Sequence[Slice]) -> None:
    curves = [curve for each in found for curve in each.curves]
    ring = Patch(fill=False, edgecolor="#D55E00", linewidth=1.4, label="best of the panel")
    dot = Line2D([], [], color="black", marker="o", linestyle="none", markersize=2.2)
    dot.set_label("best of the row")
    cross = Line2D([], [], color="black", marker="x", linestyle="none", markersize=4)
    cross.set_label("diverged (thin: some seeds)")
    hatched = Patch(**MISSING, label="no result yet")
    keys = [
        (any(best(curve) for curve in curves), dot),
        (any(best(curve) for curve in curves), ring),
        (any(curve.diverged.any() for curve in curves), cross),
        (any((curve.n < curve.planned).any() for curve in curves), hatched),
    ]
    used = [key for there, key in keys if there]
    if used:
        grid.legend(used, below=0.62)


def _table(each: Slice) -> pd.DataFrame:
    """One row per cell; losses in the unit of the study."""
    best_row = _best_row(each)
    rows = []
    for k, (value, curve) in enumerate(zip(each.values, each.curves, strict=True)):
        optimum = best(curve)
        of_row = np.arange(len(curve.lr)) == (optimum.index if optimum else -1)
        rows.append(
            pd.DataFrame(
                {
                    "axis": each.key,
                    "method": each.method,
                    "fixed": each.fixed,
                    "value": value,
                    "lr": curve.lr,
                    "mean": curve.mean,
                    "low": curve.low,
                    "high": curve.high,
                    "seeds_planned": curve.planned,
                    "seeds_done": curve.n,
                    "seeds_diverged": curve.n_diverged,
                    "ceiling": curve.ceiling,
                    "best_of_row": of_row,
                    "best": of_row & (k == best_row),
                }
            )
        )
    return pd.concat(rows, ignore_index=True).reindex(columns=COLUMNS)
