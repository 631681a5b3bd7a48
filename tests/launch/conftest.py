"""The cluster of this folder's tests."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from slurm import Cluster, lacking
from support import environment


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM that answers; demanded by ``OPTLAB_REQUIRE_SLURM=1``, else optional."""
    reason = lacking()
    if reason and os.environ.get("OPTLAB_REQUIRE_SLURM") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    # Jobs find optlab in their snapshot; a caller's path must not come into it.
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    yield made
    names = {path.name for path in made.folder.glob("**/slurm/*")}
    if names:
        subprocess.run(["scancel", f"--name={','.join(names)}"], check=False)
