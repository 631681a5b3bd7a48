"""Replicas: runs that are stacked along a leading axis, with hyperparameters of their own.

A hyperparameter is a number where all replicas agree, and a tensor (K,) where they do not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

Hyper = float | Tensor  # of all replicas, or float64, (K,), of each


def spread(value: Hyper, axes: int, dtype: torch.dtype) -> Hyper:
    """``value`` for tensors (..., K, ·) of ``dtype`` with ``axes`` axes after that of the replicas.

    In float32 at least, as torch takes a number: in bfloat16 1 - 1e-3 is 1.
    """
    if not isinstance(value, Tensor):
        return value
    return value.to(torch.promote_types(dtype, torch.float32)).view(-1, *[1] * axes)


def vector(values: Sequence[float], device: torch.device) -> Hyper:
    """One number if they agree, else all, (K,), without waiting for a GPU to take them."""
    if len(set(values)) == 1:
        return values[0]
    found = torch.tensor(values, dtype=torch.float64, pin_memory=device.type == "cuda")
    return found.to(device, non_blocking=True)


class Merged:
    """Makes the replicas' hyperparameters those of all, in dataclasses, sequences and mappings.

    Dataclasses that are equal in every replica become one object: tensors have no equality.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known: list[tuple[Sequence[Any], Any]] = []

    def __call__(self, replicas: Sequence[Any]) -> Any:
        """Raises ValueError where they differ in anything but numbers."""
        first = replicas[0]
        if all(other is first for other in replicas):
            return first
        if any(type(other) is not type(first) for other in replicas) and not _numbers(replicas):
            raise ValueError(f"Replicas differ in more than numbers: {set(map(repr, replicas))}.")
        if is_dataclass(first):
            return self._dataclass(replicas)
        if isinstance(first, Mapping):
            self._check_alike([list(other) for other in replicas])
            return {name: self([other[name] for other in replicas]) for name in first}
        if isinstance(first, list | tuple):
            self._check_alike([len(other) for other in replicas])
            return [self(of_all) for of_all in zip(*replicas, strict=True)]
        if _numbers(replicas) and any(isinstance(other, float) for other in replicas):
            return vector(list(map(float, replicas)), self._device)
        self._check_alike(replicas)
        return first

    def _dataclass(self, replicas: Sequence[Any]) -> Any:
        first = replicas[0]
        if all(other == first for other in replicas):
            return first
        for known, merged in self._known:
            if known == replicas:
                return merged
        merged = copy.copy(first)
        for field in fields(first):
            of_all = [getattr(other, field.name) for other in replicas]
            if field.name == "polar":  # one iteration serves all replicas
                self._check_alike(of_all)
            # not by its constructor, which checks numbers: each replica's has
            object.__setattr__(merged, field.name, self(of_all))
        self._known.append((replicas, merged))
        return merged

    def _check_alike(self, values: Sequence[object]) -> None:
        if any(other != values[0] for other in values):
            raise ValueError(f"Replicas differ in more than numbers: {set(map(repr, values))}.")


def stacked_state(states: Sequence[Mapping[str, Any]], device: torch.device) -> dict[str, Any]:
    """The states of K replicas as one, their tensors stacked, (K, ...).

    Raises:
        ValueError: they have different names, or other values than tensors that are not the same.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for state in states for name in state):
        values = [state.get(name) for state in states]
        tensors = [value.to(device) for value in values if isinstance(value, Tensor)]
        if len(tensors) == len(values):
            found[name] = torch.stack(tensors)
        elif not tensors and all(value == values[0] for value in values):
            found[name] = values[0]
        else:
            raise ValueError(f"Replicas differ in the state '{name}': they are not of one age.")
    return found


def state_of(index: int, state: Mapping[str, Any]) -> dict[str, Any]:
    """That of one replica, its tensors views."""
    return {
        name: value[index] if isinstance(value, Tensor) else value for name, value in state.items()
    }


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
