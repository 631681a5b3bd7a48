"""Text as windows of tokens, each window to be continued by one token everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .base import (
    Batch,
    Data,
    Sampler,
    accuracy,
    check_size,
    cross_entropy,
    find_file,
    marginal_entropy,
    random_stream,
)
from .prepare import RemoteFile

TRAIN_FRACTION = 0.9  # the first part of the text; the rest validates (as nanoGPT splits it)
VAL_BATCH = 64  # windows a validation batch


@dataclass(frozen=True)
class PythonDocs:
    """The English topics of Python's ``help()``, byte by byte: real text without a download."""

    files: ClassVar[tuple[RemoteFile, ...]] = ()

    input_size: int
    output_size: int
    loss_lower_bound: float | None
    context: int  # tokens of a window
    val_windows: int  # at most, spread evenly over the validation part

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs and targets are int64 (B, context); ``folder`` is not used."""
        tokens = torch.frombuffer(bytearray(python_docs().encode()), dtype=torch.uint8).long()
        check_size("input_size", self.input_size, 256)
        check_size("output_size", self.output_size, 256)
        return predict_next_token(
            tokens,
            context=self.context,
            val_windows=self.val_windows,
            seed=seed,
            batch_size=batch_size,
        )


@dataclass(frozen=True)
class Shakespeare:
    """Tiny Shakespeare, character by character; a token is a character's rank in the alphabet."""

    files: ClassVar[tuple[RemoteFile, ...]] = (
        RemoteFile(
            path="tiny-shakespeare/input.txt",
            urls=(
                "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            ),
            size=1_115_394,
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        ),
    )

    input_size: int
    output_size: int
    loss_lower_bound: float | None
    context: int  # tokens of a window
    val_windows: int  # at most, spread evenly over the validation part

    def load(self, folder: Path, *, seed: int, batch_size: int) -> Data:
        """Inputs and targets are int64 (B, context)."""
        file = find_file(folder, self.files[0].path, dataset="shakespeare")
        tokens, alphabet = encode_characters(read_text(file))
        check_size("input_size", self.input_size, len(alphabet))
        check_size("output_size", self.output_size, len(alphabet))
        return predict_next_token(
            tokens,
            context=self.context,
            val_windows=self.val_windows,
            seed=seed,
            batch_size=batch_size,
        )


def python_docs() -> str:
    """All topics in the order of their names. They differ between versions of Python."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise ConfigError(
            "Dataset python_docs needs the module pydoc_data of Python's standard library, which"
            " this Python lacks: install the complete standard library."
        ) from error
    return "\n\n".join(topics[name] for name in sorted(topics))


def read_text(file: Path) -> str:
    """The characters of a UTF-8 file, line ends untouched."""
    try:
        return file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text: {error}. Download it again.") from error


def encode_characters(text: str) -> tuple[Tensor, str]:
    """Tokens, int64 (len(text),), and the sorted alphabet that they index."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    alphabet, tokens = np.unique(points, return_inverse=True)
    return torch.from_numpy(tokens.astype(np.int64)), "".join(map(chr, alphabet))


def predict_next_token(
    tokens: Tensor, *, context: int, val_windows: int, seed: int, batch_size: int
) -> Data:
    """Data from a text, int64 (n,): windows of ``context`` tokens, targets one token ahead.

    An epoch takes every training window once, in its own order; its windows lie side by side
    from an offset of its own, so that over the epochs every position starts a window. The
    validation windows lie in the last part of the text, which no training window enters.
    """
    if context < 1 or val_windows < 1:
        raise ConfigError(
            "dataset.context and dataset.val_windows must be at least 1,"
            f" but they are {context} and {val_windows}."
        )
    end = int(TRAIN_FRACTION * len(tokens))
    val = cut(tokens[end:], spread_starts(len(tokens) - end, context, val_windows), context)
    return Data(
        train=training_windows(tokens[:end], context, seed=seed, batch_size=batch_size),
        val=list(zip(*(part.split(VAL_BATCH) for part in val), strict=True)),
        loss=cross_entropy,
        metrics={"accuracy": accuracy},
        chance_loss=marginal_entropy(tokens[:end]),
    )


def training_windows(
    tokens: Tensor, context: int, *, seed: int, batch_size: int
) -> Callable[[int], Batch]:
    """The function from a training step to its batch of windows."""
    windows = (len(tokens) - context) // context  # as many as fit at any offset below ``context``
    sampler = Sampler(windows, batch_size, seed)

    def batch(step: int) -> Batch:
        starts = [
            epoch_offset(context, seed, epoch) + context * indices
            for epoch, indices in sampler.parts(step)
        ]
        return cut(tokens, np.concatenate(starts), context)

    return batch


@lru_cache(maxsize=8)
def epoch_offset(context: int, seed: int, epoch: int) -> int:
    """Where the first window of an epoch starts, in [0, context)."""
    return random_stream(seed, epoch, 1).randint(context)


def spread_starts(length: int, context: int, most: int) -> np.ndarray:
    """Starts of at most ``most`` windows, without overlap and evenly spread over ``length``."""
    fitting = (length - 1) // context
    if fitting < 1:
        raise ConfigError(
            f"dataset.context is {context}, but the validation part of the text has only {length}"
            " tokens, too few for one window: choose a shorter context."
        )
    chosen = min(most, fitting)
    return context * (np.arange(chosen) * fitting // chosen)


def cut(tokens: Tensor, starts: np.ndarray, context: int) -> Batch:
    """Inputs and targets, each (len(starts), context), of the windows at ``starts``."""
    positions = torch.from_numpy(starts)[:, None] + torch.arange(context + 1)
    windows = tokens[positions]
    return windows[:, :-1], windows[:, 1:]
