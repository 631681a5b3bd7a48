"""Two stages: what a sweep file states under ``then``, at the best learning rate of each curve."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import Command
from lab import Lab
from optlab import sweep as sweeps
from optlab.errors import ConfigError
from optlab.extension import path_of, read
from optlab.launch.launch import Report
from optlab.launch.rounds import extend_rounds

SWEEP = """
fixed: {model.width: 8, model.depth: 1, train.steps: 6, train.batch_size: 16}
grid:
  - optimizer: [scion, muon_adam]
    optimizer.lr: {log10: [-2, 0], per_decade: 2}
    then: {optimizer.norms.matrix.scale: [1.0, 4.0]}
  - optimizer: [muonmax_momo]
    optimizer.lr: {log10: [-1, 0], per_decade: 1}
    then: {optimizer.norms.matrix.scale: [0.5, 2.0]}
  - {optimizer: [adamw], optimizer.lr: [0.1]}
seeds: 2
"""
BEST = {"scion": 0.3162, "muon_adam": 0.03162, "muonmax_momo": 1.0}


def landscape(run) -> float | str:
    """A minimum of the first stage at ``BEST``; the second stage may do better elsewhere."""
    distance = abs(run.lr - BEST.get(run.method, 0.1)) / 10
    scale = run.config["optimizer"].get("norms", {}).get("matrix", {}).get("scale", 1.0)
    return 0.5 + distance - 0.01 * scale + 0.001 * run.seed


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    lab = Lab(tmp_path, SWEEP)
    lab.landscape = landscape
    lab.launch(lab.load(), lab.store)
    lab.launches.clear()
    return lab


def second(lab: Lab, *overrides: str) -> set[tuple[str, float, float, int]]:
    """Method, learning rate, scale and seed of the runs that are no part of the first stage."""
    sweep = lab.load(*overrides)
    return {
        (run.method, run.lr, run.config["optimizer"]["norms"]["matrix"]["scale"], run.seed)
        for run in sweep.runs
        if run.id not in sweep.first_ids
    }


CHOSEN = {
    *(("scion", 0.3162, 4.0, seed) for seed in (0, 1)),
    *(("muon_adam", 0.03162, 4.0, seed) for seed in (0, 1)),
    *(("muonmax_momo", 1.0, scale, seed) for scale in (0.5, 2.0) for seed in (0, 1)),
}


def test_the_second_stage_is_run_at_the_best_learning_rate_of_each_curve_alone(lab: Lab) -> None:
    before = lab.load()
    lab.extend()

    assert second(lab) == CHOSEN  # scale 1 is the first stage's own
    assert before.notes == (
        "A second stage, over optimizer.norms.matrix.scale, follows at the best learning rate of "
        "each curve.",
    )
    assert len(lab.load().runs) == len(before.runs) + len(CHOSEN) == 26 + 8
    assert lab.load().notes[0].startswith("8 of its runs are a second stage")
    assert len(lab.load().second) == 3 * 2 * 2
    assert all(lab.store.is_done(run.id) for run in lab.load().runs)


def test_once_chosen_nothing_is_launched_again(lab: Lab) -> None:
    lab.extend()
    content = path_of(lab.store.root, "x").read_text()
    lab.launches.clear()
    lab.extend()

    assert lab.launches == [] and path_of(lab.store.root, "x").read_text() == content
    assert lab.said[-1] == "Second stage of x: 0 curves to run, 3 chosen before."


def test_a_sweep_without_extend_keeps_its_grid_unless_rounds_are_asked_for(lab: Lab) -> None:
    lab.extend()
    assert {each.kind for each in read(path_of(lab.store.root, "x")).rounds} == {"then"}
    lab.extend(rounds=1)
    assert 0.01 in lab.lr("muonmax_momo")  # the grid began in the basin


def test_the_second_stage_is_no_curve_of_its_own_and_does_not_grow(lab: Lab) -> None:
    text = SWEEP + "extend: {rounds: 2, per_decade: 1, guard: 1}\n"
    (sweeps.ROOT / "sweeps" / "x.yaml").write_text(text)
    lab.extend()
    extended = [each for each in read(path_of(lab.store.root, "x")).rounds if each.kind == "extend"]
    last = read(path_of(lab.store.root, "x")).rounds[-1]

    assert extended and last.kind == "then"
    for each in extended:
        assert all("optimizer.norms.matrix.scale" not in one.at for one in each.additions)
    assert {lr for _, lr, _, _ in second(lab)} == set(BEST.values())
    lab.launches.clear()
    lab.extend()
    assert lab.launches == []


def test_a_curve_with_a_hole_waits_while_the_others_go_on(lab: Lab) -> None:
    (hole,) = [r for r in lab.load().runs if (r.method, r.lr, r.seed) == ("scion", 0.01, 1)]
    (lab.store.folder(hole.id) / "result.json").unlink()
    lab.extend()

    assert {method for method, *_ in second(lab)} == {"muon_adam", "muonmax_momo"}
    assert "Scion" not in lab.said[-1]
    assert "scion: waits for 1 run of the first stage not done." in lab.said[-1]
    lab.finish(hole)
    lab.extend()
    assert second(lab) == CHOSEN


def test_a_learning_rate_at_which_a_seed_diverged_is_not_the_best(lab: Lab) -> None:
    lab.landscape = lambda run: "diverged" if run.method == "scion" and run.lr > 0.3 else 0.5
    for run in lab.load("optimizer=scion").runs:
        lab.finish(run)
    lab.extend()
    assert {lr for method, lr, *_ in second(lab) if method == "scion"} == {0.01}


def test_where_all_diverged_there_is_no_second_stage_and_it_says_so(lab: Lab) -> None:
    lab.landscape = lambda run: "diverged"
    for run in lab.load("optimizer=scion").runs:
        lab.finish(run)
    lab.landscape = landscape
    lab.extend()

    assert {method for method, *_ in second(lab)} == {"muon_adam", "muonmax_momo"}
    assert "scion: nothing was learned at any learning rate" in "\n".join(lab.said)


def test_a_changed_first_stage_moves_the_second(lab: Lab) -> None:
    lab.extend()
    for run in lab.load().runs:
        if run.method == "scion" and run.lr == 0.01:
            lab.landscape = lambda run: 0.1
            lab.finish(run)
    lab.landscape = landscape
    lab.launches.clear()
    lab.extend()

    assert {lr for method, lr, *_ in second(lab) if method == "scion"} == {0.01}
    assert lab.launches == [[("scion", 0.01, 0), ("scion", 0.01, 1)]]
    assert "best lr 0.01" in "\n".join(lab.said)
    assert "no longer 0.3162: the second stage follows" in "\n".join(lab.said)


def test_a_launch_that_dies_between_the_stages_goes_on(lab: Lab) -> None:
    """Remembered, and not one of its runs started: they belong to the sweep from then on."""

    def die(sweep, store) -> Report:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extend_rounds(lab.load, lab.store, die, lab.said.append)
    assert second(lab) == CHOSEN
    lab.extend()
    assert lab.launches == [] and "8 of its 12 runs are not done" in lab.said[-1]
    missing = [run.id for run in lab.load().runs if not lab.store.is_done(run.id)]
    lab.launch(replace(lab.load(), only=frozenset(missing)), lab.store)
    lab.extend()
    assert lab.said[-1] == "Second stage of x: 0 curves to run, 3 chosen before."


def test_a_budget_that_does_not_allow_the_second_stage_says_so(lab: Lab) -> None:
    """A point with 2 seeds costs 6 s; the declared runs have cost 26 times 3 s."""

    def poor():
        return replace(lab.load(), budget=(26 * 3 + 13) / 3600)

    extend_rounds(poor, lab.store, lab.launch, lab.said.append)

    assert len({method for method, *_ in second(lab)}) == 1
    assert "\n".join(lab.said).count("not run, the budget does not allow more") == 2 * 2


def test_overrides_of_the_second_stage_select_and_stated_rates_have_none(lab: Lab) -> None:
    lab.extend()
    lab.launches.clear()
    assert second(lab, "optimizer=scion") == {each for each in CHOSEN if each[0] == "scion"}
    assert second(lab, "optimizer=scion", "optimizer.norms.matrix.scale=8") == {
        ("scion", 0.3162, 8.0, seed) for seed in (0, 1)
    }
    stated = lab.load("optimizer=scion", "optimizer.lr=0.7")
    assert not stated.in_stages and len(stated.runs) == 2


@pytest.mark.parametrize(
    ("then", "expected"),
    [
        ("3", "then must map the axes of the second stage"),
        ("{}", "then must map the axes of the second stage"),
        ("{optimizer.lr: [1]}", "optimizer.lr is no axis of a second stage"),
        ("{seed: [1]}", "seed is no axis of a second stage"),
        ("{optimizer: [scion]}", "optimizer is no axis of a second stage"),
        ("{runtime.threads: [1]}", "no place in a sweep"),
        ("{optimizer.norms.matrix.scale: []}", "is empty"),
        ("{optimizer.norms.matrix.scalle: [1.0]}", "under then: There is no key"),
    ],
)
def test_a_second_stage_that_cannot_be_is_refused_before_the_first(
    lab: Lab, then: str, expected: str
) -> None:
    text = f"grid: [{{optimizer: [scion], optimizer.lr: [0.1]}}]\nthen: {then}\n"
    (sweeps.ROOT / "sweeps" / "x.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        lab.load()
    assert expected in str(caught.value) and "sweeps/x.yaml" in str(caught.value)


def test_a_second_stage_needs_learning_rates_to_choose_among(lab: Lab) -> None:
    text = "grid: [{optimizer: [scion]}]\nthen: {optimizer.norms.matrix.scale: [1.0]}\n"
    (sweeps.ROOT / "sweeps" / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"needs the axis 'optimizer\.lr'"):
        lab.load()


REAL = """
fixed: {model.width: 8, model.depth: 1, train.steps: 6, train.batch_size: 16, train.eval_every: 6}
grid:
  - {optimizer: [muon_adam, scion], optimizer.lr: [1.0e-4, 1.0e-2, 1.0e-1]}
then: {optimizer.norms.matrix.scale: [0.25, 1.0, 4.0]}
seeds: 2
"""


def test_a_launch_goes_on_with_the_second_stage_and_shows_it(command: Command, clone: Path) -> None:
    """Real runs in real processes; then the same command again, and what looks at the sweep."""
    (clone / "sweeps" / "x.yaml").write_text(REAL)
    words = ("sweeps=x", "tracking.mode=off", "hydra/launcher=here")
    launched = command("launch.py", "-m", *words, root=clone)
    (round_,) = json.loads((clone / "runs" / "extensions" / "x.json").read_text())["rounds"]
    again = command("launch.py", "-m", *words, root=clone)
    asked = command("-m", "optlab", "extend", "x", "--dry-run", root=clone)
    status = command("-m", "optlab", "status", "x", root=clone)
    drawn = command("-m", "analysis", "x", root=clone)
    table = (clone / "results" / "x" / "robustness.csv").read_text().splitlines()
    points = (clone / "results" / "x" / "second_stage.csv").read_text().splitlines()

    for each in (launched, again, asked, status, drawn):
        assert each.returncode == 0, each.stdout + each.stderr
    assert [each["then"] for each in round_["additions"]] and round_["kind"] == "then"
    assert "Second stage of x: 2 curves to run" in launched.stdout
    assert "20 of 20 runs done" in drawn.stdout and "Nothing to start." in again.stdout
    assert "2 chosen before" in asked.stdout
    assert len(table) == 1 + 2  # a row per curve of the first stage, and none of the second
    assert len(points) == 1 + 2 * 3
