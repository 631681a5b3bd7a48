"""The run store: what is on disk, what can be read back, who may write."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optlab.errors import ConfigError
from optlab.store import (
    RECORD_COLUMNS,
    RUN_COLUMNS,
    Busy,
    Record,
    Result,
    RunStore,
    check_writable,
    read_json,
    write_json,
    write_text,
)
from support import environment, tiny

RECORD = Record(
    step=0,
    samples=0,
    seconds=0.0,
    train_loss=math.nan,
    val_loss=2.3,
    lr=0.1,
    step_size=0.05,
    dual_norm=math.inf,
    extra={"accuracy": 0.1},
)
RESULT = Result(
    outcome="finished",
    cause="",
    step=6,
    diverged_at=None,
    initial_loss=2.3,
    final_loss=0.5,
    final_train_loss=0.4,
    accuracy=0.9,
    chance_loss=2.3,
    at_chance=False,
    weights_fingerprint="w",
    batch_fingerprint="b",
)


def test_a_frozen_run_is_read_back_whatever_happens_to_the_yaml_files(store: RunStore) -> None:
    run, _ = tiny("optimizer.lr=1e-5")
    store.freeze(run)
    back = store.load(run.id)

    assert back.config == run.config and back.choices == run.choices


def test_a_config_changed_after_launch_is_refused(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    path = store.folder(run.id) / "config.yaml"
    path.write_text(path.read_text().replace("seed: 0", "seed: 1"))

    with pytest.raises(ConfigError, match="was changed after the run was launched"):
        store.load(run.id)


def test_freezing_mends_a_torn_config(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    (store.folder(run.id) / "config.yaml").write_text("seed: [")
    store.freeze(run)

    assert store.load(run.id).id == run.id


def test_non_finite_numbers_survive_in_strict_json(tmp_path: Path) -> None:
    row = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5, "e": "word", "f": None}
    write_json(tmp_path / "x.json", row)
    strict = json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail)
    back = read_json(tmp_path / "x.json")

    assert strict["a"] == "nan"
    assert math.isnan(back["a"]) and back["b"] == math.inf and back["c"] == -math.inf
    assert (back["d"], back["e"], back["f"]) == (1.5, "word", None)


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    write_text(path, "old")

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "new")

    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_records_come_back_in_order_without_a_torn_last_line(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    for step in range(3):
        store.append(run.id, replace(RECORD, step=step))
    with (store.folder(run.id) / "records.jsonl").open("a") as file:
        file.write('{"step": 3, "val_lo')

    assert [record["step"] for record in store.records(run.id)] == [0, 1, 2]


def test_keeping_records_drops_the_later_ones_and_the_torn_line(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    for step in range(3):
        store.append(run.id, replace(RECORD, step=step))
    with (store.folder(run.id) / "records.jsonl").open("a") as file:
        file.write("{")
    store.keep_records(run.id, 2)
    store.append(run.id, replace(RECORD, step=7))

    assert [record["step"] for record in store.records(run.id)] == [0, 1, 7]
    with pytest.raises(ValueError, match="holds 3 records, and the checkpoint 9"):
        store.keep_records(run.id, 9)


def test_the_status_follows_the_files(store: RunStore) -> None:
    run, _ = tiny()
    assert store.status(run.id) == "missing"
    store.freeze(run)
    assert store.status(run.id) == "missing"
    store.append(run.id, RECORD)
    assert store.status(run.id) == "preempted"
    with store.lease(run.id):
        assert store.status(run.id) == "running"
    store.fail(run.id, "why", "traceback")
    assert store.status(run.id) == "failed"
    store.finish(run.id, RESULT)
    assert store.status(run.id) == "finished" and store.result(run.id) == RESULT


def test_a_lease_excludes_other_processes_and_ends_with_its_holder(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    code = f"""
        import sys
        from pathlib import Path
        from optlab.store import RunStore
        with RunStore(Path({str(store.root)!r})).lease({run.id!r}):
            print("held", flush=True)
            sys.stdin.read()
    """
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(Busy, match=str(holder.pid)), store.lease(run.id):
        pass
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()

    with store.lease(run.id):
        assert store.status(run.id) == "running"


def test_looking_at_a_status_never_takes_the_lease_away(store: RunStore) -> None:
    """The look takes the lock for a moment; whoever asks for it then must not be told 'busy'."""
    run, _ = tiny()
    store.freeze(run)
    code = f"""
        from pathlib import Path
        from optlab.store import RunStore
        print("looking", flush=True)
        while True:
            RunStore(Path({str(store.root)!r})).status({run.id!r})
    """
    looker = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    assert looker.stdout is not None
    assert looker.stdout.readline() == "looking\n"
    try:
        for _ in range(3000):
            with store.lease(run.id):
                pass
    finally:
        looker.kill()
        looker.wait()
        looker.stdout.close()


def test_the_tables_have_their_columns_and_one_row_each(store: RunStore) -> None:
    done, missing = tiny()[0], tiny("seed=1")[0]
    store.freeze(done)
    store.append(done.id, RECORD)
    store.append(done.id, replace(RECORD, step=6, val_loss=0.5))
    store.finish(done.id, RESULT)
    runs = store.runs_table([done, missing])
    records = store.records_table([done, missing])

    assert tuple(runs.columns) == RUN_COLUMNS
    assert list(runs["outcome"]) == ["finished", "missing"]
    assert runs["final_loss"][0] == 0.5 and np.isnan(runs["final_loss"][1])
    assert set(RECORD_COLUMNS) | {"accuracy"} == set(records.columns)
    assert list(records["step"]) == [0, 6]


@pytest.mark.parametrize("damage", ["", "{}", '{"outcome": "fin', "[]", '{"capped_steps": 0}'])
def test_a_damaged_result_is_a_failure_and_no_result(store: RunStore, damage: str) -> None:
    run, _ = tiny()
    store.freeze(run)
    store.append(run.id, RECORD)
    store.finish(run.id, RESULT)
    (store.folder(run.id) / "result.json").write_text(damage)

    assert store.status(run.id) == "failed" and not store.is_done(run.id)
    assert store.runs_table([run])["cause"][0] == "result.json is damaged"


def test_a_store_from_before_the_later_fields_is_read(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    store.append(run.id, RECORD)
    store.finish(run.id, RESULT)
    folder = store.folder(run.id)
    since = (("result.json", "capped_steps"), ("result.json", "unit"), ("records.jsonl", "capped"))
    for name, key in since:
        content = json.loads((folder / name).read_text())
        del content[key]
        (folder / name).write_text(json.dumps(content) + "\n")

    assert store.result(run.id) == RESULT
    assert np.isnan(store.runs_table([run])["capped_steps"][0])
    assert np.isnan(store.records_table([run])["capped"][0])


def test_damaged_records_are_named(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    (store.folder(run.id) / "records.jsonl").write_text("garbage\n")

    with pytest.raises(ConfigError, match=rf"records\.jsonl is damaged .* folder {run.id}"):
        store.records(run.id)


def test_a_failed_run_tells_its_cause_in_the_table(store: RunStore) -> None:
    run, _ = tiny()
    store.freeze(run)
    store.append(run.id, RECORD)
    store.fail(run.id, "MemoryError: 80 GiB", "traceback")
    row = store.runs_table([run]).iloc[0]

    assert (row["outcome"], row["cause"], row["step"]) == ("failed", "MemoryError: 80 GiB", 0)


def test_empty_tables_still_have_their_columns(store: RunStore) -> None:
    assert tuple(store.runs_table([]).columns) == RUN_COLUMNS
    assert tuple(store.records_table([tiny()[0]]).columns) == RECORD_COLUMNS


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"cannot be written .* runtime\.runs="):
        check_writable(tmp_path / "file" / "runs", "runtime.runs")
