"""Tables of runs with losses chosen by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pytest

from analysis.curves import Curve, curves

# method -> learning rate -> one entry per seed: a final loss, or the outcome of a run without one
Losses = Mapping[str, Mapping[float, Sequence[float | str]]]


class RunsTable:
    """Builds the table of runs that the store would give."""

    def __call__(self, losses: Losses, *, initial: float = 2.0) -> pd.DataFrame:
        rows = [
            self._row(method, lr, seed, entry, initial)
            for method, points in losses.items()
            for lr, entries in points.items()
            for seed, entry in enumerate(entries)
        ]
        table = pd.DataFrame(rows)
        return table.assign(run=[f"{i:012x}" for i in range(len(rows))])

    @staticmethod
    def _row(method: str, lr: float, seed: int, entry: float | str, initial: float) -> dict:
        outcome = entry if isinstance(entry, str) else "finished"
        return {
            "method": method,
            "lr": lr,
            "seed": seed,
            "model": "mlp",
            "dataset": "digits",
            "norms": "",
            "schedule": "constant_linear",
            "steps": 100,
            "outcome": outcome,
            "cause": "no memory" if outcome == "failed" else "",
            "initial_loss": np.nan if outcome == "missing" else initial,
            "final_loss": np.nan if isinstance(entry, str) else entry,
            "at_chance": False,
        }

    def curve(self, points: Mapping[float, Sequence[float | str]], initial: float = 2.0) -> Curve:
        """The curve of one method."""
        (curve,) = curves(self({"adamw": points}, initial=initial))
        return curve


@pytest.fixture(scope="session")
def table() -> RunsTable:
    return RunsTable()


@pytest.fixture
def records() -> pd.DataFrame:
    """No records at all, as the store gives them."""
    return pd.DataFrame(columns=["run", "step", "val_loss"])
