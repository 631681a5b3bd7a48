"""The store's tables, read fast: what has not changed since the last time comes from one file.

A run that is done is known by its id, its labels and the identity of its files (time, size, inode);
where one differs, the run is read again. A cache that is damaged, or of other columns, is as good
as none. Runs that are not done are read every time. What is no run as it was launched is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from optlab.config import Run
from optlab.errors import ConfigError
from optlab.store import DONE, RECORD_COLUMNS, RUN_COLUMNS, RunStore, write_bytes

from .tables import plural

FILES = ("result.json", "records.jsonl", "config.yaml")
VERSION = 1
DIGEST = 32  # bytes of SHA-256 before the rest
SETTLED = 2.0  # seconds; a younger file could change again without a change of its time
SHOWN = 5  # runs that a note names
RUN_ID = re.compile("[0-9a-f]{12}")
CHANGED = "its config.yaml is not the one that it was launched with"

# columns of the table of runs that a sweep knows without the run's files
OF_SWEEP = ("run", "method", "lr", "seed", "model", "dataset", "norms", "schedule", "steps")

Row = dict[str, Any]
Identity = list[list[int] | None]


@dataclass(frozen=True)
class Known:
    """What one run gave: its row, and its records by column, (k,) each."""

    identity: Identity
    row: Row
    records: Mapping[str, np.ndarray]


def read(
    store: RunStore, runs: Sequence[Run], cache: Path | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """The tables ``runs_table`` and ``records_table`` of the store, and notes on damaged files.

    A run with a line in ``records.jsonl`` that cannot be read has no records here, and is named. A
    run whose ``config.yaml`` was changed, so that nobody knows what its numbers are of, has failed.
    ``cache``: file to remember in, rewritten where something changed.
    """
    before = _load(cache) if cache else {}
    identities = [_identity(store.folder(run.id)) for run in runs]
    keys = [_key(run) for run in runs]
    fresh = [
        i
        for i, (key, identity) in enumerate(zip(keys, identities, strict=True))
        if key not in before or before[key].identity != identity
    ]
    damaged: list[str] = []
    changed: list[str] = []
    found = {key: before[key] for key in keys if key in before}
    rows = store.runs_table([runs[i] for i in fresh]).to_dict("records")
    for i, row in zip(fresh, rows, strict=True):
        if row["outcome"] in DONE and _is_changed(store, runs[i]):
            changed.append(runs[i].id)
            found[keys[i]] = Known(identities[i], _without_result(row), {})
            continue
        records = _records(store.folder(runs[i].id) / "records.jsonl")
        if records is None:
            damaged.append(runs[i].id)
        found[keys[i]] = Known(identities[i], {str(k): v for k, v in row.items()}, records or {})
    ordered = [found[key] for key in keys]
    if cache and any(_is_settled(found[keys[i]], damaged) for i in fresh):
        _save(cache, {key: found[key] for key in keys if _is_settled(found[key], damaged)})
    table = pd.DataFrame([known.row for known in ordered], columns=list(RUN_COLUMNS))
    notes = [*_notes(damaged), *_changed_notes(changed), *_foreign_notes(store)]
    return table, _table([run.id for run in runs], ordered), notes


def _key(run: Run) -> str:
    return f"{run.id} {json.dumps(dict(run.choices), sort_keys=True)}"


def _identity(folder: Path) -> Identity:
    found: Identity = []
    for name in FILES:
        try:
            stat = os.stat(folder / name)
        except (FileNotFoundError, NotADirectoryError):
            found.append(None)
        else:
            found.append([stat.st_mtime_ns, stat.st_size, stat.st_ino])
    return found


def _is_changed(store: RunStore, run: Run) -> bool:
    """Whether the run's folder holds another config than the run's, or one that is damaged."""
    try:
        text = (store.folder(run.id) / "config.yaml").read_text()
        if yaml.load(text, yaml.CSafeLoader) == run.config:  # ten times as fast as the store's way
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (yaml.YAMLError, UnicodeDecodeError):
        return True
    try:
        store.load(run.id)
    except (ConfigError, OSError):
        return True
    return False


def _without_result(row: Mapping[Any, Any]) -> Row:
    """The row of a run that failed: what the sweep says of it."""
    kept = {str(name): row[name] for name in OF_SWEEP}
    empty = {"certified_by": "", "weights_fingerprint": "", "batch_fingerprint": ""}
    return {**kept, **empty, "outcome": "failed", "cause": CHANGED, "at_chance": False}


def _is_settled(known: Known, damaged: Sequence[str]) -> bool:
    """Done, whole, and old enough that another write would show in the time."""
    times = [file[0] for file in known.identity if file is not None]
    young = not times or max(times) > time.time_ns() - SETTLED * 1e9
    return known.row["outcome"] in DONE and not young and known.row["run"] not in damaged


def _records(path: Path) -> dict[str, np.ndarray] | None:
    """The columns of a run's records; a last line torn by a kill is left out; None: damaged."""
    try:
        lines = path.read_text().split("\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except UnicodeDecodeError:
        return None
    try:
        rows = json.loads(f"[{','.join(lines)}]")
        names = list(dict.fromkeys(name for row in rows for name in row))
        # 'nan' and 'inf' are how the store writes what JSON has no number for
        return {name: _column([row.get(name) for row in rows]) for name in names}
    except (ValueError, TypeError, AttributeError):
        return None


def _column(values: list[Any]) -> np.ndarray:
    whole = all(type(value) is int for value in values)
    return np.array(values, dtype=np.int64 if whole else np.float64)


def _table(runs: Sequence[str], found: Sequence[Known]) -> pd.DataFrame:
    lengths = [len(next(iter(known.records.values()), ())) for known in found]
    names = list(dict.fromkeys(name for known in found for name in known.records))
    if not sum(lengths):
        return pd.DataFrame(columns=list(RECORD_COLUMNS))
    columns: dict[str, Any] = {"run": np.repeat(np.array(runs, dtype=object), lengths)}
    for name in names:
        columns[name] = np.concatenate(
            [
                known.records.get(name, np.full(length, np.nan))
                for known, length in zip(found, lengths, strict=True)
                if length
            ]
        )
    return pd.DataFrame(columns)


def _notes(damaged: Sequence[str]) -> list[str]:
    if not damaged:
        return []
    return [
        f"{plural(len(damaged), 'run')} with a line in records.jsonl that cannot be read (records "
        f"are left out; a result counts, a run without one has failed): {_shown(damaged)}. Delete "
        "such a folder and launch again to train the run anew."
    ]


def _changed_notes(changed: Sequence[str]) -> list[str]:
    if not changed:
        return []
    return [
        f"{plural(len(changed), 'run')} left out, since nobody knows what the numbers are of: "
        f"{CHANGED} (changed by hand, a key lacks, or damaged): {_shown(changed)}. Delete such a "
        "folder and launch again to train the run anew."
    ]


def _foreign_notes(store: RunStore) -> list[str]:
    """Folders with the files of a run under a name that no run has: copies, most likely."""
    if not store.root.is_dir():
        return []
    with os.scandir(store.root) as entries:
        names = [entry.name for entry in entries if not RUN_ID.fullmatch(entry.name)]
    foreign = sorted(name for name in names if (store.root / name / "result.json").is_file())
    if not foreign:
        return []
    return [
        f"{plural(len(foreign), 'folder')} of {store.root} left out, with a result but not the "
        f"name of a run: {_shown(foreign)}."
    ]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" ..." if len(names) > SHOWN else "")


def _load(path: Path) -> dict[str, Known]:
    """What the cache holds; nothing where it is absent, damaged or of another make."""
    try:
        content = path.read_bytes()
    except OSError:
        return {}
    digest, body = content[:DIGEST], content[DIGEST:]
    if hashlib.sha256(body).digest() != digest:  # nothing damaged reaches numpy
        return {}
    with np.load(io.BytesIO(body), allow_pickle=False) as file:
        head = json.loads(file["head"].tobytes())
        if head["make"] != _make():
            return {}
        return dict(_entries(head["runs"], file["whole"], file["real"]))


def _entries(
    runs: Sequence[Mapping[str, Any]], whole: np.ndarray, real: np.ndarray
) -> list[tuple[str, Known]]:
    found, at = [], {"whole": 0, "real": 0}
    for run in runs:
        records = {}
        for name, kind in run["columns"]:
            values = whole if kind == "whole" else real
            end = at[kind] + run["length"]
            records[name] = values[at[kind] : end]
            at[kind] = end
        found.append((run["key"], Known(run["identity"], run["row"], records)))
    return found


def _save(path: Path, runs: Mapping[str, Known]) -> None:
    """Write the cache by rename; where its folder cannot be written there is none."""
    values: dict[str, list[np.ndarray]] = {"whole": [], "real": []}
    entries = []
    for key, known in runs.items():
        columns = []
        for name, column in known.records.items():
            kind = "whole" if column.dtype == np.int64 else "real"
            values[kind].append(column)
            columns.append([name, kind])
        length = len(next(iter(known.records.values()), ()))
        entries.append(
            {
                "key": key,
                "identity": known.identity,
                "row": known.row,
                "columns": columns,
                "length": length,
            }
        )
    head = json.dumps({"make": _make(), "runs": entries}).encode()
    body = io.BytesIO()
    np.savez(
        body,
        head=np.frombuffer(head, np.uint8),
        whole=np.concatenate([np.zeros(0, np.int64), *values["whole"]]),
        real=np.concatenate([np.zeros(0), *values["real"]]),
    )
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, hashlib.sha256(body.getbuffer()).digest() + body.getvalue())


def _make() -> list[Any]:
    return [VERSION, list(RUN_COLUMNS), list(RECORD_COLUMNS)]
