"""``python -m optlab plan SWEEP``: what launching a sweep would do and cost; starts nothing."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from . import add_sweep_arguments

if TYPE_CHECKING:
    from ..launch.plan import Plan

HELP = "what launching a sweep would do and cost"
_STEPS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)
    parser.add_argument(
        "--probe",
        nargs="?",
        type=int,
        const=_STEPS,
        metavar="STEPS",
        help=f"train a few steps ({_STEPS}) of each kind of run that was never measured",
    )


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.find import as_asked, sweep_of
    from ..launch.plan import describe, make_plan, refusal

    sweep, store = sweep_of(args.sweep, args.overrides)
    if args.probe is not None:
        from ..launch.probe import probe  # imports torch

        if args.probe < 2:
            raise ConfigError(f"--probe needs at least 2 steps, not {args.probe}.")
        probe(sweep, store, args.probe, (lambda line: None) if args.json else _say)
    plan = make_plan(as_asked(sweep, args.overrides), store)
    if args.json:
        print(json.dumps(as_json(plan), indent=1))
    else:
        print(describe(plan))
        if sentence := refusal(plan):
            print(f"Launching would be refused. {sentence}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan for programs."""
    from ..launch.plan import refusal

    return {
        "sweep": plan.sweep.name,
        "runs": plan.total,
        "counts": dict(plan.counts),
        "former": list(plan.former.of),
        "to_do": [run.id for run in plan.pending],
        "forecast": asdict(plan.forecast),
        "hours_of": plan.unit,
        "spent": plan.spent,
        "committed": plan.committed,
        "budget": plan.sweep.budget,
        "refused": refusal(plan),
        "free_bytes": plan.free,
        "problem": plan.problem,
    }
