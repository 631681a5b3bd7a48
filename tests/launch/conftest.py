"""The cluster of this folder's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from slurm import Cluster, cancel_batches, revive
from support import environment


@pytest.fixture(scope="module")
def cluster(slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Submits sweeps to a real SLURM."""
    del slurm
    revive()
    # Jobs find optlab in their snapshot; a caller's path must not come into it.
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    yield made
    cancel_batches(made.folder)
