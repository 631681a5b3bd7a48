"""``python -m optlab retry SWEEP``: the failed and lost runs of a sweep, launched again."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING

from . import add_sweep_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ..launch.launch import Report
    from ..store import RunStore
    from ..sweep import Sweep

HELP = "launch failed and lost runs again, and no others"
_LAUNCHERS = ("local", "slurm", "here")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)
    parser.add_argument(
        "--launcher", choices=_LAUNCHERS, help="where; as each run was launched before by default"
    )


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.find import is_launcher_setting, sweep_of
    from ..launch.standing import standings

    sweep, store = sweep_of(args.sweep, args.overrides)
    found = standings([run.id for run in sweep.runs], store, explain=True)
    if found.problem and args.launcher != "local" and found.among("queued"):
        raise ConfigError(
            f"{found.problem}. Some runs of {sweep.name} were submitted, and only SLURM knows "
            "which of them are lost. Retry when it answers."
        )
    again = found.among("failed", "lost")
    words = [word for word in args.overrides if is_launcher_setting(word)]
    parts = by_launcher(again, store, args.launcher)
    if args.json:
        print(json.dumps({"sweep": sweep.name, "retried": parts}), flush=True)
    elif not again:
        print(f"Sweep {sweep.name}: no run has failed or is lost; there is nothing to retry.")
    ok = True
    for launcher, ids in parts.items():
        if not args.json:
            print(f"Retrying {len(ids)} failed or lost runs with hydra/launcher={launcher}.")
        ok = _launch(replace(sweep, only=frozenset(ids)), store, launcher, words).ok and ok
    return 0 if ok else 1


def by_launcher(
    run_ids: Sequence[str], store: RunStore, chosen: str | None
) -> Mapping[str, list[str]]:
    """The runs by the launcher to use: the chosen one, else the one that each had last."""
    from ..launch.standing import submission

    parts: dict[str, list[str]] = {}
    for run_id in run_ids:
        launcher = chosen or ("slurm" if submission(run_id, store) else "local")
        parts.setdefault(launcher, []).append(run_id)
    return parts


def _launch(sweep: Sweep, store: RunStore, launcher: str, words: Sequence[str]) -> Report:
    from ..launch.command_line import launch_again

    return launch_again(sweep, store, [f"hydra/launcher={launcher}", *words])
