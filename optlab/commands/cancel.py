"""``python -m optlab cancel SWEEP``: what waits or trains of a sweep, stopped."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from . import add_sweep_arguments

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..config import Run
    from ..launch.cancel import Target
    from ..sweep import Sweep

HELP = "stop what waits or trains of a sweep; it saves first, and can be launched again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)
    parser.add_argument("--method", metavar="M", help="only runs of this method")
    parser.add_argument("--run", metavar="R", help="only this run: id, start of one, or name")
    parser.add_argument(
        "--former",
        action="store_true",
        help="only runs in the queue whose config the sweep no longer has, as of before an edit",
    )
    parser.add_argument("--yes", "-y", action="store_true", help="do not ask")


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.cancel import cancel, described, target
    from ..launch.find import sweep_of
    from ..launch.former import former
    from ..launch.standing import standings

    sweep, store = sweep_of(args.sweep, args.overrides)
    since = former(sweep, store, standings([run.id for run in sweep.runs], store))
    old = [store.load(run_id) for run_id in since.of]
    chosen = _chosen([] if args.former else sweep.runs, old, args.method, args.run, sweep.name)
    found = target(store, chosen, whole=not (args.method or args.run or args.former))
    if problem := found.problem or since.problem:
        raise ConfigError(
            f"{problem}. Which jobs of {sweep.name} are alive cannot be told, so nothing was "
            "cancelled."
        )
    if not found:
        _say(args, _none(sweep, chosen, args.former))
        if args.json:
            _print_json(found, since.of, [])
        return 0
    _say(args, described(found, [*sweep.runs, *old], since.of))
    if not args.yes and not _confirmed():
        print("Nothing was cancelled.", file=sys.stderr)
        return 1
    lines = cancel(found, store)
    _say(args, "\n".join(lines))
    if args.json:
        _print_json(found, since.of, lines)
    return 1 if found.elsewhere else 0


def _none(sweep: Sweep, chosen: Sequence[Run], former: bool) -> str:
    if former:
        return f"Sweep {sweep.name}: nothing in the queue has a config that it no longer has."
    return f"Sweep {sweep.name}: none of these {len(chosen)} runs is queued or running."


def _chosen(
    own: Sequence[Run],
    former: Sequence[Run],
    method: str | None,
    word: str | None,
    sweep: str,
) -> Sequence[Run]:
    """The sweep's runs that are meant, its former ones among them.

    A name is that of a run and of what it was before an edit alike.
    """
    from ..errors import ConfigError, nearest
    from ..launch.find import run_of

    runs = [*own, *former]
    if method and runs:
        methods = sorted({run.method for run in runs})
        if method not in methods:
            raise ConfigError(
                f"The sweep {sweep} has no method '{method}'.{nearest(method, methods)} It has: "
                f"{', '.join(methods)}."
            )
        runs = [run for run in runs if run.method == method]
    if not word:
        return runs
    before = [run for run in runs if run.name == word and run in former]
    now = [run for run in runs if run not in before]
    if before and word not in [run.name for run in now]:
        return before
    return [run_of(word, now, f"the sweep {sweep}"), *before]


def _confirmed() -> bool:
    from ..errors import ConfigError

    if not sys.stdin.isatty():
        raise ConfigError("Nothing was cancelled: add --yes where nobody can be asked.")
    return input("Cancel? [y/N] ").strip().lower() in ("y", "yes")


def _say(args: argparse.Namespace, text: str) -> None:
    if not args.json:
        print(text, flush=True)


def _print_json(found: Target, former: Collection[str], said: Sequence[str]) -> None:
    content: dict[str, Any] = {
        "jobs": {job: list(ids) for job, ids in found.jobs.items()},
        "former": [run_id for ids in found.jobs.values() for run_id in ids if run_id in former],
        "processes": {str(one.pid): list(one.run_ids) for one in found.processes},
        "elsewhere": dict(found.elsewhere),
        "said": list(said),
    }
    print(json.dumps(content, indent=1))
