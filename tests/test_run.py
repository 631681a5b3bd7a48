"""The life of one run: interrupted anywhere it ends as if it had not been."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optlab import attempt as attempt_module
from optlab.checkpoint import load_checkpoint, save_checkpoint
from optlab.config import Run
from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import Record, RunStore
from support import environment, tiny

METHODS = ["adamw", "sgd_momentum", "muon_adam", "muonmax_momo", "scion_momo"]
STEPS = 6


def ignore(record: Record) -> None:
    del record


def attempt(run: Run, store: RunStore, *, stop_at: int | None = None) -> str:
    """One attempt, stopped at the record of step ``stop_at``."""
    stop = StopFlag()

    def report(record: Record) -> None:
        stop.is_set = stop.is_set or record.step == stop_at

    return run_one(run.id, store, tiny()[1], stop=stop, report=report).status


def outcome_files(run: Run, store: RunStore) -> tuple[str, list[dict[str, object]]]:
    """All that two executions of one run must agree in, bitwise."""
    records = store.records(run.id)
    for record in records:
        record.pop("seconds")
    text = json.dumps(records, default=str)  # NaN equals NaN as text
    return (store.folder(run.id) / "result.json").read_text(), json.loads(text)


@pytest.fixture
def tiny_run(store: RunStore) -> Run:
    run, _ = tiny("train.eval_every=1")
    store.freeze(run)
    return run


def test_a_run_finishes_with_its_result_last(store: RunStore, tiny_run: Run) -> None:
    assert attempt(tiny_run, store) == "finished"

    files = {path.name for path in store.folder(tiny_run.id).iterdir()}
    assert {"config.yaml", "job.json", "records.jsonl", "meta.json", "result.json"} <= files
    assert not {"checkpoint.pt", "failure.json", "reserve"} & files
    result = store.result(tiny_run.id)
    assert result is not None and result.step == STEPS
    assert result.final_loss == store.records(tiny_run.id)[-1]["val_loss"]
    assert len(result.weights_fingerprint) == len(result.batch_fingerprint) == 16


def test_a_done_run_is_not_trained_again(store: RunStore, tiny_run: Run) -> None:
    attempt(tiny_run, store)
    before = (store.folder(tiny_run.id) / "records.jsonl").stat().st_mtime_ns

    assert attempt(tiny_run, store) == "finished"
    assert (store.folder(tiny_run.id) / "records.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop_at", [0, 1, 5])
def test_an_interrupted_run_ends_bitwise_as_an_undisturbed_one(
    tmp_path: Path, method: str, stop_at: int
) -> None:
    run, _ = tiny("train.eval_every=1", f"optimizer={method}")
    disturbed, undisturbed = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    for store in (disturbed, undisturbed):
        store.freeze(run)
    assert attempt(run, undisturbed) == "finished"

    assert attempt(run, disturbed, stop_at=stop_at) == "preempted"
    assert disturbed.status(run.id) == "preempted"
    torch.rand(5)  # another process would have other random states
    assert attempt(run, disturbed) == "finished"
    assert outcome_files(run, disturbed) == outcome_files(run, undisturbed)


@settings(max_examples=8, deadline=None)
@given(stops=st.lists(st.integers(0, STEPS - 1), max_size=4))
def test_any_number_of_interruptions_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int]
) -> None:
    run, _ = tiny("train.eval_every=1")
    folder = tmp_path_factory.mktemp("runs")
    disturbed, undisturbed = RunStore(folder / "a"), RunStore(folder / "b")
    for store in (disturbed, undisturbed):
        store.freeze(run)
    for stop_at in sorted(stops):
        attempt(run, disturbed, stop_at=stop_at)
    attempt(run, disturbed)
    attempt(run, undisturbed)

    assert outcome_files(run, disturbed) == outcome_files(run, undisturbed)


def test_dropout_resumes_with_its_random_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model has dropout yet; the state of the generator is in the checkpoint all the same."""
    build = attempt_module.build

    def with_dropout(run: Run, device: torch.device, *how: Any, **more: Any) -> object:
        parts = build(run, device, *how, **more)
        parts.model.register_forward_pre_hook(
            lambda module, inputs: (torch.dropout(inputs[0], 0.5, module.training),)
        )
        return parts

    monkeypatch.setattr(attempt_module, "build", with_dropout)
    run, _ = tiny("train.eval_every=1")
    disturbed, undisturbed = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    for store in (disturbed, undisturbed):
        store.freeze(run)
    attempt(run, undisturbed)
    attempt(run, disturbed, stop_at=3)
    attempt(run, disturbed)

    assert outcome_files(run, disturbed) == outcome_files(run, undisturbed)


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty", "foreign", "ahead", "edited"])
def test_an_unusable_checkpoint_is_set_aside_and_the_run_starts_over(
    tmp_path: Path, damage: str
) -> None:
    run, _ = tiny("train.eval_every=1")
    store, undisturbed = RunStore(tmp_path / "a"), RunStore(tmp_path / "b")
    for each in (store, undisturbed):
        each.freeze(run)
    attempt(run, undisturbed)
    attempt(run, store, stop_at=3)
    folder = store.folder(run.id)
    checkpoint = folder / "checkpoint.pt"
    content = bytearray(checkpoint.read_bytes())
    if damage == "torn":
        checkpoint.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        weights = load_checkpoint(checkpoint)["model"]["head.weight"]
        place = content.index(weights.numpy().tobytes())
        content[place] ^= 1
        checkpoint.write_bytes(content)
    elif damage == "empty":
        checkpoint.write_bytes(b"")
    elif damage == "foreign":
        save_checkpoint(checkpoint, {**load_checkpoint(checkpoint), "run": "0" * 12})
    elif damage == "edited":
        path = folder / "records.jsonl"
        path.write_text(path.read_text().replace('"step": 1', '"step": 77'))
    else:
        store.keep_records(run.id, 1)

    assert attempt(run, store) == "finished"
    assert outcome_files(run, store) == outcome_files(run, undisturbed)
    assert len(list(folder.glob("checkpoint.unusable-*.pt"))) == 1
    assert "the run starts over" in (folder / "log.txt").read_text()


def test_checkpoints_are_saved_by_time(store: RunStore, tiny_run: Run) -> None:
    """A run killed without a signal goes on from the last one."""
    code = f"""
        import os, signal
        from dataclasses import replace
        from pathlib import Path
        from optlab.config import compose_run
        from optlab.checkpoint import load_checkpoint, save_checkpoint
        from optlab.run import run_one
        from optlab.stop import StopFlag
        from optlab.store import RunStore
        _, settings = compose_run(["runtime.checkpoint_every=0.0", "tracking.mode=off"])
        def report(record):
            if record.step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        run_one({tiny_run.id!r}, RunStore(Path({str(store.root)!r})), settings,
                stop=StopFlag(), report=report)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment())
    assert done.returncode == -signal.SIGKILL
    assert store.status(tiny_run.id) == "preempted"
    assert (store.folder(tiny_run.id) / "checkpoint.pt").exists()

    assert attempt(tiny_run, store) == "finished"
    log = (store.folder(tiny_run.id) / "log.txt").read_text()
    assert "Resumed at step 3." in log
    undisturbed = RunStore(store.root / "b")
    undisturbed.freeze(tiny_run)
    attempt(tiny_run, undisturbed)
    assert outcome_files(tiny_run, store) == outcome_files(tiny_run, undisturbed)


def test_a_failing_run_is_marked_with_its_traceback_and_tried_again(
    store: RunStore, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise MemoryError("80 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(attempt_module, "build", fail)
        assert attempt(tiny_run, store) == "failed"

    failure = store.failure(tiny_run.id)
    assert store.status(tiny_run.id) == "failed"
    assert failure is not None and failure["cause"] == "MemoryError: 80 GiB"
    assert "Traceback" in failure["detail"]
    assert "Traceback" in (store.folder(tiny_run.id) / "log.txt").read_text()
    assert attempt(tiny_run, store) == "finished"
    assert store.status(tiny_run.id) == "finished"


def test_a_diverged_run_is_a_result(store: RunStore) -> None:
    run, _ = tiny("optimizer=sgd_momentum", "optimizer.lr=1e20", "train.eval_every=1")
    store.freeze(run)

    assert attempt(run, store) == "diverged"
    result = store.result(run.id)
    assert result is not None and store.is_done(run.id)
    assert result.cause and result.diverged_at == result.step < STEPS


def test_a_run_that_learns_nothing_is_flagged(store: RunStore) -> None:
    run, _ = tiny("optimizer=sgd_momentum", "optimizer.lr=1e-12")
    useful, _ = tiny("optimizer=adamw", "optimizer.lr=0.05", "train.steps=60")
    for each in (run, useful):
        store.freeze(each)
        attempt(each, store)
    flat, good = store.result(run.id), store.result(useful.id)

    assert flat is not None and flat.at_chance
    assert good is not None and not good.at_chance and good.final_loss < good.chance_loss


def test_a_run_that_another_process_writes_is_left_alone(store: RunStore, tiny_run: Run) -> None:
    with store.lease(tiny_run.id):
        assert attempt(tiny_run, store) == "busy"
    assert store.records(tiny_run.id) == []


def test_the_fingerprints_tell_pairs_from_others(store: RunStore) -> None:
    prints = {}
    for overrides in (("optimizer=adamw",), ("optimizer=scion",), ("optimizer=adamw", "seed=1")):
        run, _ = tiny(*overrides)
        store.freeze(run)
        attempt(run, store)
        result = store.result(run.id)
        assert result is not None
        prints[overrides] = (result.weights_fingerprint, result.batch_fingerprint)
    first, paired, other = prints.values()

    assert first == paired
    assert first[0] != other[0] and first[1] != other[1]


def test_meta_tells_where_the_numbers_come_from(store: RunStore, tiny_run: Run) -> None:
    attempt(tiny_run, store)
    meta = json.loads((store.folder(tiny_run.id) / "meta.json").read_text())

    assert meta["versions"]["torch"] == torch.__version__
    assert {"commit", "dirty", "host", "device", "python", "threads"} <= set(meta)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_full_disk_marks_the_run_failed_and_leaves_the_others_intact(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = RunStore(disk / "runs")
        done, run = tiny("seed=1")[0], tiny("train.eval_every=1")[0]
        for each in (done, run):
            store.freeze(each)
        attempt(done, store)
        before = (store.folder(done.id) / "result.json").read_bytes()
        stop = StopFlag()

        def fill_up(record: Record) -> None:
            if record.step == 2:
                with (disk / "ballast").open("wb", buffering=0) as file:
                    while True:
                        try:
                            file.write(b"x" * 512)
                        except OSError:
                            return

        outcome = run_one(run.id, store, tiny()[1], stop=stop, report=fill_up)

        assert outcome.status == "failed" and outcome.disk_full
        assert store.status(run.id) == "failed"
        failure = store.failure(run.id)
        assert failure is not None and "No space left on device" in failure["cause"]
        assert (store.folder(done.id) / "result.json").read_bytes() == before
        (disk / "ballast").unlink()
        assert attempt(run, store) == "finished"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_golden_records(store: RunStore) -> None:
    """The numbers of one tiny run.

    If you did not mean to change what is computed, this is a bug. If you did, update the numbers,
    and say in CHANGELOG under Numbers what moved and why.
    """
    run, _ = tiny("optimizer=muonmax_momo", "optimizer.lr=0.1", "train.eval_every=3")
    store.freeze(run)
    attempt(run, store)
    records = store.records(run.id)
    found = [(r["step"], r["val_loss"], r["step_size"], r["dual_norm"]) for r in records]
    expected = GOLDEN

    assert [row[0] for row in found] == [row[0] for row in expected]
    for row, gold in zip(found, expected, strict=True):
        # float32, and kernels differ between processors
        assert row[1:] == pytest.approx(gold[1:], rel=1e-4, nan_ok=True)


GOLDEN = [  # step, validation loss, step size, dual norm
    (0, 2.3824267, 0.1, math.nan),
    (3, 2.4702897, 0.1, 2.6335371),
    (6, 2.4712460, 0.0255737, 2.2486749),
]
