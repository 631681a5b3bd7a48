"""Processes that train runs together, for tests; they import torch once and serve many checks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from optlab.distributed import Ranks
from optlab.store import RunStore
from support import tiny

ENDS_WITHIN = 60.0  # seconds; an upper bound against hangs


@dataclass(frozen=True)
class Order:
    """One call of ``run_one`` in one process."""

    run_id: str
    root: Path
    ranks: Ranks | None
    settings: tuple[str, ...] = ()  # overrides of what is outside of a run's id
    at_step: int = -1  # where what comes next happens
    event: str = ""  # one of those in _sabotaged
    links: tuple[tuple[str, float], ...] = ()  # constants of optlab.link to shorten
    float64: bool = False  # the model, which must be one of text


@dataclass(frozen=True)
class Answer:
    """What came of an order."""

    status: str
    cause: str
    steps: tuple[int, ...]  # of the records that were reported


class Teamwork:
    """``count`` processes that take orders."""

    def __init__(self, count: int) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._workers = [self._start() for _ in range(count)]

    def run(
        self,
        run_id: str,
        store: RunStore,
        world: int,
        *,
        only: Sequence[int] = (),
        revive: int | None = None,
        **events: Any,
    ) -> list[Answer | int]:
        """Train a run in ``world`` processes; the answer of each, or its exit code if it died.

        ``rank_0``, ``rank_1``: what happens there, as keyword arguments of ``Order``; others
        concern all. ``only`` these ranks come. ``revive`` that one, stopped, for its answer.
        """
        launch = uuid.uuid4().hex[:12]
        own = {rank: events.pop(f"rank_{rank}", {}) for rank in range(world)}
        coming = list(only or range(world))
        for rank in coming:
            ranks = Ranks(rank, world, rank, launch) if world > 1 else None
            order = Order(run_id, store.root, ranks, **events)
            self._workers[rank][1].send(replace(order, **own[rank]))
        answers = {rank: self._answer(rank) for rank in coming if rank != revive}
        if revive is not None:
            pid = self._workers[revive][0].pid
            assert pid is not None
            os.kill(pid, signal.SIGCONT)
            answers[revive] = self._answer(revive)
        return [answers[rank] for rank in coming]

    def _answer(self, rank: int) -> Answer | int:
        process, connection = self._workers[rank]
        assert connection.poll(ENDS_WITHIN), f"rank {rank} hangs"
        try:
            return connection.recv()
        except EOFError:
            process.join(ENDS_WITHIN)
            self._workers[rank] = self._start()
            assert process.exitcode is not None
            return process.exitcode

    def _start(self) -> tuple[SpawnProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        return process, ours

    def close(self) -> list[int | None]:
        """The exit codes of the processes, None of those that do not end."""
        for _, connection in self._workers:
            connection.close()
        for process, _ in self._workers:
            process.join(ENDS_WITHIN / 4)
        codes = [process.exitcode for process, _ in self._workers]
        for process, _ in self._workers:
            process.kill()
            process.join()
        return codes


def serve(connection: Connection) -> None:
    """Carry out orders until the connection closes."""
    from optlab import attempt, link, run
    from optlab import stop as stopping

    build = attempt.build
    stop = stopping.StopFlag()
    stop.listen(signal.SIGTERM)
    usual = {name: getattr(link, name) for name in ("JOIN_WITHIN", "BEAT", "SILENT_AFTER", "GRACE")}
    while True:
        try:
            order: Order = connection.recv()
        except EOFError:
            return
        stop.is_set = False
        for name, value in {**usual, **dict(order.links)}.items():
            setattr(link, name, value)
        attempt.build = lambda *args, order=order, **kind: _sabotaged(build(*args, **kind), order)
        steps: list[int] = []
        outcome = run.run_one(
            order.run_id,
            RunStore(order.root),
            tiny(*order.settings)[1],
            stop=stop,
            report=lambda record, steps=steps: steps.append(record.step),
            ranks=order.ranks,
        )
        connection.send(Answer(outcome.status, outcome.cause, tuple(steps)))


def _sabotaged(parts: Any, order: Order) -> Any:
    """Parts whose batch of the step ``order.at_step`` makes the event happen."""

    def fail() -> None:
        raise MemoryError("80 GiB")

    if order.float64:
        parts.model.double()
    first = next(parts.model.parameters())
    happen: dict[str, Callable[..., object]] = {
        "raise": fail,
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "stop": lambda *_: os.kill(os.getpid(), signal.SIGSTOP),
        "stop in the backward pass": lambda: first.register_hook(happen["stop"]),
        "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "terminate and wait": lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(1)),
        "sleep": lambda: time.sleep(2 * ENDS_WITHIN),
        "drift": lambda: first.data.add_(1e-3),
    }
    train = parts.data.train

    def batch(step: int) -> Any:
        if step == order.at_step:
            happen[order.event]()
        return train(step)

    return replace(parts, data=replace(parts.data, train=batch))
