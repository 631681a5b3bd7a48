"""Token shards: their content, interruptions, refusals, and the windows that training takes."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from optlab.build import declared_dataset
from optlab.data import tokenize
from optlab.data.prepare import RemoteFile
from optlab.data.tokenize import RANKS, Cursor, EndOfSource, gpt2_encoder, prepare_tokens
from optlab.data.tokens import END_OF_TEXT, TOKEN, Source, Tokens, TokenShards, training_windows
from optlab.errors import ConfigError
from optlab.paths import ROOT
from support import environment

TEXTS = [f"document {n}: " + "word " * (n % 7) for n in range(60)] + ["<|endoftext|>", ""]


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def encode_ordinary_batch(self, text: list[str]) -> list[list[int]]:
        return [list(each.encode()) for each in text]


def shards(source: Source | None = None, **changes: object) -> TokenShards:
    small = TokenShards(
        folder="small",
        source=source or Source("text", None, "train", "text", None, ["unused.txt"]),
        train_tokens=500,
        val_tokens=130,
        shard_tokens=100,
        input_size=50257,
        output_size=50257,
        loss_lower_bound=None,
        context=8,
        val_windows=64,
    )
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, with the hub and the tokenizer's file replaced by ``TEXTS`` and ``Bytes``."""
    monkeypatch.setattr(tokenize, "documents", lambda source, revision, skip: iter(TEXTS[skip:]))
    monkeypatch.setattr(tokenize, "gpt2_encoder", lambda ranks: Bytes())
    monkeypatch.setattr(tokenize, "prepare", lambda name, dataset, data, echo: None)
    return tmp_path


def prepared(folder: Path, dataset: TokenShards) -> list[str]:
    said: list[str] = []
    prepare_tokens("small", dataset, folder, said.append)
    return said


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "small").iterdir())}


def tokens_of(folder: Path, split: str) -> np.ndarray:
    files = sorted((folder / "small").glob(f"{split}_*.bin"))
    return np.concatenate([np.fromfile(file, dtype=TOKEN) for file in files])


def expected(texts: Sequence[str]) -> list[int]:
    return [token for text in texts for token in [END_OF_TEXT, *text.encode()]]


def test_the_shards_are_the_documents_each_opened_by_the_end_of_text(folder: Path) -> None:
    prepared(folder, shards())
    val, train = tokens_of(folder, "val"), tokens_of(folder, "train")

    assert val.tolist() == expected(TEXTS)[:130]
    first = next(n for n in range(60) if len(expected(TEXTS[: n + 1])) >= 130) + 1
    assert train.tolist() == expected(TEXTS[first:])[:500]  # no document is in both


def test_what_is_there_is_verified_and_left_alone(folder: Path) -> None:
    prepared(folder, shards())
    before = content(folder)
    said = prepared(folder, shards())

    assert content(folder) == before and "there and verified" in said[-1]


@pytest.mark.parametrize("damage", [b"", b"\0" * 200])
def test_a_damaged_shard_is_made_anew_and_so_is_what_follows_it(
    folder: Path, damage: bytes
) -> None:
    prepared(folder, shards())
    before = content(folder)
    (folder / "small" / "train_0002.bin").write_bytes(damage)
    said = prepared(folder, shards())

    assert content(folder) == before
    assert "4 of 7 shards are there and verified; going on." in said


@pytest.mark.parametrize("after", range(7))
def test_an_interruption_after_any_shard_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    prepared(folder, shards())
    whole = content(folder)
    for path in (folder / "small").iterdir():
        path.unlink()

    def stop(line: str) -> None:
        if re.match(r"(val|train)_\d+\.bin", line) and len(content(folder)) > after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_tokens("small", shards(), folder, stop)
    assert "manifest.json" not in content(folder)
    prepared(folder, shards())
    assert content(folder) == whole


VAL_TEXTS = [f"another {n}: " + "letter " * (n % 5) for n in range(20)]


@pytest.fixture
def two_splits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> TokenShards:
    """Shards of a source whose validation split is ``VAL_TEXTS``."""
    monkeypatch.setattr(
        tokenize,
        "documents",
        lambda source, revision, skip: iter(
            {"train": TEXTS, "validation": VAL_TEXTS}[source.split][skip:]
        ),
    )
    source = Source("text", None, "train", "text", None, ["unused.txt"], val_split="validation")
    return shards(source)


def test_a_source_with_a_split_for_validation_trains_from_its_first_document_on(
    folder: Path, two_splits: TokenShards
) -> None:
    prepared(folder, two_splits)

    assert tokens_of(folder, "val").tolist() == expected(VAL_TEXTS)[:130]
    assert tokens_of(folder, "train").tolist() == expected(TEXTS)[:500]


@pytest.mark.parametrize("after", range(7))
def test_an_interruption_in_either_split_changes_nothing(
    folder: Path, two_splits: TokenShards, after: int
) -> None:
    prepared(folder, two_splits)
    whole = content(folder)
    for path in (folder / "small").iterdir():
        path.unlink()

    def stop(line: str) -> None:
        if re.match(r"(val|train)_\d+\.bin", line) and len(content(folder)) > after + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_tokens("small", two_splits, folder, stop)
    prepared(folder, two_splits)
    assert content(folder) == whole


def test_a_validation_split_that_ends_early_is_said(folder: Path, two_splits: TokenShards) -> None:
    with pytest.raises(ConfigError, match=r"20 documents, .* val shard \d+: lower val_tokens"):
        prepared(folder, dataclasses.replace(two_splits, val_tokens=5000))


def test_rows_are_joined_into_documents_by_their_opening(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    lines = ["preface", " = One = ", "a", " = = Part = = ", "b", " = Two = ", "c"]
    (tmp_path / "a.json").write_text("".join(json.dumps({"text": f"{x}\n"}) + "\n" for x in lines))
    source = Source("json", None, "train", "text", None, [str(tmp_path / "a.json")])
    source = dataclasses.replace(source, opening=" = [^=]")
    whole = ["preface\n", " = One = \na\n = = Part = = \nb\n", " = Two = \nc\n"]

    for skip in range(4):
        assert list(tokenize.documents(source, None, skip)) == whole[skip:]
    assert list(tokenize._joined(iter([" = One = ", "a"]), " = [^=]")) == [" = One = a"]


def test_manifests_without_the_later_keys_of_a_source_are_still_good(folder: Path) -> None:
    prepared(folder, shards())
    manifest = json.loads((folder / "small" / "manifest.json").read_text())

    assert set(manifest["settings"]["source"]) == {
        *("path", "name", "split", "column", "revision", "data_files"),
    }


def test_torn_progress_starts_over(folder: Path) -> None:
    prepared(folder, shards())
    whole = content(folder)
    (folder / "small" / "manifest.json").unlink()
    (folder / "small" / "progress.json").write_text('{"revision": nul')
    said = prepared(folder, shards())

    assert content(folder) == whole and any("starting over" in line for line in said)


def test_other_settings_are_refused_and_nothing_is_touched(folder: Path) -> None:
    prepared(folder, shards())
    before = content(folder)
    with pytest.raises(ConfigError, match="other settings"):
        prepared(folder, shards(train_tokens=400))
    assert content(folder) == before


def test_a_source_that_ends_early_is_said_and_what_is_done_stays(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"62 documents, .* train shard \d+: lower train_tokens"):
        prepared(folder, shards(train_tokens=5000))
    assert "train_0000.bin" in content(folder)


def test_a_full_disk_is_seen_before_anything_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    with pytest.raises(ConfigError, match=r"0\.1 GB free, and 0\.3 GB are needed"):
        prepared(folder, shards())
    assert content(folder) == {}


def test_the_manifest_knows_source_counts_and_entropy(folder: Path) -> None:
    prepared(folder, shards())
    manifest = json.loads((folder / "small" / "manifest.json").read_text())
    counts = np.bincount(tokens_of(folder, "train"))
    p = counts[counts > 0] / 500

    assert manifest["unigram_entropy"] == pytest.approx(-(p * np.log(p)).sum(), rel=1e-12)
    assert manifest["settings"]["source"]["path"] == "text"
    assert sum(shard["tokens"] for shard in manifest["shards"]) == 630
    assert manifest["tokenizer"]["sha256"] == RANKS.sha256


def test_a_cursor_goes_on_from_any_position() -> None:
    whole = Cursor(Bytes(), iter(TEXTS), 0, 0)
    everything = whole.take(600)
    cursor = Cursor(Bytes(), iter(TEXTS), 0, 0)
    for size in (1, 13, 14, 15, 57, 100):
        cursor.take(size)
        done = sum(len(t.encode()) + 1 for t in TEXTS[: cursor.document]) + cursor.offset
        resumed = Cursor(Bytes(), iter(TEXTS[cursor.document :]), cursor.document, cursor.offset)
        assert resumed.take(50).tolist() == everything[done : done + 50].tolist()
    with pytest.raises(EndOfSource):
        whole.take(10**6)


@pytest.mark.parametrize("start", [0, 3, 4, 9, 10])
def test_windows_span_files(start: int) -> None:
    sequence = np.arange(20, dtype=TOKEN)
    tokens = Tokens([sequence[:4], sequence[4:5], sequence[5:11], sequence[11:]])

    assert len(tokens) == 20
    assert tokens.windows(np.array([start]), 9).tolist() == [list(range(start, start + 9))]


def test_an_epoch_takes_every_token_once_but_for_its_ends() -> None:
    """Targets of an epoch: distinct positions, all but less than two windows of them."""
    context, size, batch_size = 16, 5000, 24
    tokens = Tokens([np.arange(3000, dtype=TOKEN), np.arange(3000, size, dtype=TOKEN)])
    batch = training_windows(tokens, context, seed=3, batch_size=batch_size)
    windows = (size - context) // context
    seen: list[int] = []
    for step in range(-(-windows // batch_size)):
        inputs, targets = batch(step)
        assert torch.equal(targets, inputs + 1)
        seen += targets.flatten().tolist()
    epoch = seen[: windows * context]

    assert len(set(epoch)) == len(epoch) > size - 2 * context


def test_a_step_is_a_function_of_seed_and_step_whatever_was_asked_before() -> None:
    tokens = Tokens([np.arange(5000, dtype=TOKEN)])
    first = training_windows(tokens, 16, seed=3, batch_size=24)
    inputs = [first(step)[0] for step in range(40)]
    resumed = training_windows(tokens, 16, seed=3, batch_size=24)

    assert torch.equal(resumed(39)[0], inputs[39])
    assert not torch.equal(training_windows(tokens, 16, seed=4, batch_size=24)(39)[0], inputs[39])


def test_every_epoch_starts_its_windows_at_an_offset_of_its_own() -> None:
    tokens = Tokens([np.arange(5000, dtype=TOKEN)])
    windows = (5000 - 16) // 16
    whole_epoch = training_windows(tokens, 16, seed=3, batch_size=windows)
    offsets = {whole_epoch(epoch)[0][:, 0].min().item() for epoch in range(4)}

    assert len(offsets) > 1 and max(offsets) < 16


def test_validation_reads_windows_that_training_never_sees(folder: Path) -> None:
    dataset = shards()
    prepared(folder, dataset)
    data = dataset.load(folder, seed=0, batch_size=4)
    val = tokens_of(folder, "val")

    assert sum(len(inputs) for inputs, _ in data.val) == 16  # (130 - 1) // 8
    assert data.val[0][0][1].tolist() == val[8:16].tolist()
    assert data.val[0][1][1].tolist() == val[9:17].tolist()
    with pytest.raises(IndexError):
        data.val[len(data.val)]


def test_missing_or_cut_shards_are_refused_with_the_remedy(folder: Path) -> None:
    dataset = shards()
    with pytest.raises(ConfigError, match="data prepare small"):
        dataset.load(folder, seed=0, batch_size=4)
    prepared(folder, dataset)
    (folder / "small" / "train_0001.bin").write_bytes(b"\0\0")
    with pytest.raises(ConfigError, match=r"2 bytes instead of 200: run .* data prepare small"):
        dataset.load(folder, seed=0, batch_size=4)


def test_a_hub_out_of_reach_is_said_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr(tokenize, "prepare", lambda name, dataset, data, echo: None)
    monkeypatch.setattr(tokenize, "gpt2_encoder", lambda ranks: Bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    remote = Source("owner/name", None, "train", "text", "main")
    with pytest.raises(ConfigError, match="cannot be reached on the Hugging Face hub"):
        prepare_tokens("small", shards(remote), tmp_path, print)


def test_a_wrong_column_is_answered_with_the_columns_there_are(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    source = Source("text", None, "train", "content", None, [str(tmp_path / "a.txt")])
    with pytest.raises(ConfigError, match="no column 'content': it has text"):
        list(tokenize.documents(source, None, 0))


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ConfigError, match=r"\.\[data\]"):
        gpt2_encoder(tmp_path)


NOVEL = RemoteFile("war-and-peace/war-and-peace.txt", (), 3_274_088, "")

PREPARE = """
import sys
from pathlib import Path
from optlab.data.tokenize import prepare_tokens
from optlab.data.tokens import Source, TokenShards

data, text = map(Path, sys.argv[1:])
source = Source("text", None, "train", "text", None, [str(text)])
dataset = TokenShards(
    folder="novel", source=source, train_tokens=120_000, val_tokens=10_000, shard_tokens=20_000,
    input_size=50257, output_size=50257, loss_lower_bound=None, context=64, val_windows=8,
)
prepare_tokens("novel", dataset, data, lambda line: print(line, flush=True))
"""


def test_a_preparation_killed_twice_gives_the_same_shards_as_an_undisturbed_one(
    tmp_path: Path, real_data: Callable[[tuple[RemoteFile, ...]], Path]
) -> None:
    """Real text, the real tokenizer and reader, SIGKILL."""
    pytest.importorskip("datasets")
    text, ranks = (real_data((NOVEL, RANKS)) / file.path for file in (NOVEL, RANKS))

    def start(folder: Path) -> subprocess.Popen[str]:
        (folder / RANKS.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / RANKS.path).write_bytes(ranks.read_bytes())
        return subprocess.Popen(
            [sys.executable, "-c", PREPARE, str(folder), str(text)],
            env={**environment(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
            stdout=subprocess.PIPE,
            text=True,
        )

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for shard in ("train_0000", "train_0003"):
        process = start(killed)
        assert process.stdout is not None
        assert any(line.startswith(shard) for line in process.stdout)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    outputs = [start(folder).communicate(timeout=120)[0] for folder in (killed, whole)]

    assert "shards are there and verified; going on." in outputs[0]
    files = {path.name: path.read_bytes() for path in (whole / "novel").iterdir()}
    assert {path.name: path.read_bytes() for path in (killed / "novel").iterdir()} == files
    encoder = gpt2_encoder(ranks)
    lines = text.read_text().splitlines()[:1000]
    tokens = [t for ids in encoder.encode_ordinary_batch(lines) for t in [END_OF_TEXT, *ids]]
    assert np.frombuffer(files["val_0000.bin"], dtype=TOKEN)[:2000].tolist() == tokens[:2000]


WIKI = RemoteFile("wikitext-2/valid.txt", (), 1_121_681, "")


def test_wikitext_becomes_articles_and_tokens(
    real_data: Callable[..., Path], tmp_path: Path
) -> None:
    """The declared dataset, its hub replaced by the local files: articles are found and counted."""
    pytest.importorskip("datasets")
    pytest.importorskip("tiktoken")
    folder = real_data((WIKI, RANKS))
    (tmp_path / "gpt2-bpe").symlink_to(folder / "gpt2-bpe")
    declared = declared_dataset("wikitext2")
    texts = {}
    for name in ("valid", "test"):
        rows = (folder / f"wikitext-2/{name}.txt").read_text().splitlines(keepends=True)
        texts[name] = tmp_path / f"{name}.json"
        texts[name].write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    source = dataclasses.replace(
        declared.source,
        path="json",
        name=None,
        revision=None,
        data_files={"train": str(texts["test"]), "validation": str(texts["valid"])},
    )
    dataset = dataclasses.replace(
        declared, source=source, train_tokens=250_000, val_tokens=100_000, context=64, val_windows=4
    )

    prepare_tokens("wikitext2", dataset, tmp_path, lambda line: None)

    train = np.concatenate(
        [np.fromfile(f, dtype=TOKEN) for f in sorted((tmp_path / "wikitext2").glob("train_*.bin"))]
    )
    encoder = gpt2_encoder(tmp_path / RANKS.path)
    whole = "".join(json.loads(line)["text"] for line in texts["test"].read_text().splitlines())
    text = encoder.decode(train[train != END_OF_TEXT].tolist())  # type: ignore[attr-defined]
    assert len(text) > 10**6 and whole.startswith(text[:-5])
    # the first row is empty, a document of its own; then 60 articles in the test split
    assert 40 < (train == END_OF_TEXT).sum() <= 61
    inputs, targets = dataset.load(tmp_path, seed=0, batch_size=2).train(0)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
