"""Files of a run's whole state that are either whole and true, or refused."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import IO, Any

import torch


class UnusableCheckpoint(Exception):
    """A checkpoint that is torn, corrupt, or does not fit the run."""


class _HashingFile:
    """A file to write to that knows the SHA-256 of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` with its SHA-256 behind it; the file is whole, or the old one stays."""
    temporary = path.with_suffix(".tmp")
    try:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            torch.save(content, hashing)  # type: ignore[arg-type]  # it only writes and flushes
            file.write(hashing.digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """What ``save_checkpoint`` wrote, on the CPU; torch itself does not notice a flipped bit.

    Raises:
        ValueError: the content is not the one that was written.
    """
    size = path.stat().st_size - hashlib.sha256().digest_size
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while size > 0:
            digest.update(block := file.read(min(size, 1 << 20)))
            size -= len(block)
        if digest.digest() != file.read():
            raise ValueError("it is torn or corrupt: its content does not have its checksum")
    return torch.load(path, map_location="cpu", weights_only=True)


def checkpoint_digest(path: Path) -> str:
    """The checksum that ``save_checkpoint`` wrote, as hex digits."""
    size = hashlib.sha256().digest_size
    with path.open("rb") as file:
        file.seek(-size, os.SEEK_END)
        return file.read().hex()
