"""How fast runs train and how much disk they take, measured on what the store holds."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..config import Run
from ..errors import ConfigError
from ..store import RunStore, decode, read_if_there, write_json

_SAMPLES = 5  # runs of the same parts that are measured; more would only take longer to read
_TAIL = 1 << 14  # bytes at the end of records.jsonl that hold its last line
_PROBES = "probes"  # folder of the store


@dataclass(frozen=True)
class Measure:
    """What one run took."""

    seconds_per_step: float  # of training, evaluation excluded
    kept: int | None  # bytes of its folder when it is done; None: not done yet
    checkpoint: int | None  # bytes of its checkpoint; None: it has none now
    device: str


@dataclass(frozen=True)
class Pace:
    """What the runs of one kind take: medians over the runs that were measured."""

    seconds_per_step: float
    kept: int | None  # bytes
    checkpoint: int | None  # bytes
    devices: tuple[str, ...]
    runs: int  # that were measured


def last_record(store: RunStore, run_id: str) -> dict[str, Any] | None:
    """The last whole record of a run, read from the end of its file; None where none can be read.

    Cheap and forgiving: a line that is being written, or damaged, gives way to the one before.
    """
    try:
        with (store.folder(run_id) / "records.jsonl").open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines[:-1]):
        try:
            record = decode(json.loads(line))
        except ValueError:
            continue
        if isinstance(record, dict) and _numbers(record, "step", "seconds"):
            return record
    return None


def _numbers(record: Mapping[str, Any], *keys: str) -> bool:
    values = [record.get(key) for key in keys]
    return all(isinstance(value, int | float) and math.isfinite(value) for value in values)


def measure(store: RunStore, run_id: str) -> Measure | None:
    """What a run took; None where it has not come far enough to tell."""
    record = last_record(store, run_id)
    if record is None or record["step"] < 1 or record["seconds"] <= 0:
        return None
    folder = store.folder(run_id)
    device = (read_if_there(folder / "meta.json") or {}).get("device")
    kept = sum(_size(path) for path in folder.rglob("*")) if store.is_done(run_id) else None
    checkpoint = _size(folder / "checkpoint.pt") or None
    pace = record["seconds"] / record["step"]
    return Measure(pace, kept, checkpoint, str(device or "an unknown device"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:  # gone in the meantime
        return 0


def parts(run: Run) -> str:
    """What decides how long a step takes; runs of the same parts are of one kind."""
    optimizer = {key: value for key, value in run.config["optimizer"].items() if key != "lr"}
    if isinstance(rule := optimizer.get("step_size"), dict):
        optimizer["step_size"] = {key: rule[key] for key in rule if key != "lower_bound"}
    return json.dumps([_task(run), optimizer], sort_keys=True)


def _task(run: Run) -> list[Any]:
    dataset = {k: value for k, value in run.config["dataset"].items() if k != "loss_lower_bound"}
    precision = [] if run.train.precision == "float32" else [run.train.precision]
    return [run.config["model"], dataset, run.train.batch_size, *precision]


def paces(store: RunStore, runs: Sequence[Run]) -> dict[str, Pace]:
    """The pace of each kind among ``runs`` that was ever measured, in any sweep, or probed."""
    wanted: dict[str, Run] = {}
    for run in runs:
        wanted.setdefault(parts(run), run)
    found: dict[str, list[Measure]] = {kind: [] for kind in wanted}
    _sample(store, ((parts(run), run.id) for run in runs), found)
    if any(not measures for measures in found.values()):
        _sample(store, _elsewhere(store, wanted, {run.id for run in runs}, found), found)
    for kind, measures in found.items():
        if not measures:
            measures += _probed(store, kind)
    return {kind: _pace(measures) for kind, measures in found.items() if measures}


def _sample(
    store: RunStore, candidates: Iterable[tuple[str, str]], found: dict[str, list[Measure]]
) -> None:
    for kind, run_id in candidates:
        if len(found[kind]) < _SAMPLES:
            made = measure(store, run_id)
            found[kind] += [made] if made else []


def _elsewhere(
    store: RunStore,
    wanted: Mapping[str, Run],
    known: set[str],
    found: Mapping[str, Sequence[Measure]],
) -> Iterator[tuple[str, str]]:
    """Kind and id of runs of other sweeps; whatever is slow to read, such as YAML, comes last."""
    labels = {_labels(run.choices) for kind, run in wanted.items() if not found[kind]}
    for path in sorted(store.root.glob("*/job.json")):
        run_id = path.parent.name
        choices = (read_if_there(path) or {}).get("choices")
        if run_id in known or not isinstance(choices, dict) or _labels(choices) not in labels:
            continue
        if all(len(found[kind]) >= _SAMPLES for kind, run in wanted.items()
               if _labels(run.choices) == _labels(choices)):  # fmt: skip
            continue
        if last_record(store, run_id) is None:
            continue
        try:
            kind = parts(store.load(run_id))
        except (ConfigError, OSError, KeyError):
            continue  # damaged: it measures nothing
        if kind in wanted:
            yield kind, run_id


def _labels(choices: Mapping[str, str]) -> str:
    return json.dumps({key: choices[key] for key in sorted(choices) if key != "schedule"})


def _pace(measures: Sequence[Measure]) -> Pace:
    kept = [one.kept for one in measures if one.kept is not None]
    checkpoints = [one.checkpoint for one in measures if one.checkpoint is not None]
    return Pace(
        statistics.median(one.seconds_per_step for one in measures),
        int(statistics.median(kept)) if kept else None,
        max(checkpoints, default=None),
        tuple(sorted({one.device for one in measures})),
        len(measures),
    )


def guess(run: Run, known: Mapping[str, Pace], kinds: Mapping[str, Run]) -> Pace | None:
    """The pace of other methods on the same model and data, where the run's own is not known."""
    similar = [pace for kind, pace in known.items() if _task(kinds[kind]) == _task(run)]
    if not similar:
        return None
    middle = statistics.median_high(pace.seconds_per_step for pace in similar)
    return next(pace for pace in similar if pace.seconds_per_step == middle)


def keep_probe(store: RunStore, run: Run, made: Measure) -> None:
    """Remember what a probe of the run's kind took, for later forecasts."""
    path = _probe_file(store, parts(run))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(made))


def _probed(store: RunStore, kind: str) -> list[Measure]:
    content = read_if_there(_probe_file(store, kind))
    try:
        made = Measure(**content) if content else None
    except TypeError:
        return []
    return [made] if made and _numbers(asdict(made), "seconds_per_step") else []


def _probe_file(store: RunStore, kind: str) -> Path:
    return store.root / _PROBES / f"{hashlib.sha256(kind.encode()).hexdigest()[:12]}.json"
