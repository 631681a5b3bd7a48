"""``launch.py`` as a user types it: good commands, and bad input before any job starts."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from support import TINY


def refused(done: subprocess.CompletedProcess[str], *expected: str) -> None:
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    for words in expected:
        assert words in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("optimizer=muonmaxx", "Did you mean 'muonmax'?"),
        ("optimizer.lrr=0.1", "Did you mean 'optimizer.lr'?"),
        ("+new_key=1", "would change which keys a run has"),
        ("lr=0.1", "no key 'lr'. Did you mean 'optimizer.lr'?"),
        ("train.batch_size=1439", "there are 1438 training samples"),
        ("optimizer.lr=abc", "optimizer.lr must be a number, not 'abc'"),
        ("optimizer.lr=-1", "optimizer.lr must be above 0"),
        ("optimizer.lr=nan", "optimizer.lr must be a finite number"),
        ("dataset=shakespeare", "needs a lower bound of the loss"),
        ("sweeps=demo", "add -m (python launch.py -m sweeps=demo)"),
        ("seed=0,1", "add -m"),
        ("-m sweeps=dmo", "no sweep 'dmo'. Did you mean 'demo'?"),
        ("-m optimizer=adamw,sciom", "Did you mean 'scion'?"),
        ("-m optimizer=adamw,scion optimizer.betas=[0.9,0.9]", "1 of 2 runs"),
        ("-m optimizer=adamw,scion optimizer.lrr=1", "2 of 2 runs"),
        ("-m seed=0,1 train.steps=0", "train.steps must be above 0"),
        ("-m hydra/launcher=locl", "Did you mean 'local'?"),
        ("-m hydra.launcher.wrkers=3", "Did you mean 'workers'?"),
        ("-m hydra/launcher=slurm hydra.launcher.partitoin=x", "Did you mean 'partition'?"),
        ("-m hydra/launcher=slurm hydra.launcher.time=1 seed=0", "too short for a checkpoint"),
        ("-m hydra.launcher.workers=two", "hydra.launcher.workers must be a number"),
        ("-m hydra.launcher.workers=-1", "hydra.launcher.workers must be a number"),
        ("-m hydra/sweeper=basic seed=0,1", "need hydra/sweeper=optlab"),
        ("-m hydra/launcher=basic seed=0,1", "hydra/launcher may be: here, local, slurm."),
        ("optimizer=adamw optimizer.betas=[2.0,0.9]", "conf/optimizer/adamw.yaml cannot be built"),
        ("optimizer=adamw optimizer.betas=[0.9]", "conf/optimizer/adamw.yaml cannot be built"),
        ("-m optimizer=adamw optimizer.betas=[0.9],[0.8]", "conf/optimizer/adamw.yaml cannot"),
        ("-m optimizer.lr=interval(0.1,1)", "use commas, range() or glob()"),
        ("-m --cfg job sweeps=demo", "does not go with -m"),
        ("-m optimizer=adamw optimizer.betas=[2.0,0.9] seed=0,1", "Invalid beta"),
        ("optimizer=scion optimizer.kind=constraint", "Did you mean 'constrained'?"),
        ("optimizer=scion optimizer.norms.matrix.polar.steps=0", "at least 1 step"),
        ("model=gpt_tiny", "model=gpt_tiny does not fit dataset=digits"),
        ("dataset=python_docs optimizer=adamw", "model=mlp"),
    ],
)
def test_bad_input_gives_one_message_and_starts_nothing(
    command, tmp_path: Path, arguments: str, expected: str
) -> None:
    runs = tmp_path / "runs"
    done = command("launch.py", *arguments.split(), f"runtime.runs={runs}")

    refused(done, expected)
    assert not list(runs.glob("*/records.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "key"),
    [("-m seed=0,1", "runtime.runs"), ("-m seed=0,1", "runtime.results"), ("", "runtime.runs")],
)
def test_a_folder_that_cannot_be_written_is_refused_before_training(
    command, tmp_path: Path, arguments: str, key: str
) -> None:
    (tmp_path / "file").write_text("")
    folders = {"runtime.runs": f"{tmp_path}/runs", key: f"{tmp_path}/file/x"}
    settings = [f"{name}={folder}" for name, folder in folders.items()]
    done = command("launch.py", *arguments.split(), *TINY, *settings)

    refused(done, "cannot be written", key)
    assert not list(tmp_path.glob("runs/*"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_misspelt_key_in_a_yaml_file_is_found_before_training(
    command, clone: Path, tmp_path: Path
) -> None:
    edit(clone / "conf/optimizer/scion.yaml", "momentum:", "momentumm:")
    for arguments in (["optimizer=scion"], ["-m", "optimizer=scion,adamw"]):
        done = command("launch.py", *arguments, *TINY, root=clone)
        refused(done, "conf/optimizer/scion.yaml", "'momentumm'", "Did you mean 'momentum'?")
    assert not list((clone / "runs").glob("*/records.jsonl"))


def test_a_misspelt_key_in_the_main_config_is_found(command, clone: Path) -> None:
    edit(clone / "conf/config.yaml", "eval_every:", "eval_evry:")
    done = command("launch.py", "tracking.mode=off", root=clone)

    refused(done, "train has no key 'eval_evry'. Did you mean 'eval_every'?")


def test_a_missing_target_is_found(command, clone: Path) -> None:
    edit(clone / "conf/model/mlp.yaml", "mlp.MLP", "mlp.MPL")
    refused(command("launch.py", *TINY, root=clone), "conf/model/mlp.yaml", "mlp.MPL")


def test_a_norm_rule_that_matches_no_parameter_is_found(command, clone: Path) -> None:
    edit(
        clone / "conf/optimizer/norms/spectral_linf.yaml",
        "by_name: {}",
        'by_name: {"layer.*": {_target_: optlab.optim.norms.Linf, scale: 1.0}}',
    )
    done = command("launch.py", "-m", "optimizer=scion", "seed=0,1", *TINY, root=clone)

    refused(done, "layer.*", "head.weight")
    assert not list((clone / "runs").glob("*/records.jsonl"))


def test_bad_sweep_files_are_refused(command, clone: Path) -> None:
    sweep = clone / "sweeps" / "bad.yaml"
    sweep.write_text("grid: []")
    refused(command("launch.py", "-m", "sweeps=bad", root=clone), "sweeps/bad.yaml", "is empty")
    sweep.write_text("grid: [{optimizer: [adamw, scion], optimizer.betaz: [[0.9, 0.9]]}]\nseeds: 3")
    done = command("launch.py", "-m", "sweeps=bad", root=clone)
    refused(done, "sweeps/bad.yaml: 6 of 6 runs cannot be composed", "3 of 6 runs")


def test_broken_yaml_files_are_one_message(command, clone: Path) -> None:
    (clone / "sweeps" / "broken.yaml").write_text("grid: {")
    refused(command("launch.py", "-m", "sweeps=broken", root=clone), "sweeps/broken.yaml")
    (clone / "conf/optimizer/broken.yaml").write_text("lr: {")
    for arguments in (["optimizer=broken"], ["-m", "optimizer=broken,adamw"]):
        refused(command("launch.py", *arguments, root=clone), "broken.yaml")
    (clone / "conf/optimizer/broken.yaml").write_text("_target_: torch.optim.SGD\nmomentum: 0.9")
    refused(command("launch.py", "optimizer=broken", root=clone), "broken.yaml must state lr")
    (clone / "conf/optimizer/broken.yaml").write_text("")
    refused(command("launch.py", "optimizer=broken", root=clone), "broken.yaml states no _target_")


def test_a_single_run_shows_its_losses_and_is_not_repeated(command, tmp_path: Path) -> None:
    arguments = ("launch.py", "optimizer=muonmax_momo", *TINY, f"runtime.runs={tmp_path}/runs")
    first, second = command(*arguments), command(*arguments)

    assert first.returncode == second.returncode == 0, first.stderr
    assert "step      6" in first.stdout and "finished at step 6" in first.stdout
    assert "done already" in second.stdout and "step      6" not in second.stdout


def test_a_diverged_run_exits_with_zero(command, tmp_path: Path) -> None:
    arguments = ("optimizer=sgd_momentum", "optimizer.lr=1e20", f"runtime.runs={tmp_path}/runs")
    done = command("launch.py", *TINY, *arguments)

    assert done.returncode == 0 and "diverged (" in done.stdout, done.stderr


def test_an_ad_hoc_sweep_ends_with_table_and_figure(command, tmp_path: Path) -> None:
    arguments = (
        "launch.py",
        "-m",
        "optimizer=adamw,muonmax_momo",
        "optimizer.lr=1e-3,1e-2",
        "seed=range(0,2)",
        *TINY,
        f"runtime.runs={tmp_path}/runs",
        f"runtime.results={tmp_path}/results",
    )
    first = command(*arguments)
    lines = first.stdout.strip().splitlines()

    assert first.returncode == 0, first.stdout + first.stderr
    assert "8 runs (8 missing)" in lines[0]
    assert any(line.startswith("MuonMax-Momo") for line in lines)
    assert Path(lines[-1]).is_file() and lines[-1].endswith("lr_sensitivity.png")
    second = command(*arguments)
    assert "8 runs (8 finished)." in second.stdout and "Nothing to start." in second.stdout
    assert first.stdout.splitlines()[-8:] == second.stdout.splitlines()[-8:]


def test_a_key_of_one_method_only_can_be_overridden(command, tmp_path: Path) -> None:
    """Hydra alone would look for it in the default method first, and fail."""
    done = command(
        "launch.py",
        "-m",
        "optimizer=adamw",
        "seed=0,1",
        "optimizer.betas=[0.9,0.99]",
        "hydra.launcher.dry_run=true",
        f"runtime.runs={tmp_path}/runs",
    )

    assert done.returncode == 0 and "2 runs (2 missing)" in done.stdout, done.stderr
    assert not (tmp_path / "runs").exists()


def test_cfg_and_help_print_and_start_nothing(command, tmp_path: Path) -> None:
    shown = command("launch.py", "--cfg", "job", "--resolve", "optimizer=scion", "seed=7")
    helped = command("launch.py", "--help")

    assert shown.returncode == helped.returncode == 0, shown.stderr + helped.stderr
    assert "seed: 7" in shown.stdout and "${" not in shown.stdout
    assert "optimizer: " in helped.stdout and "muonmax_momo" in helped.stdout
    assert not list(tmp_path.glob("**/*.yaml"))  # Hydra's own folders are not made


def test_nothing_imports_torch_before_a_run_and_after_the_store(command, tmp_path: Path) -> None:
    """Dry runs, status and analysis start fast."""
    code = (
        "import runpy, sys, contextlib\n"
        "with contextlib.suppress(SystemExit):\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__') if sys.argv[0].endswith('.py')"
        " else runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=False)\n"
        "print([m for m in ('torch', 'wandb', 'submitit', 'sklearn') if m in sys.modules])\n"
    )
    from optlab.paths import ROOT

    for arguments in (
        [str(ROOT / "launch.py"), "-m", "hydra.launcher.dry_run=true", "seed=0,1"],
        ["optlab", "status", "demo"],
        ["analysis", "demo", "--out", str(tmp_path / "out")],
    ):
        script = f"import sys; sys.argv = {arguments!r}\n{code}"
        done = command("-c", script)
        assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_status_counts_by_method(command, tmp_path: Path) -> None:
    runs = f"runtime.runs={tmp_path}/runs"
    command("launch.py", *TINY, "optimizer=adamw", runs)
    done = command("-m", "optlab", "status", "demo", "optimizer=adamw,scion", "seed=0", runs)

    assert done.returncode == 0, done.stderr
    assert "adamw" in done.stdout and "missing" in done.stdout and "scion" in done.stdout


def test_status_of_an_unknown_sweep_is_one_message(command) -> None:
    refused(command("-m", "optlab", "status", "dmo"), "Did you mean 'demo'?")


def test_preparing_unknown_data_is_one_message(command) -> None:
    refused(command("-m", "optlab", "data", "prepare", "mnits"), "Did you mean 'mnist'?")


def test_preparing_embedded_data_says_that_nothing_is_needed(command) -> None:
    done = command("-m", "optlab", "data", "prepare", "digits")

    assert done.returncode == 0 and "needs no files" in done.stdout


def test_job_files_name_the_choices(command, tmp_path: Path) -> None:
    command("launch.py", *TINY, "optimizer=scion", f"runtime.runs={tmp_path}/runs")
    (job,) = tmp_path.glob("runs/*/job.json")

    assert json.loads(job.read_text())["choices"]["optimizer"] == "scion"
