"""Fixtures of the whole suite: run stores in temporary folders, the command line, a clone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from optlab.paths import ROOT
from optlab.store import RunStore
from slurm import lacking
from support import CODE, environment

# The same examples every time, and no verdict by the clock: machines differ.
settings.register_profile("optlab", deadline=None, derandomize=True)
settings.load_profile("optlab")

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session", autouse=True)
def _quiet_environment() -> None:
    """Nothing that the caller has set may reach the runs of the tests."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "HYDRA_FULL_ERROR"):
        os.environ.pop(name, None)
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    # A shell's background job ignores Ctrl-C, and so would every process that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The marker ``slurm`` stands for the fixture: ``-m "not slurm"`` leaves these tests out."""
    for item in items:
        if "slurm" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")


@pytest.fixture(scope="session")
def slurm() -> None:
    """A SLURM that answers; demanded by ``OPTLAB_REQUIRE_SLURM=1``, else optional."""
    reason = lacking()
    if reason and os.environ.get("OPTLAB_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """``python ARGUMENTS`` in a working directory that is not the repository."""

    def call(*arguments: str, root: Path = ROOT, timeout: float = 300) -> object:
        script = [str(root / arguments[0])] if arguments[0].endswith(".py") else [arguments[0]]
        return subprocess.run(
            [sys.executable, *script, *arguments[1:]],
            cwd=tmp_path,
            env=environment(root),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return call  # type: ignore[return-value]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the code, to be changed by the test."""
    root = tmp_path / "clone"
    root.mkdir()
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, symlinks=True)
        else:
            shutil.copy(source, root / name)
    return root
