"""Curves say exactly what the table of runs says: no run dropped, none invented."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.curves import COLUMNS, curves, varies_within
from optlab.errors import ConfigError

ENTRIES = st.one_of(
    st.floats(-1, 1e6),
    st.sampled_from([np.nan, np.inf, "diverged", "failed", "preempted", "running", "missing"]),
)


def test_mean_std_and_range_are_those_of_the_seeds(table):
    curve = table.curve({0.1: [0.1, 0.2, 0.6], 0.01: [1.0, 1.5, 0.5]})

    np.testing.assert_array_equal(curve.lr, [0.01, 0.1])
    np.testing.assert_allclose(curve.mean, [1.0, 0.3])
    np.testing.assert_allclose(curve.std, [0.5, np.sqrt((0.04 + 0.01 + 0.09) / 2)])
    np.testing.assert_allclose(curve.low, [0.5, 0.1])
    np.testing.assert_allclose(curve.high, [1.5, 0.6])


def test_one_seed_has_no_std(table):
    curve = table.curve({0.1: [0.3], 0.2: ["missing"]})

    assert np.isnan(curve.std).all()


def test_a_diverged_seed_counts_with_the_initial_loss(table):
    curve = table.curve({0.1: [0.5, "diverged"]}, initial=2.5)

    np.testing.assert_allclose(curve.mean, [1.5])
    np.testing.assert_array_equal(curve.n, [2])
    np.testing.assert_array_equal(curve.n_diverged, [1])


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_finished_run_without_a_finite_loss_counts_as_diverged(table, loss):
    curve = table.curve({0.1: [0.5, loss]})

    np.testing.assert_array_equal(curve.n_diverged, [1])
    np.testing.assert_allclose(curve.mean, [1.25])


def test_a_finished_run_above_its_initial_loss_is_capped_but_did_not_diverge(table):
    curve = table.curve({0.1: [0.5, 1e5], 0.2: [0.5, 0.5]})

    np.testing.assert_allclose(curve.mean, [1.25, 0.5])
    np.testing.assert_array_equal(curve.n_diverged, [0, 0])
    np.testing.assert_array_equal(curve.capped, [True, False])


@pytest.mark.parametrize("outcome", ["failed", "preempted", "running", "missing"])
def test_holes_count_in_no_mean(table, outcome):
    curve = table.curve({0.1: [0.5, outcome], 0.2: [outcome, outcome]})

    np.testing.assert_array_equal(curve.n, [1, 0])
    np.testing.assert_array_equal(curve.planned, [2, 2])
    np.testing.assert_allclose(curve.mean, [0.5, np.nan])
    np.testing.assert_allclose(curve.low, [0.5, np.nan])
    np.testing.assert_allclose(curve.high, [0.5, np.nan])


def test_a_running_run_is_a_hole_even_with_a_loss_so_far(table):
    runs = table({"adamw": {0.1: [0.5, "running"]}})
    runs.loc[1, "final_loss"] = 0.9

    np.testing.assert_allclose(curves(runs)[0].mean, [0.5])


def test_seeds_that_the_sweep_does_not_plan_are_no_holes(table):
    curve = table.curve({0.1: [0.5, 0.7, 0.9], 0.2: [0.5]})

    np.testing.assert_array_equal(curve.planned, [3, 1])
    np.testing.assert_array_equal(curve.n, [3, 1])


def test_each_run_is_capped_at_its_own_initial_loss(table):
    runs = table({"adamw": {0.1: ["diverged", "diverged"], 0.2: ["diverged", "diverged"]}})
    runs["initial_loss"] = [2.0, 3.0, 2.0, 3.0]
    (curve,) = curves(runs)

    np.testing.assert_array_equal(curve.loss, [[2.0, 3.0], [2.0, 3.0]])
    assert curve.ceiling == 2.5


def test_a_run_that_recorded_no_initial_loss_takes_that_of_its_seed_from_other_methods(table):
    runs = table({"adamw": {0.1: ["diverged", "diverged"]}, "scion": {0.1: [0.1, 0.1]}})
    runs["initial_loss"] = [np.nan, np.nan, 2.0, 3.0]

    np.testing.assert_array_equal(curves(runs)[0].loss, [[2.0, 3.0]])


def test_a_seed_without_any_initial_loss_takes_the_mean_of_its_problem(table):
    runs = table({"adamw": {0.1: [0.1, 0.1, "diverged"]}})
    runs["initial_loss"] = [2.0, 3.0, np.inf]

    np.testing.assert_array_equal(curves(runs)[0].initial, [[2.0, 3.0, 2.5]])


def test_the_ceiling_does_not_move_with_the_holes(table):
    runs = table({"adamw": {0.1: [0.1, 0.1], 0.2: [0.1, 0.1], 0.3: [0.1, 0.1]}})
    runs["initial_loss"] = [2.0, 3.0] * 3
    before = curves(runs)[0].ceiling
    runs.loc[[1, 3], ["outcome", "initial_loss", "final_loss"]] = ["missing", np.nan, np.nan]

    assert curves(runs)[0].ceiling == before


def test_at_chance_counts_finished_runs_only(table):
    runs = table({"adamw": {0.1: [1.9, "diverged", "failed"]}}).assign(at_chance=True)

    np.testing.assert_array_equal(curves(runs)[0].at_chance, [[True, False, False]])


def test_methods_come_in_the_order_of_the_style_then_by_name(table):
    names = ["zeta", "scion", "alpha", "muonmax_momo", "adamw"]
    found = curves(table({name: {0.1: [0.5]} for name in names}))

    assert [c.method for c in found] == ["adamw", "scion", "muonmax_momo", "alpha", "zeta"]


def test_a_method_has_one_curve_per_setting_that_varies_within_it(table):
    runs = table({"adamw": {0.1: [0.5, 0.5]}, "scion": {0.1: [0.5]}})
    runs["model"] = ["mlp", "gpt_tiny", "mlp"]
    runs["seed"] = 0

    assert [c.label for c in curves(runs)] == [
        "AdamW (model=gpt_tiny)",
        "AdamW (model=mlp)",
        "Scion",
    ]


def test_settings_that_only_tell_methods_apart_are_not_named(table):
    runs = table({"adamw": {0.1: [0.5]}, "scion": {0.1: [0.5]}})
    runs["norms"] = ["", "spectral_sign"]

    assert [c.label for c in curves(runs)] == ["AdamW", "Scion"]


def test_a_column_setting_tells_curves_apart(table):
    runs = table({"adamw": {0.1: [0.5, 0.7]}}).assign(setting=["model.width=8", "model.width=16"])
    runs["seed"] = 0

    assert [c.setting for c in curves(runs)] == ["model.width=8", "model.width=16"]  # by number


def test_two_runs_of_one_point_are_refused_by_name(table):
    runs = table({"adamw": {0.1: [0.5, 0.7]}}).assign(seed=0)

    with pytest.raises(ConfigError, match=r"2 runs of adamw .*000000000000 and 000000000001"):
        curves(runs)


def test_a_missing_column_is_named(table):
    runs = table({"adamw": {0.1: [0.5]}}).drop(columns=["final_loss", "seed"])

    with pytest.raises(ConfigError, match="lacks the columns seed, final_loss"):
        curves(runs)


def test_an_unknown_outcome_is_refused(table):
    with pytest.raises(ConfigError, match="'exploded'"):
        curves(table({"adamw": {0.1: ["exploded"]}}))


@pytest.mark.parametrize("lr", [0.0, -1.0, np.nan, np.inf])
def test_a_learning_rate_that_no_log_axis_can_show_is_refused(table, lr):
    with pytest.raises(ConfigError, match=r"1 of 2 runs .* run 000000000001"):
        curves(table({"adamw": {0.1: [0.5], lr: [0.5]}}))


def test_no_runs_are_no_curves():
    assert curves(pd.DataFrame(columns=list(COLUMNS))) == []


def test_columns_of_a_store_without_any_result_are_read(table):
    """pandas gives columns that are empty everywhere the type object."""
    runs = table({"adamw": {0.1: ["missing"]}}).astype({"final_loss": object})

    assert curves(runs)[0].n.sum() == 0


def test_varies_within_looks_at_each_method_by_itself():
    varies = varies_within(["a", "a", "b", "b"], ["x", "y", "x", "x"])

    np.testing.assert_array_equal(varies, [True, True, False, False])


@given(st.lists(st.lists(ENTRIES, min_size=1, max_size=4), min_size=1, max_size=5))
def test_no_run_is_dropped_or_invented_and_every_mean_lies_under_the_ceiling(table, points):
    runs = table({"adamw": {10.0**i: entries for i, entries in enumerate(points)}}, initial=2.0)
    runs["initial_loss"] = 2.0
    (curve,) = curves(runs)

    assert sorted(curve.run[curve.run != ""]) == sorted(runs["run"])
    assert curve.done.sum() == runs["outcome"].isin(["finished", "diverged"]).sum()
    assert np.isfinite(curve.mean[curve.n > 0]).all()
    slack = 1e-12  # rounding of the mean
    assert (curve.mean[curve.n > 0] <= curve.ceiling + slack).all()
    assert (curve.low <= curve.mean + slack)[curve.n > 0].all()
    assert (curve.mean <= curve.high + slack)[curve.n > 0].all()
