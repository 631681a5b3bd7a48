"""A sweep of the run store, analysed as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from optlab.errors import ConfigError
from optlab.store import RunStore
from optlab.sweep import Sweep

from . import outcomes, reading
from .compared import usable
from .curves import varies_within
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
) -> str:
    """Read the sweep's runs, write its figures and tables into ``out``, return what to print.

    ``out``: by default the folder of the sweep's name among its results. ``compare``,
    ``final``, ``width``: as in the command. Raises ConfigError as ``analyse`` does.
    """
    runtime = sweep.settings.runtime
    folder = runtime.results_folder / sweep.name if out is None else out
    runs, records, notes = reading.read(
        RunStore(runtime.runs_folder), sweep.runs, folder / ".cache.npz"
    )
    return analyse(
        runs.assign(setting=settings(sweep)),
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


def settings(sweep: Sweep) -> Sequence[str]:
    """For each run, its values of those axes that vary within its method: 'model.width=64'."""
    methods = [run.method for run in sweep.runs]
    words = [""] * len(methods)
    for key in sorted({key for point in sweep.points for key in point} - IN_TABLE):
        values = [_word(point.get(key, "")) for point in sweep.points]
        cells = zip(words, varies_within(methods, values), values, strict=True)
        words = [f"{word} {key}={value}".strip() if vary else word for word, vary, value in cells]
    return words


def _word(value: object) -> str:
    """A value of an axis in a word; of a node, the class that it builds."""
    if isinstance(value, dict) and "_target_" in value:
        return str(value["_target_"]).rpartition(".")[2]
    return str(value)
