"""The subcommands of ``python -m optlab``, one file each.

A file holds ``HELP`` (a line), ``add_arguments(parser)`` and ``run(args) -> int``, the exit code;
its name is the subcommand's. What needs pandas, torch or Hydra is imported inside ``run``, so that
``--help`` and the other subcommands start fast.
"""

from __future__ import annotations

import argparse


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """``SWEEP [overrides] [--json]``, as the commands about a sweep take them."""
    parser.add_argument(
        "sweep", metavar="SWEEP", nargs="?", default="", help="a file of sweeps/, such as demo"
    )
    parser.add_argument("overrides", nargs="*", help="as given to launch.py")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
