"""The robustness table: the right numbers, in words that fit a terminal."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from analysis import tables
from analysis.curves import curves
from analysis.robustness import centred_sensitivity
from analysis.style import KNOWN


def shown(runs: pd.DataFrame) -> dict[str, str]:
    """The only row of the table, as people read it."""
    (row,) = tables.display(curves(runs)).to_dict("records")
    return row


@pytest.mark.parametrize(
    ("lr", "text"),
    [(10**-1.5, "0.03162"), (1e-4, "0.0001"), (0.1, "0.1"), (10.0, "10"), (3.162, "3.162")],
)
def test_learning_rates_have_up_to_four_significant_digits(lr, text):
    assert tables.lr_text(lr) == text


def test_a_row_holds_what_was_measured(table):
    row = shown(table({"adamw": {0.1: [1.0, 1.2], 1.0: [0.4, 0.6], 10.0: ["diverged", 0.9]}}))

    assert row == {
        "method": "AdamW",
        "best lr": "1",
        "loss there (seeds)": "0.500 ± 0.141 (2)",
        "usable width": "0.12",  # 0.075 of 0.6 nats on the left, divergence on the right
        "diverged": "1/6",
        "at chance": "0",
        "LR sens.": "0.517",  # (0.6 + 0 + 0.95) / 3
    }


def test_one_seed_shows_no_std(table):
    assert shown(table({"adamw": {1.0: [0.5]}}))["loss there (seeds)"] == "0.500 ± - (1)"


def test_runs_at_chance_are_counted(table):
    runs = table({"adamw": {0.1: [0.5, 1.9]}}).assign(at_chance=[False, True])

    assert shown(runs)["at chance"] == "1"


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ([1.9, 0.5, 1.9], "0.11"),
        ([1.9, 0.5, 0.5], ">= 1.05 (right)"),
        ([0.5, 0.5, 1.9], ">= 1.05 (left)"),
        ([0.5, 0.5, 0.5], ">= 2.00 (both)"),
        (["missing", 0.5, 1.9], ">= 0.05 (hole)"),
        (["running", 0.5, 0.5], ">= 1.00 (hole+right)"),
        (["failed", 0.5, "failed"], ">= 0.00 (hole)"),
        (["diverged", 0.5, "diverged"], "0.00"),
        (["diverged", "diverged", "diverged"], "-"),
    ],
)
def test_the_width_says_what_cuts_it(table, losses, text):
    runs = table({"adamw": {10.0**i: [loss] for i, loss in enumerate(losses)}})

    assert shown(runs)["usable width"] == text


@pytest.mark.parametrize("losses", [[0.1, 0.5, 0.5], [0.5, 0.5, 0.1], [0.1]])
def test_an_optimum_on_the_edge_is_said_to_be_there(table, losses):
    runs = table({"adamw": {10.0**i: [loss] for i, loss in enumerate(losses)}})

    assert shown(runs)["best lr"].endswith("*")


def test_a_sensitivity_over_part_of_the_grid_is_marked(table):
    assert shown(table({"adamw": {0.1: [0.5], 1.0: [0.6]}}))["LR sens."] == "0.050"
    assert shown(table({"adamw": {0.1: [0.5], 1.0: ["missing"]}}))["LR sens."] == "~0.000"


@pytest.mark.parametrize("outcome", ["diverged", "missing"])
def test_a_method_without_a_stable_run_has_dashes(table, outcome):
    row = shown(table({"adamw": {0.1: [outcome]}}))

    for column in ("best lr", "loss there (seeds)", "usable width", "LR sens."):
        assert row[column] == "-"


def test_losses_show_three_digits_and_three_decimals_or_powers_of_ten(table):
    assert shown(table({"adamw": {0.1: [0.00123]}}))["loss there (seeds)"].startswith("0.00123 ")
    assert shown(table({"adamw": {0.1: [12.3]}}, initial=20.0))["loss there (seeds)"].startswith(
        "12.300 "
    )
    assert shown(table({"adamw": {0.1: [1e-30]}}))["loss there (seeds)"].startswith("1.00e-30 ")
    assert shown(table({"adamw": {0.1: [-1.5]}}))["loss there (seeds)"].startswith("-1.500 ")


def test_the_text_fits_a_hundred_columns_at_its_widest(table):
    points = {
        1e-5: ["missing"] * 10,
        **{0.03162 * 10**i: [0.00123] * 10 for i in range(10)},
    }
    lines = tables.text(curves(table(dict.fromkeys(KNOWN, points)))).split("\n")

    assert any("(hole+right)" in line for line in lines)
    assert max(map(len, lines)) <= 100
    assert lines == [line.rstrip() for line in lines]


def test_columns_of_the_text_are_aligned(table):
    header, rule, *rows = tables.text(
        curves(table({"adamw": {0.1: [0.5]}, "muon_adam_momo": {0.1: [0.5]}}))
    ).split("\n")

    assert set(rule) == {"-"}
    assert {row.index("0.1*") for row in rows} == {header.index("best lr")}


def test_the_csv_reads_back_to_the_same_numbers(table):
    points = {0.1: [1.0, 1.2], 1 / 3: [0.4, 0.6], 10.0: ["diverged", 0.9]}
    robustness = tables.robustness(curves(table({"adamw": points, "scion": {0.1: ["missing"]}})))
    back = pd.read_csv(io.StringIO(robustness.to_csv(index=False)), keep_default_na=True)

    for column in ("best_lr", "best_loss", "best_loss_std", "width", "left", "lr_sensitivity"):
        np.testing.assert_array_equal(back[column], robustness[column].astype(float))
    assert list(back["diverged"]) == [1, 0]


def test_markdown_has_a_row_per_method(table):
    lines = tables.markdown(curves(table({"adamw": {0.1: [0.5]}}))).split("\n")

    assert lines[0].startswith("| method | best lr |")
    assert lines[1] == "| --- | --- | --- | --- | --- | --- | --- |"
    assert lines[2].startswith("| AdamW | 0.1* | 0.500 ± - (1) | >= 0.00 (both) |")


def test_latex_escapes_what_latex_would_misread(table):
    latex = tables.latex(curves(table({"my_method": {0.1: [0.5], 1.0: ["missing"]}})))

    assert r"my\_method & 0.1* & 0.500 $\pm$ - (1) & $\geq$ 0.00" in latex
    assert r"& $\sim$0.000 \\" in latex
    assert latex.index(r"\toprule") < latex.index(r"\midrule") < latex.index(r"\bottomrule")
    assert latex.startswith(r"\begin{tabular}{lllllll}")


def test_one_is_no_plural():
    assert [tables.plural(count, "round") for count in (0, 1, 2)] == [
        *("0 rounds", "1 round", "2 rounds")
    ]
    assert "within 1 decade of" in centred_sensitivity().name
    assert "within 2 decades of" in centred_sensitivity(2.0).name
