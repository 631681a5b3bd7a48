"""What the figures share: axes of learning rates and losses, legends beside the data, notes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from .compared import Usable
from .curves import Curve

GREY = "0.35"
CEILING = {"color": GREY, "linestyle": (0, (4, 3)), "linewidth": 0.8}
LEGEND_ROWS = 26  # entries in a column of a legend
WIDTH = 6.6  # inches: the text width of most papers


class CannotDraw(Exception):
    """A sweep lacks what a figure needs; the message is one sentence for people."""


def lr_axis(axes: Axes, lrs: np.ndarray) -> None:
    """A logarithmic axis over all the learning rates, with some air; ticks also on a short one."""
    low, high = float(np.min(lrs)), float(np.max(lrs))
    air = 1.5 * (high / low) ** 0.02
    axes.set_xscale("log")
    axes.set_xlim(low / air, high * air)
    decades = math.floor(math.log10(high * air)) - math.ceil(math.log10(low / air)) + 1
    if decades >= 2:
        axes.xaxis.set_major_locator(LogLocator(numticks=min(7, decades)))
        axes.xaxis.set_minor_locator(LogLocator(subs=range(2, 10), numticks=20))
    else:
        shown = np.unique(lrs)[:: -(-len(np.unique(lrs)) // 6)]
        axes.xaxis.set_major_locator(FixedLocator([float(lr) for lr in shown]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda lr, _: f"{lr:.4g}"))
        axes.xaxis.set_minor_locator(NullLocator())


def lr_columns(axes: Axes, lrs: np.ndarray) -> None:
    """Ticks for learning rates that stand side by side as columns 0, 1, 2 ..."""
    step = -(-len(lrs) // 24)
    words = [f"{lr:.4g}" for lr in lrs[::step]]
    long = len(lrs) > 6 and max(map(len, words)) > 3
    axes.set_xticks(range(0, len(lrs), step), words, rotation=45 if long else 0)
    if long:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")


def scale_losses(axes: Axes, bottom: float, top: float) -> None:
    """Limits of a loss axis, with some air below ``bottom``; logarithmic where over a decade."""
    if not 0 < bottom < top / 10:
        axes.set_ylim(bottom - 0.05 * (top - bottom) if bottom < top else top - 1, top)
        return
    axes.set_yscale("log")
    axes.set_ylim(bottom * (bottom / top) ** 0.05, top)
    if top < 1000 * bottom:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda loss, _: f"{loss:g}"))
        axes.yaxis.set_minor_locator(NullLocator())


def legend_beside(axes: Axes, handles: Sequence[Artist]) -> None:
    """A legend to the right of the axes, in as many columns as keep it near their height."""
    axes.legend(
        handles=list(handles),
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
        handlelength=3.8,
        ncols=-(-len(handles) // LEGEND_ROWS),
        columnspacing=1.2,
    )


@dataclass(frozen=True)
class Panels:
    """Small multiples of a figure, and around them a title, axis labels, a legend, a colour bar.

    The axes fill the figure to its borders: what surrounds them counts on ``savefig.bbox: tight``.
    Positions are in inches, so that no solver is needed (constrained layout takes seconds).
    """

    figure: Figure
    axes: list[Axes]
    width: float
    height: float

    def title(self, text: str, above: float = 0.32) -> None:
        self.figure.suptitle(text, fontsize=9, y=1 + above / self.height, va="bottom")

    def x_label(self, text: str, below: float = 0.3) -> None:
        self.figure.supxlabel(text, fontsize=8.5, y=-below / self.height, va="top")

    def y_label(self, text: str, left: float = 0.42) -> None:
        self.figure.supylabel(text, fontsize=8.5, x=-left / self.width, ha="right")

    def legend(self, handles: Sequence[Artist], below: float = 0.5) -> None:
        """A legend under everything, in as many columns as the figure is wide for."""
        longest = max(len(str(handle.get_label())) for handle in handles)
        columns = max(1, int(self.width / (0.45 + 0.062 * longest)))
        self.figure.legend(
            handles=list(handles),
            loc="upper center",
            bbox_to_anchor=(0.5, -below / self.height),
            ncols=min(columns, len(handles)),
            handlelength=3.8,
            fontsize=7,
        )

    def colour_bar(self, scale: ScalarMappable, label: str) -> Axes:
        """A colour bar to the right of all panels."""
        tall = min(1.0, 2.2 / self.height)
        place = (1 + 0.15 / self.width, 0.5 - tall / 2, 0.1 / self.width, tall)
        axes = self.figure.add_axes(place)
        self.figure.colorbar(scale, cax=axes, label=label)
        return axes


def panels(
    n: int,
    *,
    columns: int,
    width: float,
    height: float,
    gap: tuple[float, float] = (0.25, 0.45),
    sharex: bool = False,
    sharey: bool = False,
) -> Panels:
    """``n`` axes of ``width`` by ``height`` inches in rows of ``columns``, ``gap`` apart.

    Where x is shared, the lowest axes of each column show its ticks.
    """
    columns = min(n, columns)
    rows = -(-n // columns)
    whole = (columns * width + (columns - 1) * gap[0], rows * height + (rows - 1) * gap[1])
    figure = Figure(figsize=whole)
    grid = figure.subplots(
        rows,
        columns,
        squeeze=False,
        sharex=sharex,
        sharey=sharey,
        gridspec_kw={
            "left": 0,
            "right": 1,
            "bottom": 0,
            "top": 1,
            "wspace": gap[0] / width,
            "hspace": gap[1] / height,
        },
    )
    for axes in grid.flat[n:]:
        axes.remove()
    for axes in grid.flat[max(0, n - columns) : n]:
        axes.tick_params(labelbottom=True)
    return Panels(figure, list(grid.flat[:n]), *whole)


def note(axes: Axes, x: float, y: float, text: str, *, transform: object = "data") -> None:
    """Attach words to a point: never drawn on paper, shown by report.html when hovered over.

    ``transform``: the coordinate system of x and y, as in ``Axes.annotate``.
    """
    axes.annotate(text, (x, y), xycoords=transform, visible=False)  # pyright: ignore[reportArgumentType]


def certified(runs: pd.DataFrame) -> set[str]:
    """Ids of the runs that were not trained, as they would repeat another one bit by bit."""
    if "certified_by" not in runs:
        return set()
    return set(runs.loc[runs["certified_by"].fillna("") != "", "run"])


def within(rule: Usable) -> str:
    """What a usable learning rate may lose, in a few words: 'within 5% of the drop'."""
    return {
        "drop": f"within {100 * rule.q:g}% of the drop",
        "relative": f"within {100 * rule.q:g}% of the best",
        "absolute": f"within {rule.q:g} of the best",
    }[rule.level]


def unit_of(curves: Sequence[Curve]) -> str:
    """The unit of the losses of a study, which has only one."""
    return curves[0].unit if curves else "nats"


def loss_name(curves: Sequence[Curve]) -> str:
    """What the loss axis of a figure shows."""
    return f"final validation loss ({unit_of(curves)})"


def range_text(low: float, high: float, n: int) -> str:
    """The spread over seeds in words: '0.31 to 0.35 over 3 seeds'."""
    return f"{low:.4g} to {high:.4g} over {n} seeds" if n > 1 else "1 seed"
