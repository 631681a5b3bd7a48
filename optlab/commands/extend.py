"""``python -m optlab extend SWEEP``: the learning rates that a sweep's results ask for next."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

HELP = "run what a sweep's results ask for next: learning rates, its second stage"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweep", metavar="SWEEP", nargs="?", default="", help="a file of sweeps/, such as demo"
    )
    parser.add_argument(
        "overrides", nargs="*", help="as given to launch.py, hydra/launcher=... among them"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run")
    parser.add_argument(
        "--refine",
        action="store_true",
        help="when the grids reach far enough, also halve their spacing around each optimum",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="at most N rounds now, whatever was spent before (default: what the sweep declares)",
    )


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError

    if args.rounds is not None and args.rounds < 1:
        raise ConfigError(f"--rounds must be a count above 0, not {args.rounds}.")
    if not args.dry_run:
        _become_the_launch(args)
    print(plan(args.sweep, args.overrides, rounds=args.rounds, refine=args.refine))
    return 0


def _become_the_launch(args: argparse.Namespace) -> NoReturn:
    """Go on as ``launch.py``; not as its parent, for Ctrl-C must reach it alone."""
    from ..launch.grown import remembered
    from ..paths import ROOT
    from ..store import RunStore
    from ..sweep import load

    sweep = load(args.sweep, _of_runs(args.overrides))  # refuses what is wrong before Hydra starts
    remembered(sweep, RunStore(sweep.settings.runtime.runs_folder))
    words = ["hydra.sweeper.extend=true", *(["hydra.sweeper.refine=true"] if args.refine else [])]
    if args.rounds is not None:
        words.append(f"hydra.sweeper.rounds={args.rounds}")
    launch = [sys.executable, str(ROOT / "launch.py"), "-m", f"sweeps={args.sweep}"]
    sys.stdout.flush()
    os.execv(sys.executable, [*launch, *args.overrides, *words])


def plan(name: str, overrides: Sequence[str], *, rounds: int | None, refine: bool) -> str:
    """What the next round would run, as text; starts nothing and remembers nothing."""
    from ..launch.find import as_asked
    from ..launch.grown import remembered
    from ..launch.rounds import next_round, propose_refinement
    from ..launch.second import propose_second
    from ..store import RunStore
    from ..sweep import load

    sweep = as_asked(load(name, _of_runs(overrides)), overrides)
    store = RunStore(sweep.settings.runtime.runs_folder)
    since = remembered(sweep, store) if rounds is not None else None
    proposal = next_round(sweep, store, rounds=rounds, since=since)
    lines = list(proposal.lines)
    if refine and not proposal.additions:
        lines += propose_refinement(sweep, store).lines
    if sweep.in_stages and not proposal.additions:
        lines += propose_second(sweep, store).lines
    return "\n".join(lines)


def _of_runs(overrides: Sequence[str]) -> list[str]:
    """The overrides that are not about the launcher."""
    from ..overrides import is_launcher_setting

    return [each for each in overrides if not is_launcher_setting(each)]
