"""What ``analyse`` writes, and what it says about it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.curves import COLUMNS
from analysis.report import analyse
from optlab.errors import ConfigError

DONE = {0.1: [0.5, 0.6], 1.0: [0.2, 0.3], 10.0: ["diverged", "diverged"]}


def said(runs, records, out: Path, **options) -> str:
    options = {"name": "demo", "figures": [], **options}
    return analyse(runs, records, out=out, **options)


def test_the_last_line_is_the_path_of_the_figure(table, records, tmp_path):
    text = said(table({"adamw": DONE}), records, tmp_path / "a" / "b")

    assert Path(text.split("\n")[-1]) == tmp_path / "a" / "b" / "lr_sensitivity.png"
    assert Path(text.split("\n")[-1]).read_bytes().startswith(b"\x89PNG")


def test_every_figure_becomes_three_files_and_the_table_too(table, tmp_path):
    runs = table({"adamw": DONE})
    records = pd.DataFrame({"run": runs["run"], "step": 10, "val_loss": runs["final_loss"]})
    text = said(runs, records, tmp_path, figures=["loss_curves", "lr_sensitivity"])

    assert {path.name for path in tmp_path.iterdir()} == {
        *("loss_curves.csv", "loss_curves.pdf", "loss_curves.png"),
        *("lr_sensitivity.csv", "lr_sensitivity.pdf", "lr_sensitivity.png"),
        *("certificate.csv", "report.html"),
        *("robustness.csv", "robustness.md", "robustness.tex"),
    }
    assert text.endswith("loss_curves.png")


def test_fonts_are_embedded_as_truetype(table, records, tmp_path):
    said(table({"adamw": DONE}), records, tmp_path)
    pdf = (tmp_path / "lr_sensitivity.pdf").read_bytes()

    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf


def test_the_same_data_give_the_same_files(table, records, tmp_path):
    for name in ("one", "two"):
        said(table({"adamw": DONE}), records, tmp_path / name)

    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    assert b"CreationDate" not in (tmp_path / "one" / "lr_sensitivity.pdf").read_bytes()


def test_done_runs_are_counted_by_outcome(table, records, tmp_path):
    runs = table({"adamw": {0.1: [0.5, "diverged", "failed", "running", "missing", np.nan]}})

    head = said(runs, records, tmp_path).split("\n")[0]
    assert head == ("demo: 3 of 6 runs done (2 of them diverged), 1 failed, 1 running, 1 missing.")


def test_preempted_runs_are_named_where_there_are_some(table, records, tmp_path):
    runs = table({"adamw": {0.1: [0.5, "preempted"]}})

    assert "0 failed, 1 preempted, 0 running" in said(runs, records, tmp_path)


def test_holes_are_named_with_the_command_that_fills_them(table, records, tmp_path):
    points = {0.1: [0.5, 0.5], 1.0: [0.2, "missing"], 10.0: ["running", "failed"]}
    text = said(table({"adamw": points, "scion": DONE}), records, tmp_path)

    assert "  AdamW lacks 3 of 6 runs: lr 1 (1 of 2 seeds lacking), lr 10 (gap)\n" in text
    assert "Scion lacks" not in text
    assert "  failed (1): no memory\n" in text
    assert "python launch.py -m sweeps=demo\n" in text


def test_a_method_without_any_result_lacks_runs_everywhere(table, records, tmp_path):
    text = said(
        table({"adamw": DONE, "scion": {0.1: ["missing"], 1.0: ["missing"]}}), records, tmp_path
    )

    assert "  Scion lacks 2 of 2 runs: everywhere" in text
    assert "  Scion: no results yet." in text


def test_a_comparison_with_a_method_without_results_is_one_sentence(table, records, tmp_path):
    runs = table({"adamw": DONE, "scion": {0.1: ["missing"]}})
    text = said(runs, records, tmp_path, compare=("adamw", "scion"))

    assert "AdamW and Scion cannot be compared yet: Scion has no results so far." in text
    assert text.count("compared") == 1 and "nothing was learned" not in text


def test_the_command_of_a_changed_sweep_is_its_own(table, records, tmp_path):
    runs = table({"adamw": {0.1: ["missing"]}})
    text = said(runs, records, tmp_path, command="sweeps=demo model.width=8")

    assert text.endswith("python launch.py -m sweeps=demo model.width=8")


def test_a_complete_sweep_asks_for_nothing(table, records, tmp_path):
    text = said(table({"adamw": DONE}), records, tmp_path)

    assert "launch.py" not in text
    assert "lacks" not in text


@pytest.mark.parametrize("outcome", ["missing", "running", "failed"])
def test_a_sweep_without_results_says_which_command_launches_it(table, records, tmp_path, outcome):
    text = said(table({"adamw": {0.1: [outcome]}}), records, tmp_path)

    assert text.endswith(
        "There is nothing to analyse yet. To launch it: python launch.py -m sweeps=demo"
    )
    assert text.count("launch.py") == 1
    assert re.search(r"AdamW +- +- +- +0/0", text)
    assert not (tmp_path / "lr_sensitivity.png").exists()


def test_a_sweep_without_runs_is_no_error(records, tmp_path):
    text = said(pd.DataFrame(columns=list(COLUMNS)), records, tmp_path)

    assert text.startswith("demo: the sweep has no runs.")


def test_an_optimum_on_the_edge_is_certified_as_such(table, records, tmp_path):
    points = {0.001: [0.5], 0.01: [0.4], 0.1: [0.3]}
    text = said(table({"muonmax_momo": points, "adamw": DONE}), records, tmp_path)

    assert "inside the grid for 1 of 2 curves" in text
    assert (
        "  MuonMax-Momo: best lr 0.1 is the last of its grid (0.001 to 0.1): a larger one may be"
        in text
    )


@pytest.mark.parametrize(
    ("losses", "warning"),
    [
        ([0.1, 0.2, 0.3], "AdamW: best lr 1 is the first of its grid (1 to 100): a smaller one"),
        ([0.1], "AdamW: best lr 1 is the only point of its grid."),
        ([0.3, 0.1, "missing"], "AdamW: best lr 10 lies beside a point without results"),
        (["diverged", "diverged"], "AdamW: every run diverged, no best lr."),
        (["diverged", 2.0, "diverged"], "AdamW: best lr 10, but no loss below the initial one."),
    ],
)
def test_every_other_doubt_is_certified_too(table, records, tmp_path, losses, warning):
    runs = table({"adamw": {10.0**i: [loss] for i, loss in enumerate(losses)}})

    assert f"  {warning}" in said(runs, records, tmp_path)


def test_an_interior_optimum_raises_no_doubt(table, records, tmp_path):
    text = said(table({"adamw": DONE}), records, tmp_path)

    assert "inside the grid for 1 of 1 curves.\n\n" in text


def test_a_finished_run_with_a_nan_loss_is_named(table, records, tmp_path):
    text = said(table({"adamw": {0.1: [0.5, np.nan]}}), records, tmp_path)

    assert "1 finished with a non-finite final loss, counted as diverged: 000000000001" in text


def test_grids_that_differ_forbid_comparing_sensitivities(table, records, tmp_path):
    warning = "The grids differ, so it does not"
    same = said(table({"adamw": DONE, "scion": DONE}), records, tmp_path)
    other = said(table({"adamw": DONE, "scion": {0.1: [0.5]}}), records, tmp_path)

    assert warning not in same
    assert warning in other


def test_the_text_fits_a_hundred_columns(table, records, tmp_path):
    points = {10.0**i: [0.5, "missing", "failed"] for i in range(-5, 5)}
    text = said(table({"muon_adam_momo": points, "scion": DONE}), records, tmp_path)

    lines = [line for line in text.split("\n") if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 100


def test_an_unknown_figure_is_refused_before_anything_is_written(table, records, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'loss_curves'"):
        said(table({"adamw": DONE}), records, tmp_path, figures=["lr_sensitivity", "loss_curve"])

    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_sentence(table, records, tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"Cannot write .*robustness.csv .* --out DIR"):
        said(table({"adamw": DONE}), records, tmp_path / "file" / "results")


def test_no_half_written_file_is_left_where_another_stands(table, records, tmp_path):
    said(table({"adamw": DONE}), records, tmp_path)
    said(table({"adamw": DONE, "scion": DONE}), records, tmp_path)

    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert len(pd.read_csv(tmp_path / "robustness.csv")) == 2


def test_loss_curves_of_chosen_learning_rates_are_drawn_unasked(table, tmp_path):
    runs = table({"adamw": {0.1: [0.5], 1.0: [0.9]}})
    evaluations = [(run, step, 0.7) for run in runs["run"] for step in (0, 10)]
    of_runs = pd.DataFrame(evaluations, columns=["run", "step", "val_loss"])
    analyse(runs, of_runs, name="x", out=tmp_path, figures=[], lr="1")

    assert set(pd.read_csv(tmp_path / "loss_curves.csv")["lr"]) == {1.0}
    assert (tmp_path / "lr_sensitivity.csv").exists()


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ("0.2", "--lr 0.2: no method has that learning rate. The nearest of the grids is 0.1"),
        ("-1", "no method has that learning rate"),
        ("x", "such as 0.01,0.1; found 'x'"),
        (",", "such as 0.01,0.1; found ','"),
        ("nan", "found 'nan'"),
    ],
)
def test_a_learning_rate_that_nobody_has_is_refused(table, records, tmp_path, lr, message):
    runs = table({"adamw": {0.1: [0.5], 1.0: [0.9]}})

    with pytest.raises(ConfigError, match=re.escape(message)):
        analyse(runs, records, name="x", out=tmp_path / "new", figures=[], lr=lr)
    assert not (tmp_path / "new").exists()
