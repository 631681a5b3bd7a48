"""``python -m optlab cancel SWEEP``: what waits or trains of a sweep, stopped."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from . import add_sweep_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..config import Run
    from ..launch.cancel import Target

HELP = "stop what waits or trains of a sweep; it saves first, and can be launched again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)
    parser.add_argument("--method", metavar="M", help="only runs of this method")
    parser.add_argument("--run", metavar="R", help="only this run: id, start of one, or name")
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.cancel import cancel, described, target
    from ..launch.find import sweep_of

    sweep, store = sweep_of(args.sweep, args.overrides)
    chosen = _chosen(sweep.runs, args.method, args.run, sweep.name)
    found = target(sweep, store, chosen, whole=not (args.method or args.run))
    if found.problem:
        raise ConfigError(
            f"{found.problem}. Which jobs of {sweep.name} are alive cannot be told, so nothing was "
            "cancelled."
        )
    if not found:
        _say(args, f"Sweep {sweep.name}: none of these {len(chosen)} runs is queued or running.")
        if args.json:
            _print_json(found, [])
        return 0
    _say(args, described(found, sweep))
    if not args.yes and not _confirmed():
        print("Nothing was cancelled.", file=sys.stderr)
        return 1
    lines = cancel(found, store)
    _say(args, "\n".join(lines))
    if args.json:
        _print_json(found, lines)
    return 1 if found.elsewhere else 0


def _chosen(runs: Sequence[Run], method: str | None, word: str | None, sweep: str) -> Sequence[Run]:
    from ..errors import ConfigError, nearest
    from ..launch.find import run_of

    if method:
        methods = sorted({run.method for run in runs})
        if method not in methods:
            raise ConfigError(
                f"The sweep {sweep} has no method '{method}'.{nearest(method, methods)} It has: "
                f"{', '.join(methods)}."
            )
        runs = [run for run in runs if run.method == method]
    return [run_of(word, runs, f"the sweep {sweep}")] if word else runs


def _confirmed() -> bool:
    from ..errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError("Nothing was cancelled: add --yes where nobody can be asked.")
    return input("Cancel? [y/N] ").strip().lower() in ("y", "yes")


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text, flush=True)


def _print_json(found: Target, said: Sequence[str]) -> None:
    content: dict[str, Any] = {
        "jobs": {job: list(ids) for job, ids in found.jobs.items()},
        "processes": {str(one.pid): one.run_id for one in found.processes},
        "elsewhere": dict(found.elsewhere),
        "said": list(said),
    }
    print(json.dumps(content, indent=1))
