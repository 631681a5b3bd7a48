"""robustness.csv: every metric of a curve beside the printed ones, with what cuts it off."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis import tables
from analysis.full_table import robustness
from analysis.report import analyse


def row(table, losses: list) -> pd.Series:
    """The row of a curve with one seed per entry of each point, a decade between the points."""
    seeds = [entry if isinstance(entry, list) else [entry] for entry in losses]
    points = {10.0**i: entries for i, entries in enumerate(seeds)}
    return robustness([table.curve(points)]).iloc[0]


def test_the_metrics_of_a_bowl_are_its_closed_forms(table):
    """l = 0.5 + 0.1 (x - 2)^2, x = 0..4 decades, initial loss 2."""
    found = row(table, [0.9, 0.6, 0.5, 0.6, 0.9])

    assert found["best_lr_interpolated"] == pytest.approx(100)
    assert found["best_loss_interpolated"] == pytest.approx(0.5)
    assert found["width_left"] == found["width_right"] == pytest.approx(0.75)  # 0.075 of 0.1
    assert (found["misset_tenth"], found["misset_10"]) == pytest.approx((0.1, 0.1))
    assert found["misset_third"] == found["misset_3"] == pytest.approx(0.1 * np.log10(3))
    assert found["stable_range"] == pytest.approx(4) and found["stable_range_censoring"] == "both"
    assert np.isnan(found["first_diverging_lr"])
    assert found["first_diverging_lr_censoring"] == "right"


def test_divergence_ends_the_stable_range(table):
    found = row(table, [0.9, 0.5, 0.6, "diverged"])

    assert (found["first_diverging_lr"], found["largest_stable_lr"]) == pytest.approx((1000, 100))
    assert found["misset_10_censoring"] == "interior"


def test_the_width_has_its_interval_over_seeds(table):
    found = row(table, [[0.9, 0.95], [0.5, 0.5], [0.6, 0.7]])

    assert 0 <= found["width_low"] < found["width"] < found["width_high"]
    assert np.isnan(row(table, [0.9, 0.5, 0.6])["width_low"])  # one seed says nothing


@pytest.mark.parametrize("losses", [["missing"], ["diverged", "diverged"], [0.5], [2.0, "failed"]])
def test_a_curve_without_much_has_a_row_all_the_same(table, losses):
    found = row(table, losses)

    assert set(found[[name for name in found.index if name.endswith("_censoring")]]) != set()
    assert np.isnan(found["misset_10"])


def test_the_file_has_them_and_the_printed_table_does_not(table, records, tmp_path):
    runs = table({"adamw": {0.1: [0.9], 1.0: [0.5], 10.0: [0.6]}, "scion": {1.0: [0.4]}})
    text = analyse(runs, records, name="x", out=tmp_path, figures=[])
    found = pd.read_csv(tmp_path / "robustness.csv")

    assert found["misset_10"][0] == pytest.approx(0.1) and len(found) == 2
    assert "misset" not in text and "misset" not in tables.display([]).columns


def test_a_best_point_with_a_seed_at_the_ceiling_is_no_error(table):
    """The cubic of ``width_pchip`` has one point left, and the line takes its place."""
    found = row(table, [[0.5, 2.0], [1.0, 1.9]])

    assert found["width_pchip"] == pytest.approx((0.05 * 0.75) / 0.2)
