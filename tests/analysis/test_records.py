"""The committed results: each table makes the numbers beside it again, and is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from analysis import tables
from analysis.compared import USABLE, usable
from analysis.curves import curves
from analysis.sources import Source, read
from analysis.stages import split
from optlab.paths import ROOT

RECORDS = ROOT / "results" / "records"
README = (RECORDS / "README.md").read_text()
ACCURACY = {"metric": "accuracy", "higher_is_better": True}
OPTIONS = {"momo_mnist_mlp": (ACCURACY, "0.01:absolute")}  # how else one is read, and its --width
FILES = sorted(RECORDS.glob("*/*.csv"))
EXPORTED = [file for file in FILES if file.stem == file.parent.name]


@pytest.mark.parametrize("file", EXPORTED, ids=lambda file: file.stem)
def test_a_record_makes_its_table_again(file: Path) -> None:
    options, width = OPTIONS.get(file.stem, ({}, ""))
    found = read(Source(path=file, **options))
    first, _ = split(found.runs, found.stages)
    made = tables.markdown(curves(first), usable(width) if width else USABLE)

    assert found.notes == ()
    assert made == file.with_name("robustness.md").read_text()


@pytest.mark.parametrize("folder", sorted({file.parent.name for file in FILES}))
def test_a_record_says_where_it_is_from(folder: str) -> None:
    """Its row: the command that trained it, whose sweep and scale exist, and the commit."""
    (row,) = re.findall(rf"^\| `{folder}` \|.*$", README, re.MULTILINE)
    *_, command, runs, minutes, commit, _ = (cell.strip() for cell in row.split("|"))
    sweep = re.search(r"sweeps=([\w/]+)", command)
    scale = re.search(r"scale=(\w+)", command)

    assert re.fullmatch(r"`python launch\.py -m.*`", command)
    assert re.fullmatch(r"[0-9a-f]{7}(, [0-9a-f]{7})?", commit)
    assert int(re.match(r"\d+", runs)[0]) > 0 and (minutes == "-" or float(minutes) > 0)
    if sweep:
        file = ROOT / "sweeps" / f"{sweep[1]}.yaml"
        assert scale is None or scale[1] in yaml.safe_load(file.read_text())["scales"]


@pytest.mark.parametrize("file", EXPORTED, ids=lambda file: file.stem)
def test_a_record_has_the_runs_that_it_says(file: Path) -> None:
    (row,) = re.findall(rf"^\| `{file.stem}` \|.*$", README, re.MULTILINE)
    runs = read(Source(path=file)).runs
    trained = runs[runs["certified_by"].fillna("") == ""]
    said = re.match(r"(\d+)(?:, (\d+) diverged)?$", row.split("|")[3].strip())

    assert said
    assert len(trained) == int(said[1])
    assert (trained["outcome"] == "diverged").sum() == int(said[2] or 0)
    assert set(trained["outcome"]) <= {"finished", "diverged"}
