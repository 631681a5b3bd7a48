"""Publication of runs from the run store: what W&B lacks of each is sent, and confirmed."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..config import Run, TrackingConfig
from ..store import DONE, RunStore
from . import client, memory, rows
from .memory import Published
from .mirror import OtherHistory, check_same, finish_within

SEND_WITHIN = 300.0  # seconds for the end of one run
CONFIRM_WITHIN = 30.0  # seconds until W&B shows what it took


@dataclass(frozen=True)
class Job:
    """One run to publish, as a process can be told."""

    root: Path  # of the run store
    run_id: str
    tracking: TrackingConfig  # its group is the name of the sweep
    again: bool  # also where nothing has changed
    rewrite: bool  # under a new id where W&B holds another history; the old one is deleted


@dataclass(frozen=True)
class Sent:
    """What came of a job."""

    run_id: str
    name: str
    status: Literal["published", "unchanged", "live", "empty", "refused"]
    rows: int = 0  # sent now
    message: str = ""  # why W&B refused
    url: str = ""


class Unconfirmed(Exception):
    """W&B took a run without an error and does not show all of it."""


def is_empty(store: RunStore, run: Run) -> bool:
    """Whether there is nothing to show of a run yet."""
    return not store.records(run.id) and store.status(run.id) != "failed"


def publish_all(jobs: Sequence[Job], workers: int) -> Iterator[Sent]:
    """Publish the runs in ``workers`` processes, each result as it comes."""
    waiting = []
    for job in jobs:
        settled = _settled(job)
        if settled is None:
            waiting.append(job)
        else:
            yield settled
    jobs, count = waiting, min(workers, len(waiting))
    if count <= 1:
        yield from map(publish, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context) as pool:
        futures = {pool.submit(publish, job): job for job in jobs}
        for future in as_completed(futures):
            try:
                yield future.result()
            except BrokenProcessPool:
                job = futures[future]
                yield Sent(job.run_id, job.run_id, "refused", message="a sending process died")


def _settled(job: Job) -> Sent | None:
    """The answer for a run that needs no sending; None where it does, or cannot be read."""
    store = RunStore(job.root)
    if not store.folder(job.run_id).is_dir():
        return Sent(job.run_id, job.run_id, "empty")
    try:
        run = store.load(job.run_id)
        return _known(run, store, job)
    except Exception:  # told where it is to be published
        return None


def publish(job: Job) -> Sent:
    """Publish one run; whatever fails is in the answer."""
    store = RunStore(job.root)
    folder = store.folder(job.run_id)
    try:
        run = store.load(job.run_id)
        with memory.publishing(folder) as mine:
            if not mine:
                raise RuntimeError("another process is publishing it at this moment")
            return _publish(run, store, job)
    except Exception as error:  # one run that is refused must not keep the others back
        client.reset(None)
        return Sent(job.run_id, _name(store, job.run_id), "refused", message=client.explain(error))


def _name(store: RunStore, run_id: str) -> str:
    with contextlib.suppress(Exception):  # the reason is told beside it
        return store.load(run_id).name
    return run_id


def _known(run: Run, store: RunStore, job: Job) -> Sent | None:
    if is_empty(store, run):
        return Sent(run.id, run.name, "empty")
    known = memory.recall(store.folder(run.id), client.target(job.tracking))
    if known is None:
        return None
    if known.live and store.status(run.id) == "running":
        return Sent(run.id, run.name, "live", url=known.url)
    content, planned = _content(run, store), _planned(run, known, job)
    same = known.digest == _digest(content, planned) and known.group == planned.group
    if same and not job.again:
        return Sent(run.id, run.name, "unchanged", url=known.url)
    return None


def _planned(run: Run, known: Published | None, job: Job) -> Published:
    """The group of the sweep that published it first, the tags of them all."""
    planned = memory.grouped(known, run.id, job.tracking.group)
    tags = {*planned.tags, *job.tracking.tags, *filter(None, [job.tracking.group])}
    return replace(planned, tags=tuple(sorted(tags)), live=False)


def _digest(content: _Content, planned: Published) -> str:
    return rows.digest([content.config, content.rows, content.summary, planned.tags])


def _publish(run: Run, store: RunStore, job: Job) -> Sent:
    settled = _known(run, store, job)
    if settled is not None:
        return settled
    folder, where = store.folder(run.id), client.target(job.tracking)
    content, planned = _content(run, store), _planned(run, memory.recall(folder, where), job)
    try:
        sent, url = _send(run, content, planned, job.tracking)
    except OtherHistory as other:
        if not job.rewrite:
            raise OtherHistory(
                f"{other}. With --rewrite it is published anew, and deleted there"
            ) from other
        anew = replace(planned, id=_next_id(planned.id), url="")
        sent, url = _send(run, content, anew, job.tracking)
        _delete(job.tracking, planned.id)
        planned = anew
    remembered = replace(planned, digest=_digest(content, planned), url=url)
    memory.remember(folder, where, remembered)
    return Sent(run.id, run.name, "published", rows=sent, url=url)


@dataclass(frozen=True)
class _Content:
    config: dict[str, Any]
    rows: list[rows.Row]
    summary: dict[str, Any]
    done: bool


def _content(run: Run, store: RunStore) -> _Content:
    of_run, records = store.row(run), store.records(run.id)
    return _Content(
        rows.config(run),
        rows.history(records, store.diagnostics(run.id)),
        rows.summary(of_run, records),
        of_run["outcome"] in DONE,
    )


def _send(
    run: Run, content: _Content, planned: Published, tracking: TrackingConfig
) -> tuple[int, str]:
    """Send what W&B lacks; (number of rows, address). Raises where it did not take everything."""
    with tempfile.TemporaryDirectory(prefix="optlab-wandb-") as folder:
        opened = client.init(
            tracking,
            Path(folder),
            mode="online",
            id=planned.id,
            name=run.name,
            group=planned.group,
            tags=planned.tags,
            job_type="train",
            values=content.config,
        )
        there = opened.starting_step
        failed = content.summary["outcome"] == "failed"
        try:
            check_same(opened, content.rows)
            if there > len(content.rows) and content.done:
                raise OtherHistory(
                    f"W&B holds {there} rows of this run, the run store {len(content.rows)}"
                )
            for row in content.rows[there:]:
                opened.log(row)
            opened.summary.update(content.summary)
            finish_within(opened, SEND_WITHIN, exit_code=1 if failed else 0)
        except Exception:
            with contextlib.suppress(Exception):  # the first error is the one to tell
                finish_within(opened, 1.0, exit_code=1)
            raise
        path = f"{opened.entity}/{opened.project}/{opened.id}"
    confirm(path, len(content.rows))
    return len(content.rows[there:]), opened.url or ""


def confirm(path: str, count: int) -> None:
    """Raise Unconfirmed unless W&B soon shows ``count`` rows of the run at ``path``."""
    remote = client.api().run(path)
    deadline = time.monotonic() + CONFIRM_WITHIN
    while (shown := remote.lastHistoryStep + 1) < count:
        if time.monotonic() > deadline:
            raise Unconfirmed(
                f"W&B shows {shown} of its {count} rows: sync again, it goes on from there"
            )
        time.sleep(0.5)


def _next_id(id: str) -> str:
    """``a`` becomes ``a-2``, which becomes ``a-3``: W&B never gives an id a second life."""
    base, _, number = id.partition("-")
    return f"{base}-{int(number or 1) + 1}"


def attempt(id: str) -> int:
    """Which publication of its run a W&B id stands for, from 1."""
    found = re.fullmatch(r".*-(\d+)", id)
    return int(found.group(1)) if found else 1


def _delete(tracking: TrackingConfig, id: str) -> None:
    entity = tracking.entity or client.api().default_entity
    client.api().run(f"{entity}/{tracking.project}/{id}").delete()
