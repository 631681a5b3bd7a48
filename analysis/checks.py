"""What a reader of a table of runs should know before believing its curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pandas as pd

from optlab.errors import ConfigError

from .curves import Curve, is_diverged
from .frames import numbers, rows
from .outcomes import FAILED_THOUGH_FINITE, failed_though_finite
from .style import style
from .tables import plural

NATS_PER_BIT = math.log(2)
SAME = 0.02  # relative; initial losses of one problem differ by less between seeds
PROBLEM = ("model", "dataset")


def check_units(runs: pd.DataFrame) -> None:
    """Raise where losses of one problem are not in one unit.

    By the column ``unit``, where there is one; else by initial losses that differ between methods
    by the factor between bits and nats, on the same problem and seed.
    """
    if "unit" in runs and runs["unit"].nunique() > 1:
        counts = ", ".join(
            f"{unit} ({plural(n, 'run')})" for unit, n in runs["unit"].value_counts().items()
        )
        raise ConfigError(
            f"Expected one unit of the loss; the table has {counts}. Convert them, or analyse one "
            "at a time."
        )
    for (*problem, seed), losses in _initial_losses(runs, (*PROBLEM, "seed")).items():
        small, large = min(losses, key=losses.__getitem__), max(losses, key=losses.__getitem__)
        low, high = losses[small], losses[large]
        if abs(low - high * NATS_PER_BIT) < SAME * low:
            where = " ".join(str(word) for word in problem if word != "")
            raise ConfigError(
                f"The losses are not in one unit: at seed {seed}{f' of {where}' if where else ''} "
                f"the initial loss of {small} is {low:.4g} and that of {large} {high:.4g}, which "
                "is the factor between nats and bits. Convert one of them."
            )


def notes(runs: pd.DataFrame, curves: Sequence[Curve]) -> list[str]:
    """Sentences on runs that failed though finite, and on seeds and initial losses that differ."""
    if runs.empty:
        return []
    return [*_failed(runs), *_seeds(curves), *_initial(runs)]


def _failed(runs: pd.DataFrame) -> list[str]:
    """The rule stands with the number, so that nobody takes a finite loss for a success."""
    counts = failed_though_finite(rows(runs, ~is_diverged(runs))).value_counts()
    return [
        f"{counts[key]} finished with a finite loss and yet learned nothing: {rule}."
        for key, rule in FAILED_THOUGH_FINITE.items()
        if key in counts
    ]


def _seeds(curves: Sequence[Curve]) -> list[str]:
    """Methods with other seeds than most; their comparisons are paired over common seeds only."""
    have = {curve.label: tuple(sorted(set(curve.seeds.tolist()))) for curve in curves}
    if len(set(have.values())) < 2:
        return []
    usual = max(set(have.values()), key=lambda seeds: (list(have.values()).count(seeds), seeds))
    return [
        f"{label} has the seeds {_listed(seeds)}, not {_listed(usual)} as most methods."
        for label, seeds in have.items()
        if seeds != usual
    ]


def _initial(runs: pd.DataFrame) -> list[str]:
    """Methods that did not start where the others did, on one problem."""
    found = []
    for losses in _initial_losses(runs, PROBLEM).values():
        usual = float(np.median(list(losses.values())))
        found += [
            f"{style(method).label} starts from a loss of {loss:.4g}, the others from about "
            f"{usual:.4g}: are they in one unit, and the same model?"
            for method, loss in losses.items()
            if abs(loss - usual) > 0.2 * abs(usual)
        ]
    return found


def _initial_losses(runs: pd.DataFrame, by: Sequence[str]) -> dict[tuple, dict[str, float]]:
    """For each group of runs, the mean initial loss of each method that recorded one."""
    found: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    columns = [runs[name].tolist() for name in (*by, "method")]
    for *key, method, loss in zip(*columns, numbers(runs, "initial_loss"), strict=True):
        if math.isfinite(loss):
            found[tuple(key)][str(method)].append(loss)
    return {
        key: {method: float(np.mean(losses)) for method, losses in methods.items()}
        for key, methods in found.items()
    }


def _listed(seeds: Sequence[object]) -> str:
    shown = [str(seed) for seed in seeds[:8]]
    return ", ".join(shown) + (" ..." if len(seeds) > 8 else "")
