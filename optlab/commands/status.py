"""``python -m optlab status SWEEP``: where the runs of a sweep stand."""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from . import add_sweep_arguments

if TYPE_CHECKING:
    from ..config import Run
    from ..launch.former import Former
    from ..launch.standing import Standing, Standings
    from ..store import RunStore
    from ..sweep import Sweep

_TRACE = 12  # lines of a traceback
HELP = "how many runs of a sweep are queued, running, done, failed, missing"


@dataclass(frozen=True)
class Row:
    """One run, as ``--runs`` lists it."""

    id: str
    name: str
    method: str
    standing: str
    step: int | None  # last recorded; None where there is no record
    steps: int
    seconds_left: float | None  # of training, for a run that trains
    job: str
    host: str
    cause: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sweep_arguments(parser)
    parser.add_argument("--runs", action="store_true", help="list the runs, one a line")


def run(args: argparse.Namespace) -> int:
    from ..launch.find import sweep_of
    from ..launch.former import former
    from ..launch.standing import standings

    sweep, store = sweep_of(args.sweep, args.overrides)
    found = standings([run.id for run in sweep.runs], store, explain=True)
    since = former(sweep, store, found)
    rows = [row(run, store, found.of[run.id]) for run in sweep.runs]
    if args.json:
        print(json.dumps(as_json(sweep, store, found, since, rows, listed=args.runs), indent=1))
    else:
        print(report(sweep, store, found, since, rows, listed=args.runs))
    return 0


def row(run: Run, store: RunStore, standing: Standing) -> Row:
    """What ``--runs`` says of a run; files that are damaged leave gaps, and never an error."""
    step, left = _progress(run, store, standing)
    return Row(
        id=run.id,
        name=run.name,
        method=run.method,
        standing=standing.state,
        step=step,
        steps=run.train.steps,
        seconds_left=left,
        job=standing.job,
        host=standing.node or (_host(store, run.id) if standing.state == "running" else ""),
        cause=standing.cause,
    )


def _progress(run: Run, store: RunStore, standing: Standing) -> tuple[int | None, float | None]:
    """The last step, and the seconds of training that are left at the pace so far."""
    from ..launch.pace import last_record
    from ..store import DONE

    if standing.state in DONE:
        result = store.result(run.id)
        return (result.step if result else None), None
    record = last_record(store, run.id)
    if record is None:
        return None, None
    step, seconds = int(record["step"]), float(record["seconds"])
    if standing.state != "running" or step < 1:
        return step, None
    since = time.time() - (store.folder(run.id) / "records.jsonl").stat().st_mtime
    left = seconds / step * (run.train.steps - step) - max(0.0, since)
    return step, max(0.0, left)


def _host(store: RunStore, run_id: str) -> str:
    from ..store import read_if_there

    owner = read_if_there(store.folder(run_id) / "owner.json") or {}
    return str(owner.get("host", ""))


def report(
    sweep: Sweep,
    store: RunStore,
    found: Standings,
    since: Former,
    rows: Sequence[Row],
    *,
    listed: bool,
) -> str:
    """The standing of a sweep as text; ``since``: alive runs that it no longer has."""
    lines = [f"Sweep {sweep.name}: {len(rows)} runs in {store.root}"]
    if problem := found.problem or since.problem:
        lines.append(f"{problem}: what was submitted stands as the files say.")
    lines += _listed(rows) if listed else _table(rows)
    lines += _running(rows)
    lines += _former(sweep, store, since, listed)
    lines += _problems(sweep, store, rows)
    return "\n".join(lines)


def _former(sweep: Sweep, store: RunStore, since: Former, listed: bool) -> list[str]:
    if not since.of:
        return []
    rows = former_rows(store, since) if listed else []
    return [
        since.sentence(sweep),
        *aligned([list(each.values()) for each in rows], (0, 1, 2, 3, 4)),
    ]


def former_rows(store: RunStore, since: Former) -> list[dict[str, str]]:
    """Runs that the sweep no longer has, by what the queue and their labels say."""
    from ..store import read_if_there

    return [
        {
            "id": run_id,
            "name": str((read_if_there(store.folder(run_id) / "job.json") or {}).get("name", "")),
            "standing": standing.state,
            "job": standing.job,
            "host": standing.node,
        }
        for run_id, standing in since.of.items()
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    """Method by standing, with the standings that occur."""
    counts = Counter((row.method, row.standing) for row in rows)
    states = _states(rows)
    lines = [
        [method, *(str(counts[method, state]) for state in states), str(total)]
        for method, total in Counter(row.method for row in rows).items()
    ]
    totals = Counter(row.standing for row in rows)
    lines.append(["all", *(str(totals[state]) for state in states), str(len(rows))])
    return aligned([["", *states, "all"], *lines])


def _states(rows: Sequence[Row]) -> list[str]:
    from ..launch.standing import STATES

    present = {row.standing for row in rows}
    return [state for state in STATES if state in present]


def _listed(rows: Sequence[Row]) -> list[str]:
    head = ["run", "name", "standing", "step", "left", "job", "host", "cause"]
    return aligned([head, *(_cells(row) for row in rows)], left=(0, 1, 2, 5, 6, 7))


def _cells(row: Row) -> list[str]:
    from ..launch.plan import duration

    step = "-" if row.step is None else str(row.step)
    left = "-" if row.seconds_left is None else duration(row.seconds_left)
    cause = row.cause.splitlines()[0] if row.cause else ""
    return [row.id, row.name, row.standing, f"{step}/{row.steps}", left, row.job, row.host, cause]


def aligned(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Cells in columns, numbers to the right; the columns ``left`` to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if k in left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _running(rows: Sequence[Row]) -> list[str]:
    """How far the running runs are, and when the last of them ends."""
    from ..launch.plan import duration

    running = [row for row in rows if row.standing == "running"]
    if not running:
        return []
    share = sum((row.step or 0) / row.steps for row in running) / len(running)
    known = [row.seconds_left for row in running if row.seconds_left is not None]
    if known:
        eta = f"the last of them ends in about {duration(max(known))}"
        eta += "" if len(known) == len(running) else f" ({len(running) - len(known)} just started)"
    else:
        eta = "too early to say when they end"
    return [f"The {len(running)} running are {share:.0%} through; {eta}."]


def _problems(sweep: Sweep, store: RunStore, rows: Sequence[Row]) -> list[str]:
    """The commonest causes of failures, the end of the first traceback, what helps."""
    bad = [row for row in rows if row.standing in ("failed", "lost")]
    if not bad:
        return []
    first = {(row.standing, row.cause.partition("\n")[0]): row for row in reversed(bad)}
    causes = Counter((row.standing, row.cause.partition("\n")[0]) for row in bad).most_common(3)
    lines = []
    for (state, cause), count in causes:
        example = first[state, cause]
        more = f" and {count - 1} more" if count > 1 else ""
        lines.append(f"{count} {state}: {example.name}{more}: {cause}")
    trace = (store.failure(first[causes[0][0]].id) or {}).get("detail", "")
    lines += [f"  {line}" for line in str(trace).rstrip().splitlines()[-_TRACE:]]
    words = sweep.command.removeprefix("sweeps=")
    lines.append(f"All of them, and what to do: python -m optlab failures {words}")
    lines.append(f"To try them again: python -m optlab retry {words}")
    return lines


def as_json(
    sweep: Sweep,
    store: RunStore,
    found: Standings,
    since: Former,
    rows: Sequence[Row],
    *,
    listed: bool,
) -> Mapping[str, Any]:
    """The standing of a sweep for programs."""
    methods: dict[str, Counter[str]] = {}
    for each in rows:
        methods.setdefault(each.method, Counter())[each.standing] += 1
    content: dict[str, Any] = {
        "sweep": sweep.name,
        "store": str(store.root),
        "runs": len(rows),
        "counts": dict(Counter(each.standing for each in rows)),
        "methods": methods,
        "former": former_rows(store, since),
        "problem": found.problem or since.problem,
    }
    if listed:
        content["list"] = [asdict(each) for each in rows]
    return content
