"""Stacked optimizers do what the replicas' own optimizers do, each on its own.

In float64. Where all is elementwise the bits agree; fused kernels, dot products, norms and products
of matrices may round in another order: 1e-9 relative after 30 steps, in which one gradient is 1e4
times the others.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from optlab.errors import ConfigError
from optlab.optim import SteepestDescent
from optlab.stacked.flat import Flat
from optlab.stacked.separate import Separate
from stacked.replicas import (
    METHODS,
    STEPS,
    Make,
    Replicas,
    gradients_at,
    loss_at,
    solo,
    varied,
)

MOST = 8
MIDWAY = 12
MIX_ENTRIES = ("momo_adam_official", "momo_official", "muon_torch")
CANNOT_RESUME = ("momo_adam_official", "momo_official")  # state outside of state_dict
# The replicas' own optimizers; or every entry moves by lr and its sign, wherever it lies. Elsewhere
# the same operations may be compiled otherwise for the last entries of a tensor (fused products).
BITWISE = (*MIX_ENTRIES, "lion", "signsgd")
every_method = pytest.mark.parametrize("method", METHODS)


class Snapshot(NamedTuple):
    """All that an optimizer has done, keeps and reports."""

    weights: Tensor
    state: dict[str, Any]
    dual_norms: dict[str, Tensor]


def snapshots(replicas: Replicas) -> list[Snapshot]:
    return [
        Snapshot(
            replicas.weights(k),
            copy.deepcopy(optimizer.state_dict()),
            optimizer.dual_norms_by_role() if isinstance(optimizer, SteepestDescent) else {},
        )
        for k, optimizer in enumerate(replicas.optimizers)
    ]


@cache
def alone(method: str) -> tuple[list[Snapshot], list[Snapshot]]:
    """Separate optimizers midway and after all steps."""
    replicas = Replicas(varied(method, MOST))
    return snapshots(replicas.steps(range(MIDWAY))), snapshots(replicas.steps(range(MIDWAY, STEPS)))


def assert_same(found: Replicas, expected: Sequence[Snapshot], rtol: float = 1e-9) -> None:
    ours, theirs = (
        [list(leaves(of_one)) for of_one in many] for many in (snapshots(found), expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert [described(leaf) for leaf in one] == [described(leaf) for leaf in other]
        torch.testing.assert_close(joined(one), joined(other), rtol=rtol, atol=min(rtol, 1e-11))


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All values in a snapshot, with their places."""
    if isinstance(node, dict):
        for key in sorted(node, key=str):
            yield from leaves(node[key], f"{path}.{key}")
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield path, node


def described(leaf: tuple[str, Any]) -> tuple[object, ...]:
    path, value = leaf
    return (path, value.shape, value.dtype) if isinstance(value, Tensor) else (path, value)


def joined(of_one: Sequence[tuple[str, Any]]) -> Tensor:
    return torch.cat([x.double().reshape(-1) for _, x in of_one if isinstance(x, Tensor)])


@pytest.mark.parametrize("count", [1, 3, MOST])
@every_method
def test_stacked_steps_and_states_are_those_of_separate_optimizers(method: str, count: int) -> None:
    """With hyperparameters of their own, all of them."""
    together = Replicas(varied(method, count)).stack().steps(range(STEPS)).publish()

    assert_same(together, alone(method)[1][:count])


@pytest.mark.parametrize("method", BITWISE)
def test_bits_agree_where_nothing_is_rounded_in_another_order(method: str) -> None:
    """Of weights, at the same hyperparameters but for lr, as in a sweep."""
    makes = [solo(method, lr=0.01 * (k + 1)) for k in range(3)]
    separate = Replicas(makes).steps(range(10))
    together = Replicas(makes).stack().steps(range(10))

    for k in range(3):
        assert torch.equal(together.weights(k), separate.weights(k))


@every_method
def test_a_stack_goes_on_from_optimizers_of_any_age_and_they_from_it(
    method: str, tmp_path: Path
) -> None:
    """Alone, stacked, alone; the last through a file too, if the method can be resumed at all."""
    makes = varied(method, 3)
    replicas = Replicas(makes).steps(range(4)).stack().steps(range(4, 9)).publish()
    torch.save([o.state_dict() for o in replicas.optimizers], tmp_path / "checkpoint")
    saved = torch.load(tmp_path / "checkpoint", weights_only=method not in CANNOT_RESUME)
    loaded = Replicas(makes)
    for k, own in enumerate(loaded.own):
        loaded.optimizers[k].load_state_dict(saved[k])
        for x, other in zip(own, replicas.own[k], strict=True):
            x.data.copy_(other)
    replicas.stepper = None
    replicas.steps(range(9, MIDWAY))

    assert_same(replicas, alone(method)[0][:3])
    if method not in CANNOT_RESUME:
        loaded.steps(range(9, MIDWAY))
        for k in range(3):
            torch.testing.assert_close(loaded.weights(k), replicas.weights(k), rtol=1e-9, atol=0)


@pytest.mark.parametrize("method", ["adamw", "muonmax_momo"])
def test_averages_are_kept_once(method: str) -> None:
    """A stack takes those of the replicas over, which have views of them from then on."""
    replicas = Replicas(varied(method, 3)).steps(range(2)).stack()
    name = "exp_avg" if method == "adamw" else "m"

    for _ in range(2):
        memory = {
            state[name].untyped_storage().data_ptr()
            for optimizer in replicas.optimizers
            for state in optimizer.state.values()
        }
        assert len(memory) < len(replicas.own[0])
        replicas.step(2)
        replicas.publish()


@every_method
def test_publishing_changes_nothing(method: str) -> None:
    makes = varied(method, 3)
    often, never = Replicas(makes).stack(), Replicas(makes).stack()
    for t in range(6):
        often.publish().step(t)
        never.step(t)

    for k in range(3):
        assert torch.equal(often.weights(k), never.weights(k))
    assert_same(often.publish(), snapshots(never.publish()), rtol=0)


@every_method
def test_a_replica_that_is_not_finite_changes_no_bit_of_the_others(method: str) -> None:
    bad = {1: torch.nan, 2: torch.inf}

    def gradients(parameters: list[Tensor], k: int, t: int) -> list[Tensor | None]:
        found = gradients_at(parameters, k, t)
        return [g.fill_(bad[k]) if g is not None and k in bad and t == 2 else g for g in found]

    def losses(k: int, t: int) -> float:
        return bad[k] if k in bad and t >= 2 else loss_at(k, t)

    makes = varied(method, 4)
    sound = Replicas(makes).stack().steps(range(5))
    sick = Replicas(makes).stack().steps(range(5), gradients=gradients, loss=losses)

    same = [torch.equal(sick.weights(k), sound.weights(k)) for k in range(4)]
    assert same == [True, False, False, True]


@pytest.mark.parametrize("method", [m for m in METHODS if "momo" in m])
def test_each_replicas_momo_has_its_own_loss(method: str) -> None:
    """At its lower bound, 0.1, a loss leaves no way to go; the others' steps are their own."""
    replicas = Replicas([solo(method, lr=1e9)] * 3).stack()
    before = [replicas.weights(k) for k in range(3)]
    replicas.steps([0], loss=lambda k, t: 0.1 if k == 1 else 1.0).publish()

    assert [torch.equal(replicas.weights(k), before[k]) for k in range(3)] == [False, True, False]


@every_method
def test_a_parameter_without_a_gradient_stays_as_it_is(method: str) -> None:
    """From the third step on it has one."""

    def gradients(parameters: list[Tensor], k: int, t: int) -> list[Tensor | None]:
        found = gradients_at(parameters, k, t)
        return [None if t < 2 and i == 1 else g for i, g in enumerate(found)]

    makes = varied(method, 2)
    if method in ("momo_official", "momo_adam_official"):  # which cannot do so
        pytest.skip("momo-opt starts all averages in its first step")
    separate = Replicas(makes).steps(range(5), gradients=gradients)
    together = Replicas(makes).stack().steps(range(5), gradients=gradients).publish()

    assert_same(together, snapshots(separate))


def test_gradients_that_end_midway_leave_the_rest_to_the_replicas_optimizers() -> None:
    def gradients(parameters: list[Tensor], k: int, t: int) -> list[Tensor | None]:
        found = gradients_at(parameters, k, t)
        return [None if t == 3 and i == 1 else g for i, g in enumerate(found)]

    makes = varied("adamw", 3)
    separate = Replicas(makes).steps(range(6), gradients=gradients)
    together = Replicas(makes).stack().steps(range(6), gradients=gradients).publish()

    assert_same(together, snapshots(separate))


def test_in_single_precision_too() -> None:
    for method in ("adamw", "sgd_momentum", "muonmax_momo", "scion_momo"):
        makes = varied(method, 3)
        separate = Replicas(makes, torch.float32).steps(range(10))
        together = Replicas(makes, torch.float32).stack().steps(range(10))
        for k in range(3):
            torch.testing.assert_close(
                together.weights(k), separate.weights(k), rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.Adamax, lr=0.01),
        partial(torch.optim.Adadelta, lr=0.5),
        partial(torch.optim.AdamW, lr=0.01, amsgrad=True),
        partial(torch.optim.AdamW, lr=0.01, foreach=True),
        partial(torch.optim.SGD, lr=0.01, momentum=0.9, nesterov=True),
        partial(torch.optim.RMSprop, lr=0.01, momentum=0.9, centered=True),
        partial(torch.optim.NAdam, lr=0.01, weight_decay=0.1, decoupled_weight_decay=True),
    ],
    ids=str,
)
def test_other_elementwise_optimizers_of_torch_and_their_options(make: Make) -> None:
    separate = Replicas([make] * 3).steps(range(10))
    together = Replicas([make] * 3).stack().steps(range(10)).publish()

    assert isinstance(together.stepper, Flat)
    assert_same(together, snapshots(separate))


def test_every_method_has_the_stepper_that_fits() -> None:
    found = {method: type(Replicas([solo(method)] * 2).stack().stepper) for method in METHODS}

    assert [method for method, kind in found.items() if kind is Separate] == list(MIX_ENTRIES)
    assert {method for method, kind in found.items() if kind is Flat} == {
        *("adabelief", "adabound", "adagrad", "adam", "adamw", "lion", "nadam", "radam", "rmsprop"),
        "sgd_momentum",
    } & set(METHODS)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("lion", {"decoupled_weight_decay": True}),
        ("adabelief", {"adanorm": True, "adanorm_r": 0.95}),
    ],
)
def test_options_that_mix_entries_leave_the_steps_to_the_replicas(
    method: str, change: dict[str, Any]
) -> None:
    makes = [solo(method, lr=0.01 * (k + 1), weight_decay=0.1, **change) for k in range(2)]
    separate = Replicas(makes).steps(range(5))
    together = Replicas(makes).stack().steps(range(5))

    assert isinstance(together.stepper, Separate)
    assert all(torch.equal(together.weights(k), separate.weights(k)) for k in range(2))


def test_groups_that_differ_leave_the_steps_to_the_replicas() -> None:
    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [{**group, "weight_decay": 0.1 * i} for i, group in enumerate(groups)]
        )

    separate, together = Replicas([make] * 2).steps(range(4)), Replicas([make] * 2).stack()

    assert isinstance(together.stepper, Separate)
    assert_same(together.steps(range(4)), snapshots(separate), rtol=0)


def test_groups_with_learning_rates_of_their_own_are_refused_at_the_step() -> None:
    for method in ("adamw", "scion"):
        replicas = Replicas([solo(method)] * 2).stack()
        replicas.optimizers[1].param_groups[1]["initial_lr"] *= 2
        with pytest.raises((ValueError, ConfigError), match=r"learning rates|one lr for all"):
            replicas.step(0)


def test_the_callers_learning_rate_survives_publishing() -> None:
    for method in ("adamw", "scion"):
        replicas = Replicas([solo(method)] * 2).stack().steps(range(2))
        for group in replicas.optimizers[1].param_groups:
            group["lr"] = 0.125
        replicas.publish()

        assert {group["lr"] for group in replicas.optimizers[1].param_groups} == {0.125}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["adamw", "adagrad", "muon_torch", "muonmax_momo", "nadam"])
def test_on_a_gpu_too(method: str) -> None:
    makes = varied(method, 3)
    separate = Replicas(makes, device="cuda").steps(range(10))
    together = Replicas(makes, device="cuda").stack().steps(range(5)).publish().steps(range(5, 10))

    for k in range(3):
        torch.testing.assert_close(together.weights(k), separate.weights(k), rtol=1e-6, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["adamw", "muonmax_momo", "scion_momo"])
def test_a_stacked_step_lets_a_gpu_run_ahead(method: str) -> None:
    replicas = Replicas(varied(method, 3), device="cuda").stack().steps([0])
    assert replicas.stepper is not None
    losses = torch.ones(3, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        replicas.stepper.step(losses)
    finally:
        torch.cuda.set_sync_debug_mode("default")
