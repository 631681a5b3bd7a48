"""What jobs ask for: read, checked, and outside of a run's id."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from optlab.errors import ConfigError
from optlab.paths import CONF
from optlab.resources import KEYS, check_keys, minutes, resources
from optlab.sweep import load
from support import shrunk

DEFAULTS = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
REQUEST = {key: DEFAULTS[key] for key in KEYS}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(90, 90), ("12:00:00", 720), ("1-06:30:00", 1830), ("2-00:00", 2880), ("90:00", 90)],
)
def test_a_time_limit_is_read_as_slurm_reads_it(text: object, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize("text", [0, -5, True, None, "soon", "30", "0:30", "1:2:3", 1.5])
def test_a_time_limit_that_could_be_misread_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="time must be"):
        minutes(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpus": 0}, "cpus .* at least 1, not 0"),
        ({"gpus_per_run": "2"}, "gpus_per_run .* whole number"),
        ({"gpus_per_run": 3, "nodes": 2}, "cannot be spread evenly over nodes=2"),
        ({"gpus_per_run": 2, "runs_per_job": 2, "side_by_side": 2}, "choose one of the two"),
        ({"side_by_side": 2}, "raise runs_per_job"),
        ({"additional": ["hold"]}, "additional must map"),
    ],
)
def test_a_request_without_sense_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resources({**REQUEST, **change})


def test_an_unknown_key_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"conf/x.yaml: .* 'memroy'. Did you mean 'memory'"):
        check_keys({"memroy": "1G"}, "conf/x.yaml")


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder of sweeps, with one file to write."""
    (tmp_path / "sweeps").mkdir()
    monkeypatch.setattr("optlab.sweep.ROOT", tmp_path)
    return tmp_path / "sweeps" / "own.yaml"


def test_resources_of_a_sweep_and_of_its_blocks_do_not_change_a_run(sweep_file: Path) -> None:
    block = {"optimizer": ["adamw"], "optimizer.lr": [0.1]}
    other = {"optimizer": ["scion"], "optimizer.lr": [0.1]}
    sweep_file.write_text(yaml.safe_dump({"grid": [block, other]}))
    plain = load("own", shrunk())
    asked = {"time": 30, "memory": "1G"}
    content = {"grid": [block, {**other, "resources": {"time": 90}}], "resources": asked}
    sweep_file.write_text(yaml.safe_dump(content))
    sweep = load("own", shrunk())

    assert [run.id for run in sweep.runs] == [run.id for run in plain.runs]
    assert sweep.points == plain.points
    assert plain.resources == ({}, {})
    assert sweep.resources == (asked, {"time": 90, "memory": "1G"})


def test_a_wrong_key_in_a_sweep_names_the_file(sweep_file: Path) -> None:
    sweep_file.write_text(yaml.safe_dump({"grid": [{"seed": [0]}], "resources": {"tiem": 1}}))
    with pytest.raises(ConfigError, match=r"sweeps/own.yaml: resources has no key 'tiem'"):
        load("own")


def test_resources_of_a_model_file_do_not_change_a_run(clone: Path, command) -> None:
    script = (
        "from optlab.config import Composer\n"
        "run, settings = Composer().run({'model': 'mlp'})\n"
        "print(run.id, dict(settings.resources))"
    )
    before = command("-c", script, root=clone).stdout.split(maxsplit=1)
    file = clone / "conf" / "model" / "mlp.yaml"
    file.write_text(file.read_text() + "resources: {gpus_per_run: 4, time: 240}\n")
    after = command("-c", script, root=clone).stdout.split(maxsplit=1)

    assert before[0] == after[0] and before[1].strip() == "{}"
    assert after[1].strip() == "{'gpus_per_run': 4, 'time': 240}"
