"""``python -m optlab norms``: the norm-assignment card of a run."""

from __future__ import annotations

import argparse

HELP = "which norm each parameter of a run gets"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="as given to launch.py")


def run(args: argparse.Namespace) -> int:
    from ..card import describe, norm_card
    from ..config import compose_run

    print(describe(norm_card(compose_run(args.overrides)[0])))
    return 0
