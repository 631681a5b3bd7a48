"""The two stages of a sweep: what is a curve over learning rates, and what is not."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from .curves import Curve, curves
from .frames import rows
from .slices import Slice, slices
from .tables import lr_text

COLUMNS = ("stage", "second_setting", "second_axes")  # of an exported sweep in two stages


@dataclass(frozen=True)
class Stages:
    """Which runs of a table belong to which stage; a run may belong to both."""

    first: Collection[str]  # ids
    second: Mapping[str, str] = field(default_factory=dict)  # id -> its setting, the axes included
    axes: Sequence[str] = ()  # what the second stage varies, as its settings name it


def columns(runs: pd.DataFrame, stages: Stages) -> pd.DataFrame:
    """The runs with what ``of_columns`` reads: the stages of each, and what the second varies."""
    ids = runs["run"]
    second = ids.isin(list(stages.second))
    # what is drawn in no other place is of the first stage: certified points
    first = ids.isin(list(stages.first)) | ~second
    return runs.assign(
        stage=[
            " ".join(word for word, there in (("first", one), ("second", two)) if there)
            for one, two in zip(first, second, strict=True)
        ],
        second_setting=[stages.second.get(run, "") for run in ids],
        second_axes=" ".join(stages.axes),
    )


def of_columns(runs: pd.DataFrame) -> Stages | None:
    """The stages of a table that has the columns of ``columns``; None for any other table."""
    if not set(COLUMNS) <= set(runs):
        return None
    stage, axes = runs["stage"].fillna("first"), runs["second_axes"].dropna()
    second = rows(runs, stage.str.contains("second"))
    return Stages(
        first=set(rows(runs, stage != "second")["run"]),
        second=dict(zip(second["run"], second["second_setting"].fillna(""), strict=True)),
        axes=axes.iloc[0].split() if len(axes) else (),
    )


def split(runs: pd.DataFrame, stages: Stages | None) -> tuple[pd.DataFrame, list[Curve]]:
    """The runs of the first stage, and the points of the second as curves of one learning rate."""
    if stages is None:
        return runs, []
    second = rows(runs, runs["run"].isin(list(stages.second)))
    second = second.assign(setting=[stages.second[run] for run in second["run"]])
    drawn = runs["certified_by"].fillna("") != "" if "certified_by" in runs else False
    return rows(runs, runs["run"].isin(list(stages.first)) | drawn), curves(second)


def text(second: Sequence[Curve], axes: Sequence[str]) -> list[str]:
    """Where each method is best along each axis of the second stage, a line each."""
    lines = [_line(each) for each in slices(second) if each.key in axes]
    if not lines:
        return []
    return ["Second stage, at the best learning rate of each curve of the first:", *lines]


def _line(each: Slice) -> str:
    losses = np.array([curve.mean[0] for curve in each.curves])
    lr = lr_text(each.curves[0].lr[0])
    head = f"  {each.label}, lr {lr}: {each.key}"
    lacking = sum(int(curve.planned[0] - curve.n[0]) for curve in each.curves)
    holes = f"; {lacking} run{'s' if lacking > 1 else ''} lacking" if lacking else ""
    if np.isnan(losses).all():
        return f"{head} has no results yet{holes}."
    i = int(np.nanargmin(losses))
    edge = ", an end of what was tried" if i in (0, len(losses) - 1) else ""
    seeds = f"{each.curves[i].n[0]} seeds"
    return f"{head} {each.values[i]} is best with {losses[i]:.4g} ({seeds}){edge}{holes}."
