"""How many runs of a kind are worth to be trained together: found by trying, for a moment."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ..attempt import prepare_process
from ..build import build, optimizer_of
from ..config import Run, Settings, TrainConfig
from ..diagnostics import Gauge
from ..store import RunStore
from ..train import Parts, Progress, random_states, train
from .grouping import TOO_BRIEF, probe_allowance, probe_cost, sizes_to_try
from .memory import free_memory, most_that_fit
from .stack import CannotStack, Replica, Stack

WORTH = 1.1  # times as fast as one run after the other, below which nothing is stacked
_ROUNDS, _MOST, _FOR = 3, 25, 0.2  # rounds of a step of each, at least and at most, and seconds
_BUSY = 0.1  # seconds of a step of one run, for which launching its kernels cannot matter
_ENDLESS = 10**9  # steps
_ABOUT_LEVEL = 0.97  # of the gain of smaller stacks: larger ones have fewer costs beside the steps


@dataclass(frozen=True)
class Choice:
    """The size of the stacks of a kind."""

    size: int
    gain: float  # times as fast as the same runs one by one
    reason: str  # for the size 1


def choose_size(
    run_ids: Sequence[str], store: RunStore, settings: Settings, most: int, workers: int = 1
) -> Choice:
    """The best size, ``most`` at most, of stacks of these frozen runs, which are of one kind.

    By some steps of throw-away replicas, alone and in stacks, in the process and on the device that
    will train them, with the memory that one of ``workers`` processes has. Nothing is written.
    """
    device = prepare_process(settings)
    run = store.load(run_ids[0])
    parts = build(run, device)
    fit = most_that_fit(parts, free_memory(device, workers))
    if fit == 1:
        return Choice(1, 1.0, "two of them do not fit into memory")
    runs = min(most, len(run_ids))
    try:
        config = replace(run.train, steps=_ENDLESS, eval_every=_ENDLESS)
        return _tried(
            config,
            _copies(run, parts),
            sizes_to_try(min(runs, fit or runs)),
            probe_allowance(runs, run.train.steps),
        )
    except CannotStack as error:
        return Choice(1, 1.0, str(error))


def _tried(
    config: TrainConfig, copied: Callable[[], Parts], sizes: Sequence[int], allowance: float
) -> Choice:
    best = Choice(1, 1.0, TOO_BRIEF)
    for size in sizes:
        allowance -= probe_cost(size, best.gain)
        if allowance < 0:
            return best
        gain = _gain(config, copied, size)
        if gain < WORTH:  # what does not pay for few does not for many
            return best if best.size > 1 else Choice(1, gain, f"no gain: {gain:.2g}x")
        if gain > _ABOUT_LEVEL * best.gain:
            best = Choice(size, gain, "")
    return best


def _gain(config: TrainConfig, copied: Callable[[], Parts], size: int) -> float:
    """How many times as fast as alone ``size`` replicas take their steps in a stack.

    Raises:
        CannotStack: there is nothing to try, or a step takes too long for a stack to pay.
    """
    steps = train(copied(), config, _begun())
    alone = _seconds(lambda: next(steps))
    if alone > _BUSY:
        raise CannotStack(f"a step takes {alone:.2g} s, which keeps the device busy")
    stack = Stack([_replica(config, copied()) for _ in range(size)])
    _seconds(stack.advance)  # the first makes what the others use
    one, all_of_them, started = [], [], time.perf_counter()
    while len(one) < _ROUNDS or (len(one) < _MOST and time.perf_counter() - started < _FOR):
        one.append(_seconds(lambda: next(steps)))
        all_of_them.append(_seconds(stack.advance))
    # The fastest of each: whatever else the machine does only adds. K runs take no less than one.
    return min(size * min(one) / min(all_of_them), float(size))


def _replica(config: TrainConfig, parts: Parts) -> Replica:
    gauge = Gauge(parts.optimizer, lambda step: False)
    return Replica(config, parts, _begun(), gauge, random_states())


def _begun() -> Progress:
    """Of a training that has its first record, and that no loss ends."""
    return Progress(records=1, initial_loss=math.inf)


def _copies(run: Run, parts: Parts) -> Callable[[], Parts]:
    """What makes replicas that stay where they are, so that none of their steps can fail."""
    make = optimizer_of(run)

    def copied() -> Parts:
        model = copy.deepcopy(parts.model)
        optimizer = make(model)
        for group in optimizer.param_groups:
            group["initial_lr"] = 0.0
        return replace(parts, model=model, optimizer=optimizer)

    return copied


def _seconds(action: Callable[[], object]) -> float:
    _synchronize()
    started = time.perf_counter()
    action()
    _synchronize()
    return time.perf_counter() - started


def _synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
