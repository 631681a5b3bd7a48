"""Sweeps in two stages: the second is drawn for what it is, and enters no curve."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.curves import Study, curves
from analysis.export import write
from analysis.figures import coverage, second_stage
from analysis.layout import CannotDraw
from analysis.report import analyse
from analysis.sources import Source, read
from analysis.stages import Stages, columns, split, text
from analysis.style import RC

BOWL = {0.1: [0.9, 0.8], 1.0: [0.5, 0.4], 10.0: [0.8, 0.7]}
AXIS = "optimizer.norms.matrix.scale"


@pytest.fixture
def none() -> pd.DataFrame:
    return pd.DataFrame(columns=["run", "step", "val_loss"])


def staged(table, points: dict[str, dict[str, list]], axis: str = AXIS):
    """Runs and stages: a bowl per method, and at lr 1 the losses of each value of the axis.

    The value 1.0 is the first stage's own.
    """
    first = table(dict.fromkeys(points, BOWL)).assign(setting="")
    second: dict[str, str] = {}
    frames = [first]
    for method, values in points.items():
        for value, losses in values.items():
            mine = table({method: {1.0: losses}}).assign(setting="")
            mine["run"] = [f"{method[:3]}{value}{seed:04d}" for seed in range(len(mine))]
            if value == "1.0":
                mine = first[(first["method"] == method) & (first["lr"] == 1.0)]
            else:
                frames.append(mine)
            second.update(dict.fromkeys(mine["run"], f"{axis}={value}"))
    runs = pd.concat(frames, ignore_index=True)
    return runs, Stages(set(first["run"]), second, [axis])


def study_of(runs: pd.DataFrame, stages: Stages, records: pd.DataFrame) -> Study:
    first, second = split(runs, stages)
    return Study("demo", runs, records, curves(first), second=second, second_axes=stages.axes)


TWO = {
    "muon_adam": {"0.5": [0.6, 0.7], "1.0": [0.5, 0.4], "4.0": ["diverged", 1.0]},
    "scion": {"0.5": [0.3, 0.2], "1.0": [0.5, 0.4], "4.0": [0.9, "missing"]},
}


def test_the_second_stage_enters_no_curve(table, none):
    runs, stages = staged(table, TWO)
    study = study_of(runs, stages, none)
    alone = curves(runs[runs["run"].isin(list(stages.first))])

    assert [curve.setting for curve in study.curves] == ["", ""]
    for mine, other in zip(study.curves, alone, strict=True):
        assert mine.lr.tolist() == other.lr.tolist() == [0.1, 1.0, 10.0]
        assert mine.mean.tolist() == other.mean.tolist()
    assert len(study.second) == 6
    assert {tuple(curve.lr) for curve in study.second} == {(1.0,)}


def test_its_figure_shows_means_ranges_holes_and_divergence(table, none):
    with mpl.rc_context(RC):
        figure, points = second_stage.draw(study_of(*staged(table, TWO), none))
        figure.draw_without_rendering()
    found = {(row.method, row.value): row for row in points.itertuples()}

    assert len(found) == 6
    assert found["muon_adam", "1.0"].mean == pytest.approx(0.45)  # the first stage's own
    assert (found["scion", "0.5"].low, found["scion", "0.5"].high) == (0.2, 0.3)
    assert found["muon_adam", "4.0"].mean == pytest.approx(1.5)  # initial loss 2 and 1.0
    assert found["muon_adam", "4.0"].seeds_diverged == 1
    assert (found["scion", "4.0"].seeds_done, found["scion", "4.0"].seeds_planned) == (1, 2)
    assert figure.axes[0].get_xscale() == "log" and figure.axes[0].get_xlabel() == AXIS
    labels = [entry.get_text() for entry in figure.legends[0].get_texts()]
    assert labels == ["MuonAdam, lr 1", "Scion, lr 1", "seeds lacking", "diverged"]


def test_values_that_are_words_stand_side_by_side(table, none):
    points = {"scion": {"cosine": [0.3], "linear": [0.4]}}
    with mpl.rc_context(RC):
        figure, _ = second_stage.draw(study_of(*staged(table, points, "schedule.kind"), none))

    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["cosine", "linear"]


def test_without_results_or_a_second_stage_it_is_a_sentence(table, none):
    missing = {"scion": {"0.5": ["missing", "missing"], "4.0": ["running", "failed"]}}
    with pytest.raises(CannotDraw, match="no results"):
        second_stage.draw(study_of(*staged(table, missing), none))
    with pytest.raises(CannotDraw, match="'then' in its file"):
        second_stage.draw(Study("demo", table({"scion": BOWL}), none, []))


def test_the_text_names_the_best_value_and_says_when_it_is_an_end(table):
    _, second = split(*staged(table, TWO))

    assert text(second, [AXIS]) == [
        "Second stage, at the best learning rate of each curve of the first:",
        f"  MuonAdam, lr 1: {AXIS} 1.0 is best with 0.45 (2 seeds).",
        f"  Scion, lr 1: {AXIS} 0.5 is best with 0.25 (2 seeds), an end of what was tried; 1 run "
        "lacking.",
    ]


def test_coverage_shows_the_runs_of_both_stages(table, none):
    runs, stages = staged(table, TWO)
    _, points = coverage.draw(study_of(runs, stages, none))

    assert points["label"].nunique() == 2 + 6
    assert points["planned"].sum() == len(runs) + 4  # two points of two seeds are in both


def test_a_report_of_two_stages_has_a_row_per_curve_of_the_first(table, none, tmp_path: Path):
    runs, stages = staged(table, TWO)
    said = analyse(
        runs,
        none,
        name="demo",
        out=tmp_path,
        figures=["lr_sensitivity", "second_stage"],
        stages=stages,
    )

    assert len(pd.read_csv(tmp_path / "robustness.csv")) == 2
    assert len(pd.read_csv(tmp_path / "lr_sensitivity.csv")) == 6
    assert "Second stage, at the best learning rate" in said
    assert f"Scion ({AXIS}=4.0) lacks 1 of 2 runs" in said
    assert (tmp_path / "report.html").read_text().count(f"{AXIS}=4.0") > 1


def test_an_exported_sweep_has_both_stages_again(table, none, tmp_path: Path):
    """Ids, settings and axes; runs of the first stage alone, of the second alone, and of both."""
    runs, stages = staged(table, TWO)
    write(tmp_path / "runs.csv", columns(runs, stages), none.assign(accuracy=[]))
    found = read(Source(path=tmp_path / "runs.csv"))

    assert found.stages == Stages(set(stages.first), dict(stages.second), [AXIS])
    assert len(found.runs) == len(runs)
    again, before = (split(*each) for each in ((found.runs, found.stages), (runs, stages)))
    assert text(again[1], [AXIS]) == text(before[1], [AXIS])
    for mine, other in zip(curves(again[0]), curves(before[0]), strict=True):
        assert (mine.lr.tolist(), mine.mean.tolist()) == (other.lr.tolist(), other.mean.tolist())


def test_the_file_of_such_a_sweep_draws_the_second_stage_too(table, none, tmp_path: Path):
    runs, stages = staged(table, TWO)
    write(tmp_path / "runs.csv", columns(runs, stages), none)

    assert main(["--csv", str(tmp_path / "runs.csv"), "--out", str(tmp_path / "csv")]) == 0

    assert len(pd.read_csv(tmp_path / "csv" / "second_stage.csv")) == 6
    assert len(pd.read_csv(tmp_path / "csv" / "robustness.csv")) == 2


def test_a_table_without_these_columns_has_one_stage(table, none, tmp_path: Path):
    write(tmp_path / "runs.csv", table({"scion": BOWL}), none)

    assert read(Source(path=tmp_path / "runs.csv")).stages is None
