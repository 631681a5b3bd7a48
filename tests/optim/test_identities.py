"""Known optimizers as points of the design space: torch's, momo-opt's, and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optim.problems import EXACT, batch, descend, everywhere, net, steepest, weights
from optlab.optim.norms import L2, Ada2, AdaInf, Linf, Norm, Spectral
from optlab.optim.polar import SVD, Jordan
from optlab.optim.product import Euclidean, Hybrid, Max, ProductNorm
from optlab.optim.roles import Assignment, param_groups
from optlab.optim.stepsize import Clip, Momo, MomoStar

STEPS = range(12)
REGULARIZED = {"kind": "regularized", "product": Euclidean()}


def agree(
    theirs: Callable[[nn.Module], torch.optim.Optimizer],
    ours: dict[str, Any],
    *,
    tolerance: float = 1e-12,
    dtype: torch.dtype = torch.float64,
) -> None:
    """Both must give the same weights after a dozen steps on changing batches."""
    models = net(dtype), net(dtype)
    descend(models[0], theirs(models[0]), STEPS)
    descend(models[1], steepest(models[1], **ours), STEPS)

    assert not torch.allclose(weights(models[0]), weights(net(dtype)), atol=1e-3)
    assert torch.allclose(weights(models[0]), weights(models[1]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_l2_regularized_is_torchs_sgd(weight_decay: float) -> None:
    """With dampening = momentum, torch's buffer is the average that starts at the first gradient.

    Weight decay is compared by hand, since torch's is not decoupled.
    """
    lr = 0.3

    class Decayed(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for group in self.param_groups:
                    torch._foreach_mul_(group["params"], 1 - lr * weight_decay)
            return super().step(closure)

    agree(
        lambda model: Decayed(model.parameters(), lr=lr, momentum=0.9, dampening=0.9),
        {**REGULARIZED, "norms": everywhere(L2()), "lr": lr, "weight_decay": weight_decay},
    )


def test_linf_max_constrained_is_signsgd() -> None:
    model = net()
    before, lr = weights(model), 0.01
    descend(model, steepest(model, norms=everywhere(Linf()), lr=lr), [0])

    reference = net()
    tokens, targets = batch(0)
    F.cross_entropy(reference(tokens), targets).backward()
    signs = torch.cat([p.grad.sign().reshape(-1) for p in reference.parameters()])  # type: ignore[union-attr]
    assert torch.allclose(weights(model), before - lr * signs, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "cell",
    [
        {"norms": everywhere(AdaInf(beta2=0.8, eps=1e-3))},
        {**REGULARIZED, "norms": everywhere(Ada2(beta2=0.8, eps=1e-3))},
    ],
)
def test_both_readings_of_adam_are_torchs_adam_with_unbiased_averages(cell: dict[str, Any]) -> None:
    agree(
        lambda model: torch.optim.Adam(model.parameters(), lr=0.02, betas=(0.9, 0.8), eps=1e-3),
        {**cell, "momentum_form": "ema_unbiased"},
    )


@pytest.mark.parametrize("norm", [AdaInf(), Ada2()])
@pytest.mark.parametrize("kind", ["constrained", "regularized"])
@pytest.mark.parametrize("product", [Max(), Euclidean(), Hybrid()])
def test_others_are_adam_in_the_cells_of_the_paper_and_in_no_other(
    norm: Norm, kind: str, product: ProductNorm
) -> None:
    """Constrained + Max + ada-inf, and regularized + Euclidean or Hybrid + ada-2."""
    model = net()
    optimizer = steepest(model, norms=Assignment(EXACT, norm), kind=kind, product=product)
    before = model.head.weight.detach().clone()
    descend(model, optimizer, [0])
    assert model.head.weight.grad is not None
    g = model.head.weight.grad

    adam = torch.allclose(model.head.weight, before - 0.02 * g / (1e-8 + g.abs()), atol=1e-12)
    cells = {("constrained", "Max", "AdaInf")} | {
        ("regularized", product_name, "Ada2") for product_name in ("Euclidean", "Hybrid")
    }
    assert adam == ((kind, type(product).__name__, type(norm).__name__) in cells)


MATRIX_STEPS: dict[tuple[str, str], Callable[[Tensor, Tensor, float], Tensor]] = {
    # multiples of U Vᵀ from the dual norms d of the matrices, their global dual D and the scale s
    ("constrained", "Max"): lambda d, total, s: s * torch.ones_like(d),
    ("constrained", "Euclidean"): lambda d, total, s: s * d / total,
    ("constrained", "Hybrid"): lambda d, total, s: s * d.sum().expand_as(d) / total,
    ("regularized", "Max"): lambda d, total, s: s * total.expand_as(d),
    ("regularized", "Euclidean"): lambda d, total, s: s * d,
    ("regularized", "Hybrid"): lambda d, total, s: s * d.sum().expand_as(d),
}


@pytest.mark.parametrize(("kind", "product"), MATRIX_STEPS)
@pytest.mark.parametrize("others", [Linf(), AdaInf(), Ada2()])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_matrix_steps_of_the_18_variants(
    kind: str, product: str, others: Norm, scale: float
) -> None:
    """arXiv 2510.09827: norm of others x product x kind, each with its multiple of U Vᵀ."""
    model, lr = net(), 1e-3
    optimizer = steepest(
        model,
        lr=lr,
        norms=Assignment(Spectral(scale=scale, polar=SVD()), others),
        kind=kind,
        product={"Max": Max(), "Euclidean": Euclidean(), "Hybrid": Hybrid()}[product],
    )
    names = ("conv.weight", "layers.0.weight", "layers.1.weight", "out.weight")
    parameters = dict(model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in names}
    everything = weights(model)
    descend(model, optimizer, [0])
    gradients = {name: parameters[name].grad for name in names}
    polar = {name: SVD()(g.flatten(1)) for name, g in gradients.items()}  # type: ignore[union-attr]
    d = scale * torch.stack([(gradients[n].flatten(1) * polar[n]).sum() for n in names])  # type: ignore[union-attr]

    total = optimizer.param_groups[0]["dual_norm"]
    factors = MATRIX_STEPS[kind, product](d, total, scale)
    for name, factor in zip(names, factors, strict=True):
        expected = before[name] - lr * factor * polar[name].view_as(before[name])
        assert torch.allclose(parameters[name], expected, rtol=0, atol=1e-12)
    flat = torch.cat([p.grad.reshape(-1) for p in model.parameters()])  # type: ignore[union-attr]
    decrease = flat @ (everything - weights(model))  # of the linear model
    power = 1 if kind == "constrained" else 2
    assert float(decrease) == pytest.approx(lr * float(total) ** power)


def test_spectral_max_constrained_is_torchs_muon(monkeypatch: pytest.MonkeyPatch) -> None:
    """With K. Jordan's iteration and shape factor, Nesterov's average and weight decay.

    torch's Muon iterates in bfloat16 only; here its cast is disabled, to compare to rounding.
    """
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)
    model, reference = net(torch.float32), net(torch.float32)
    matrices = [p for name, p in reference.named_parameters() if is_matrix(name)]
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.9, weight_decay=0.1)
    jordan = Spectral(shape="jordan", polar=Jordan(5, "float32"))
    optimizer = steepest(
        model,
        norms=Assignment(jordan, L2()),
        momentum_form="nesterov",
        weight_decay=0.1,
        params=[group for group in param_groups(model) if group["role"] == "matrix"],
    )
    descend(reference, muon, STEPS)
    descend(model, optimizer, STEPS)

    assert not torch.allclose(weights(model), weights(net(torch.float32)), atol=1e-2)
    assert torch.allclose(weights(model), weights(reference), rtol=0, atol=2e-5)


def test_moonlights_shape_factor_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.float)
    model, reference = net(torch.float32), net(torch.float32)
    matrices = [p for name, p in reference.named_parameters() if is_matrix(name)]
    muon = torch.optim.Muon(
        matrices, lr=0.02, momentum=0.9, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    optimizer = steepest(
        model,
        norms=Assignment(Spectral(shape="moonlight", polar=Jordan(5, "float32")), L2()),
        momentum_form="nesterov",
        params=[group for group in param_groups(model) if group["role"] == "matrix"],
    )
    descend(reference, muon, STEPS)
    descend(model, optimizer, STEPS)

    assert torch.allclose(weights(model), weights(reference), rtol=0, atol=2e-5)


def is_matrix(name: str) -> bool:
    return name.startswith(("layers", "out")) and name.endswith("weight")


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """momo-opt keeps ⟨g, w⟩ in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("bound", [0.0, 0.9])
@pytest.mark.parametrize("star", [False, True])
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("lr", [0.05, 50.0])
def test_momo_is_the_official_one(
    momentum: float, bound: float, star: bool, unbiased: bool, lr: float
) -> None:
    """momo-opt, without weight decay (its decay is proximal); all three averages start alike."""
    official = pytest.importorskip("momo")
    agree(
        lambda model: official.Momo(
            model.parameters(),
            lr=lr,
            beta=momentum,
            lb=bound,
            use_fstar=star,
            bias_correction=unbiased,
        ),
        {
            **REGULARIZED,
            "norms": everywhere(L2()),
            "lr": lr,
            "momentum": momentum,
            "step_size": MomoStar(bound) if star else Momo(bound),
            "momentum_form": "ema_unbiased" if unbiased else "ema_first",
        },
    )


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("bound", [0.0, 0.9])
@pytest.mark.parametrize("star", [False, True])
@pytest.mark.parametrize("lr", [1e-2, 10.0])
def test_momo_adam_is_the_official_one(bound: float, star: bool, lr: float) -> None:
    official = pytest.importorskip("momo")
    agree(
        lambda model: official.MomoAdam(
            model.parameters(), lr=lr, betas=(0.9, 0.99), eps=1e-4, lb=bound, use_fstar=star
        ),
        {
            **REGULARIZED,
            "norms": everywhere(Ada2(beta2=0.99, eps=1e-4)),
            "lr": lr,
            "step_size": MomoStar(bound) if star else Momo(bound),
            "momentum_form": "ema_unbiased",
        },
    )


def test_ggnc_far_away_is_the_constrained_method_and_near_the_regularized_one() -> None:
    norms = Assignment(EXACT, Linf())
    clipped, constrained, regularized = net(), net(), net()
    descend(
        clipped,
        steepest(clipped, norms=norms, kind="regularized", step_size=Clip(1e-3), lr=5.0),
        STEPS,
    )
    descend(constrained, steepest(constrained, norms=norms, lr=5e-3), STEPS)
    assert torch.allclose(weights(clipped), weights(constrained), rtol=0, atol=1e-12)

    clipped = net()
    descend(
        clipped,
        steepest(clipped, norms=norms, kind="regularized", step_size=Clip(1e9), lr=1e-3),
        STEPS,
    )
    descend(regularized, steepest(regularized, norms=norms, kind="regularized", lr=1e-3), STEPS)
    assert torch.equal(weights(clipped), weights(regularized))


def test_the_heavy_ball_steps_as_the_average_from_zero() -> None:
    """m and m / (1 - momentum) have one direction, which is all that constrained descent uses."""
    norms = Assignment(EXACT, Linf())
    for sum_form, mean_form in (("heavy_ball", "ema_zero"), ("heavy_ball_nesterov", "nesterov")):
        first, second = net(), net()
        descend(first, steepest(first, norms=norms, momentum_form=sum_form), STEPS)
        descend(second, steepest(second, norms=norms, momentum_form=mean_form), STEPS)

        assert torch.allclose(weights(first), weights(second), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["constrained", "regularized"])
def test_momo_with_a_very_low_bound_is_the_plain_method_bitwise(kind: str) -> None:
    plain, momo = net(), net()
    shared = {"kind": kind, "weight_decay": 0.1, "lr": 1e-3, "norms": Assignment(EXACT, Ada2())}
    descend(plain, steepest(plain, **shared), STEPS)
    descend(momo, steepest(momo, **shared, step_size=Momo(-1e12)), STEPS)

    assert torch.equal(weights(plain), weights(momo))


def test_momo_does_not_see_a_constant_added_to_loss_and_bound() -> None:
    plain, moved = net(), net()
    shared = {"kind": "regularized", "product": Hybrid(), "norms": Assignment(EXACT, Ada2())}
    descend(plain, steepest(plain, step_size=Momo(0.5), lr=1.0, **shared), STEPS)
    descend(moved, steepest(moved, step_size=Momo(7.5), lr=1.0, **shared), STEPS, shift=7.0)

    assert torch.allclose(weights(plain), weights(moved), rtol=0, atol=1e-10)


def test_constrained_scion_never_leaves_its_ball() -> None:
    """x <- (1 - lr) x - lr z is a convex combination of points of the ball, if x starts in it."""
    norms = Assignment(Spectral(scale=2.0, polar=SVD()), Linf(scale=0.5))
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.3).clamp_(-0.5, 0.5)
    optimizer = steepest(model, norms=norms, weight_decay=1.0, lr=0.3)
    for step in range(30):
        descend(model, optimizer, [step])
        for name, p in model.named_parameters():
            norm = norms.matrix if is_matrix(name) or name == "conv.weight" else norms.others
            w = p.detach().reshape(p.shape[0], -1)
            assert float(norm.norm(w, w, None)) <= 1 + 1e-12
