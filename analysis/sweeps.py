"""A sweep of the run store, analysed as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optlab.extension import path_of, read
from optlab.store import RunStore
from optlab.sweep import Sweep

from .curves import varies_within
from .report import analyse

# what the table of runs says by itself, or what a curve runs over
IN_TABLE = frozenset(
    {"optimizer", "optimizer.lr", "seed", "train.steps"}
    | {"model", "dataset", "optimizer/norms", "schedule"}
)


def analyse_sweep(sweep: Sweep, out: Path | None = None) -> str:
    """Read the sweep's runs, write its figures and tables into ``out``, return what to print.

    ``out``: by default the folder of the sweep's name among its results. Raises ConfigError as
    ``analyse`` does.
    """
    runtime = sweep.settings.runtime
    store = RunStore(runtime.runs_folder)
    return analyse(
        store.runs_table(sweep.runs, sweep.certified).assign(setting=settings(sweep)),
        store.records_table(sweep.runs),
        name=sweep.name,
        out=runtime.results_folder / sweep.name if out is None else out,
        figures=sweep.figures,
        command=sweep.command,
        extension=_extension(sweep, store),
    )


def _extension(sweep: Sweep, store: RunStore) -> str:
    """How the grids of a sweep have grown, and what lets them grow further."""
    if not sweep.file:
        return ""
    past = read(path_of(store.root, sweep.file)).rounds
    spent = f"after {len(past)} rounds of extension" if past else "and the grids were not extended"
    return f"That is so {spent}; to go on: python -m optlab extend {sweep.file} --rounds 1"


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
