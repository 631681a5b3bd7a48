"""The life of the runs of a stack: each its own, as in ``run.py``, but for the training."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from ..attempt import CHECK_EVERY, Attempt, Outcome, prepare_process
from ..build import load_data
from ..config import Run, Settings
from ..data.base import Data
from ..run import buried, run_one
from ..stop import StopFlag
from ..store import TAKEOVER, Busy, Lease, Record, RunStore
from ..train import (
    boundary,
    evaluate,
    first_record,
    random_states,
    record_due,
    set_random_states,
)
from .memory import free_memory, most_that_fit
from .stack import CannotStack, Replica, Stack


def run_stack(
    run_ids: Sequence[str],
    store: RunStore,
    settings: Settings,
    *,
    stop: StopFlag,
    report: Callable[[str, Record], None],
    ended: Callable[[str, Outcome], None],
    say: Callable[[str], None],
    workers: int = 1,
) -> None:
    """Train frozen runs of one kind together, each from its checkpoint where it has one.

    What becomes of each is told to ``ended``, once, as soon as it is known. Runs that cannot be
    trained together are trained one by one, and ``say`` is told why. As with ``run_one``, errors
    of a run do not raise. This process is one of ``workers`` that share the memory.
    """
    _Crew(store, settings, stop, report, ended, say, workers).train(run_ids)


class _Member:
    """One run of a stack: its lease, its attempt, and what an error of its own does to it."""

    replica: Replica

    def __init__(self, run_id: str, crew: _Crew) -> None:
        self.run_id, self._crew = run_id, crew
        self._held = ExitStack()
        self._lease: Lease | None = None
        self._attempt: Attempt | None = None
        self.over = False

    @property
    def attempt(self) -> Attempt:
        """Of a run that has begun."""
        assert self._attempt is not None
        return self._attempt

    def begin(self, device: torch.device, load: Callable[[Run], Data]) -> None:
        """Take the lease and build the parts, or end at once."""
        self.guarded(lambda: self._begin(device, load))

    def _begin(self, device: torch.device, load: Callable[[Run], Data]) -> None:
        store, settings = self._crew.store, self._crew.settings
        lease = store.lease(self.run_id, takeover=self._crew.patience())
        self._lease = self._held.enter_context(lease)
        result = store.result(self.run_id)
        if result is not None:  # another process finished it in the meantime
            self.end(Outcome(result.outcome, result.cause))
            return
        if self._crew.stop.is_set:
            self.end(Outcome("preempted", "stopped before it began"))
            return
        store.begin(self.run_id)
        run = store.load(self.run_id)
        self._attempt = Attempt(run, store, settings, self._lease, data=load(run))
        self.attempt.begin(device)
        parts, progress = self.attempt.parts, self.attempt.progress
        self.replica = Replica(run.train, parts, progress, self.attempt.gauge, random_states())

    def take(self, record: Record | None) -> None:
        """Keep what a step boundary has brought; finish at the last."""
        self.guarded(lambda: self._take(record))

    def _take(self, record: Record | None) -> None:
        self.attempt.take(record, lambda record: self._crew.report(self.run_id, record))
        if self.attempt.progress.finished:
            self.end(self.attempt.finish())

    def save(self, *, stops: bool) -> None:
        """Write the checkpoint, and end if the run ``stops`` there."""
        self.guarded(lambda: self.attempt.save(self.replica.random))
        if stops and not self.over:
            self.guarded(lambda: self.end(self.attempt.preempt()))

    def go_on_alone(self) -> None:
        """Train to the end by itself."""
        set_random_states(self.replica.random)
        self.guarded(self._go_on)

    def _go_on(self) -> None:
        attempt = self.attempt
        outcome = attempt.train(
            self._crew.stop, lambda record: self._crew.report(self.run_id, record)
        )
        self.end(outcome or attempt.finish())

    def guarded(self, action: Callable[[], object]) -> None:
        """Do what concerns this run alone; an error in it ends this run alone."""
        if self.over:
            return
        try:
            action()
        except Busy as error:
            self._give_up(error)
            self.end(Outcome("busy", str(error)))
        except Exception as error:  # as in run_one: marked and told, and the others go on
            self._give_up(error)
            self.end(self._buried(error))

    def _buried(self, error: Exception) -> Outcome:
        if self._lease is None:  # its folder cannot be used
            full = getattr(error, "errno", None) == errno.ENOSPC
            return Outcome("failed", f"{type(error).__name__}: {error}", full)
        try:
            crew = self._crew
            return buried(self.run_id, crew.store, self._lease, error, crew.stop)
        except Busy as busy:
            return Outcome("busy", str(busy))

    def _give_up(self, error: BaseException) -> None:
        if self._attempt is not None:
            self._attempt.abandon(error)

    def release(self, error: BaseException) -> None:
        """Let go of a run that is not over, for another attempt."""
        if not self.over:
            self._give_up(error)
            self.over = True
            self._held.close()

    def end(self, outcome: Outcome) -> None:
        self.over = True
        self._held.close()
        self._crew.ended(self.run_id, outcome)


@dataclass
class _Crew:
    """What the runs of a stack have in common."""

    store: RunStore
    settings: Settings
    stop: StopFlag
    report: Callable[[str, Record], None]
    ended: Callable[[str, Outcome], None]
    say: Callable[[str], None]
    workers: int
    _data: dict[tuple[int, int], Data] = field(default_factory=dict)
    _patient_until: float = field(default_factory=lambda: time.monotonic() + TAKEOVER)

    def patience(self) -> float:
        """Seconds to wait for an earlier attempt to let go of a run.

        Of all runs together: a leftover that hangs holds all of them, and would cost each a minute.
        """
        return max(0.0, self._patient_until - time.monotonic())

    def train(self, run_ids: Sequence[str]) -> None:
        """Train the runs, as many at a time as fit into memory."""
        if len(run_ids) == 1:
            self.alone(run_ids[0])
            return
        left = run_ids
        while left:
            left = self.some(left)

    def alone(self, run_id: str) -> None:
        """Train a run by itself."""

        def report(record: Record) -> None:
            self.report(run_id, record)

        self.ended(
            run_id, run_one(run_id, self.store, self.settings, stop=self.stop, report=report)
        )

    def some(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Train as many of the runs as fit into memory; the others."""
        device = prepare_process(self.settings)
        members: list[_Member] = []
        most = None
        try:
            for run_id in run_ids:
                if most is not None and len(members) >= most:
                    break
                members.append(member := _Member(run_id, self))
                member.begin(device, self._load)
                if most is None and not member.over:
                    free = free_memory(device, self.workers)
                    most = most_that_fit(member.attempt.parts, free)
            left = run_ids[len(members) :]
            if left:
                self.say(
                    f"{len(members)} of {len(run_ids)} runs of a stack fit into memory at a time."
                )
            self._all([member for member in members if not member.over])
        except BaseException as error:
            for member in members:
                member.release(error)
            raise
        return left

    def _load(self, run: Run) -> Data:
        """The data of a run, shared by those with its seed: all of them have the same dataset."""
        key = run.seed, run.train.batch_size
        if key not in self._data:
            self._data[key] = load_data(run)
        return self._data[key]

    def _all(self, members: Sequence[_Member]) -> None:
        """Train the members, those together that stand at the same step."""
        steps = {member.attempt.progress.step for member in members}
        for step in sorted(steps, reverse=True):
            same = [member for member in members if member.attempt.progress.step == step]
            try:
                self._together(same)
            except CannotStack as error:
                self.say(f"Not stacked: {error}.")
                self._one_by_one(same, error)
            except torch.OutOfMemoryError as error:
                self._halves(same, error)
            except Exception as error:  # of the stack as a whole: none of its runs shall pay for it
                self.say(
                    f"A stack of {len(same)} runs has failed ({type(error).__name__}: {error}); "
                    "they are trained one by one."
                )
                self._one_by_one(same, error)

    def _one_by_one(self, members: Sequence[_Member], error: Exception) -> None:
        for run_id in _released(members, error):
            self.alone(run_id)

    def _halves(self, members: Sequence[_Member], error: Exception) -> None:
        left = _released(members, error)
        torch.cuda.empty_cache()
        self.say(f"A stack of {len(left)} runs needs more memory than there is; it is halved.")
        half = -(-len(left) // 2)
        for part in (left[:half], left[half:]):
            if part:
                self.train(part)

    def _together(self, members: Sequence[_Member]) -> None:
        """Train members that stand at the same step to their ends, or to a stop."""
        of = {id(member.replica): member for member in members}
        left = [member.replica for member in members]
        stack = Stack(left) if len(left) > 1 else None
        for member in members:
            member.guarded(lambda member=member: member.attempt.open(beside=len(members) - 1))
        if stack is not None:
            left = self._in_lock_step(stack, of)
        for replica in left:
            of[id(replica)].go_on_alone()

    def _in_lock_step(self, stack: Stack, of: Mapping[int, _Member]) -> list[Replica]:
        """Train until fewer than two replicas are left; these."""
        self._first_records(stack, of)
        saved = checked = time.monotonic()
        while len(left := _unfinished(stack, of)) > 1:
            stack.keep(left)
            self._boundary(stack, stack.advance(), of)
            now = time.monotonic()
            if now - checked > CHECK_EVERY:
                checked = now
                for replica in _unfinished(stack, of):
                    of[id(replica)].guarded(of[id(replica)].attempt.check)
            stops = self.stop.is_set
            if stops or now - saved > self.settings.runtime.checkpoint_every:
                saved = now
                stack.publish()
                for replica in _unfinished(stack, of):
                    of[id(replica)].save(stops=stops)
        stack.publish()
        return left

    def _first_records(self, stack: Stack, of: Mapping[int, _Member]) -> None:
        if all(replica.progress.records for replica in stack.replicas):
            return
        for replica, values in zip(stack.replicas, stack.evaluate(), strict=True):
            if replica.progress.records == 0:
                record = first_record(replica.parts, replica.config, replica.progress, values)
                of[id(replica)].take(record)

    def _boundary(self, stack: Stack, fallen: Sequence[Replica], of: Mapping[int, _Member]) -> None:
        """Take in a step boundary: the ends of the ``fallen``, the records of the others."""
        going = [replica for replica in stack.replicas if not replica.progress.cause]
        due = bool(going) and record_due(going[0].config, going[0].progress)
        if due or fallen:
            stack.publish()
        values = [
            *(evaluate(replica.parts) for replica in fallen),
            *(stack.evaluate() if due else [None] * len(going)),
        ]
        for replica, found in zip([*fallen, *going], values, strict=True):
            record = boundary(replica.parts, replica.config, replica.progress, found)
            of[id(replica)].take(record)


def _unfinished(stack: Stack, of: Mapping[int, _Member]) -> list[Replica]:
    return [replica for replica in stack.replicas if not of[id(replica)].over]


def _released(members: Sequence[_Member], error: Exception) -> list[str]:
    """Let go of the members that are not over; their ids."""
    left = [member for member in members if not member.over]
    for member in left:
        member.release(error)
    return [member.run_id for member in left]
