"""Drawn linear regression: its answer, its seeds, and the numbers that others published of it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis.curves import curves
from optlab.config import compose_run
from optlab.data.synthetic import LinearRegression, mean_squared_error, solution
from optlab.errors import ConfigError
from optlab.models.linear import Linear
from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import RunStore

PUBLISHED = {0: 1.7607299, 1: 0.6564956, 2: 0.6791959}  # seed -> validation loss, Adam, lr 1e-4


def problem(**changes: int) -> LinearRegression:
    given = {"input_size": 10, "output_size": 1, "rows": 200, "solution_seed": 12345678}
    seeds = {"train_seed": 1234567, "val_seed": 456789}
    return LinearRegression(**{**given, **seeds, **changes}, loss_lower_bound=0.0)


def test_the_solution_has_no_loss_on_either_part(tmp_path: Path) -> None:
    data = problem().load(tmp_path, seed=0, batch_size=20)
    w = torch.from_numpy(solution(10, 12345678)).float()[:, None]

    for inputs, targets in [data.train(3), *data.val]:
        assert data.loss(inputs @ w, targets) < 1e-12


def test_columns_are_sparse_and_of_equal_length(tmp_path: Path) -> None:
    data = problem().load(tmp_path, seed=0, batch_size=200)
    inputs, _ = data.train(0)

    torch.testing.assert_close(inputs.norm(dim=0), torch.full((10,), 10.0))
    assert 0.7 < (inputs != 0).double().mean() < 0.9  # 30 ln(200) / 200 = 0.79


def test_the_runs_seed_orders_the_batches_and_draws_the_validation_rows(tmp_path: Path) -> None:
    one, other = (problem().load(tmp_path, seed=seed, batch_size=200) for seed in (0, 1))
    rows_of = [sorted(data.train(0)[1].tolist()) for data in (one, other)]

    assert rows_of[0] == rows_of[1]
    assert not torch.equal(one.train(0)[1], other.train(0)[1])
    assert not torch.equal(one.val[0][1], other.val[0][1])
    assert len(one.val[0][1]) == 200


@pytest.mark.parametrize("seed", PUBLISHED)
def test_a_run_ends_where_the_published_one_does(seed: int, tmp_path: Path) -> None:
    """20 epochs of Adam at lr 1e-4 from the published initial weights; only the order differs."""
    data = problem().load(tmp_path, seed=seed, batch_size=20)
    torch.manual_seed(1234567)
    model = Linear(10, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for step in range(200):
        inputs, targets = data.train(step)
        optimizer.zero_grad()
        data.loss(model(inputs), targets).backward()
        optimizer.step()
    inputs, targets = data.val[0]

    assert data.loss(model(inputs), targets).item() == pytest.approx(PUBLISHED[seed], rel=2e-3)


def test_the_loss_is_the_mean_square_over_the_batch() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [6.0]]), torch.tensor([0.0, 2.0, 2.0])

    assert mean_squared_error(outputs, targets) == pytest.approx(17 / 3)


@pytest.mark.parametrize("wrong", [{"output_size": 2}, {"rows": 1}, {"input_size": 0}])
def test_a_problem_that_cannot_be_is_refused(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"dataset.{next(iter(wrong))}"):
        problem(**wrong).load(tmp_path, seed=0, batch_size=1)


def test_a_run_says_the_unit_of_its_losses(store: RunStore) -> None:
    words = ["model=linear", "dataset=synthetic_small", "optimizer=adam", "train.steps=1"]
    run, settings = compose_run([*words, "tracking.mode=off"])
    store.freeze(run)
    run_one(run.id, store, settings, stop=StopFlag(), report=lambda record: None)
    other, _ = compose_run([*words, "seed=1"])

    table = store.runs_table([run, other])
    assert table["unit"][0] == "MSE" and pd.isna(table["unit"][1])
    assert [curve.unit for curve in curves(table)] == ["MSE"]
