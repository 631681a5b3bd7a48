"""``python -m optlab``: life of a sweep, the norms of a run, the data that runs need."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import ConfigError

COMMANDS = sorted(
    path.stem
    for path in (Path(__file__).parent / "commands").glob("*.py")
    if path.stem != "__init__"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit codes: 0 done, 1 error, 130 stopped by Ctrl-C."""
    try:
        args = _parsed(arguments)
    except SystemExit as end:  # --help, or words that argparse has complained about with code 2
        return 1 if end.code else 0
    try:
        code = importlib.import_module(f"optlab.commands.{args.command}").run(args)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; overrides may stand before, between and behind the options."""
    parser = _parser()
    args, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-")] if "overrides" in args else rest
    if "overrides" in args and getattr(args, "sweep", None) == "":
        # optional to argparse, which would ask for overrides, too
        parser.error(f"{args.command} needs a SWEEP: a file of sweeps/, such as demo, or overrides")
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m optlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        command = importlib.import_module(f"optlab.commands.{name}")
        command.add_arguments(commands.add_parser(name, help=command.HELP))
    return parser


if __name__ == "__main__":
    sys.exit(main())
