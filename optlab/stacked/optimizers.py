"""The optimizers of K replicas, taking their steps together on stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..optim import SteepestDescent
from ..optim.replicas import vector


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


class Separate:
    """Each replica's own optimizer on its views of the stacks, one after the other.

    For whatever is not known to act on each entry alone: exact by construction, since nothing is
    computed in another way than in a run of its own. An optimizer may mix the entries of a
    parameter (Muon) or all parameters (Momo), keep state outside of ``state``, or call its closure.
    """

    def __init__(
        self, solos: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor]
    ) -> None:
        self._solos = solos
        of_replicas = [own_parameters(solo) for solo in solos]
        self._stacks = list(zip(parameters, zip(*of_replicas, strict=True), strict=True))

    def step(self, losses: Tensor) -> None:
        for stack, views in self._stacks:
            gradients = [None] * len(views) if stack.grad is None else stack.grad.unbind()
            for view, gradient in zip(views, gradients, strict=True):
                view.grad = gradient
        for solo, loss in zip(self._solos, losses.unbind(), strict=True):
            solo.step(lambda loss=loss: loss)  # type: ignore[arg-type]  # torch types it as float
        for _, views in self._stacks:
            for view in views:
                view.grad = None

    def publish(self) -> None:
        """Nothing: the replicas' optimizers did the steps."""


def own_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """In the order of the groups."""
    return [x for group in optimizer.param_groups for x in group["params"]]
