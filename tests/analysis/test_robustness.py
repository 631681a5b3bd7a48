"""Robustness numbers against closed forms, with what cuts them off."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from analysis.robustness import best, lr_sensitivity, usable_width

# Final losses of a small GPT (345 thousand parameters, 250 steps), seed means, as a throw-away
# script recorded them; initial loss 4.195, lr 10^-3.5 to 10 in half decades.
ADAMW = [2.574, 2.436, 2.451, 2.707, 2.944, 3.258, 3.329, "diverged", "diverged", "diverged"]
MUON = [2.821, 2.507, 2.431, 2.344, 2.153, 2.489, 3.200, "diverged", "diverged", "diverged"]
MUON_MOMO = [2.821, 2.507, 2.431, 2.346, 2.158, 2.136, 2.135, 2.135, 2.135, 2.135]
HALF_DECADES = 10 ** np.arange(-3.5, 1.1, 0.5)

slopes = st.floats(0.3, 3.0)  # nats per decade


def valley(left: float, right: float, *, spacing: float = 0.5, best_loss: float = 0.5) -> dict:
    """l = best_loss + slope |log10 lr|, over four decades, with a grid point at the bottom."""
    x = np.arange(-2, 2 + spacing / 2, spacing)
    losses = best_loss + np.where(x < 0, -left * x, right * x)
    return {float(10**a): [float(b)] for a, b in zip(x, losses, strict=True)}


class TestBest:
    def test_it_is_the_lowest_seed_mean_not_the_lowest_run(self, table):
        optimum = best(table.curve({0.1: [0.1, 0.9], 0.2: [0.4, 0.4], 0.3: [0.6, 0.6]}))

        assert optimum.lr == 0.2
        assert optimum.loss == pytest.approx(0.4)
        assert (optimum.std, optimum.seeds, optimum.where) == (0.0, 2, "interior")

    def test_ties_go_to_the_smaller_learning_rate(self, table):
        assert best(table.curve({0.3: [0.4], 0.2: [0.4], 0.1: [0.5]})).lr == 0.2

    def test_a_point_where_a_seed_diverged_is_never_the_best(self, table):
        curve = table.curve({0.1: [1.9, 1.9], 0.2: ["diverged", 0.1], 0.3: [1.9, 2.0]})

        assert best(curve).lr == 0.1

    def test_a_point_with_missing_seeds_may_be_the_best(self, table):
        optimum = best(table.curve({0.1: [0.9, 0.9], 0.2: ["missing", 0.1], 0.3: [0.9, 0.9]}))

        assert (optimum.lr, optimum.seeds) == (0.2, 1)

    @pytest.mark.parametrize(
        ("losses", "where"),
        [
            ([0.3, 0.2, 0.3], "interior"),
            ([0.1, 0.2, 0.3], "left"),
            ([0.3, 0.2, 0.1], "right"),
            (["diverged", 0.1, "diverged"], "interior"),
            (["missing", 0.1, 0.2], "hole"),
            ([0.2, 0.1, "running"], "hole"),
            (["missing", "missing", 0.1], "right"),
            ([0.1], "both"),
        ],
    )
    def test_it_says_where_on_the_grid_it_lies(self, table, losses, where):
        curve = table.curve({10.0**i: [loss] for i, loss in enumerate(losses)})

        assert best(curve).where == where

    def test_there_is_none_without_a_stable_point(self, table):
        assert best(table.curve({0.1: ["diverged"], 0.2: ["missing"]})) is None


class TestUsableWidth:
    @given(left=slopes, right=slopes, q=st.sampled_from([0.01, 0.05, 0.1]))
    def test_a_valley_has_the_width_of_its_level(self, table, left, right, q):
        """l* = 0.5, l_0 = 10.5: the level lies 10 q above, so the ends lie 10 q / slope away."""
        ends = [min(2.0, 10 * q / slope) for slope in (left, right)]
        assume(all(abs(10 * q / slope - 2) > 1e-9 for slope in (left, right)))
        width = usable_width(table.curve(valley(left, right, spacing=0.25), initial=10.5), q)

        assert width.decades == pytest.approx(sum(ends))
        assert width.left.lr == pytest.approx(10 ** -ends[0])
        assert width.right.lr == pytest.approx(10 ** ends[1])
        assert (width.left.bound == "edge") == (10 * q / left > 2)
        assert (width.right.bound == "edge") == (10 * q / right > 2)

    @given(spacing=st.sampled_from([0.1, 0.25, 0.5, 1.0]))
    def test_a_valley_of_straight_sides_has_the_same_width_on_every_grid(self, table, spacing):
        width = usable_width(table.curve(valley(1.0, 0.5, spacing=spacing), initial=4.5))

        assert width.decades == pytest.approx(0.2 + 0.4)
        assert not width.censored

    def test_it_ends_at_the_last_usable_point_before_divergence(self, table):
        """The ceiling is a convention: no credit for a part of the way to it."""
        points = {**valley(1.0, 0.01), 10.0**0.5: ["diverged"]}
        width = usable_width(table.curve(points, initial=4.5))

        assert width.right.lr == 1.0
        assert width.right.bound == "ceiling"
        assert width.decades == pytest.approx(0.2)
        assert not width.censored

    def test_one_diverged_seed_of_several_ends_it_too(self, table):
        points = {0.1: [0.4, 0.6], 1.0: [0.5, 0.5], 10.0: [0.5, "diverged"], 100.0: [0.5, 0.5]}
        width = usable_width(table.curve(points))

        assert (width.left.lr, width.left.bound) == (0.1, "edge")
        assert (width.right.lr, width.right.bound) == (1.0, "ceiling")

    def test_a_run_that_finished_above_its_initial_loss_ends_it_like_divergence(self, table):
        width = usable_width(table.curve({0.1: [1.9], 1.0: [0.5], 10.0: [77.0]}))

        assert (width.right.lr, width.right.bound) == (1.0, "ceiling")

    def test_the_grid_s_edge_makes_it_a_lower_bound(self, table):
        width = usable_width(table.curve({1e-3: [1.0], 1e-2: [0.5], 0.1: [0.5], 1.0: [0.5]}))

        assert width.right.bound == "edge"
        assert width.left.bound == "crossing"
        assert width.censored
        assert width.decades == pytest.approx(2 + 0.075 / 0.5)

    def test_nothing_is_interpolated_over_a_hole(self, table):
        points = {0.1: ["missing"], 1.0: [0.5], 10.0: [0.5], 100.0: ["failed"], 1e3: [0.5]}
        width = usable_width(table.curve(points))

        assert (width.left.lr, width.left.bound) == (1.0, "hole")
        assert (width.right.lr, width.right.bound) == (10.0, "hole")
        assert width.censored
        assert width.decades == pytest.approx(1.0)

    def test_a_point_exactly_on_the_level_is_inside(self, table):
        curve = table.curve({1.0: [0.5], 10.0: [1.0], 100.0: ["diverged"]}, initial=1.5)

        right = usable_width(curve, 0.5).right
        assert (right.lr, right.bound) == (10.0, "ceiling")

    def test_a_second_basin_does_not_count(self, table):
        points = {1.0: [0.5], 10.0: [1.5], 100.0: [0.5], 1e3: [0.5]}
        width = usable_width(table.curve(points))

        assert width.right.lr == pytest.approx(10 ** (0.075 / 1.0))

    def test_a_single_learning_rate_has_width_zero_open_on_both_sides(self, table):
        width = usable_width(table.curve({0.1: [0.5]}))

        assert width.decades == 0
        assert (width.left.bound, width.right.bound) == ("edge", "edge")

    @pytest.mark.parametrize("loss", [2.0, 3.0, "diverged", "missing"])
    def test_it_is_undefined_where_nothing_was_learned(self, table, loss):
        assert usable_width(table.curve({0.1: [loss], 0.2: [loss]}, initial=2.0)) is None

    @given(st.floats(0.01, 0.5))
    def test_it_does_not_depend_on_the_unit_of_the_loss(self, table, unit):
        losses = valley(1.0, 0.5)
        scaled = {lr: [unit * loss[0]] for lr, loss in losses.items()}
        width = usable_width(table.curve(losses, initial=4.0))
        other = usable_width(table.curve(scaled, initial=4.0 * unit))

        assert other.decades == pytest.approx(width.decades)


class TestLrSensitivity:
    def test_it_is_the_mean_excess_over_the_grid(self, table):
        curve = table.curve({0.1: [0.6], 1.0: [0.5], 10.0: [1.1]})

        assert lr_sensitivity(curve) == pytest.approx((0.1 + 0 + 0.6) / 3)

    def test_divergence_and_explosion_cost_the_drop(self, table):
        curve = table.curve({0.1: [0.5], 1.0: ["diverged"], 10.0: [1e6]}, initial=2.0)

        assert lr_sensitivity(curve) == pytest.approx((0 + 1.5 + 1.5) / 3)

    @pytest.mark.parametrize(
        ("losses", "expected"), [(ADAMW, 0.792), (MUON, 0.900), (MUON_MOMO, 0.159)]
    )
    def test_recorded_curves_have_the_recorded_value(self, table, losses, expected):
        points = {lr: [loss] for lr, loss in zip(HALF_DECADES, losses, strict=True)}

        assert lr_sensitivity(table.curve(points, initial=4.195)) == pytest.approx(
            expected, abs=5e-4
        )

    def test_a_refined_region_does_not_weigh_more(self, table):
        """Points on the straight sides of a curve change nothing in its trapezoidal mean."""
        coarse = {0.1: [1.5], 1.0: [0.5], 100.0: [1.5]}
        fine = {**coarse, 10**0.5: [0.75], 10.0: [1.0]}

        assert lr_sensitivity(table.curve(coarse)) == pytest.approx(0.5)
        assert lr_sensitivity(table.curve(fine)) == pytest.approx(0.5)

    def test_rounded_grids_count_as_uniform(self, table):
        curve = table.curve({0.01: [0.7], 0.03162: [0.5], 0.1: [0.5], 0.3162: [0.5]})

        assert lr_sensitivity(curve) == pytest.approx(0.05)

    def test_points_without_results_are_left_out(self, table):
        curve = table.curve({0.1: [0.7], 1.0: [0.5], 10.0: ["running"], 100.0: [0.9]})

        assert lr_sensitivity(curve) == pytest.approx(0.2)

    def test_one_point_left_of_an_uneven_grid_has_no_excess(self, table):
        assert lr_sensitivity(table.curve({0.1: [0.7], 1.0: ["failed"], 5.0: ["failed"]})) == 0

    def test_it_is_undefined_without_a_best_point(self, table):
        assert math.isnan(lr_sensitivity(table.curve({0.1: ["diverged"]})))
