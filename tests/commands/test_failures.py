"""``python -m optlab failures`` and ``logs``: why, which, and what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optlab.launch import standing
from optlab.launch.diagnosis import alike, diagnosis
from optlab.paths import ROOT
from optlab.store import Record, RunStore
from optlab.sweep import Sweep
from support import environment

from .conftest import Optlab, Wait
from .stores import fill


@pytest.mark.parametrize(
    ("cause", "detail", "kind"),
    [
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "", "out of memory"),
        ("OUT_OF_MEMORY (node n7)", "", "out of memory"),
        ("RuntimeError: x", "Traceback\nMemoryError: cannot allocate", "out of memory"),
        ("OSError: [Errno 28] No space left on device", "", "disk full"),
        ("OSError: [Errno 122] Disk quota exceeded", "", "disk full"),
        ("NODE_FAIL (node n7)", "", "node lost"),
        ("TIMEOUT (limit 01:00:00)", "", "time limit"),
        ("PREEMPTED", "", "preempted too often"),
        ("its job was requeued 50 times, and hydra.launcher.max_requeues allows 50", "",
         "preempted too often"),
        ("its worker was killed by SIGKILL, 2 times (out of memory?)", "", "out of memory"),
        ("its worker was killed by SIGSEGV", "", "killed"),
        ("FAILED (killed by SIGKILL)", "", "killed"),
        ("FAILED (exit code 1)", "", "gone without a word"),
        ("UNKNOWN (sacct does not know the job)", "", "gone without a word"),
        ("its job is gone", "", "gone without a word"),
        ("result.json is damaged", "", "damaged files"),
        ("ConfigError: runs/x/config.yaml was changed after the run was launched", "",
         "damaged files"),
        ("ValueError: shapes", "Traceback\n...\nValueError: shapes", "exception in the code"),
        ("", "", "exception in the code"),
    ],
)  # fmt: skip
def test_causes_are_told_apart(cause: str, detail: str, kind: str) -> None:
    assert diagnosis(cause, detail).kind == kind


def test_causes_that_differ_in_numbers_only_are_alike() -> None:
    assert alike("Tried to allocate 2.50 GiB on GPU 0") == alike(
        "Tried to allocate 30 GiB on GPU 3"
    )
    assert alike("NODE_FAIL (node n7)") == alike("NODE_FAIL (node n12)")
    assert alike("cannot read /data/a/b.bin") == alike("cannot read /scratch/c.bin")
    assert alike("run 0123456789ab failed") == alike("run ba9876543210 failed")
    assert alike("shapes 3 and 4") != alike("shape 3 and 4")


@pytest.fixture
def failed(store: RunStore, sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """Three runs out of memory, one with a bug, one lost with its node; the others missing."""
    monkeypatch.setattr(standing, "alive", dict)
    monkeypatch.setattr(standing, "why_ended", lambda jobs: dict.fromkeys(jobs, "NODE_FAIL (n7)"))
    for number, run in enumerate(sweep.runs[:3]):
        fill(store, run, ["records"])
        cause = f"OutOfMemoryError: CUDA out of memory. Tried to allocate {number}.5 GiB"
        store.fail(run.id, cause, f"Traceback:\n  in step {number}\n{cause}\n")
    fill(store, sweep.runs[3], ["records", "failure"])
    fill(store, sweep.runs[4], ["slurm", "records"])
    (store.root / "7_0.log").write_text("first line\nthe node is going down\n")
    return sweep


def test_failures_are_grouped_by_cause_with_what_to_do(optlab: Optlab, failed: Sweep) -> None:
    told = optlab("failures", "SWEEP")
    groups = optlab("failures", "SWEEP", "--json").json["groups"]

    assert told.code == 0
    assert "5 of 8 runs failed or are lost." in told.out
    assert [(group["kind"], len(group["runs"])) for group in groups] == [
        ("out of memory", 3),
        ("exception in the code", 1),
        ("node lost", 1),
    ]
    assert {run for group in groups for run in group["runs"]} == {r.id for r in failed.runs[:5]}
    assert "3 runs, out of memory: OutOfMemoryError" in told.out
    assert f"  {failed.runs[0].name} ({failed.runs[0].id}), " in told.out
    assert "      in step 0\n" in told.out
    assert "    the node is going down\n" in told.out  # a lost run's job had the last word
    assert told.out.count("What to do: ") == 3


def test_a_sweep_without_failures_says_so(optlab: Optlab) -> None:
    told = optlab("failures", "SWEEP")

    assert (told.code, told.out.count("no run has failed or is lost")) == (0, 1)


@pytest.mark.parametrize("how", ["id", "prefix", "name"])
def test_logs_are_found_by_id_prefix_and_name(optlab: Optlab, failed: Sweep, how: str) -> None:
    run = failed.runs[3]
    word = {"id": run.id, "prefix": run.id[:7], "name": run.name}[how]
    told = optlab("logs", word)

    assert told.code == 0
    assert told.out.startswith(f"Run {run.id} ({run.name}), failed: ValueError: no\n")
    assert "Traceback:\nValueError: no" in told.out
    assert f"{run.id}/log.txt" in told.out


def test_logs_hold_the_end_of_the_jobs_output(
    optlab: Optlab, failed: Sweep, store: RunStore
) -> None:
    run = failed.runs[4]
    (store.folder(run.id) / "log.txt").write_text("".join(f"line {k}\n" for k in range(100)))
    out = optlab("logs", run.id, "--lines", "2").out

    assert "output of job 7_0" in out and "the node is going down" in out
    assert "  ... 98 lines before\n  line 98\n  line 99\n" in out


def test_logs_as_json_are_one_object(optlab: Optlab, failed: Sweep) -> None:
    run = failed.runs[0].id
    told = optlab("logs", run, "--json")

    assert told.json["run"] == run and told.json["state"] == "failed"
    assert told.json["files"] and all(file["text"] for file in told.json["files"])
    assert "give one of them" in optlab("logs", run, "--json", "--follow").err


def test_an_unknown_run_gives_the_nearest(optlab: Optlab, failed: Sweep) -> None:
    told = optlab("logs", failed.runs[0].name + "x")

    assert told.code == 1
    assert f"Did you mean '{failed.runs[0].name}'?" in told.err


def test_an_ambiguous_name_lists_the_runs_and_a_sweep_decides(
    optlab: Optlab, failed: Sweep, store: RunStore
) -> None:
    """The same method, learning rate and seed with another model are two runs of one name."""
    from support import tiny

    run = failed.runs[0]
    twin, _ = tiny(f"optimizer={run.method}", f"optimizer.lr={run.lr}", f"seed={run.seed}",
                   "model.width=16")  # fmt: skip
    fill(store, twin, ["records"])
    told = optlab("logs", run.name)

    assert told.code == 1
    assert run.id in told.err and twin.id in told.err and "--sweep" in told.err
    assert twin.name == run.name
    words = [word for word in failed.command.split() if not word.startswith("optimizer=")]
    found = optlab("logs", run.name, "--sweep", "optimizer=adamw,scion", *words)
    assert found.out.startswith(f"Run {run.id} ")


def test_follow_prints_what_comes_until_the_run_has_ended(
    store: RunStore, sweep: Sweep, wait_until: Wait
) -> None:
    run = sweep.runs[0]
    fill(store, run, ["records"])
    log = store.folder(run.id) / "log.txt"
    log.write_text("before\n")
    with store.lease(run.id):
        process = subprocess.Popen(
            [sys.executable, "-m", "optlab", "logs", run.id, "--follow",
             f"runtime.runs={store.root}"],
            env=environment(), cwd=ROOT, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if "Following" in line:
                break
        with log.open("a") as file:
            file.write("something happens\n")
        store.append(run.id, Record(4, 64, 1.0, 1.5, 1.25, 0.1, 0.1, 1.0))
        seen = [process.stdout.readline(), process.stdout.readline()]
        fill_result(store, run.id)
    rest = process.communicate(timeout=60)[0]

    assert seen == ["  something happens\n", "  step      4  train 1.5000  val 1.2500\n"]
    assert process.returncode == 0
    assert f"Run {run.id} ({run.name}), finished" in rest


def fill_result(store: RunStore, run_id: str) -> None:
    from optlab.store import Result

    store.finish(run_id, Result("finished", "", 6, None, 2.3, 1.0, 1.0, 0.5, 2.3, False, "w", "b"))


def test_following_ends_with_ctrl_c(store: RunStore, sweep: Sweep) -> None:
    import signal

    fill(store, sweep.runs[0], ["records"])
    with store.lease(sweep.runs[0].id):
        process = subprocess.Popen(
            [sys.executable, "-m", "optlab", "logs", sweep.runs[0].id, "-f",
             f"runtime.runs={store.root}"],
            env=environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout
        for line in process.stdout:
            if "Following" in line:
                break
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert process.returncode == 130
