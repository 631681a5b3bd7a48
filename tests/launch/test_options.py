"""Settings of the SLURM launcher, refused before anything is written; no SLURM is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from optlab.errors import ConfigError
from optlab.launch import slurm
from optlab.launch.slurm import launch_slurm, options
from optlab.paths import CONF
from optlab.store import RunStore
from optlab.sweep import ad_hoc
from support import shrunk

SETTINGS = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
del SETTINGS["_target_"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_array": 0}, "max_array must be a whole number of at least 1"),
        ({"array_parallelism": "8"}, "array_parallelism must be a whole number"),
        ({"save_within": 5}, "save_within must be a whole number of at least 10"),
        ({"max_requeues": -1}, "max_requeues must be a whole number of at least 0"),
        ({"wait": "yes"}, "wait must be true or false"),
        ({"setup": {"a": 1}}, "setup must be a list"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        options({**SETTINGS, **change}, frozenset())


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        ({}, (), r"There is no SLURM on this machine \(sbatch: not found\)"),
        ({"time": 3}, (), "time=3 min is too short for a checkpoint.*at least 4 minutes"),
        ({"gpus_per_run": 32}, ("train.batch_size=16",), "at most 16 GPUs per run"),
    ],
)
def test_what_cannot_be_submitted_is_refused_and_nothing_is_written(
    store: RunStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    overrides: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = options({**SETTINGS, **change}, frozenset(change))
    with pytest.raises(ConfigError, match=message):
        launch_slurm(ad_hoc(shrunk(*overrides)), store, print, chosen)
    assert not store.root.exists()


def test_a_dry_run_needs_no_slurm_and_writes_nothing(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    change = {"dry_run": True, "runs_per_job": 2, "max_array": 1, "array_parallelism": 4}
    chosen = options({**SETTINGS, **change}, frozenset())
    launch_slurm(ad_hoc(shrunk("seed=0,1,2")), store, said.append, chosen)

    lines = said[-1].split("\n")
    assert [line.split(" (")[0] for line in lines] == [
        "Would submit 2 runs as 1 job",
        "Would submit 1 run as 1 job",
    ]
    assert not store.root.exists()


def test_jobs_at_a_time_that_the_arrays_cannot_share_are_refused(store: RunStore) -> None:
    change = {"dry_run": True, "max_array": 1, "array_parallelism": 2}
    chosen = options({**SETTINGS, **change}, ())

    with pytest.raises(ConfigError, match=r"array_parallelism=2 .* among the 3 arrays"):
        launch_slurm(ad_hoc(shrunk("seed=0,1,2")), store, print, chosen)


def test_no_array_is_larger_than_slurm_takes(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "_max_array_size", lambda: 2)
    said: list[str] = []
    launch_slurm(
        ad_hoc(shrunk("seed=0,1,2,3,4")),
        store,
        said.append,
        options({**SETTINGS, "dry_run": True}, ()),
    )

    assert [line.split(" (")[0].split(" as ")[0] for line in said[-1].split("\n")] == [
        "Would submit 2 runs", "Would submit 2 runs", "Would submit 1 run",
    ]  # fmt: skip


def test_cores_are_those_of_a_job_and_of_each_of_its_processes(store: RunStore) -> None:
    said: list[str] = []
    change = {"dry_run": True, "gpus_per_run": 2, "cpus": 2}
    launch_slurm(
        ad_hoc(shrunk("seed=0,1")), store, said.append, options({**SETTINGS, **change}, [])
    )
    assert ", 2 GPU, 4 cores (2 per process)," in said[-1]
    change = {"dry_run": True, "gpus_per_run": 0, "cpus": 1}
    launch_slurm(
        ad_hoc(shrunk("seed=0,1")), store, said.append, options({**SETTINGS, **change}, [])
    )
    assert ", no GPU, 1 core," in said[-1]


def test_options_of_sbatch_are_added_on_the_command_line(command) -> None:
    """Hydra wants a plus for keys that no file states."""
    word = "+hydra.launcher.additional.reservation=night"
    dry = ["hydra/launcher=slurm", "hydra.launcher.dry_run=true"]
    done = command("launch.py", "-m", *shrunk("seed=0,1"), *dry, word)

    assert done.returncode == 0, done.stderr
    assert "Would submit 2 runs" in done.stdout
    done = command("launch.py", "-m", *shrunk("seed=0,1"), *dry, "+hydra.launcher.reservation=x")
    assert done.returncode == 1 and "Traceback" not in done.stderr


def test_an_added_option_reaches_sbatch(cluster, command, tmp_path) -> None:
    small = [f"hydra.launcher.{word}" for word in ("gpus_per_run=0", "cpus=1", "memory=100M")]
    settings = [*small, "hydra/launcher=slurm", "+hydra.launcher.additional.reservation=night"]
    runs = f"runtime.runs={tmp_path / 'runs'}"
    done = command("launch.py", "-m", *shrunk("seed=0"), runs, *settings)

    assert done.returncode == 1
    assert "SLURM refuses the jobs" in done.stderr and "eservation" in done.stderr
    assert "cpus, memory, constraint" in done.stderr


def test_the_command_line_wins_over_a_file_and_a_file_over_the_launcher(store: RunStore) -> None:
    from optlab.launch.slurm import _requests

    sweep = ad_hoc(shrunk("seed=0"))
    object.__setattr__(sweep, "resources", ({"time": 30, "cpus": 2},))
    run = sweep.runs[0].id
    from_file = _requests(sweep, options({**SETTINGS, "time": 90}, frozenset()))[run]
    given = _requests(sweep, options({**SETTINGS, "time": 90}, ["hydra.launcher.time=90"]))[run]

    assert (from_file.time, from_file.cpus, given.time, given.cpus) == (30, 2, 90, 2)
