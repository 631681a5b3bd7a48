"""docs/figures.md lists every figure with the columns that its CSV really has."""

from __future__ import annotations

import importlib
import re

import pandas as pd
import pytest

from analysis import figures
from analysis.curves import Study, curves
from analysis.figures import coverage
from optlab.paths import ROOT

PAGE = (ROOT / "docs" / "figures.md").read_text()
LISTED = dict(re.findall(r"^\| `(\w+)` \|.*\| (`[^|]*) \|$", PAGE, re.MULTILINE))


def test_every_figure_is_listed():
    assert sorted(LISTED) == figures.names()


@pytest.mark.parametrize("name", [name for name in figures.names() if name != "coverage"])
def test_the_listed_columns_are_those_of_the_file(table, name):
    module = importlib.import_module(f"analysis.figures.{name}")
    stated = getattr(module, "COLUMNS", None)
    if not isinstance(stated, list):
        runs = table({"adamw": {0.1: [0.9], 1.0: [0.5]}})
        _, drawn = module.draw(Study("demo", runs, pd.DataFrame(), curves(runs)))
        stated = list(drawn.columns)

    assert LISTED[name].strip("`").split() == stated


def test_every_state_of_a_run_is_listed():
    (row,) = [line for line in PAGE.split("\n") if line.startswith("| `coverage`")]

    assert all(state in row for state in coverage.LOOKS)
