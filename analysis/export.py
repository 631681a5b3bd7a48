"""A sweep's runs as one tidy CSV file, which ``sources`` reads as the same table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from optlab.errors import ConfigError
from optlab.store import RECORD_COLUMNS, write_bytes


def write(path: Path, runs: pd.DataFrame, records: pd.DataFrame) -> None:
    """One row per run: the columns of ``runs``, and what each metric was before the first step.

    ``initial_NAME`` of a metric NAME that the records have beside the loss. Raises ConfigError
    where the file cannot be written.
    """
    table = runs.assign(**_initial(runs, records))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, table.to_csv(index=False).encode())
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}.") from error


def _initial(runs: pd.DataFrame, records: pd.DataFrame) -> dict[str, pd.Series]:
    metrics = [name for name in records.columns if name not in RECORD_COLUMNS and name in runs]
    first = records.loc[records["step"] == 0].set_index("run") if metrics else records
    return {f"initial_{name}": runs["run"].map(first[name]) for name in metrics}
