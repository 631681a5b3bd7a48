"""``python -m analysis``: from a real store, without the libraries that only training needs."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis import sweeps
from analysis.__main__ import main
from analysis.sources import Source
from optlab.certify import Certified
from optlab.config import compose_run
from optlab.errors import ConfigError
from optlab.launch import standing
from optlab.launch.queue import Job, NoSlurm
from optlab.store import Record, Result, RunStore, write_json
from optlab.sweep import Sweep, ad_hoc

NEVER = {"torch", "wandb", "sklearn", "submitit", "matplotlib.pyplot"}


def sweep_of(tmp_path: Path, *overrides: str) -> Sweep:
    """A sweep of AdamW, four runs and more by the overrides, in a store of its own."""
    return ad_hoc(
        [
            *("optimizer=adamw", "optimizer.lr=0.001,0.01", "seed=0,1"),
            *(f"runtime.runs={tmp_path}/runs", f"runtime.results={tmp_path}/results"),
            *overrides,
        ]
    )


def finish(store: RunStore, sweep: Sweep, losses: list[float]) -> None:
    """Give the first runs of the sweep a result, as training does."""
    for run, loss in zip(sweep.runs, losses, strict=False):
        store.freeze(run)
        for step, value in ((0, 2.3), (100, loss)):
            store.append(run.id, Record(step, step, 0.0, value, value, run.lr, run.lr, 1.0))
        shared = {"cause": "", "step": 100, "diverged_at": None, "initial_loss": 2.3}
        prints = {"weights_fingerprint": "w", "batch_fingerprint": "b"}
        store.finish(
            run.id,
            Result(
                outcome="finished",
                final_loss=loss,
                final_train_loss=loss,
                accuracy=0.9,
                chance_loss=2.3,
                at_chance=False,
                **shared,
                **prints,
            ),
        )


def test_a_sweep_of_the_store_is_analysed_into_its_results_folder(tmp_path):
    sweep = sweep_of(tmp_path)
    finish(RunStore(tmp_path / "runs"), sweep, [0.5, 0.3, 0.5, 0.3])
    text = sweeps.analyse_sweep(sweep)

    assert "4 of 4 runs done (0 of them diverged)" in text
    assert text.endswith(f"{tmp_path}/results/{sweep.name}/lr_sensitivity.png")
    assert Path(text.split("\n")[-1]).exists()


def test_a_sweep_that_is_half_done_names_its_own_command(tmp_path):
    sweep = sweep_of(tmp_path)
    finish(RunStore(tmp_path / "runs"), sweep, [0.5, 0.3, 0.5])
    text = sweeps.analyse_sweep(sweep, tmp_path / "here")

    assert "3 of 4 runs done" in text
    assert f"python launch.py -m {sweep.command}" in text
    assert text.endswith(f"{tmp_path}/here/lr_sensitivity.png")


def test_an_axis_that_the_table_of_runs_does_not_show_separates_curves(tmp_path):
    sweep = sweep_of(tmp_path, "model.width=8,16")
    finish(RunStore(tmp_path / "runs"), sweep, [0.5] * len(sweep.runs))

    assert set(sweeps.settings(sweep)) == {"model.width=8", "model.width=16"}
    assert "AdamW (model.width=8)" in sweeps.analyse_sweep(sweep)


def certified_sweep(tmp_path: Path) -> Sweep:
    """MuonMax-Momo at two learning rates, and a larger one that would repeat the second."""
    place = f"runtime.runs={tmp_path}/runs", f"runtime.results={tmp_path}/results"
    sweep = ad_hoc(["optimizer=muonmax_momo", "optimizer.lr=0.1,1", *place])
    run = compose_run(["optimizer=muonmax_momo", "optimizer.lr=10", *place])[0]
    store = RunStore(tmp_path / "runs")
    finish(store, sweep, [0.5, 0.3])
    source = store.result(sweep.runs[1].id)
    assert source is not None
    store.finish(sweep.runs[1].id, replace(source, capped_steps=0))
    return replace(
        sweep,
        certified=(Certified(run, sweep.runs[1]),),
        certified_points=({"optimizer": "muonmax_momo", "optimizer.lr": 10.0},),
    )


def test_a_certified_run_has_the_evaluations_of_the_one_that_it_repeats(tmp_path):
    sweep = certified_sweep(tmp_path)
    by = sweep.runs[1]
    store = RunStore(tmp_path / "runs")
    store.append(by.id, Record(110, 110, 0.0, 0.2, 0.2, by.lr, by.lr, 1.0))
    store.append(sweep.runs[0].id, Record(110, 110, 0.0, 0.4, 0.4, 0.1, 0.1, 1.0))
    sweeps.analyse_sweep(sweep, final="mean:2")
    points = pd.read_csv(tmp_path / "results" / sweep.name / "lr_sensitivity.csv")

    assert points["mean"].tolist() == pytest.approx([0.45, 0.25, 0.25])


def test_a_certified_run_that_was_trained_after_all_has_its_own_evaluations(tmp_path):
    sweep = certified_sweep(tmp_path)
    finish(RunStore(tmp_path / "runs"), replace(sweep, runs=(sweep.certified[0].run,)), [0.7])
    sweeps.analyse_sweep(sweep, final="mean:1")
    points = pd.read_csv(tmp_path / "results" / sweep.name / "lr_sensitivity.csv")

    assert points["mean"].tolist() == pytest.approx([0.5, 0.3, 0.7])


def test_runs_are_queued_or_lost_as_the_status_says(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path)
    store = RunStore(tmp_path / "runs")
    finish(store, sweep, [0.5, 0.3])
    jobs = {"7_0": Job("queued", "Priority", 0.0, "")}
    monkeypatch.setattr(standing, "alive", lambda: jobs)
    monkeypatch.setattr(standing, "why_ended", lambda jobs: dict.fromkeys(jobs, "NODE_FAIL"))
    for i, run in enumerate(sweep.runs[2:]):
        store.freeze(run)
        given = {"job": f"7_{i}", "submitted": "", "sweep": "x", "log": ""}
        write_json(store.folder(run.id) / "slurm.json", given)
    text = sweeps.analyse_sweep(sweep, figures=["coverage"], export=tmp_path / "runs.csv")
    cells = pd.read_csv(tmp_path / "results" / sweep.name / "coverage.csv")
    page = (tmp_path / "results" / sweep.name / "report.html").read_text()

    assert "0 failed, 1 lost, 0 running, 1 queued, 0 missing." in text
    assert "lost (1): NODE_FAIL" in text
    assert (cells["queued"].sum(), cells["lost"].sum(), cells["done"].sum()) == (1, 1, 2)
    assert 'data-outcome="queued"' in page and 'data-outcome="lost"' in page
    again = sweeps.analyse_csv(Source(tmp_path / "runs.csv"), tmp_path / "csv")
    assert "1 lost, 0 running, 1 queued" in again


def test_where_slurm_does_not_answer_the_analysis_says_so(tmp_path, monkeypatch):
    def silent() -> dict[str, Job]:
        raise NoSlurm("squeue does not answer: down", installed=True)

    sweep = sweep_of(tmp_path)
    store = RunStore(tmp_path / "runs")
    finish(store, sweep, [0.5, 0.3, 0.5])
    monkeypatch.setattr(standing, "alive", silent)
    given = {"job": "7_0", "submitted": "", "sweep": "x", "log": ""}
    store.freeze(sweep.runs[3])
    write_json(store.folder(sweep.runs[3].id) / "slurm.json", given)
    text = sweeps.analyse_sweep(sweep)

    assert "1 queued" in text and "squeue does not answer: down." in text


@pytest.mark.parametrize("torn", [b'{"step": 0, "va\n{}\n', b"\xff\n"])
def test_an_unfinished_run_with_a_torn_record_costs_no_other_run(tmp_path, torn):
    sweep = sweep_of(tmp_path)
    store = RunStore(tmp_path / "runs")
    finish(store, sweep, [0.5, 0.3, 0.5])
    last = sweep.runs[3]
    store.freeze(last)
    (store.folder(last.id) / "records.jsonl").write_bytes(torn)
    text = sweeps.analyse_sweep(sweep)

    assert "3 of 4 runs done (0 of them diverged), 1 failed, 0 running, 0 missing." in text
    assert "failed (1): records.jsonl is damaged" in text
    assert "1 run with a line in records.jsonl that cannot be read" in text and last.id in text
    assert text.endswith("lr_sensitivity.png")


def test_a_node_is_named_by_the_class_that_it_builds():
    products = ",".join(
        f"{{_target_:optlab.optim.product.{name}}}" for name in ("Max", "Euclidean")
    )
    sweep = ad_hoc(["optimizer=muonmax", f"optimizer.product={products}"])

    assert set(sweeps.settings(sweep)) == {
        "optimizer.product=Max",
        "optimizer.product=Euclidean",
    }


def test_an_axis_with_one_value_per_method_is_no_setting(tmp_path):
    assert set(sweeps.settings(sweep_of(tmp_path, "model.width=8"))) == {""}


def test_the_command_prints_the_analysis_and_ends_with_0(tmp_path, monkeypatch, capsys):
    sweep = sweep_of(tmp_path)
    finish(RunStore(tmp_path / "runs"), sweep, [0.5, 0.3])
    asked = []
    monkeypatch.setattr("optlab.sweep.from_arguments", lambda words: asked.append(words) or sweep)
    out = tmp_path / "x"

    assert main(["demo", "--out", str(out), "seed=0,1", "model.width=8"]) == 0
    assert main(["optimizer=adamw,scion", "--out", str(out)]) == 0
    assert asked == [["sweeps=demo", "seed=0,1", "model.width=8"], ["optimizer=adamw,scion"]]
    assert capsys.readouterr().out.endswith(f"{out}/lr_sensitivity.png\n")


def test_a_reader_that_has_seen_enough_is_no_error_and_has_all_files(tmp_path, monkeypatch):
    sweep = sweep_of(tmp_path)
    finish(RunStore(tmp_path / "runs"), sweep, [0.5, 0.3])
    monkeypatch.setattr("optlab.sweep.from_arguments", lambda words: sweep)
    reader, writer = os.pipe()
    os.close(reader)

    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        assert main(["demo", "--out", str(tmp_path / "x")]) == 0
    assert (tmp_path / "x" / "robustness.md").is_file()


def test_the_command_draws_the_loss_curves_of_the_learning_rates_that_it_is_told(
    tmp_path, monkeypatch, capsys
):
    sweep = sweep_of(tmp_path)
    finish(RunStore(tmp_path / "runs"), sweep, [0.5, 0.3, 0.5, 0.3])
    monkeypatch.setattr("optlab.sweep.from_arguments", lambda words: sweep)

    assert main(["demo", "--out", str(tmp_path / "x"), "--lr", "0.01,0.001"]) == 0
    assert set(pd.read_csv(tmp_path / "x" / "loss_curves.csv")["lr"]) == {0.001, 0.01}
    assert main(["demo", "--out", str(tmp_path / "y"), "--lr", "3"]) == 1
    assert "no method has that learning rate" in capsys.readouterr().err


def test_an_unknown_sweep_is_one_message_and_exit_code_1(capsys):
    assert main(["demoo"]) == 1

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "There is no sweep 'demoo'. Did you mean 'demo'?" in captured.err
    assert "Traceback" not in captured.err


def test_no_sweep_is_answered_with_the_list_of_them(capsys):
    assert main([]) == 1
    assert re.search(r"sweeps/ has: .*demo", capsys.readouterr().err)


def test_an_unknown_option_is_one_message_and_exit_code_1(capsys):
    assert main(["demo", "--ouy", "x"]) == 1
    assert "unrecognized arguments: --ouy" in capsys.readouterr().err


def test_help_ends_with_0(capsys):
    assert main(["--help"]) == 0
    assert "SWEEP" in capsys.readouterr().out


@pytest.mark.slow
def test_analysis_never_imports_what_only_training_needs(tmp_path, command):
    """From the command's own words, over a real store, to the files."""
    sweep = sweep_of(tmp_path)
    finish(RunStore(tmp_path / "runs"), sweep, [0.5, 0.3, 0.5])
    overrides = [word for word in sweep.command.split() if "=" in word]
    code = (
        "import sys\n"
        "from analysis.sweeps import analyse_sweep\n"
        "from analysis import __main__, figures\n"
        "from optlab.sweep import ad_hoc\n"
        "[figures.find(name) for name in figures.names()]\n"
        f"print(analyse_sweep(ad_hoc({overrides!r})))\n"
        f"print(sorted({NEVER!r} & set(sys.modules)))\n"
    )
    done = command("-c", code)

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("lr_sensitivity.png\n[]\n")


def test_help_is_there_before_anything_heavy_is_imported(command):
    done = command("-X", "importtime", "-m", "analysis", "--help")

    assert done.returncode == 0, done.stderr
    assert "usage: python -m analysis" in done.stdout
    assert "pandas" not in done.stderr
    assert "matplotlib" not in done.stderr
    assert sys.modules["pandas"]


class TestExport:
    """A sweep's runs as a file, and the file as a sweep's runs."""

    def exported(self, tmp_path: Path, *overrides: str) -> tuple[Path, Path]:
        """The file, and the folder of the analysis beside which it was written."""
        sweep = sweep_of(tmp_path, *overrides)
        # numbers whose shortest text a careless parser reads as their neighbours
        losses = [0.1 + 0.2, 1 / 3, 0.9000000000000001]
        finish(RunStore(tmp_path / "runs"), sweep, losses)
        file = tmp_path / "new" / "final.csv"
        sweeps.analyse_sweep(sweep, tmp_path / "store", export=file)
        return file, tmp_path / "store"

    @pytest.mark.parametrize("more", [(), ("model.width=64,128",)], ids=["plain", "settings"])
    def test_the_figure_and_the_table_come_out_of_the_file_bit_by_bit(self, tmp_path, more):
        file, store = self.exported(tmp_path, *more)

        assert main(["--csv", str(file), "--out", str(tmp_path / "csv")]) == 0

        for name in ("lr_sensitivity.csv", "robustness.csv"):
            assert (tmp_path / "csv" / name).read_bytes() == (store / name).read_bytes()

    def test_runs_that_are_not_done_are_rows_too(self, tmp_path):
        file, _ = self.exported(tmp_path)
        table = pd.read_csv(file)

        assert table["outcome"].tolist() == ["finished"] * 3 + ["missing"]
        assert table["final_loss"].isna().tolist() == [False] * 3 + [True]

    def test_another_metric_counts_from_its_own_initial_value(self, tmp_path):
        text = "method,lr,seed,final_loss,initial_loss,chance_loss,accuracy,initial_accuracy\n"
        (tmp_path / "final.csv").write_text(f"{text}a,1,0,0.5,2.3,2.3,0.9,0.1\n")
        options = ["--metric", "accuracy", "--higher-is-better", "--out", str(tmp_path / "csv")]

        assert main(["--csv", str(tmp_path / "final.csv"), *options]) == 0

        point = pd.read_csv(tmp_path / "csv" / "lr_sensitivity.csv").iloc[0]
        assert (point["mean"], point["ceiling"]) == pytest.approx((0.1, 0.9))

    def test_a_file_that_cannot_be_written_is_said(self, tmp_path):
        (tmp_path / "new").write_text("in the way")

        with pytest.raises(ConfigError, match=r"final\.csv cannot be written"):
            self.exported(tmp_path)

    def test_there_is_nothing_to_export_of_a_table(self, tmp_path, capsys):
        assert main(["--csv", "any.csv", "--export", str(tmp_path / "final.csv")]) == 1
        assert "--export FILE writes the runs of a sweep" in capsys.readouterr().err
