"""Downloads a dataset's files, all or none, each verified by hash before it gets its name.

A small file that does not arrive whole leaves nothing. Of an archive, what has arrived stays in
``.NAME.part``, and the next attempt goes on from there.
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Protocol
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ..errors import ConfigError

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without an answer
SPARE = 64 * 2**20  # bytes of disk that stay free

Echo = Callable[[str], None]


@dataclass(frozen=True)
class RemoteFile:
    """A file that a dataset needs, and where the world keeps it."""

    path: str  # below the data folder
    urls: tuple[str, ...]  # official place first, then mirrors
    size: int  # bytes of the content: what is inside, for a single file with a name in .gz
    sha256: str  # of the content, so that any way of compressing it is accepted

    @property
    def archive(self) -> bool:
        """Kept as it comes, size and hash are its own; a download that stops is gone on with."""
        return self.path.endswith(".tar.gz")


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
    interruption leaves the folder as it was, but for a part of an archive. Raises ConfigError with
    the remedy.
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
        staged = [stack.enter_context(staging(file, folder)) for file in wanted]
        check_disk(name, wanted, staged, folder)
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
def staging(file: RemoteFile, folder: Path) -> Iterator[Path]:
    """A temporary path next to the file's, on the same disk; of an archive, one for all attempts.

    Nothing is left of it afterwards, but for the part of an archive that has arrived.
    """
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.archive:
        temporary = target.with_name(f".{target.name}.part")
        with temporary.open("ab") as held:
            lock(held, file)
            try:
                yield temporary
            finally:
                if temporary.exists() and not temporary.stat().st_size:
                    temporary.unlink()
        return
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def lock(held: IO[bytes], file: RemoteFile) -> None:
    """Refuse to write where another process does."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigError(
            f"{file.path} is being downloaded by another process ({held.name}): wait for it, or end"
            " it and run this command again, which goes on from there."
        ) from error


def check_disk(
    name: str, wanted: Sequence[RemoteFile], staged: Sequence[Path], folder: Path
) -> None:
    """Raise where the disk cannot hold what is lacking."""
    lacking = sum(
        file.size - (size_of(part) if file.archive else 0)
        for file, part in zip(wanted, staged, strict=True)
    )
    free = shutil.disk_usage(folder).free
    if wanted and free < lacking + SPARE:
        raise ConfigError(
            f"Dataset {name} needs {(lacking + SPARE) / 1e6:.0f} MB below {folder}, and "
            f"{free / 1e6:.0f} MB are free: free some, or set OPTLAB_DATA to a folder on another"
            " disk."
        )


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def fetch(file: RemoteFile, temporary: Path, echo: Echo) -> None:
    """Download the file from the first place that has it, verified, to ``temporary``."""
    reasons = []
    for url in file.urls:
        fault = attempt(file, url, temporary, echo)
        if fault is None:
            return
        reasons.append(f"{url}: {fault}")
        echo(f"{file.path}: {fault}")
    raise DownloadError("; ".join(reasons))


def attempt(file: RemoteFile, url: str, temporary: Path, echo: Echo) -> str | None:
    """Why ``url`` did not give the file, as the end of a sentence; None if it did.

    What an earlier attempt has left of an archive is gone on with, and thrown away where it turns
    out not to be the beginning of the file.
    """
    there = size_of(temporary) if file.archive else 0
    if there > file.size:
        there = 0
    places = [there, 0] if there else [0]
    fault: str | None = None
    for start in places:
        if start < file.size:
            begun = f" from byte {start:,} on" if start else ""
            echo(f"{file.path}: downloading from {url}{begun}")
            try:
                download(url, temporary, lambda line: echo(f"{file.path}: {line}"), start)
            except DownloadError as error:
                return str(error)
        fault = find_fault(file, temporary)
        if fault is None:
            echo(f"{file.path}: verified")
            return None
        temporary.write_bytes(b"")  # wrong as a whole: nothing to go on from
    return fault


def download(url: str, temporary: Path, progress: Echo, start: int = 0) -> None:
    """Write what ``url`` gives to ``temporary``, durably; report every quarter of a large file.

    The first ``start`` bytes are there already; a server that does not know parts sends them again.
    """
    with temporary.open("r+b" if start else "wb") as stream:
        for position, chunk, total in receive(url, start):
            if stream.tell() != position:
                stream.seek(position)
            stream.write(chunk)
            done = 4 * stream.tell() // total if total > 4 * CHUNK else 0
            if done and done > 4 * position // total:
                progress(f"{25 * done} % of {total / 1e6:.1f} MB")
        stream.truncate()
        stream.flush()
        os.fsync(stream.fileno())


def receive(url: str, start: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """The pieces of what ``url`` gives from byte ``start`` on, where a server knows parts.

    Each with its place in the file, and the announced size of the file (0 where there is none).
    """
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urlopen(request, timeout=TIMEOUT) as response:
            position = start if is_part(response, start) else 0
            length = int(response.headers.get("Content-Length", 0))
            total = position + length if length else 0
            while chunk := response.read(CHUNK):
                yield position, chunk, total
                position += len(chunk)
    except HTTPError as error:
        error.close()
        raise DownloadError(f"the server answered {error.code} {error.reason}") from error
    except URLError as error:
        raise DownloadError(f"no connection ({error.reason})") from error
    except (OSError, HTTPException) as error:
        raise DownloadError(f"the connection broke ({error})") from error
    if position < total:
        raise DownloadError(f"the connection was cut after {position:,} of {total:,} bytes")


def is_part(response: HTTPResponse, start: int) -> bool:
    """Whether a server sends the file from byte ``start`` on, as asked."""
    stated = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    return response.status == 206 and stated is not None and int(stated[1]) == start


def find_fault(file: RemoteFile, path: Path) -> str | None:
    """What is wrong with the content of ``path``, as the end of a sentence; None if nothing is."""
    digest, size = sha256(), 0
    try:
        packed = file.path.endswith(".gz") and not file.archive
        with gzip.open(path) if packed else path.open("rb") as stream:
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
