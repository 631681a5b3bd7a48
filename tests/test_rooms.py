"""The walls of the house: who may import what, what no file may name."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

from optlab.paths import ROOT

PACKAGES = ("optlab", "analysis", "hydra_plugins")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, relative ones resolved."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            found.add(".".join([*base, *([node.module] if node.module else [])]))
    return found


def importers(module: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    }


def test_only_tracking_imports_wandb() -> None:
    found = importers("wandb")

    assert found and all(path.startswith("optlab/tracking/") for path in found)


def test_only_launch_imports_submitit() -> None:
    assert all(path.startswith("optlab/launch/") for path in importers("submitit"))


def test_only_composition_building_and_plugins_import_hydra() -> None:
    allowed = {
        "optlab/config.py",
        "optlab/overrides.py",
        "optlab/build.py",
        "optlab/launch/command_line.py",  # the wrapper of the Hydra app
    }
    found = {path for path in importers("hydra") if not path.startswith("hydra_plugins/")}

    assert found == allowed


def test_analysis_never_imports_torch() -> None:
    assert not [path for path in importers("torch") if path.startswith("analysis/")]


def test_optlab_never_imports_analysis() -> None:
    assert not [path for path in importers("analysis") if path.startswith("optlab/")]


def test_launch_py_stays_short() -> None:
    assert len((ROOT / "launch.py").read_text().splitlines()) < 40


def test_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("name", ["utils.py", "helpers.py", "registry.py", "common.py"])
def test_there_is_no_drawer_for_everything(name: str) -> None:
    assert name not in {path.name for path in FILES}


def test_no_file_names_a_machine_or_a_registry() -> None:
    """Absolute paths of homes and machines, hosts of package indices, personal accounts."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git repository")
    private = re.compile(r"/(home|root|work|Users)/\w|pypi\.org|files\.pythonhosted")
    found = [
        name
        for name in listed.stdout.splitlines()
        if (ROOT / name).suffix in {".py", ".md", ".yaml", ".toml", ".txt", ".yml", ""}
        and (ROOT / name).is_file()
        and name != "tests/test_rooms.py"
        and private.search((ROOT / name).read_text(errors="ignore"))
    ]

    assert found == []
