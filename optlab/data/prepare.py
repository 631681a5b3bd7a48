"""Downloads a dataset's files, all or none, each verified by hash before it gets its name."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from ..errors import ConfigError

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without an answer

Echo = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file that a dataset needs, and where the world keeps it."""

    path: str  # below the data folder
    urls: tuple[str, ...]  # official place first, then mirrors
    size: int  # bytes of the content: what is inside, for a name that ends in .gz
    sha256: str  # of the content, so that any way of compressing it is accepted


class NeedsFiles(Protocol):
    """The part of a dataset that matters here."""

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Empty for a dataset that comes with an installed package."""
        ...


class DownloadError(Exception):
    """One place did not give the file; the message says why."""


def prepare(name: str, dataset: NeedsFiles, folder: Path, echo: Echo) -> None:
    """Make the files of ``dataset`` exist below ``folder``; what is there and right stays.

    All missing files are first brought in under temporary names, so that a failure or an
    interruption leaves the folder as it was. Raises ConfigError with the remedy.
    """
    if not dataset.files:
        echo(f"Dataset {name} needs no files: it comes with an installed package.")
        return
    try:
        bring(name, [f for f in dataset.files if not is_ready(f, folder, echo)], folder, echo)
    except OSError as error:
        raise ConfigError(
            f"Dataset {name} cannot be written below {folder}: {error}. Mend that, or set"
            " OPTLAB_DATA to another folder."
        ) from error
    echo(f"Dataset {name} is ready in {folder}.")


def bring(name: str, wanted: Sequence[RemoteFile], folder: Path, echo: Echo) -> None:
    """Download all ``wanted`` files under temporary names, then give them their own."""
    with ExitStack() as stack:
        staged = [stack.enter_context(staging(folder / file.path)) for file in wanted]
        try:
            for file, temporary in zip(wanted, staged, strict=True):
                fetch(file, temporary, echo)
        except DownloadError as error:
            raise ConfigError(by_hand(name, wanted, folder, error)) from error
        for file, temporary in zip(wanted, staged, strict=True):
            os.replace(temporary, folder / file.path)


def is_ready(file: RemoteFile, folder: Path, echo: Echo) -> bool:
    """Whether the file is there with the right content; says so."""
    if not (folder / file.path).exists():
        return False
    fault = find_fault(file, folder / file.path)
    if fault is None:
        echo(f"{file.path}: there and verified")
        return True
    echo(f"{file.path}: there, but {fault}; it stays until a good copy is here")
    return False


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A temporary path next to ``target``, on the same disk; nothing is left of it afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def fetch(file: RemoteFile, temporary: Path, echo: Echo) -> None:
    """Download the file from the first place that has it, verified, to ``temporary``."""
    reasons = []
    for url in file.urls:
        echo(f"{file.path}: downloading from {url}")
        try:
            download(url, temporary, lambda progress: echo(f"{file.path}: {progress}"))
        except DownloadError as error:
            fault = str(error)
        else:
            fault = find_fault(file, temporary)
        if fault is None:
            echo(f"{file.path}: verified")
            return
        reasons.append(f"{url}: {fault}")
        echo(f"{file.path}: {fault}")
    raise DownloadError("; ".join(reasons))


def download(url: str, temporary: Path, progress: Echo) -> None:
    """Write what ``url`` gives to ``temporary``, durably; report every quarter of a large file."""
    with temporary.open("wb") as stream:
        reported = 0
        for chunk, total in receive(url):
            stream.write(chunk)
            quarter = 4 * stream.tell() // total if total > 4 * CHUNK else 0
            if quarter > reported:
                reported = quarter
                progress(f"{25 * quarter} % of {total / 1e6:.1f} MB")
        stream.flush()
        os.fsync(stream.fileno())


def receive(url: str) -> Iterator[tuple[bytes, int]]:
    """The pieces of what ``url`` gives, each with the announced total (0 where there is none)."""
    try:
        with urlopen(url, timeout=TIMEOUT) as response:
            total, received = int(response.headers.get("Content-Length", 0)), 0
            while chunk := response.read(CHUNK):
                received += len(chunk)
                yield chunk, total
    except HTTPError as error:
        error.close()
        raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except URLError as error:
        raise DownloadError(f"no connection ({error.reason})") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"the connection broke ({error})") from error
    if received < total:
        raise DownloadError(f"the connection was cut after {received:,} of {total:,} bytes")


def find_fault(file: RemoteFile, path: Path) -> str | None:
    """What is wrong with the content of ``path``, as the end of a sentence; None if nothing is."""
    digest, size = sha256(), 0
    try:
        with gzip.open(path) if file.path.endswith(".gz") else path.open("rb") as stream:
            while size <= file.size and (chunk := stream.read(CHUNK)):
                digest.update(chunk)
                size += len(chunk)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"it is not a whole gzip file ({error})"
    if size != file.size:
        more = "more than " if size > file.size else ""
        return f"it holds {more}{min(size, file.size):,} bytes instead of {file.size:,}"
    if digest.hexdigest() != file.sha256:
        return f"its SHA-256 is {digest.hexdigest()} instead of {file.sha256}"
    return None


def by_hand(name: str, wanted: Sequence[RemoteFile], folder: Path, error: DownloadError) -> str:
    """What failed, where the files are in the world, and where they belong."""
    places = "\n".join(
        f"  {' or '.join(file.urls)}\n    to {folder / file.path}" for file in wanted
    )
    return (
        f"Dataset {name} could not be downloaded, and nothing was changed: {error}.\n"
        f"Try again later, or get these files on a machine with a network and put them there"
        f" by hand:\n{places}\n"
        f"or set OPTLAB_DATA to a folder that has them."
    )
