"""Text of any size as shards of GPT-2 tokens on disk, read window by window.

A dataset's folder holds ``train_0000.bin``, ``val_0000.bin`` ... (tokens as little-endian uint16,
each document opened by the end-of-text token) and ``manifest.json`` (what is in them, from where).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..errors import ConfigError
from .base import Batch, Data, Sampler, accuracy, check_size, cross_entropy
from .prepare import RemoteFile
from .text import VAL_BATCH, epoch_offset, spread_starts

VOCABULARY = 50257  # tokens of GPT-2, the end-of-text token among them
END_OF_TEXT = 50256  # opens every document
TOKEN = np.dtype("<u2")
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Source:
    """A dataset of the Hugging Face hub, or files of this machine.

    A document is a row, or where ``opening`` says how one begins, the rows up to the next.
    """

    path: str  # owner/name on the hub, or a builder of local files: text, json, parquet
    name: str | None  # its configuration
    split: str
    column: str  # holds the text
    revision: str | None  # branch, tag or commit; the commit that it means is written down
    data_files: list[str] | None = None  # of a builder of local files
    val_split: str | None = None  # validates; None: the first documents of ``split`` do
    opening: str | None = None  # how a document's first row reads, a regular expression; None: any


@dataclass(frozen=True)
class TokenShards:
    """Text tokenized once by ``python -m optlab data prepare``, then read from memory maps.

    The first ``val_tokens`` of the source validate, the ``train_tokens`` after them train; no
    document is in both. Where the source has a split of its own for validation, both are the first
    of theirs.
    """

    files: ClassVar[tuple[RemoteFile, ...]] = ()

    folder: str  # below the data folder
    source: Source
    train_tokens: int
    val_tokens: int
    shard_tokens: int  # tokens of a file; an interrupted preparation goes on at the last whole one
    input_size: int
    output_size: int
    loss_lower_bound: float | None
    context: int  # tokens of a window
    val_windows: int  # at most, spread evenly over the validation tokens

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs and targets are int64 (B, context)."""
        check_size("input_size", self.input_size, VOCABULARY)
        check_size("output_size", self.output_size, VOCABULARY)
        manifest = read_manifest(folder / self.folder)
        train = Tokens.open(folder / self.folder, manifest, "train")
        val = Tokens.open(folder / self.folder, manifest, "val")
        starts = spread_starts(len(val), self.context, self.val_windows)
        return Data(
            train=training_windows(train, self.context, seed=seed, batch_size=batch_size),
            val=Windows(val, starts, self.context),
            loss=cross_entropy,
            metrics={"accuracy": accuracy},
            chance_loss=manifest["unigram_entropy"],
        )


class Tokens:
    """The tokens of several files as one sequence, left on disk."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    @classmethod
    def open(cls, folder: Path, manifest: dict[str, Any], split: str) -> Tokens:
        """The files of ``split``; a ConfigError where one is missing or has another length."""
        arrays = []
        for shard in manifest["shards"]:
            if shard["split"] != split:
                continue
            path = folder / shard["file"]
            expected = shard["tokens"] * TOKEN.itemsize
            found = path.stat().st_size if path.exists() else 0
            if found != expected:
                raise ConfigError(
                    f"{path} holds {found:,} bytes instead of {expected:,}: run `python -m optlab "
                    f"data prepare {manifest['dataset']}` to make it anew."
                )
            arrays.append(np.memmap(path, dtype=TOKEN, mode="r"))
        return cls(arrays)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def windows(self, starts: np.ndarray, length: int) -> np.ndarray:
        """The tokens from each start on, int64 (len(starts), length); windows may span files."""
        found = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(found, starts, strict=True):
            filled = 0
            file = int(np.searchsorted(self._ends, start, side="right"))
            inside = int(start) - int(self._ends[file]) + len(self._arrays[file])
            while filled < length:
                part = self._arrays[file][inside : inside + length - filled]
                row[filled : filled + len(part)] = part
                filled, file, inside = filled + len(part), file + 1, 0
        return found


class Windows(Sequence[Batch]):
    """Validation batches, read when they are asked for."""

    def __init__(self, tokens: Tokens, starts: np.ndarray, context: int) -> None:
        self._tokens, self._starts, self._context = tokens, starts, context

    def __len__(self) -> int:
        return -(-len(self._starts) // VAL_BATCH)

    def __getitem__(self, index: int) -> Batch:  # type: ignore[override]  # no slices are asked for
        if not 0 <= index < len(self):
            raise IndexError(index)
        starts = self._starts[index * VAL_BATCH : (index + 1) * VAL_BATCH]
        return batch_of(self._tokens, starts, self._context)


def training_windows(
    tokens: Tokens, context: int, *, seed: int, batch_size: int
) -> Callable[[int], Batch]:
    """The function from a training step to its batch: a pure function of (seed, step).

    An epoch takes every window once, in its own order; its windows lie side by side from an offset
    of its own, so that it leaves out less than two windows' tokens at the ends.
    """
    windows = (len(tokens) - context) // context
    if windows < 1:
        raise ConfigError(
            f"dataset.context is {context}, but there are only {len(tokens)} training tokens, too "
            "few for one window: choose a shorter context."
        )
    sampler = Sampler(windows, batch_size, seed)

    def batch(step: int) -> Batch:
        starts = [
            epoch_offset(context, seed, epoch) + context * indices
            for epoch, indices in sampler.parts(step)
        ]
        return batch_of(tokens, np.concatenate(starts), context)

    return batch


def batch_of(tokens: Tokens, starts: np.ndarray, context: int) -> Batch:
    """Inputs and targets, each int64 (len(starts), context), of the windows at ``starts``."""
    windows = torch.from_numpy(tokens.windows(starts, context + 1))
    return windows[:, :-1], windows[:, 1:]


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a finished preparation left; a ConfigError with the remedy where there is none."""
    path = folder / MANIFEST
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(
            f"There are no tokens in {folder}: run `python -m optlab data prepare {folder.name}`, "
            "or set OPTLAB_DATA to the folder that holds them."
        ) from None
    except ValueError as error:
        raise ConfigError(
            f"{path} cannot be read ({error}): run `python -m optlab data prepare {folder.name}`."
        ) from error
