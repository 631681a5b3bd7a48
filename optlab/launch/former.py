"""Runs that a sweep has in the queue and no longer has in its files.

An edit gives runs other ids. Those that were submitted before still train, under the name of the
same sweep: whoever asks about it must hear of them, and be able to stop them.
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from ..store import RunStore, read_if_there
from ..sweep import Sweep
from .batch import FOLDER, note, stem
from .queue import Job
from .standing import ALIVE, Standing, Standings, look, standing_of, submission


@dataclass(frozen=True)
class Former:
    """Where the runs stand, by id; ``problem`` says why the queue could not be asked."""

    of: Mapping[str, Standing] = field(default_factory=dict)
    problem: str = ""

    def sentence(self, sweep: Sweep) -> str:
        """How many they are, and what to do about them; '' where there are none."""
        if not self.of:
            return ""
        jobs = len({standing.job for standing in self.of.values()})
        runs = "1 run" if len(self.of) == 1 else f"{len(self.of)} runs"
        words = sweep.command.removeprefix("sweeps=")
        return (
            f"Also in the queue: {runs} of {sweep.name} in {jobs} job{'s' * (jobs != 1)}, with a "
            "config that the sweep no longer has (edited since, or other overrides). They go on: "
            f"python -m optlab status {words} --runs lists them, python -m optlab cancel {words} "
            "--former stops them and no others."
        )


def former(sweep: Sweep, store: RunStore, found: Standings) -> Former:
    """The runs that alive jobs of this very sweep hold and that are not among its runs.

    ``found`` is where its own runs stand, with the queue as it was seen then. Only the batches of
    jobs that are alive are read; without any batch of this sweep, SLURM is not asked.
    """
    pattern = f"{glob.escape(stem(sweep.name))}*/batch.json"
    batches = {path.parent.name for path in (store.root / FOLDER).glob(pattern)}
    if not batches:
        return Former()
    queue, problem = found.queue, found.problem
    if queue is None and not problem:  # its runs were never submitted: those of now, that is
        queue, problem = look()
    if not queue:  # empty without SLURM, whose absence is no problem: nothing can be alive
        return Former(problem=problem if queue is None else "")
    own = {run.id for run in (*sweep.runs, *(each.run for each in sweep.certified))}
    standings: dict[str, Standing] = {}
    for name, job, run_id in _held(sweep.name, store, batches, queue):
        said = note(store, run_id)
        given = submission(run_id, store)
        if run_id in own or given is None or (said or {}).get("batch") != name:
            continue  # or it was submitted again since: this job leaves it alone
        standing = standing_of(run_id, store, replace(given, job=job), queue)
        if standing.state in ALIVE:
            standings[run_id] = standing
    return Former(standings)


def _held(
    sweep: str, store: RunStore, batches: set[str], queue: Mapping[str, Job]
) -> Iterator[tuple[str, str, str]]:
    """Batch, job and run of what the sweep's alive jobs hold; a damaged batch holds nothing."""
    contents = {
        name: read_if_there(store.root / FOLDER / name / "batch.json") or {}
        for name in {job.name for job in queue.values()} & batches
    }
    for job, known in queue.items():
        content = contents.get(known.name, {})
        task = job.partition("_")[2]
        if content.get("sweep") == sweep and task.isdigit():
            yield from ((known.name, job, run_id) for run_id in content["tasks"][int(task)])
