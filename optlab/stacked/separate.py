"""Replicas' optimizers one after the other, each on its views of the stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Separate:
    """Each replica's own optimizer on its views of the stacks.

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
