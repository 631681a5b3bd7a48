"""Where runs stand: the store's files and SLURM's queue, put together.

Files alone cannot tell a run that waits in a queue from one that nobody has started, nor one whose
job was killed from one that saved and stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

from ..store import DONE, RunStore
from .queue import Job, NoSlurm, alive, why_ended

State = Literal[
    "finished", "diverged", "failed", "preempted", "running", "queued", "lost", "missing"
]
STATES: tuple[State, ...] = (
    "queued", "running", "finished", "diverged", "failed", "lost", "preempted", "missing",
)  # fmt: skip
ALIVE = ("queued", "running")  # somebody trains them, or will: to be left alone


@dataclass(frozen=True)
class Submission:
    """Which job a run was given to; the file ``slurm.json`` of its folder."""

    job: str  # ARRAYJOB_TASK, or JOB
    submitted: str  # ISO time
    sweep: str
    log: str  # path of the job's stdout
    packed: int = 1  # runs that share the job
    gpus: int = 0  # of the run
    requeues: int = 0  # so far
    words: Sequence[str] = ()  # hydra.launcher.* as the command line stated them
    cancelled: str = ""  # ISO time at which its job was cancelled by us


@dataclass(frozen=True)
class Standing:
    """Where one run stands."""

    state: State
    cause: str = ""  # of a divergence, failure or loss; why a queued job waits
    job: str = ""  # that holds the run, or held it last; '' where none ever did
    node: str = ""  # that its job runs on


@dataclass(frozen=True)
class Standings:
    """Where runs stand, by id; ``problem`` says why the queue could not be asked, if it must."""

    of: Mapping[str, Standing]
    problem: str = ""
    queue: Mapping[str, Job] | None = None  # as it was seen; None: not asked, or no answer

    def among(self, *states: State) -> list[str]:
        """Ids of the runs in these states."""
        return [run_id for run_id, standing in self.of.items() if standing.state in states]


def standings(run_ids: Iterable[str], store: RunStore, *, explain: bool = False) -> Standings:
    """Where the runs stand; ``explain`` asks SLURM's accounting why lost ones were lost.

    ``squeue`` is called only if a run was ever submitted. Where it is installed and does not
    answer, submitted runs that are not done count as alive: nobody knows, and a run that is
    launched twice is worse than one launched late.
    """
    # In this order: a job that is submitted or ends while we look is then never taken for lost.
    ids = list(dict.fromkeys(run_ids))
    submissions = {run_id: submission(run_id, store) for run_id in ids}
    jobs, problem = look() if any(submissions.values()) else (None, "")
    found = {run_id: standing_of(run_id, store, submissions[run_id], jobs) for run_id in ids}
    return Standings(_explained(found, store) if explain else found, problem, jobs)


def look() -> tuple[dict[str, Job] | None, str]:
    """The queue, None if SLURM does not answer; empty without SLURM. And what is wrong."""
    try:
        return alive(), ""
    except NoSlurm as error:
        return (None if error.installed else {}), str(error)


def standing_of(
    run_id: str, store: RunStore, given: Submission | None, jobs: Mapping[str, Job] | None
) -> Standing:
    """Where a run stands that was given to a job, or to none, with these ``jobs`` alive.

    None for ``jobs`` means that nobody knows.
    """
    own = store.status(run_id)
    job = given.job if given else ""
    if own in DONE:
        result = store.result(run_id)
        return Standing(own, result.cause if result else "", job)
    held = jobs.get(job) if jobs is not None else None
    if own == "running":  # its lease is held, by a job or by a process of this machine
        return Standing(own, "", job if held or jobs is None else "", held.node if held else "")
    written = [_written(store, run_id, name) for name in ("failure.json", "result.json")]
    failed_since = own == "failed" and max(written) > _written(store, run_id, "slurm.json")
    if given and held:
        if failed_since and given.packed > 1:  # its pack goes on, and does not try it again
            return Standing("failed", failure_cause(run_id, store), job)
        if given.packed > 1 and held.state == "running":  # its lease is not held
            return Standing("queued", "its job has other runs to train first", job, held.node)
        return Standing(held.state, held.reason, job, held.node)
    if failed_since:
        return Standing("failed", failure_cause(run_id, store), job)
    if given is None:
        return Standing(own)
    if jobs is None:
        return Standing("queued", "as it was submitted: SLURM does not answer", job)
    stopped = _written(store, run_id, "preempted.json") > _written(store, run_id, "slurm.json")
    if own == "preempted" and stopped:
        return Standing("preempted", "", job)
    if given.cancelled:  # accounting knows nothing of a task that was cancelled while it waited
        saved = (store.folder(run_id) / "records.jsonl").exists()
        return Standing("preempted" if saved else "missing", "cancelled", job)
    return Standing("lost", "its job is gone" if job else "its submission broke off", job)


def _written(store: RunStore, run_id: str, name: str) -> int:
    """When a file of the run was written, in ns of the file server's clock; -1 if it is not there.

    Files of one run are compared with each other only, so that no host's clock matters.
    """
    try:
        return (store.folder(run_id) / name).stat().st_mtime_ns
    except OSError:
        return -1


def _explained(found: Mapping[str, Standing], store: RunStore) -> dict[str, Standing]:
    """The same, with the reason that SLURM's accounting gives for each loss.

    A run whose job was cancelled is not lost: somebody wanted it to stop.
    """
    reasons = why_ended({s.job for s in found.values() if s.state == "lost" and s.job})
    return {
        run_id: _reasoned(store, run_id, standing, reasons[standing.job])
        if standing.state == "lost" and standing.job
        else standing
        for run_id, standing in found.items()
    }


def _reasoned(store: RunStore, run_id: str, standing: Standing, reason: str) -> Standing:
    if not reason.startswith("CANCELLED"):
        return replace(standing, cause=reason)
    started = (store.folder(run_id) / "records.jsonl").exists()
    return replace(standing, state="preempted" if started else "missing", cause=reason)


def failure_cause(run_id: str, store: RunStore) -> str:
    """Why a run is marked failed."""
    failure = store.failure(run_id)
    if failure is None:
        return "result.json is damaged"
    return str(failure.get("cause", "failure.json is damaged"))


def submission(run_id: str, store: RunStore) -> Submission | None:
    """The job that a run was last given to, None if it never was.

    Without a job: its submission has begun and not ended, or the file cannot be read.
    """
    try:
        content = json.loads(_submission_file(run_id, store).read_text())
        known = {field.name for field in fields(Submission)}
        found = Submission(**{key: value for key, value in content.items() if key in known})
        return found if isinstance(found.job, str) else Submission("", "", "", "")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError):
        return Submission("", "", "", "")


def _submission_file(run_id: str, store: RunStore) -> Path:
    return store.folder(run_id) / "slurm.json"
