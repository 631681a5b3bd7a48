"""The mirror in W&B: what the real client writes, and that its failures never hurt a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from optlab.config import compose_run
from optlab.run import StopFlag, run_one
from optlab.store import Record, RunStore
from support import environment, shrunk


def train(store: RunStore, *overrides: str, report: object = None) -> tuple[str, str]:
    """Train a tiny run with tracking; (id, status)."""
    tracked = [word for word in shrunk(*overrides) if word != "tracking.mode=off"]
    run, settings = compose_run([*tracked, *(w for w in overrides if w == "tracking.mode=off")])
    store.freeze(run)

    def say(record: Record) -> None:
        if report is not None:
            report(record)  # type: ignore[operator]

    return run.id, run_one(run.id, store, settings, stop=StopFlag(), report=say).status


def inspected(folder: Path, *, summary: bool) -> list[dict[str, object]]:
    """What W&B's own reader finds in the one offline run below ``folder``."""
    (file,) = folder.rglob("*.wandb")
    flags = ["--summary"] if summary else []
    done = subprocess.run(
        [Path(sys.executable).with_name("wandb"), "leet", "inspect", *flags, "--json", str(file)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.strip().startswith("{")]


def test_an_offline_run_carries_config_history_and_outcome(store: RunStore) -> None:
    run_id, status = train(store, "optimizer=muonmax_momo", "optimizer.lr=0.125")
    assert status == "finished"
    text = json.dumps(inspected(store.folder(run_id), summary=False))

    assert run_id in text and "muonmax_momo-lr0.125-s0" in text
    for word in ("val_loss", "step_size", "dual_norm", "accuracy", '"outcome"', "method"):
        assert word in text.replace('\\"', '"'), word


def test_tracking_off_writes_no_mirror(store: RunStore) -> None:
    run_id, status = train(store, "tracking.mode=off")

    assert status == "finished"
    assert not list(store.folder(run_id).rglob("*.wandb"))


def test_the_records_are_the_same_with_and_without_tracking(tmp_path: Path) -> None:
    stores = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    run_id, _ = train(stores[0], "tracking.mode=offline")
    train(stores[1], "tracking.mode=off")
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
    # A run of its own: the client keeps the id of a run that could not be finished.
    run_id, status = train(store, f"model.width={len(call)}")
    log = (store.folder(run_id) / "log.txt").read_text()

    assert status == "finished"
    assert len(store.records(run_id)) == 4
    assert log.count("W&B failed and is dropped") == 1 and "gone" in log


def test_a_killed_helper_process_never_hurts_a_run(tmp_path: Path) -> None:
    """wandb-core, the client's helper, dies with SIGTERM; the next log call raises."""
    code = f"""
import os, signal, subprocess, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_tracking import train
from optlab.store import RunStore

def kill_core(record):
    if record.step == 2:
        listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
                                capture_output=True, text=True).stdout
        cores = [int(l.split()[0]) for l in listed.splitlines() if "wandb-core" in l]
        assert cores, listed
        for pid in cores:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)

print(*train(RunStore(Path({str(tmp_path)!r})), report=kill_core))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    run_id, status = done.stdout.split()[-2:]

    assert status == "finished"
    assert len(RunStore(tmp_path).records(run_id)) == 4


def test_an_unreachable_server_falls_back_quickly(store: RunStore) -> None:
    """Nothing listens on this loopback port; the run goes on without its mirror."""
    os.environ.update({"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40})
    try:
        run_id, status = train(store, "tracking.mode=online")
    finally:
        for name in ("WANDB_BASE_URL", "WANDB_API_KEY"):
            os.environ.pop(name)
    assert status == "finished"
    assert len(store.records(run_id)) == 4
