"""Stopping runs: the jobs that were given them, and the processes of this machine at work on them.

What is stopped this way saves at the next step boundary, stands as preempted, and goes on from
there when it is launched again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Run
from ..store import DONE, RunStore, recorded_owner
from .batch import note_cancelled
from .plan import plural
from .queue import NoSlurm, alive
from .standing import ALIVE, standings, submission

_JOBS_PER_CALL = 500  # of scancel, each a word of its command line
_WAIT = 5.0  # seconds for the jobs to leave the queue; those that save take longer
_POLL = 0.2
_NAMED = 6  # runs that a sentence names


@dataclass(frozen=True)
class Process:
    """A process of this machine that trains chosen runs, several where it trains a stack."""

    run_ids: tuple[str, ...]
    pid: int
    launcher: int | None  # the process that gives it further runs, if it has one
    others: tuple[str, ...] = ()  # runs beside the chosen ones that it trains


@dataclass(frozen=True)
class Target:
    """What cancelling would stop."""

    jobs: Mapping[str, Sequence[str]]  # job -> chosen runs that it holds
    shared: Mapping[str, Sequence[str]]  # job -> runs beside the chosen ones that it still holds
    processes: Sequence[Process]
    elsewhere: Mapping[str, str]  # run -> why it cannot be stopped from here
    whole: bool  # the whole sweep: launchers of this machine are stopped too
    problem: str = ""  # why the queue could not be asked

    def __bool__(self) -> bool:
        return bool(self.jobs or self.processes or self.elsewhere)


def target(store: RunStore, chosen: Sequence[Run], *, whole: bool) -> Target:
    """What holds the chosen runs that are queued or running."""
    found = standings([run.id for run in chosen], store)
    waiting = any(found.of[run.id].job and found.of[run.id].state in ALIVE for run in chosen)
    jobs: dict[str, list[str]] = {}
    processes: dict[int, list[str]] = {}
    elsewhere: dict[str, str] = {}
    for run in chosen:
        standing = found.of[run.id]
        if standing.state not in ALIVE:
            continue
        if standing.job:
            jobs.setdefault(standing.job, []).append(run.id)
        else:
            holder = _holder(store, run.id)
            if isinstance(holder, int):
                processes.setdefault(holder, []).append(run.id)
            else:
                elsewhere[run.id] = holder
    problem = found.problem if waiting else ""
    holders = [_process(pid, ids, store) for pid, ids in processes.items()]
    return Target(jobs, _sharing(store, jobs), holders, elsewhere, whole, problem)


def _process(pid: int, chosen: Sequence[str], store: RunStore) -> Process:
    others = tuple(run_id for run_id in _held_by(pid, store) if run_id not in chosen)
    return Process(tuple(chosen), pid, _launcher(pid), others)


def _sharing(store: RunStore, jobs: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The runs of any sweep that the jobs hold beside the chosen ones and have not done yet."""
    shared: dict[str, list[str]] = {}
    chosen = {run_id for ids in jobs.values() for run_id in ids}
    for path in sorted(store.root.glob("*/slurm.json")) if jobs else []:
        run_id = path.parent.name
        given = submission(run_id, store)
        if not given or given.job not in jobs or run_id in chosen:
            continue
        if store.status(run_id) not in (*DONE, "failed"):
            shared.setdefault(given.job, []).append(run_id)
    return shared


def _holder(store: RunStore, run_id: str) -> int | str:
    """The process of ours on this machine that holds the run's lease, or why it is out of reach."""
    owner = recorded_owner(store.folder(run_id) / "owner.json")
    if owner is None:
        return "the process that trains it has not said who it is"
    if owner.host != socket.gethostname():
        return f"it is trained by process {owner.pid} on {owner.host}: cancel it there"
    try:
        theirs = Path(f"/proc/{owner.pid}").stat().st_uid
    except OSError:
        return f"its process {owner.pid} cannot be found on this machine"
    if theirs != os.getuid():
        return f"its process {owner.pid} belongs to another user"
    if not _has_open(owner.pid, store.folder(run_id) / "lock"):
        return f"process {owner.pid} no longer holds it"
    return owner.pid


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has this file open: numbers of processes are used again."""
    with contextlib.suppress(OSError):
        wanted = path.stat()
        return any(os.path.samestat(found, wanted) for _, found in _open_files(pid))
    return False


def _held_by(pid: int, store: RunStore) -> list[str]:
    """The runs of the store whose lock a process has open."""
    root, held = store.root.resolve(), set()
    for path, _ in _open_files(pid):
        if path.name == "lock" and path.parent.parent == root:
            held.add(path.parent.name)
    return sorted(held)


def _open_files(pid: int) -> list[tuple[Path, os.stat_result]]:
    """The files that a process has open; none where it is gone or another user's."""
    found = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since
                found.append((Path(os.readlink(link)), link.stat()))
    return found


def _launcher(pid: int) -> int | None:
    """The process whose pool a worker belongs to."""
    if "spawn_main" not in command_line(pid):
        return None
    with contextlib.suppress(OSError, ValueError, IndexError):
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(words[1])
    return None


def command_line(pid: int) -> str:
    """The words that started a process; '' if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def described(found: Target, runs: Sequence[Run], former: Collection[str] = ()) -> str:
    """What would be stopped, before it is; ``former`` runs are not the sweep's any more."""
    names = {run.id: run.name for run in runs}

    def named(ids: Sequence[str]) -> str:
        more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
        return ", ".join(names.get(run_id, run_id) for run_id in ids[:_NAMED]) + more

    lines = []
    if found.jobs:
        ids = [run_id for held in found.jobs.values() for run_id in held]
        jobs = plural(len(found.jobs), "job")
        lines.append(f"{plural(len(ids), 'run')} in {jobs}: {named(ids)}")
        if old := [run_id for run_id in ids if run_id in former]:
            lines.append(
                f"  {len(old)} of them with a config that the sweep no longer has: {named(old)}"
            )
    lines += [
        f"  job {job} also trains {named(others)}: it stops them, too"
        for job, others in found.shared.items()
    ]
    for one in found.processes:
        runs_of = plural(len(one.run_ids), "run")
        lines.append(f"{runs_of} in process {one.pid} of this machine: {named(one.run_ids)}")
        if one.others:
            lines.append(f"  it also trains {named(one.others)}: it stops them, too")
    for launcher in sorted(launchers(found)):
        what = "stops with it" if found.whole else "goes on with other runs"
        lines.append(f"  its launch {what} (process {launcher}: {command_line(launcher)})")
    for run_id, why in found.elsewhere.items():
        lines.append(f"Out of reach: {named([run_id])}: {why}")
    return "\n".join(lines)


def launchers(found: Target) -> set[int]:
    """The launches of this machine that hold the runs."""
    return {one.launcher for one in found.processes if one.launcher is not None}


def cancel(found: Target, store: RunStore) -> list[str]:
    """Stop it; a line about each thing that happened."""
    lines = _cancel_jobs(found, store) if found.jobs else []
    stopped = launchers(found) if found.whole else set()
    for pid in sorted(stopped):
        lines.append(_end(pid, f"the launch of this machine (process {pid})"))
    for one in found.processes:
        if one.launcher in stopped:
            continue
        which = f"run{'s' * (len(one.run_ids) > 1)} {', '.join(one.run_ids)}"
        locks = [store.folder(run_id) / "lock" for run_id in one.run_ids]
        if not any(_has_open(one.pid, lock) for lock in locks):
            lines.append(f"Process {one.pid} has ended with {which} by itself.")
        else:
            lines.append(_end(one.pid, f"process {one.pid}, which trains {which}"))
    lines += [f"Not cancelled: {run_id}: {why}." for run_id, why in found.elsewhere.items()]
    return lines


def _end(pid: int, what: str) -> str:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return f"Already gone: {what}."
    except PermissionError:
        return f"Not allowed to stop {what}."
    return f"Told to save and stop: {what}."


def _cancel_jobs(found: Target, store: RunStore) -> list[str]:
    jobs = list(found.jobs)
    if shutil.which("scancel") is None:
        return ["Nothing was cancelled in SLURM: there is no scancel on this machine."]
    problems = []
    for start in range(0, len(jobs), _JOBS_PER_CALL):
        some = jobs[start : start + _JOBS_PER_CALL]
        done = subprocess.run(["scancel", *some], capture_output=True, text=True)
        problems += [line for line in done.stderr.splitlines() if line.strip()]
    left = _left(jobs)
    for job in set(jobs) - set(left if problems else []):  # a refused one lives on
        note_cancelled(store, [*found.jobs[job], *found.shared.get(job, [])], job)
    lines = [f"Gone from the queue: {len(jobs) - len(left)} of {plural(len(jobs), 'job')}."]
    if left:
        lines.append(
            f"{plural(len(left), 'job')} told to stop and still saving: "
            f"{', '.join(left[:_NAMED])}{' ...' if len(left) > _NAMED else ''}."
        )
    return [*lines, *(f"scancel: {problem}" for problem in problems)]


def _left(jobs: Sequence[str]) -> list[str]:
    """The jobs that are still in the queue after a moment."""
    deadline = time.monotonic() + _WAIT
    left = list(jobs)
    while left and time.monotonic() < deadline:
        time.sleep(_POLL)
        try:
            queue = alive()
        except NoSlurm:
            return left
        left = [job for job in jobs if job in queue]
    return left
