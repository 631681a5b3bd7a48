"""Every robustness metric on curves whose numbers are known, with what the grid leaves open."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from analysis import robustness as r
from analysis.curves import Curve
from analysis.stack import stacked

LOSSES = st.lists(st.floats(0.1, 3.0), min_size=3, max_size=9)


def line(table, losses, *, first: int = 0, initial: float = 2.0) -> Curve:
    """A curve of one seed, a decade between its points."""
    return table.curve({10.0 ** (first + i): [loss] for i, loss in enumerate(losses)}, initial)


class TestBest:
    def test_its_lr_is_known_to_within_its_neighbours(self, table):
        found = r.best_lr()(line(table, [1.0, 0.5, 0.7, 1.5]))

        assert (found.value, found.low, found.high) == pytest.approx((10, 1, 100))
        assert (found.censoring, found.unit) == ("interior", "lr")
        assert found.grid == (1, 10, 100, 1000)

    @pytest.mark.parametrize(
        ("losses", "censoring"),
        [
            ([0.5, 0.7, 1.5], "left"),
            ([1.5, 0.7, 0.5], "right"),
            ([0.5], "both"),
            ([1.5, 0.5, "missing"], "hole"),
            ([1.5, 0.5, "diverged"], "divergence"),
            ([0.5, 0.5, 0.5, 1.0], "flat"),
            (["diverged", "diverged"], "undefined"),
        ],
    )
    def test_what_cuts_it_off_is_said(self, table, losses, censoring):
        assert r.best_lr()(line(table, losses)).censoring == censoring
        assert r.best_loss()(line(table, losses)).censoring == censoring

    def test_at_an_edge_its_loss_is_at_most_the_measured_one(self, table):
        found = r.best_loss()(line(table, [1.5, 0.7, 0.5]))

        assert (found.low, found.value, found.high) == (-math.inf, 0.5, 0.5)
        assert r.best_lr()(line(table, [1.5, 0.7, 0.5])).high == math.inf

    def test_noise_between_seeds_makes_a_plateau_flat(self, table):
        """Differences of 0.01 are hidden by errors of 0.1, not by errors of 0.001."""

        def found(noise: float) -> r.Metric:
            points = {
                10.0**i: [loss, loss + noise * (i % 2), loss - noise * (i // 2)]
                for i, loss in enumerate([0.51, 0.5, 0.51, 0.52])
            }
            return r.best_lr()(table.curve(points))

        assert found(0.1).censoring == "flat"
        assert found(0.001).censoring == "interior"

    def test_a_parabola_has_its_vertex_between_the_points(self, table):
        """l = 0.5 + 0.2 (x - 1.3)^2"""
        curve = line(table, [0.5 + 0.2 * (x - 1.3) ** 2 for x in range(4)])

        assert r.best_lr_interpolated()(curve).value == pytest.approx(10**1.3)
        assert r.best_loss_interpolated()(curve).value == pytest.approx(0.5)

    @pytest.mark.parametrize("losses", [[0.5, 0.7, 1], [1, 0.5, "diverged"], [0.5, 0.6]])
    def test_there_is_no_vertex_without_two_stable_neighbours(self, table, losses):
        assert math.isnan(r.best_loss_interpolated()(line(table, losses)).value)

    @settings(max_examples=20)
    @given(LOSSES)
    def test_a_monotone_cubic_never_goes_below_its_data(self, losses):
        """So the minimum that PCHIP gives is the grid's."""
        cubic = PchipInterpolator(np.arange(len(losses)), losses)

        assert cubic(np.linspace(0, len(losses) - 1, 200)).min() >= min(losses) - 1e-9


class TestWidth:
    @pytest.mark.parametrize(
        ("q", "level", "expected"),
        [(0.1, "drop", 0.15 + 0.3), (0.1, "relative", 0.05 + 0.1), (0.1, "absolute", 0.1 + 0.2)],
    )
    def test_a_valley_has_the_width_of_its_level(self, table, q, level, expected):
        """Slopes of 1 and 0.5 nats per decade around l* = 0.5, l_0 = 2."""
        curve = line(table, [1.5, 0.5, 1.0, 1.5])
        left, right = (r.width_left(q, level)(curve), r.width_right(q, level)(curve))

        assert r.width(q, level)(curve).value == pytest.approx(expected)
        assert left.value == pytest.approx(expected / 3)
        assert right.value == pytest.approx(expected * 2 / 3)

    @settings(max_examples=20)
    @given(LOSSES)
    def test_it_is_the_one_of_the_table(self, table, losses):
        curve = line(table, losses)
        found, shown = r.width(0.05)(curve), r.usable_width(curve, 0.05)

        assert math.isnan(found.value) == (shown is None)
        if shown is not None:
            assert found.value == pytest.approx(shown.decades, abs=1e-9)
            assert (found.high == math.inf) == shown.censored

    @pytest.mark.parametrize(
        ("losses", "censoring", "more"),
        [
            ([1.9, 0.5, 1.9], "interior", 0),
            ([1.9, 0.5, "diverged"], "divergence", 1),
            ([1.9, 0.5, 0.5], "right", math.inf),
            ([0.5, 0.5, 1.9], "left", math.inf),
            ([0.5, 0.5], "both", math.inf),
            ([1.9, 0.5, "missing"], "hole", math.inf),
            ([2.0, 2.0], "undefined", math.nan),
        ],
    )
    def test_the_grid_leaves_open_what_lies_behind_its_ends(self, table, losses, censoring, more):
        """A step of the grid behind a stable point whose neighbour diverged, else no bound."""
        found = r.width(0.05)(line(table, losses))

        assert found.censoring == censoring
        assert found.high - found.value == pytest.approx(more, nan_ok=True)
        assert found.low == found.value or math.isnan(more)

    def test_a_cubic_crosses_where_scipy_says(self, table):
        losses = [1.9, 0.9, 0.5, 0.6, 1.4, 1.9]
        cubic = PchipInterpolator(np.arange(6), losses)
        ends = [float(root) for root in cubic.solve(0.8) if root > 0]
        curve = line(table, losses)

        assert r.width(0.3, "absolute", "pchip")(curve).value == pytest.approx(ends[1] - ends[0])
        assert r.width(0.3, "absolute")(curve).value == pytest.approx(0.75 + 1 + 0.25)


class TestSensitivity:
    @settings(max_examples=20)
    @given(LOSSES)
    def test_it_is_the_one_of_the_table(self, table, losses):
        curve = line(table, losses)

        assert r.sensitivity()(curve).value == pytest.approx(r.lr_sensitivity(curve), nan_ok=True)

    def test_a_hole_could_have_cost_nothing_or_all(self, table):
        """Excess 0.5, 0 and between 0 and 1.5, over three points."""
        found = r.sensitivity()(line(table, [1.0, 0.5, "missing"]))

        assert (found.low, found.high) == pytest.approx((0.5 / 3, 2.0 / 3))
        assert (found.value, found.censoring) == (0.25, "hole")

    def test_centred_it_does_not_depend_on_where_the_grid_lies(self, table):
        """Over a decade to either side, slopes of 1 and 0.5 cost (1/2 + 0.5/2) / 2 on average."""
        valley = [2.0, 1.5, 0.5, 1.0, 1.5]

        for losses in (valley, [2.0, 2.0, 2.0, *valley], [*valley, 2.0, 2.0]):
            assert r.centred_sensitivity()(line(table, losses)).value == pytest.approx(0.375)

    def test_centred_within_half_a_decade(self, table):
        curve = line(table, [2.0, 1.5, 0.5, 1.0, 1.5])

        assert r.centred_sensitivity(0.5)(curve).value == pytest.approx(0.375 / 2)

    @pytest.mark.parametrize(
        ("losses", "censoring"),
        [
            ([0.5, 1.0, 1.5], "left"),
            ([1.5, 1.0, 0.5], "right"),
            ([0.5], "both"),
            ([1.5, 0.5, "missing", 1.0], "hole"),
            (["diverged"] * 3, "undefined"),
        ],
    )
    def test_centred_it_is_refused_where_the_grid_does_not_cover_it(self, table, losses, censoring):
        found = r.centred_sensitivity()(line(table, losses))

        assert math.isnan(found.value)
        assert found.censoring == censoring

    def test_rounded_learning_rates_cover_a_window_of_whole_decades(self, table):
        """0.03162 is 10^-1.5 in four digits."""
        curve = table.curve({0.03162: [1.0], 0.3162: [0.5], 3.162: [1.0]})

        assert r.centred_sensitivity()(curve).value == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize(
    ("factor", "expected"),
    [(0.1, 1.0), (1 / 3, math.log10(3)), (3, 0.5 * math.log10(3)), (10, 0.5)],
)
def test_a_misset_lr_costs_what_the_line_says(table, factor, expected):
    assert r.misset(factor)(line(table, [1.5, 0.5, 1.0])).value == pytest.approx(expected)


def test_a_misset_lr_off_the_grid_has_no_cost(table):
    found = r.misset(100)(line(table, [1.5, 0.5, 1.0]))

    assert math.isnan(found.value)
    assert (found.censoring, found.low, found.high) == ("right", -math.inf, math.inf)


class TestStability:
    def test_the_largest_stable_lr_lies_below_the_first_that_fails(self, table):
        curve = line(table, [1.0, 0.5, 1.9, 5.0, "diverged"])
        found = r.largest_stable_lr()(curve)

        assert (found.value, found.high) == pytest.approx((100, 1000))
        assert found.censoring == "divergence"
        assert r.first_diverging_lr()(curve).value == pytest.approx(1e4)
        assert r.first_diverging_lr()(curve).low == pytest.approx(1e3)

    def test_the_stable_range_counts_both_sides(self, table):
        curve = line(table, ["diverged", 1.0, 0.5, 1.9, "diverged"])
        found = r.stable_range()(curve)

        assert (found.value, found.high) == pytest.approx((2, 4))

    def test_one_seed_of_several_is_enough_to_diverge(self, table):
        curve = table.curve({1.0: [0.5, 0.5], 10.0: [0.6, "diverged"], 100.0: ["diverged"] * 2})

        assert r.largest_stable_lr()(curve).value == pytest.approx(1)
        assert r.first_diverging_lr()(curve).value == pytest.approx(10)

    def test_where_nothing_diverged_it_lies_beyond_the_grid(self, table):
        curve = line(table, [1.0, 0.5, 1.0])

        assert math.isnan(r.first_diverging_lr()(curve).value)
        assert r.first_diverging_lr()(curve).low == pytest.approx(100)
        assert r.largest_stable_lr()(curve).high == math.inf

    def test_a_hole_may_have_diverged(self, table):
        found = r.first_diverging_lr()(line(table, [1.0, 0.5, "missing", "diverged"]))

        assert (found.low, found.high, found.censoring) == (
            pytest.approx(10),
            pytest.approx(1000),
            "hole",
        )


class TestTuning:
    @settings(max_examples=20)
    @given(LOSSES, st.integers(1, 6))
    def test_the_expected_best_is_that_of_the_formula(self, table, losses, k):
        """E_k = sum_j l_(j) [(n-j+1)^k - (n-j)^k] / n^k"""
        n = len(losses)
        capped = sorted(min(loss, 2.0) for loss in losses)
        expected = sum(
            loss * ((n - j + 1) ** k - (n - j) ** k) / n**k for j, loss in enumerate(capped, 1)
        )

        assert r.tuning_budget(line(table, losses), k) == pytest.approx(expected)

    def test_one_trial_is_the_mean_and_many_find_the_best(self, table):
        found = r.tuning_budget(line(table, [1.0, 0.5, 1.5]), np.array([1, 200]))

        assert found == pytest.approx([1.0, 0.5])

    def test_on_an_uneven_grid_a_point_weighs_what_it_covers(self, table):
        """Cells of 1, 1.5 and 2 decades."""
        curve = table.curve({1.0: [1.0], 10.0: [0.5], 1000.0: [1.5]})

        assert r.tuning_budget(curve, 1) == pytest.approx((1.0 + 0.75 + 3.0) / 4.5)

    def test_a_hole_leaves_it_unknown(self, table):
        assert np.isnan(r.tuning_budget(line(table, [1.0, 0.5, "missing"]), 3))
        assert r.tuning_area()(line(table, [1.0, 0.5, "missing"])).censoring == "hole"

    def test_its_area_is_the_mean_excess_over_the_trials(self, table):
        """Two points 0 and 1 above the best: E_k - l* = 2^-k."""
        assert r.tuning_area(3)(line(table, [0.5, 1.5])).value == pytest.approx(
            (1 / 2 + 1 / 4 + 1 / 8) / 3
        )


def test_the_regret_area_joins_quality_and_robustness(table):
    """L = 0.5, l_0 = 2.5: regrets 1/2, 0 and 1 (capped) over two decades."""
    curve = line(table, [1.5, 0.5, 7.0], initial=2.5)

    assert r.regret_area(0.5)(curve).value == pytest.approx((0.25 + 0.5) / 2)


def test_the_success_rate_counts_stable_points(table):
    curve = line(table, [1.0, 0.5, 1.2, "diverged", "missing"])
    found = r.success_rate(1.0)(curve)

    assert (found.value, found.low, found.high) == pytest.approx((2 / 4, 2 / 5, 3 / 5))


def test_transfer_regret_is_the_loss_at_the_other_s_optimum(table):
    source, target = line(table, [0.5, 1.0, 1.5]), line(table, [1.1, 0.7, 0.9])

    assert r.transfer_regret(source, target).value == pytest.approx(0.4)
    assert r.transfer_regret(target, source).value == pytest.approx(0.5)
    assert r.transfer_regret(source, source).value == 0
    assert r.transfer_regret(line(table, [0.5, 1], first=5), target).censoring == "right"


class TestPerformanceProfile:
    COSTS = pd.DataFrame(
        [("a", "p", 1.0), ("b", "p", 2.0), ("a", "q", 6.0), ("b", "q", 2.0), ("a", "r", 5.0)],
        columns=["method", "problem", "cost"],
    )

    def test_it_is_the_share_of_problems_within_a_factor_of_the_cheapest(self):
        profile = r.performance_profile(self.COSTS, np.array([1.0, 2.0, 3.0]))
        shares = profile.pivot(index="method", columns="tau", values="share")

        np.testing.assert_allclose(shares.loc["a"], [2 / 3, 2 / 3, 1])
        np.testing.assert_allclose(shares.loc["b"], [1 / 3, 2 / 3, 2 / 3])

    def test_its_score_is_its_integral(self):
        """a: ratios 1, 3, 1; b: 2, 1, never; of the range from 1 to 4."""
        score = r.profile_score(self.COSTS)
        taus = np.linspace(1, 4, 30001)
        profile = r.performance_profile(self.COSTS, taus)

        assert score["a"] == pytest.approx((3 + 1 + 3) / 9)
        assert score["b"] == pytest.approx((2 + 3) / 9)
        for method, block in profile.groupby("method"):
            assert np.trapezoid(block["share"], taus) / 3 == pytest.approx(score[method], abs=1e-3)

    def test_a_problem_that_nobody_solved_counts_for_nobody(self):
        costs = pd.DataFrame({"method": ["a", "b"], "problem": "p", "cost": [np.inf, np.inf]})

        assert r.profile_score(costs).tolist() == [0, 0]

    def test_costs_must_be_positive(self):
        with pytest.raises(ValueError, match="above 0"):
            r.performance_profile(self.COSTS.assign(cost=0.0))


@settings(max_examples=20)
@given(st.lists(LOSSES, min_size=2, max_size=2), st.floats(0.2, 5.0))
def test_no_metric_in_decades_depends_on_the_unit_of_the_loss(table, rows, unit):
    points = {10.0**i: list(pair) for i, pair in enumerate(zip(*rows, strict=False))}
    scaled = {lr: [unit * loss for loss in losses] for lr, losses in points.items()}
    for measure in (r.width(), r.width_left(), r.stable_range(), r.largest_stable_lr()):
        found = measure(table.curve(points, initial=4.0))
        other = measure(table.curve(scaled, initial=4.0 * unit))

        assert other.value == pytest.approx(found.value, nan_ok=True, rel=1e-6, abs=1e-9)


@settings(max_examples=20)
@given(st.lists(LOSSES, min_size=3, max_size=3))
def test_a_resample_that_holds_each_seed_once_is_the_curve_as_measured(table, rows):
    points = {10.0**i: list(three) for i, three in enumerate(zip(*rows, strict=False))}
    curve = table.curve(points)
    both = stacked(curve, np.array([[1, 1, 1], [3, 0, 0]]))
    for measure in (r.width(), r.sensitivity(), r.best_loss(), r.misset(10), r.tuning_area()):
        values = measure.values(both).value

        assert values[0] == pytest.approx(measure(curve).value, nan_ok=True)
        one = table.curve({lr: losses[:1] for lr, losses in points.items()})
        assert values[1] == pytest.approx(measure(one).value, nan_ok=True)
