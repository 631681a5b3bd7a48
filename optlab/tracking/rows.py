"""What W&B shows of a run, from the run's own files alone; pure.

Row number k of the history has W&B's ``_step`` k. W&B's history can only grow, so what is missing
there is always an end of these rows, whoever sent the beginning.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..config import Run
from ..store import Record

Row = dict[str, Any]

# Of a row of the runs' table, what the config says already; and the name of the step in the
# summary, where W&B keeps the step of the last row of the history under its own name.
IN_CONFIG = ("run", "method", "lr", "seed", "model", "dataset", "norms", "schedule", "steps")
LAST_STEP = "last_step"


def flat(record: Record) -> Row:
    """A record as the store keeps it."""
    row = asdict(record)
    row.update(row.pop("extra"))
    return row


def history(
    records: Sequence[Mapping[str, Any]], diagnostics: Sequence[Mapping[str, Any]]
) -> list[Row]:
    """A row for every record, and for every step with diagnostics that has no record."""
    of_step = {row["step"]: row for row in diagnostics}
    rows, before = [], None
    for record in records:
        rows.append(row(record, before, of_step.pop(record["step"], {})))
        before = record
    rows += [dict(alone) for alone in of_step.values()]
    return sorted(rows, key=lambda each: each["step"])  # stable


def row(
    record: Mapping[str, Any], before: Mapping[str, Any] | None, diagnostics: Mapping[str, Any]
) -> Row:
    """A record with the throughput since the record before, and the diagnostics of its step."""
    return {**record, "samples_per_second": _throughput(record, before), **diagnostics}


def _throughput(record: Mapping[str, Any], before: Mapping[str, Any] | None) -> float:
    seconds = record["seconds"] - before["seconds"] if before else 0.0
    return (record["samples"] - before["samples"]) / seconds if before and seconds > 0 else math.nan


def config(run: Run) -> dict[str, Any]:
    """The keys that users filter by, and below ``resolved`` all that can change the numbers."""
    return {
        "run": run.id,
        "method": run.method,
        "lr": run.lr,
        "seed": run.seed,
        "model": run.choices["model"],
        "dataset": run.choices["dataset"],
        "norms": run.choices.get("optimizer/norms", ""),
        "schedule": run.choices["schedule"],
        "steps": run.train.steps,
        "resolved": dict(run.config),
    }


def summary(of_run: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Outcome and final numbers (``of_run``: from ``RunStore.row``), best loss, time.

    What is None is left out: W&B has no such value.
    """
    shown = {key: value for key, value in of_run.items() if key not in IN_CONFIG}
    if "step" in shown:
        shown[LAST_STEP] = shown.pop("step")
    finite = [record for record in records if math.isfinite(record["val_loss"])]
    if finite:
        best = min(finite, key=lambda record: record["val_loss"])
        shown.update({"best_loss": best["val_loss"], "best_step": best["step"]})
    if records:
        shown.update({"seconds": records[-1]["seconds"], "records": len(records)})
    return {key: value for key, value in shown.items() if value is not None}


def digest(content: Any) -> str:
    """SHA-256 of what is to be published, for telling whether it has been."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
