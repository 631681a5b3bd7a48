"""A sweep of the run store, analysed as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from optlab.config import Settings
from optlab.errors import ConfigError
from optlab.extension import path_of
from optlab.extension import read as read_extension
from optlab.store import RunStore
from optlab.sweep import Sweep

from . import outcomes, reading
from .compared import usable
from .curves import varies_within
from .export import write
from .report import analyse
from .sources import Source, read

# what the table of runs says by itself, or what a curve runs over
IN_TABLE = frozenset(
    {"optimizer", "optimizer.lr", "seed", "train.steps"}
    | {"model", "dataset", "optimizer/norms", "schedule"}
)


def analyse_sweep(
    sweep: Sweep,
    out: Path | None = None,
    *,
    compare: Sequence[str] = (),
    final: str = "last",
    width: str = "0.05",
    export: Path | None = None,
) -> str:
    """Read the sweep's runs, write its figures and tables into ``out``, return what to print.

    ``out``: by default the folder of the sweep's name among its results. ``compare``,
    ``final``, ``width``: as in the command. ``export``: a CSV file to write the table of runs
    into, which ``analyse_csv`` reads as the same. Raises ConfigError as ``analyse`` does.
    """
    runtime = sweep.settings.runtime
    folder = runtime.results_folder / sweep.name if out is None else out
    store = RunStore(runtime.runs_folder)
    runs, records, notes = reading.read(store, sweep.runs, folder / ".tables.cache")
    if sweep.certified:
        runs = pd.concat([runs, store.runs_table([], sweep.certified)], ignore_index=True)
    runs = runs.assign(setting=settings(sweep))
    if export is not None:
        write(export, runs, records)
        notes = [*notes, f"The table of its runs is in {export}."]
    return analyse(
        runs,
        records,
        name=sweep.name,
        out=folder,
        figures=sweep.figures,
        command=sweep.command,
        runs_folder=runtime.runs_folder,
        compare=compare,
        final=outcomes.final(final),
        width=usable(width),
        notes=notes,
        extension=_extension(sweep, store),
    )


def analyse_csv(
    source: Source,
    out: Path | None = None,
    *,
    compare: Sequence[str] = (),
    final: str = "last",
    width: str = "0.05",
) -> str:
    """The same of a table that others made; ``out``: by default results/NAME-OF-THE-FILE."""
    choice = outcomes.final(final)
    if choice.count and source.records is None:
        raise ConfigError(
            f"--final {final} needs the evaluations of each run: give them with --records FILE, or "
            "choose --final last, the metric of the table."
        )
    found = read(source)
    drawn = ["lr_sensitivity", *([] if found.records.empty else ["loss_curves"])]
    return analyse(
        found.runs,
        found.records,
        name=source.path.stem,
        out=Path("results") / source.path.stem if out is None else out,
        figures=drawn,
        compare=compare,
        final=choice,
        width=usable(width),
        notes=found.notes,
        launches=False,
    )


def analyse_wandb(
    project: str,
    sweep: str,
    settings: Settings,
    out: Path | None = None,
    *,
    compare: Sequence[str] = (),
    final: str = "last",
    width: str = "0.05",
) -> str:
    """The same of a sweep that stands in W&B's ``project`` (entity/project).

    What was downloaded is kept in ``wandb`` beside the results. Raises ConfigError where W&B does
    not give the sweep.
    """
    from optlab.tracking.read import read as read_wandb  # imports wandb

    results = settings.runtime.results_folder
    found = read_wandb(project, sweep, results / "wandb")
    return analyse(
        found.runs,
        found.records,
        name=sweep,
        out=results / sweep if out is None else out,
        figures=found.figures,
        command=found.command,
        compare=compare,
        final=outcomes.final(final),
        width=usable(width),
        notes=found.notes,
    )


def _extension(sweep: Sweep, store: RunStore) -> str:
    """How the grids of a sweep have grown, and what lets them grow further."""
    if not sweep.file:
        return ""
    past = read_extension(path_of(store.root, sweep.grows_as)).rounds
    spent = f"after {len(past)} rounds of extension" if past else "and the grids were not extended"
    return f"That is so {spent}; to go on: python -m optlab extend {sweep.words} --rounds 1"


def settings(sweep: Sweep) -> Sequence[str]:
    """For each run, its values of those axes that vary within its method: 'model.width=64'.

    In the order of the table: the sweep's runs, then the certified ones.
    """
    methods = [run.method for run in (*sweep.runs, *(each.run for each in sweep.certified))]
    points = (*sweep.points, *sweep.certified_points)
    words = [""] * len(methods)
    for key in sorted({key for point in points for key in point} - IN_TABLE):
        values = [_word(point.get(key, "")) for point in points]
        cells = zip(words, varies_within(methods, values), values, strict=True)
        words = [f"{word} {key}={value}".strip() if vary else word for word, vary, value in cells]
    return words


def _word(value: object) -> str:
    """A value of an axis in a word; of a node, the class that it builds."""
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return str(value)
