"""A sweep of the run store, analysed as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from optlab.config import Settings
from optlab.errors import ConfigError
from optlab.extension import path_of, without_lr
from optlab.extension import read as read_extension
from optlab.launch.standing import ALIVE, standings
from optlab.store import DONE, RunStore
from optlab.sweep import Sweep

from . import outcomes, reading
from .compared import usable
from .curves import is_done, varies_within
from .export import write
from .page import Remote
from .report import analyse
from .sources import Source, read
from .stages import Stages, columns
from .tables import plural

# what the table of runs says by itself, or what a curve runs over
IN_TABLE = frozenset(
    {"optimizer", "optimizer.lr", "seed", "train.steps"}
    | {"model", "dataset", "optimizer/norms", "schedule"}
)
CAUSED = ("failed", "lost")  # outcomes that have a cause
COLUMN_OF = {"optimizer/norms": "norms", "train.steps": "steps"}  # as that table names them


def analyse_sweep(
    sweep: Sweep,
    out: Path | None = None,
    *,
    compare: Sequence[str] = (),
    final: str = "last",
    width: str = "0.05",
    figures: Sequence[str] = (),
    lr: str = "",
    export: Path | None = None,
) -> str:
    """Read the sweep's runs, write its figures and tables into ``out``, return what to print.

    ``out``: by default the folder of the sweep's name among its results. ``compare``, ``final``,
    ``width``, ``lr``: as in the command; ``figures``: instead of those that the sweep names;
    ``export``: a CSV file to write the table of runs into, which ``analyse_csv`` reads as the same.
    Raises ConfigError as ``analyse`` does.
    """
    runtime = sweep.settings.runtime
    folder = runtime.results_folder / sweep.name if out is None else out
    store = RunStore(runtime.runs_folder)
    runs, records, notes = reading.read(store, sweep.runs, folder / ".tables.cache")
    if sweep.certified:
        runs = pd.concat([runs, store.runs_table([], sweep.certified)], ignore_index=True)
        beside, torn = _records_beside(sweep, store)
        records, notes = pd.concat([records, beside], ignore_index=True), [*notes, *torn]
    runs, unsure = _as_they_stand(runs.assign(setting=settings(sweep)), store)
    notes = [*notes, *unsure]
    of_stages = stages(sweep)
    if export is not None:
        write(export, columns(runs, of_stages) if of_stages else runs, records)
        notes = [*notes, f"The table of its runs is in {export}."]
    return analyse(
        runs,
        records,
        name=sweep.name,
        out=folder,
        figures=figures or _figures(sweep),
        command=sweep.command,
        runs_folder=runtime.runs_folder,
        compare=compare,
        final=outcomes.final(final),
        width=usable(width),
        lr=lr,
        notes=notes,
        extension=_extension(sweep, store),
        stages=of_stages,
    )


def _records_beside(sweep: Sweep, store: RunStore) -> tuple[pd.DataFrame, list[str]]:
    """Records of certified runs that were trained after all, and of sources outside the sweep."""
    planned = {run.id for run in sweep.runs}
    every = [run for each in sweep.certified for run in (each.run, each.by)]
    _, records, notes = reading.read(
        store, list({run.id: run for run in every if run.id not in planned}.values())
    )
    return records, notes


def _as_they_stand(runs: pd.DataFrame, store: RunStore) -> tuple[pd.DataFrame, list[str]]:
    """The runs without a result as ``optlab status`` has them: also queued, or lost, and why.

    And a note where SLURM must be asked and does not answer. One that its files show as failed
    stays so, unless a job has it or had it; one that ended since they were read stays as it was.
    """
    open_runs = runs.loc[~is_done(runs), "run"]
    found = standings(open_runs, store, explain=True)
    now = {
        run: found.of[run]
        for run, before in zip(open_runs, runs["outcome"][open_runs.index], strict=True)
        if found.of[run].state not in DONE
        and (before != "failed" or found.of[run].state in (*ALIVE, "lost"))
    }
    told = {run: each.cause if each.state in CAUSED else "" for run, each in now.items()}
    runs = runs.assign(
        outcome=[
            now[run].state if run in now else was
            for run, was in zip(runs["run"], runs["outcome"], strict=True)
        ],
        cause=[told.get(run, was) for run, was in zip(runs["run"], runs["cause"], strict=True)],
    )
    return runs, [f"{found.problem}."] if found.problem else []


def first_stage(sweep: Sweep) -> Sweep:
    """The sweep without the runs that its second stage alone has."""
    kept = [
        (run, point)
        for run, point in zip(sweep.runs, sweep.points, strict=True)
        if run.id in sweep.first_ids
    ]
    return replace(
        sweep, runs=tuple(run for run, _ in kept), points=tuple(point for _, point in kept)
    )


def stages(sweep: Sweep) -> Stages | None:
    """Which runs of a sweep belong to which stage; None for a sweep of one."""
    if not sweep.second:
        return None
    of_curve = {
        _key(without_lr(point)): word
        for point, word in zip(sweep.points, settings(sweep), strict=False)
    }
    axes = dict.fromkeys(key for each in sweep.second for key in each.axes)
    return Stages(
        first=sweep.first_ids,
        second={
            each.run.id: " ".join(
                [
                    of_curve.get(_key(each.curve), ""),
                    *(f"{k}={_word(v)}" for k, v in each.axes.items() if k not in IN_TABLE),
                ]
            ).strip()
            for each in sweep.second
        },
        axes=[COLUMN_OF.get(key, key) for key in axes],
    )


def _key(point: Mapping[str, object]) -> str:
    return repr(sorted(point.items(), key=lambda item: item[0]))


def _figures(sweep: Sweep) -> Sequence[str]:
    """The figures that a sweep names, and that of its second stage."""
    own = ["second_stage"] if sweep.second and "second_stage" not in sweep.figures else []
    return [*sweep.figures, *own]


def analyse_csv(
    source: Source,
    out: Path | None = None,
    *,
    compare: Sequence[str] = (),
    final: str = "last",
    width: str = "0.05",
    figures: Sequence[str] = (),
    lr: str = "",
) -> str:
    """The same of a table that others made.

    ``out``: by default results/NAME-OF-THE-FILE in the current folder, so that no table writes over
    the results of a sweep that has its name.
    """
    choice = outcomes.final(final)
    if choice.count and source.records is None:
        raise ConfigError(
            f"--final {final} needs the evaluations of each run: give them with --records FILE, or "
            "choose --final last, the metric of the table."
        )
    found = read(source)
    drawn = [
        "lr_sensitivity",
        *([] if found.records.empty else ["loss_curves"]),
        *(["second_stage"] if found.stages else []),
    ]
    return analyse(
        found.runs,
        found.records,
        name=source.path.stem,
        out=Path.cwd() / "results" / source.path.stem if out is None else out,
        figures=figures or drawn,
        compare=compare,
        final=choice,
        width=usable(width),
        lr=lr,
        notes=found.notes,
        launches=False,
        stages=found.stages,
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
    figures: Sequence[str] = (),
    lr: str = "",
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
        figures=figures or found.figures,
        command=found.command,
        compare=compare,
        final=outcomes.final(final),
        width=usable(width),
        lr=lr,
        notes=found.notes,
        remote=Remote(project, found.urls),
    )


def _extension(sweep: Sweep, store: RunStore) -> str:
    """How the grids of a sweep have grown, and what lets them grow further."""
    if not sweep.file:
        return ""
    every = read_extension(path_of(store.root, sweep.grows_as)).rounds
    past = [each for each in every if each.kind != "then"]
    spent = (
        f"after {plural(len(past), 'round')} of extension"
        if past
        else "and the grids were not extended"
    )
    return f"That is so {spent}; to go on: python -m optlab extend {sweep.words} --rounds 1"


def settings(sweep: Sweep) -> Sequence[str]:
    """For each run, its values of those axes that vary within its method: 'model.width=64'.

    In the order of the table: the sweep's runs, then the certified ones. What its second stage
    varies is left out.
    """
    methods = [run.method for run in (*sweep.runs, *(each.run for each in sweep.certified))]
    second = {each.run.id: each.curve for each in sweep.second}
    own = [
        point if run.id in sweep.first_ids else second[run.id]
        for run, point in zip(sweep.runs, sweep.points, strict=True)
    ]
    points = (*own, *sweep.certified_points)
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
