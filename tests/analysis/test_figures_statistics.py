"""Figures of metrics: widths with intervals, tuning budgets, performance profiles."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from analysis.curves import Study, curves
from analysis.figures import performance_profile, tuning_budget, width_by_method
from analysis.layout import CannotDraw
from analysis.robustness import usable_width, width
from analysis.statistics import interval
from analysis.style import RC

BOWL = {0.1: [0.90, 0.94], 1.0: [0.50, 0.52], 10.0: [0.80, 0.86]}
PLATEAU = {0.1: [0.90, 0.94], 1.0: [0.50, 0.52], 10.0: [0.51, 0.51]}


def study_of(runs: pd.DataFrame, records: pd.DataFrame | None = None) -> Study:
    none = pd.DataFrame(columns=["run", "step", "val_loss"])
    return Study("demo", runs, none if records is None else records, curves(runs))


def drawn(module, study: Study):
    with mpl.rc_context(RC):
        return module.draw(study)


class TestWidthByMethod:
    def test_each_row_is_a_width_with_its_interval(self, table):
        study = study_of(table({"adamw": BOWL, "scion": PLATEAU}))
        figure, rows = drawn(width_by_method, study)

        for curve, row in zip(study.curves, rows.to_dict("records"), strict=True):
            found = interval(curve, width(0.05))
            assert row["width"] == pytest.approx(usable_width(curve).decades)
            assert (row["low"], row["high"]) == (found.low, found.high)
        assert list(rows["right_bound"]) == ["crossing", "edge"]
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert labels == ["AdamW", "Scion"]

    def test_it_is_the_width_that_the_study_asks_for(self, table):
        runs = table({"adamw": BOWL})
        found = curves(runs)
        study = Study("demo", runs, pd.DataFrame(), found, 0.3, "absolute")
        figure, rows = drawn(width_by_method, study)

        assert rows["width"][0] == pytest.approx(usable_width(found[0], 0.3, "absolute").decades)
        assert "within 0.3 of the best" in figure.axes[0].get_xlabel()

    def test_a_width_that_the_grid_cuts_has_an_arrow_instead_of_an_end(self, table):
        figure, rows = drawn(width_by_method, study_of(table({"scion": PLATEAU})))
        arrows = [text for text in figure.axes[0].texts if text.get_visible() and text.arrow_patch]

        assert np.isinf(rows["high"][0])
        assert len(arrows) == 1
        figure, _ = drawn(width_by_method, study_of(table({"adamw": BOWL})))
        assert not [t for t in figure.axes[0].texts if t.get_visible() and t.arrow_patch]

    @pytest.mark.parametrize(
        ("points", "words"),
        [
            ({0.1: ["missing"]}, "no results yet"),
            ({0.1: ["diverged"]}, "nothing learned"),
            ({0.1: [1.9], 1.0: [0.5], 10.0: [1.9]}, "0.11, 1 seed"),
        ],
    )
    def test_what_has_no_interval_says_why(self, table, points, words):
        figure, _ = drawn(width_by_method, study_of(table({"adamw": points})))

        assert words in [text.get_text() for text in figure.axes[0].texts]


class TestTuningBudget:
    def test_one_trial_costs_the_mean_of_the_grid_and_many_find_its_best(self, table):
        _, points = drawn(tuning_budget, study_of(table({"adamw": BOWL})))
        by_trials = points.set_index("trials")["expected_best"]

        assert by_trials[1] == pytest.approx((0.92 + 0.51 + 0.83) / 3)
        assert by_trials[100] == pytest.approx(0.51)
        assert (np.diff(by_trials) <= 0).all()

    def test_a_method_with_a_hole_is_named_without_a_line(self, table):
        holed = {**BOWL, 10.0: ["missing", "missing"]}
        figure, points = drawn(tuning_budget, study_of(table({"adamw": BOWL, "scion": holed})))
        texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]

        assert "Scion (holes in its grid)" in texts
        assert points.loc[points["method"] == "scion", "expected_best"].isna().all()
        assert list(points.groupby("method")["points_done"].first()) == [3, 2]

    def test_a_sweep_with_holes_everywhere_gets_a_sentence(self, table):
        with pytest.raises(CannotDraw, match="at every learning rate of its grid"):
            tuning_budget.draw(study_of(table({"adamw": {**BOWL, 10.0: ["missing"]}})))


class TestPerformanceProfile:
    @staticmethod
    def problems(table, losses: dict[str, dict[str, float]]) -> Study:
        """Problem -> method -> its best loss, reached after 10 steps per hundredth of a nat."""
        frames = []
        for problem, methods in losses.items():
            points = {m: {0.1: [0.9], 1.0: [best], 10.0: [0.9]} for m, best in methods.items()}
            frames.append(table(points).assign(dataset=problem))
        runs = pd.concat(frames, ignore_index=True)
        runs["run"] = [f"{i:012x}" for i in range(len(runs))]
        records = pd.DataFrame(
            [
                {"run": run, "step": step, "val_loss": 2.0 if step < 100 * loss else loss}
                for run, loss in zip(runs["run"], runs["final_loss"], strict=True)
                for step in range(0, 101, 10)
            ]
        )
        return study_of(runs, records)

    def test_each_method_is_the_best_on_its_share_of_the_problems(self, table):
        losses = {
            "digits": {"adamw": 0.4, "scion": 0.2},
            "mnist": {"adamw": 0.4, "scion": 0.2},
            "shakespeare": {"adamw": 0.4, "scion": 0.8},
        }
        _, points = drawn(performance_profile, self.problems(table, losses))
        steps = points.loc[points["cost"] == performance_profile.STEPS]
        at_one = steps.groupby("method")["share"].first()
        at_last = steps.groupby("method")["share"].last()

        assert set(points["problems"]) == {3}
        assert at_one.to_dict() == {"adamw": pytest.approx(1 / 3), "scion": pytest.approx(2 / 3)}
        # AdamW's 40 steps are twice Scion's 20; on the last problem Scion never gets there
        assert at_last.to_dict() == {"adamw": 1.0, "scion": pytest.approx(2 / 3)}
        adamw = steps.loc[steps["method"] == "adamw"].set_index("tau")["share"]
        assert adamw[adamw.index < 1.99].max() == pytest.approx(1 / 3)
        assert adamw[adamw.index > 2.01].min() == 1.0

    def test_sensitivities_over_different_grids_are_not_ranked(self, table):
        study = self.problems(table, {k: {"adamw": 0.4, "scion": 0.2} for k in ("a", "b")})
        figure, both = performance_profile.draw(study)
        narrow = (study.runs["method"] == "scion") & (study.runs["dataset"] == "b")
        runs = study.runs.loc[~(narrow & (study.runs["lr"] == 10))]
        figure, points = performance_profile.draw(study_of(runs, study.records))
        words = [text.get_text() for text in figure.axes[1].texts]

        assert set(both["cost"]) == {performance_profile.STEPS, performance_profile.SENSITIVITY}
        assert set(points["cost"]) == {performance_profile.STEPS}
        assert words == [performance_profile.NO_PROFILE]

    def test_settings_of_the_optimizer_are_methods_of_their_own(self, table):
        study = self.problems(table, {"a": {"adamw": 0.4}, "b": {"adamw": 0.4}})
        frames = [
            study.runs.assign(setting=f"optimizer.weight_decay={w}", run=study.runs["run"] + str(w))
            for w in (0, 1)
        ]
        both = study_of(pd.concat(frames, ignore_index=True))
        _, points = drawn(performance_profile, both)

        assert set(points["label"]) == {
            "AdamW (optimizer.weight_decay=0)",
            "AdamW (optimizer.weight_decay=1)",
        }

    def test_one_problem_gets_a_sentence(self, table):
        with pytest.raises(CannotDraw, match="has results on 1"):
            performance_profile.draw(study_of(table({"adamw": BOWL})))
