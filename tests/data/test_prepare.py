"""Downloads from a server on this machine that is kind, broken, slow, lying or absent."""

from __future__ import annotations

import errno
import fcntl
import gzip
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace

import pytest

from optlab.data.digits import Digits
from optlab.data.idx import FashionMnist, Mnist
from optlab.data.prepare import CHUNK, RemoteFile, prepare
from optlab.data.text import PythonDocs, Shakespeare
from optlab.errors import ConfigError
from support import environment

CONTENT = bytes(range(256)) * 5000  # five chunks


@dataclass
class Server:
    """What the server on this machine has, and what it was asked for."""

    address: str = ""
    bodies: dict[str, bytes] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)  # announced whole, sent by half
    silent: set[str] = field(default_factory=set)  # never answered
    unannounced: set[str] = field(default_factory=set)  # without a length
    parts: bool = False  # whether it sends a file from the byte on that is asked for
    begun: list[int] = field(default_factory=list)  # first byte of what was sent
    asked: list[str] = field(default_factory=list)
    closing: Event = field(default_factory=Event)

    def url(self, name: str) -> str:
        return f"{self.address}/{name}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path[1:]
            state.asked.append(name)
            if name in state.silent:
                state.closing.wait(20)
            elif name not in state.bodies:
                self.send_error(404)
            else:
                body, start = state.bodies[name], 0
                if state.parts and (asked := self.headers["Range"]):
                    start = int(asked.removeprefix("bytes=").removesuffix("-"))
                    end = len(body) - 1
                    body = body[start:]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{end}/{end + 1}")
                else:
                    self.send_response(200)
                state.begun.append(start)
                if name not in state.unannounced:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if name in state.cut else body)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        state.address = f"http://127.0.0.1:{listening.server_port}"
        thread = Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        yield state
        state.closing.set()
        listening.shutdown()
        thread.join()


@dataclass(frozen=True)
class Fake:
    """A dataset of these files."""

    files: tuple[RemoteFile, ...]


def zipped(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


def by_message(value: object) -> str:
    """A test's name from the expected message, not from kilobytes of content."""
    return value if isinstance(value, str) else "content"


def remote(path: str, *urls: str, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(path, urls, len(content), sha256(content).hexdigest())


def attempt(folder: Path, *files: RemoteFile) -> list[str]:
    """What ``prepare`` says on its way."""
    said: list[str] = []
    prepare("fake", Fake(files), folder, said.append)
    return said


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_files_arrive_where_they_belong(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a.txt": CONTENT, "b.gz": zipped(CONTENT)}

    said = attempt(
        tmp_path,
        remote("x/a.txt", server.url("a.txt")),
        remote("y/z/b.gz", server.url("b.gz")),
    )

    assert files_in(tmp_path) == ["x/a.txt", "y/z/b.gz"]
    assert (tmp_path / "x/a.txt").read_bytes() == CONTENT
    assert gzip.decompress((tmp_path / "y/z/b.gz").read_bytes()) == CONTENT
    assert said[-1] == f"Dataset fake is ready in {tmp_path}."


def test_progress_is_told_by_quarters(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a": CONTENT}

    said = attempt(tmp_path, remote("a", server.url("a")))

    assert [line for line in said if "%" in line] == [
        f"a: {percent} % of 1.3 MB" for percent in (25, 50, 75, 100)
    ]
    assert len(CONTENT) > 4 * CHUNK


@pytest.mark.parametrize("level", [0, 1, 9])
def test_any_way_of_compressing_the_right_content_is_accepted(
    server: Server, tmp_path: Path, level: int
) -> None:
    server.bodies = {"a.gz": gzip.compress(CONTENT, level, mtime=level)}

    attempt(tmp_path, remote("a.gz", server.url("a.gz")))

    assert (tmp_path / "a.gz").read_bytes() == server.bodies["a.gz"]


def test_a_server_may_leave_out_the_length(server: Server, tmp_path: Path) -> None:
    server.bodies, server.unannounced = {"a": CONTENT}, {"a"}

    attempt(tmp_path, remote("a", server.url("a")))

    assert (tmp_path / "a").read_bytes() == CONTENT


def test_what_is_there_and_right_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a": CONTENT, "b": CONTENT}
    first, second = remote("a", server.url("a")), remote("b", server.url("b"))
    attempt(tmp_path, first)

    said = attempt(tmp_path, first, second)

    assert server.asked == ["a", "b"]
    assert "a: there and verified" in said


def test_a_corrupt_file_is_said_to_be_so_and_replaced(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a": CONTENT}
    (tmp_path / "a").write_bytes(CONTENT[:-1] + b"!")

    said = attempt(tmp_path, remote("a", server.url("a")))

    assert "a: there, but its SHA-256 is" in said[0]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_corrupt_file_stays_until_a_good_one_is_here(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"corrupt")

    with pytest.raises(ConfigError, match="404"):
        attempt(tmp_path, remote("a", server.url("a")))

    assert (tmp_path / "a").read_bytes() == b"corrupt"


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (CONTENT[:-1] + b"!", "its SHA-256 is"),
        (CONTENT[:-1], "it holds 1,279,999 bytes instead of 1,280,000"),
        (CONTENT + b"!", "it holds more than 1,280,000 bytes instead of 1,280,000"),
        (b"", "it holds 0 bytes"),
    ],
    ids=by_message,
)
def test_wrong_content_leaves_nothing(
    server: Server, tmp_path: Path, body: bytes, fault: str
) -> None:
    server.bodies = {"a": body}

    with pytest.raises(ConfigError, match=fault):
        attempt(tmp_path, remote("a", server.url("a")))

    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"<html>You must log in</html>", "it is not a whole gzip file"),
        (zipped(CONTENT)[:-9], "it is not a whole gzip file"),
        (zipped(CONTENT)[:-5] + b"....!", "it is not a whole gzip file"),
        (zipped(b"other"), "it holds 5 bytes"),
        (zipped(CONTENT)[:10] + b"\xff" * 30, "it is not a whole gzip file"),
        (zipped(bytes(10**8))[:-8], "it holds more than"),  # not read to its broken end
    ],
    ids=by_message,
)
def test_wrong_gzip_content_leaves_nothing(
    server: Server, tmp_path: Path, body: bytes, fault: str
) -> None:
    server.bodies = {"a.gz": body}

    with pytest.raises(ConfigError, match=fault):
        attempt(tmp_path, remote("a.gz", server.url("a.gz")))

    assert files_in(tmp_path) == []


def test_a_cut_connection_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.bodies, server.cut = {"a": CONTENT}, {"a"}

    with pytest.raises(ConfigError, match="connection was cut after 640,000 of 1,280,000 bytes"):
        attempt(tmp_path, remote("a", server.url("a")))

    assert files_in(tmp_path) == []


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("optlab.data.prepare.TIMEOUT", 0.1)
    server.silent = {"a"}

    with pytest.raises(ConfigError, match="timed out"):
        attempt(tmp_path, remote("a", server.url("a")))

    assert files_in(tmp_path) == []


def test_without_a_network_the_message_says_what_to_do_by_hand(tmp_path: Path) -> None:
    nowhere = closed_port()

    with pytest.raises(ConfigError) as caught:
        attempt(tmp_path, remote("x/a", f"{nowhere}/one/a", f"{nowhere}/two/a"))

    message = str(caught.value)
    for part in [
        "Dataset fake could not be downloaded",
        "Connection refused",
        f"{nowhere}/one/a or {nowhere}/two/a",
        f"to {tmp_path / 'x/a'}",
        "OPTLAB_DATA",
    ]:
        assert part in message
    assert files_in(tmp_path) == []


def test_a_mirror_stands_in_for_the_official_place(server: Server, tmp_path: Path) -> None:
    server.bodies = {"mirror": CONTENT, "damaged": CONTENT[1:]}
    places = [closed_port(), server.url("absent"), server.url("damaged"), server.url("mirror")]

    said = attempt(tmp_path, remote("a", *places))

    assert (tmp_path / "a").read_bytes() == CONTENT
    for fault in ["no connection", "404", "it holds 1,279,999 bytes"]:
        assert any(fault in line for line in said)


def test_a_dataset_is_all_there_or_not_at_all(server: Server, tmp_path: Path) -> None:
    """The first of two files is good, the second is not to be had: the folder stays as it was."""
    server.bodies = {"a": CONTENT}

    with pytest.raises(ConfigError):
        attempt(tmp_path, remote("a", server.url("a")), remote("b", server.url("b")))

    assert server.asked == ["a", "b"]
    assert files_in(tmp_path) == []


def test_an_interruption_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a": CONTENT}

    def interrupt(line: str) -> None:
        if "50 %" in line:
            assert any(name.endswith(".part") for name in files_in(tmp_path))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare("fake", Fake((remote("a", server.url("a")),)), tmp_path, interrupt)

    assert files_in(tmp_path) == []


ARCHIVE, PART = "a.tar.gz", ".a.tar.gz.part"


@pytest.mark.parametrize("parts", [True, False])
def test_an_archive_is_gone_on_with_where_the_connection_was_cut(
    server: Server, tmp_path: Path, parts: bool
) -> None:
    server.bodies, server.cut, server.parts = {"a": CONTENT}, {"a"}, parts
    with pytest.raises(ConfigError, match="cut after 640,000 of 1,280,000 bytes"):
        attempt(tmp_path, remote(ARCHIVE, server.url("a")))
    assert files_in(tmp_path) == [PART]

    server.cut = set()
    attempt(tmp_path, remote(ARCHIVE, server.url("a")))

    assert files_in(tmp_path) == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_bytes() == CONTENT
    assert server.begun == [0, 640_000 if parts else 0]


def test_an_archive_survives_a_kill_and_a_second_one(server: Server, tmp_path: Path) -> None:
    """A real process, killed at half of what it has to get; the next one gets the other half."""
    server.bodies, server.parts = {"a": CONTENT}, True
    code = (
        "import os, pathlib, signal, sys\n"
        "from optlab.data.prepare import RemoteFile, prepare\n"
        "from types import SimpleNamespace\n"
        "def die(line):\n"
        "    if line.endswith(sys.argv[4]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "file = RemoteFile('a.tar.gz', (sys.argv[2],), int(sys.argv[5]), sys.argv[3])\n"
        "prepare('fake', SimpleNamespace(files=(file,)), pathlib.Path(sys.argv[1]), die)\n"
    )
    digest = sha256(CONTENT).hexdigest()
    size = str(len(CONTENT))
    for at in ("50 % of 1.3 MB", "75 % of 1.3 MB"):
        words = [str(tmp_path), server.url("a"), digest, at, size]
        killed = subprocess.run(
            [sys.executable, "-c", code, *words], env=environment(), timeout=60, check=False
        )
        assert killed.returncode == -signal.SIGKILL
        assert files_in(tmp_path) == [PART]
    attempt(tmp_path, remote(ARCHIVE, server.url("a")))

    assert (tmp_path / ARCHIVE).read_bytes() == CONTENT
    assert server.begun[0] == 0 and 0 < server.begun[1] < server.begun[2]


@pytest.mark.parametrize(
    "part", [b"wrong" * 1000, CONTENT[:-1] + b"!", CONTENT + b"!"], ids=["cut", "whole", "longer"]
)
def test_a_part_that_is_no_beginning_of_the_archive_is_thrown_away(
    server: Server, tmp_path: Path, part: bytes
) -> None:
    server.bodies, server.parts = {"a": CONTENT}, True
    (tmp_path / PART).write_bytes(part)

    attempt(tmp_path, remote(ARCHIVE, server.url("a")))

    assert files_in(tmp_path) == [ARCHIVE]
    assert (tmp_path / ARCHIVE).read_bytes() == CONTENT


def test_a_part_that_is_the_whole_archive_is_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    (tmp_path / PART).write_bytes(CONTENT)

    attempt(tmp_path, remote(ARCHIVE, server.url("a")))

    assert files_in(tmp_path) == [ARCHIVE] and server.asked == []


def test_a_mirror_goes_on_with_what_the_official_place_began(
    server: Server, tmp_path: Path
) -> None:
    server.bodies, server.parts = {"a": CONTENT, "b": CONTENT}, True
    server.cut = {"a"}

    attempt(tmp_path, remote(ARCHIVE, server.url("a"), server.url("b")))

    assert (tmp_path / ARCHIVE).read_bytes() == CONTENT
    assert server.begun == [0, 640_000]


def test_a_wrong_archive_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a": CONTENT[:-1] + b"!"}

    with pytest.raises(ConfigError, match="its SHA-256 is"):
        attempt(tmp_path, remote(ARCHIVE, server.url("a")))

    assert files_in(tmp_path) == []


def test_an_archive_is_not_fetched_by_two_at_once(server: Server, tmp_path: Path) -> None:
    server.bodies = {"a": CONTENT}

    with (tmp_path / PART).open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="is being downloaded by another process"):
            attempt(tmp_path, remote(ARCHIVE, server.url("a")))
    attempt(tmp_path, remote(ARCHIVE, server.url("a")))

    assert files_in(tmp_path) == [ARCHIVE]


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    server: Server, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**8))
    server.bodies = {"a": CONTENT}
    large = RemoteFile(ARCHIVE, (server.url("a"),), 10**9, "")

    with pytest.raises(ConfigError, match=r"needs 1067 MB below .*, and 100 MB are free"):
        attempt(tmp_path, large)

    assert server.asked == [] and files_in(tmp_path) == []


def test_a_full_disk_is_no_network_trouble(server: Server, tmp_path: Path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    server.bodies = {"a": CONTENT}

    with pytest.raises(ConfigError, match=r"cannot be written.*No space left.*OPTLAB_DATA"):
        attempt(tmp_path, remote("a", server.url("a")))

    assert files_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a file in the way")

    with pytest.raises(ConfigError, match="cannot be written"):
        attempt(tmp_path, remote("x/a", server.url("a")))

    assert files_in(tmp_path) == ["x"]


def test_others_may_read_what_was_downloaded(server: Server, tmp_path: Path) -> None:
    """Permissions follow the umask, as for any new file: data folders are shared."""
    server.bodies = {"a": CONTENT}
    (tmp_path / "plain").touch()

    attempt(tmp_path, remote("a", server.url("a")))

    assert os.stat(tmp_path / "a").st_mode == os.stat(tmp_path / "plain").st_mode


@pytest.mark.parametrize(
    "dataset", [Digits(64, 10, 0.0), PythonDocs(256, 256, None, context=4, val_windows=4)]
)
def test_bundled_datasets_say_that_they_need_no_files(dataset, tmp_path: Path) -> None:
    said: list[str] = []

    prepare("bundled", dataset, tmp_path / "new", said.append)

    assert said == ["Dataset bundled needs no files: it comes with an installed package."]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "dataset",
    [Mnist(784, 10, 0.0), FashionMnist(784, 10, 0.2), Shakespeare(65, 65, None, 64, 256)],
    ids=lambda dataset: type(dataset).__name__,
)
def test_the_declared_hashes_are_those_of_the_real_files(
    dataset, real_data: Callable[..., Path]
) -> None:
    """Nothing is downloaded: what is there satisfies what is declared."""
    said: list[str] = []
    folder = real_data(dataset.files)

    prepare("real", dataset, folder, said.append)

    assert said == [
        *(f"{file.path}: there and verified" for file in dataset.files),
        f"Dataset real is ready in {folder}.",
    ]
