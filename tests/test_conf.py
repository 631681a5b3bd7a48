"""Every YAML file of conf/ and sweeps/ composes, builds and takes a step."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from optlab.build import build, check, outline
from optlab.config import Run, compose_run
from optlab.errors import ConfigError
from optlab.launch.launch import representatives
from optlab.paths import CONF, ROOT
from optlab.sweep import load
from optlab.train import Progress, train
from support import TINY

TEXT = {"python_docs", "shakespeare"}
SHARDS = {
    path.stem for path in (CONF / "dataset").glob("*.yaml") if "TokenShards" in path.read_text()
}
ARCHIVES = {"cifar10", "cifar100"}  # 170 MB each: no machine of ours has them
SMALL = ("model.width=8", "train.batch_size=2", "train.steps=2", "train.eval_every=2")


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def sweeps() -> list[str]:
    folder = ROOT / "sweeps"
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml"))


def scaled_sweeps() -> list[tuple[str, str]]:
    """Each sweep with each of its scales."""
    return [
        (sweep, scale)
        for sweep in sweeps()
        for scale in [
            "paper",
            *(OmegaConf.load(ROOT / "sweeps" / f"{sweep}.yaml").get("scales") or {}),
        ]
    ]


def yaml_files() -> list[Path]:
    return sorted([*CONF.rglob("*.yaml"), *(ROOT / "sweeps").rglob("*.yaml")])


def take_steps(run: Run) -> None:
    parts = build(run, torch.device("cpu"))
    start = [p.detach().clone() for p in parts.model.parameters()]
    records = [record for record in train(parts, run.train, Progress()) if record is not None]

    assert records[-1].step == 2 and math.isfinite(records[-1].val_loss)
    assert any(not torch.equal(a, b) for a, b in zip(start, parts.model.parameters(), strict=True))


def test_the_tests_find_the_files() -> None:
    assert {"adamw", "muonmax_momo"} <= set(names("optimizer"))
    assert {"demo", "demo_gpt"} <= set(sweeps())


@pytest.mark.parametrize("path", yaml_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_opens_with_a_comment_that_holds_a_command(path: Path) -> None:
    head = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))

    assert path.read_text().startswith("#") and "python " in head


@pytest.mark.parametrize("optimizer", names("optimizer"))
@pytest.mark.parametrize("model", ["mlp", "gpt_tiny"])
def test_every_method_steps_on_every_kind_of_model(optimizer: str, model: str) -> None:
    dataset = "digits" if model == "mlp" else "python_docs"
    extra = ["dataset.val_windows=2"] if dataset in TEXT else []
    run, _ = compose_run(
        [
            *SMALL,
            *extra,
            f"optimizer={optimizer}",
            f"model={model}",
            f"dataset={dataset}",
            "dataset.loss_lower_bound=0.0",
        ]
    )
    take_steps(run)


@pytest.mark.parametrize("norms", names("optimizer/norms"))
def test_every_norm_assignment_steps(norms: str) -> None:
    run, _ = compose_run([*SMALL, "optimizer=scion", f"optimizer/norms={norms}"])
    take_steps(run)


@pytest.mark.parametrize("schedule", names("schedule"))
def test_every_schedule_steps(schedule: str) -> None:
    take_steps(compose_run([*SMALL, "optimizer=adamw", f"schedule={schedule}"])[0])


@pytest.mark.parametrize("dataset", sorted(SHARDS))
def test_every_dataset_of_shards_composes_and_asks_for_its_preparation(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTLAB_DATA", str(tmp_path))
    run, _ = compose_run([f"dataset={dataset}", "model=gpt2_small", "optimizer=muon_adam"])

    assert run.config["dataset"]["folder"] == dataset
    with pytest.raises(ConfigError, match=f"data prepare {dataset}"):
        check(run)


@pytest.mark.parametrize("dataset", sorted(ARCHIVES))
@pytest.mark.parametrize("model", ["resnet20", "vit_small"])
def test_every_dataset_of_archives_fits_its_models_and_asks_for_its_preparation(
    dataset: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTLAB_DATA", str(tmp_path))
    run, _ = compose_run([f"dataset={dataset}", f"model={model}", "optimizer=momo"])

    assert outline(run)(torch.empty(2, 3, 32, 32, device="meta")).shape == (
        2,
        run.config["dataset"]["output_size"],
    )
    with pytest.raises(ConfigError, match=f"data prepare {dataset}"):
        check(run)


@pytest.mark.parametrize("dataset", sorted(set(names("dataset")) - SHARDS - ARCHIVES))
def test_every_dataset_feeds_a_model(dataset: str) -> None:
    model, extra = ("mlp", [])
    if dataset in TEXT:
        model, extra = "gpt_tiny", ["dataset.val_windows=2"]
    run, _ = compose_run(
        [*SMALL, *extra, f"dataset={dataset}", f"model={model}", "optimizer=adamw"]
    )
    try:
        take_steps(run)
    except ConfigError as error:
        if os.environ.get("OPTLAB_REQUIRE_DATA") == "1" or "data prepare" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.mark.parametrize("model", names("model"))
def test_every_model_builds_on_the_meta_device(model: str) -> None:
    dataset = "python_docs" if model.startswith("gpt") else "digits"
    check(compose_run([f"model={model}", f"dataset={dataset}", "optimizer=muonmax"])[0])


@pytest.mark.parametrize(("sweep", "scale"), scaled_sweeps())
def test_every_sweep_composes_and_builds_at_every_scale(sweep: str, scale: str) -> None:
    runs = load(sweep, [f"scale={scale}"]).runs
    kinds = representatives(runs)

    assert len({run.id for run in runs}) == len(runs) > 1
    for run in kinds:
        outline(run)
    try:
        check(kinds[0])
    except ConfigError as error:
        if "data prepare" not in str(error):
            raise


PAPERS = sorted(sweep for sweep in sweeps() if sweep.startswith("muon_variants/"))


@pytest.mark.parametrize("sweep", [each for each in PAPERS if not each.endswith("digits")])
def test_every_experiment_of_a_paper_has_a_small_form_that_asks_for_no_gpu(sweep: str) -> None:
    mini = load(sweep, ["scale=mini"])

    assert all(asked["gpus_per_run"] == 4 for asked in load(sweep).resources)
    assert all(asked["gpus_per_run"] == 0 for asked in mini.resources)
    assert len({run.seed for run in mini.runs}) == 3
    assert {run.choices["model"] for run in mini.runs} <= {"gpt_demo", "mlp"}
    assert {run.train.precision for run in mini.runs} == {"float32"}


@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_the_variants_are_eighteen_and_as_many_truncated(scale: str) -> None:
    runs = load("muon_variants/variants", [f"scale={scale}"]).runs
    for method in ("muonmax", "muonmax_momo"):
        mine = [run.config["optimizer"] for run in runs if run.method == method]
        curves = {json.dumps({**each, "lr": 0}, sort_keys=True) for each in mine}
        switches = {
            (each["kind"], each["product"]["_target_"], each["norms"]["others"]["_target_"])
            for each in mine
        }

        assert len(curves) == len(switches) == 18
        assert {each["norms"]["matrix"]["_target_"] for each in mine} == {
            "optlab.optim.norms.Spectral"
        }


@pytest.mark.parametrize("sweep", ["tuned", "lower_bound", "stale", "clipping", "ratio"])
@pytest.mark.parametrize("scale", ["mini", "mini_mlp"])
def test_small_forms_share_runs(sweep: str, scale: str) -> None:
    """What is trained for one is not trained again for another."""
    common = {run.id for run in load("muon_variants/lr_sensitivity", [f"scale={scale}"]).runs}
    own = {run.id for run in load(f"muon_variants/{sweep}", [f"scale={scale}"]).runs}

    assert 5 * len(own & common) >= len(own)


@pytest.mark.parametrize("sweep", ["demo", "demo_gpt"])
def test_the_demos_keep_their_promise(sweep: str) -> None:
    """Nine methods, at least 11 points over at least 5 decades each, 3 seeds."""
    runs = load(sweep).runs
    methods = {run.method for run in runs}

    assert methods == {
        "sgd_momentum",
        "adamw",
        "muon_adam",
        "scion",
        "polargrad",
        "muonmax",
        "muon_adam_momo",
        "scion_momo",
        "muonmax_momo",
    }
    for method in methods:
        grid = sorted({run.lr for run in runs if run.method == method})
        assert len(grid) >= 11 and math.log10(grid[-1] / grid[0]) > 4.99
        assert len({run.seed for run in runs if run.method == method}) == 3


@pytest.mark.parametrize(
    ("sweep", "first", "all_of_them"),
    [
        ("demo", ["e9e93a3054f6", "36e30ef15f77"], "7b5e93b9201ba700"),
        ("demo_gpt", ["478da220f011", "345e83ab36fb"], "d60c27b71af4c68e"),
    ],
)
def test_the_demos_are_the_runs_whose_records_are_committed(
    sweep: str, first: list[str], all_of_them: str
) -> None:
    """A new id disowns every result that users have: say so under Numbers in CHANGELOG.md."""
    ids = [run.id for run in load(sweep).runs]

    assert ids[:2] == first
    assert hashlib.sha256(" ".join(ids).encode()).hexdigest()[:16] == all_of_them


def test_tiny_runs_are_valid() -> None:
    assert compose_run(list(TINY))[0].train.steps == 6
