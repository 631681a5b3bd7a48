"""``python -m analysis SWEEP``: figures and robustness table of a sweep, from the store alone."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Print the analysis of a sweep. Exit codes: 0 done, also where runs are lacking; 1 error."""
    try:
        args = _parser().parse_intermixed_args(arguments)
    except SystemExit as end:  # argparse ends with 2, which elsewhere is no code of ours
        return min(1, int(end.code or 0))
    # after parsing: --help need not wait for pandas, matplotlib and Hydra
    from optlab.errors import ConfigError
    from optlab.sweep import from_arguments

    from .sweeps import analyse_sweep

    if args.from_wandb is not None:
        return _from_wandb(args)
    try:
        first = args.sweep if "=" in args.sweep else f"sweeps={args.sweep}"
        print(analyse_sweep(from_arguments([first, *args.overrides]), args.out))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _from_wandb(args: argparse.Namespace) -> int:
    from optlab.config import compose_run
    from optlab.errors import ConfigError

    from .from_wandb import analyse_wandb

    try:
        overrides = [word for word in [args.sweep, *args.overrides] if word]
        if args.group is None or any("=" not in word for word in overrides):
            raise ConfigError(
                "--from-wandb ENTITY/PROJECT needs --group SWEEP, and no sweep beside."
            )
        settings = compose_run(overrides)[1]
        print(analyse_wandb(args.from_wandb, args.group, settings, args.out))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Draw the figures and the robustness table of a sweep from the run store, as "
        "far as its runs exist; nothing is trained.",
    )
    # optional to argparse, so that its absence is answered with the list of sweeps
    parser.add_argument(
        "sweep", metavar="SWEEP", nargs="?", default="", help="a file of sweeps/, such as demo"
    )
    parser.add_argument(
        "overrides", nargs="*", help="as given to launch.py, such as optimizer=scion,muonmax"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write into (default: results/SWEEP)"
    )
    parser.add_argument(
        "--from-wandb", metavar="ENTITY/PROJECT", help="read the runs from W&B instead of the store"
    )
    parser.add_argument("--group", metavar="SWEEP", help="with --from-wandb: which runs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
