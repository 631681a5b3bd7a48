"""Tensors that several processes would all compute alike, shared out among them: polar factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor


class Sharing(Protocol):
    """Processes that all ask for the same tensors, each of which one of them computes."""

    @property
    def world(self) -> int:
        """Processes."""
        ...

    def shared(
        self,
        units: Sequence[Sequence[Tensor]],
        costs: Sequence[float],
        compute: Callable[[int], Sequence[Tensor]],
    ) -> list[list[Tensor]]:
        """For every unit tensors shaped as its own, bit for bit the same in all processes.

        ``compute`` is asked for those of one unit, in one process. All tensors are of one dtype and
        on one device; ``costs`` of the units are in any unit.
        """
        ...


def owners(costs: Sequence[float], world: int) -> list[int]:
    """Which rank takes which unit: the costliest first, to whoever has least (LPT).

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
    units: Sequence[Sequence[Tensor]],
    chosen: Sequence[int],
    rank: int,
    compute: Callable[[int], Sequence[Tensor]],
    all_gather: Callable[[Tensor], Sequence[Tensor]],
) -> list[list[Tensor]]:
    """The tensors of all units, of which this ``rank`` computes those that ``chosen`` gives to it.

    ``all_gather`` gives every rank's vector for this rank's one, all of one length: the shorter
    ones are padded.
    """
    lengths: dict[int, int] = {}
    for unit, owner in zip(units, chosen, strict=True):
        lengths[owner] = lengths.get(owner, 0) + sum(map(Tensor.numel, unit))
    own = units[0][0].new_zeros(max(lengths.values()))
    mine = [index for index, owner in enumerate(chosen) if owner == rank]
    if mine:
        flat = torch.cat([z.reshape(-1) for index in mine for z in compute(index)])
        own[: len(flat)] = flat
    vectors = list(all_gather(own))
    found = []
    for unit, owner in zip(units, chosen, strict=True):
        sizes = [tensor.numel() for tensor in unit]
        *pieces, vectors[owner] = vectors[owner].split([*sizes, len(vectors[owner]) - sum(sizes)])
        found.append([z.view(tensor.shape) for z, tensor in zip(pieces, unit, strict=True)])
    return found
