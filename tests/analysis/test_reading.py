"""The cache of a store's tables: never stale, and rebuilt where it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

from analysis import reading
from analysis.reading import read
from optlab.config import Run
from optlab.store import Record, Result, RunStore
from support import tiny

LONG_AGO = 1_000_000_000_000_000_000  # nanoseconds


def run(seed: int) -> Run:
    return tiny(f"seed={seed}")[0]


def finish(store: RunStore, run: Run, loss: float) -> None:
    store.freeze(run)
    for step, value in ((0, 2.3), (2, float("nan")), (4, loss)):
        extra = {"accuracy": 0.5} if step else {}
        store.append(run.id, Record(step, step, 0.1, value, value, 0.1, 0.1, 1.0, extra=extra))
    store.finish(
        run.id,
        Result(
            outcome="finished",
            cause="",
            step=4,
            diverged_at=None,
            initial_loss=2.3,
            final_loss=loss,
            final_train_loss=loss,
            accuracy=0.9,
            chance_loss=2.3,
            at_chance=False,
            weights_fingerprint="w",
            batch_fingerprint="b",
        ),
    )
    age(store, run)


def age(store: RunStore, run: Run) -> None:
    """As if written long ago: what is young is not remembered."""
    for name in reading.FILES:
        os.utime(store.folder(run.id) / name, ns=(LONG_AGO, LONG_AGO))


@pytest.fixture
def runs(store: RunStore) -> list[Run]:
    found = [run(seed) for seed in range(3)]
    for i, each in enumerate(found[:2]):
        finish(store, each, 0.5 + i)
    store.freeze(found[2])
    store.append(found[2].id, Record(0, 0, 0.0, 2.0, 2.0, 0.1, 0.1, 1.0))
    return found


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The record files that are parsed from now on."""
    seen: list[Path] = []
    parse = reading._records
    monkeypatch.setattr(reading, "_records", lambda path: seen.append(path) or parse(path))
    return seen


def test_the_tables_are_those_of_the_store(store, runs, tmp_path):
    for _ in range(2):  # without a cache, and from it
        table, records, notes = read(store, runs, tmp_path / "tables.cache")

        pd.testing.assert_frame_equal(table, store.runs_table(runs))
        pd.testing.assert_frame_equal(records, store.records_table(runs))
        assert notes == []


def test_what_is_done_is_read_once(store, runs, tmp_path, monkeypatch):
    read(store, runs, tmp_path / "tables.cache")
    seen = counted(monkeypatch)
    read(store, runs, tmp_path / "tables.cache")

    assert seen == [store.folder(runs[2].id) / "records.jsonl"]


def test_a_run_that_was_trained_anew_is_read_anew(store, runs, tmp_path):
    read(store, runs, tmp_path / "tables.cache")
    (store.folder(runs[0].id) / "records.jsonl").unlink()
    finish(store, runs[0], 0.6)  # the same size, and by ``age`` the same time
    table, records, _ = read(store, runs, tmp_path / "tables.cache")

    assert table["final_loss"][0] == 0.6
    assert records.loc[records["run"] == runs[0].id, "val_loss"].iloc[-1] == 0.6


def test_a_file_that_is_changed_in_place_is_read_anew(store, runs, tmp_path):
    read(store, runs, tmp_path / "tables.cache")
    path = store.folder(runs[0].id) / "records.jsonl"
    path.write_text(path.read_text().replace('"val_loss": 0.5', '"val_loss": 0.7'))

    assert 0.7 in read(store, runs, tmp_path / "tables.cache")[1]["val_loss"].tolist()


def test_what_was_just_written_is_not_remembered(store, runs, tmp_path, monkeypatch):
    """Another write within the clock's tick would not show in the time."""
    os.utime(store.folder(runs[0].id) / "records.jsonl")
    read(store, runs, tmp_path / "tables.cache")
    seen = counted(monkeypatch)
    read(store, runs, tmp_path / "tables.cache")

    assert store.folder(runs[0].id) / "records.jsonl" in seen


def test_a_run_that_lost_its_result_is_no_longer_done(store, runs, tmp_path):
    read(store, runs, tmp_path / "tables.cache")
    (store.folder(runs[0].id) / "result.json").unlink()

    assert read(store, runs, tmp_path / "tables.cache")[0]["outcome"][0] == "preempted"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_damaged_cache_is_rebuilt(store, runs, tmp_path, share, monkeypatch):
    cache = tmp_path / "tables.cache"
    read(store, runs, cache)
    whole = cache.read_bytes()
    cache.write_bytes(whole[: int(share * len(whole))] + b"\0" * 8)

    pd.testing.assert_frame_equal(read(store, runs, cache)[0], store.runs_table(runs))
    seen = counted(monkeypatch)
    read(store, runs, cache)
    assert len(seen) == 1


def test_flipped_bytes_never_reach_the_tables(store, runs, tmp_path):
    cache = tmp_path / "tables.cache"
    read(store, runs, cache)
    whole = bytearray(cache.read_bytes())
    for at in range(0, len(whole), 97):
        torn = bytearray(whole)
        torn[at] ^= 0xFF
        cache.write_bytes(torn)

        pd.testing.assert_frame_equal(
            read(store, runs, cache)[1], store.records_table(runs), obj=str(at)
        )


def test_a_cache_of_other_columns_is_none(store, runs, tmp_path, monkeypatch):
    read(store, runs, tmp_path / "tables.cache")
    monkeypatch.setattr(reading, "VERSION", reading.VERSION + 1)
    seen = counted(monkeypatch)
    read(store, runs, tmp_path / "tables.cache")

    assert len(seen) == 3


def test_a_torn_line_in_the_middle_is_named_and_the_result_counts(store, runs, tmp_path):
    path = store.folder(runs[0].id) / "records.jsonl"
    path.write_text(path.read_text().replace('"step": 2', '"st'))
    for _ in range(2):
        table, records, notes = read(store, runs, tmp_path / "tables.cache")

        assert runs[0].id not in set(records["run"])
        assert table["final_loss"][0] == 0.5
        assert notes[0].startswith("1 run with a line") and runs[0].id in notes[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\n".join(line for line in text.split("\n") if "weight_decay" not in line),
        lambda text: text.replace("lr: ", "lr: 9"),
        lambda text: text[: len(text) // 2] + "\n  : [",
    ],
    ids=["a key lacks", "another value", "damaged"],
)
def test_a_run_whose_config_was_changed_is_named_counted_and_left_out(
    store, runs, tmp_path, change
):
    cache = tmp_path / "tables.cache"
    read(store, runs, cache)
    path = store.folder(runs[0].id) / "config.yaml"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    for _ in range(2):
        table, records, notes = read(store, runs, cache)

        assert table["outcome"].tolist() == ["failed", "finished", "preempted"]
        assert pd.isna(table["final_loss"][0]) and reading.CHANGED in table["cause"][0]
        assert runs[0].id not in set(records["run"])
        assert len(notes) == 1 and notes[0].startswith("1 run left out") and runs[0].id in notes[0]


def test_an_unchanged_config_in_other_words_counts(store, runs):
    path = store.folder(runs[0].id) / "config.yaml"
    path.write_text("# a comment\n" + path.read_text().replace("lr: 0.", "lr: 0000."))

    assert read(store, runs)[0]["outcome"][0] == "finished" and read(store, runs)[2] == []


def test_a_folder_with_a_result_under_no_runs_name_is_named(store, runs):
    """A copy that somebody made; what the store itself keeps beside runs is none."""
    shutil.copytree(store.folder(runs[0].id), store.root / "old copy")
    (store.root / "extensions").mkdir()
    table, _, notes = read(store, runs)

    assert len(table) == 3
    assert len(notes) == 1 and "1 folder of" in notes[0] and notes[0].endswith(": old copy.")


def test_a_last_line_torn_by_a_kill_is_left_out(store, runs):
    with (store.folder(runs[2].id) / "records.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2})[:5])

    assert (read(store, runs)[1]["run"] == runs[2].id).sum() == 1
