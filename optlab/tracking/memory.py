"""What has been published of a run, and where: the file ``wandb.json`` in the run's folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ..store import write_json

NAME = "wandb.json"


@dataclass(frozen=True)
class Published:
    """A run as one project of one W&B server has it."""

    id: str  # in W&B: the run's own, with a suffix where it had to be published anew
    group: str | None
    tags: tuple[str, ...] = ()
    digest: str = ""  # of the content that W&B has confirmed
    live: bool = False  # its mirror streams to it while it trains
    url: str = ""


def recall(folder: Path, target: str) -> Published | None:
    """What ``target`` has of the run; None where it was never published there."""
    found = _read(folder / NAME).get(target)
    return None if found is None else Published(**{**found, "tags": tuple(found["tags"])})


def was_published(folder: Path) -> bool:
    """Whether any server has, or had, anything of the run."""
    return bool(_read(folder / NAME))


def remember(folder: Path, target: str, published: Published) -> None:
    write_json(folder / NAME, {**_read(folder / NAME), target: asdict(published)})


def grouped(known: Published | None, run_id: str, group: str | None) -> Published:
    """What is to be published: in the group that brought it there first, if any did."""
    if known is None:
        return Published(run_id, group)
    return replace(known, group=group) if group and not known.group else known


def end_stream(folder: Path) -> None:
    """Note that no mirror streams the run anywhere, so that it may be published while it trains."""
    known = _read(folder / NAME)
    if any(published.get("live") for published in known.values()):
        ended = {target: {**published, "live": False} for target, published in known.items()}
        write_json(folder / NAME, ended)


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[bool]:
    """Whether this process may publish the run now; two at once would spoil its history."""
    with (folder / "wandb.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _read(path: Path) -> dict[str, dict]:
    """The file's content; a missing or torn one says nothing, and W&B itself is asked."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
