"""What became of each run: its final metric, read as asked, and whether it learned anything."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd

from optlab.errors import ConfigError

from .curves import is_certified
from .frames import rows

FAILED_THOUGH_FINITE = {
    "initial": "no better than at initialisation (final loss >= initial loss)",
    "chance": "no better than a constant prediction, which for a language model is the unigram "
    "level (final loss >= chance_loss)",
    "unigram": "no better than the unigram level (final loss >= unigram_loss)",
}


@dataclass(frozen=True)
class Final:
    """Which number of a run is its final metric: the mean of its last ``count`` evaluations.

    ``count`` 0 stands for the last full evaluation. Nothing is smoothed before, and an evaluation
    that is not finite is never left out: it makes the run a diverged one.
    """

    count: int = 0

    def __str__(self) -> str:
        return f"mean of the last {self.count} evaluations" if self.count else "last evaluation"


def final(text: str) -> Final:
    """The choice that ``last`` or ``mean:k`` stands for. Raises ConfigError for anything else."""
    if text == "last":
        return Final()
    count = re.fullmatch(r"mean:([1-9]\d*)", text)
    if not count:
        raise ConfigError(
            f"Expected --final last, or --final mean:k for the mean of the last k full "
            f"evaluations, such as mean:3; found '{text}'."
        )
    return Final(int(count.group(1)))


def with_final(runs: pd.DataFrame, records: pd.DataFrame, choice: Final) -> pd.DataFrame:
    """The runs with ``final_loss`` as chosen, and ``at_chance`` by it; diverged ones as they are.

    The evaluation before the first step is none of the last k. A certified run has the evaluations
    of the one that it would repeat. Raises ConfigError where a finished
    run has fewer evaluations than that.
    """
    if not choice.count:
        return runs
    last = _last_losses(records, choice.count)
    finished = runs["outcome"] == "finished"
    trained = runs["run"]
    if "certified_by" in runs:
        trained = runs["certified_by"].where(is_certified(runs), trained)
    losses = [last.get(run, []) for run in trained]
    short = [
        (run, len(found))
        for run, found, done in zip(runs["run"], losses, finished, strict=True)
        if done and len(found) < choice.count
    ]
    if short:
        raise ConfigError(
            f"--final mean:{choice.count} needs {choice.count} evaluations per run; {len(short)} "
            f"finished runs have fewer, the first is run {short[0][0]} with {short[0][1]}. Choose "
            "a smaller count, or --final last."
        )
    mean = pd.Series([np.mean(found) if found else np.nan for found in losses], index=runs.index)
    loss = runs["final_loss"].astype(float).where(~finished, mean)
    at_chance = runs["at_chance"].isin([True])
    if "chance_loss" in runs:
        at_chance = finished & ~(loss < runs["chance_loss"].astype(float).fillna(np.inf))
    return runs.assign(final_loss=loss, at_chance=at_chance)


def _last_losses(records: pd.DataFrame, count: int) -> dict[str, list[float]]:
    trained = rows(records, records["step"] > 0)
    ordered = sorted(zip(trained["run"], trained["step"], trained["val_loss"], strict=True))
    losses: dict[str, list[float]] = defaultdict(list)
    for run, _, loss in ordered:
        losses[run].append(float(loss))
    return {run: found[-count:] for run, found in losses.items()}


def failed_though_finite(runs: pd.DataFrame) -> pd.Series:
    """For each run the key of ``FAILED_THOUGH_FINITE`` that it falls under, '' for none.

    Only finished runs with a finite final loss; a rule whose level the table lacks is not applied.
    """
    loss = runs["final_loss"].astype(float)
    finite = (runs["outcome"] == "finished") & np.isfinite(loss)
    found = pd.Series("", index=runs.index)
    for key, column in (
        ("unigram", "unigram_loss"),
        ("chance", "chance_loss"),
        ("initial", "initial_loss"),
    ):
        if column in runs:
            found = found.where(~(finite & (loss >= runs[column].astype(float))), key)
    if "chance_loss" not in runs:
        found = found.where(~(finite & runs["at_chance"].isin([True]) & (found == "")), "chance")
    return found
