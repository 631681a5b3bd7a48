"""Schedules at their ends, and as pure functions between them."""

from __future__ import annotations

import itertools
import math

import pytest

from optlab.errors import ConfigError
from optlab.schedule import (
    Constant,
    ConstantLinear,
    Cosine,
    Linear,
    Schedule,
    WarmupStableDecay,
)

SCHEDULES: list[Schedule] = [
    Constant(),
    ConstantLinear(0.4, 0.1),
    ConstantLinear(0.0, 0.0),
    ConstantLinear(1.0, 0.0),
    Linear(),
    Cosine(0.1, 0.05),
    Cosine(0.0, 0.0),
    WarmupStableDecay(0.1, 0.2),
    WarmupStableDecay(0.0, 1.0),
]

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


@every_schedule
@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_factors_are_above_zero_and_at_most_one(schedule: Schedule, total: int) -> None:
    factors = [schedule(step, total) for step in range(total)]

    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == pytest.approx(1, abs=0.6 / total if total > 2 else 1)


@every_schedule
def test_the_peak_is_one_and_nothing_falls_before_it_or_rises_after(schedule: Schedule) -> None:
    factors = [schedule(step, 1000) for step in range(1000)]
    top = factors.index(max(factors))

    assert all(a <= b for a, b in itertools.pairwise(factors[: top + 1]))
    assert all(a >= b for a, b in itertools.pairwise(factors[top:]))
    assert factors[top] == 1


@every_schedule
def test_the_shape_does_not_depend_on_the_number_of_steps(schedule: Schedule) -> None:
    for step in range(0, 100, 7):
        assert schedule(step, 100) == pytest.approx(schedule(50 * step, 5000), abs=0.1)


def test_constant_linear_as_in_the_paper() -> None:
    """Constant for 40 %, then towards zero, at its floor of 0.1 from 94 % on."""
    schedule = ConstantLinear(0.4, 0.1)

    assert schedule(0, 1000) == schedule(400, 1000) == 1
    assert schedule(700, 1000) == pytest.approx(0.5)
    assert schedule(930, 1000) > 0.1
    assert schedule(940, 1000) == pytest.approx(0.1)
    assert schedule(999, 1000) == 0.1


def test_linear_ends_one_step_above_zero() -> None:
    assert [Linear()(step, 4) for step in range(4)] == [1, 0.75, 0.5, 0.25]


def test_cosine_warms_up_and_is_half_way_down_in_the_middle() -> None:
    schedule = Cosine(0.1, 0.2)

    assert schedule(0, 1000) == pytest.approx(1 / 101)
    assert schedule(100, 1000) == 1
    assert schedule(550, 1000) == pytest.approx((1 + 0.2) / 2)
    assert schedule(1000, 1000) == pytest.approx(0.2)
    assert schedule(325, 1000) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_wsd_is_one_between_warm_up_and_decay() -> None:
    schedule = WarmupStableDecay(0.1, 0.2)

    assert schedule(50, 1000) == pytest.approx(51 / 101)
    assert schedule(100, 1000) == schedule(500, 1000) == schedule(800, 1000) == 1
    assert schedule(900, 1000) == pytest.approx(0.5)
    assert schedule(1000, 1000) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: ConstantLinear(1.4, 0.1),
        lambda: ConstantLinear(0.4, -0.1),
        lambda: Cosine(math.nan, 0.0),
        lambda: WarmupStableDecay(0.1, 2.0),
        lambda: WarmupStableDecay(0.6, 0.6),
    ],
)
def test_fractions_without_sense_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        wrong()  # type: ignore[operator]
