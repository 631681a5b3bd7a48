"""Sweep files and command lines as sets of runs."""

from __future__ import annotations

import itertools
import os
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab import sweep as sweeps
from optlab.config import Composer, compose_run
from optlab.errors import ConfigError
from optlab.extension import Addition, Extension, Round, curve_id, path_of
from optlab.extension import write as write_extension
from optlab.paths import CONF
from optlab.sweep import Sweep, ad_hoc, from_arguments, load, log_grid


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Declare a sweep file ``x`` and load it."""
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    (tmp_path / "sweeps").mkdir()

    def declare(text: str, *overrides: str) -> Sweep:
        (tmp_path / "sweeps" / "x.yaml").write_text(text)
        return load("x", overrides)

    return declare


@given(
    low=st.integers(-6, 2),
    decades=st.integers(0, 6),
    per_decade=st.integers(1, 6),
    shift=st.integers(0, 3),
)
def test_log_grids_of_one_spacing_share_their_points(
    low: int, decades: int, per_decade: int, shift: int
) -> None:
    grid = log_grid(low, low + decades, per_decade)
    wider = log_grid(low - shift, low + decades + shift, per_decade)

    assert set(grid) <= set(wider)
    assert len(grid) == decades * per_decade + 1
    assert grid == sorted(grid)


def test_a_log_grid_is_even_in_the_logarithm_and_readable() -> None:
    assert log_grid(-2, 0, 2) == [0.01, 0.03162, 0.1, 0.3162, 1.0]


def test_a_sweep_is_the_union_of_the_products_of_its_blocks(write) -> None:
    sweep = write(
        """
fixed: {train.steps: 7}
grid:
  - {optimizer: [adamw, sgd_momentum], optimizer.lr: [0.1, 0.2]}
  - {optimizer: [adamw], optimizer.lr: [0.2, 0.3]}
seeds: 2
"""
    )
    found = [(run.method, run.lr, run.seed) for run in sweep.runs]
    expected = {
        *itertools.product(["adamw", "sgd_momentum"], [0.1, 0.2], [0, 1]),
        *itertools.product(["adamw"], [0.2, 0.3], [0, 1]),
    }

    assert set(found) == expected and len(found) == len(expected)
    assert {run.train.steps for run in sweep.runs} == {7}
    assert [seed for _, _, seed in found] == sorted(seed for _, _, seed in found)


def test_a_point_of_a_sweep_is_the_run_of_the_same_command_line(write) -> None:
    sweep = write(
        "grid: [{optimizer: [scion], optimizer.lr: [0.1], model.width: [16]}]\nseeds: [5]"
    )
    alone, _ = compose_run(["optimizer=scion", "optimizer.lr=0.1", "model.width=16", "seed=5"])

    assert [run.id for run in sweep.runs] == [alone.id]


def test_optimizer_norms_are_an_axis(write) -> None:
    sweep = write("grid: [{optimizer: [scion], optimizer/norms: [spectral_linf, spectral_adainf]}]")

    assert len({run.id for run in sweep.runs}) == 2
    assert {run.choices["optimizer/norms"] for run in sweep.runs} == {
        "spectral_linf",
        "spectral_adainf",
    }


GRID = """
grid:
  - {optimizer: [adamw], optimizer.lr: [0.1, 0.2]}
  - {optimizer: [scion], optimizer.lr: [0.3]}
seeds: 2
"""


def test_a_group_override_selects_methods_with_their_own_grids(write) -> None:
    sweep = write(GRID, "optimizer=scion")

    assert {(run.method, run.lr) for run in sweep.runs} == {("scion", 0.3)}
    assert sweep.name != "x"  # its results must not overwrite those of the whole sweep


def test_a_value_override_replaces_an_axis(write) -> None:
    sweep = write(GRID, "seed=range(5,8)", "optimizer.lr=0.7")

    assert {(run.method, run.lr, run.seed) for run in sweep.runs} == set(
        itertools.product(["adamw", "scion"], [0.7], [5, 6, 7])
    )


def test_settings_are_no_axis_and_leave_the_sweep_its_name(write) -> None:
    sweep = write(GRID, "runtime.threads=2")

    assert sweep.name == "x" and sweep.settings.runtime.threads == 2
    with pytest.raises(ConfigError, match="cannot change the numbers"):
        write(GRID, "runtime.threads=1,2")


def test_selecting_a_method_that_the_sweep_lacks_names_those_it_has(write) -> None:
    with pytest.raises(
        ConfigError, match="has no run with optimizer=muonmax; it has: adamw, scion"
    ):
        write(GRID, "optimizer=muonmax")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grid: []", "the grid is empty"),
        ("fixed: {train.steps: 1}", "the grid is empty"),
        ("grid: [{}]", "block without axes"),
        ("grid: [{optimizer.lr: []}]", "the axis 'optimizer.lr' is empty"),
        ("grid: [{optimizer.lr: {log10: [0, 1]}}]", "per_decade: n"),
        ("grid: [{optimizer.lr: {log10: [1, 0], per_decade: 2}}]", "must rise"),
        ("grid: [{optimizer.lr: {log10: [0, 1], per_decade: 0}}]", "a count above 0"),
        ("grid: [{optimizer.lr: {log10: [0, 1, 2], per_decade: 1}}]", "two exponents"),
        ("grid: [{optimizer.lr: {log10: -3, per_decade: 1}}]", "two exponents"),
        ("grid: [{optimizer.lr: {log10: [a, b], per_decade: 1}}]", "two exponents"),
        ("grid: {optimizer: adamw}", "grid must be a list"),
        ("fixed: [1]\ngrid: [{seed: [1]}]", "fixed must map"),
        ("grid: [{runtime.threads: [1, 2]}]", "no place in a sweep"),
        ("fixed: {tracking.mode: off}\ngrid: [{seed: [1]}]", "no place in a sweep"),
        ("grid: [{seed: [1]}]\nfigures: [lr_sensitivty]", "Did you mean 'lr_sensitivity'?"),
        ("grid: [{seed: [1]}]\nfigures: lr_sensitivity", "figures must be a list"),
        ("gird: [{seed: [1]}]", "unknown key 'gird'. Did you mean 'grid'?"),
        ("grid: [{seed: [1]}]\nseeds: 0", "seeds must be"),
        ("grid: [{seed: [1]}]\nseeds: [a]", "seeds must be"),
        ("grid: [{seed: [1]}]\nextend: {guards: 1}", "Did you mean 'guard'?"),
        ("grid: [{seed: [1]}]\nextend: 2", "extend must be a mapping"),
        ("grid: [{seed: [1]}]\nextend: {}", "extend has nothing to extend"),
        ("- 1", "must hold the keys"),
        ("fixed: {seed: 7}\ngrid: [{optimizer: adamw}]\nseeds: 3", "seeds have a key of their own"),
        ("grid: [{optimizer: adamw, seed: [1, 2]}]", "seeds have a key of their own"),
        (
            "fixed: {optimizer: adamw}\ngrid: [{optimizer: scion}, {optimizer: [muonmax]}]",
            "'optimizer' is fixed, and an axis of every block",
        ),
        ("grid: [{optimizer: adamw}]\nseeds: [0, 1, 1]", "seeds states 1 more than once"),
        ("grid: [{optimizer.lr: [1, 0.1, 1.0]}]", "axis 'optimizer.lr' states 1.0 more than once"),
        ("fixed: {train: {steps: 300}}\ngrid: [{optimizer: adamw}]", "write train.steps: 300."),
        ("grid: [{train: {steps: [3]}}]", "write train.steps: [3]."),
        ("grid: [{optimizer.lr: {log10: [2, -3], per_decade: 1}}]", "'optimizer.lr' must rise"),
        ("grid: [", "cannot be read"),
    ],
)
def test_bad_sweep_files_are_refused_with_their_name(write, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write(text)

    assert expected in str(caught.value)
    assert "sweeps/x.yaml" in str(caught.value) or "log grid" in str(caught.value)


def test_an_unknown_axis_says_how_many_runs_it_affects(write) -> None:
    with pytest.raises(ConfigError) as caught:
        write(
            """
grid:
  - {optimizer: [adamw], optimizer.lr: [0.1, 0.2], optimizer.momentun: [0.1, 0.2]}
  - {optimizer: [scion], optimizer.lr: [0.3]}
"""
        )

    assert "sweeps/x.yaml: 4 of 5 runs cannot be composed" in str(caught.value)
    assert "4 of 5 runs: There is no key 'optimizer.momentun'." in str(caught.value)


def test_an_unknown_sweep_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no sweep 'dmo'. Did you mean 'demo'\?"):
        load("dmo")


@pytest.mark.parametrize(
    ("name", "words"), [("demo-90b378", ": demo KEY=VALUE"), ("adhoc-123abc", ": KEY=VALUE")]
)
def test_the_name_of_a_launch_with_overrides_asks_for_them(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"a launch with overrides has that name.*{words}"):
        load(name)


def test_hydra_syntax_makes_an_ad_hoc_sweep() -> None:
    sweep = ad_hoc(["optimizer=adamw,muonmax_momo", "optimizer.lr=1e-3,1e-2", "seed=range(0,3)"])

    assert len(sweep.runs) == 12
    assert {run.method for run in sweep.runs} == {"adamw", "muonmax_momo"}


def test_glob_selects_options() -> None:
    sweep = ad_hoc(["optimizer=glob(muonmax*)", "seed=0,1"])

    assert {"muonmax", "muonmax_momo"} <= {run.method for run in sweep.runs}


def test_without_a_sweep_or_an_axis_the_demo_is_meant() -> None:
    assert from_arguments([]).name == "demo"
    assert from_arguments(["sweeps=demo"]).name == "demo"
    assert from_arguments(["runtime.threads=2"]).name == "demo"
    assert from_arguments(["sweeps=demo", "seed=0"]).name.startswith("demo-")
    assert from_arguments(["seed=0"]).name.startswith("adhoc-")
    assert from_arguments(["seed=0,1"]).name.startswith("adhoc-")


def test_two_files_of_one_config_are_one_method_and_said_to_be(write, tmp_path: Path) -> None:
    """What happens to whoever copies a YAML file to start from."""
    copy = CONF / "optimizer" / f"copy_{os.getpid()}.yaml"
    copy.write_text((CONF / "optimizer" / "adamw.yaml").read_text())
    try:
        sweep = write(f"grid: [{{optimizer: [adamw, {copy.stem}], optimizer.lr: [0.1, 0.2]}}]")
    finally:
        copy.unlink()

    assert len(sweep.runs) == 2
    (note,) = sweep.notes
    assert note.startswith("2 runs of ") and copy.stem in note and "the same runs" in note


def test_the_command_of_a_sweep_can_be_pasted() -> None:
    sweep = ad_hoc(["seed=range(0,2)", "optimizer=adamw"])

    assert shlex.split(sweep.command) == ["seed=range(0,2)", "optimizer=adamw"]
    assert "'seed=range(0,2)'" in sweep.command


def test_the_same_overrides_give_the_same_name() -> None:
    assert ad_hoc(["seed=0,1"]).name == ad_hoc(["seed=0,1"]).name != ad_hoc(["seed=0,2"]).name


# Scales

SCALES = """
fixed: {model: mlp, model.width: 64, train.steps: 200}
grid: [{optimizer: [adamw], optimizer.lr: [0.1, 0.2]}]
seeds: 3
figures: [loss_curves]
budget: {gpu_hours: 100}
scales:
  mini:
    fixed: {train.steps: 5}
    grid: [{optimizer: [scion], optimizer.lr: [0.3]}]
    seeds: 1
    figures: [lr_sensitivity]
    budget: null
  mini_wide: {fixed: {model.width: 32, model.depth: 2}}
"""


def test_a_scale_merges_what_is_fixed_and_replaces_the_rest(write) -> None:
    mini, wide = write(SCALES, "scale=mini"), write(SCALES, "scale=mini_wide")
    model = [run.config["model"] for run in (*mini.runs, *wide.runs)]

    assert {(r.method, r.lr, r.seed, r.train.steps) for r in mini.runs} == {("scion", 0.3, 0, 5)}
    assert (mini.figures, mini.budget) == (("lr_sensitivity",), None)
    assert {(r.method, r.lr, r.seed, r.train.steps) for r in wide.runs} == {
        ("adamw", lr, seed, 200) for lr in (0.1, 0.2) for seed in range(3)
    }
    assert (wide.figures, wide.budget) == (("loss_curves",), 100)
    assert [(each["width"], each["depth"]) for each in model] == [(64, 3)] + [(32, 2)] * 6


def test_another_option_of_a_group_leaves_out_what_was_fixed_of_the_files_option(write) -> None:
    text = """
fixed: {model: mlp, model.width: 32, dataset: shakespeare, dataset.context: 32, train.steps: 5}
grid: [{optimizer: [adamw], optimizer.lr: [0.1]}]
scales:
  mini: {fixed: {model: mlp, dataset: digits, train.batch_size: 8}}
"""
    (run,) = write(text, "scale=mini").runs

    assert run.choices["dataset"] == "digits" and "context" not in run.config["dataset"]
    assert (run.config["model"]["width"], run.train.steps, run.train.batch_size) == (32, 5, 8)


def test_a_scale_has_its_own_name_and_memory_and_words(write) -> None:
    mini, whole, half = (
        write(SCALES, *words)
        for words in (["scale=mini"], [], ["scale=choice(mini)", "model.width=8"])
    )

    assert (mini.name, mini.grows_as, mini.words) == ("x-mini", "x-mini", "x scale=mini")
    assert (whole.name, whole.grows_as, whole.words) == ("x", "x", "x")
    assert mini.command == "sweeps=x scale=mini" and mini.settings.tracking.group == "x-mini"
    assert half.name.startswith("x-mini-") and half.grows_as == "x-mini"
    assert half.command == "sweeps=x scale=mini model.width=8"


def test_what_a_scale_was_extended_by_is_not_the_files(write, tmp_path: Path) -> None:
    text = SCALES.replace("scales:", "extend: {}\nscales:")
    runs = f"runtime.runs={tmp_path / 'runs'}"
    composer = Composer()
    mini = write(text, "scale=mini_wide", runs)
    added = Addition(curve_id(composer, mini.points[0]), "adamw", {}, (), (0.9,))
    path = path_of(tmp_path / "runs", mini.grows_as)
    write_extension(path, Extension((Round("extend", "", (added,)),)))

    assert {run.lr for run in write(text, "scale=mini_wide", runs).runs} == {0.1, 0.2, 0.9}
    assert {run.lr for run in write(text, runs).runs} == {0.1, 0.2}
    assert {run.lr for run in write(text, "scale=mini", runs).runs} == {0.3}


def test_the_paper_is_the_file_itself(write) -> None:
    assert write(SCALES, "scale=paper") == write(SCALES)
    assert write(GRID, "scale=paper") == write(GRID)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        (SCALES, ["scale=minni"], "no scale 'minni'. Did you mean 'mini'? It has: paper, mini, "),
        (GRID, ["scale=mini"], "sweeps/x.yaml has no scales"),
        (SCALES, ["scale=mini,mini_wide"], "one scale of a sweep at a time"),
        (SCALES, ["scale=mini", "scale=paper"], "scale is given 2 times"),
        (GRID + "scales: [mini]", [], "scales must map names"),
        (GRID + "scales: {mini: 3}", [], "scales must map names"),
        (GRID + "scales: {paper: {seeds: 1}}", [], "'paper' is the file itself"),
        (GRID + "scales: {mini: {seed: 1}}", [], "'mini' has the unknown key 'seed'. Did you mean"),
        (GRID + "scales: {mini: {fixed: 1}}", [], "fixed of the scale 'mini' must map"),
        (GRID + "scales: {mini: {grid: []}}", ["scale=mini"], "the grid is empty"),
    ],
)
def test_bad_scales_are_refused(write, text: str, words: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write(text, *words)

    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_scale_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="name the file too"):
        from_arguments(["scale=mini"])
    with pytest.raises(ConfigError, match=r"sweeps/demo\.yaml has no scales"):
        from_arguments(["sweeps=demo", "scale=mini"])


def test_a_file_with_the_name_of_a_scale_is_refused(write, tmp_path: Path) -> None:
    (tmp_path / "sweeps").joinpath("x-mini.yaml").write_text(GRID)

    with pytest.raises(ConfigError, match="rename one of them"):
        write(SCALES, "scale=mini")
    assert write(SCALES).name == "x"
