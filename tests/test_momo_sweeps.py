"""The Momo paper's experiments are declared as published: methods, learning rates, settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from analysis.published import read_published
from optlab.data.base import data_folder
from optlab.sweep import load

CURVES = "published_curves"
BY_SETTING = f"{CURVES}/stepback_records_final_seedmean.csv"
BY_SEED = f"{CURVES}/stepback_runs_per_seed.csv"


def published(name: str) -> Path:
    """A table of published results; skips where it is absent, fails under OPTLAB_REQUIRE_DATA."""
    path = data_folder() / name
    if not path.is_file():
        give_up = pytest.fail if os.environ.get("OPTLAB_REQUIRE_DATA") == "1" else pytest.skip
        give_up(f"no {path}: set OPTLAB_DATA")
    return path


@pytest.mark.parametrize(
    ("sweep", "table", "score", "settings"),
    [
        ("momo/mnist_mlp", BY_SETTING, "accuracy", 41),
        ("momo/synthetic_small", BY_SEED, "final_loss", 43),
    ],
)
def test_every_published_setting_is_in_the_sweep_once(
    sweep: str, table: str, score: str, settings: int
) -> None:
    wanted = read_published(published(table), sweep.removeprefix("momo/"), score)
    runs = load(sweep).runs

    assert len(wanted) == settings
    for seed in range(3):
        found = sorted((run.method, run.lr) for run in runs if run.seed == seed)
        assert found == sorted(wanted)
    assert len(runs) == 3 * settings


def test_sgd_averages_its_gradients_as_published() -> None:
    for sweep in ("momo/mnist_mlp", "momo/synthetic_small"):
        for run in load(sweep, ["optimizer=sgd_momentum"]).runs:
            optimizer = run.config["optimizer"]
            assert (optimizer["momentum"], optimizer["dampening"]) == (0.9, 0.9)
