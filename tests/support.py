"""What several test files need: a tiny run, the environment of child processes."""

from __future__ import annotations

import os
from pathlib import Path

from optlab.config import Run, Settings, compose_run
from optlab.paths import ROOT

# A run small enough to train in a fraction of a second.
TINY = (
    "model.width=8",
    "model.depth=1",
    "train.steps=6",
    "train.batch_size=16",
    "train.eval_every=2",
    "tracking.mode=off",
)
CODE = ("optlab", "analysis", "hydra_plugins", "conf", "sweeps", "launch.py")


def tiny(*overrides: str) -> tuple[Run, Settings]:
    """A tiny run of the default config, changed by ``overrides``."""
    return compose_run(shrunk(*overrides))


def shrunk(*overrides: str) -> list[str]:
    """``overrides`` with those of ``TINY`` that they do not replace."""
    changed = {override.split("=")[0] for override in overrides}
    return [*(word for word in TINY if word.split("=")[0] not in changed), *overrides]


def environment(root: Path = ROOT) -> dict[str, str]:
    """The environment of a child process that imports optlab from ``root``."""
    inherited = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    return {**inherited, "PYTHONPATH": str(root), "PYTHONUNBUFFERED": "1"}
