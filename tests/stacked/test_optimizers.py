"""Stacked optimizers do what the replicas' own optimizers do, each on its own."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from optlab.config import compose_run
from optlab.optim.roles import param_groups
from optlab.paths import CONF
from optlab.stacked.optimizers import Stepper, stepper

METHODS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
STEPS = 30
every_method = pytest.mark.parametrize("method", METHODS)


class Mixed(nn.Module):
    """Parameters of every role and number of axes; gradients are given, so it needs no forward."""

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(2, 3, 2)
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.out = nn.Linear(4, 6)
        self.gain = nn.Parameter(torch.randn(()))
        self.head = nn.Linear(6, 3)


def config_of(method: str) -> dict[str, Any]:
    run, _ = compose_run([f"optimizer={method}", "dataset.loss_lower_bound=0.1"])
    return dict(run.config["optimizer"])


def varied(node: Any, k: int) -> Any:
    """Every number of a method's config but the polar factor's, another in every replica ``k``."""
    if isinstance(node, dict):
        return {key: value if key == "polar" else varied(value, k) for key, value in node.items()}
    if isinstance(node, list):
        return [varied(value, k) for value in node]
    if not isinstance(node, float):
        return node
    if node == 0.0:
        return 0.02 * k  # replica 0 without weight decay
    if 0.5 <= node < 1:  # a weight of the past
        return node * (1 - 0.02 * k)
    return node * (1 + 0.1 * k)


class Replicas:
    """K solo models with their optimizers, and stacks of their parameters."""

    def __init__(self, config: dict[str, Any], count: int, vary: bool, dtype=torch.float64) -> None:
        self.models, self.optimizers = [], []
        for k in range(count):
            torch.manual_seed(k)
            model = Mixed().to(dtype)
            make = instantiate(
                varied(config, k) if vary else copy.deepcopy(config), _convert_="all"
            )
            self.models.append(model)
            self.optimizers.append(make(param_groups(model)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.stacks: list[Tensor] = []
        self.stepper: Stepper | None = None

    def own(self, k: int) -> list[Tensor]:
        return [x for group in self.optimizers[k].param_groups for x in group["params"]]

    def stack(self) -> None:
        of_replicas = [self.own(k) for k in range(len(self.models))]
        self.stacks = [
            torch.stack([x.detach() for x in views]).requires_grad_()
            for views in zip(*of_replicas, strict=True)
        ]
        for stack, views in zip(self.stacks, zip(*of_replicas, strict=True), strict=True):
            for k, view in enumerate(views):
                view.data = stack.data[k]
        self.stepper = stepper(self.optimizers, self.stacks)

    def step(self, t: int) -> None:
        """One step, together where they are stacked."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1 - t / (2 * STEPS))
        gradients = [gradients_of(self.own(k), k, t) for k in range(len(self.models))]
        losses = [loss_of(k, t) for k in range(len(self.models))]
        if self.stepper is None:
            for k, optimizer in enumerate(self.optimizers):
                for x, g in zip(self.own(k), gradients[k], strict=True):
                    x.grad = g
                optimizer.step(lambda k=k: losses[k])
        else:
            for stack, of_replicas in zip(self.stacks, zip(*gradients, strict=True), strict=True):
                stack.grad = torch.stack(of_replicas)
            self.stepper.step(torch.stack(losses))

    def weights(self, k: int) -> Tensor:
        return torch.cat([x.detach().reshape(-1) for x in self.own(k)])


def gradients_of(parameters: list[Tensor], k: int, t: int) -> list[Tensor]:
    """Random; later also zero, tiny, huge, of rank one."""
    generator = torch.Generator().manual_seed(1000 * k + t)
    found = []
    for x in parameters:
        g = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        factor = {7: 0.0, 11: 1e-20, 19: 1e8}.get(t, 1.0)
        if t == 13 and g.dim() == 2:
            g = g[:, :1] * g[:1]
        found.append((factor * g).to(x.dtype))
    return found


def loss_of(k: int, t: int) -> Tensor:
    generator = torch.Generator().manual_seed(5000 + 1000 * k + t)
    return 0.5 + torch.rand((), generator=generator, dtype=torch.float64)


@every_method
@pytest.mark.parametrize("count", [1, 3, 8])
def test_stacked_steps_are_those_of_separate_optimizers(method: str, count: int) -> None:
    alone = Replicas(config_of(method), count, vary=True)
    together = Replicas(config_of(method), count, vary=True)
    together.stack()
    for t in range(STEPS):
        alone.step(t)
        together.step(t)
    for k in range(count):
        torch.testing.assert_close(together.weights(k), alone.weights(k), rtol=1e-9, atol=1e-11)
