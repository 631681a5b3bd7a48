"""``python -m optlab status``: every state a sweep can be in, read from damaged stores too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optlab.launch import standing
from optlab.launch.former import Former
from optlab.launch.pace import last_record
from optlab.launch.queue import Job
from optlab.launch.standing import STATES
from optlab.paths import ROOT
from optlab.store import RunStore, decode
from optlab.sweep import Sweep
from support import environment

from .conftest import SWEEP, Optlab
from .stores import fill

WAITS = Job("queued", "Priority", 0.0, "")
RUNS = Job("running", "", 60.0, "node7")


@pytest.fixture
def mixed(store: RunStore, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A run in each state: 0 finished, 1 failed, 2 queued, 3 running, 4 lost, 5 preempted."""
    monkeypatch.setattr(standing, "alive", lambda: {"7_2": WAITS, "7_3": RUNS})
    monkeypatch.setattr(standing, "why_ended", lambda jobs: dict.fromkeys(jobs, "NODE_FAIL (n7)"))
    runs = sweep.runs
    fill(store, runs[0], ["slurm", "records", "result"])
    fill(store, runs[1], ["slurm", "records", "failure"])
    fill(store, runs[2], ["slurm"], job="7_2")
    fill(store, runs[3], ["slurm", "records"], job="7_3", steps=(0, 2, 4), pace=3600.0)
    fill(store, runs[4], ["slurm", "records"])
    fill(store, runs[5], ["records"])
    return sweep


def test_the_table_counts_every_run_once(optlab: Optlab, mixed: Sweep) -> None:
    told = optlab("status", "SWEEP")
    head, *rows = [line.split() for line in told.out.splitlines()[1:5]]

    assert told.code == 0
    assert head == [*STATES[:3], "failed", "lost", "preempted", "missing", "all"]
    assert [row[0] for row in rows] == ["adamw", "scion", "all"]
    assert [int(number) for number in rows[2][1:]] == [1, 1, 1, 1, 1, 1, 2, 8]
    for column in range(1, len(head) + 1):
        assert int(rows[0][column]) + int(rows[1][column]) == int(rows[2][column])


def test_json_says_the_same_as_the_table(optlab: Optlab, mixed: Sweep) -> None:
    told = optlab("status", "SWEEP", "--json", "--runs").json
    states = [row["standing"] for row in told["list"]]

    assert told["runs"] == len(mixed.runs) == sum(told["counts"].values())
    assert told["counts"] == {state: states.count(state) for state in set(states)}
    assert [row["id"] for row in told["list"]] == [run.id for run in mixed.runs]
    assert "list" not in optlab("status", "SWEEP", "--json").json


def test_a_line_says_all_about_a_run(optlab: Optlab, mixed: Sweep) -> None:
    lines = optlab("status", "SWEEP", "--runs").out.splitlines()
    line = {
        run.id: " ".join(text.split()) for run, text in zip(mixed.runs, lines[2:], strict=False)
    }
    runs = mixed.runs

    assert line[runs[1].id] == f"{runs[1].id} {runs[1].name} failed 2/6 - 7_0 ValueError: no"
    assert line[runs[2].id] == f"{runs[2].id} {runs[2].name} queued -/6 - 7_2 Priority"
    assert line[runs[4].id].endswith("lost 2/6 - 7_0 NODE_FAIL (n7)")
    assert line[runs[6].id].endswith("missing -/6 -")


def test_a_running_run_says_how_long_it_takes(
    optlab: Optlab, mixed: Sweep, store: RunStore
) -> None:
    """4 of 6 steps at an hour each: 2 h left, less the time since the last record."""
    records = store.folder(mixed.runs[3].id) / "records.jsonl"
    os.utime(records, (time.time() - 1800, time.time() - 1800))
    told = optlab("status", "SWEEP", "--runs")
    row = optlab("status", "SWEEP", "--runs", "--json").json["list"][3]

    assert "running 4/6 90 min 7_3 node7" in " ".join(told.out.split())
    assert "The 1 running are 67% through; the last of them ends in about 90 min." in told.out
    assert row["seconds_left"] == pytest.approx(5400, abs=120)


def test_the_first_traceback_is_shown_with_what_helps(optlab: Optlab, mixed: Sweep) -> None:
    out = optlab("status", "SWEEP").out

    assert f"1 failed: {mixed.runs[1].name}: ValueError: no\n" in out
    assert f"1 lost: {mixed.runs[4].name}: NODE_FAIL (n7)\n" in out
    assert "  Traceback:\n  ValueError: no\n" in out
    assert "python -m optlab retry" in out


def test_a_sweep_without_a_store_is_missing(optlab: Optlab, store: RunStore, sweep: Sweep) -> None:
    assert optlab("status", "SWEEP", "--json").json["counts"] == {"missing": len(sweep.runs)}
    assert not store.root.exists()  # looking changes nothing


def test_without_slurm_status_says_what_it_cannot_know(
    optlab: Optlab, store: RunStore, sweep: Sweep, no_slurm: None
) -> None:
    fill(store, sweep.runs[0], ["slurm", "records"])
    out = optlab("status", "SWEEP").out

    assert "There is no SLURM on this machine" in out
    assert "lost" in out


DAMAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"{", b"null", b"[]", b"3", b'{"job": []}', b'{"cause": 1}', b'{"step": "x"}\n']
    ),
)
NAMES = st.sampled_from(
    ["result.json", "failure.json", "records.jsonl", "slurm.json", "owner.json", "job.json",
     "meta.json", "preempted.json", "lock"]
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.dictionaries(NAMES, DAMAGE, min_size=1, max_size=4))
def test_no_damage_to_a_folder_hides_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]
) -> None:
    """Whatever the files hold, every command about a sweep tells of all its runs."""
    from optlab.commands import failures, plan, status
    from optlab.launch.plan import describe, make_plan
    from optlab.sweep import ad_hoc

    monkeypatch.setattr(standing, "alive", lambda: {"7_0": RUNS})
    monkeypatch.setattr(standing, "why_ended", lambda jobs: dict.fromkeys(jobs, "NODE_FAIL"))
    store, sweep = RunStore(tmp_path / "runs"), _SWEEPS.setdefault(0, ad_hoc(SWEEP))
    run = sweep.runs[0]
    fill(store, run, ["slurm", "records"])
    for name, content in files.items():
        (store.folder(run.id) / name).write_bytes(content)

    found = standing.standings([run.id for run in sweep.runs], store, explain=True)
    rows = [status.row(run, store, found.of[run.id]) for run in sweep.runs]
    assert status.report(sweep, store, found, Former(), rows, listed=True)
    assert json.dumps(status.as_json(sweep, store, found, Former(), rows, listed=True))
    bad = {i: found.of[i] for i in found.among("failed", "lost")}
    assert failures.report(sweep, failures.grouped(sweep, store, bad))
    made = make_plan(sweep, store)
    assert describe(made) and json.dumps(plan.as_json(made))


_SWEEPS: dict[int, Sweep] = {}  # composed once for all examples


def test_records_torn_anywhere_give_the_last_whole_one(store: RunStore, sweep: Sweep) -> None:
    run = sweep.runs[0]
    fill(store, run, ["records"], steps=(0, 2))
    path = store.folder(run.id) / "records.jsonl"
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        lines = whole[:cut].split(b"\n")[:-1]

        assert last_record(store, run.id) == (decode(json.loads(lines[-1])) if lines else None)


def test_a_long_file_of_records_is_read_from_its_end(store: RunStore, sweep: Sweep) -> None:
    run = sweep.runs[0]
    fill(store, run, ["records"], steps=range(2000))

    assert last_record(store, run.id) == store.records(run.id)[-1]


def test_an_unknown_sweep_gives_the_nearest(optlab: Optlab) -> None:
    told = optlab("status", "dmo")

    assert (told.code, told.out) == (1, "")
    assert "Did you mean 'demo'?" in told.err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "optlab", "status", "demo", "--runs", f"runtime.runs={tmp_path}"]
    done = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -1', "bash", *words],
        env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def test_status_of_a_thousand_runs_is_quick_and_light(tmp_path: Path) -> None:
    """Nothing heavy is imported; the bound on the CPU time is generous, and far below Hydra's."""
    script = (
        "import sys, time; from optlab.__main__ import main; "
        f"code = main(['status', 'demo', 'seed=range(0,11)', 'runtime.runs={tmp_path}']); "
        "assert code == 0; "
        "heavy = {'torch', 'pandas', 'wandb', 'submitit', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; print(time.process_time())"
    )
    for _ in range(2):  # the first may compose
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    assert "1089 runs" in done.stdout
    assert float(done.stdout.split()[-1]) < 4
