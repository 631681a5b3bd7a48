"""``cancel`` and ``retry`` on real jobs of a real SLURM and real pools of this machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from optlab.launch import cancel as cancelling
from optlab.launch.queue import alive
from optlab.launch.standing import standings, submission
from optlab.paths import ROOT
from optlab.store import RunStore, recorded_owner, write_json
from optlab.sweep import ad_hoc
from support import environment, shrunk

from .conftest import SMALL, Optlab, Wait
from .stores import fill

# Long enough to be caught in the middle.
LONG = shrunk("train.steps=20000", "train.eval_every=100", "optimizer=adamw,scion", "seed=0,1")
TINY_ONES = shrunk("optimizer=adamw,scion", "seed=0,1")


def states(words: list[str], store: RunStore) -> dict[str, str]:
    sweep = ad_hoc(words)
    found = standings([run.id for run in sweep.runs], store, explain=True)
    return {run.name: found.of[run.id].state for run in sweep.runs}


def submit(words: list[str], store: RunStore, *settings: str) -> None:
    done = subprocess.run(
        [sys.executable, "launch.py", "-m", "hydra/launcher=slurm", *SMALL, *settings, *words,
         f"runtime.runs={store.root}"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def jobs(slurm: None, store: RunStore) -> Iterator[None]:
    """Cancels what is left of the test's jobs."""
    yield
    names = [path.name for path in (store.root / "slurm").glob("*")]
    if names:
        subprocess.run(["scancel", f"--name={','.join(names)}"], check=False)


def test_one_run_of_an_array_is_cancelled_and_no_other_and_retry_leaves_it(
    optlab: Optlab, store: RunStore, jobs: None, wait_until: Wait
) -> None:
    submit(LONG, store)
    runs = ad_hoc(LONG).runs
    chosen = runs[1]
    wait_until(lambda: len(store.records(chosen.id)) > 1)
    refused = optlab("cancel", *LONG, "--run", chosen.name)
    assert (refused.code, "--yes" in refused.err) == (1, True)
    given = submission(chosen.id, store)
    assert given and given.job in alive()

    told = optlab("cancel", *LONG, "--run", chosen.name, "--yes")

    assert told.code == 0
    assert f"1 run in 1 job: {chosen.name}" in told.out
    wait_until(lambda: given.job not in alive())
    wait_until(lambda: states(LONG, store)[chosen.name] == "preempted")
    assert (store.folder(chosen.id) / "checkpoint.pt").exists()
    others = [state for name, state in states(LONG, store).items() if name != chosen.name]
    assert set(others) <= {"queued", "running"}

    held = {run.id: submission(run.id, store) for run in runs}
    assert "nothing to retry" in optlab("retry", *LONG, *SMALL).out  # cancelled is not lost
    assert {run.id: submission(run.id, store) for run in runs} == held
    scions = [run.id for run in runs if run.method == "scion"]
    told = optlab("cancel", *LONG, "--method", "scion", "--yes", "--json")
    cancelled = [run_id for ids in told.json["jobs"].values() for run_id in ids]
    assert sorted(cancelled) == sorted(set(scions) - {chosen.id})


def test_a_packed_job_says_which_other_runs_end_with_it(
    optlab: Optlab, store: RunStore, jobs: None
) -> None:
    submit(LONG, store, "hydra.launcher.runs_per_job=4")
    runs = ad_hoc(LONG).runs
    told = optlab("cancel", *LONG, "--run", runs[0].id, "--yes")

    assert told.code == 0
    (line,) = [line for line in told.out.splitlines() if "also trains" in line]
    assert line.endswith(": it stops them, too")
    assert all(run.name in line for run in runs[1:]) and runs[0].name not in line
    assert set(states(LONG, store).values()) <= {"running", "queued", "missing", "preempted"}


def test_a_cancelled_task_that_never_began_is_missing_and_not_lost(
    optlab: Optlab, store: RunStore, jobs: None, wait_until: Wait
) -> None:
    """Accounting does not know it where it waited alone, and it is nobody's failure."""
    submit(TINY_ONES, store, "hydra.launcher.additional={hold:true}")
    run = ad_hoc(TINY_ONES).runs[1]
    given = submission(run.id, store)
    assert given and optlab("cancel", *TINY_ONES, "--run", run.id, "--yes").code == 0
    wait_until(lambda: given.job not in alive())

    assert states(TINY_ONES, store)[run.name] == "missing"
    noted = submission(run.id, store)
    assert noted and noted.cancelled and noted.submitted == given.submitted
    assert "nothing to retry" in optlab("retry", *TINY_ONES).out
    assert submission(run.id, store) == noted
    submit(TINY_ONES, store, "hydra.launcher.additional={hold:true}")
    again = submission(run.id, store)
    assert again and not again.cancelled and again.job in alive()


def test_retry_submits_failed_and_lost_runs_and_no_others(
    optlab: Optlab, store: RunStore, jobs: None, wait_until: Wait
) -> None:
    failed, lost, done, missing = ad_hoc(TINY_ONES).runs
    fill(store, failed, ["slurm", "records", "failure"], job="999990_0")
    fill(store, lost, ["slurm", "records"], job="999990_1")
    fill(store, done, ["records", "result"])
    result = (store.folder(done.id) / "result.json").stat().st_mtime_ns

    told = optlab("retry", *TINY_ONES, *SMALL)

    assert told.code == 0, told.err
    assert "Retrying 2 failed or lost runs with hydra/launcher=slurm hydra.launcher" in told.out
    wait_until(lambda: store.is_done(failed.id) and store.is_done(lost.id))
    assert (store.folder(done.id) / "result.json").stat().st_mtime_ns == result
    assert store.status(missing.id) == "missing"
    wait_until(lambda: not {submission(run.id, store).job for run in (failed, lost)} & set(alive()))
    assert "nothing to retry" in optlab("retry", *TINY_ONES).out


def test_retry_submits_with_the_settings_of_the_first_time(
    optlab: Optlab, store: RunStore, jobs: None
) -> None:
    failed, other, *_ = ad_hoc(TINY_ONES).runs
    fill(
        store,
        failed,
        ["slurm", "failure"],
        job="999990_0",
        words=[*SMALL, "+hydra.launcher.additional.comment=kept"],
    )
    fill(store, other, ["slurm", "failure"], job="999990_1")

    told = optlab("retry", *TINY_ONES, "hydra.launcher.memory=90M", "hydra.launcher.dry_run=true")

    assert told.code == 0, told.err
    kept = [word for word in SMALL if not word.startswith("hydra.launcher.memory")]
    first, second = [line for line in told.out.split("\n") if line.startswith("Retrying")]
    assert all(word in first for word in kept) and "comment=kept" in first
    assert "memory=90M" in first and first.count("memory") == 1
    assert second.endswith(
        "hydra/launcher=slurm hydra.launcher.memory=90M hydra.launcher.dry_run=true."
    )


def test_retry_where_slurm_does_not_answer_submits_nothing(
    optlab: Optlab, store: RunStore, unanswering: None
) -> None:
    fill(store, ad_hoc(TINY_ONES).runs[0], ["slurm"])
    told = optlab("retry", *TINY_ONES)

    assert told.code == 1
    assert "only SLURM knows" in told.err
    cancelled = optlab("cancel", *TINY_ONES, "--yes")
    assert (cancelled.code, "nothing was cancelled" in cancelled.err) == (1, True)


def test_runs_that_failed_here_are_retried_here(optlab: Optlab, store: RunStore) -> None:
    failed, *others = ad_hoc(TINY_ONES).runs
    fill(store, failed, ["records", "failure"])
    told = optlab("retry", *TINY_ONES, "hydra.launcher.workers=1")

    assert told.code == 0, told.err
    assert (
        "Retrying 1 failed or lost run with hydra/launcher=local hydra.launcher.workers=1."
        in told.out
    )
    assert store.status(failed.id) == "finished"
    assert {store.status(run.id) for run in others} == {"missing"}


def test_retry_as_json_is_one_object(optlab: Optlab, store: RunStore) -> None:
    failed, *_ = ad_hoc(TINY_ONES).runs
    fill(store, failed, ["records", "failure"])
    told = optlab("retry", *TINY_ONES, "--json", "hydra.launcher.workers=1")

    assert told.code == 0, told.err
    (part,) = told.json["retried"]
    assert (part["launcher"], part["runs"]) == ("local", [failed.id])
    assert "Retrying 1" in told.err
    assert store.status(failed.id) == "finished"


def test_a_dry_retry_launches_nothing(optlab: Optlab, store: RunStore) -> None:
    failed = ad_hoc(TINY_ONES).runs[0]
    fill(store, failed, ["records", "failure"])
    told = optlab("retry", *TINY_ONES, "--dry-run", "hydra.launcher.workers=1")

    assert told.code == 0, told.err
    assert "Would retry 1 failed or lost run with hydra/launcher=local" in told.out
    assert store.status(failed.id) == "failed"


def test_a_launcher_setting_that_does_not_exist_is_refused(optlab: Optlab, store: RunStore) -> None:
    fill(store, ad_hoc(TINY_ONES).runs[0], ["records", "failure"])
    told = optlab("retry", *TINY_ONES, "--launcher", "here", "hydra.launcher.wrkers=1")

    assert told.code == 1
    assert "wrkers" in told.err and "Traceback" not in told.err


@pytest.fixture
def launch(store: RunStore) -> Iterator[subprocess.Popen[str]]:
    """A pool of two workers at work on the long runs, each by itself."""
    process = subprocess.Popen(
        [sys.executable, "launch.py", "-m", *LONG, "hydra.launcher.workers=2",
         "hydra.launcher.stack=1", f"runtime.runs={store.root}"],
        cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def at_work(store: RunStore) -> list[str]:
    runs = ad_hoc(LONG).runs
    return [r.id for r in runs if store.status(r.id) == "running" and len(store.records(r.id)) > 1]


def test_one_run_of_a_pool_is_cancelled_and_the_pool_goes_on(
    optlab: Optlab, store: RunStore, launch: subprocess.Popen[str], wait_until: Wait
) -> None:
    chosen, _ = wait_until(lambda: found if len(found := at_work(store)) == 2 else None)
    told = optlab("cancel", *LONG, "--run", chosen, "--yes")

    assert told.code == 0
    assert "its launch goes on with other runs" in told.out
    assert "Told to save and stop: process" in told.out
    wait_until(lambda: store.status(chosen) == "preempted")
    wait_until(lambda: len(at_work(store)) == 2)  # the next run has taken its place
    assert chosen not in at_work(store)
    assert launch.poll() is None

    told = optlab("cancel", *LONG, "--yes")
    assert "its launch stops with it" in told.out
    launch.wait(timeout=120)
    assert launch.returncode == 130
    assert set(states(LONG, store).values()) <= {"preempted", "missing"}
    assert "none of these 4 runs is queued or running" in optlab("cancel", *LONG, "--yes").out


def test_cancelling_one_of_a_stack_says_that_its_process_trains_others(
    optlab: Optlab, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stop with it; the process is told once, however many of them are meant."""
    killed: list[int] = []
    monkeypatch.setattr(cancelling, "_end", lambda pid, what: killed.append(pid) or what)
    words = shrunk("optimizer=adamw", "seed=0,1,2")
    runs = ad_hoc(words).runs
    with contextlib.ExitStack() as stack:  # as a worker holds a stack
        for run in runs:
            fill(store, run, ["records"])
            stack.enter_context(store.lease(run.id))
        told = optlab("cancel", *words, "--run", runs[1].id, "--yes")
        assert f"1 run in process {os.getpid()} of this machine: {runs[1].name}" in told.out
        others = sorted([runs[0], runs[2]], key=lambda run: run.id)
        names = ", ".join(run.name for run in others)
        assert f"it also trains {names}: it stops them, too" in told.out

        told = optlab("cancel", *words, "--yes")
        assert "3 runs in process" in told.out and "it also trains" not in told.out
    assert killed == [os.getpid()] * 2


def test_a_process_that_is_not_ours_is_left_alone(
    optlab: Optlab, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("killed"))
    run = ad_hoc(TINY_ONES).runs[0]
    fill(store, run, ["records"])
    owner_file = store.folder(run.id) / "owner.json"
    with store.lease(run.id):
        ours = recorded_owner(owner_file)
        assert ours
        for change, words in (
            ({"host": "elsewhere"}, f"process {ours.pid} on elsewhere: cancel it there"),
            ({"pid": 2**22 + 1}, "cannot be found on this machine"),
            ({"pid": os.getppid()}, "no longer holds it"),
        ):
            write_json(owner_file, {**vars(ours), **change})
            told = optlab("cancel", *TINY_ONES, "--yes")

            assert told.code == 1
            assert words in told.out
        with monkeypatch.context() as patch:
            patch.setattr(os, "getuid", lambda: 12345)
            write_json(owner_file, vars(ours))
            assert "belongs to another user" in optlab("cancel", *TINY_ONES, "--yes").out


def test_cancelling_asks_once_on_a_terminal(
    optlab: Optlab, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions: list[str] = []
    killed: list[int] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(cancelling, "_end", lambda pid, what: killed.append(pid) or "told")
    run = ad_hoc(TINY_ONES).runs[0]
    fill(store, run, ["records"])
    with store.lease(run.id):
        for answer, code, ended in (("n", 1, 0), ("", 1, 0), ("y", 0, 1)):
            monkeypatch.setattr(
                "builtins.input", lambda text, a=answer: questions.append(text) or a
            )
            assert optlab("cancel", *TINY_ONES).code == code
            assert len(killed) == ended

    assert questions == ["Cancel? [y/N] "] * 3
    assert killed == [os.getpid()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "adamww"], "Did you mean 'adamw'?"),
        (["--run", "adamw-lr0.01-s9"], "Did you mean 'adamw-lr0.01-s"),
    ],
)
def test_an_unknown_method_or_run_gives_the_nearest(
    optlab: Optlab, words: list[str], message: str
) -> None:
    told = optlab("cancel", "SWEEP", "--yes", *words)

    assert told.code == 1
    assert message in told.err
