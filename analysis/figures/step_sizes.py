"""The steps that Momo methods take against the learning rate, which only caps them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from ..curves import Curve, Study
from ..layout import GREY, CannotDraw, lr_axis, note, panels
from ..style import Style, styles
from ..tables import lr_text

MOST = 24  # panels
BINDS = 1 - 1e-5  # share of the cap: step sizes are float32 where the cap is float64
COLUMNS = ["method", "setting", "label", "lr", "step", "step_size", "cap", "binding", "seeds"]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A panel per method: geometric means over seeds, a line per learning rate, its cap dotted.

    The last panel: the share of steps at which the cap was binding, so that the learning rate did
    matter, by learning rate.
    """
    looks = styles((curve.method, curve.setting) for curve in study.curves)
    traced = [(c, s, _trace(study.records, c)) for c, s in zip(study.curves, looks, strict=True)]
    traced = [(curve, look, trace) for curve, look, trace in traced if len(trace)]
    if not traced:
        raise CannotDraw(
            "no run with records has a step-size rule (such as Momo's); every step was the "
            "learning rate"
        )
    if len(traced) >= MOST:
        raise CannotDraw(
            f"{len(traced)} methods and settings with a step-size rule fit no page; choose among "
            "them (optimizer=NAME,NAME)"
        )
    table = pd.concat([trace for _, _, trace in traced], ignore_index=True)
    grid = panels(
        len(traced) + 1,
        columns=2 if len(traced) in (1, 3) else 3,
        width=1.9,
        height=1.55,
        gap=(0.42, 0.62),
    )
    colours, norm = _colours(), LogNorm(*_ends(table["lr"]))
    for axes, (curve, _, trace) in zip(grid.axes, traced, strict=False):
        _draw_steps(axes, curve, trace, colours, norm)
    _same_limits(grid.axes[:-1], table)
    _draw_binding(grid.axes[-1], traced)
    grid.colour_bar(ScalarMappable(norm, colours), "learning rate (peak of the cap)")
    grid.title(f"{study.name}: step sizes and their cap")
    grid.legend(_handles([(curve, look) for curve, look, _ in traced]))
    return grid.figure, table


def _trace(records: pd.DataFrame, curve: Curve) -> pd.DataFrame:
    """One row per learning rate and step; empty where the method has no step-size rule."""
    if "step_size" not in records:
        return pd.DataFrame(columns=COLUMNS)
    where = {run: lr for lr, runs in zip(curve.lr, curve.run, strict=True) for run in runs if run}
    own = records.loc[records["run"].isin(list(where)) & (records["step"].astype(float) > 0)]
    own = own.drop_duplicates(["run", "step"], keep="last")
    size, cap = own["step_size"].astype(float), own["lr"].astype(float)
    binding = _binding(own, size, cap)
    known = np.isfinite(size) & np.isfinite(cap) & np.isfinite(binding)
    if not known.any() or ("capped" not in own and (binding == 1)[known].all()):
        return pd.DataFrame(columns=COLUMNS)
    points = pd.DataFrame(
        {
            "lr": own["run"].map(where),
            "step": own["step"].astype(int),
            "log": np.log10(size.where(size > 0)),
            "cap": cap,
            "binding": binding,
        }
    )[known]
    means = points.groupby(["lr", "step"], as_index=False).agg(
        log=("log", "mean"), cap=("cap", "mean"), binding=("binding", "mean"), seeds=("cap", "size")
    )
    means["step_size"] = 10 ** means["log"]
    named = {"method": curve.method, "setting": curve.setting, "label": curve.label}
    return means.assign(**named).reindex(columns=COLUMNS)


def _binding(own: pd.DataFrame, size: pd.Series, cap: pd.Series) -> pd.Series:
    """Share of the steps since the record before at which the cap was binding.

    From the column ``capped``; in tables without one, whether it bound at the recorded step.
    """
    return own["capped"].astype(float) if "capped" in own else (size >= BINDS * cap).astype(float)


def _colours() -> Colormap:
    """Dark to light without the palest end, which white paper would swallow."""
    return LinearSegmentedColormap.from_list("lrs", colormaps["viridis"](np.linspace(0, 0.9, 64)))


def _ends(lrs: pd.Series) -> tuple[float, float]:
    low, high = float(lrs.min()), float(lrs.max())
    return (low, high) if low < high else (low / 2, high * 2)


def _draw_steps(
    axes: Axes, curve: Curve, trace: pd.DataFrame, colours: Colormap, norm: LogNorm
) -> None:
    for lr in trace["lr"].unique():
        line, colour = trace.loc[trace["lr"] == lr], colours(norm(lr))
        axes.plot(line["step"], line["cap"], ":", color=colour, linewidth=0.8)
        axes.plot(line["step"], line["step_size"], color=colour, marker="o", markersize=2)
        points = line[["step", "step_size", "cap", "binding"]].to_numpy(float)
        for step, size, cap, binding in points[np.isfinite(points[:, 1])]:
            text = (
                f"{curve.label}, lr {lr_text(lr)}, step {step:g}\n"
                f"step size {size:.3g}, cap {cap:.3g}\n"
                f"cap binding at {binding:.0%} of the steps since the record before"
            )
            note(axes, step, size, text)
    axes.set_yscale("log")
    axes.set_title(curve.label, fontsize=8)
    axes.set_xlabel("step")
    axes.set_ylabel("step size")


def _same_limits(grid: Sequence[Axes], table: pd.DataFrame) -> None:
    """The same scale in every panel, from the smallest step taken to the largest cap."""
    seen = np.concatenate([table["step_size"], table["cap"]])
    seen = seen[np.isfinite(seen) & (seen > 0)]
    for axes in grid:
        axes.set_ylim(seen.min() / 1.6, seen.max() * 1.6)
        axes.label_outer(remove_inner_ticks=False)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("step")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_minor_locator(NullLocator())


def _draw_binding(axes: Axes, traced: Sequence[tuple[Curve, Style, pd.DataFrame]]) -> None:
    for curve, look, trace in traced:
        share = _shares(trace)
        axes.plot(share.index, share, look.dash, color=look.colour, marker=look.marker)
        for lr, value in share.items():
            text = (
                f"{curve.label}, lr {lr_text(float(str(lr)))}\ncap binding at {value:.0%} of steps"
            )
            note(axes, float(str(lr)), value, text)
    lr_axis(axes, np.concatenate([trace["lr"] for _, _, trace in traced]))
    axes.set_ylim(-0.04, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("learning rate")
    axes.set_title("steps at which the cap binds", fontsize=8)


def _handles(drawn: Sequence[tuple[Curve, Style]]) -> list[Line2D]:
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=c.label)
        for c, s in drawn
    ]
    return [*handles, Line2D([], [], color=GREY, linestyle=":", linewidth=0.8, label="the cap")]


def _shares(trace: pd.DataFrame) -> pd.Series:
    """By learning rate, the mean of ``binding`` weighted by the steps that each record covers."""
    steps = trace.groupby("lr")["step"].diff().fillna(trace["step"])
    weighted = (trace["binding"] * steps).groupby(trace["lr"]).sum()
    return weighted / steps.groupby(trace["lr"]).sum()
