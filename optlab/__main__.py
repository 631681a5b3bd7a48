"""``python -m optlab``: where sweeps stand, which norms a run uses, the data that runs need."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit codes: 0 done, 1 error, 130 stopped by Ctrl-C."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "status":
            print(status(args.sweep, args.overrides))
        elif args.command == "norms":
            print(norms(args.overrides))
        else:
            prepare_data(args.name)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    return 0


def status(name: str, overrides: Sequence[str]) -> str:
    """A table method x status of a sweep, as text."""
    import pandas as pd

    from .store import RunStore
    from .sweep import load

    sweep = load(name, overrides)
    store = RunStore(sweep.settings.runtime.runs_folder)
    rows = [(run.method, store.status(run.id)) for run in sweep.runs]
    table = pd.DataFrame(rows, columns=["method", "status"])
    counts = pd.crosstab(table["method"], table["status"], margins=True, margins_name="all")
    counts.columns.name = counts.index.name = None
    return f"Sweep {sweep.name}: {len(rows)} runs in {store.root}\n{counts.to_string()}"


def norms(overrides: Sequence[str]) -> str:
    """The norm-assignment card of the run that the overrides stand for, as text."""
    from .card import describe, norm_card
    from .config import compose_run

    return describe(norm_card(compose_run(overrides)[0]))


def prepare_data(name: str) -> None:
    """Make the files of a dataset exist below the data folder."""
    from .build import declared_dataset
    from .data.base import data_folder
    from .data.prepare import prepare

    prepare(name, declared_dataset(name), data_folder(), lambda line: print(line, flush=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m optlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("status", help="how many runs of a sweep are done, failed, missing")
    show.add_argument("sweep", metavar="SWEEP", help="a file of sweeps/, such as demo")
    show.add_argument("overrides", nargs="*", help="as given to launch.py")
    card = commands.add_parser("norms", help="which norm each parameter of a run gets")
    card.add_argument("overrides", nargs="*", help="as given to launch.py")
    data = commands.add_parser("data", help="the data that runs need")
    actions = data.add_subparsers(dest="action", required=True)
    prepare = actions.add_parser("prepare", help="download and verify the files of a dataset")
    prepare.add_argument("name", metavar="NAME", help="a file of conf/dataset/, such as mnist")
    return parser


if __name__ == "__main__":
    sys.exit(main())
