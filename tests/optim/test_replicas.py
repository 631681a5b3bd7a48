"""Steepest descent with an axis of replicas: every option, and numbers of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from optim.problems import EXACT, METHODS, Synchronizations, everywhere
from optlab.optim import SteepestDescent
from optlab.optim.norms import L2, Ada2, AdaInf, ColumnL2, Linf, Rms, RowL2, Spectral
from optlab.optim.polar import SVD, Jordan, PolarExpress, Turbo
from optlab.optim.product import Euclidean, Group, Hybrid, Max, Nested
from optlab.optim.replicas import Merged, spread, stacked_state, vector
from optlab.optim.roles import Assignment
from optlab.optim.stepsize import Clip, Constant, Momo, MomoStar
from stacked.replicas import Make, Replicas

CPU = torch.device("cpu")
DEFAULTS: dict[str, Any] = {
    "norms": Assignment(EXACT, AdaInf()),
    "kind": "constrained",
    "product": Max(),
    "step_size": Constant(),
}
REGULARIZED: dict[str, Any] = {
    "norms": Assignment(EXACT, Ada2()),
    "kind": "regularized",
    "product": Hybrid(),
    "lr": 1.0,
}
DEEP = Nested(
    Euclidean(),
    [Group(["matrix"], Max()), Group(["conv", "embedding", "head", "vector"], Euclidean())],
)
# options of a replica, whose numbers are multiples of f
OPTIONS: dict[str, Callable[[float], dict[str, Any]]] = {
    "blocks": lambda f: {
        "norms": Assignment(
            Spectral(scale=f, blocks=2, polar=SVD()),
            AdaInf(scale=f, beta2=0.9 / f, eps=1e-3 * f),
            conv=Rms(scale=f),
        )
    },
    "exceptions by name": lambda f: {
        "norms": Assignment(
            EXACT,
            RowL2(scale=f),
            head=ColumnL2(scale=2 * f),
            by_name={"out.weight": Linf(scale=f, shape="inputs")},
        )
    },
    "stale": lambda f: {**REGULARIZED, "step_size": Momo(0.1 * f), "nuclear_norm": "stale"},
    "frobenius": lambda f: {
        **REGULARIZED,
        "norms": Assignment(
            Spectral(scale=f, polar=SVD()), Ada2(scale=f, beta2=0.9 / f, eps=1e-3 * f)
        ),
        "step_size": Momo(0.1 * f),
        "nuclear_norm": "frobenius",
    },
    "nested": lambda f: {**REGULARIZED, "product": DEEP, "step_size": Momo(0.1 * f)},
    "decay by lr": lambda f: {"step_size": Momo(0.1 * f), "decay_by": "lr", "lr": 0.5},
    "decay by step": lambda f: {"step_size": Momo(0.1 * f), "decay_by": "step", "lr": 0.5},
    "bernstein after the norm": lambda f: {"step_shape": "bernstein"},
    "bernstein in the norm": lambda f: {
        "norms": Assignment(Spectral(scale=f, shape="bernstein", polar=SVD()), L2(scale=f))
    },
    "clip": lambda f: {**REGULARIZED, "step_size": Clip(0.5 * f), "lr": 0.02},
    "estimated bound": lambda f: {**REGULARIZED, "step_size": MomoStar(0.01 * f)},
    "ema_zero": lambda f: {"momentum_form": "ema_zero"},
    "ema_unbiased": lambda f: {
        **REGULARIZED,
        "momentum_form": "ema_unbiased",
        "step_size": Momo(0.1 * f),
    },
    "nesterov": lambda f: {"momentum_form": "nesterov"},
    "heavy ball": lambda f: {"momentum_form": "heavy_ball", "norms": everywhere(Linf(scale=f))},
    "heavy ball, nesterov": lambda f: {
        "momentum_form": "heavy_ball_nesterov",
        "norms": everywhere(EXACT),
    },
    "turbo": lambda f: {"norms": Assignment(Spectral(scale=f, polar=Turbo()), Linf())},
}


def make(
    k: int = 0, options: Callable[[float], dict[str, Any]] = lambda f: {}, **changes: Any
) -> Make:
    """The ``k``-th replica's optimizer: its learning rate, decay and momentum are its own too."""

    def of_groups(groups: Any) -> SteepestDescent:
        f = 1 + 0.1 * k
        arguments = {**DEFAULTS, **options(f), **changes}
        lr = arguments.pop("lr", 0.02) * f
        return SteepestDescent(groups, lr, 0.9 / f, 0.05 * k, **arguments)

    return of_groups


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option_acts_on_each_replica_as_on_one_alone(
    options: Callable[[float], dict[str, Any]],
) -> None:
    makes = [make(k, options) for k in range(3)]
    separate = Replicas(makes).steps(range(14))
    together = Replicas(makes).stack().steps(range(14)).publish()

    for k, (alone, stacked) in enumerate(
        zip(separate.optimizers, together.optimizers, strict=True)
    ):
        torch.testing.assert_close(together.weights(k), separate.weights(k), rtol=1e-9, atol=1e-12)
        first, other = alone.param_groups[0], stacked.param_groups[0]
        assert float(other["dual_norm"]) == pytest.approx(float(first["dual_norm"]), rel=1e-9)
        assert float(other["step_size"]) == pytest.approx(float(first["step_size"]), rel=1e-9)


def test_the_polar_factors_of_stacks_can_be_shared_out() -> None:
    class Everything:
        """Both processes in one."""

        world = 2

        def shared(self, units: Any, costs: Sequence[float], compute: Any) -> list[list[Tensor]]:
            asked.extend(costs)
            return [list(compute(number)) for number in range(len(units))]

    asked: list[float] = []
    alone, shared = (Replicas([make(k) for k in range(3)]) for _ in range(2))
    for optimizer in shared.optimizers:
        assert isinstance(optimizer, SteepestDescent)
        optimizer.sharing = Everything()
    alone.stack().steps(range(4))
    shared.stack().steps(range(4))

    assert all(torch.equal(shared.weights(k), alone.weights(k)) for k in range(3))
    # of 3 replicas: a 3 x 8 convolution; two 4 x 4 and a 6 x 4, which are iterated together
    assert sorted(asked[:2]) == [3 * 72, 3 * (2 * 64 + 96)]


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_stacked_step_never_waits_for_the_device(method: dict[str, Any]) -> None:
    """SVD replaced, which does."""
    norms = method.get("norms", DEFAULTS["norms"])
    if norms.matrix == EXACT:
        norms = replace(norms, matrix=Spectral(polar=PolarExpress()))
    changes = {name: value for name, value in method.items() if name != "weight_decay"}
    changes.pop("lr", None)
    replicas = Replicas([make(k, **{**changes, "norms": norms}) for k in range(3)]).stack()
    for t in range(3):
        with Synchronizations() as counter:
            replicas.step(t)
        assert counter.found == []


def test_numbers_that_agree_stay_numbers() -> None:
    """And those that do not become one tensor a dataclass, equal in all that share it."""
    replicas = [
        Assignment(AdaInf(beta2=0.9, eps=1e-8 * k), AdaInf(beta2=0.9, eps=1e-8 * k)) for k in (1, 2)
    ]
    merged = Merged(CPU)(replicas)

    assert merged.matrix is merged.others
    assert merged.matrix.beta2 == 0.9 and merged.matrix.scale == 1.0
    assert merged.matrix.eps.tolist() == [1e-8, 2e-8]
    assert Merged(CPU)([replicas[0], replicas[0]]) is replicas[0]
    assert Merged(CPU)([1, 1.0]) == 1 and Merged(CPU)([1, 2.5]).tolist() == [1.0, 2.5]
    assert vector([0.5, 0.5], CPU) == 0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lr", "step"),
        (1, 2),
        (True, False),
        (None, 0.5),
        ([0.9], [0.9, 0.5]),
        ({"a": 0.5}, {"b": 0.5}),
        (L2(), Rms()),
        (Linf(shape="one"), Linf(shape="inputs")),
        (Spectral(blocks=1), Spectral(blocks=2)),
        (Spectral(polar=Jordan(5)), Spectral(polar=Jordan(6))),
        (Spectral(polar=PolarExpress(safety=1.01)), Spectral(polar=PolarExpress(safety=1.02))),
    ],
    ids=str,
)
def test_what_is_no_number_must_agree(one: object, other: object) -> None:
    with pytest.raises(ValueError, match="differ in more than numbers"):
        Merged(CPU)([one, other])


def test_replicas_of_two_ages_are_refused() -> None:
    replicas = Replicas([make(0), make(1)])
    for x in replicas.own[0]:
        x.grad = torch.ones_like(x)
    replicas.optimizers[0].step()
    with pytest.raises(ValueError, match="not of one age"):
        replicas.stack()
    with pytest.raises(ValueError, match="not of one age"):
        stacked_state([{"m": torch.ones(2)}, {}], CPU)


def test_a_factor_keeps_its_precision_on_weights_in_bfloat16() -> None:
    """1 - 1e-3 is 1 in bfloat16: no weight would ever shrink."""
    factors = torch.tensor([1 - 1e-3, 0.5], dtype=torch.float64)
    found = spread(factors, 2, torch.bfloat16)

    assert isinstance(found, Tensor) and found.shape == (2, 1, 1)
    assert found[0].item() == pytest.approx(1 - 1e-3, abs=1e-6)
    assert spread(factors, 1, torch.float64).dtype == torch.float64  # type: ignore[union-attr]
    assert spread(0.25, 2, torch.float32) == 0.25
