"""Step-size rules as pure functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optlab.errors import ConfigError
from optlab.optim.stepsize import Clip, Constant, LinearModel, Momo, MomoStar, StepSize


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def model(value: float, dual_norm: float, bound: float | None = None) -> LinearModel:
    return LinearModel(scalar(value), scalar(dual_norm), None if bound is None else scalar(bound))


@pytest.mark.parametrize("rule", [Constant(), Momo(0.0), Momo(50.0), MomoStar(-1.0), Clip(2.0)])
@pytest.mark.parametrize("value", [-3.0, 0.0, 1e-300, 2.0, 1e300])
@pytest.mark.parametrize("dual_norm", [0.0, 1e-200, 0.5, 3.0, 1e150])
@pytest.mark.parametrize("power", [1, 2])
def test_steps_are_between_zero_and_the_learning_rate(
    rule: StepSize, value: float, dual_norm: float, power: int
) -> None:
    if isinstance(rule, Clip) and power == 1:
        pytest.skip("Clip is for regularized descent")
    for bound in (None, -0.5, 4.0):
        tau = float(rule(0.1, model(value, dual_norm, bound), power).tau)

        assert 0 <= tau <= 0.1


@pytest.mark.parametrize("power", [1, 2])
def test_momo_stops_where_its_model_reaches_the_bound(power: int) -> None:
    """A step τ decreases the model by τ D^power."""
    tau = Momo(1.5)(10.0, model(2.0, 3.0), power).tau

    assert 2.0 - float(tau) * 3.0**power == pytest.approx(1.5)


@pytest.mark.parametrize("rule", [Momo(0.25), MomoStar(0.25)])
@pytest.mark.parametrize("lr", [1e-3, 0.375, 0.4, 1e9])
def test_momo_says_whether_the_step_is_the_learning_rate_itself(rule: StepSize, lr: float) -> None:
    """The model reaches the bound at (1 - 0.25) / 2; at that very learning rate, both hold."""
    step = rule(lr, model(1.0, 2.0), power=1)

    assert step.capped is not None and step.capped.dtype == torch.bool
    assert bool(step.capped) == (lr <= 0.375) == (float(step.tau) == lr)


def test_rules_without_a_cap_have_none_to_tell_of() -> None:
    assert Constant()(0.1, model(1.0, 2.0), power=1).capped is None
    assert Clip(1.0)(0.1, model(1.0, 2.0), power=2).capped is None


def test_momo_never_steps_uphill() -> None:
    assert float(Momo(50.0)(1.0, model(3.0, 2.0), 2).tau) == 0


def test_momo_with_a_very_low_bound_takes_the_learning_rate() -> None:
    assert float(Momo(-1e300)(0.1, model(3.0, 2.0), 2).tau) == 0.1


def test_a_loss_that_is_not_a_number_gives_no_step_that_looks_sound() -> None:
    """Momo's official code takes the full learning rate there."""
    assert math.isnan(Momo(0.0)(1.0, model(math.nan, 2.0), 2).tau)


@pytest.mark.parametrize("rule", [Momo, MomoStar])
def test_a_missing_lower_bound_names_the_key_to_set(rule: type) -> None:
    with pytest.raises(ConfigError, match=r"dataset\.loss_lower_bound"):
        rule(None)


def test_momo_star_remembers_the_model_less_half_its_decrease() -> None:
    step = MomoStar(0.0)(0.1, model(2.0, 3.0), 2)

    assert float(step.tau) == pytest.approx(0.1)
    assert step.lower_bound is not None
    assert float(step.lower_bound) == pytest.approx(2.0 - 0.1 * 9.0 / 2)


def test_momo_star_lowers_a_bound_above_its_model() -> None:
    """To half of the model's value, but never below the floor."""
    tau = MomoStar(0.0)(10.0, model(2.0, 1.0, bound=3.0), 1).tau
    assert float(tau) == pytest.approx(2.0 - 1.0)

    tau = MomoStar(1.5)(10.0, model(2.0, 1.0, bound=3.0), 1).tau
    assert float(tau) == pytest.approx(2.0 - 1.5)


def test_momo_star_keeps_a_bound_below_its_model() -> None:
    tau = MomoStar(0.0)(10.0, model(2.0, 1.0, bound=1.25), 1).tau

    assert float(tau) == pytest.approx(0.75)


def test_clip_has_steps_of_at_most_rho() -> None:
    """Regularized descent makes steps of length τ D."""
    for dual_norm in (0.1, 1.9, 2.1, 50.0):
        tau = Clip(2.0)(0.1, model(0.0, dual_norm), 2).tau

        assert float(tau) * dual_norm == pytest.approx(0.1 * min(2.0, dual_norm))


def test_clip_refuses_constrained_descent_and_a_radius_that_is_not_positive() -> None:
    with pytest.raises(ConfigError, match="regularized"):
        Clip(2.0)(0.1, model(0.0, 1.0), 1)
    with pytest.raises(ConfigError, match="rho"):
        Clip(0.0)
