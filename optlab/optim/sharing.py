"""Work that several processes would all do alike, shared out among them: polar factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Work:
    """A tensor that any process can compute."""

    compute: Callable[[], Tensor]
    shape: torch.Size
    cost: float  # in any unit, the same for all works


class Sharing(Protocol):
    """Computes works, each in one of several processes that all call it with the same ones."""

    @property
    def world(self) -> int:
        """Processes."""
        ...

    def results(self, works: Sequence[Work], like: Tensor) -> list[Tensor]:
        """What the works compute, of the dtype and on the device of ``like``."""
        ...


def owners(costs: Sequence[float], world: int) -> list[int]:
    """Which rank takes which work: the costliest first, to whoever has least (LPT).

    The largest load is at most 4/3 of the best possible one (Graham 1969).
    """
    loads = [0.0] * world
    chosen = [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda index: -costs[index]):
        rank = min(range(world), key=loads.__getitem__)
        chosen[index] = rank
        loads[rank] += costs[index]
    return chosen


def gathered(
    works: Sequence[Work],
    like: Tensor,
    rank: int,
    world: int,
    all_gather: Callable[[Tensor], Sequence[Tensor]],
) -> list[Tensor]:
    """The results of all works, of which this ``rank`` computes its own.

    ``all_gather`` gives every rank's tensor for this rank's one, all being of one size: the shorter
    ones are padded.
    """
    chosen = owners([work.cost for work in works], world)
    sizes = [0] * world
    for work, owner in zip(works, chosen, strict=True):
        sizes[owner] += work.shape.numel()
    own = like.new_zeros(max(sizes))
    mine = [
        work.compute().reshape(-1)
        for work, owner in zip(works, chosen, strict=True)
        if owner == rank
    ]
    if mine:
        torch.cat(mine, out=own[: sizes[rank]])
    parts = [iter(part) for part in _cut(all_gather(own), works, chosen)]
    return [next(parts[owner]) for owner in chosen]


def _cut(
    gathered_parts: Sequence[Tensor], works: Sequence[Work], chosen: Sequence[int]
) -> list[list[Tensor]]:
    """Each rank's tensor as the results of its works, in their order."""
    cut = []
    for rank, part in enumerate(gathered_parts):
        shapes = [work.shape for work, owner in zip(works, chosen, strict=True) if owner == rank]
        pieces = part[: sum(shape.numel() for shape in shapes)].split(
            [shape.numel() for shape in shapes]
        )
        cut.append([piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)])
    return cut
