"""docs/analysis.md describes the two tables, column by column."""

from __future__ import annotations

import re

import pytest

from analysis import curves, full_table
from optlab.paths import ROOT
from optlab.store import RECORD_COLUMNS, RUN_COLUMNS

PAGE = (ROOT / "docs" / "analysis.md").read_text()
TABLES = PAGE[PAGE.index("## The two tables") : PAGE.index("## Rules")]
OF_RUNS, OF_RECORDS = re.split(r"^\*\*Records\*\*", TABLES, flags=re.MULTILINE)


def listed(section: str) -> set[str]:
    """What the first cells of the section's tables name."""
    cells = re.findall(r"^\| ([^|]*`[^|]*) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


@pytest.mark.parametrize(
    ("section", "columns"),
    [(OF_RUNS, (*RUN_COLUMNS, *curves.COLUMNS)), (OF_RECORDS, RECORD_COLUMNS)],
    ids=["runs", "records"],
)
def test_every_column_is_described(section, columns):
    assert set(columns) - listed(section) == set()


def test_every_outcome_is_described():
    (row,) = [line for line in OF_RUNS.split("\n") if line.startswith("| `outcome`")]

    assert set(curves.OUTCOMES) - set(re.findall(r"`(\w+)`", row)) == set()


def test_every_column_of_the_file_of_robustness_is_described(table):
    section = PAGE[PAGE.index("## robustness.csv") : PAGE.index("## Uncertainty")]
    columns = set(full_table.robustness([table.curve({0.1: [0.9], 1.0: [0.5]})]).columns)

    assert columns - listed(section) == set()
