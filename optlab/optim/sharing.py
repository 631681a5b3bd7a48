"""Tensors that several processes would all compute alike, shared out among them: polar factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

# From ascending indices of tensors to what they are.
Compute = Callable[[Sequence[int]], list[Tensor]]


class Sharing(Protocol):
    """Processes that all ask for the same tensors, each of which one of them computes."""

    @property
    def world(self) -> int:
        """Processes."""
        ...

    def shared(
        self, like: Sequence[Tensor], costs: Sequence[float], compute: Compute
    ) -> list[Tensor]:
        """All the tensors, bit for bit the same in all processes.

        Each is shaped as its one of ``like``, which are of one dtype and device; ``costs`` are in
        any unit. ``compute`` is asked for those of this process.
        """
        ...


def owners(costs: Sequence[float], world: int) -> list[int]:
    """Which rank takes which tensor: the costliest first, to whoever has least (LPT).

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
    like: Sequence[Tensor],
    chosen: Sequence[int],
    rank: int,
    compute: Compute,
    all_gather: Callable[[Tensor], Sequence[Tensor]],
) -> list[Tensor]:
    """All tensors, of which this ``rank`` computes those that ``chosen`` gives to it.

    ``all_gather`` gives every rank's vector for this rank's one, all of one length: the shorter
    ones are padded.
    """
    of_rank = {each: [i for i, owner in enumerate(chosen) if owner == each] for each in set(chosen)}
    length = max(sum(like[i].numel() for i in indices) for indices in of_rank.values())
    own = like[0].new_zeros(length)
    mine = of_rank.get(rank, [])
    if mine:
        flat = torch.cat([tensor.reshape(-1) for tensor in compute(mine)])
        own[: len(flat)] = flat
    vectors = all_gather(own)
    found: dict[int, Tensor] = {}
    for owner, indices in of_rank.items():
        sizes = [like[i].numel() for i in indices]
        pieces = vectors[owner][: sum(sizes)].split(sizes)
        found |= {i: piece.view(like[i].shape) for i, piece in zip(indices, pieces, strict=True)}
    return [found[i] for i in range(len(like))]
