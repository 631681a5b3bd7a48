"""The README is true: its commands run, its files exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from optlab.paths import CONF, ROOT
from support import environment

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


COMMANDS = [
    line.partition("  #")[0].strip() for block in blocks("bash") for line in block.split("\n")
]
COMMANDS = [command for command in COMMANDS if command]


@pytest.fixture(scope="module")
def small_clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The code with the same configs, but runs of two steps and sweeps of one seed."""
    root = tmp_path_factory.mktemp("readme")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root / "clone")], check=True)
    for name in ("optlab", "analysis", "hydra_plugins", "conf", "sweeps", "launch.py"):
        # as it is in the working tree, committed or not
        subprocess.run(["cp", "-rT", str(ROOT / name), str(root / "clone" / name)], check=True)
    config = root / "clone/conf/config.yaml"
    text = config.read_text()
    for key, value in {"steps": 2, "batch_size": 2, "eval_every": 2}.items():
        text = re.sub(rf"^  {key}: \d+", f"  {key}: {value}", text, flags=re.MULTILINE)
    config.write_text(text)
    for path in (root / "clone/sweeps").glob("*.yaml"):
        shrunk = re.sub(r"train\.(steps|batch_size): \d+", r"train.\1: 2", path.read_text())
        path.write_text(re.sub(r"seeds: \d+", "seeds: 1", shrunk))
    return root / "clone"


def test_there_are_commands_to_run() -> None:
    assert len(COMMANDS) > 8 and all(command.startswith("python ") for command in COMMANDS)


@pytest.mark.timeout(1800)  # a dozen commands; a minute where nothing else runs
def test_every_command_runs(small_clone: Path) -> None:
    """One after the other, as a reader would, in one store."""
    for command in COMMANDS:
        done = subprocess.run(
            ["bash", "-c", command.replace("python", shlex.quote(sys.executable), 1)],
            cwd=small_clone,
            env=environment(small_clone),
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_make_runs_what_the_readme_says() -> None:
    for target, words in (("demo", "launch.py -m"), ("test", "-m pytest")):
        done = subprocess.run(
            ["make", "-n", "--no-print-directory", target],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert words in done.stdout.strip().splitlines()[-1]


def test_the_files_it_links_to_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)

    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_yaml_it_shows_is_the_yaml_there_is() -> None:
    shown = blocks("yaml")

    assert shown == [
        (CONF / "optimizer/muonmax_momo.yaml").read_text(),
        (ROOT / "sweeps/demo.yaml").read_text(),
    ]


def test_it_lists_every_option_of_every_group() -> None:
    for group in ("optimizer", "optimizer/norms", "model", "dataset", "schedule"):
        for path in (CONF / group).glob("*.yaml"):
            assert f"`{path.stem}`" in README, path


def test_its_table_is_the_one_that_the_demo_printed() -> None:
    """The committed record of the demo is what the README shows."""
    record = (ROOT / "results/records/demo/robustness.md").read_text()

    assert record.strip() in README
