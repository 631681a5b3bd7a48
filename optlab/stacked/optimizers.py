"""The optimizers of K replicas, taking their steps together on stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..optim import SteepestDescent
from ..optim.replicas import vector
from .flat import Flat, is_elementwise
from .separate import Separate


class Stepper(Protocol):
    """The optimizers of K replicas, taking their steps together.

    Before every step each group's ``lr`` is read from the replicas' own optimizers.
    """

    def step(self, losses: Tensor) -> None:
        """One step of all, from the gradients of the stacked parameters and ``losses``, (K,).

        Replicas do not touch each other: what is not finite in one stays there.
        """
        ...

    def publish(self) -> None:
        """Make the replicas' optimizers what they would be had each stepped alone.

        Their tensors may be views of the stacked ones, which go on changing.
        """
        ...


def stepper(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor]) -> Stepper:
    """A stepper of ``optimizers``, of any age, all the same.

    Their parameters are views of ``parameters``, (K, ...) each, in the order of their groups.

    Raises:
        ValueError: the optimizers differ in more than numbers, or in age.
    """
    steepest = [solo for solo in optimizers if isinstance(solo, SteepestDescent)]
    if len(steepest) == len(optimizers):
        return Steepest(steepest, parameters)
    if is_elementwise(optimizers):
        return Flat(optimizers, parameters)
    return Separate(optimizers, parameters)


class Steepest:
    """Steepest descent of all replicas: one optimizer on the stacks."""

    def __init__(self, solos: Sequence[SteepestDescent], parameters: Sequence[Tensor]) -> None:
        self._solos = solos
        self._whole = SteepestDescent.stacked(solos, parameters)
        self._device = parameters[0].device
        self.publish()  # the replicas' own averages are no longer needed

    def step(self, losses: Tensor) -> None:
        lr = vector([float(solo.lr()) for solo in self._solos], self._device)
        for group in self._whole.param_groups:
            group["lr"] = lr
        self._whole.step(lambda: losses)

    def publish(self) -> None:
        self._whole.scatter(self._solos)
