"""What a dry run tries: building without weights, with neither data nor a GPU at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import Command
from optlab.errors import ConfigError
from optlab.launch.rehearsal import rehearse
from optlab.sweep import ad_hoc
from support import TINY


@pytest.mark.parametrize("sweep", ["lr_sensitivity", "clipping"])
def test_a_dry_run_at_the_scale_of_a_paper_needs_neither_data_nor_gpu(
    sweep: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPTLAB_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [f"sweeps=muon_variants/{sweep}", f"runtime.runs={tmp_path}/runs"]
    done = command("launch.py", "-m", *words, "hydra.launcher.dry_run=true")
    size = "774,030,080" if sweep == "lr_sensitivity" else "124,439,808"

    assert done.returncode == 0, done.stderr
    assert "so there is no forecast" in done.stdout
    assert f"({size} parameters)" in done.stdout
    assert done.stdout.count("Before the launch: There are no tokens in ") == 1
    assert "data prepare" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_what_cannot_be_built_is_refused_as_the_launch_would() -> None:
    tiny = [word for word in TINY if not word.startswith("model")]
    words = ["optimizer=adamw", "model=gpt_tiny", "dataset=python_docs"]
    sweep = ad_hoc([*tiny, *words, "model.heads=3,4", "seed=0,1"])

    with pytest.raises(ConfigError, match="heads"):
        rehearse(sweep.runs)


def test_models_of_several_sizes_are_all_named() -> None:
    sweep = ad_hoc(["optimizer=adamw", "model.width=8,16", "model.depth=1"])

    assert rehearse(sweep.runs) == (
        "Built without weights: all 2 kinds of runs to do; mlp (610 or 1,210 parameters)."
    )


def test_nothing_to_do_builds_nothing() -> None:
    assert rehearse([]) == ""
