"""The certificate of a curve against its usable width: one notion of basin."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.certificate import certify, summary
from analysis.certificate import table as certificates
from analysis.compared import USABLE, Usable
from analysis.curves import curves
from analysis.report import analyse, certificate, coverage
from analysis.robustness import best, usable_width
from analysis.tables import width_text
from optlab.extend import Q

ENDINGS = {"edge": "open", "crossing": "bounded", "ceiling": "divergence"}
entries = st.lists(
    st.one_of(st.floats(0.01, 2.2), st.sampled_from([0.1, 0.1, 0.15, "diverged"])),
    min_size=1,
    max_size=8,
)

RULES = (USABLE, Usable(0.3), Usable(0.1, "relative"), Usable(0.05, "absolute"))


@given(
    losses=entries, seeds=st.integers(1, 3), spread=st.floats(0, 0.3), rule=st.sampled_from(RULES)
)
def test_both_see_the_same_optimum_and_the_same_ends(table, losses, seeds, spread, rule):
    points = {
        10.0 ** (i - 6): [
            loss if isinstance(loss, str) else loss + spread * s for s in range(seeds)
        ]
        for i, loss in enumerate(losses)
    }
    curve = table.curve(points)
    found, optimum = certify(curve, rule), best(curve)
    width = usable_width(curve, rule.q, rule.level)

    assert (USABLE.q, USABLE.level) == (Q, "drop")
    if optimum is None or width is None:  # nothing was learned
        assert math.isnan(found.best_lr) and found.right == "divergence"
    else:
        assert found.best_lr == optimum.lr
        assert found.left == ENDINGS[width.left.bound]
        assert found.right == ENDINGS[width.right.bound]
        assert (found.left_censored, found.right_censored) == (
            width.left.censored,
            width.right.censored,
        )


@given(losses=entries, hole=st.integers(0, 7))
def test_with_a_hole_nothing_is_certain(table, losses, hole):
    losses = [*losses[:hole], "missing", *losses[hole:]]
    found = certify(table.curve({10.0**i: [loss] for i, loss in enumerate(losses)}))

    assert found.waiting and not found.complete
    assert (found.left, found.right, found.sentences) == (None, None, ())


@pytest.fixture
def plateau(table):
    """MuonMax-Momo to lr 1, and two certified points that have the numbers of that one."""
    runs = table({"muonmax_momo": {0.01: [0.9], 0.1: [0.3], 1.0: [0.1], 10: [0.1], 100: [0.1]}})
    return runs.assign(certified_by=["", "", "", runs["run"][2], runs["run"][2]])


def test_certified_points_end_the_right_side(plateau):
    (curve,) = curves(plateau)
    found = certify(curve)

    assert curve.certified[:, 0].tolist() == [False, False, False, True, True]
    assert (found.left, found.right, found.complete) == ("bounded", "certified", True)
    assert (found.certified, found.certified_from) == (2, 1.0)
    assert "every lr above 1 repeats it bit by bit (certified)" in certificate([curve])


def test_a_plateau_without_end_is_told_from_a_grid_that_ends(plateau, records, tmp_path):
    (curve,) = curves(plateau)
    (open_end,) = curves(plateau.drop(columns="certified_by"))
    text = analyse(plateau, records, name="x", out=tmp_path, figures=[])

    assert width_text(curve).endswith("(certified)")
    assert width_text(open_end) == width_text(curve).replace("certified", "right")
    for file in ("robustness.md", "robustness.tex"):
        assert "(certified)" in (tmp_path / file).read_text()
    assert "(certified)" in text.split("Definitions")[0] and "repeats the last run" in text


def test_a_plateau_that_the_grid_cuts_on_the_left_says_both(table):
    runs = table({"muonmax_momo": {0.1: [0.1], 1.0: [0.1], 10: [0.1]}})
    (curve,) = curves(runs.assign(certified_by=["", "", runs["run"][1]]))

    assert width_text(curve) == ">= 2.00 (left+certified)"


def test_the_summary_counts_optima_and_basins(plateau, table):
    cut = table.curve({0.01: [0.9], 0.1: [0.1], 1.0: [0.1]})
    words = "optimum inside the grid for {} of {}, usable range not cut off for {}".format

    assert summary([*curves(plateau), cut]) == words(2, "2 curves", 1)
    assert summary([table.curve({0.1: [0.3], 1.0: [0.1]})]) == words(0, "1 curve", 0)
    assert summary([]) == ""


def test_coverage_counts_certified_runs_apart(plateau, records):
    from analysis.curves import Study

    text = coverage(Study("x", plateau, records, curves(plateau)), "launch")

    assert text == "x: 3 of 3 runs done (0 of them diverged), 0 failed, 0 running, 0 missing, " + (
        "2 certified."
    )


def test_a_table_without_the_column_has_nothing_certified(table):
    curve = table.curve({0.1: [0.3], 1.0: [0.1]})

    assert not curve.certified.any() and curve.certified.shape == curve.loss.shape


def test_what_remains_censored_is_told_with_the_way_on(table):
    curve = table.curve({0.01: [0.9], 0.1: [0.1], 1.0: [0.15]})
    text = certificate([curve], "To go on: extend.")

    assert "right: the basin reaches 1, the edge of the grid: a larger lr may do." in text
    assert text.endswith("To go on: extend.")
    bounded = table.curve({0.01: [0.9], 0.1: [0.1], 1.0: [1.5]})
    assert "To go on" not in certificate([bounded], "To go on: extend.")


def test_the_certificate_speaks_of_the_width_on_the_screen(table, records, tmp_path):
    """At 0.05 nats the basin ends between the points, at 5 % of the drop (0.095) on the edge."""
    runs = table({"adamw": {0.01: [0.18], 0.1: [0.1], 1.0: [0.9]}})
    for width, is_cut in ((USABLE, True), (Usable(0.05, "absolute"), False)):
        text = analyse(
            runs, records, name="x", out=tmp_path, figures=[], width=width, extension="To go on: e."
        )
        row = pd.read_csv(tmp_path / "certificate.csv").iloc[0]

        assert ("the basin reaches 0.01, the edge of the grid" in text) == is_cut
        assert (">= 1." in text) == is_cut
        assert ("To go on" in text) == is_cut
        assert bool(row["left_censored"]) == is_cut


def test_a_grid_that_grows_by_another_basin_says_by_which(table):
    curve = table.curve({0.01: [0.9], 0.1: [0.1], 1.0: [0.11]})
    text = certificate([curve], "To go on: extend.", Usable(0.05, "absolute"))

    assert "the grids grow by another basin: 5% of the loss drop" in " ".join(text.split())


def test_the_table_of_certificates_has_a_row_a_curve(table, plateau):
    (curve,) = curves(plateau)
    rows = certificates([curve, table.curve({0.1: ["missing"]})])

    assert list(rows["right"]) == ["certified", ""] and list(rows["waiting"]) == [False, True]
    assert rows["sentences"][0].startswith("right: every lr above 1") and rows["sentences"][1] == ""
    assert np.isnan(rows["best_lr"][1])
