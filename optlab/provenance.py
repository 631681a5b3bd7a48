"""Where a run's numbers come from: code, versions, machine."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import torch

from .paths import ROOT

_PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "scikit-learn", "wandb")


@functools.cache
def collect() -> dict[str, Any]:
    """Commit, hash of uncommitted changes, versions and host; asked once per process.

    Code that runs from a snapshot has them from there: the repository around it may have moved on.
    """
    return {
        **_code(),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in _PACKAGES},
        "platform": platform.platform(),
        "host": socket.gethostname(),
    }


def _code() -> dict[str, Any]:
    note = ROOT / "snapshot.json"
    if note.exists():
        return json.loads(note.read_text())
    return {"commit": _git("rev-parse", "HEAD"), "dirty": _dirty()}


def _git(*arguments: str) -> str | None:
    """What git prints, or None outside of a repository and on machines without git."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _dirty() -> str | None:
    """12 hex digits of the SHA-256 of the uncommitted changes; None if there are none."""
    changes = _git("diff", "HEAD")
    return hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
