"""K small models with an optimizer each, and the stack of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from optlab.config import compose_run
from optlab.optim.roles import param_groups
from optlab.paths import CONF
from optlab.stacked.optimizers import Stepper, stepper
from optlab.stacked.separate import own_parameters

METHODS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
STEPS = 30
RATES = [1 - t / (2 * STEPS) for t in range(STEPS)]  # a schedule
HUGE, TINY, ZERO, RANK_ONE = 19, 11, 7, 13  # steps with such gradients

Make = Callable[[Any], torch.optim.Optimizer]


class Mixed(nn.Module):
    """Parameters of every role and number of axes; their gradients are given."""

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv2d(2, 3, 2)
        self.layers = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(2))
        self.out = nn.Linear(4, 6)
        self.gain = nn.Parameter(torch.randn(()))
        self.head = nn.Linear(6, 3)


class Replicas:
    """Models with their optimizers, each on its own until ``stack`` is called."""

    def __init__(
        self,
        makes: Sequence[Make],
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ) -> None:
        self.optimizers = []
        for k, make in enumerate(makes):
            torch.manual_seed(k)
            self.optimizers.append(make(param_groups(Mixed().to(device, dtype))))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]
        self.own = [own_parameters(optimizer) for optimizer in self.optimizers]
        self.stacks: list[Tensor] = []
        self.stepper: Stepper | None = None

    def stack(self) -> Replicas:
        self.stacks = [
            torch.stack([x.detach() for x in views]).requires_grad_()
            for views in zip(*self.own, strict=True)
        ]
        for stack, views in zip(self.stacks, zip(*self.own, strict=True), strict=True):
            for k, view in enumerate(views):
                view.data = stack.data[k]
        self.stepper = stepper(self.optimizers, self.stacks)
        return self

    def steps(self, times: Sequence[int], **changes: Any) -> Replicas:
        for t in times:
            self.step(t, **changes)
        return self

    def step(
        self,
        t: int,
        loss: Callable[[int, int], float] | None = None,
        gradients: Callable[[list[Tensor], int, int], list[Tensor | None]] | None = None,
    ) -> None:
        """Step ``t`` of all, with losses and gradients that depend on it and on the replica."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * RATES[t]
        losses = [
            torch.tensor((loss or loss_at)(k, t), dtype=torch.float64).to(self.own[k][0])
            for k in range(len(self.own))
        ]
        g = [(gradients or gradients_at)(own, k, t) for k, own in enumerate(self.own)]
        if self.stepper is None:
            for k, optimizer in enumerate(self.optimizers):
                for x, g_of_x in zip(self.own[k], g[k], strict=True):
                    x.grad = g_of_x
                optimizer.step(lambda k=k: losses[k])  # type: ignore[arg-type]
            return
        for stack, of_all in zip(self.stacks, zip(*g, strict=True), strict=True):
            given = [g_of_x for g_of_x in of_all if g_of_x is not None]
            stack.grad = torch.stack(given) if given else None
        self.stepper.step(torch.stack(losses))

    def publish(self) -> Replicas:
        assert self.stepper is not None
        self.stepper.publish()
        return self

    def weights(self, k: int) -> Tensor:
        return torch.cat([x.detach().reshape(-1) for x in self.own[k]])


def gradients_at(parameters: list[Tensor], k: int, t: int) -> list[Tensor | None]:
    """Random; at some steps zero, tiny, huge, of rank one."""
    generator = torch.Generator().manual_seed(1000 * k + t)
    factor = {ZERO: 0.0, TINY: 1e-20, HUGE: 1e4}.get(t, 1.0)
    found: list[Tensor | None] = []
    for x in parameters:
        g = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        if t == RANK_ONE and g.dim() == 2:
            g = g[:, :1] * g[:1]
        found.append((factor * g).to(x))
    return found


def loss_at(k: int, t: int) -> float:
    return 0.5 + ((7 * k + 3 * t) % 11) / 11


def solo(method: str, **changes: Any) -> Make:
    """A method of conf/optimizer, with ``changes`` at the top of its config."""
    return instantiate({**_config(method), **changes}, _convert_="all")


def varied(method: str, count: int) -> list[Make]:
    """One in which the replicas differ in every number that may differ."""
    return [instantiate(_varied(_config(method), k), _convert_="all") for k in range(count)]


@lru_cache
def _config(method: str) -> dict[str, Any]:
    run, _ = compose_run([f"optimizer={method}", "dataset.loss_lower_bound=0.1"])
    return dict(run.config["optimizer"])


def _varied(node: Any, k: int) -> Any:
    if isinstance(node, dict):
        return {key: value if key == "polar" else _varied(value, k) for key, value in node.items()}
    if isinstance(node, list):
        return [_varied(value, k) for value in node]
    if not isinstance(node, float):
        return node
    if node == 0.0:
        return 0.02 * k  # the first replica without weight decay
    if 0.5 <= node < 1.0:  # weights of the past
        return node * (1 - 0.02 * k)
    return node * (1 + 0.1 * k)
