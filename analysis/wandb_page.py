"""A sweep's page in W&B, made from its curves: ``python -m analysis.wandb_page SWEEP [overrides]``.

This is the door between the two packages: ``optlab`` never imports ``analysis``, so ``optlab sync``
calls this module as a program, and what it computes goes out through ``optlab.tracking``.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence

import matplotlib as mpl

from optlab.errors import ConfigError
from optlab.launch.find import sweep_of
from optlab.store import RunStore
from optlab.sweep import Sweep
from optlab.tracking.client import explain
from optlab.tracking.page import Page, chart_name, publish_page
from optlab.tracking.publish import is_empty

from . import figures, style, tables
from .curves import Study, curves, is_certified, is_done
from .sweeps import first_stage, settings


def page(sweep: Sweep) -> Page:
    """What the page of a sweep shows, as far as its runs exist: of two stages, the first."""
    sweep = first_stage(sweep)
    store = RunStore(sweep.settings.runtime.runs_folder)
    words = settings(sweep)
    runs = store.runs_table(sweep.runs, sweep.certified).assign(setting=words)
    study = Study(sweep.name, runs, store.records_table(sweep.runs), curves(runs))
    with mpl.rc_context(style.RC):  # pyright: ignore[reportArgumentType]  # keys typed as literals
        drawn, points = figures.find("lr_sensitivity")(study)
        png = io.BytesIO()
        drawn.savefig(png, format="png")
    outcomes = runs["outcome"].mask(is_certified(runs), "certified")
    return Page(
        sweep=sweep.name,
        command=sweep.command,
        figures=sweep.figures,
        coverage={str(status): int(n) for status, n in outcomes.value_counts().items()},
        points=points,
        robustness=tables.robustness(study.curves),
        figure=png.getvalue() if is_done(runs).any() else None,
        runs=list(zip(runs["run"], words, strict=True)),
        missing=[store.row(run) for run in sweep.runs if is_empty(store, run)],
        certified=[store.certified_row(each) for each in sweep.certified],
    )


def refresh(sweep: Sweep) -> str:
    """Bring the sweep's page up to date; what to print. Raises ConfigError where W&B refuses."""
    tracking = sweep.settings.tracking
    folder = sweep.settings.runtime.results_folder / sweep.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        url, note = publish_page(page(sweep), tracking, folder)
    except ConfigError:
        raise
    except Exception as error:  # the client raises errors of many kinds
        raise ConfigError(f"The page of {sweep.name} is not published: {explain(error)}") from error
    return "\n".join(filter(None, [note, f"The sweep's page: {url}"]))


def main(arguments: Sequence[str]) -> int:
    """Publish the page of one sweep. Exit codes: 0 done, 1 error."""
    words = [word for word in arguments if word != "--report"]
    try:
        sweep, _ = sweep_of(words[0], words[1:])
        print(refresh(sweep), flush=True)
        if "--report" in arguments:
            from optlab.tracking.report import publish_report

            chart, _ = chart_name(page(sweep).points)
            report = publish_report(sweep.name, sweep.settings.tracking, chart)
            print(f"The sweep's report: {report}")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
