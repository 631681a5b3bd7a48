"""What SLURM knows of our jobs: ``squeue`` says which are alive, ``sacct`` why others ended.

``sacct`` is never asked whether a job is alive: it does not know one in its first second.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

_TIMEOUT = 30.0  # seconds; SLURM's clients themselves give up on a busy controller earlier
_JOBS_PER_CALL = 1000  # of sacct, which takes them as one word of its command line
_WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")


class NoSlurm(Exception):
    """The queue cannot be asked.

    ``installed`` tells a machine without SLURM, on which no job can be submitted either, from a
    controller that does not answer, whose jobs may be alive all the same.
    """

    def __init__(self, message: str, *, installed: bool) -> None:
        super().__init__(message)
        self.installed = installed


@dataclass(frozen=True)
class Job:
    """A job that waits, runs, or is being cleaned up after."""

    state: Literal["queued", "running"]
    reason: str  # why it waits, in SLURM's word; '' once it runs
    seconds: float  # that it has run for; 0 while it waits
    node: str  # '' while it waits
    name: str = ""  # of the batch, for ours


def alive() -> dict[str, Job]:
    """All jobs in the queue, of every user, by "ARRAYJOB_TASK" or "JOB"; one call of ``squeue``.

    Raises:
        NoSlurm: there is no ``squeue`` here, or it does not answer.
    """
    text = _ask("squeue", "--noheader", "--array", "--all", "--format=%i|%T|%M|%N|%r|%j")
    return dict(_job(line) for line in text.splitlines())


def _job(line: str) -> tuple[str, Job]:
    number, state, used, node, reason, name = line.split("|", 5)
    if state in _WAITING:
        return number, Job("queued", reason, 0.0, "", name)
    return number, Job("running", "", seconds_of(used), node, name)


def array_named(name: str) -> str:
    """The number of the job array in the queue that has this name; '' if none has.

    Raises:
        NoSlurm: there is no ``squeue`` here, or it does not answer.
    """
    numbers = _ask("squeue", "--noheader", "--all", f"--name={name}", "--format=%F").split()
    return numbers[0] if numbers else ""


def why_ended(jobs: Collection[str]) -> dict[str, str]:
    """How jobs ended that are not alive: SLURM's word and what is known beside it.

    Such as ``TIMEOUT (limit 01:00:00)``, ``FAILED (exit code 3)``, ``NODE_FAIL (node n7)``. Every
    job gets an answer, ``UNKNOWN (...)`` where accounting has none.
    """
    arrays = sorted({name.partition("_")[0] for name in jobs})
    ends: dict[str, str] = {}
    try:
        for start in range(0, len(arrays), _JOBS_PER_CALL):
            ends.update(_ends(arrays[start : start + _JOBS_PER_CALL]))
    except NoSlurm as error:
        return dict.fromkeys(jobs, f"UNKNOWN ({error})")
    return {name: ends.get(name, "UNKNOWN (sacct does not know the job)") for name in jobs}


def _ends(arrays: Sequence[str]) -> dict[str, str]:
    """The ends of all tasks of these arrays, and of jobs that are none."""
    columns = "--format=JobID,State,ExitCode,NodeList,Timelimit"
    call = ("sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(arrays)}")
    rows = [line.split("|") for line in _ask(*call, columns).splitlines()]
    return {name: _end(*rest) for row, *rest in rows for name in tasks(row)}


def tasks(name: str) -> list[str]:
    """The jobs that SLURM names together: ``7_[0,2-4%2]`` is four, tasks that never started."""
    array, bracket, ranges = name.partition("_[")
    if not bracket:
        return [name]
    found = []
    for part in ranges.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        last, _, step = (last or first).partition(":")
        found += [f"{array}_{task}" for task in range(int(first), int(last) + 1, int(step or 1))]
    return found


def _end(state: str, exit_code: str, node: str, limit: str) -> str:
    word, _, by = state.partition(" by ")  # CANCELLED by 1000
    details = {
        "CANCELLED": f"by user {by}" if by else "",
        "FAILED": _exit(exit_code),
        "NODE_FAIL": f"node {node}",
        "OUT_OF_MEMORY": f"node {node}",
        "TIMEOUT": f"limit {limit}",
    }
    detail = details.get(word, "")
    return f"{word} ({detail})" if detail else word


def _exit(code: str) -> str:
    """The exit code or the signal of ``CODE:SIGNAL``."""
    status, _, number = code.partition(":")
    if number in ("", "0"):
        return f"exit code {status}"
    try:
        return f"killed by {signal.Signals(int(number)).name}"
    except ValueError:
        return f"killed by signal {number}"


def seconds_of(text: str) -> float:
    """Seconds of SLURM's ``[days-][hours:]minutes:seconds``; 0 of ``INVALID``."""
    days, _, clock = text.rpartition("-")
    try:
        parts = [int(part) for part in clock.split(":")]
        total = int(days or 0) * 86400
    except ValueError:
        return 0.0
    return float(total + sum(part * 60**k for k, part in enumerate(reversed(parts))))


def _ask(*call: str) -> str:
    """What a command of SLURM prints.

    Raises:
        NoSlurm: it is not installed, fails or hangs.
    """
    # A user's own formats and filters (SQUEUE_FORMAT, SQUEUE_USERS, ...) would change the answer.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SQUEUE_", "SACCT_"))}
    if shutil.which(call[0]) is None:
        raise NoSlurm(f"There is no SLURM on this machine ({call[0]}: not found)", installed=False)
    try:
        done = subprocess.run(call, capture_output=True, text=True, env=kept, timeout=_TIMEOUT)
    except subprocess.TimeoutExpired:
        raise NoSlurm(f"{call[0]} has not answered for {_TIMEOUT:.0f} s", installed=True) from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise NoSlurm(f"{call[0]} does not answer: {said}", installed=True)
    return done.stdout
