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
        ("momo/cifar10_resnet20", BY_SETTING, "accuracy", 53),
        ("momo/cifar10_vit", BY_SETTING, "accuracy", 30),
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


SWEEPS = {  # images, batch and epochs of the published experiments
    "momo/mnist_mlp": (60_000, 128, 10),
    "momo/synthetic_small": (200, 20, 20),
    "momo/cifar10_resnet20": (50_000, 128, 50),
    "momo/cifar10_vit": (50_000, 512, 200),
}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_run_is_whole_epochs_evaluated_after_each_and_ended_by_no_rule_of_ours(
    sweep: str,
) -> None:
    images, batch_size, epochs = SWEEPS[sweep]
    steps = images // batch_size
    for run in load(sweep).runs:
        assert (run.train.batch_size, run.train.eval_every) == (batch_size, steps)
        assert run.train.steps == epochs * steps < run.train.diverged_after
        assert run.config["dataset"].get("drop_last", True)
        assert run.config["optimizer"]["weight_decay"] == 0
        assert run.choices["schedule"] == "constant"


@pytest.mark.parametrize("sweep", SWEEPS)
def test_seeds_share_their_start(sweep: str) -> None:
    assert {run.train.init_seed for run in load(sweep).runs} == {1234567}


@pytest.mark.parametrize("sweep", SWEEPS)
def test_averages_forget_as_published(sweep: str) -> None:
    """SGD and Momo 0.9, both with weights that sum to one; Adam's kin 0.9 and 0.999."""
    for run in load(sweep).runs:
        optimizer = run.config["optimizer"]
        if run.method == "sgd_momentum":
            assert (optimizer["momentum"], optimizer["dampening"]) == (0.9, 0.9)
        elif run.method in ("momo", "momo_star"):
            assert (optimizer["momentum"], optimizer["momentum_form"]) == (0.9, "ema_first")
        elif run.method in ("momo_adam", "momo_adam_star"):
            assert (optimizer["momentum"], optimizer["momentum_form"]) == (0.9, "ema_unbiased")
            assert optimizer["norms"]["matrix"]["beta2"] == 0.999
        elif run.method != "prox_sps":
            assert optimizer["betas"] == [0.9, 0.99 if run.method == "lion" else 0.999]


@pytest.mark.parametrize("sweep", SWEEPS)
def test_the_lower_bound_is_the_published_one(sweep: str) -> None:
    """Zero, but for the experiment that estimates it from a wrong one."""
    wanted = -10.0 if sweep == "momo/synthetic_small" else 0.0
    truncated = [
        run.config["optimizer"]["step_size"] for run in load(sweep).runs if "momo" in run.method
    ]

    assert {each.get("lower_bound", each.get("floor")) for each in truncated} == {wanted}
