"""Copies of the code that jobs run from."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from optlab.errors import ConfigError
from optlab.launch import snapshot as module
from optlab.launch.snapshot import NOTE, snapshot


def git(root: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", *identity, *words], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A commit, a change on top of it, an untracked file, an ignored one and a deleted one."""
    root = tmp_path / "repository"
    (root / "package").mkdir(parents=True)
    for name, text in {"package/a.py": "1", "b.yaml": "1", "gone.py": "1"}.items():
        (root / name).write_text(text)
    (root / ".gitignore").write_text("runs/\n")
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    (root / "package" / "a.py").write_text("2")
    (root / "new.py").write_text("3")
    (root / "gone.py").unlink()
    (root / "runs").mkdir()
    (root / "runs" / "big").write_text("4")
    return root


def content(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (NOTE, ".gitignore")
    }


def test_a_snapshot_is_the_commit_with_its_uncommitted_changes(repository: Path) -> None:
    copy = snapshot(repository, repository / "runs" / "code")

    assert content(copy) == {"package/a.py": "2", "b.yaml": "1", "new.py": "3"}
    note = json.loads((copy / NOTE).read_text())
    assert note["commit"] == git(repository, "rev-parse", "HEAD")
    assert note["dirty"] and note["code"] == copy.name


def test_the_same_code_is_copied_once_and_other_code_apart(repository: Path) -> None:
    into = repository / "runs" / "code"
    first = snapshot(repository, into)
    assert snapshot(repository, into) == first
    (repository / "new.py").write_text("5")
    second = snapshot(repository, into)

    assert second != first and content(first)["new.py"] == "3"
    assert sorted(into.iterdir()) == sorted([first, second])


def test_a_snapshot_works_outside_of_git(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name in ("a.py", "runs/id/x", ".hidden/y", ".venv/z", "env/pyvenv.cfg", "p/__pycache__/q"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1")

    assert content(snapshot(root, tmp_path / "code", [root / "runs"])) == {"a.py": "1"}


def test_files_too_large_for_code_are_refused_by_name(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LARGEST", 100)
    (repository / "weights.bin").write_bytes(b"0" * 1000)
    with pytest.raises(ConfigError, match=r"\.gitignore.*weights\.bin"):
        snapshot(repository, repository / "runs" / "code")
