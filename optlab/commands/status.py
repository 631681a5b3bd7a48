"""``python -m optlab status SWEEP``: where the runs of a sweep stand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

HELP = "how many runs of a sweep are done, failed, missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", help="a file of sweeps/, such as demo")
    parser.add_argument("overrides", nargs="*", help="as given to launch.py")


def run(args: argparse.Namespace) -> int:
    print(status(args.sweep, args.overrides))
    return 0


def status(name: str, overrides: Sequence[str]) -> str:
    """A table method x status of a sweep, as text."""
    import pandas as pd

    from ..store import RunStore
    from ..sweep import load

    sweep = load(name, overrides)
    store = RunStore(sweep.settings.runtime.runs_folder)
    rows = [(run.method, store.status(run.id)) for run in sweep.runs]
    table = pd.DataFrame(rows, columns=["method", "status"])
    counts = pd.crosstab(table["method"], table["status"], margins=True, margins_name="all")
    counts.columns.name = counts.index.name = None
    return f"Sweep {sweep.name}: {len(rows)} runs in {store.root}\n{counts.to_string()}"
