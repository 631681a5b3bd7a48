"""One run on several processes that a real SLURM starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optlab.paths import ROOT
from optlab.store import RunStore
from support import TINY, environment, tiny

pytestmark = pytest.mark.usefixtures("slurm")


@pytest.mark.parametrize("nodes", [1, 2])
def test_srun_starts_one_run_on_several_processes(tmp_path: Path, nodes: int) -> None:
    srun = ["srun", f"--nodes={nodes}", "--ntasks=2", "--mem-per-cpu=1G", "--wait=120"]
    overrides = [*TINY, "runtime.device=cpu", f"runtime.runs={tmp_path}"]
    done = subprocess.run(
        [*srun, sys.executable, f"{ROOT}/launch.py", *overrides],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 6") == 1  # rank 0 alone speaks
    run, _ = tiny()
    assert RunStore(tmp_path).status(run.id) == "finished"
    meta = json.loads((tmp_path / run.id / "meta.json").read_text())
    assert meta["processes"] == 2
