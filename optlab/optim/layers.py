"""Parameters in stacks, so that one call of their norm serves many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from operator import is_
from typing import Any

import torch
from torch import Tensor

from .norms import Norm, Spectral
from .roles import Assigned, as_matrix

SMALL = 128  # shorter side up to which matrices of different shapes share products
CACHED = 2**20  # entries of a stack on a CPU: what a call reads and writes stays in its cache

State = dict[str, Any]


@dataclass(frozen=True)
class Average:
    """An average of the gradients of ``Layers``, in two views of the same memory."""

    of_each: list[Tensor]  # in the shapes of the parameters
    stacks: list[Tensor]  # (layers, *replicas, rows, columns) a shape


@dataclass(frozen=True)
class Layers:
    """Parameters that one call of their norm serves: of one norm, role, dtype and device.

    Those of one shape stand together, ``counts`` of each. ``replicas`` are their leading axes: ()
    or (K,), where each is a stack of the parameters of K replicas.
    """

    norm: Norm
    role: str
    x: list[Tensor]
    counts: list[int]
    replicas: tuple[int, ...] = ()
    averages: dict[str, Average] = field(default_factory=dict)  # by name, to find them again

    def by_shape(self, tensors: list[Tensor]) -> list[list[Tensor]]:
        """One tensor a parameter, as one list a shape."""
        if len(self.counts) == 1:
            return [tensors]
        ends = accumulate(self.counts)
        return [tensors[end - n : end] for n, end in zip(self.counts, ends, strict=True)]

    def stacks(self, tensors: list[Tensor]) -> list[Tensor]:
        """One tensor a parameter, as one stack (layers, *replicas, rows, columns) a shape."""
        return [self._as_matrices(torch.stack(same)) for same in self.by_shape(tensors)]

    def average(self, name: str, states: list[State]) -> Average:
        """The average ``name`` of each state, which lie in one piece from now on; first zeros."""
        known = self.averages.get(name)
        tensors = [state.get(name) for state in states]
        if known and all(map(is_, known.of_each, tensors)):
            return known
        new = self.averages[name] = self._zeros()
        for state, of_x, old in zip(states, new.of_each, tensors, strict=True):
            state[name] = of_x if old is None else of_x.copy_(old)
        return new

    def _zeros(self) -> Average:
        pieces = [same[0].new_zeros(len(same), *same[0].shape) for same in self.by_shape(self.x)]
        stacks = [self._as_matrices(piece) for piece in pieces]
        return Average([of_x for piece in pieces for of_x in piece.unbind()], stacks)

    def _as_matrices(self, piece: Tensor) -> Tensor:
        shape = piece.shape[1 + len(self.replicas) :]
        return piece.view(len(piece), *self.replicas, *as_matrix(shape))

    def dualize(self, m: Sequence[Tensor], v: Sequence[Tensor] | None) -> list[Tensor]:
        """The norm's dualizer, on ``stacks``."""
        if isinstance(self.norm, Spectral):
            return self.norm.dualize_together(m)
        return [self.norm.dualize(m_, v_) for m_, v_ in zip(m, v or [None] * len(m), strict=True)]


@dataclass(frozen=True)
class Ready:
    """Layers with a gradient each, after ``age`` earlier ones."""

    layers: Layers
    g: list[Tensor]
    states: list[State]
    age: int


def arranged(
    parameters: Iterable[Tensor], cards: Iterable[Assigned], replicas: tuple[int, ...] = ()
) -> list[Layers]:
    """The parameters, those together that one call of their norm can serve."""
    found: dict[tuple[object, ...], list[Tensor]] = {}
    norms: dict[tuple[object, ...], tuple[Norm, str]] = {}
    for x, card in zip(parameters, cards, strict=True):
        key = (card.norm, card.role, _served_together(card.norm, card.shape), x.dtype, x.device)
        norms[key] = card.norm, card.role
        found.setdefault(key, []).append(x)
    return [_layers(*norms[key], part, replicas) for key, x in found.items() for part in _parts(x)]


def ready(layers: Layers, state: Mapping[Tensor, State]) -> list[Ready]:
    """Those with a gradient, by the number of gradients so far."""
    x = [x for x in layers.x if x.grad is not None]
    g = [x.grad for x in x if x.grad is not None]
    states = [state[x] for x in x]
    ages = [state.get("age", 0) for state in states]
    if len(x) == len(layers.x) and len(set(ages)) == 1:
        return [Ready(layers, g, states, ages[0])]
    found = []
    for age in dict.fromkeys(ages):
        of_age = [i for i, other in enumerate(ages) if other == age]
        some = _layers(layers.norm, layers.role, [x[i] for i in of_age], layers.replicas)
        found.append(Ready(some, [g[i] for i in of_age], [states[i] for i in of_age], age))
    return found


def _layers(norm: Norm, role: str, x: list[Tensor], replicas: tuple[int, ...]) -> Layers:
    counts = [len(list(same)) for _, same in groupby(x, lambda x: x.shape)]
    return Layers(norm, role, x, counts, replicas=replicas)


def _served_together(norm: Norm, shape: Sequence[int]) -> tuple[int, ...]:
    """What parameters of ``norm`` have in common if one call serves them."""
    if not isinstance(norm, Spectral):
        return tuple(shape)
    rows, columns = as_matrix(shape)
    short = min(rows // norm.blocks, columns)
    return (short,) if short <= SMALL else tuple(shape)


def _parts(x: Iterable[Tensor]) -> list[list[Tensor]]:
    """``x`` by shape, on a CPU in parts of one parameter or at most ``CACHED`` entries."""
    parts: list[list[Tensor]] = []
    for tensor in sorted(x, key=lambda tensor: tensor.shape):
        entries = sum(other.numel() for other in parts[-1]) if parts else 0
        if parts and (tensor.device.type != "cpu" or entries + tensor.numel() <= CACHED):
            parts[-1].append(tensor)
        else:
            parts.append([tensor])
    return parts
