"""Validation loss against training step, each method at its best learning rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..curves import Curve, Study
from ..robustness import Optimum, best
from ..layout import scale_losses
from ..style import Style, styles
from ..tables import lr_text

MARK_EVERY = 5  # evaluations; shifted from line to line, so that no marker hides another
COLUMNS = ["method", "setting", "label", "lr", "step", "mean", "low", "high", "seeds"]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Seed means with their range, at the steps that every finished seed has evaluated."""
    figure = Figure(figsize=(6.6, 3.4))
    axes = figure.add_subplot()
    tables = []
    looks = styles((curve.method, curve.setting) for curve in study.curves)
    for i, (curve, look) in enumerate(zip(study.curves, looks, strict=True)):
        line = _losses(study.records, curve, best(curve))
        if len(line):
            _draw_line(axes, line, look, shift=i % MARK_EVERY)
            tables.append(line)
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)
    if tables:
        scale_losses(axes, table["low"].min(), table["high"].max())
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.6)
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss (nats)")
    axes.set_title(f"{study.name}: each method at its best learning rate")
    return figure, table


def _draw_line(axes: Axes, line: pd.DataFrame, look: Style, *, shift: int) -> None:
    step, colour = line["step"], look.colour
    axes.fill_between(step, line["low"], line["high"], color=colour, alpha=0.12, linewidth=0)
    axes.plot(
        step,
        line["mean"],
        look.dash,
        color=colour,
        marker=look.marker,
        markevery=(shift, MARK_EVERY),
        label=f"{line['label'].iloc[0]}, lr {lr_text(line['lr'].iloc[0])}",
    )


def _losses(records: pd.DataFrame, curve: Curve, optimum: Optimum | None) -> pd.DataFrame:
    """One row per step that all seeds with records have: mean, min, max of the validation loss."""
    if optimum is None:
        return pd.DataFrame(columns=COLUMNS)
    ids = curve.run[optimum.index][curve.done[optimum.index]]
    own = records.loc[records["run"].isin(ids), ["run", "step", "val_loss"]]
    own = own.astype({"step": float, "val_loss": float})
    losses = own.loc[np.isfinite(own["val_loss"])].groupby("step")["val_loss"]
    steps = losses.agg(mean="mean", low="min", high="max", seeds="count").reset_index()
    steps = steps.loc[steps["seeds"] == own["run"].nunique()]
    named = {"method": curve.method, "setting": curve.setting, "label": curve.label}
    return steps.assign(**named, lr=optimum.lr)[COLUMNS]
