"""``python -m optlab retry SWEEP``: the failed and lost runs of a sweep, launched again."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from . import add_sweep_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..launch.launch import Report
    from ..store import RunStore
    from ..sweep import Sweep

HELP = "launch failed and lost runs again, and no others"
_LAUNCHERS = ("local", "slurm", "here")

Parts = dict[tuple[str, tuple[str, ...]], list[str]]  # launcher and its settings -> ids of runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be launched, and launch nothing"
    )
    parser.add_argument(
        "--launcher", choices=_LAUNCHERS, help="where; as each run was launched before by default"
    )


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.find import setting, sweep_of
    from ..launch.standing import standings
    from ..overrides import is_launcher_setting

    sweep, store = sweep_of(args.sweep, args.overrides)
    found = standings([run.id for run in sweep.runs], store, explain=True)
    if found.problem and args.launcher != "local" and found.among("queued"):
        raise ConfigError(
            f"{found.problem}. Some runs of {sweep.name} were submitted, and only SLURM knows "
            "which of them are lost. Retry when it answers."
        )
    again = found.among("failed", "lost")
    words = [word for word in args.overrides if is_launcher_setting(word)]
    if args.dry_run:
        words = [word for word in words if setting(word) != "dry_run"]
        words.append("hydra.launcher.dry_run=true")
    parts = by_launcher(again, store, args.launcher, words)
    if args.json:
        retried = [
            {"launcher": launcher, "settings": settings, "runs": ids}
            for (launcher, settings), ids in parts.items()
        ]
        print(json.dumps({"sweep": sweep.name, "retried": retried}), flush=True)
        with contextlib.redirect_stdout(sys.stderr):  # where the launchers may speak
            return _launch_all(sweep, store, parts, args.dry_run)
    if not again:
        print(f"Sweep {sweep.name}: no run has failed or is lost; there is nothing to retry.")
    return _launch_all(sweep, store, parts, args.dry_run)


def _launch_all(sweep: Sweep, store: RunStore, parts: Parts, dry_run: bool) -> int:
    from ..launch.plan import plural

    ok = True
    for (launcher, settings), ids in parts.items():
        how = [f"hydra/launcher={launcher}", *settings]
        runs = plural(len(ids), "failed or lost run")
        verb = "Would retry" if dry_run else "Retrying"
        print(f"{verb} {runs} with {shlex.join(how)}.", flush=True)
        ok = _launch(replace(sweep, only=frozenset(ids)), store, how).ok and ok
    return 0 if ok else 1


def by_launcher(
    run_ids: Sequence[str], store: RunStore, chosen: str | None, words: Sequence[str]
) -> Parts:
    """The runs by the launcher to use, the chosen one or that of each before, and its settings.

    Runs that were submitted to SLURM are submitted with the settings of that time, but for those
    that ``words`` state anew.
    """
    from ..launch.find import setting
    from ..launch.standing import submission

    stated = {setting(word) for word in words}
    parts: Parts = {}
    for run_id in run_ids:
        before = submission(run_id, store)
        launcher = chosen or ("slurm" if before else "local")
        kept = before.words if before and launcher == "slurm" else ()
        how = (*(word for word in kept if setting(word) not in stated), *words)
        parts.setdefault((launcher, how), []).append(run_id)
    return parts


def _launch(sweep: Sweep, store: RunStore, words: Sequence[str]) -> Report:
    from ..launch.command_line import launch_again

    return launch_again(sweep, store, words)
