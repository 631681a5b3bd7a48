"""``report.html``: figures, tables, provenance and runs of a sweep in one file, without network."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import tables
from .compared import Usable
from .curves import Study, is_diverged
from .drawing import Drawn
from .style import style

HERE = Path(__file__).parent
FACTS = {  # key of meta.json -> what a reader calls it
    "commit": "commit",
    "device": "device",
    "host": "machine",
    "platform": "system",
    "python": "Python",
    "threads": "CPU threads per run",
}
NO_LINKS = {"folder": "", "log": "", "wandb": ""}


@dataclass(frozen=True)
class Remote:
    """Runs that were read from W&B, not from the run store."""

    project: str  # entity/project
    urls: Mapping[str, str]  # run -> its address there


@dataclass(frozen=True)
class _Picture:
    """A figure as the page shows it."""

    name: str
    title: str
    reading: str  # how to read it
    svg: str
    why_not: str


def html(
    study: Study,
    drawn: Sequence[Drawn],
    words: Mapping[str, str],
    *,
    launch: str,
    out: Path,
    runs_folder: Path | None = None,
    remote: Remote | None = None,
) -> bytes:
    """The page, to be written into the folder ``out``, to which its links are relative.

    ``words``: heading -> plain text, such as the certificate. ``launch``: the command that fills
    the holes. ``runs_folder``: the run store, where provenance, logs and W&B links are; None for
    tables that come from elsewhere. ``remote``: where in W&B they come from.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metas = {} if runs_folder is None else _metas(study.runs["run"], runs_folder)
    text = environment.get_template("page.html").render(
        name=study.name,
        launch=launch,
        pictures=[_picture(each) for each in drawn],
        words=words,
        robustness=_robustness(study),
        facts=[*_read_from(remote), *_facts(metas)],
        runs=list(_runs(study, out, runs_folder, remote)),
        has_settings=any(curve.setting for curve in (*study.curves, *study.second)),
        outcomes=sorted(set(_states(study.runs))),
    )
    return text.encode()


def _picture(drawn: Drawn) -> _Picture:
    """Title and reading come from where they are written: the docstrings of the figure's file."""
    module = importlib.import_module(f"analysis.figures.{drawn.name}")
    reading = " ".join((module.draw.__doc__ or "").replace("``", "").split())
    title = (module.__doc__ or drawn.name).strip().split("\n")[0].rstrip(".")
    return _Picture(drawn.name, title, reading, drawn.svg, drawn.why_not)


def _robustness(study: Study) -> dict[str, list]:
    """The robustness table as people read it."""
    table = tables.display(study.curves, Usable(study.q, study.level))
    return {"columns": list(table.columns), "rows": table.to_numpy().tolist()}


def _metas(runs: pd.Series, folder: Path) -> dict[str, dict[str, Any]]:
    """meta.json of every run that has one."""
    found = {run: _json(folder / run / "meta.json") for run in runs}
    return {run: meta for run, meta in found.items() if meta}


def _json(path: Path) -> dict[str, Any]:
    """A JSON file; empty where there is none, or a torn one: the store says so elsewhere."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_from(remote: Remote | None) -> list[tuple[str, str, int]]:
    """As ``_facts``: where runs were read that do not come from the run store."""
    if remote is None:
        return []
    return [("read from", f"Weights & Biases, {remote.project}", len(remote.urls))]


def _facts(metas: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, int]]:
    """What made the numbers, its values, and the number of runs that each made."""
    for key, name in FACTS.items():
        for value, count in Counter(_fact(meta, key) for meta in metas.values()).most_common():
            yield name, value, count
    packages = sorted({package for meta in metas.values() for package in meta.get("versions", {})})
    for package in packages:
        versions = Counter(str(meta.get("versions", {}).get(package)) for meta in metas.values())
        for value, count in versions.most_common():
            yield package, value, count
    started = sorted(meta["started"] for meta in metas.values() if "started" in meta)
    if started:
        yield "started", f"{started[0]} to {started[-1]}", len(started)


def _fact(meta: Mapping[str, Any], key: str) -> str:
    value = "not recorded" if meta.get(key) is None else str(meta[key])
    if key == "commit" and meta.get("dirty"):
        return f"{value}, with uncommitted changes ({meta['dirty']})"
    return value


def _states(runs: pd.DataFrame) -> list[str]:
    """Outcomes as the analysis counts them: one without a finite loss has diverged."""
    return list(runs["outcome"].mask(is_diverged(runs), "diverged"))


def _runs(
    study: Study, out: Path, folder: Path | None, remote: Remote | None
) -> Iterator[dict[str, Any]]:
    """One row per run, its links relative to ``out``."""
    curves = (*study.second, *study.curves)
    setting = {run: curve.setting for curve in curves for run in curve.run.flat if run != ""}
    seconds = _seconds(study.records)
    for row, state in zip(study.runs.to_dict("records"), _states(study.runs), strict=True):
        run = str(row["run"])
        yield {
            "run": run,
            "method": style(row["method"]).label,
            "setting": setting.get(run, ""),
            "lr": float(row["lr"]),
            "seed": row["seed"],
            "outcome": state,
            "at_chance": state == "finished" and row["at_chance"] is True,
            "certified_by": row.get("certified_by") or "",
            "cause": row["cause"] if isinstance(row["cause"], str) else "",
            "step": _number(row.get("step")),
            "loss": _number(row["final_loss"]),
            "accuracy": _number(row.get("accuracy")),
            "seconds": seconds.get(run),
            **(NO_LINKS if folder is None else _links(folder / run, out)),
            **({} if remote is None else {"wandb": remote.urls.get(run, "")}),
        }


def _seconds(records: pd.DataFrame) -> dict[str, float]:
    """Training time of each run with records that hold it."""
    if "seconds" not in records or records.empty:
        return {}
    return records["seconds"].astype(float).groupby(records["run"]).max().dropna().to_dict()


def _number(value: object) -> float | None:
    """A finite number; None for what the table leaves open."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else None


def _links(folder: Path, out: Path) -> dict[str, str]:
    """Links to a run's folder, its log and its mirror in W&B, as far as they exist."""
    if not folder.is_dir():
        return NO_LINKS
    log = folder / "log.txt"
    urls = [
        str(published["url"])
        for published in _json(folder / "wandb.json").values()
        if isinstance(published, dict) and str(published.get("url", "")).startswith("http")
    ]
    return {
        "folder": _relative(folder, out),
        "log": _relative(log, out) if log.exists() else "",
        "wandb": urls[-1] if urls else "",
    }


def _relative(path: Path, out: Path) -> str:
    return quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix())
