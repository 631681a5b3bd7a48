"""Figures over a second axis of the sweep, and over the steps of its runs."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from analysis.curves import Study, curves
from analysis.figures import coverage, heatmap, sensitivity_vs_scale, step_sizes
from analysis.layout import CannotDraw
from analysis.slices import slices, through_the_best
from analysis.style import RC

BOWL = {0.1: [0.9], 1.0: [0.5], 10.0: [0.8]}


def study_of(runs: pd.DataFrame, records: pd.DataFrame | None = None) -> Study:
    none = pd.DataFrame(columns=["run", "step", "val_loss"])
    return Study("demo", runs, none if records is None else records, curves(runs))


def in_settings(table, losses: dict[str, dict], method: str = "scion") -> pd.DataFrame:
    """One table of runs with the losses of each setting."""
    frames = [table({method: points}).assign(setting=words) for words, points in losses.items()]
    whole = pd.concat(frames, ignore_index=True)
    return whole.assign(run=[f"{i:012x}" for i in range(len(whole))])


def drawn(module, study: Study) -> tuple[Figure, pd.DataFrame]:
    with mpl.rc_context(RC):
        return module.draw(study)


class TestSlices:
    def test_an_axis_is_a_family_of_curves_that_differ_in_it_alone(self, table):
        runs = in_settings(table, {f"a={a} b={b}": BOWL for a in (1, 2, 10) for b in ("x", "y")})
        found = slices(curves(runs))

        assert [(each.key, each.fixed, each.values) for each in found] == [
            ("a", "b=x", ("1", "2", "10")),
            ("a", "b=y", ("1", "2", "10")),
            ("b", "a=1", ("x", "y")),
            ("b", "a=2", ("x", "y")),
            ("b", "a=10", ("x", "y")),
        ]
        assert [each.is_numeric for each in found] == [True, True, False, False, False]

    def test_the_slice_through_the_best_loss_is_chosen(self, table):
        best = {0.1: [0.9], 1.0: [0.1], 10.0: [0.8]}
        runs = in_settings(
            table, {"a=1 b=x": BOWL, "a=2 b=x": BOWL, "a=1 b=y": BOWL, "a=2 b=y": best}
        )
        chosen = through_the_best(slices(curves(runs)))

        assert [(each.key, each.fixed) for each in chosen] == [("a", "b=y"), ("b", "a=2")]

    def test_a_method_in_one_setting_has_no_second_axis(self, table):
        assert slices(curves(table({"scion": BOWL}))) == []


class TestHeatmap:
    def test_every_cell_is_a_mean_over_seeds_and_the_best_ones_are_marked(self, table):
        runs = in_settings(
            table,
            {
                "optimizer.weight_decay=0.1": {0.1: [0.9, 0.7], 1.0: [0.5, 0.5]},
                "optimizer.weight_decay=0.01": {0.1: [0.4, 0.2], 1.0: [0.6, 0.6]},
            },
        )
        figure, cells = drawn(heatmap, study_of(runs))
        (mesh,) = figure.axes[0].collections[:1]

        assert list(cells["value"]) == ["0.01", "0.01", "0.1", "0.1"]
        np.testing.assert_allclose(cells["mean"], [0.3, 0.6, 0.8, 0.5])
        np.testing.assert_allclose(np.ravel(mesh.get_array()), cells["mean"])
        assert list(cells["best_of_row"]) == [True, False, False, True]
        assert list(cells["best"]) == [True, False, False, False]
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert labels == ["0.01", "0.1"]
        assert figure.axes[0].get_ylabel() == "weight_decay"

    def test_holes_are_hatched_and_divergence_is_crossed(self, table):
        runs = in_settings(
            table,
            {"a=1": {0.1: ["missing"], 1.0: ["diverged"]}, "a=2": {0.1: [0.5], 1.0: [0.6]}},
        )
        figure, cells = drawn(heatmap, study_of(runs))
        crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
        hatched = [each for each in figure.axes[0].collections if each.get_hatch()]

        assert [line.get_xdata()[0] for line in crosses] == [1]
        assert len(hatched[0].get_paths()) == 1
        np.testing.assert_array_equal(np.isnan(cells["mean"]), [True, False, False, False])
        labels = {text.get_text() for text in figure.legends[0].get_texts()}
        assert {"no result yet", "diverged (thin: some seeds)"} <= labels

    def test_a_sweep_without_a_second_axis_gets_a_sentence(self, table):
        with pytest.raises(CannotDraw, match="needs a second axis besides the learning rate"):
            heatmap.draw(study_of(table({"adamw": BOWL})))


class TestSensitivityVsScale:
    def test_three_numbers_per_value_of_the_axis(self, table):
        losses = {f"model.width={width}": BOWL for width in (8, 16, 128)}
        figure, points = drawn(sensitivity_vs_scale, study_of(in_settings(table, losses)))

        assert list(points["value"]) == [8, 16, 128] * 3
        by_unit = points.groupby("unit", sort=False)["estimate"].first()
        assert by_unit["nats"] == pytest.approx((0.4 + 0.3) / 3)
        assert by_unit["lr"] == pytest.approx(1.0)
        assert [axes.get_xlabel() for axes in figure.axes] == ["model.width"] * 3
        assert figure.axes[0].get_xscale() == "log"

    def test_axes_of_the_problem_go_before_those_of_the_optimizer(self, table):
        losses = {
            f"model.width={width} optimizer.weight_decay={decay}": BOWL
            for width in (8, 16)
            for decay in (0.0, 0.1)
        }
        _, points = drawn(sensitivity_vs_scale, study_of(in_settings(table, losses)))

        assert set(points["axis"]) == {"model.width"}

    def test_an_axis_of_words_gets_a_sentence(self, table):
        losses = {f"optimizer.product={name}": BOWL for name in ("Max", "Hybrid")}
        with pytest.raises(CannotDraw, match="an axis of numbers"):
            sensitivity_vs_scale.draw(study_of(in_settings(table, losses)))


def stepped(runs: pd.DataFrame, sizes: dict[float, list[float]], **more: list[float]):
    """Records at steps 0, 10, 30; ``sizes``: learning rate -> the step sizes there."""
    rows = [
        {"run": run, "step": step, "lr": lr, "step_size": size, "val_loss": 1.0}
        | {key: values[k] for key, values in more.items()}
        for run, lr in zip(runs["run"], runs["lr"], strict=True)
        for k, (step, size) in enumerate(zip((0, 10, 30), sizes[lr], strict=True))
    ]
    return pd.DataFrame(rows)


class TestStepSizes:
    def test_seeds_are_averaged_geometrically_and_the_cap_is_drawn(self, table):
        runs = table({"momo": {1.0: [0.5, 0.5]}})
        records = stepped(runs, {1.0: [1.0, 0.1, 0.1]})
        records.loc[4:, "step_size"] = 0.001
        figure, points = drawn(step_sizes, study_of(runs, records))

        assert list(points["step"]) == [10, 30]
        np.testing.assert_allclose(points["step_size"], [0.01, 0.01])
        dotted, solid = figure.axes[0].lines
        np.testing.assert_allclose(dotted.get_ydata(), [1.0, 1.0])
        np.testing.assert_allclose(solid.get_ydata(), [0.01, 0.01])

    def test_the_binding_share_weighs_records_by_the_steps_that_they_cover(self, table):
        runs = table({"momo": {1.0: [0.5]}})
        records = stepped(runs, {1.0: [1.0, 1.0, 0.5]}, capped=[np.nan, 1.0, 0.25])
        figure, points = drawn(step_sizes, study_of(runs, records))
        (line,) = figure.axes[1].lines

        assert list(points["binding"]) == [1.0, 0.25]
        np.testing.assert_allclose(line.get_ydata(), [(10 * 1.0 + 20 * 0.25) / 30])

    def test_without_that_column_the_recorded_steps_count(self, table):
        runs = table({"momo": {1.0: [0.5]}})
        records = stepped(runs, {1.0: [1.0, np.float32(1.0) * (1 - 1e-7), 0.5]})
        _, points = drawn(step_sizes, study_of(runs, records))

        assert list(points["binding"]) == [1.0, 0.0]

    def test_methods_without_a_rule_are_left_out(self, table):
        runs = table({"adamw": {1.0: [0.5]}, "momo": {1.0: [0.5]}})
        records = stepped(runs, {1.0: [1.0, 1.0, 1.0]})
        records.loc[records["run"] == runs["run"][1], "step_size"] = 0.5
        figure, points = drawn(step_sizes, study_of(runs, records))

        assert set(points["method"]) == {"momo"}
        assert len(figure.axes) == 3  # its panel, the share of capped steps, the colour bar

    def test_a_method_whose_cap_always_binds_has_a_rule_all_the_same(self, table):
        runs = table({"momo": {1.0: [0.5]}})
        records = stepped(runs, {1.0: [1.0, 1.0, 1.0]}, capped=[np.nan, 1.0, 1.0])

        assert list(drawn(step_sizes, study_of(runs, records))[1]["binding"]) == [1.0, 1.0]

    def test_a_sweep_without_such_methods_gets_a_sentence(self, table):
        runs = table({"adamw": {1.0: [0.5]}})
        for records in (None, stepped(runs, {1.0: [1.0, 1.0, 1.0]})):
            with pytest.raises(CannotDraw, match="no run with records has a step-size rule"):
                step_sizes.draw(study_of(runs, records))


class TestCoverage:
    def test_every_run_is_counted_where_it_stands(self, table):
        runs = table({"adamw": {0.1: [0.5, "missing"], 1.0: ["failed", "diverged"]}})
        runs.loc[0, "at_chance"] = True
        figure, cells = drawn(coverage, study_of(runs))

        assert list(cells["planned"]) == [2, 2]
        assert list(cells["done"]) == [1, 1]
        counted = cells[list(coverage.LOOKS)].sum()
        assert counted[counted > 0].to_dict() == {
            "at chance": 1,
            "diverged": 1,
            "failed": 1,
            "missing": 1,
        }
        assert list(cells["without_result"]) == [runs["run"][1], runs["run"][2]]
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert texts == ["at chance (1)", "diverged (1)", "failed (1)", "missing (1)"]
        assert figure.axes[0].get_title() == "demo: 2 of 4 runs have a result"

    def test_a_certified_run_has_a_result_that_nobody_trained(self, table):
        runs = table({"momo": {0.1: [0.5], 1.0: [0.5]}})
        runs = runs.assign(certified_by=["", runs["run"][0]])
        _, cells = drawn(coverage, study_of(runs))

        assert list(cells["certified"]) == [0, 1]
        assert list(cells["done"]) == [1, 1]

    def test_methods_with_grids_of_their_own_share_the_columns(self, table):
        runs = table({"adamw": {0.1: [0.5], 1.0: [0.5]}, "scion": {1.0: [0.5], 3.0: [0.5]}})
        figure, _ = drawn(coverage, study_of(runs))

        assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["0.1", "1", "3"]
