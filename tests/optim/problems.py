"""A small network with a parameter of every role, and optimizers on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from optlab.optim import SteepestDescent
from optlab.optim.norms import L2, Ada2, AdaInf, Linf, Norm, Spectral
from optlab.optim.polar import SVD, PolarExpress
from optlab.optim.product import Euclidean, Hybrid, Max
from optlab.optim.roles import Assignment, param_groups
from optlab.optim.stepsize import Clip, Constant, Momo, MomoStar

EXACT = Spectral(polar=SVD())


class Net(nn.Module):
    """An embedding, a convolution, three matrices of two shapes, a norm's gain, biases, a head."""

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.conv = nn.Conv1d(6, 8, 3, padding=1)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.out = nn.Linear(8, 4, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(4, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(self.embedding(tokens).mT).mean(-1)
        for layer in self.layers:
            x = x + torch.tanh(layer(self.norm(x)))
        return self.head(self.out(x))


def net(dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(11, (16, 5), generator=generator)
    return tokens, tokens.sum(1) % 3


def descend(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Sequence[int],
    shift: float = 0.0,
) -> list[float]:
    """Train on the batches ``steps``; their losses plus ``shift``."""
    losses = []
    for step in steps:
        tokens, targets = batch(step)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens), targets) + shift
        loss.backward()
        optimizer.step(lambda loss=loss: loss)  # type: ignore[arg-type]
        losses.append(loss.item())
    return losses


def steepest(model: nn.Module, **changes: Any) -> SteepestDescent:
    """MuonAdam with the exact polar factor, unless ``changes`` say otherwise."""
    arguments: dict[str, Any] = {
        "params": param_groups(model),
        "lr": 0.02,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "norms": Assignment(EXACT, AdaInf()),
        "kind": "constrained",
        "product": Max(),
        "step_size": Constant(),
        **changes,
    }
    return SteepestDescent(**arguments)


def everywhere(norm: Norm) -> Assignment:
    return Assignment(norm, norm)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


class Synchronizations(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    OPERATIONS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.OPERATIONS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


METHODS: dict[str, dict[str, Any]] = {
    "muon_adam": {},
    "scion": {"norms": Assignment(EXACT, Linf())},
    "polargrad": {
        "norms": Assignment(EXACT, Ada2()),
        "kind": "regularized",
        "product": Euclidean(),
    },
    "muonmax": {"norms": Assignment(EXACT, Ada2()), "kind": "regularized", "product": Hybrid()},
    "muonmax_momo": {
        "norms": Assignment(EXACT, Ada2()),
        "kind": "regularized",
        "product": Hybrid(),
        "step_size": Momo(0.5),
        "lr": 1.0,
    },
    "muonmax_momo_stale": {
        "norms": Assignment(EXACT, Ada2()),
        "kind": "regularized",
        "product": Hybrid(),
        "step_size": Momo(0.5),
        "nuclear_norm": "stale",
    },
    "muon_adam_momo": {"step_size": Momo(0.5), "lr": 1.0},
    "momo_star": {
        "norms": everywhere(L2()),
        "kind": "regularized",
        "product": Euclidean(),
        "step_size": MomoStar(0.0),
        "lr": 1.0,
    },
    "momo_adam": {
        "norms": everywhere(Ada2()),
        "kind": "regularized",
        "product": Euclidean(),
        "step_size": Momo(0.0),
        "momentum_form": "ema_unbiased",
    },
    "ggnc": {
        "norms": Assignment(EXACT, Linf()),
        "kind": "regularized",
        "step_size": Clip(0.5),
    },
    "nesterov": {"momentum_form": "nesterov", "weight_decay": 0.1},
    "heavy_ball": {"momentum_form": "heavy_ball", "norms": Assignment(EXACT, Linf())},
    "polar_express": {"norms": Assignment(Spectral(polar=PolarExpress()), Ada2())},
}
