"""Product norms: duality over vectors of layer norms, and the nested form of the named ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optlab.errors import ConfigError
from optlab.optim.product import Euclidean, Group, Hybrid, Max, Nested, ProductNorm

REST = ("embedding", "head", "vector")
NESTED_HYBRID = Nested(
    Euclidean(),
    [Group(("matrix", "conv"), Max()), Group(REST, Euclidean())],
)
DEEP = Nested(
    Max(),
    [
        Group(["matrix"], Euclidean()),
        Group(["conv", "embedding"], Max()),
        Group(["head", "vector"], Hybrid()),
    ],
)
PRODUCTS: dict[str, ProductNorm] = {
    "max": Max(),
    "euclidean": Euclidean(),
    "hybrid": Hybrid(),
    "nested hybrid": NESTED_HYBRID,
    "deep": DEEP,
}
ROLES = {
    "all": ("matrix", "matrix", "conv", "embedding", "head", "vector", "vector"),
    "matrices": ("matrix",) * 7,
    "others": ("vector",) * 7,
}
VECTORS = {
    "random": torch.tensor([0.3, 2.0, 1.0, 0.7, 0.1, 5.0, 0.2], dtype=torch.float64),
    "one layer": torch.tensor([0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64),
    "1e-200": torch.full((7,), 1e-200, dtype=torch.float64),
    "1e200": torch.full((7,), 1e200, dtype=torch.float64),
}

every_product = pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
every_roles = pytest.mark.parametrize("roles", ROLES.values(), ids=ROLES)
every_vector = pytest.mark.parametrize("d", VECTORS.values(), ids=VECTORS)


@every_product
@every_roles
@every_vector
def test_the_steps_have_length_one(product: ProductNorm, roles: tuple[str, ...], d: Tensor) -> None:
    s = product.dualize(d, roles)

    assert bool((s >= 0).all())
    assert float(product.norm(s, roles)) == pytest.approx(1)


@every_product
@every_roles
@every_vector
def test_duality(product: ProductNorm, roles: tuple[str, ...], d: Tensor) -> None:
    """⟨d, w⟩ <= ⟨d, s⟩ ‖w‖ for all w >= 0."""
    torch.manual_seed(0)
    dual_norm = d @ product.dualize(d, roles)
    for _ in range(50):
        w = torch.rand(7, dtype=torch.float64)

        assert bool(d @ w <= dual_norm * product.norm(w, roles) * (1 + 1e-12))


@every_product
@every_roles
def test_zero_makes_no_nan(product: ProductNorm, roles: tuple[str, ...]) -> None:
    d = torch.zeros(7, dtype=torch.float64)

    assert bool(product.dualize(d, roles).isfinite().all())
    assert float(d @ product.dualize(d, roles)) == 0


@every_product
@every_roles
def test_a_batch_is_a_loop(product: ProductNorm, roles: tuple[str, ...]) -> None:
    d = torch.stack([VECTORS["random"], VECTORS["one layer"], VECTORS["random"].flip(0)])
    s = product.dualize(d, roles)

    for row, single in zip(s, d, strict=True):
        assert torch.allclose(row, product.dualize(single, roles))
    assert product.norm(d, roles).shape == (3,)


def test_dual_norms_as_the_paper_writes_them() -> None:
    """arXiv 2510.09827: Σ d; √(Σ d²); √((Σ over matrices d)² + Σ over others d²)."""
    d, roles = VECTORS["random"], ROLES["all"]

    assert float(d @ Max().dualize(d, roles)) == pytest.approx(float(d.sum()))
    assert float(d @ Euclidean().dualize(d, roles)) == pytest.approx(float(d.norm()))
    hybrid = (d[:3].sum() ** 2 + (d[3:] ** 2).sum()).sqrt()
    assert float(d @ Hybrid().dualize(d, roles)) == pytest.approx(float(hybrid))
    expected = torch.cat([d[:3].sum().expand(3), d[3:]]) / hybrid
    assert torch.allclose(Hybrid().dualize(d, roles), expected)


@every_roles
@every_vector
def test_hybrid_is_a_nested_norm(roles: tuple[str, ...], d: Tensor) -> None:
    assert torch.allclose(Hybrid().dualize(d, roles), NESTED_HYBRID.dualize(d, roles))


def test_hybrid_with_one_kind_of_layer_only() -> None:
    """The authors' code fails here (an empty stack)."""
    d = VECTORS["random"]

    assert torch.allclose(Hybrid().dualize(d, ROLES["matrices"]), Max().dualize(d, ()))
    assert torch.allclose(Hybrid().dualize(d, ROLES["others"]), Euclidean().dualize(d, ()))


@pytest.mark.parametrize(
    "groups",
    [
        [Group(["matrix", "conv"], Max())],
        [Group(["matrix", "conv", *REST], Max()), Group(["head"], Max())],
        [Group(["matrices", "conv", *REST], Max())],
    ],
)
def test_a_nested_norm_needs_every_role_once(groups: list[Group]) -> None:
    with pytest.raises(ConfigError, match="Nested"):
        Nested(Max(), groups)
