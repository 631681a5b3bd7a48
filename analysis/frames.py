"""Selections of pandas tables whose types a checker can follow."""

from __future__ import annotations

from typing import Any, cast

import pandas as pd


def rows(table: pd.DataFrame, mask: Any) -> pd.DataFrame:
    """The rows where the mask, one bool each, is true."""
    return cast(pd.DataFrame, table.loc[mask])


def numbers(table: pd.DataFrame, column: str) -> pd.Series:
    """A column as floats; NaN where a cell is none."""
    return cast(pd.Series, pd.to_numeric(table[column], errors="coerce")).astype(float)
