"""A sweep's own page in W&B: one run with its tables, its curves as a chart, and its figure."""

from __future__ import annotations

import hashlib
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import TrackingConfig
from . import client, memory, rows
from .mirror import finish_within
from .publish import SEND_WITHIN

if TYPE_CHECKING:
    import pandas as pd

CHART = "optlab_lr_sensitivity_v1"  # and the scale; a new name wherever the specification changes
PRESET = "wandb/lineseries/v0"  # W&B's own, which has no logarithmic axis

WORDS = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
FIELDS = {"lr": "lr", "loss": "mean", "low": "low", "high": "high", "method": "label"}


def specification(scale: Literal["log", "linear"]) -> dict[str, Any]:
    """Seed means against the learning rate, a line per method, with the range over seeds.

    Vega-Lite in W&B's dialect: ${field:...} is a column of the table, ${string:...} a word.
    ``scale``: of the loss; that of the learning rate is logarithmic.
    """
    loss = {"type": "quantitative", "scale": {"type": scale, "zero": False, "nice": False}}
    shown = [{"field": f"${{field:{name}}}", "type": "quantitative"} for name in FIELDS][:-1]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "title": "${string:title}",
        "data": {"name": "wandb"},
        "width": "container",
        "height": "container",
        "autosize": "fit",
        "encoding": {
            "x": {
                "field": "${field:lr}",
                "type": "quantitative",
                "scale": {"type": "log"},
                "axis": {"title": "learning rate", "grid": False},
            },
            "color": {
                "field": "${field:method}",
                "type": "nominal",
                "legend": {"title": None, "symbolOpacity": 1},
            },
        },
        "layer": [
            {
                "mark": {"type": "area", "opacity": 0.15},
                "encoding": {
                    "y": {"field": "${field:low}", **loss, "title": "final validation loss"},
                    "y2": {"field": "${field:high}"},
                },
            },
            {
                "mark": {"type": "line", "point": True},
                "encoding": {
                    "y": {"field": "${field:loss}", **loss},
                    "tooltip": [{"field": "${field:method}", "type": "nominal"}, *shown],
                },
            },
        ],
    }


@dataclass(frozen=True)
class Page:
    """What the page of a sweep shows, and what reading the sweep back needs."""

    sweep: str
    command: str  # the words after ``python launch.py -m`` that launch it
    figures: Sequence[str]  # of the sweep file
    coverage: Mapping[str, int]  # status -> runs
    points: pd.DataFrame  # of the curves; columns label, lr, mean, low, high among others
    robustness: pd.DataFrame  # a row per curve
    figure: bytes | None  # PNG; None where no run is done
    runs: Sequence[tuple[str, str]]  # id and setting of every run, then of every certified one
    missing: Sequence[Mapping[str, Any]]  # rows of those of which W&B knows nothing
    certified: Sequence[Mapping[str, Any]] = ()  # rows of those that need no training


def page_id(sweep: str) -> str:
    """The W&B id of a sweep's page."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", sweep)
    if plain == sweep and len(sweep) <= 48:
        return f"summary-{sweep}"
    return f"summary-{plain[:40]}-{hashlib.sha256(sweep.encode()).hexdigest()[:6]}"


def publish_page(page: Page, config: TrackingConfig, folder: Path) -> tuple[str, str]:
    """Bring the sweep's page up to date; (address, what to know about its chart, or '').

    ``folder`` keeps what was published, as a run's folder does: an unchanged page is left alone.
    """
    where = client.target(config)
    known = memory.recall(folder, where)
    digest = rows.digest(_content(page))
    if known is not None and known.digest == digest:
        return known.url, ""
    with tempfile.TemporaryDirectory(prefix="optlab-wandb-") as scratch:
        opened = client.init(
            config,
            Path(scratch),
            mode="online",
            id=page_id(page.sweep),
            name=f"summary of {page.sweep}",
            group=page.sweep,
            tags=[page.sweep, "summary"],
            job_type="summary",
            values=_config(page),
        )
        logged, note = _logged(page, opened.entity, Path(scratch))
        opened.log(logged)
        opened.summary.update({f"runs_{status}": n for status, n in page.coverage.items()})
        finish_within(opened, SEND_WITHIN, exit_code=0)
    planned = known or memory.Published(page_id(page.sweep), page.sweep)
    memory.remember(folder, where, replace(planned, digest=digest, url=opened.url or ""))
    return opened.url or "", note


def _config(page: Page) -> dict[str, Any]:
    return {
        "sweep": page.sweep,
        "command": page.command,
        "figures": list(page.figures),
        "runs": [list(pair) for pair in page.runs],
        "missing": [_in_json(row) for row in page.missing],
        "certified": [_in_json(row) for row in page.certified],
    }


def _in_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of runs; numbers that JSON does not have in W&B's words for them."""
    return {
        key: WORDS[str(value)] if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in row.items()
    }


def _content(page: Page) -> list[Any]:
    figure = hashlib.sha256(page.figure or b"").hexdigest()
    tables = [cells(page.points), cells(page.robustness)]
    return [_config(page), dict(page.coverage), tables, figure, CHART]


def _logged(page: Page, entity: str, scratch: Path) -> tuple[dict[str, Any], str]:
    wandb = client.imported()
    logged: dict[str, Any] = {}
    note = ""
    for name, table in (("points", page.points), ("robustness", page.robustness)):
        if len(table):
            logged[name] = wandb.Table(columns=list(table.columns), data=cells(table))
    if page.figure is not None:
        path = scratch / "lr_sensitivity.png"
        path.write_bytes(page.figure)
        logged["figure"] = wandb.Image(str(path), caption=page.sweep)
        logged["lr_sensitivity"], note = _chart(page, entity)
    return {"refreshed": sum(page.coverage.values()), **logged}, note


def _chart(page: Page, entity: str) -> tuple[Any, str]:
    """The curves as a native chart: ours where the account may register it, else W&B's preset."""
    wandb = client.imported()
    name, scale = chart_name(page.points)
    title = f"{page.sweep}: final validation loss against learning rate"
    shown = page.points.dropna(subset=["mean"])
    try:
        chart = client.api().create_custom_chart(
            entity=entity,
            name=name,
            display_name=f"optlab: final loss against learning rate ({scale})",
            spec_type="vega2",
            access="private",
            spec=specification(scale),
        )
    except Exception as error:  # the account may lack the right, the server may be old
        if "exist" not in str(error).lower():
            return _preset(shown, title), (
                f"The chart's own form was refused ({client.explain(error)}): it is drawn in "
                "W&B's preset, over log10 of the learning rate and without bands."
            )
        chart = f"{entity}/{name}"
    columns = list(FIELDS.values())
    table = wandb.Table(columns=columns, data=cells(shown.loc[:, columns]))
    return wandb.plot_table(chart, table, fields=FIELDS, string_fields={"title": title}), ""


def chart_name(points: pd.DataFrame) -> tuple[str, Literal["log", "linear"]]:
    """The chart's name and the scale of its losses: logarithmic where they span a decade."""
    low, high = float(points["low"].min()), float(points["high"].max())
    scale = "log" if 0 < low < high / 10 else "linear"
    return f"{CHART}_{scale}", scale


def _preset(shown: pd.DataFrame, title: str) -> Any:
    lines = [(label, part) for label, part in shown.groupby("label", sort=False)]
    return client.imported().plot.line_series(
        xs=[[math.log10(lr) for lr in part["lr"]] for _, part in lines],
        ys=[[float(loss) for loss in part["mean"]] for _, part in lines],
        keys=[str(label) for label, _ in lines],
        title=title,
        xname="log10 learning rate",
    )


def cells(table: pd.DataFrame) -> list[list[Any]]:
    """The rows of a table in plain Python; None where a number does not exist."""
    plain = table.astype(object).to_numpy().tolist()
    return [[None if _is_hole(cell) else cell for cell in row] for row in plain]


def _is_hole(cell: Any) -> bool:
    return isinstance(cell, float) and not math.isfinite(cell)
