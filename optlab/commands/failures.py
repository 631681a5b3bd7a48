"""``python -m optlab failures SWEEP``: why runs failed or were lost, and what to do."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import add_sweep_arguments

if TYPE_CHECKING:
    from ..launch.standing import Standing
    from ..store import RunStore
    from ..sweep import Sweep

HELP = "failed and lost runs of a sweep, by cause"
_NAMES = 5  # runs of a group that are named
_LAST = 8  # lines of a log


@dataclass(frozen=True)
class Group:
    """Runs that failed for the same reason."""

    kind: str
    cause: str  # of the first of them
    runs: list[str]  # ids
    names: list[str]
    advice: str
    log: str  # path of the file that the last lines are from
    last_lines: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)


def run(args: argparse.Namespace) -> int:
    from ..launch.find import sweep_of
    from ..launch.standing import standings

    sweep, store = sweep_of(args.sweep, args.overrides)
    found = standings([run.id for run in sweep.runs], store, explain=True)
    groups = grouped(sweep, store, {i: found.of[i] for i in found.among("failed", "lost")})
    if args.json:
        listed = [asdict(group) for group in groups]
        print(json.dumps({"sweep": sweep.name, "problem": found.problem, "groups": listed}))
        return 0
    if found.problem:
        print(f"{found.problem}: lost runs cannot all be told from waiting ones.")
    print(report(sweep, groups))
    return 0


def grouped(sweep: Sweep, store: RunStore, bad: dict[str, Standing]) -> list[Group]:
    """Failed and lost runs by kind and cause, the largest group first."""
    from ..launch.diagnosis import alike, diagnosis

    names = {run.id: run.name for run in sweep.runs}
    groups: dict[tuple[str, str], Group] = {}
    for run_id, standing in bad.items():
        detail = str((store.failure(run_id) or {}).get("detail", ""))
        known = diagnosis(standing.cause, detail if standing.state == "failed" else "")
        key = (known.kind, alike(standing.cause))
        if key not in groups:
            log, lines = _last_lines(run_id, store, standing, detail)
            cause = standing.cause.partition("\n")[0]
            groups[key] = Group(known.kind, cause, [], [], known.advice, log, lines)
        groups[key].runs.append(run_id)
        groups[key].names.append(names[run_id])
    return sorted(groups.values(), key=lambda group: -len(group.runs))


def _last_lines(
    run_id: str, store: RunStore, standing: Standing, detail: str
) -> tuple[str, list[str]]:
    """The file that says most about an end, and its last lines."""
    from .logs import sources, text_of

    if standing.state == "failed" and detail.strip():
        return str(store.folder(run_id) / "log.txt"), detail.rstrip().splitlines()[-_LAST:]
    for _, path in reversed(sources(run_id, store)):  # the job's output, then the run's log
        if lines := text_of(path).rstrip().splitlines():
            return str(path), lines[-_LAST:]
    return "", []


def report(sweep: Sweep, groups: list[Group]) -> str:
    """The groups as text."""
    if not groups:
        return f"Sweep {sweep.name}: no run has failed or is lost."
    total = sum(len(group.runs) for group in groups)
    lines = [f"Sweep {sweep.name}: {total} of {len(sweep.runs)} runs failed or are lost."]
    for group in groups:
        named = [f"{name} ({i})" for name, i in zip(group.names, group.runs, strict=True)]
        more = f" and {len(named) - _NAMES} more" if len(named) > _NAMES else ""
        count = f"{len(named)} run" if len(named) == 1 else f"{len(named)} runs"
        lines += ["", f"{count}, {group.kind}: {group.cause}"]
        lines.append(f"  {', '.join(named[:_NAMES])}{more}")
        if group.last_lines:
            lines.append(f"  last lines ({group.log}):")
            lines += [f"    {line}" for line in group.last_lines]
        lines.append(f"  What to do: {group.advice}")
    words = sweep.command.removeprefix("sweeps=")
    lines += ["", f"To try them again: python -m optlab retry {words}"]
    return "\n".join(lines)
