"""A copy of the code for jobs to run from, so that the working tree may change while they wait."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import ConfigError

NOTE = "snapshot.json"  # where the copy came from
_LARGEST = 200 * 2**20  # bytes; code is small, and more than this is data in the wrong place


def snapshot(root: Path, into: Path, leave_out: Sequence[Path] = ()) -> Path:
    """Copy the code below ``root`` to ``into/<hash of its content>``; that folder.

    Taken are the files that git knows and those it does not ignore, changed or not; outside of a
    repository, all but hidden ones, virtual environments and what lies in ``leave_out``. The same
    code is copied once.

    Raises:
        ConfigError: the files are too large to be code.
    """
    files = _known_to_git(root) or list(_walk(root, {path.resolve() for path in leave_out}))
    _check_size(root, files)
    digest = hashlib.sha256()
    for name in files:
        path = root / name
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        kind = "link" if path.is_symlink() else oct(path.stat().st_mode & 0o111)
        digest.update(f"{name}\0{kind}\0{len(content)}\0".encode() + content)
    target = into / digest.hexdigest()[:12]
    if not target.exists():
        _copy(root, files, target)
    return target


def _copy(root: Path, files: Sequence[str], target: Path) -> None:
    """Copy through a folder of another name, so that ``target`` is whole or not there."""
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:6]}")
    temporary.mkdir(parents=True)
    try:
        for name in files:
            copy = temporary / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, copy, follow_symlinks=False)
            if not copy.is_symlink():
                copy.chmod(copy.stat().st_mode & ~0o222)  # nobody edits it by mistake
        note = {"commit": _git(root, "rev-parse", "HEAD"), "dirty": _dirty(root)}
        (temporary / NOTE).write_text(json.dumps({**note, "code": target.name}) + "\n")
        try:
            temporary.rename(target)
        except OSError:  # another launch has just made it
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _known_to_git(root: Path) -> list[str]:
    """Files below ``root`` that git tracks or does not ignore; none outside of a repository."""
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = sorted(set((listed or "").split("\0")) - {""})
    return [name for name in names if (root / name).is_symlink() or (root / name).is_file()]


def _walk(root: Path, leave_out: set[Path]) -> Iterator[str]:
    for folder, folders, files in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if _is_code(here / name, leave_out))
        for name in sorted(files):
            if not name.startswith("."):
                yield str((here / name).relative_to(root))


def _is_code(folder: Path, leave_out: set[Path]) -> bool:
    if folder.name.startswith(".") or folder.name == "__pycache__":
        return False
    return folder.resolve() not in leave_out and not (folder / "pyvenv.cfg").exists()


def _check_size(root: Path, files: Sequence[str]) -> None:
    sizes = {name: (root / name).lstat().st_size for name in files}
    if sum(sizes.values()) > _LARGEST:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        found = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
        raise ConfigError(
            f"The code that jobs would run from holds {sum(sizes.values()) / 2**20:.0f} MiB, more "
            f"than the {_LARGEST // 2**20} that code can be: list its data in .gitignore, or move "
            f"them out of {root}. The largest files: {found}."
        )


def _dirty(root: Path) -> str | None:
    """12 hex digits of the SHA-256 of the uncommitted changes; None if there are none."""
    changes = _git(root, "diff", "HEAD")
    return hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.decode(errors="surrogateescape").strip()
