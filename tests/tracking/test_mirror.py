"""The mirror in W&B: what the real client sends, and that its failures never hurt a run."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb

from optlab.launch.here import launch_here
from optlab.paths import ROOT
from optlab.store import Record, RunStore
from optlab.tracking import client, mirror, rows
from support import environment
from tracking.backend import KEY, Backend, Request
from tracking.trained import compose, sweep_in, train

TRACKING = Path(__file__).parent


def inspected(folder: Path, *flags: str) -> str:
    """What W&B's own reader finds in the one offline run below ``folder``."""
    (file,) = folder.rglob("offline-run-*/*.wandb")
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", *flags, "--json", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace('\\"', '"')


def child(code: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, with the tests' modules at hand."""
    env = {**with_tests(), **more}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )


def with_tests() -> dict[str, str]:
    """The environment of a child process that also imports the tests' modules."""
    return {**environment(), "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}


def local_rows(store: RunStore, run_id: str) -> list[dict[str, object]]:
    return rows.history(store.records(run_id), store.diagnostics(run_id))


def same(sent: dict[str, object], own: dict[str, object]) -> bool:
    """A row as W&B has it, and as the store has it; W&B adds keys of its own."""
    shown = {key: value for key, value in sent.items() if not key.startswith("_")}
    return repr(sorted(floats(shown).items())) == repr(sorted(floats(own).items()))


def floats(row: dict[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items()}  # type: ignore[arg-type]


def assert_whole(backend: Backend, store: RunStore, run_id: str) -> None:
    """The history in W&B is the store's, row by row, and numbered without a gap."""
    history, own = backend.run(run_id).history, local_rows(store, run_id)

    assert [row["_step"] for row in history] == list(range(len(own)))
    assert all(map(same, history, own))


def test_an_online_run_shows_config_history_and_outcome(backend: Backend, store: RunStore) -> None:
    run_id, status = train(
        store, "online", "optimizer.lr=0.125", "tracking.tags=[trial]", group="demo"
    )
    sent = backend.run(run_id)
    run = store.load(run_id)

    assert status == "finished" and sent.state == "finished"
    assert (sent.display_name, sent.group, sent.job_type) == (run.name, "demo", "train")
    assert set(sent.tags) == {"demo", "trial"}
    assert (sent.values["method"], sent.values["lr"]) == ("muonmax_momo", 0.125)
    assert sent.values["resolved"]["train"]["batch_size"] == 16
    assert_whole(backend, store, run_id)
    assert math.isnan(sent.history[0]["train_loss"])
    assert {"dual_norm/matrix", "update/matrix", "samples_per_second"} <= set(sent.history[-1])
    assert sent.summary["outcome"] == "finished"
    assert sent.summary["final_loss"] == store.records(run_id)[-1]["val_loss"]
    assert sent.summary["best_loss"] == min(r["val_loss"] for r in store.records(run_id))
    assert sent.config["_wandb"]["value"]["m"][-1]["1"] == "step"  # what curves run over


def test_a_diverged_run_keeps_its_nan(backend: Backend, store: RunStore) -> None:
    run_id, status = train(store, "online", "optimizer=sgd_momentum", "optimizer.lr=1e30")
    sent = backend.run(run_id)

    assert status == "diverged" and sent.summary["outcome"] == "diverged"
    assert sent.summary["diverged_at"] == store.result(run_id).diverged_at  # type: ignore[union-attr]
    assert_whole(backend, store, run_id)


def test_a_run_that_is_stopped_and_resumed_has_one_continuous_history(
    backend: Backend, store: RunStore
) -> None:
    run_id, status = train(store, "online", stop_at=2)
    assert status == "preempted" and backend.run(run_id).summary["outcome"] == "preempted"
    _, status = train(store, "online", stop_at=4)
    _, status = train(store, "online")

    assert status == "finished"
    assert [row["step"] for row in backend.run(run_id).history] == [0, 2, 4, 6]
    assert_whole(backend, store, run_id)


def test_rows_of_an_attempt_that_had_come_further_are_not_repeated(
    backend: Backend, store: RunStore
) -> None:
    """Its checkpoint is older than what it had sent; the resumed run repeats the same numbers."""
    first = RunStore(store.root.with_name("first"))
    run_id, _ = train(first, "online", stop_at=4)
    _, status = train(store, "online")

    assert status == "finished"
    assert [row["step"] for row in backend.run(run_id).history] == [0, 2, 4, 6]
    assert [row["_step"] for row in backend.run(run_id).history] == [0, 1, 2, 3]


def test_another_history_of_the_same_id_is_left_alone(backend: Backend, store: RunStore) -> None:
    run_id, _ = train(store, "online", stop_at=2)
    backend.run(run_id).summary["step"] = 1
    _, status = train(store, "online")
    log = (store.folder(run_id) / "log.txt").read_text()

    assert status == "finished"
    assert "W&B holds another history of this run" in log and "Mirrored offline instead" in log
    assert [row["step"] for row in backend.run(run_id).history] == [0, 2]


def test_an_offline_run_can_be_read_by_wandb(store: RunStore) -> None:
    run_id, status = train(store, "offline", "optimizer.lr=0.125", group="demo")
    text = inspected(store.folder(run_id))
    summary = json.loads(inspected(store.folder(run_id), "--summary"))

    assert status == "finished"
    assert run_id in text and "muonmax_momo-lr0.125-s0" in text
    for word in ("val_loss", "step_size", "dual_norm/matrix", "accuracy", "outcome", "method"):
        assert f'"{word}"' in text, word
    assert "finished" in json.dumps(summary)


def test_the_offline_file_of_a_resumed_run_holds_the_whole_history(store: RunStore) -> None:
    run_id, _ = train(store, "offline", stop_at=2)
    first = {path.name for path in (store.folder(run_id) / "wandb").iterdir()}
    train(store, "offline")
    folders = (store.folder(run_id) / "wandb").glob("offline-run-*")
    (last,) = (path for path in folders if path.name not in first)
    (last / "offline-run-alone").mkdir()
    next(last.glob("*.wandb")).rename(last / "offline-run-alone" / "run.wandb")
    text = inspected(last)

    assert all(str(row["val_loss"]) in text for row in store.records(run_id))


def test_tracking_off_writes_no_mirror(store: RunStore) -> None:
    run_id, status = train(store, "off")

    assert status == "finished"
    assert not list(store.folder(run_id).rglob("*.wandb"))


def test_the_records_are_the_same_with_and_without_tracking(tmp_path: Path) -> None:
    stores = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    run_id, _ = train(stores[0], "offline")
    train(stores[1], "off")
    results = [(store.folder(run_id) / "result.json").read_text() for store in stores]

    assert results[0] == results[1]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_failing_client_never_hurts_a_run(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ConnectionResetError("gone")

    owner = wandb if call == "init" else wandb.Run
    monkeypatch.setattr(owner, call, fail)
    run_id, status = train(store, "offline")
    log = (store.folder(run_id) / "log.txt").read_text()

    assert status == "finished"
    assert len(store.records(run_id)) == 4
    assert log.count("W&B failed and is dropped") == 1 and "gone" in log


def test_a_killed_helper_process_costs_one_mirror(backend: Backend, tmp_path: Path) -> None:
    """wandb-core, the client's helper, is killed: the next call raises, the run after is fine."""
    code = f"""
import os, signal, subprocess
from pathlib import Path
from optlab.store import RunStore
from tracking.trained import train

def kill_core(record):
    if record.step == 2:
        listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
                                capture_output=True, text=True).stdout
        cores = [int(l.split()[0]) for l in listed.splitlines() if "wandb-core" in l]
        assert cores, listed
        for pid in cores:
            os.kill(pid, signal.SIGKILL)

store = RunStore(Path({str(tmp_path)!r}))
print(*train(store, "online", report=kill_core), *train(store, "online", "seed=1"))
"""
    done = child(code)
    assert done.returncode == 0, done.stderr
    first, status, second, other = done.stdout.split()[-4:]
    store = RunStore(tmp_path)

    assert (status, other) == ("finished", "finished")
    assert len(store.records(first)) == 4
    assert "W&B failed and is dropped" in (store.folder(first) / "log.txt").read_text()
    assert_whole(backend, store, second)


def test_a_run_that_is_killed_resumes_with_one_continuous_history(
    backend: Backend, tmp_path: Path
) -> None:
    """SIGKILL reaches run and helper; what had not been uploaded comes with the next attempt."""
    code = f"""
import os, signal
from pathlib import Path
from optlab.store import RunStore
from tracking.trained import train

def kill(record):
    if record.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

train(RunStore(Path({str(tmp_path)!r})), "online", "runtime.checkpoint_every=0.0", report=kill)
"""
    done = child(code)
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = RunStore(tmp_path)
    run_id, status = train(store, "online")

    assert status == "finished"
    assert "Resumed at step 3" in (store.folder(run_id) / "log.txt").read_text()
    assert [row["step"] for row in backend.run(run_id).history] == [0, 2, 4, 6]
    assert_whole(backend, store, run_id)


@pytest.mark.parametrize("fault", ["never answers", "answers 500", "is not there"])
def test_a_server_that_is_away_means_an_offline_mirror(
    backend: Backend, store: RunStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(client, "START_WITHIN", 1)
    if fault == "is not there":
        backend.stop()
    else:
        backend.fault = backend.hang if fault == "never answers" else lambda request: (500, {})
    run_id, status = train(store, "online")
    log = (store.folder(run_id) / "log.txt").read_text()

    assert status == "finished" and len(store.records(run_id)) == 4
    assert log.count("does not answer: check the network") == 1
    assert "Mirrored offline instead" in log and "dropped" not in log
    assert inspected(store.folder(run_id)).count("val_loss") >= 4


@pytest.mark.parametrize("there", [True, False])
def test_a_launch_says_at_its_end_what_w_and_b_has_nothing_of(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(client, "START_WITHIN", 1)
    sweep = sweep_in(tmp_path, "optimizer=adamw", "optimizer.lr=0.01", "tracking.mode=online")
    if not there:
        backend.stop()
    store, lines = RunStore(sweep.settings.runtime.runs_folder), []
    launch_here(sweep, store, lines.append, dry_run=False)

    told = [line for line in lines if line.startswith("W&B has nothing of")]
    assert len(told) == (0 if there else 1)
    if not there:
        log = store.folder(sweep.runs[0].id) / "log.txt"
        assert told[0].startswith(
            f"W&B has nothing of 2 runs, mirrored offline instead ({log} says"
        )
        assert f"python -m optlab sync {sweep.command.removeprefix('sweeps=')} pub" in told[0]
        assert "Mirrored offline instead" in log.read_text()


def test_a_server_that_never_answers_holds_the_start_for_little(
    backend: Backend, tmp_path: Path
) -> None:
    """Less than 10 s where the machine is idle, the client's import included; 12 s at most."""
    backend.fault = backend.hang
    code = f"""
import time
from pathlib import Path
from optlab.store import RunStore
from optlab.tracking.mirror import Mirror
from tracking.trained import compose

run, settings = compose("online")
store = RunStore(Path({str(tmp_path)!r}))
store.freeze(run)
before = time.monotonic()
mirror = Mirror.start(run, store, settings.tracking)
print(time.monotonic() - before, flush=True)
mirror.finish("finished")
"""
    done = child(code)
    assert done.returncode == 0, done.stderr
    (log,) = tmp_path.glob("*/log.txt")

    assert "does not answer" in log.read_text() and "Mirrored offline" in log.read_text()
    assert 5 < float(done.stdout.split()[-1]) < 12


@pytest.mark.parametrize(
    ("fault", "within"),
    [("refuses", 1.0), ("never answers", mirror.END_WITHIN), ("is gone", 1.0)],
)
def test_a_server_that_goes_away_in_mid_run_delays_the_end_by_little(
    backend: Backend, store: RunStore, monkeypatch: pytest.MonkeyPatch, fault: str, within: float
) -> None:
    """At most ``END_WITHIN``, and some seconds for a busy machine."""
    monkeypatch.setattr(mirror, "END_WITHIN", within)
    gone: list[float] = []

    def go_away(record: Record) -> None:
        if record.step != 2:
            return
        gone.append(time.monotonic())
        if fault == "is gone":
            backend.stop()
        else:
            stop = backend.hang if fault == "never answers" else lambda request: (500, {})
            backend.fault = stop

    run_id, status = train(store, "online", report=go_away)

    assert time.monotonic() - gone[0] < 25
    assert status == "finished" and len(store.records(run_id)) == 4
    assert store.is_done(run_id)


def test_a_wrong_key_is_told_in_one_sentence(
    backend: Backend, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wrong" + KEY[5:])
    wandb.teardown()
    run_id, status = train(store, "online")
    log = (store.folder(run_id) / "log.txt").read_text()

    assert status == "finished"
    assert f"{backend.url} does not accept the API key: run `wandb login --relogin`" in log
    assert log.count("API key: run") == 1 and KEY[5:] not in log


def test_a_missing_key_does_not_wait_for_an_answer(
    backend: Backend, store: RunStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    run_id, status = train(store, "online")

    assert status == "finished"
    assert "There is no API key" in (store.folder(run_id) / "log.txt").read_text()
    assert backend.requests == []


def test_twenty_mirrors_of_four_processes_lose_and_mix_nothing(
    backend: Backend, store: RunStore
) -> None:
    """All of them open before the first one ends."""
    run, settings = compose("online")
    tracking = dataclasses.astuple(settings.tracking)
    runs = [dataclasses.replace(run, config={**run.config, "seed": seed}) for seed in range(20)]
    for each in runs:
        store.freeze(each)
    ids = [each.id for each in runs]
    code = f"""
import math, sys
from pathlib import Path
from optlab.config import TrackingConfig
from optlab.store import Record, RunStore
from optlab.tracking.mirror import Mirror

store, config = RunStore(Path({str(store.root)!r})), TrackingConfig(*{tracking!r})
opened = []
for run_id in sys.argv[1:]:
    run = store.load(run_id)
    opened.append((run, Mirror.start(run, store, config)))
print("open", flush=True)
sys.stdin.readline()
for step in (0, 2, 4):
    for run, each in opened:
        loss = 100.0 * run.seed + step
        record = Record(step, 16 * step, step / 8, math.nan, loss, 0.1, 0.1, 1.0)
        store.append(run.id, record)
        each.log(record, {{}})
for _, each in opened:
    each.finish("finished")
"""
    words = [[sys.executable, "-c", code, *ids[part : part + 5]] for part in range(0, 20, 5)]
    with contextlib.ExitStack() as stack:
        started = [
            stack.enter_context(
                subprocess.Popen(
                    each,
                    env=environment(),
                    text=True,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            for each in words
        ]
        for one in started:
            assert one.stdout is not None and one.stdout.readline() == "open\n"
        assert len(backend.runs) == 20
        for one in started:
            one.communicate("go\n", timeout=120)

    assert [one.returncode for one in started] == [0] * 4
    for run in runs:
        losses = [row["val_loss"] for row in backend.run(run.id).history]
        assert losses == [100.0 * run.seed + step for step in (0, 2, 4)]


def test_requests_are_kept_for_reading(backend: Backend, store: RunStore, tmp_path: Path) -> None:
    train(store, "online")
    (tmp_path / "requests.jsonl").write_text(backend.dump())
    kinds = [json.loads(line)["kind"] for line in backend.dump().splitlines()]

    assert {"UpsertBucket", "file_stream", "RunResumeStatus"} <= set(kinds)
    assert isinstance(backend.requests[0], Request)
