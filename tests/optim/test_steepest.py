"""The step as a whole: descent, state, groups, options, errors, and what it must not do."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optim.problems import (
    EXACT,
    METHODS,
    Synchronizations,
    batch,
    descend,
    everywhere,
    net,
    steepest,
    weights,
)
from optlab.errors import ConfigError
from optlab.optim.norms import L2, Ada2, AdaInf, ColumnL2, Linf, Norm, Rms, RowL2, Spectral
from optlab.optim.polar import SVD, Jordan, PolarExpress
from optlab.optim.product import Euclidean, Group, Hybrid, Max, Nested
from optlab.optim.roles import Assignment, param_groups
from optlab.optim.stepsize import Clip, LinearModel, Momo, MomoStar, Step

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
DEEP = Nested(
    Euclidean(),
    [Group(["matrix"], Max()), Group(["conv", "embedding", "head", "vector"], Euclidean())],
)


def trained(method: dict[str, Any], steps: int = 4) -> Tensor:
    model = net()
    descend(model, steepest(model, **method), range(steps))
    return weights(model)


# Descent


@pytest.mark.parametrize(
    "norm", [L2(), Rms(), RowL2(), ColumnL2(), Linf(), EXACT, Ada2(), Spectral(scale=2.0)]
)
@pytest.mark.parametrize("product", [Max(), Euclidean(), Hybrid(), DEEP])
def test_regularized_descent_never_rises_on_a_smooth_quadratic(norm: Norm, product: Any) -> None:
    """With lr below 1 / L, where L is the smoothness in the norm; here of ½ ‖x - x*‖₂²."""
    torch.manual_seed(3)
    model = net()
    targets = [torch.randn_like(p) for p in model.parameters()]
    optimizer = steepest(
        model, norms=everywhere(norm), kind="regularized", product=product, momentum=0.0, lr=2e-4
    )
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        pairs = zip(model.parameters(), targets, strict=True)
        loss = torch.stack([((p - target) ** 2).sum() / 2 for p, target in pairs]).sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert all(after < before for before, after in pairwise(losses))


@every_method
def test_every_method_learns(method: dict[str, Any]) -> None:
    model = net()
    losses = descend(model, steepest(model, **method), [0] * 60)

    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("bound", [0.0, 0.9, 50.0])
@pytest.mark.parametrize("kind", ["constrained", "regularized"])
def test_momos_steps_are_between_zero_and_the_learning_rate(bound: float, kind: str) -> None:
    """A bound above the loss made the reference step uphill, from a loss of 3 to 5557."""
    model = net()
    optimizer = steepest(model, kind=kind, step_size=Momo(bound), lr=0.5)
    for step in range(20):
        loss = descend(model, optimizer, [step])[0]

        assert 0 <= float(optimizer.param_groups[0]["step_size"]) <= 0.5
        assert loss < 20
    if bound == 50.0:
        assert torch.equal(weights(model), weights(net()))


def test_momos_first_model_value_is_the_loss() -> None:
    model = net()
    optimizer = steepest(model, step_size=Momo(0.25), lr=1e9)
    loss = descend(model, optimizer, [0])[0]
    group = optimizer.param_groups[0]

    assert float(group["step_size"] * group["dual_norm"]) == pytest.approx(loss - 0.25)


def test_momos_model_is_the_average_of_linearizations() -> None:
    """f̄(x) = Σ w_i (f_i + ⟨g_i, x - x_i⟩), recomputed from all that was seen."""

    @dataclass(frozen=True)
    class Spy:
        needs_loss: ClassVar[bool] = True
        needs_dual_norm: ClassVar[bool] = False

        def __call__(self, lr: float, model: LinearModel, power: int) -> Step:
            assert model.value is not None
            seen.append(float(model.value))
            return Step(lr)

    seen: list[float] = []
    model, history = net(), []
    optimizer = steepest(model, step_size=Spy())
    for step in range(6):
        x = weights(model)
        loss = descend(model, optimizer, [step])[0]
        g = torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
        history.append((loss, g, x))
        shares = [0.9**step] + [0.1 * 0.9 ** (step - i) for i in range(1, step + 1)]
        expected = sum(
            w * (f + g_i @ (x - x_i)) for w, (f, g_i, x_i) in zip(shares, history, strict=True)
        )
        assert seen[-1] == pytest.approx(float(expected), abs=1e-12)


def test_a_loss_that_is_not_a_number_never_looks_like_a_sound_step() -> None:
    """The training loop stops before; if it did not, the weights would show it."""
    model = net()
    descend(model, steepest(model, step_size=Momo(0.0)), [0], shift=torch.nan)

    assert bool(weights(model).isnan().all())


# State


@every_method
def test_training_resumes_exactly_from_a_file_of_tensors_and_numbers(
    method: dict[str, Any], tmp_path: Path
) -> None:
    straight = net()
    descend(straight, steepest(straight, **method), range(8))

    first = net()
    optimizer = steepest(first, **method)
    descend(first, optimizer, range(5))
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c")
    saved = torch.load(tmp_path / "c", weights_only=True)
    second = net()
    resumed = steepest(second, **method)
    second.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    descend(second, resumed, range(5, 8))

    assert torch.equal(weights(second), weights(straight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_exact_in_lower_precision_too(dtype: torch.dtype) -> None:
    """``load_state_dict`` casts state to the parameters' dtype."""
    method = {**METHODS["muonmax_momo_stale"], "norms": Assignment(Spectral(), Ada2())}
    straight, second = net(dtype), net(dtype)
    optimizer = steepest(straight, **method)
    descend(straight, optimizer, range(4))
    buffer = io.BytesIO()
    torch.save((straight.state_dict(), optimizer.state_dict()), buffer)
    descend(straight, optimizer, range(4, 7))
    buffer.seek(0)
    model_state, optimizer_state = torch.load(buffer, weights_only=True)
    resumed = steepest(second, **method)
    second.load_state_dict(model_state)
    resumed.load_state_dict(optimizer_state)
    descend(second, resumed, range(4, 7))

    assert torch.equal(weights(second), weights(straight))


@every_method
def test_the_state_holds_tensors_and_numbers_only(method: dict[str, Any]) -> None:
    model = net()
    optimizer = steepest(model, **method)
    descend(model, optimizer, range(2))
    for state in optimizer.state_dict()["state"].values():
        assert all(isinstance(value, Tensor | int) for value in state.values())


# Groups


@every_method
def test_the_split_into_groups_does_not_matter(method: dict[str, Any]) -> None:
    one, many = net(), net()
    descend(one, steepest(one, **method), range(6))
    groups = [
        {"params": [p], "names": [name], "role": group["role"]}
        for group in param_groups(many)
        for p, name in zip(group["params"], group["names"], strict=True)
    ]
    descend(many, steepest(many, **method, params=groups[::-1]), range(6))

    assert torch.allclose(weights(one), weights(many), rtol=0, atol=1e-11)


def test_two_learning_rates_are_refused() -> None:
    model = net()
    optimizer = steepest(model)
    optimizer.param_groups[1]["lr"] = 0.5
    with pytest.raises(ConfigError, match=r"one lr for all parameter groups, not \[0.02, 0.5\]"):
        descend(model, optimizer, [0])


def test_a_group_may_come_later() -> None:
    late, soon = net(), net()
    groups = param_groups(late)
    optimizer = steepest(late, params=groups[:-1])
    optimizer.add_param_group(groups[-1])
    descend(late, optimizer, range(3))
    descend(soon, steepest(soon), range(3))

    assert torch.equal(weights(late), weights(soon))


def test_a_parameter_whose_gradient_comes_later_starts_its_average_then() -> None:
    model = net()
    optimizer = steepest(model)
    for step in range(3):
        tokens, targets = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(model(tokens), targets).backward()
        if step < 2:
            model.head.weight.grad = None
        before = model.head.weight.detach().clone()
        optimizer.step()
        assert torch.equal(model.head.weight, before) == (step < 2)
    assert model.head.weight.grad is not None
    assert torch.equal(optimizer.state[model.head.weight]["m"], model.head.weight.grad)


def test_a_step_without_any_gradient_does_nothing() -> None:
    model = net()
    optimizer = steepest(model, step_size=Momo(0.0))

    assert optimizer.step() is None
    assert torch.equal(weights(model), weights(net()))


def test_zero_gradients_make_no_step_and_no_nan() -> None:
    for method in METHODS.values():
        model = net()
        optimizer = steepest(model, **method)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        before = weights(model)
        optimizer.step(lambda: torch.tensor(1.0))

        decayed = 1 - float(optimizer.weight_decay * optimizer.param_groups[0]["step_size"])
        assert torch.allclose(weights(model), decayed * before)


def test_the_closure_is_called_once_and_its_loss_returned() -> None:
    calls = []
    model = net()

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        return torch.tensor(2.5)

    assert float(steepest(model).step(closure) or 0) == 2.5
    assert calls == [True]


def test_the_gradients_are_left_alone() -> None:
    for method in METHODS.values():
        model = net()
        optimizer = steepest(model, **method)
        F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
        before = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
        optimizer.step(lambda: torch.tensor(1.0))

        assert all(
            torch.equal(p.grad, g)  # type: ignore[arg-type]
            for p, g in zip(model.parameters(), before, strict=True)
        )


def test_optimizers_can_be_built_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = net()
    for method in METHODS.values():
        steepest(model, **method)


def test_convolutions_are_matrices_and_embeddings_are_not() -> None:
    model = net()
    before = model.conv.weight.detach().clone()
    descend(model, steepest(model, lr=1.0), [0])
    step = (before - model.conv.weight.detach()).flatten(1)

    assert torch.allclose(torch.linalg.svdvals(step), torch.ones(8, dtype=step.dtype))


def test_matrices_of_one_shape_may_have_different_norms() -> None:
    model = net()
    before = model.layers[1].weight.detach().clone()
    norms = Assignment(EXACT, AdaInf(), by_name={"layers.1.weight": Linf(scale=0.5)})
    descend(model, steepest(model, norms=norms, lr=1.0), [0])

    assert torch.allclose((model.layers[1].weight - before).abs(), torch.tensor(0.5).double())


def test_a_tied_embedding_is_one_layer() -> None:
    torch.manual_seed(0)
    embedding = nn.Embedding(5, 3)
    head = nn.Linear(3, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    optimizer = steepest(model, norms=everywhere(Linf()), lr=0.5)
    before = embedding.weight.detach().clone()
    F.cross_entropy(model(torch.arange(5)), torch.arange(5)).backward()
    optimizer.step()

    assert torch.allclose((before - embedding.weight).abs(), torch.tensor(0.5))


# Cost


def test_one_polar_factor_a_matrix_and_step() -> None:
    """The reference computes two: one for the dual norm, one for the step."""
    calls: Counter[tuple[int, ...]] = Counter()

    @dataclass(frozen=True)
    class Counting:
        def __call__(self, x: Tensor) -> Tensor:
            calls[tuple(x.shape)] += 1
            return SVD()(x)

        def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
            return [self(x) for x in xs]

    model = net()
    norms = Assignment(Spectral(polar=Counting()), Ada2())
    descend(
        model,
        steepest(model, norms=norms, kind="regularized", product=Hybrid(), step_size=Momo(0.5)),
        range(3),
    )
    # one call a shape, same-shape matrices stacked: (layers, blocks, rows, columns)
    assert calls == {(2, 1, 8, 8): 3, (1, 1, 4, 8): 3, (1, 1, 8, 18): 3}


def test_the_counter_of_synchronizations_counts() -> None:
    with Synchronizations() as counter:
        torch.ones(2).sum().item()

    assert counter.found == ["_local_scalar_dense"]


@every_method
def test_a_step_never_waits_for_the_device(method: dict[str, Any]) -> None:
    """No ``.item()`` or its like, neither in the first step nor later; SVD replaced, which does."""
    norms = method.get("norms", Assignment(EXACT, AdaInf()))
    if norms.matrix == EXACT:
        norms = Assignment(Spectral(polar=PolarExpress()), norms.others)
    model = net()
    optimizer = steepest(model, **{**method, "norms": norms})
    for step in range(3):
        tokens, targets = batch(step)
        loss = F.cross_entropy(model(tokens), targets)
        optimizer.zero_grad()
        loss.backward()
        with Synchronizations() as counter:
            optimizer.step(lambda loss=loss: loss)
        assert counter.found == []


# Options: each changes the result


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 0.03},
        {"momentum": 0.8},
        {"weight_decay": 0.1},
        {"kind": "constrained"},
        {"product": Max()},
        {"product": Euclidean()},
        {"product": DEEP},
        {"step_size": Momo(1.05)},
        {"step_size": MomoStar(0.0)},
        {"step_size": Clip(0.5)},
        {"momentum_form": "ema_zero"},
        {"momentum_form": "ema_unbiased"},
        {"momentum_form": "nesterov"},
        {"nuclear_norm": "stale"},
        {"nuclear_norm": "frobenius"},
        {"step_shape": "bernstein"},
        {"norms": Assignment(EXACT, Ada2(beta2=0.5))},
        {"norms": Assignment(EXACT, Ada2(eps=1e-2))},  # the reference ignores it
        {"norms": Assignment(EXACT, Ada2(scale=2.0))},
        {"norms": Assignment(Spectral(polar=Jordan(5)), Ada2())},
        {"norms": Assignment(Spectral(polar=SVD(), scale=2.0), Ada2())},
        {"norms": Assignment(Spectral(polar=SVD(), shape="bernstein"), Ada2())},
        {"norms": Assignment(Spectral(polar=SVD(), blocks=2), Ada2())},
        {"norms": Assignment(EXACT, Ada2(), by_name={"out.weight": Linf()})},
        {"norms": Assignment(EXACT, Ada2(), head=Linf())},
    ],
    ids=str,
)
def test_every_option_changes_the_result(change: dict[str, Any]) -> None:
    base = {"norms": Assignment(EXACT, Ada2()), "kind": "regularized", "product": Hybrid()}

    assert not torch.allclose(trained(base), trained({**base, **change}), rtol=0, atol=1e-9)


def test_every_number_of_newton_schulz_steps_is_taken() -> None:
    """The reference takes five whatever it is told."""
    five, nine = (trained({"norms": Assignment(Spectral(polar=Jordan(k)), Ada2())}) for k in (5, 9))

    assert not torch.allclose(five, nine, rtol=0, atol=1e-9)


def test_weight_decay_by_the_learning_rate_or_by_the_step() -> None:
    """x <- (1 - lr wd) x or (1 - τ wd) x, before the step."""
    for decay_by in ("lr", "step"):
        model = net()
        before, lr, wd = weights(model), 0.5, 0.1
        optimizer = steepest(model, step_size=Momo(1.0), lr=lr, weight_decay=wd, decay_by=decay_by)
        descend(model, optimizer, [0])
        tau = float(optimizer.param_groups[0]["step_size"])
        assert 0 < tau < 0.3

        plain = net()
        descend(plain, steepest(plain, lr=tau), [0])
        factor = 1 - wd * (lr if decay_by == "lr" else tau)
        expected = factor * before + (weights(plain) - before)
        assert torch.allclose(weights(model), expected, rtol=0, atol=1e-12)


def test_stale_dual_norms_are_those_of_the_step_before_once() -> None:
    """The reference multiplies them by the scale twice: a factor 4 here."""
    norms = Assignment(Spectral(scale=4.0, polar=SVD()), L2())
    matrices = [group for group in param_groups(net()) if group["role"] == "matrix"]
    names = [name for group in matrices for name in group["names"]]

    def dual_norms(nuclear_norm: str) -> list[float]:
        model = net()
        groups = [group for group in param_groups(model) if group["role"] == "matrix"]
        assert groups[0]["names"] == names
        optimizer = steepest(model, params=groups, norms=norms, nuclear_norm=nuclear_norm)
        found = []
        for step in range(3):
            descend(model, optimizer, [step])
            found.append(float(optimizer.param_groups[0]["dual_norm"]))
        return found

    exact, stale = dual_norms("polar"), dual_norms("stale")
    assert stale == pytest.approx([exact[0], exact[0], exact[1]])


def test_a_shape_factor_in_the_norm_enters_twice_and_after_it_once() -> None:
    """Regularized: the dual norm carries the factor too."""
    model = nn.Linear(4, 16, bias=False).double()
    start = model.weight.detach().clone()
    model.weight.grad = torch.randn(16, 4, dtype=torch.float64)

    def step_of(norm: Norm, **changes: Any) -> Tensor:
        with torch.no_grad():
            model.weight.copy_(start)
        steepest(
            model, norms=everywhere(norm), kind="regularized", product=Euclidean(), **changes
        ).step()
        return start - model.weight.detach()

    plain = step_of(EXACT)
    after = step_of(EXACT, step_shape="bernstein")
    inside = step_of(Spectral(polar=SVD(), shape="bernstein"))
    assert torch.allclose(after, 2 * plain) and torch.allclose(inside, 4 * plain)


def test_step_shape_touches_matrices_only() -> None:
    plain, shaped = net(), net()
    descend(plain, steepest(plain), [0])
    descend(shaped, steepest(shaped, step_shape="moonlight"), [0])

    assert torch.equal(plain.head.weight, shaped.head.weight)
    assert not torch.equal(plain.out.weight, shaped.out.weight)


# Errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"momentum": 1.0}, "momentum must be in"),
        ({"momentum": -0.1}, "momentum must be in"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"kind": "constraint"}, "Did you mean 'constrained'"),
        ({"decay_by": "tau"}, "decay_by must be one of lr, step"),
        ({"momentum_form": "ema"}, "Did you mean 'ema_zero'|momentum_form must be"),
        ({"nuclear_norm": "past"}, "nuclear_norm must be one of polar, stale, frobenius"),
        ({"step_shape": "kimi"}, "step_shape must be one of"),
        ({"momentum_form": "heavy_ball"}, "AdaInf divides m by the root of v"),
        (
            {"momentum_form": "heavy_ball", "kind": "regularized", "norms": everywhere(L2())},
            r"1 / \(1 - momentum\) = 10.*kind is regularized",
        ),
        (
            {
                "momentum_form": "heavy_ball_nesterov",
                "norms": everywhere(L2()),
                "kind": "regularized",
                "step_size": Clip(1.0),
            },
            "kind is regularized",
        ),
        ({"momentum_form": "nesterov", "step_size": Momo(0.0)}, "Momo needs momentum_form"),
        ({"momentum_form": "ema_zero", "step_size": MomoStar(0.0)}, "MomoStar needs momentum_form"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        steepest(net(), **change)


def test_momo_without_a_loss_says_what_to_call() -> None:
    model = net()
    optimizer = steepest(model, step_size=Momo(0.0))
    F.cross_entropy(model(batch(0)[0]), batch(0)[1]).backward()
    with pytest.raises(ConfigError, match=r"Momo needs the loss.*optimizer\.step\(lambda: loss\)"):
        optimizer.step()


def test_a_decay_above_one_is_a_result_of_a_sweep_and_no_error() -> None:
    """The right end of a learning-rate grid reverses the weights, as torch's AdamW does."""
    model = net()
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    steepest(model, lr=3.0, weight_decay=0.5, decay_by="lr").step(lambda: torch.zeros(()))

    for p, start in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), (1 - 3.0 * 0.5) * start)
