"""A sweep that stands in W&B, analysed as one of the run store."""

from __future__ import annotations

from pathlib import Path

from optlab.config import Settings
from optlab.tracking.read import read

from .report import analyse


def analyse_wandb(project: str, sweep: str, settings: Settings, out: Path | None = None) -> str:
    """Read a sweep from W&B's ``project`` (entity/project); write and return as ``analyse`` does.

    ``out``: by default the folder of the sweep's name among the results; what was downloaded is
    kept in ``wandb`` beside it. Raises ConfigError where W&B does not give the sweep.
    """
    results = settings.runtime.results_folder
    found = read(project, sweep, results / "wandb")
    text = analyse(
        found.runs,
        found.records,
        name=sweep,
        out=results / sweep if out is None else out,
        figures=found.figures,
        command=found.command,
    )
    return "\n".join([*found.notes, text])
