"""Sweeps read back from W&B, as the tables that the run store gives."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from ..errors import ConfigError
from ..store import DONE, RECORD_COLUMNS, Result, records_frame, runs_frame, write_text
from . import client
from .page import page_id
from .publish import attempt
from .rows import IN_CONFIG, LAST_STEP

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
TRIES, WAIT = 3, 2.0  # of a request, and of a history that came incomplete; seconds in between
THREADS = 4  # histories asked for at once
WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
WHOLE = ("step", "samples")
# What a run that has not ended has in the table of runs, beside its labels and its step.
UNFINISHED = ("initial_loss", "cause", "at_chance", "weights_fingerprint", "batch_fingerprint")


@dataclass(frozen=True, eq=False)
class Download:
    """A sweep as W&B has it."""

    runs: pd.DataFrame  # as RunStore.runs_table, with the column ``setting``
    records: pd.DataFrame  # as RunStore.records_table
    command: str | None  # that launches it; None where the sweep has no page in W&B
    figures: tuple[str, ...]
    notes: tuple[str, ...]  # what W&B does not have
    urls: Mapping[str, str]  # run -> its address in W&B, of those that stand there


def read(project: str, sweep: str, cache: Path) -> Download:
    """The runs that W&B's ``project`` (entity/project) has of a sweep.

    Histories are kept below ``cache`` and asked for again only where a run has changed.
    Raises ConfigError where there is no such project or sweep, or W&B does not answer.
    """
    if project.count("/") != 1 or not all(project.split("/")):
        raise ConfigError(f"--from-wandb needs ENTITY/PROJECT, such as team/optlab; not {project}.")
    client.check_login()
    page = _page(project, sweep)
    found = _runs(project, sweep)
    order, notes = _order(page, found, sweep)
    rows, records = [], []
    listed = {row["run"]: row for key in ("missing", "certified") for row in page.get(key, [])}
    certified = {row["run"] for row in page.get("certified", [])}
    waiting = [found[each] for each, _ in order if each in found and each not in certified]
    with ThreadPoolExecutor(THREADS) as pool:
        answers = list(pool.map(lambda run: _history(run, cache), waiting))
    histories = {run.id: answer for run, answer in zip(waiting, answers, strict=True)}
    settings = []
    for run_id, setting in order:
        if run_id in found and run_id not in certified:
            run = found[run_id]
            own, lacking = histories[run.id]
            notes += lacking
            rows.append(_row(run.config, run.summary_metrics, run.state))
            records += [{"run": run_id, **record} for record in own]
        elif run_id in listed:
            rows.append(_listed(listed[run_id]))
        else:
            notes.append(f"W&B has no run {run_id} of the sweep: publish it with optlab sync.")
            continue
        settings.append(setting)
    return Download(
        runs_frame(rows).assign(setting=settings),
        records_frame(records),
        page.get("command"),
        tuple(page.get("figures", ())),
        tuple(notes),
        {run.config["run"]: run.url for run in waiting},
    )


def _page(project: str, sweep: str) -> Mapping[str, Any]:
    """The config of the sweep's page; {} where it has none."""
    query = {"name": page_id(sweep)}
    pages = _patient(
        lambda: list(client.api().runs(project, filters=query, lazy=False)),
        f"the project {project}",
    )
    return pages[0].config if pages else {}


def _runs(project: str, sweep: str) -> dict[str, Any]:
    """The newest publication of each run of the sweep, by the run's id."""
    query = {"$or": [{"group": sweep}, {"tags": {"$in": [sweep]}}]}
    listed = _patient(
        lambda: list(client.api().runs(project, filters=query, per_page=100, lazy=False)),
        f"the runs of {sweep}",
    )
    trained = [run for run in listed if run.job_type == "train" and "run" in run.config]
    if not trained:
        raise ConfigError(
            f"W&B's project {project} has no runs of the sweep '{sweep}'. The group is the name "
            "under which the sweep was launched; python -m optlab sync publishes one."
        )
    return {run.config["run"]: run for run in sorted(trained, key=lambda run: attempt(run.id))}


def _order(
    page: Mapping[str, Any], found: Mapping[str, Any], sweep: str
) -> tuple[list[tuple[str, str]], list[str]]:
    """Id and setting of every run of the sweep, and what is to be said about them."""
    if page:
        return [(run_id, setting) for run_id, setting in page["runs"]], []
    ordered = sorted(found.values(), key=lambda run: (run.config["seed"], run.id))
    return [(run.config["run"], "") for run in ordered], [
        f"The sweep {sweep} has no page in W&B, so runs that were never started are unknown: "
        "python -m optlab sync makes one."
    ]


def _row(config: Mapping[str, Any], summary: Mapping[str, Any], state: str) -> dict[str, Any]:
    """What ``RunStore.row`` says of the run; of one that died while it streamed, W&B's own word."""
    row = {"certified_by": "", **{key: config[key] for key in IN_CONFIG}}
    row["lr"] = float(row["lr"])
    row["outcome"] = summary.get("outcome", "running")
    if row["outcome"] == "running" and state in ("crashed", "failed", "killed"):
        row["outcome"] = "preempted"
    hints = get_type_hints(Result)
    if row["outcome"] in DONE:
        named = {name: LAST_STEP if name == "step" else name for name in hints}
        return {
            **row,
            **{name: _typed(summary.get(key), hints[name]) for name, key in named.items()},
        }
    row.update({"cause": "", "at_chance": False, "weights_fingerprint": ""})
    row["batch_fingerprint"] = ""
    for name in UNFINISHED:
        if name in summary:
            row[name] = _typed(summary[name], hints[name])
    if LAST_STEP in summary:
        row["step"] = int(summary[LAST_STEP])
    return row


def _listed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the page's own lists as ``RunStore`` gave it."""
    hints = get_type_hints(Result)
    names = hints if row["outcome"] in DONE else [name for name in hints if name in row]
    typed = {name: _typed(row.get(name), hints[name]) for name in names}
    return {**row, "lr": float(row["lr"]), **typed}


def _typed(value: Any, hint: Any) -> Any:
    """A value of the summary in the type of its field; W&B has no None and one kind of number."""
    if value is None:
        return None
    kinds = get_args(hint) or (hint,)
    number = next((kind for kind in (float, bool, int) if kind in kinds), None)
    return number(_number(value)) if number else value


def _number(value: Any) -> Any:
    return WORDS.get(value, value) if isinstance(value, str) else value


def _history(run: Any, cache: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The run's records, and what is lacking of them."""
    stamp = f"{run.heartbeatAt} {run.historyLineCount}"
    path = cache / run.entity / run.project / f"{run.id}.json"
    kept = _kept(path, stamp)
    if kept is not None:
        return [_record(row) for row in kept], []
    wanted = int(run.summary_metrics.get("records", 0))
    raw: list[dict[str, Any]] = []
    for trial in range(TRIES):
        if trial:
            time.sleep(WAIT)
        raw = _whole(_patient(lambda: list(run.scan_history(use_cache=False)), f"run {run.id}"))
        if len(raw) >= wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps({"stamp": stamp, "records": raw}))
            return [_record(row) for row in raw], []
    note = f"W&B gave {len(raw)} of the {wanted} records of run {run.config['run']} ({run.name})."
    return [_record(row) for row in raw], [note]


def _whole(scanned: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that are records, each once, in order: scans may repeat rows."""
    of_step = {row["_step"]: row for row in scanned}
    return [row for _, row in sorted(of_step.items()) if "val_loss" in row]


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the history as the store's record: no keys of W&B's, none that optlab derives."""
    own = {
        key: _number(value)
        for key, value in row.items()
        if not key.startswith("_") and "/" not in key and key != "samples_per_second"
    }
    first = [key for key in RECORD_COLUMNS if key in own]
    ordered = [*first, *sorted(set(own) - set(first))]
    return {key: int(own[key]) if key in WHOLE else float(own[key]) for key in ordered}


def _kept(path: Path, stamp: str) -> list[dict[str, Any]] | None:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content["records"] if content.get("stamp") == stamp else None


def _patient(ask: Callable[[], T], what: str) -> T:
    """The answer, at the third try if need be."""
    for trial in range(TRIES):
        try:
            return ask()
        except Exception as error:  # the client raises errors of many kinds
            if "could not find project" in str(error).lower():
                raise ConfigError(f"W&B has no such project: {what}.") from error
            if trial == TRIES - 1:
                raise ConfigError(
                    f"W&B does not give {what}: {client.explain(error)} What has come is kept; "
                    "the same command goes on from there."
                ) from error
            time.sleep(WAIT)
    raise AssertionError
