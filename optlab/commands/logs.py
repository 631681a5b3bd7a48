"""``python -m optlab logs RUN``: what a run has to say, and where it lies."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..launch.standing import Standing
    from ..store import RunStore

HELP = "log, traceback and job output of one run"
_LINES = 50
_POLL = 0.5  # seconds between two looks at the files
_ASK = 10.0  # seconds between two looks at the queue


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="an id, the start of one, or a name")
    parser.add_argument("overrides", nargs="*", help="as given to launch.py, of sweep or store")
    parser.add_argument("--sweep", metavar="SWEEP", help="look among the runs of this sweep")
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the run ends")
    parser.add_argument("--json", action="store_true", help="for programs: one JSON object")
    parser.add_argument(
        "--lines", "-n", type=int, default=_LINES, help=f"last lines of each file ({_LINES})"
    )


def run(args: argparse.Namespace) -> int:
    from ..errors import ConfigError
    from ..launch.find import run_of, stored_run, sweep_of
    from ..launch.standing import standings

    if args.json and args.follow:
        raise ConfigError("--json is one object, and --follow never ends: give one of them.")
    if args.sweep:
        sweep, store = sweep_of(args.sweep, args.overrides)
        run_id = run_of(args.run, sweep.runs, f"the sweep {sweep.name}").id
    else:
        run_id, store = stored_run(args.run, args.overrides)
    standing = standings([run_id], store, explain=True).of[run_id]
    parts = _parts(run_id, store, standing, args.lines)
    if args.json:
        found = [{"what": what, "path": str(path), "text": text} for what, path, text in parts]
        print(json.dumps({"run": run_id, **asdict(standing), "files": found}))
        return 0
    print(head(run_id, store, standing))
    for what, path, text in parts:
        print(f"\n{what} ({path}):\n{text}")
    if args.follow:
        _follow(run_id, store, [path for _, path in sources(run_id, store)])
    return 0


def _parts(
    run_id: str, store: RunStore, standing: Standing, lines: int
) -> list[tuple[str, Path, str]]:
    """What there is to read of a run: what it is, where, and its last lines."""
    parts = [(title, path, tail(path, lines)) for title, path in sources(run_id, store)]
    trace = str((store.failure(run_id) or {}).get("detail", ""))
    log = store.folder(run_id) / "log.txt"
    if standing.state == "failed" and trace and trace.strip() not in text_of(log):
        parts.append(("why it failed", store.folder(run_id) / "failure.json", trace))
    return parts


def head(run_id: str, store: RunStore, standing: Standing) -> str:
    """Which run this is and how it stands, in a line."""
    from ..store import read_if_there

    name = (read_if_there(store.folder(run_id) / "job.json") or {}).get("name", "without a name")
    job = f", job {standing.job}" if standing.job else ""
    node = f" on {standing.node}" if standing.node else ""
    cause = f": {standing.cause}" if standing.cause else ""
    return f"Run {run_id} ({name}), {standing.state}{job}{node}{cause}"


def sources(run_id: str, store: RunStore) -> list[tuple[str, Path]]:
    """The files that tell of a run: its own log, and its job's where it has one."""
    from ..launch.standing import submission

    found = [("log", store.folder(run_id) / "log.txt")]
    given = submission(run_id, store)
    if given and given.log:
        shared = f", which trains {given.packed} runs" if given.packed > 1 else ""
        found.append((f"output of job {given.job}{shared}", Path(given.log)))
    return found


def tail(path: Path, count: int) -> str:
    """The last lines of a file, indented; says so where there is none."""
    if not path.exists():
        return "  (not there yet)"
    lines = text_of(path).splitlines()
    cut = [f"  ... {len(lines) - count} lines before"] if len(lines) > count else []
    kept = lines[len(lines) - count :] if len(lines) > count else lines
    return "\n".join([*cut, *(f"  {line}" for line in kept)]) or "  (empty)"


def text_of(path: Path) -> str:
    """What a file holds; nothing where it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _follow(run_id: str, store: RunStore, paths: list[Path]) -> None:
    """Print what is added to the files and records, until nobody trains the run any more."""
    from ..launch.standing import ALIVE, standings

    records = store.folder(run_id) / "records.jsonl"
    seen = {path: len(_bytes(path)) for path in [*paths, records]}
    asked = 0.0
    print("\nFollowing; Ctrl-C ends this and not the run.", flush=True)
    while True:
        ending = time.monotonic() - asked > _ASK
        standing = standings([run_id], store).of[run_id] if ending else None
        asked = time.monotonic() if ending else asked
        for path in paths:
            _print_new(path, seen, lambda line: line)
        _print_new(records, seen, _as_progress)
        if standing and standing.state not in ALIVE:  # asked before the files were read to the end
            print(head(run_id, store, standing), flush=True)
            return
        if standing is None and store.is_done(run_id):
            asked = 0.0
        time.sleep(_POLL)


def _print_new(path: Path, seen: dict[Path, int], shown: object) -> None:
    """Print the whole lines that a file has more than before; all of them if it was rewritten."""
    content = _bytes(path)
    if len(content) < seen[path]:
        seen[path] = 0
    new, newline, _ = content[seen[path] :].rpartition(b"\n")
    seen[path] += len(new) + len(newline)
    if newline:
        for line in new.decode(errors="replace").split("\n"):
            print(f"  {shown(line)}", flush=True)  # type: ignore[operator]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _as_progress(line: str) -> str:
    from ..launch.plan import train_loss

    try:
        record = json.loads(line)
        train, val = float(record["train_loss"]), float(record["val_loss"])
        step = int(record["step"])
        return f"step {step:6d}  train {train_loss(step, train)}  val {val:.4f}"
    except (ValueError, KeyError, TypeError):
        return line
