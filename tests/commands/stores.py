"""Stores made by hand: files of runs as a cluster leaves them behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Sequence

from optlab.config import Run
from optlab.launch.standing import Submission
from optlab.store import Record, Result, RunStore

_SECOND = 10**9


def fill(
    store: RunStore,
    run: Run,
    files: Iterable[str],
    *,
    job: str = "7_0",
    packed: int = 1,
    steps: Sequence[int] = (0, 2),
    pace: float = 0.5,
    words: Sequence[str] = (),
    cancelled: str = "",
) -> None:
    """A folder for ``run`` with exactly these files, written in this order, a second apart.

    ``slurm``: given to ``job``, with the launcher's settings ``words``; ``records`` at ``steps``
    with ``pace`` seconds a step; ``stopped``: saved after a signal; ``failure``, ``result``,
    ``damaged result``.
    """
    folder = store.folder(run.id)
    shutil.rmtree(folder, ignore_errors=True)
    store.freeze(run)
    for number, name in enumerate(files):
        if name == "slurm":
            log = str(store.root / f"{job}.log")
            given = Submission(
                job, "2026-01-01T00:00:00+00:00", "demo", log, packed, 0, 0, words, cancelled
            )
            (folder / "slurm.json").write_text(json.dumps(vars(given)))
        elif name == "records":
            for step in steps:
                record = Record(step, step * 16, step * pace, 2.0, 2.0, 0.1, 0.1, 1.0)
                store.append(run.id, record)
        elif name == "stopped":
            (folder / "preempted.json").write_text(json.dumps({"step": steps[-1]}))
        elif name == "failure":
            store.fail(run.id, "ValueError: no", "Traceback:\nValueError: no\n")
        elif name == "result":
            result = Result("finished", "", 6, None, 2.3, 1.0, 1.0, 0.5, 2.3, False, "w", "b")
            (folder / "result.json").write_text(json.dumps(vars(result)))
        elif name == "damaged result":
            (folder / "result.json").write_text('{"outcome": "fini')
        else:
            raise ValueError(name)
        _date(store, run, number * _SECOND)


def _date(store: RunStore, run: Run, ns: int) -> None:
    """Give the files that have no date of ours yet the date ``ns`` after the first of 2026."""
    start = 1_767_225_600 * _SECOND
    for path in store.folder(run.id).iterdir():
        if path.stat().st_mtime_ns > start + 3600 * _SECOND:
            os.utime(path, ns=(start + ns, start + ns))
