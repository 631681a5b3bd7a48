"""Step-size rules: how far to go, given the learning rate and a linear model of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .replicas import Hyper


class LinearModel(NamedTuple):
    """What a step-size rule may know; all of shape (), or (K,) for K replicas."""

    value: Tensor | None  # f̄(x_t): the averaged linearizations of the loss at x_t, nats
    dual_norm: Tensor  # ‖m‖_*
    lower_bound: Tensor | None  # what the rule returned as such in the last step


class Step(NamedTuple):
    """What a step-size rule decides, in the shapes of ``LinearModel``."""

    tau: float | Tensor  # step size in [0, lr]
    lower_bound: Tensor | None = None  # an estimate to remember, nats
    # Whether τ is lr itself, bool: where it is not, any larger lr gives the same τ. None
    # for rules whose τ always depends on lr.
    capped: Tensor | None = None


class StepSize(Protocol):
    """τ from the learning rate and the model; pure. Replicas may have a learning rate each."""

    needs_loss: ClassVar[bool]
    needs_dual_norm: ClassVar[bool]

    def __call__(self, lr: Hyper, model: LinearModel, power: int) -> Step:
        """The step; ``power`` is 1 if constrained and 2 if regularized.

        A step of size τ decreases the model by τ ‖m‖_*^power.
        """
        ...


@dataclass(frozen=True)
class Constant:
    """τ = lr."""

    needs_loss: ClassVar[bool] = False
    needs_dual_norm: ClassVar[bool] = False

    def __call__(self, lr: Hyper, model: LinearModel, power: int) -> Step:
        return Step(lr)


@dataclass(frozen=True)
class Momo:
    """τ = min(lr, (f̄(x_t) - lower_bound)₊ / ‖m‖_*^power): the model truncated at a lower bound.

    (arXiv 2305.07583, Alg. 1; for any norm arXiv 2510.09827, Alg. 3.) ``lower_bound`` is one of the
    loss, in nats. The clip at zero matters: without it a bound above the model makes a step uphill.
    """

    needs_loss: ClassVar[bool] = True
    needs_dual_norm: ClassVar[bool] = True
    lower_bound: Hyper | None

    def __post_init__(self) -> None:
        _check_lower_bound("Momo", self.lower_bound)

    def __call__(self, lr: Hyper, model: LinearModel, power: int) -> Step:
        assert model.value is not None and self.lower_bound is not None
        tau = truncated(lr, model.value - self.lower_bound, model.dual_norm**power)
        return Step(tau, capped=tau >= lr)


@dataclass(frozen=True)
class MomoStar:
    """Momo with the bound estimated (arXiv 2305.07583, section 4): b never falls below ``floor``.

    Where the model lies below b, b is halved towards it first. After the step b is the model's
    value less half of its decrease, f̄(x_t) - τ ‖m‖_*^power / 2. One bound for all layers.
    """

    needs_loss: ClassVar[bool] = True
    needs_dual_norm: ClassVar[bool] = True
    floor: Hyper | None  # nats

    def __post_init__(self) -> None:
        _check_lower_bound("MomoStar", self.floor)

    def __call__(self, lr: Hyper, model: LinearModel, power: int) -> Step:
        assert model.value is not None and self.floor is not None
        bound = model.lower_bound
        if bound is None:
            bound = torch.zeros_like(model.value) + self.floor
        halved = (model.value / 2).clamp(min=self.floor)
        bound = torch.where(model.value < bound, halved, bound)
        decrease = model.dual_norm**power
        tau = truncated(lr, model.value - bound, decrease)
        return Step(tau, (model.value - tau * decrease / 2).clamp(min=self.floor), tau >= lr)


@dataclass(frozen=True)
class Clip:
    """τ = lr min(1, ρ / ‖m‖_*): steps of length lr min(ρ, ‖m‖_*) (GGNC, arXiv 2506.01913, Alg. 1).

    Far away, where ‖m‖_* > ρ, the step is that of constrained descent with lr ρ; near, that of
    regularized descent with lr.
    """

    needs_loss: ClassVar[bool] = False
    needs_dual_norm: ClassVar[bool] = True
    rho: Hyper

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ConfigError(f"Clip.rho must be above 0, not {self.rho}.")

    def __call__(self, lr: Hyper, model: LinearModel, power: int) -> Step:
        if power != 2:
            raise ConfigError("Clip is a rule for kind: regularized.")
        return Step(lr * (self.rho / model.dual_norm).clamp(max=1.0))


def truncated(cap: Hyper, gap: Tensor, decrease: Tensor) -> Tensor:
    """min(cap, gap₊ / decrease): the step at which a linear model reaches its bound."""
    tiny = torch.finfo(decrease.dtype).tiny
    return (gap.clamp(min=0) / decrease.clamp(min=tiny)).clamp(max=cap)


def _check_lower_bound(name: str, lower_bound: Hyper | None) -> None:
    if lower_bound is None:
        raise ConfigError(
            f"{name} needs a lower bound of the loss, in nats, and the dataset's YAML file states"
            " none: set dataset.loss_lower_bound, or take a method without Momo."
        )
