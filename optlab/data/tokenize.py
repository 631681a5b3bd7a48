"""Tokenizes a dataset once, shard by shard; a killed preparation goes on where it stood."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError
from .prepare import RemoteFile, prepare
from .tokens import END_OF_TEXT, MANIFEST, TOKEN, VOCABULARY, Source, TokenShards

Echo = Callable[[str], None]

RANKS = RemoteFile(  # GPT-2's byte pairs: base64 of the bytes and their rank, a line each
    path="gpt2-bpe/gpt2.tiktoken",
    urls=("https://raw.githubusercontent.com/openai/whisper/main/whisper/assets/gpt2.tiktoken",),
    size=835_554,
    sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
)
# how GPT-2 cuts text into words before it merges bytes
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
PROGRESS = "progress.json"
DOCUMENTS = 256  # tokenized at a time
SPARE = 256 * 2**20  # bytes of disk that stay free
LATER = ("val_split", "opening")  # keys of a source that older manifests do not have


class Encoder(Protocol):
    """The part of a tokenizer that matters here."""

    def encode_ordinary_batch(self, text: list[str]) -> list[list[int]]:
        """The tokens of each text; nothing in it is taken for a special token."""
        ...


@dataclass(frozen=True)
class NeedsRanks:
    """The tokenizer's own file, as a dataset of one file."""

    files: tuple[RemoteFile, ...] = (RANKS,)


@dataclass
class Progress:
    """The shards that are whole, each with the position in the source behind its last token."""

    revision: str | None
    shards: list[dict[str, Any]] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(shard["tokens"] for shard in self.shards)

    @property
    def position(self) -> tuple[int, int]:
        """(document, its tokens that are in a shard already)."""
        return (self.shards[-1]["document"], self.shards[-1]["offset"]) if self.shards else (0, 0)


class EndOfSource(Exception):
    """The source has no more documents."""


def prepare_tokens(name: str, dataset: TokenShards, data: Path, echo: Echo) -> None:
    """Make the shards and the manifest of ``dataset`` exist below ``data``, verified by hash.

    What is there and right stays. Raises ConfigError with the remedy: no network, no disk, a
    source that ends early, other settings than those of an unfinished preparation.
    """
    folder = data / dataset.folder
    try:
        if _is_ready(name, dataset, folder, echo):
            return
        folder.mkdir(parents=True, exist_ok=True)
        prepare("gpt2-bpe", NeedsRanks(), data, lambda line: None)
        encoder = gpt2_encoder(data / RANKS.path)
        revision = _commit(dataset.source)
        progress = _resumed(dataset, folder, revision, echo)
        _check_disk(dataset, progress, folder)
        _write_shards(name, dataset, folder, encoder, progress, echo)
        _write_manifest(name, dataset, folder, progress)
    except OSError as error:
        raise ConfigError(
            f"Dataset {name} cannot be prepared in {folder}: {error}. Mend that and run the same "
            "command again; what is done stays."
        ) from error
    echo(f"Dataset {name} is ready in {folder}.")


def gpt2_encoder(ranks: Path) -> Encoder:
    """GPT-2's tokenizer from its file of ranks."""
    try:
        import tiktoken
    except ImportError as error:
        raise _extra_missing() from error
    lines = (line.split() for line in ranks.read_bytes().splitlines())
    pairs = {base64.b64decode(text): int(rank) for text, rank in lines}
    return tiktoken.Encoding(
        "gpt2",
        pat_str=PATTERN,
        mergeable_ranks=pairs,
        special_tokens={"<|endoftext|>": END_OF_TEXT},
    )


def documents(source: Source, revision: str | None, skip: int) -> Iterator[str]:
    """The texts of the source's split in their order, from number ``skip`` on, streamed."""
    try:
        import datasets
    except ImportError as error:
        raise _extra_missing() from error
    try:
        rows = datasets.load_dataset(
            source.path,
            source.name,
            split=source.split,
            revision=revision,
            data_files=source.data_files,
            streaming=True,
        )
        if source.opening is None:
            yield from _column(rows.skip(skip), source)
        else:
            yield from islice(_joined(_column(rows, source), source.opening), skip, None)
    except ConfigError:
        raise
    except Exception as error:  # the client raises its servers' and readers' errors as they come
        raise ConfigError(
            f"{source.path} cannot be read: {type(error).__name__}: {error}. Run the same command "
            "again when it can; what is done stays."
        ) from error


def _column(rows: Iterable[dict[str, Any]], source: Source) -> Iterator[str]:
    for row in rows:
        if source.column not in row:
            raise ConfigError(
                f"{source.path} has no column '{source.column}': it has {', '.join(row)}."
            )
        yield row[source.column]


def _joined(rows: Iterable[str], opening: str) -> Iterator[str]:
    """The rows as documents, each from a row that reads like ``opening`` up to the next one."""
    first, document = re.compile(opening), []
    for row in rows:
        if first.match(row) and document:
            yield "".join(document)
            document = []
        document.append(row)
    if document:
        yield "".join(document)


class Cursor:
    """The source's tokens, one after the other, and where the next one stands.

    Every document is opened by the end-of-text token. Starts behind ``offset`` tokens of number
    ``document``, which is the first of ``texts``.
    """

    def __init__(self, encoder: Encoder, texts: Iterator[str], document: int, offset: int) -> None:
        self.document, self.offset = document, offset
        self._stream = _tokenized(encoder, texts)
        self._left: np.ndarray | None = None  # of the current document
        self._cut = offset  # tokens of it to drop once it is there

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` tokens; EndOfSource where there are fewer."""
        parts, missing = [], count
        while missing:
            parts.append(self._current()[:missing])
            self._left = self._current()[len(parts[-1]) :]
            self.offset += len(parts[-1])
            missing -= len(parts[-1])
            if missing:
                self.end_document()
        return np.concatenate(parts)

    def end_document(self) -> None:
        """Go to the start of the next document."""
        self._current()
        self.document, self.offset, self._left, self._cut = self.document + 1, 0, None, 0

    def _current(self) -> np.ndarray:
        if self._left is None:
            try:
                self._left = next(self._stream)[self._cut :]
            except StopIteration:
                raise EndOfSource from None
        return self._left


def _tokenized(encoder: Encoder, texts: Iterator[str]) -> Iterator[np.ndarray]:
    while batch := list(islice(texts, DOCUMENTS)):
        for tokens in encoder.encode_ordinary_batch(batch):
            yield np.fromiter(chain([END_OF_TEXT], tokens), dtype=TOKEN, count=len(tokens) + 1)


def _write_shards(
    name: str,
    dataset: TokenShards,
    folder: Path,
    encoder: Encoder,
    progress: Progress,
    echo: Echo,
) -> None:
    """Fill the shards that are lacking, validation first, and save the progress after each."""
    cursor = _cursor(dataset, encoder, progress, progress.position)
    started, before = time.monotonic(), progress.tokens
    plan = _plan(dataset)
    for split, number, size in plan[len(progress.shards) :]:
        if dataset.source.val_split and split == "train" and number == 0:
            cursor = _cursor(dataset, encoder, progress, (0, 0))
        try:
            tokens = cursor.take(size)
        except EndOfSource:
            raise ConfigError(
                f"{dataset.source.path} has only {cursor.document:,} documents, which end inside "
                f"{split} shard {number}: lower {split if dataset.source.val_split else 'train'}"
                f"_tokens in conf/dataset/{name}.yaml."
            ) from None
        if split == "val" and plan[len(progress.shards) + 1][0] == "train":
            cursor.end_document()  # no document is in both
        file = f"{split}_{number:04d}.bin"
        _write(folder / file, tokens.tobytes())
        shard = {"file": file, "split": split, "tokens": size, "sha256": _sha256(folder / file)}
        progress.shards.append({**shard, "document": cursor.document, "offset": cursor.offset})
        _write(folder / PROGRESS, json.dumps(asdict(progress)).encode())
        echo(f"{file}: {_pace(progress.tokens, before, dataset, time.monotonic() - started)}")


def _cursor(
    dataset: TokenShards, encoder: Encoder, progress: Progress, position: tuple[int, int]
) -> Cursor:
    """The tokens of the split that the next shard is taken from, from ``position`` on."""
    source, (document, offset) = dataset.source, position
    left = _plan(dataset)[len(progress.shards) :]
    if source.val_split and left and left[0][0] == "val":
        source = replace(source, split=source.val_split)
    return Cursor(encoder, documents(source, progress.revision, document), document, offset)


def _plan(dataset: TokenShards) -> list[tuple[str, int, int]]:
    """(split, number, tokens) of every shard, in the order of the source."""
    shards = []
    for split, total in (("val", dataset.val_tokens), ("train", dataset.train_tokens)):
        starts = range(0, total, dataset.shard_tokens)
        shards += [
            (split, number, min(dataset.shard_tokens, total - start))
            for number, start in enumerate(starts)
        ]
    return shards


def _is_ready(name: str, dataset: TokenShards, folder: Path, echo: Echo) -> bool:
    """Whether a finished preparation with these settings is there, every shard verified."""
    path = folder / MANIFEST
    if not path.exists():
        return False
    try:
        manifest = json.loads(path.read_text())
        same = manifest["settings"] == _settings(dataset)
    except (ValueError, KeyError):
        echo(f"{path} cannot be read; the shards are made anew.")
        return False
    if not same:
        raise ConfigError(
            f"{folder} holds {name} prepared with other settings (source, numbers of tokens): give "
            "this one another dataset.folder, or delete that folder."
        )
    for shard in manifest["shards"]:
        if not _is_whole(shard, folder):
            echo(f"{shard['file']} is damaged or missing; made anew from there.")
            return False
    echo(f"Dataset {name} is there and verified in {folder}.")
    return True


def _resumed(dataset: TokenShards, folder: Path, revision: str | None, echo: Echo) -> Progress:
    """The shards of an earlier preparation that are whole, up to the first that is not."""
    path = folder / PROGRESS
    if not path.exists():
        return Progress(revision)
    try:
        earlier = Progress(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        echo(f"{path} cannot be read ({error}); starting over.")
        return Progress(revision)
    if earlier.revision != revision:
        echo(f"The source has changed since ({earlier.revision} -> {revision}); starting over.")
        return Progress(revision)
    kept = []
    for shard, (split, _, size) in zip(earlier.shards, _plan(dataset), strict=False):
        if (shard["split"], shard["tokens"]) != (split, size) or not _is_whole(shard, folder):
            break
        kept.append(shard)
    echo(f"{len(kept)} of {len(_plan(dataset))} shards are there and verified; going on.")
    return Progress(revision, kept)


def _is_whole(shard: dict[str, Any], folder: Path) -> bool:
    file = folder / shard["file"]
    return file.exists() and _sha256(file) == shard["sha256"]


def _check_disk(dataset: TokenShards, progress: Progress, folder: Path) -> None:
    missing = dataset.train_tokens + dataset.val_tokens - progress.tokens
    needed = missing * TOKEN.itemsize + SPARE
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ConfigError(
            f"{folder} has {free / 1e9:.1f} GB free, and {needed / 1e9:.1f} GB are needed: free "
            "some, or set OPTLAB_DATA to a folder on another disk."
        )


def _write_manifest(name: str, dataset: TokenShards, folder: Path, progress: Progress) -> None:
    counts = np.zeros(VOCABULARY)
    for shard in progress.shards:
        if shard["split"] == "train":
            tokens = np.memmap(folder / shard["file"], dtype=TOKEN, mode="r")
            counts += np.bincount(tokens, minlength=VOCABULARY)
    p = counts[counts > 0] / counts.sum()
    manifest = {
        "dataset": name,
        "settings": _settings(dataset),
        "revision": progress.revision,  # the source's commit
        "tokenizer": {"name": "gpt2", "sha256": RANKS.sha256, "end_of_text": END_OF_TEXT},
        "documents": progress.position[0],
        "unigram_entropy": float(-(p * np.log(p)).sum()),  # nats, of the training tokens
        "shards": progress.shards,
    }
    _write(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _settings(dataset: TokenShards) -> dict[str, Any]:
    """What decides the content of the shards."""
    sizes = {key: getattr(dataset, key) for key in ("train_tokens", "val_tokens", "shard_tokens")}
    source = asdict(dataset.source)
    for key in LATER:
        if source[key] is None:  # as in manifests that were written before there was such a key
            del source[key]
    return {"source": source, **sizes}


def _commit(source: Source) -> str | None:
    """The commit that the source's revision means at present; None for local files."""
    if source.data_files is not None:
        return None
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise _extra_missing() from error
    try:
        return HfApi().dataset_info(source.path, revision=source.revision).sha
    except Exception as error:  # the client raises its servers' errors as they come
        raise ConfigError(
            f"The dataset {source.path} cannot be reached on the Hugging Face hub "
            f"({type(error).__name__}: {error}). Nothing was changed; try again with a network."
        ) from error


def _pace(done: int, before: int, dataset: TokenShards, seconds: float) -> str:
    total = dataset.train_tokens + dataset.val_tokens
    pace = max(done - before, 1) / seconds
    return (
        f"{done:,} of {total:,} tokens, {pace / 1e6:.2f} M a second, "
        f"{(total - done) / pace / 60:.0f} min to go"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """A whole file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _extra_missing() -> ConfigError:
    return ConfigError(
        "Tokenizing needs the packages datasets and tiktoken: pip install -e '.[data]'."
    )
