"""Rounds of extension on a store: what is launched, what is remembered, what everybody sees."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from analysis.curves import curves, is_certified
from analysis.sweeps import settings
from lab import Lab, valley
from optlab import sweep as sweeps
from optlab.errors import ConfigError
from optlab.extension import path_of, read
from optlab.launch.grown import remembered
from optlab.launch.here import launch_here
from optlab.launch.launch import Report
from optlab.launch.rounds import extend_rounds, propose, remember
from optlab.store import RunStore
from optlab.sweep import Sweep, load
from support import TINY

FIXED = "fixed: {model.width: 8, model.depth: 1, train.steps: 6, train.batch_size: 16}\n"
SWEEP = (
    FIXED
    + """
grid:
  - {optimizer: [adamw, scion], optimizer.lr: {log10: [-2, -1], per_decade: 2}}
  - {optimizer: [muonmax_momo], optimizer.lr: {log10: [-1, 0], per_decade: 1}}
seeds: 2
extend: {rounds: 3, guard: 2}
"""
)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    lab = Lab(tmp_path, SWEEP)
    lab.launch(lab.load(), lab.store)
    return lab


def test_rounds_launch_only_what_is_new_until_all_optima_lie_inside(lab: Lab) -> None:
    before = Path(sweeps.ROOT / "sweeps" / "x.yaml").read_text()
    assert lab.extend().ok  # Lab.launch asserts that nothing is run twice
    declared, *rounds = [
        {method: sorted({lr for name, lr, _ in runs if name == method}) for method, _, _ in runs}
        for runs in lab.launches
    ]

    assert rounds == [
        {"adamw": [0.001, 0.003162], "scion": [0.3162, 1.0], "muonmax_momo": [0.01]},
        {"scion": [3.162]},
    ]
    assert lab.lr("adamw") == [0.001, 0.003162, 0.01, 0.03162, 0.1]
    assert lab.lr("scion") == [0.01, 0.03162, 0.1, 0.3162, 1.0, 3.162]
    assert lab.said[-1] == "Extension of x: all 3 curves are settled."
    assert Path(sweeps.ROOT / "sweeps" / "x.yaml").read_text() == before
    assert declared["adamw"] == [0.01, 0.03162, 0.1]


def test_the_store_remembers_and_a_fresh_one_knows_nothing(lab: Lab, tmp_path: Path) -> None:
    lab.extend()
    path = path_of(lab.store.root, "x")
    content = json.loads(path.read_text())
    fresh = load("x", [f"runtime.runs={tmp_path / 'fresh'}"])

    assert [round_["kind"] for round_ in content["rounds"]] == ["extend", "extend"]
    (scion,) = [a for a in content["rounds"][0]["additions"] if a["method"] == "scion"]
    assert scion["lr"] == [0.3162, 1.0]
    assert scion["why"] == [
        "right: the basin reaches 0.1, the edge of the grid: a larger lr may do"
    ]
    assert {run.lr for run in fresh.runs} == {0.01, 0.03162, 0.1, 1.0} and not fresh.notes
    assert len(lab.load().runs) == 16 + 12
    assert lab.load().notes[0] == "12 of its runs were added by python -m optlab extend."
    assert [run.seed for run in lab.load().runs] == [0] * 14 + [1] * 14


def test_a_part_of_the_sweep_has_its_part_of_the_extension(lab: Lab) -> None:
    lab.extend()

    assert {run.method for run in lab.load("optimizer=scion").runs} == {"scion"}
    assert lab.lr("scion")[-1] == 3.162
    assert lab.lr("scion", "optimizer=scion") == lab.lr("scion")
    assert lab.lr("scion", "seed=7") == lab.lr("scion")
    assert lab.lr("scion", "train.steps=7") == [
        0.01,
        0.03162,
        0.1,
    ]  # other results may ask for less
    assert lab.lr("scion", "optimizer.lr=0.3") == [0.3]


def test_an_extension_under_an_override_is_remembered_for_that_setting_alone(lab: Lab) -> None:
    whole = lab.lr("scion")
    lab.launch(lab.load("train.steps=7", "optimizer=scion"), lab.store)
    lab.extend("train.steps=7", "optimizer=scion")

    assert lab.lr("scion") == whole
    assert 1.0 in lab.lr("scion", "train.steps=7")


def test_stated_learning_rates_do_not_grow(lab: Lab) -> None:
    with pytest.raises(ConfigError, match=r"no override states optimizer\.lr"):
        lab.extend("optimizer.lr=0.3")


def test_a_curve_has_no_more_rounds_than_declared_unless_asked_for(lab: Lab) -> None:
    lab.landscape = lambda run: 1.0 - 0.1 * math.log10(run.lr)  # the larger, the better
    for run in lab.load("optimizer=adamw").runs:
        lab.finish(run)
    overrides = ("optimizer=adamw",)
    lab.launches.clear()
    lab.extend(*overrides)

    assert len(lab.launches) == 3
    assert "not run, its rounds are spent: lr 316.2, 1000" in lab.said[-1]
    lab.launches.clear()
    lab.extend(*overrides)
    assert lab.launches == []
    lab.extend(*overrides, rounds=1)
    assert [sorted({lr for _, lr, _ in runs}) for runs in lab.launches] == [[316.2, 1000.0]]


def test_a_budget_is_never_exceeded(lab: Lab) -> None:
    """A point costs 2 seeds times 3 s; the declared runs have cost 16 times 3 s."""

    def grown() -> Sweep:
        return replace(lab.load(), budget=(16 * 3 + 14) / 3600)

    lab.launches.clear()
    extend_rounds(grown, lab.store, lab.launch, lab.said.append)
    launched = [run for runs in lab.launches for run in runs]

    assert len(launched) == 4  # two points: 12 s of the 14 s
    assert "the budget does not allow more" in lab.said[-1]


@pytest.mark.parametrize("lacking", [(0.01, 0), (0.1, 1)])
def test_a_curve_with_a_hole_waits_for_it_while_the_others_go_on(
    lab: Lab, lacking: tuple[float, int]
) -> None:
    (hole,) = [r for r in lab.load("optimizer=adamw").runs if (r.lr, r.seed) == lacking]
    (lab.store.folder(hole.id) / "result.json").unlink()
    lab.extend()

    assert lab.lr("adamw") == [0.01, 0.03162, 0.1]
    assert 1.0 in lab.lr("scion")
    assert "1 of 3 curves wait for runs that are not done: adamw (1)" in lab.said[-1]
    assert "Run python -m optlab extend x when these are done." in lab.said[-1]


def test_a_launch_that_only_submits_ends_the_rounds_and_says_how_to_go_on(lab: Lab) -> None:
    def submit(sweep: Sweep, store: RunStore) -> Report:
        del store
        lab.launches.append([(run.method, run.lr, run.seed) for run in sweep.runs])
        return Report()

    lab.launches.clear()
    extend_rounds(lab.load, lab.store, submit, lab.said.append)

    assert len(lab.launches) == 1
    assert "3 of 3 curves wait" in lab.said[-1] and "python -m optlab extend x" in lab.said[-1]
    for run in lab.load().runs:
        if not lab.store.is_done(run.id):
            lab.finish(run)
    lab.extend()
    assert lab.said[-1] == "Extension of x: all 3 curves are settled."


def test_a_launch_that_fails_ends_the_rounds(lab: Lab) -> None:
    def fail(sweep: Sweep, store: RunStore) -> Report:
        del store
        return Report(failures={run.name: "no memory" for run in sweep.runs})

    assert not extend_rounds(lab.load, lab.store, fail, lab.said.append).ok
    assert len(read(path_of(lab.store.root, "x")).rounds) == 1


def test_asking_changes_nothing(lab: Lab) -> None:
    first, second = propose(lab.load(), lab.store), propose(lab.load(), lab.store)

    assert first == second and first.runs == 5
    assert not path_of(lab.store.root, "x").exists()
    assert "to run: lr 0.3162, 1; 2 seeds each, about 12 s of training" in "\n".join(first.lines)


def test_refining_adds_the_points_beside_each_optimum_once_asked(lab: Lab) -> None:
    lab.extend()
    lab.launches.clear()
    lab.extend(refine=True)

    assert {(method, lr) for runs in lab.launches for method, lr, _ in runs} == {
        *(("adamw", lr) for lr in (0.005623, 0.01778)),
        *(("scion", lr) for lr in (0.1778, 0.5623)),
        ("muonmax_momo", 0.3162),  # 1.0 is the largest that was run
    }
    lab.launches.clear()
    lab.extend()
    assert lab.launches == []


def test_a_damaged_memory_is_named_and_says_what_deleting_it_means(lab: Lab) -> None:
    path = path_of(lab.store.root, "x")
    path.parent.mkdir()
    path.write_text('{"rounds": [{"kind": ')

    with pytest.raises(ConfigError, match=r"extensions/x\.json holds no readable extension"):
        lab.load()


# Certified learning rates


def test_what_a_plateau_certifies_is_drawn_and_not_run(lab: Lab) -> None:
    lab.extend()
    sweep = lab.load()
    table = lab.store.runs_table(sweep.runs, sweep.certified).assign(setting=settings(sweep))
    drawn = table[is_certified(table)]
    (curve,) = [curve for curve in curves(table) if curve.method == "muonmax_momo"]

    assert lab.lr("muonmax_momo") == [0.01, 0.1, 1.0]
    assert sorted(zip(drawn["lr"], drawn["seed"], strict=True)) == [
        *((10.0, 0), (10.0, 1), (100.0, 0), (100.0, 1)),
    ]
    assert "2 more are certified" not in sweep.notes[1] and "4 more are certified" in sweep.notes[1]
    for row in drawn.itertuples():
        (by,) = [run for run in sweep.runs if run.id == row.certified_by]
        assert (by.lr, by.seed, by.method) == (1.0, row.seed, row.method)
        assert row.outcome == "finished" and row.final_loss == valley(by)
    assert curve.certified.tolist() == [[lr >= 10] * 2 for lr in curve.lr]
    assert "certified, not run: lr 10, 100, from 1" in "\n".join(lab.said)


def test_a_certificate_falls_with_the_run_that_gave_it(lab: Lab) -> None:
    lab.extend()
    sweep = lab.load()
    one = sweep.certified[0]
    result = lab.store.result(one.by.id)
    assert result is not None
    (lab.store.folder(one.by.id) / "result.json").unlink()
    without = lab.store.runs_table([], [one]).iloc[0]
    lab.store.finish(one.by.id, replace(result, capped_steps=1))
    capped = lab.store.runs_table([], [one]).iloc[0]

    for row in (without, capped):
        assert (row["outcome"], row["certified_by"]) == ("missing", "")


def test_a_certified_run_that_is_trained_after_all_has_its_own_numbers(lab: Lab) -> None:
    lab.extend()
    one = lab.load().certified[0]
    lab.landscape = lambda run: 0.123
    lab.finish(one.run)
    row = lab.store.runs_table([], [one]).iloc[0]

    assert (row["final_loss"], row["certified_by"]) == (0.123, "")


def test_runs_that_contradict_a_certificate_forbid_it(lab: Lab) -> None:
    """At lr 1 no step was capped, so lr 10 should be the same run; here it is not."""
    larger = lab.load("optimizer=muonmax_momo", "optimizer.lr=10").runs
    text = (sweeps.ROOT / "sweeps" / "x.yaml").read_text()
    (sweeps.ROOT / "sweeps" / "x.yaml").write_text(text.replace("[-1, 0], per", "[-1, 1], per"))
    lab.landscape = lambda run: 0.19 + 0.01 * run.seed
    for run in larger:
        lab.finish(run)
    proposal = propose(lab.load("optimizer=muonmax_momo"), lab.store)

    assert [each.certified for each in proposal.additions] == [()]
    assert 100.0 in proposal.additions[0].lr
    assert "should be the same bit by bit and are not" in "\n".join(proposal.lines)


def test_a_certified_point_is_bit_by_bit_what_its_run_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, not made up: a plateau of Momo, its certified points, and one of these run."""
    monkeypatch.setattr(sweeps, "ROOT", tmp_path)
    tiny = ", ".join(word.replace("=", ": ") for word in TINY if "tracking" not in word)
    grid = "grid: [{optimizer: [muonmax_momo], optimizer.lr: [100.0, 1000.0]}]"
    lab = Lab(tmp_path, f"fixed: {{{tiny}, optimizer.step_size.lower_bound: 2.2}}\n{grid}")

    def launch(sweep: Sweep, store: RunStore) -> Report:
        return launch_here(sweep, store, lab.said.append, dry_run=False)

    def quiet(*overrides: str) -> Sweep:
        return lab.load("tracking.mode=off", *overrides)

    launch(quiet(), lab.store)
    sweep = quiet()
    proposal = propose(sweep, lab.store, rounds=1)
    assert "\n".join(proposal.lines).count("certified") >= 1, proposal.lines
    remember(sweep, lab.store, proposal)
    certified = quiet().certified
    drawn = lab.store.runs_table([], certified)
    launch(quiet(f"optimizer.lr={certified[0].run.lr}"), lab.store)
    trained = lab.store.runs_table([certified[0].run]).iloc[0]
    by = lab.store.result(certified[0].by.id)
    own = lab.store.result(certified[0].run.id)

    assert [each.run.lr for each in certified] == [1e4, 1e5]
    assert list(drawn["certified_by"]) == [each.by.id for each in certified]
    assert by is not None and own is not None and repr(asdict(by)) == repr(asdict(own))
    assert trained["final_loss"] == drawn["final_loss"][0] and trained["certified_by"] == ""


def test_a_round_whose_launch_is_refused_was_none(lab: Lab) -> None:
    def refused(sweep: Sweep, store: RunStore) -> Report:
        raise ConfigError("over the budget")

    launch, lab.launch = lab.launch, refused  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="over the budget"):
        lab.extend()
    assert not remembered(lab.load(), lab.store).rounds

    lab.launch = launch  # type: ignore[method-assign]
    lab.extend()
    assert remembered(lab.load(), lab.store).rounds
