"""Tables of runs that others made: CSV files, read into the columns that the analysis knows.

docs/analysis.md says what each column means. A row that cannot be used is named and counted, never
merged or dropped in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from optlab.errors import ConfigError, nearest

from .curves import OUTCOMES, SETTINGS, curve_settings
from .frames import numbers, rows
from .stages import COLUMNS as OF_STAGES
from .stages import Stages, of_columns
from .tables import plural

REQUIRED = ("method", "lr")  # and the metric, and an initial loss
DEFAULTS = {
    "seed": 0,
    "model": "",
    "dataset": "",
    "norms": "",
    "schedule": "",
    "steps": 0,
    "cause": "",
    "setting": "",
}
# of a run without a row: what it shares with others of its point, and what it has of its own
OF_POINT = ("method", "lr", "model", "dataset", "norms", "schedule", "steps", "setting", "unit")
NO_ROW = {
    "outcome": "missing",
    "cause": "no row in the table",
    "at_chance": False,
    "certified_by": "",
    "weights_fingerprint": "",
    "batch_fingerprint": "",
}
SHOWN = 5  # rows that a message names
TRUE, FALSE = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no", "", "nan"}
NOT_FINITE = ("nan", "inf", "-inf")
WORDS = (  # also where all are empty, or of digits alone
    *("run", "method", "model", "dataset", "norms", "schedule", "setting", "outcome", "cause"),
    *("certified_by", "weights_fingerprint", "batch_fingerprint"),
    *OF_STAGES,
)
OF_LOSS = ("initial_loss", "chance_loss", "unigram_loss", "at_chance")  # say nothing of a metric


@dataclass(frozen=True)
class Source:
    """A CSV file, and how to read it."""

    path: Path
    records: Path | None = None
    columns: Mapping[str, str] = field(default_factory=dict)  # our name -> the file's
    where: Sequence[tuple[str, str]] = ()  # keep rows whose column, as text or number, is that
    setting: Sequence[str] = ()  # columns that tell curves of one method apart
    metric: str = "final_loss"
    higher_is_better: bool = False  # then the loss is ``perfect`` - metric
    perfect: float = 1.0
    initial: float | None = None  # metric before the first step, where the file has no column
    unit: str = "nats"


@dataclass(frozen=True)
class Tables:
    """Runs, records, and what the reader should know of them."""

    runs: pd.DataFrame
    records: pd.DataFrame
    notes: tuple[str, ...] = ()
    stages: Stages | None = None  # of a sweep in two


def read(source: Source) -> Tables:
    """The tables of a CSV file. Raises ConfigError, in one sentence, for what cannot be used."""
    raw = _csv(source.path)
    raw = _of_metric(_renamed(raw, source), source)
    raw = _selected(raw, source)
    _check_columns(raw, source)
    notes: list[str] = []
    raw = _without_gaps(raw, source, notes)
    raw = _without_copies(raw, source, notes)
    runs = _with_missing(_runs(raw, source, notes), notes)
    records = _records(source, runs, notes)
    return Tables(runs, records, tuple(notes), of_columns(runs))


def _csv(path: Path) -> pd.DataFrame:
    """A CSV file with the line number of each row as its index."""
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(WORDS, str))
    except (OSError, ValueError) as error:  # ValueError: pandas' parsers, undecodable bytes
        raise ConfigError(f"{path} cannot be read as CSV: {error}.") from error
    table.columns = [str(column).strip() for column in table.columns]
    _check_separator(path, table)
    if table.empty:
        raise ConfigError(f"{path} has no rows below its head, so there is nothing to read.")
    table.index = pd.RangeIndex(2, len(table) + 2)
    return table


def _check_separator(path: Path, table: pd.DataFrame) -> None:
    """Raise where a file is one column whose name holds another separator."""
    if len(table.columns) > 1:
        return
    for separator, name in ((";", "';'"), ("\t", "a tab"), ("|", "'|'")):
        if separator in table.columns[0]:
            raise ConfigError(
                f"{path} cannot be read as CSV: its separator seems to be {name}, expected a comma "
                "(and a point in decimal numbers). Save it with commas."
            )


def _renamed(raw: pd.DataFrame, source: Source) -> pd.DataFrame:
    for ours, theirs in source.columns.items():
        if theirs not in raw:
            raise ConfigError(_no_column([theirs], raw, source))
        if ours in raw and ours != theirs:
            raw = raw.drop(columns=ours)
    return raw.rename(columns={theirs: ours for ours, theirs in source.columns.items()})


def _of_metric(raw: pd.DataFrame, source: Source) -> pd.DataFrame:
    """With the metric's own initial value, where the table has one, in place of the loss's."""
    own = f"initial_{source.metric}"
    if source.metric == "final_loss" or own not in raw:
        return raw
    kept = raw.drop(columns=[column for column in OF_LOSS if column in raw])
    return kept.rename(columns={own: "initial_loss"})


def _selected(raw: pd.DataFrame, source: Source) -> pd.DataFrame:
    for column, value in source.where:
        if column not in raw:  # perhaps as the file names it
            column = next((ours for ours, own in source.columns.items() if own == column), column)
        if column not in raw:
            raise ConfigError(_no_column([column], raw, source))
        kept = _equals(raw[column], value)
        if not kept.any():
            known = sorted(raw[column].astype(str).unique())
            raise ConfigError(
                f"{source.path} has no row with {column}={value}.{nearest(value, known)} It has: "
                f"{', '.join(known[:20])}{' ...' if len(known) > 20 else ''}."
            )
        raw = rows(raw, kept)
    return raw


def _equals(values: pd.Series, wanted: str) -> pd.Series:
    same = values.astype(str).str.strip() == wanted
    try:
        number = float(wanted)
    except ValueError:
        return same | (values.isna() & (wanted == ""))
    return same | (pd.to_numeric(values, errors="coerce") == number)


def _check_columns(raw: pd.DataFrame, source: Source) -> None:
    absent = [column for column in (*REQUIRED, source.metric, *source.setting) if column not in raw]
    if absent:
        raise ConfigError(_no_column(absent, raw, source))
    if "initial_loss" not in raw and source.initial is None:
        raise ConfigError(
            f"{source.path} has no column initial_loss, with which diverged runs count. Add it, or "
            "give the value before the first step for all rows: --initial VALUE."
        )


def _no_column(absent: Sequence[str], raw: pd.DataFrame, source: Source) -> str:
    """All columns that are absent, and those of the file, as it names them."""
    ours = [str(name) for name in raw.columns]
    known = [
        f"{source.columns[name]} (read as {name})" if name in source.columns else name
        for name in ours
    ]
    columns = "column" if len(absent) == 1 else "columns"
    options = " ".join(f"--columns {name}=NAME" for name in absent)
    return (
        f"{source.path} has no {columns} {', '.join(map(repr, absent))}."
        f"{''.join(nearest(name, ours) for name in absent)} It has: {', '.join(known)}. "
        f"To read {'another one as it' if len(absent) == 1 else 'others as them'}: {options}."
    )


def _without_gaps(raw: pd.DataFrame, source: Source, notes: list[str]) -> pd.DataFrame:
    """Without the rows that lack a method, learning rate or seed, which are named."""
    for column in ("lr", "seed"):
        if column in raw:
            values = numbers(raw, column)
            _refuse_words(raw, column, values, source)
            raw = raw.assign(**{column: values})
    needed = [column for column in (*REQUIRED, "seed") if column in raw]
    bad = pd.Series(raw[needed].isna().to_numpy().any(axis=1), index=raw.index)
    if bad.any():
        notes.append(
            f"Rows without {' or '.join(needed)} are left out ({int(bad.sum())} of {len(raw)}): "
            f"{_lines(rows(raw, bad))}."
        )
    kept = rows(raw, ~bad)
    if kept.empty:
        raise ConfigError(f"{source.path} has no row with {', '.join(needed)}: none can be used.")
    if "seed" in kept:
        fractions = rows(kept, kept["seed"] % 1 != 0)
        if len(fractions):
            raise ConfigError(
                f"{source.path}, line {fractions.index[0]}: expected a whole number as seed, found "
                f"{fractions['seed'].iloc[0]}."
            )
        kept = kept.assign(seed=kept["seed"].astype(int))
    return kept


def _without_copies(raw: pd.DataFrame, source: Source, notes: list[str]) -> pd.DataFrame:
    """Rows that are equal in every column stand once; two results of one point are refused."""
    copies = raw.duplicated(keep="first")
    if copies.any():
        notes.append(
            f"Copies of an earlier row count once ({plural(int(copies.sum()), 'row')}): "
            f"{_lines(rows(raw, copies))}."
        )
    raw = rows(raw, ~copies)
    names = ("method", "lr", "seed", *SETTINGS, "setting", "second_setting")
    point = [column for column in names if column in raw]
    point = list(dict.fromkeys([*point, *source.setting]))
    twice = rows(raw, raw.duplicated(point, keep=False))
    if len(twice):
        words = twice[point].fillna("").astype(str).agg("/".join, axis=1)
        first = rows(twice, words == words.iloc[0])
        results = {source.metric, "run", "outcome", "diverged"}
        differ = [
            str(column)
            for column in first.columns
            if column not in results and first[column].astype(str).nunique() > 1
        ]
        raise ConfigError(
            f"{source.path}: {len(twice)} rows share their {', '.join(point)} with another, such "
            f"as lines {' and '.join(map(str, first.index[:2]))} ({first['method'].iloc[0]}, "
            f"lr={first['lr'].iloc[0]:g}). They differ in: {', '.join(differ) or 'the result'}. "
            "Keep some with --where COLUMN=VALUE, tell curves apart with --setting COLUMN, or say "
            "which column is the seed: --columns seed=NAME."
        )
    return raw


def _runs(raw: pd.DataFrame, source: Source, notes: list[str]) -> pd.DataFrame:
    given = {column: raw[column] for column in raw.columns}
    for column, value in DEFAULTS.items():
        given.setdefault(column, pd.Series(value, index=raw.index))
        if isinstance(value, str):
            given[column] = given[column].fillna("").astype(str)
    if "seed" not in raw:
        notes.append("The table has no column seed, so its numbers come without uncertainty.")
    for column in source.setting:
        words = f"{column}=" + raw[column].astype(str)
        given["setting"] = (given["setting"] + " " + words).str.strip()
    runs = pd.DataFrame(given)
    runs["run"] = raw["run"].astype(str) if "run" in raw else [f"line {line}" for line in raw.index]
    runs["method"] = runs["method"].astype(str)
    runs["final_loss"] = _losses(raw, source.metric, source)
    runs["initial_loss"] = (
        _losses(raw, "initial_loss", source)
        if "initial_loss" in raw
        else _as_loss(np.full(len(raw), source.initial), source)
    )
    runs["outcome"] = _outcomes(raw, runs["final_loss"], source)
    of_loss = source.metric == "final_loss" and "unit" in raw
    runs["unit"] = raw["unit"] if of_loss else _unit(source)
    chance = [column for column in ("chance_loss", "unigram_loss") if column in raw]
    for column in chance:
        runs[column] = _losses(raw, column, source)
    if "at_chance" in raw:
        runs["at_chance"] = _flags(raw, "at_chance", source)
    else:
        at = [runs["final_loss"] >= runs[column] for column in chance]
        finished = runs["outcome"] == "finished"
        runs["at_chance"] = finished & np.any(at, axis=0) if at else False
    return runs.reset_index(drop=True)


def _with_missing(runs: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """With a missing run for each seed that a curve has elsewhere, but not at a learning rate."""
    found = []
    for _, block in runs.groupby([runs["method"], curve_settings(runs)], sort=False):
        there, seeds = set(zip(block["lr"], block["seed"], strict=True)), set(block["seed"])
        for row in block.drop_duplicates("lr").to_dict("records"):
            like = {column: row[column] for column in OF_POINT}
            lr, words = row["lr"], " ".join([row["method"], row["setting"]]).strip()
            found += [
                {**like, "seed": seed, "run": f"{words} lr={lr:.4g} seed={seed}", **NO_ROW}
                for seed in sorted(seeds)
                if (lr, seed) not in there
            ]
    if not found:
        return runs
    verb = "counts" if len(found) == 1 else "count"
    notes.append(
        f"{plural(len(found), 'run')} without a row, of seeds that the method has at other "
        f"learning rates, {verb} as missing."
    )
    lacking = [{name: value for name, value in row.items() if name in runs} for row in found]
    return pd.concat([runs, pd.DataFrame(lacking)], ignore_index=True)


def _unit(source: Source) -> str:
    if not source.higher_is_better:
        return source.unit
    return f"{source.perfect:g} - {source.metric}"


def _losses(raw: pd.DataFrame, column: str, source: Source) -> pd.Series:
    values = numbers(raw, column)
    _refuse_words(raw, column, values, source)
    return pd.Series(_as_loss(np.asarray(values), source), index=raw.index)


def _refuse_words(raw: pd.DataFrame, column: str, values: pd.Series, source: Source) -> None:
    """Raise for a cell that is no number; an empty one, 'nan' and 'inf' are."""
    words = raw[column].astype(str).str.strip().str.lower()
    strange = rows(raw, values.isna() & raw[column].notna() & ~words.isin(NOT_FINITE))
    if len(strange):
        raise ConfigError(
            f"{source.path}, line {strange.index[0]}: expected a number as {column}, found "
            f"'{strange[column].iloc[0]}'."
        )


def _as_loss(metric: np.ndarray, source: Source) -> np.ndarray:
    """Lower is better; of a metric where higher is, what it lacks to perfection."""
    if not source.higher_is_better:
        return metric
    above = metric[np.isfinite(metric) & (metric > source.perfect)]
    if len(above):
        raise ConfigError(
            f"{source.path}: {source.metric} cannot be better than {source.perfect:g}, found "
            f"{above.max():g}. Are some in percent? The perfect value is --perfect VALUE."
        )
    return source.perfect - metric


def _outcomes(raw: pd.DataFrame, loss: pd.Series, source: Source) -> pd.Series:
    """As the file says: a column ``outcome``, or ``diverged``; else finished where finite."""
    if "outcome" in raw:
        strange = rows(raw, ~raw["outcome"].isin(OUTCOMES))
        if len(strange):
            raise ConfigError(
                f"{source.path}, line {strange.index[0]}: expected an outcome of "
                f"{', '.join(OUTCOMES)}, found '{strange['outcome'].iloc[0]}'."
            )
        return raw["outcome"].astype(str)
    diverged = ~np.isfinite(loss)
    if "diverged" in raw:
        diverged |= _flags(raw, "diverged", source)
    return pd.Series(np.where(diverged, "diverged", "finished"), index=raw.index)


def _flags(raw: pd.DataFrame, column: str, source: Source) -> pd.Series:
    words = raw[column].astype(str).str.strip().str.lower()
    strange = rows(raw, ~words.isin(TRUE | FALSE))
    if len(strange):
        raise ConfigError(
            f"{source.path}, line {strange.index[0]}: expected 0 or 1 as {column}, found "
            f"'{strange[column].iloc[0]}'."
        )
    return words.isin(TRUE)


def _records(source: Source, runs: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    if source.records is None:
        return pd.DataFrame(columns=["run", "step", "val_loss"])
    table = _csv(source.records)
    absent = [column for column in ("run", "step", "val_loss") if column not in table]
    if absent:
        raise ConfigError(
            f"{source.records} has no {' and no '.join(map(repr, absent))} among its columns. It "
            f"has: {', '.join(map(str, table.columns))}. Name them so."
        )
    table["run"] = table["run"].astype(str)
    table["val_loss"] = _as_loss(np.asarray(numbers(table, "val_loss")), source)
    known = table["run"].isin(set(runs["run"]))
    if not known.any():
        raise ConfigError(
            f"{source.records} has no record of a run of {source.path}: expected values of its "
            f"column run, such as '{runs['run'].iloc[0]}', found '{table['run'].iloc[0]}'."
        )
    if not known.all():
        notes.append(
            f"Records of no run of the table are left out ({int((~known).sum())}), the first of '"
            f"{rows(table, ~known)['run'].tolist()[0]}'."
        )
    copies = table.duplicated(["run", "step"])
    if copies.any():
        first = rows(table, copies).iloc[0]
        raise ConfigError(
            f"{source.records}, line {table.index[copies][0]}: run {first['run']} has two records "
            f"of step {first['step']:g}."
        )
    return rows(table, known).reset_index(drop=True)


def _lines(table: pd.DataFrame) -> str:
    shown = ", ".join(str(line) for line in table.index[:SHOWN])
    return f"line{'s' if len(table) > 1 else ''} {shown}" + (" ..." if len(table) > SHOWN else "")


def pairs(words: Sequence[str], option: str) -> list[tuple[str, str]]:
    """NAME=VALUE words of an option. Raises ConfigError for others."""
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ConfigError(f"Expected {option} NAME=VALUE, found '{word}'.")
        found.append((name.strip(), value.strip()))
    return found
