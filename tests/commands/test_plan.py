"""``python -m optlab plan``, the forecast and the budget: what launching would cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from optlab.__main__ import main
from optlab.errors import ConfigError
from optlab.launch.launch import prepare
from optlab.launch.pace import paces, parts
from optlab.launch.plan import describe, make_plan, refusal, size
from optlab.paths import ROOT
from optlab.store import RunStore
from optlab.sweep import Sweep, ad_hoc, load
from support import shrunk

from .conftest import SWEEP, Optlab
from .stores import fill


def ids(sweep: Sweep, method: str) -> list[str]:
    return [run.id for run in sweep.runs if run.method == method]


@pytest.fixture
def half(store: RunStore, sweep: Sweep) -> Sweep:
    """Of each method two runs are done, at 3600 and 7200 s a step; two are to be done."""
    for method, pace in (("adamw", 3600.0), ("scion", 7200.0)):
        for run in [run for run in sweep.runs if run.method == method][:2]:
            fill(store, run, ["records", "result"], steps=(0, 6), pace=pace)
    return sweep


def test_the_forecast_is_steps_times_measured_step_time(store: RunStore, half: Sweep) -> None:
    plan = make_plan(half, store)

    assert len(plan.pending) == 4
    assert plan.forecast.seconds == 2 * 6 * 3600 + 2 * 6 * 7200
    assert (plan.forecast.measured, plan.forecast.guessed, plan.forecast.unknown) == (4, 0, 0)
    assert plan.spent == 2 * 6 + 2 * 12


def test_hours_count_every_gpu_of_a_run(store: RunStore, half: Sweep) -> None:
    one = make_plan(half, store, dict.fromkeys([run.id for run in half.runs], 1))
    four = make_plan(half, store, dict.fromkeys([run.id for run in half.runs], 4))
    none = make_plan(half, store, dict.fromkeys([run.id for run in half.runs], 0))

    assert (one.forecast.hours, four.forecast.hours, none.forecast.hours) == (36, 144, 36)
    assert (one.unit, none.unit) == ("GPU-hours", "hours")
    assert "(144 GPU-hours)" in describe(four)
    assert "GPU" not in describe(none)


def test_gpus_that_the_command_line_asks_for_count(
    optlab: Optlab, store: RunStore, half: Sweep
) -> None:
    hours = [
        json.loads(optlab("plan", *SWEEP, "--json", *words).out)["forecast"]["hours"]
        for words in ((), ("hydra.launcher.gpus_per_run=4",))
    ]

    assert hours == [36, 144]


def test_what_was_spent_counts_the_gpus_of_that_time(store: RunStore, half: Sweep) -> None:
    first = half.runs[0].id
    note = {"job": "7_0", "submitted": "", "sweep": half.name, "log": "", "gpus": 8}
    (store.folder(first) / "slurm.json").write_text(json.dumps(note))

    assert make_plan(half, store).spent == 2 * 6 + 2 * 12 + 7 * 6


def test_runs_of_other_sweeps_measure_the_same_parts(store: RunStore, half: Sweep) -> None:
    """Learning rate, seed, schedule and length do not matter; the batch size does."""
    same = ad_hoc(shrunk("optimizer=adamw", "optimizer.lr=0.5,5.0", "train.steps=60",
                         "schedule=cosine", "seed=7"))  # fmt: skip
    other = ad_hoc(shrunk("optimizer=adamw", "optimizer.lr=0.5,5.0", "train.batch_size=32"))

    assert make_plan(same, store).forecast.seconds == 2 * 60 * 3600
    assert make_plan(other, store).forecast.unknown == 2


def test_runs_without_a_record_are_not_read_for_their_pace(
    store: RunStore, half: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the YAML of all that wait takes seconds, in a launch whose workers are idle."""
    waiting = [run for run in half.runs if not store.is_done(run.id)]
    for run in waiting:
        store.freeze(run)
    read, load = [], store.load
    monkeypatch.setattr(store, "load", lambda run_id: read.append(run_id) or load(run_id))

    found = paces(store, ad_hoc(shrunk("optimizer=adamw,scion", "seed=7")).runs)

    assert {pace.seconds_per_step for pace in found.values()} == {3600, 7200}
    assert read and not {run.id for run in waiting}.intersection(read)


def test_methods_that_were_never_measured_are_guessed_and_it_is_said(
    store: RunStore, half: Sweep
) -> None:
    wider = ad_hoc(shrunk("optimizer=adamw,muonmax", "optimizer.lr=0.01,0.1", "seed=0,1"))
    plan = make_plan(wider, store)

    assert (plan.forecast.measured, plan.forecast.guessed) == (2, 4)
    assert "4 of methods that were never measured" in describe(plan)


def test_without_a_measure_there_is_no_forecast(optlab: Optlab) -> None:
    told = optlab("plan", "SWEEP")

    assert told.code == 0
    assert "8 runs to do; none of their kind was measured yet" in told.out


def test_a_probe_measures_each_kind_once_and_starts_no_run(
    optlab: Optlab, store: RunStore, sweep: Sweep
) -> None:
    told = optlab("plan", "SWEEP", "--probe", "4")
    plan = optlab("plan", "SWEEP", "--json").json

    assert told.out.count("Probed") == 2
    assert plan["forecast"]["measured"] == 8
    assert plan["forecast"]["seconds"] > 0
    assert plan["forecast"]["checkpoint"] > 1000
    assert [path.name for path in store.root.iterdir()] == ["probes"]
    assert optlab("plan", "SWEEP", "--probe").out.count("Probed") == 0


def test_a_run_that_is_measured_replaces_its_probe(
    optlab: Optlab, store: RunStore, sweep: Sweep
) -> None:
    optlab("plan", "SWEEP", "--probe", "2")
    fill(store, sweep.runs[0], ["records", "result"], steps=(0, 6), pace=3600.0)

    assert paces(store, sweep.runs)[parts(sweep.runs[0])].seconds_per_step == 3600


def test_the_disk_is_forecast_from_what_runs_left(store: RunStore, half: Sweep) -> None:
    for run in half.runs:
        if store.is_done(run.id):
            (store.folder(run.id) / "log.txt").write_bytes(b"x" * 1_000_000)
    waiting = next(run for run in half.runs if not store.is_done(run.id))
    fill(store, waiting, ["records"])
    (store.folder(waiting.id) / "checkpoint.pt").write_bytes(b"x" * 5_000)
    plan = make_plan(half, store)

    assert plan.forecast.kept == pytest.approx(4 * 1_000_000, rel=0.02)
    assert plan.forecast.checkpoint == 5_000
    assert "Disk: about 4.0" in describe(plan)
    assert "5 kB of checkpoint for each that is training" in describe(plan)
    full = replace(plan, free=1_000_000)
    assert "more than is free" in describe(full)


def test_a_budget_refuses_what_goes_beyond_it(store: RunStore, half: Sweep) -> None:
    """36 hours are spent and 36 to come: a budget of 72 allows it, one of 71 does not."""
    said: list[str] = []
    prepare(replace(half, budget=72.0), store, said.append, dry_run=False)
    with pytest.raises(ConfigError) as raised:
        prepare(replace(half, budget=71.0), store, said.append, dry_run=False)

    for words in ("a budget of 71 GPU-hours", "would need 72", "36 spent", "forecast of 36"):
        assert words in str(raised.value)
    prepare(replace(half, budget=71.0), store, said.append, dry_run=True)
    assert said[-1].startswith("It would be refused. ")


def test_what_trains_already_counts_for_the_budget(store: RunStore, half: Sweep) -> None:
    """A run at 2 of 6 steps has spent 2 hours and has 4 before it, not 6 in the forecast."""
    waiting = next(r for r in half.runs if r.method == "adamw" and not store.is_done(r.id))
    fill(store, waiting, ["records"], steps=(0, 2), pace=3600.0)
    with store.lease(waiting.id):
        plan = make_plan(half, store)

    assert (plan.spent, plan.committed, plan.forecast.hours) == (38, 4, 30)


def test_a_budget_without_a_forecast_refuses_and_says_how_to_get_one(
    store: RunStore, sweep: Sweep
) -> None:
    with pytest.raises(ConfigError, match="--probe"):
        prepare(replace(sweep, budget=1.0), store, print, dry_run=False)
    assert not store.root.exists()


def test_a_sweep_file_states_a_budget_and_the_command_line_lifts_it(clone: Path) -> None:
    """Neither changes a run, nor the name of the sweep."""
    text = (ROOT / "sweeps" / "demo.yaml").read_text()
    plain = load("demo", ["seed=0"])
    path = ROOT / "sweeps" / "demo.yaml"
    assert plain.budget is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optlab.sweep.ROOT", clone)
        (clone / "sweeps" / "demo.yaml").write_text(text + "budget: {gpu_hours: 2.5}\n")
        assert load("demo", ["seed=0"]).budget == 2.5
        assert load("demo", ["seed=0", "budget.gpu_hours=9"]).budget == 9
        lifted = load("demo", ["seed=0", "budget.gpu_hours=null"])
    assert lifted.budget is None
    assert (lifted.name, lifted.runs) == (plain.name, plain.runs)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("budget: 5", "budget must be {gpu_hours: number}"),
        ("budget: {gpu_hour: 5}", "budget must be {gpu_hours: number}"),
        ("budget: {gpu_hours: many}", "budget.gpu_hours must be a number of at least 0"),
        ("budget: {gpu_hours: -1}", "budget.gpu_hours must be a number of at least 0"),
        ("budget: {gpu_hours: .inf}", "budget.gpu_hours must be a number of at least 0"),
        ("budgets: {gpu_hours: 1}", "Did you mean 'budget'?"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused(clone: Path, line: str, message: str) -> None:
    path = clone / "sweeps" / "demo.yaml"
    path.write_text(path.read_text() + line + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optlab.sweep.ROOT", clone)
        with pytest.raises(ConfigError) as raised:
            load("demo", ["seed=0", "optimizer=adamw"])

    assert message in str(raised.value)


def test_a_dry_run_prints_what_plan_prints(command, optlab: Optlab, store: RunStore) -> None:
    said = optlab("plan", "SWEEP", "budget.gpu_hours=7").out.splitlines()
    words = [*SWEEP, f"runtime.runs={store.root}", "budget.gpu_hours=7"]
    done = command("launch.py", "-m", *words, "hydra.launcher.dry_run=true")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == said[:3]
    assert "Budget: 7 GPU-hours" in said[2]


def test_plan_as_json_is_the_plan(optlab: Optlab, half: Sweep) -> None:
    told = optlab("plan", "SWEEP", "budget.gpu_hours=71", "--json").json

    assert told["counts"] == {"finished": 4, "missing": 4}
    assert told["forecast"]["hours"] == 36
    assert told["budget"] == 71
    assert "would need 72" in told["refused"]
    assert set(told["to_do"]).isdisjoint(ids(half, "adamw")[:2])


def test_a_restricted_launch_may_start_no_other_run(store: RunStore, half: Sweep) -> None:
    """The budget still counts the whole sweep."""
    waiting = [run for run in half.runs if not store.is_done(run.id)]
    only = replace(half, only=frozenset({waiting[0].id, half.runs[0].id}), budget=30.0)
    plan = make_plan(only, store)

    assert [run.id for run in plan.pending] == [waiting[0].id]
    assert "36 spent" in refusal(plan)


def test_sizes_are_in_the_unit_of_a_person() -> None:
    assert [size(n) for n in (999, 1500, 2_000_000, 3 * 10**9, 4 * 10**13)] == [
        "999 bytes", "1.5 kB", "2 MB", "3 GB", "40 TB",
    ]  # fmt: skip


def test_a_damaged_probe_measures_nothing(optlab: Optlab, store: RunStore) -> None:
    optlab("plan", "SWEEP", "--probe", "2")
    for path, text in zip(
        (store.root / "probes").iterdir(), ("{", json.dumps({"x": 1})), strict=True
    ):
        path.write_text(text)

    assert optlab("plan", "SWEEP", "--json").json["forecast"]["unknown"] == 8


@pytest.mark.parametrize("command", ["status", "cancel", "plan", "retry", "sync", "extend"])
def test_a_command_without_a_sweep_asks_for_one(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not for overrides, which may be left out."""
    assert main([command]) == 1
    assert f"error: {command} needs a SWEEP" in capsys.readouterr().err
