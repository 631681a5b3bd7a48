"""``python -m optlab sync SWEEP``: publishes a sweep in W&B from the run store."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..sweep import Sweep

HELP = "publish a sweep in Weights & Biases from the run store"

_LINE_EVERY = 5.0  # seconds between two lines of progress
_WATCH_EVERY = 60.0  # seconds between two rounds
_LOOKS = 2  # without a run that is queued or running, after which a watch ends
_DONE = ("finished", "diverged", "failed")  # without another attempt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sweep",
        metavar="SWEEP",
        nargs="?",
        default="",
        help="a file of sweeps/, such as demo; or the first override of an ad-hoc sweep",
    )
    parser.add_argument("overrides", nargs="*", help="as given to launch.py")
    parser.add_argument(
        "--workers", type=int, default=4, metavar="N", help="processes that send (default: 4)"
    )
    parser.add_argument(
        "--again", action="store_true", help="also what has been published and has not changed"
    )
    parser.add_argument(
        "--rewrite",
        action="store_true",
        help="where W&B holds another history of a run, publish it anew and delete the other",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="go on, once a minute, until no run is queued or running",
    )
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write a W&B report with the sweep's panels (needs the extra 'reports')",
    )


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.find import sweep_of

    if args.workers < 1:
        raise ConfigError(f"--workers must be at least 1, not {args.workers}.")
    sweep, _ = sweep_of(args.sweep, args.overrides)
    ok = _watch(sweep, args) if args.watch else _round(sweep, args, _say)
    return 0 if ok else 1


def _watch(sweep: Sweep, args: argparse.Namespace) -> bool:
    """Publish once a minute until the runs have ended; whether W&B took everything at last.

    They have where nothing is queued or running at two looks in a row: between two runs of a local
    launch nothing is, for a moment. Each look comes before its round, so that what has ended by
    then is published whole.
    """
    from ..errors import ConfigError
    from ..launch.find import sweep_of
    from ..launch.standing import ALIVE

    states, idle = _states(sweep), 0
    ok = _round(sweep, args, _say)
    while True:
        idle = 0 if any(states[state] for state in ALIVE) else idle + 1
        if states.total() == sum(states[state] for state in _DONE):
            return ok
        if idle == _LOOKS:
            counts = ", ".join(f"{count} {state}" for state, count in states.items())
            _say(f"The watch ends, for nothing is queued or running: {counts}.")
            return ok
        time.sleep(_WATCH_EVERY)
        sweep, _ = sweep_of(args.sweep, args.overrides)  # it may have grown
        states = _states(sweep)
        try:
            ok = _round(sweep, args, _say)
        except ConfigError as error:  # W&B is away: the next round may find it again
            _say(str(error))
            ok = False


def _say(line: str) -> None:
    print(line, flush=True)


def _states(sweep: Sweep) -> Counter[str]:
    """How many runs of the sweep stand where."""
    from ..launch.standing import standings
    from ..store import RunStore

    store = RunStore(sweep.settings.runtime.runs_folder)
    found = standings([run.id for run in sweep.runs], store, explain=True)
    if found.problem:
        _say(f"{found.problem}.")
    return Counter(standing.state for standing in found.of.values())


def _round(sweep: Sweep, args: argparse.Namespace, say: Callable[[str], None]) -> bool:
    """Publish the sweep as it stands; whether W&B took everything."""
    from ..tracking import client
    from ..tracking.publish import Job, publish_all

    runtime, tracking = sweep.settings.runtime, sweep.settings.tracking
    client.check_login()
    jobs = [
        Job(runtime.runs_folder, run.id, tracking, args.again, args.rewrite) for run in sweep.runs
    ]
    say(f"Publishing {len(jobs)} runs of {sweep.name} to {client.target(tracking)}")
    counts: Counter[str] = Counter()
    rows, last = 0, time.monotonic()
    refused = []
    for sent in publish_all(jobs, args.workers):
        counts[sent.status] += 1
        rows += sent.rows
        if sent.status == "refused":
            refused.append(sent)
            say(f"  refused: {sent.name} ({sent.run_id}): {sent.message}")
        if time.monotonic() - last > _LINE_EVERY:
            last = time.monotonic()
            say(f"  {counts.total()}/{len(jobs)} runs, {rows} rows sent")
    words = {
        "published": "published",
        "unchanged": "unchanged",
        "live": "streaming by themselves",
        "empty": "without results yet",
        "refused": "refused",
    }
    parts = [f"{counts[status]} {text}" for status, text in words.items() if counts[status]]
    say(f"{', '.join(parts)}; {rows} rows sent.")
    return _page(sweep, args) == 0 and not refused


def _page(sweep: Sweep, args: argparse.Namespace) -> int:
    """Refresh the sweep's page.

    In a process of its own: what the page shows comes from ``analysis``, which optlab never
    imports, and matplotlib and pandas stay out of this one.
    """
    from ..paths import ROOT

    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    words: Sequence[str] = [args.sweep, *args.overrides, *(["--report"] if args.report else [])]
    done = subprocess.run(
        [sys.executable, "-m", "analysis.wandb_page", *words],
        env={**os.environ, "PYTHONPATH": path},
    )
    return done.returncode
