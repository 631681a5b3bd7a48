"""What Hydra composed before: a cache that makes looking at a large sweep feel instant.

Hydra takes about 0.1 s for each combination of group options. What it gives is a pure function of
the files of ``conf/``, the options and the code, so an entry is named by the hash of all of them:
there is nothing to invalidate, and an entry that is damaged or not there costs the 0.1 s.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

_KEEP = 30 * 86400.0  # seconds that an entry stays without being written again
_IMPURE = (b"${oc.", b"${hydra", b"searchpath")  # what a composition could read beside conf/


def recall(groups: Sequence[str], conf: Path) -> Any:
    """What was remembered for these options and files; None if nothing was."""
    path = _entry(groups, conf)
    try:
        stored = json.loads(path.read_text()) if path else None
        if stored and stored["sha256"] == _digest(stored["content"]):
            return stored["content"]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there or damaged: it is composed anew, and written again
    return None


def remember(groups: Sequence[str], conf: Path, content: Any) -> None:
    """Keep what Hydra composed, where it can be kept: not in a folder that is read-only."""
    path = _entry(groups, conf)
    if path is None or json.loads(json.dumps(content)) != content:  # keys that JSON does not have
        return
    with contextlib.suppress(OSError):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({"sha256": _digest(content), "content": content}))
        os.replace(temporary, path)
        for old in path.parent.glob("*.*"):
            if old.stat().st_mtime < time.time() - _KEEP:
                old.unlink()


def _entry(groups: Sequence[str], conf: Path) -> Path | None:
    files = _files(conf)
    if files is None:
        return None
    name = hashlib.sha256(json.dumps([files, list(groups)]).encode()).hexdigest()
    return conf.parent / ".cache" / "composed" / f"{name}.json"


@functools.cache
def _files(conf: Path) -> str | None:
    """The hash of all that a composition depends on, read once per process; None: it may not."""
    digest = hashlib.sha256()
    code = Path(__file__).parent
    plugins = sorted((conf.parent / "hydra_plugins").rglob("*.py"))
    own = [code / f"{name}.py" for name in ("config", "overrides", "composed")]
    sources = [*own, *plugins]
    for path in [*sources, *sorted(path for path in conf.rglob("*") if path.is_file())]:
        content = path.read_bytes()
        if path not in sources and any(word in content for word in _IMPURE):
            return None
        digest.update(f"{path.relative_to(conf.parent)}:{len(content)}:".encode() + content)
    versions = [version(package) for package in ("hydra-core", "omegaconf", "PyYAML")]
    digest.update(json.dumps([sys.version, versions]).encode())
    return digest.hexdigest()


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
