"""Tables that others made: read as they are meant, or refused with the line and what to do."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.checks import check_units, notes
from analysis.curves import curves
from analysis.outcomes import failed_though_finite, final, with_final
from analysis.sources import Source, Tables
from analysis.sources import read as read_source
from optlab.errors import ConfigError

GOOD = "method,lr,seed,final_loss,initial_loss\na,0.1,0,0.5,2\na,1,0,nan,2\n"


def read(tmp_path: Path, text: str, **options) -> Tables:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return read_source(Source(path, **options))


def error(tmp_path: Path, text: str, **options) -> str:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, text, **options)
    return str(raised.value)


class TestColumns:
    def test_the_least_table_is_method_lr_metric_and_an_initial_loss(self, tmp_path):
        found = read(tmp_path, "method,lr,final_loss\na,0.1,0.5\na,1,nan\n", initial=2.0)
        (curve,) = curves(found.runs)

        np.testing.assert_array_equal(curve.mean, [0.5, 2.0])
        np.testing.assert_array_equal(curve.n_diverged, [0, 1])
        assert "no column seed" in found.notes[0]

    def test_columns_are_renamed_and_rows_selected(self, tmp_path):
        text = "opt,eta,loss,exp\na,0.1,0.5,x\na,0.1,0.7,y\n"
        found = read(
            tmp_path,
            text,
            columns={"method": "opt", "lr": "eta", "final_loss": "loss"},
            where=[("exp", "y")],
            initial=2.0,
        )

        assert found.runs["final_loss"].tolist() == [0.7]

    def test_rows_are_selected_by_the_files_own_name_of_a_column_too(self, tmp_path):
        found = read(tmp_path, GOOD, columns={"method": "method", "lr": "lr"}, where=[("lr", "1")])
        assert found.runs["lr"].tolist() == [1]

        text = "opt name,lr,final_loss\na,0.1,0.5\nb,0.1,0.7\n"
        chosen = {"columns": {"method": "opt name"}, "where": [("opt name", "b")]}
        assert read(tmp_path, text, initial=2.0, **chosen).runs["final_loss"].tolist() == [0.7]

    def test_rows_are_selected_by_number_too(self, tmp_path):
        text = "method,lr,final_loss,wd\na,0.1,0.5,0.0\na,0.1,0.7,0.1\n"

        assert len(read(tmp_path, text, where=[("wd", "0")], initial=2.0).runs) == 1

    def test_an_accuracy_is_what_it_lacks_to_perfection(self, tmp_path):
        text = "method,lr,acc\na,0.1,0.9\na,1,0.7\n"
        found = read(tmp_path, text, metric="acc", higher_is_better=True, initial=0.1)
        (curve,) = curves(found.runs)

        np.testing.assert_allclose(curve.mean, [0.1, 0.3])
        assert curve.ceiling == pytest.approx(0.9)
        assert curve.unit == "1 - acc"

    def test_a_setting_tells_curves_apart(self, tmp_path):
        text = "method,lr,final_loss,wd\na,0.1,0.5,0\na,0.1,0.7,0.1\n"
        found = read(tmp_path, text, setting=["wd"], initial=2.0)

        assert [c.setting for c in curves(found.runs)] == ["wd=0.0", "wd=0.1"]

    def test_records_belong_to_runs(self, tmp_path):
        (tmp_path / "records.csv").write_text("run,step,val_loss\nr,0,2\nr,5,0.5\nother,5,1\n")
        text = "run,method,lr,final_loss,initial_loss\nr,a,0.1,0.5,2\n"
        found = read(tmp_path, text, records=tmp_path / "records.csv")

        assert found.records["step"].tolist() == [0, 5]
        assert (
            "Records of no run of the table are left out (1), the first of 'other'."
            in found.notes[-1]
        )


class TestMissingRows:
    """Seeds that a method has at some learning rates are planned at all of them."""

    TEXT = (
        "method,lr,seed,final_loss,initial_loss,wd,diverged\n"
        "a,0.1,0,0.5,2,0,0\na,0.1,1,0.6,2,0,0\na,1,0,0.4,2,0,0\n"
        "b,0.1,0,0.5,2,0,0\nb,1,0,0.6,2,0,0\n"
        "b,0.1,5,0.5,2,9,0\nb,1,5,0.6,2,9,0\n"
    )

    def test_a_seed_without_a_row_is_a_missing_run(self, tmp_path):
        found = read(tmp_path, self.TEXT, setting=["wd"])
        (a, *others) = curves(found.runs)

        np.testing.assert_array_equal(a.planned, [2, 2])
        np.testing.assert_array_equal(a.n, [2, 1])
        np.testing.assert_array_equal(a.mean, [0.55, 0.4])
        assert a.ceiling == 2
        assert all((c.n == c.planned).all() for c in others)  # seed 5 belongs to another curve
        assert found.notes[-1].startswith("1 run without a row, of seeds that the method has")

    def test_it_is_named_and_drawn_as_a_hole(self, tmp_path, capsys):
        path, out = tmp_path / "t.csv", tmp_path / "out"
        path.write_text(self.TEXT)
        words = ["--csv", str(path), "--setting", "wd", "--out", str(out)]

        assert main([*words, "--figures", "lr_sensitivity,coverage"]) == 0
        text = capsys.readouterr().out
        assert "t: 7 of 8 runs done" in text and "1 missing" in text
        assert "a (wd=0) lacks 1 of 4 runs: lr 1 (1 of 2 seeds lacking)" in text
        assert "launch" not in text
        points = pd.read_csv(out / "lr_sensitivity.csv").query("method == 'a'")
        assert points["seeds_planned"].tolist() == [2, 2]
        boxes = pd.read_csv(out / "coverage.csv").query("method == 'a' and lr == 1")
        assert boxes["missing"].tolist() == [1]
        assert boxes["without_result"].tolist() == ["a wd=0 lr=1 seed=1"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("text", "options", "message"),
        [
            ("methd,lr,final_loss\na,1,2\n", {}, "no column 'method'. Did you mean 'methd'"),
            ("eta,loss\n1,2\n", {}, "no columns 'method', 'lr', 'final_loss'."),
            ("eta,loss\n1,2\n", {}, "--columns method=NAME --columns lr=NAME --columns final_loss"),
            (GOOD, {"columns": {"methd": "method"}}, "It has: method (read as methd), lr, seed"),
            (GOOD.replace(",", ";"), {}, "its separator seems to be ';', expected a comma"),
            (GOOD.replace(",", "\t"), {}, "its separator seems to be a tab"),
            ("method,lr,seed,final_loss,initial_loss\n", {}, "has no rows below its head"),
            ("method,lr,final_loss\n,0.1,0.5\n", {"initial": 2.0}, "has no row with method, lr"),
            ("", {}, "cannot be read as CSV: No columns"),
            (GOOD, {"metric": "final_los"}, "no column 'final_los'. Did you mean 'final_loss'"),
            ("method,lr,final_loss\na,1,2\n", {}, "no column initial_loss"),
            (GOOD, {"where": [("method", "b")]}, "no row with method=b"),
            (GOOD, {"columns": {"method": "optimizer"}}, "no column 'optimizer'"),
            (GOOD + "a,x,0,0.5,2\n", {}, "line 4: expected a number as lr, found 'x'"),
            (GOOD + "a,3,0,high,2\n", {}, "line 4: expected a number as final_loss, found 'high'"),
            (GOOD + "a,3,0.5,0.5,2\n", {}, "line 4: expected a whole number as seed"),
            (GOOD + "a,0.1,0,0.6,2\n", {}, "lines 2 and 4 (a, lr=0.1). They differ in: the result"),
            (GOOD, {"higher_is_better": True}, "cannot be better than 1, found 2"),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, tmp_path, text, options, message):
        assert message in error(tmp_path, text, **options)

    def test_points_that_differ_in_a_column_name_it(self, tmp_path):
        text = "method,lr,final_loss,wd\na,0.1,0.5,0\na,0.1,0.7,0.1\n"

        assert "They differ in: wd. Keep some with --where" in error(tmp_path, text, initial=2.0)

    def test_so_do_points_of_which_some_have_no_setting(self, tmp_path):
        text = "method,lr,final_loss,setting,wd\na,0.1,0.5,,0\na,0.1,0.7,,0.1\na,1,0.5,x=1,0\n"

        assert "(a, lr=0.1). They differ in: wd." in error(tmp_path, text, initial=2.0)

    def test_rows_with_gaps_are_left_out_and_named(self, tmp_path):
        found = read(tmp_path, GOOD + "a,,0,0.5,2\n,1,0,0.5,2\na,2,,0.5,2\n")

        assert len(found.runs) == 2
        assert found.notes[0] == (
            "Rows without method or lr or seed are left out (3 of 5): lines 4, 5, 6."
        )

    def test_copies_count_once_and_are_named(self, tmp_path):
        found = read(tmp_path, GOOD + "a,0.1,0,0.5,2\n")

        assert len(found.runs) == 2
        assert found.notes[0] == "Copies of an earlier row count once (1 row): line 4."

    def test_the_unit_is_that_of_the_losses(self, tmp_path):
        text = "method,lr,final_loss,accuracy,unit\na,1,0.5,0.9,MSE\nb,1,0.7,0.8,\n"
        (curve, other) = curves(read(tmp_path, text, initial=2.0).runs)
        assert (curve.unit, other.unit) == ("MSE", "MSE")
        of_accuracy = read(tmp_path, text, initial=0.1, metric="accuracy", higher_is_better=True)
        assert curves(of_accuracy.runs)[0].unit == "1 - accuracy"

    def test_two_units_are_refused(self, tmp_path):
        text = "method,lr,final_loss,unit\na,1,0.5,nats\nb,1,0.7,bits\n"

        with pytest.raises(ConfigError, match=r"one unit .* nats \(1 run\), bits \(1 run\)"):
            check_units(read(tmp_path, text, initial=2.0).runs)

    def test_bits_among_nats_are_refused_without_a_column(self, table):
        runs = table({"adamw": {0.1: [0.5]}, "scion": {0.1: [0.7]}})
        runs["initial_loss"] = [2.0, 2.0 / np.log(2)]

        with pytest.raises(ConfigError, match="the factor between nats and bits"):
            check_units(runs)

    def test_a_method_that_starts_elsewhere_is_named(self, table):
        runs = table({name: {0.1: [0.5]} for name in ("adamw", "muonmax", "scion")})
        runs["initial_loss"] = [2.0, 2.0, 3.5]

        assert "Scion starts from a loss of 3.5, the others from about 2" in notes(runs, [])[0]

    def test_a_method_with_other_seeds_is_named(self, table):
        runs = table({name: {0.1: [0.5, 0.6]} for name in ("adamw", "muonmax", "scion")})
        runs.loc[runs["method"] == "scion", "seed"] += 5

        assert "Scion has the seeds 5, 6, not 0, 1 as most methods." in notes(runs, curves(runs))


class TestOutcomes:
    def test_a_finite_loss_that_shows_no_learning_is_a_failure(self, table):
        """Initial loss 2, chance 1.9, unigram 1.5."""
        runs = table({"adamw": {0.1: [1.2, 1.6, 1.95, 2.0, np.nan, "diverged"]}})
        runs = runs.assign(chance_loss=1.9, unigram_loss=1.5)

        assert failed_though_finite(runs).tolist() == ["", "unigram", "chance", "initial", "", ""]
        assert "no better than at initialisation (final loss >= initial loss)" in " ".join(
            notes(runs, [])
        )

    @pytest.mark.parametrize("text", ["first", "mean", "mean:0", "mean:x"])
    def test_a_final_metric_that_is_none_is_refused(self, text):
        with pytest.raises(ConfigError, match="Expected --final last"):
            final(text)

    def records(self, losses: list[float]) -> pd.DataFrame:
        steps = range(len(losses))
        return pd.DataFrame({"run": "000000000000", "step": steps, "val_loss": losses})

    def test_the_mean_of_the_last_evaluations_is_just_that(self, table):
        runs = table({"adamw": {0.1: [0.5]}})
        found = with_final(runs, self.records([2.0, 1.0, 0.7, 0.5]), final("mean:2"))

        assert found["final_loss"].tolist() == [pytest.approx(0.6)]
        assert with_final(runs, self.records([]), final("last")) is runs

    def test_a_nan_among_them_is_never_left_out(self, table):
        runs = table({"adamw": {0.1: [0.5]}})
        found = with_final(runs, self.records([2.0, 1.0, np.nan, 0.5]), final("mean:3"))

        assert curves(found)[0].n_diverged.tolist() == [1]

    def test_too_few_evaluations_are_refused(self, table):
        """The one before the first step is none."""
        runs = table({"adamw": {0.1: [0.5]}})

        with pytest.raises(ConfigError, match="first is run 000000000000 with 2"):
            with_final(runs, self.records([2.0, 1.0, 0.5]), final("mean:3"))


class TestCommand:
    def test_a_table_is_analysed_and_compared(self, tmp_path, capsys):
        rows = [
            f"{m},{lr},{seed},{loss + 0.01 * seed},2"
            for m, best in (("adamw", 0.5), ("scion", 0.9))
            for lr, loss in ((0.1, best + 0.3), (1, best), (10, best + 0.4))
            for seed in range(3)
        ]
        path = tmp_path / "t.csv"
        path.write_text("\n".join(["method,lr,seed,final_loss,initial_loss", *rows]))
        out = str(tmp_path / "out")

        assert main(["--csv", str(path), "--out", out, "--compare", "scion", "adamw"]) == 0
        text = capsys.readouterr().out
        assert "t: 18 of 18 runs done" in text and "launch.py" not in text
        assert "Scion and AdamW (3 seeds, not paired: no fingerprints for seed 0" in text
        assert "  Scion's best loss is 0.4 nats larger than AdamW's" in text
        assert "Are the differences resolved?" in text
        assert r"\textbf{0.510 $\pm$ 0.010 (3)}" in (tmp_path / "out/robustness.tex").read_text()
        assert "**0.510 ± 0.010 (3)**" in (tmp_path / "out/robustness.md").read_text()
        assert "**0.910" not in (tmp_path / "out/robustness.md").read_text()

    def test_a_claim_is_one_metric_and_not_corrected(self, tmp_path, capsys):
        rows = [
            f"{method},{lr},{seed},{best + 0.1 * abs(math.log10(lr)) + 0.03 * seed},2.0"
            for method, best in (("adamw", 0.5), ("scion", 0.56))
            for lr in (0.1, 1, 10)
            for seed in range(3)
        ]
        path = tmp_path / "t.csv"
        path.write_text("\n".join(["method,lr,seed,final_loss,initial_loss", *rows]))
        words = ["--csv", str(path), "--out", str(tmp_path / "out"), "--compare", "scion", "adamw"]

        assert main([*words, "--claim", "best loss"]) == 0
        text = capsys.readouterr().out
        block = text.split("one claim by itself")[1].split("\n\n")[0]
        assert block.count("best loss") == 1 and "usable width" not in block
        assert main([*words, "--claim", "best los"]) == 1
        assert "Did you mean 'best loss'?" in capsys.readouterr().err
        assert main([*words[:4], "--claim", "best loss"]) == 1
        assert "--compare A B" in capsys.readouterr().err

    def test_the_figures_are_those_of_the_command(self, tmp_path, capsys):
        path, out = tmp_path / "t.csv", tmp_path / "out"
        path.write_text(
            "method,lr,seed,final_loss,initial_loss\nadamw,1,0,0.5,2\nadamw,2,0,0.6,2\n"
        )
        words = ["--csv", str(path), "--out", str(out), "--figures"]

        assert main([*words, "coverage,tuning_budget"]) == 0
        drawn = {each.stem for each in out.glob("*.png")}
        assert drawn == {"coverage", "tuning_budget"}
        assert main([*words, "coverages"]) == 1
        assert "coverage" in capsys.readouterr().err

    def test_an_empty_table_writes_nothing(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "t.csv").write_text("method,lr,seed,final_loss,initial_loss\n")

        assert main(["--csv", "t.csv"]) == 1
        assert "has no rows" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]

    def test_the_folder_is_in_the_current_one_and_said_in_full(self, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "t.csv").write_text(GOOD)

        assert main(["--csv", "t.csv"]) == 0
        path = tmp_path / "results" / "t"
        assert f"Written to {path}" in " ".join(capsys.readouterr().out.split())
        assert (path / "lr_sensitivity.png").exists()

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--csv", "absent.csv"], "absent.csv cannot be read as CSV"),
            (["demo", "--csv", "t.csv"], "Expected a sweep or --csv FILE, found both"),
            (["demo", "--initial", "2"], "--initial says how to read a table"),
            (["--csv", "t.csv", "--columns", "a=b", "c=d"], "repeat it for another: --columns c=d"),
            (["--csv", "t.csv", "--columns", "x"], "Expected --columns NAME=VALUE, found 'x'"),
            (["--csv", "t.csv", "--final", "mean:2"], "give them with --records FILE"),
        ],
    )
    def test_bad_words_are_one_sentence(self, capsys, words, message):
        assert main(words) == 1
        assert message in capsys.readouterr().err


DATA = Path(os.environ.get("OPTLAB_DATA", "absent")) / "published_curves"
PUBLISHED = DATA / "stepback_records_final_seedmean.csv"


@pytest.fixture
def published() -> Path:
    """Final losses and accuracies of the Momo paper's experiments (arXiv 2305.07583)."""
    if not PUBLISHED.is_file():
        if os.environ.get("OPTLAB_REQUIRE_DATA") == "1":
            pytest.fail("OPTLAB_REQUIRE_DATA=1, and OPTLAB_DATA has no published_curves")
        pytest.skip("OPTLAB_DATA has no published_curves")
    return PUBLISHED


class TestPublishedTable:
    """What others computed from the same records: LR sensitivity of the training loss, clipped at
    ln 10; best validation accuracy, its learning rate, and the grid points within one point of it.
    """

    ROWS = (
        ("mnist_mlp", "adam", 0.9775, 1e-3, 1.174, [1e-3]),
        ("mnist_mlp", "momo-adam", 0.9796, 1e-2, 0.021, [1e-3, 1e-2, 0.1, 1, 10]),
        ("mnist_mlp", "sgd-m", 0.9773, 0.1, 0.869, [0.1, 1]),
        ("mnist_mlp", "momo", 0.9797, 1, 0.099, [0.1, 1, 10, 100, 1000]),
        ("cifar10_vit", "adam", 0.860, 3.16e-4, 0.877, [3.16e-4]),
        ("cifar10_vit", "momo-adam", 0.858, 1e-3, 0.393, [3.16e-4, 1e-3]),
        ("cifar10_vit", "sgd-m", 0.834, 0.316, 0.791, [0.316]),
        ("cifar10_vit", "momo", 0.854, 1, 0.635, [0.316, 1, 3.16]),
    )

    def robustness(self, out: Path, experiment: str, *words: str) -> pd.DataFrame:
        chosen = ["--where", f"experiment={experiment}", "--columns", "method=optimizer"]
        assert main(["--csv", str(PUBLISHED), *chosen, *words, "--out", str(out)]) == 0
        return pd.read_csv(out / "robustness.csv").set_index("method")

    @pytest.mark.parametrize("experiment", ["mnist_mlp", "cifar10_vit"])
    def test_it_is_reproduced_through_the_command(self, published, tmp_path, experiment):
        loss = self.robustness(
            *(tmp_path / "loss", experiment, "--metric", "final_train_loss"),
            *("--initial", str(np.log(10))),
        )
        accuracy = self.robustness(
            *(tmp_path / "accuracy", experiment, "--metric", "final_val_score"),
            *("--higher-is-better", "--initial", "0.1", "--width", "0.01:absolute"),
        )
        records = pd.read_csv(published)
        for name, method, best, best_lr, sensitivity, within in self.ROWS:
            if name == experiment:
                left, right = accuracy.loc[method, ["left", "right"]].astype(float)
                of_method = (records["experiment"] == name) & (records["optimizer"] == method)
                grid = records.loc[of_method, "lr"]
                inside = grid[(grid >= left * 0.999) & (grid <= right * 1.001)]

                assert loss.loc[method, "lr_sensitivity"] == pytest.approx(sensitivity, abs=5e-4)
                assert 1 - accuracy.loc[method, "best_loss"] == pytest.approx(best, abs=5.1e-4)
                assert accuracy.loc[method, "best_lr"] == pytest.approx(best_lr)
                assert inside.tolist() == pytest.approx(within)
