"""Which runs can be stacked, and how many together. Nothing here imports torch."""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..config import Run

TOO_BRIEF = "too short for a probe"  # why runs are not stacked
# Of the section train: where the weights start, and what is looked at after each step.
_OF_EACH_RUN = ("init", "init_seed", "clip_norm", "max_weight_growth", "diverged_after")
_FIXED = "polar"  # the numbers below this key are the coefficients of an iteration, not of a run
_WORTH = 0.99  # of the time: what a further cut must come below
_FULL = 1.02  # of the time that no cut can come below: good enough
_GUESS = 0.5  # gain of a stack that nobody measured, as a share of its size
_SMALL, _LARGE = 8, 32  # sizes that a probe tries; what fills a core, or a cache, is full before
_STEPS = 6  # of a stack, until a probe knows how long one takes
_SHARE = 0.04  # of the time of the runs that a probe may take: it may be for nothing


def kind(run: Run) -> str:
    """Canonical JSON of what runs must agree in to be stacked.

    Left out is what each of them may have for itself: the seed, the schedule, the numbers of the
    optimizer (not whole ones, which are structure, as are words, true, false and null), the lower
    bound of the loss, which is a number of the optimizer too, and the initial weights and bounds of
    the section ``train``.
    """
    config = {key: run.config[key] for key in run.config if key not in ("seed", "schedule")}
    config["optimizer"] = _structure(config["optimizer"])
    config["dataset"] = _without(config["dataset"], ("loss_lower_bound",))
    config["train"] = _without(config["train"], _OF_EACH_RUN)
    return json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _structure(node: Any) -> Any:
    """``node`` with 0.0 for every float."""
    if isinstance(node, Mapping):
        return {key: each if key == _FIXED else _structure(each) for key, each in node.items()}
    if isinstance(node, list):
        return [_structure(each) for each in node]
    return 0.0 if isinstance(node, float) else node


def _without(section: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key not in keys}


def by_kind(runs: Sequence[Run]) -> list[list[Run]]:
    """The runs by kind, in the order in which they stand."""
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(kind(run), []).append(run)
    return list(kinds.values())


def sizes_to_try(runs: int) -> list[int]:
    """Sizes of stacks that a probe tries for a worker with so many runs, two or more."""
    largest = min(runs, _LARGE)
    return sorted({min(_SMALL, largest), largest})


def probe_allowance(runs: int, steps: int) -> float:
    """Steps of one run that a probe may take for a worker with ``runs`` of ``steps`` steps each."""
    return _SHARE * runs * steps


def probe_cost(size: int, gain: float = 1.0) -> float:
    """Steps of one run that it takes to try a stack, of which a smaller one had this ``gain``."""
    return _STEPS * size / gain


@dataclass(frozen=True)
class Group:
    """Runs of one kind, of which at most ``size`` are to be trained together."""

    runs: Sequence[Run]
    size: int
    gain: float | None = None  # of a stack of that size over its runs one by one; None: unknown
    seconds: float = 1.0  # a step of one run; matters in comparison with other groups alone

    def time(self, count: int) -> float:
        """What a stack of ``count`` takes: linear from one run to ``size`` of them."""
        alone = self.seconds * max(run.train.steps for run in self.runs)
        if self.size == 1:
            return alone * count
        gain = max(1.0, _GUESS * self.size) if self.gain is None else self.gain
        return alone * (1 + (count - 1) * (self.size / gain - 1) / (self.size - 1))

    def gain_of(self, count: int) -> float | None:
        """Of a stack of ``count`` over its runs one by one, by the probe; None without one."""
        return None if self.gain is None else count * self.time(1) / self.time(count)


def stacks(groups: Sequence[Group], workers: int) -> list[tuple[Run, ...]]:
    """Stacks for a queue that ``workers`` processes work off, those that take longest first.

    No stack is larger than its group allows, and those of one group are of the same size, give or
    take one. They are cut smaller than allowed where that lets the last worker end earlier.
    """
    counts = [math.ceil(len(group.runs) / group.size) for group in groups]
    best, late = _schedule(groups, counts, workers)
    while best > _FULL * _work(groups, counts) / workers:
        tried = [
            [*counts[:index], count, *counts[index + 1 :]]
            for index in late
            # Not only one more: with two workers, three stacks are as bad as four of that size.
            for count in range(counts[index] + 1, counts[index] + workers + 1)
            if count <= len(groups[index].runs)
        ]
        found = [(*_schedule(groups, each, workers), each) for each in tried]
        if not found or not (closest := min(found, key=lambda each: each[0]))[0] < _WORTH * best:
            break
        best, late, counts = closest
    cut = [
        (group.time(len(part)), part)
        for group, count in zip(groups, counts, strict=True)
        for part in even(group.runs, count)
    ]
    return [part for _, part in sorted(cut, key=lambda each: -each[0])]


def _schedule(
    groups: Sequence[Group], counts: Sequence[int], workers: int
) -> tuple[float, list[int]]:
    """When the last worker ends, and the groups whose stacks it has trained.

    Each worker takes the longest stack that is left, as soon as it is idle.
    """
    times = [
        (group.time(size), index)
        for index, (group, count) in enumerate(zip(groups, counts, strict=True))
        for size in _sizes(len(group.runs), count)
    ]
    idle: list[tuple[float, int]] = [(0.0, worker) for worker in range(workers)]
    trained: list[set[int]] = [set() for _ in range(workers)]
    for time, index in sorted(times, reverse=True):
        ends, worker = heapq.heappop(idle)
        trained[worker].add(index)
        heapq.heappush(idle, (ends + time, worker))
    ends, worker = max(idle)
    return ends, sorted(trained[worker])


def _work(groups: Sequence[Group], counts: Sequence[int]) -> float:
    """What one worker would take for all."""
    return sum(
        group.time(size)
        for group, count in zip(groups, counts, strict=True)
        for size in _sizes(len(group.runs), count)
    )


def _sizes(total: int, parts: int) -> list[int]:
    whole, left = divmod(total, parts)
    return [whole + 1] * left + [whole] * (parts - left)


def even(runs: Sequence[Run], parts: int) -> list[tuple[Run, ...]]:
    """``runs`` in ``parts`` of the same size, give or take one, in their order."""
    start, made = 0, []
    for size in _sizes(len(runs), parts):
        made.append(tuple(runs[start : start + size]))
        start += size
    return made


def packs(runs: Sequence[Run], most: int) -> list[tuple[Run, ...]]:
    """Packs of at most ``most`` runs, those of one kind together and few kinds in one pack.

    A kind is cut only where it does not fit into one pack; what is left of the room in a pack goes
    to the largest other part that fits.
    """
    parts = [part for same in by_kind(runs) for part in even(same, math.ceil(len(same) / most))]
    made: list[list[Run]] = []
    for part in sorted(parts, key=len, reverse=True):
        fitting = [pack for pack in made if len(pack) + len(part) <= most]
        if fitting:
            max(fitting, key=len).extend(part)
        else:
            made.append([*part])
    return [tuple(pack) for pack in made]
