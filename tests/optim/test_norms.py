"""Norms: the laws of a norm and its dualizer, in float64 with the exact polar factor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from optim.inputs import matrices, nonzero_matrices
from optlab.errors import ConfigError
from optlab.optim.norms import (
    L2,
    SHAPES,
    Ada2,
    AdaInf,
    ColumnL2,
    Linf,
    Norm,
    Rms,
    RowL2,
    Spectral,
    shape_factor,
)
from optlab.optim.polar import SVD

FIXED: dict[str, Norm] = {  # those that do not depend on m and v
    "l2": L2(),
    "l2 scaled": L2(scale=3.0),
    "rms": Rms(scale=0.5),
    "row": RowL2(scale=2.0),
    "column": ColumnL2(scale=0.1),
    "linf": Linf(),
    "linf scaled": Linf(scale=4.0, shape="inputs"),
    "spectral": Spectral(polar=SVD()),
    "spectral scaled": Spectral(scale=4.0, shape="bernstein", polar=SVD()),
}
ADAPTIVE: dict[str, Norm] = {
    "ada-2": Ada2(),
    "ada-2 scaled": Ada2(scale=3.0, eps=1e-3),
    "ada-inf": AdaInf(),
    "ada-inf scaled": AdaInf(scale=0.2, eps=1e-3),
}
NORMS = {**FIXED, **ADAPTIVE}
MATRICES, NONZERO = matrices(), nonzero_matrices()

every_norm = pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
every_fixed_norm = pytest.mark.parametrize("norm", FIXED.values(), ids=FIXED)
every_matrix = pytest.mark.parametrize("m", MATRICES.values(), ids=MATRICES)
every_nonzero_matrix = pytest.mark.parametrize("m", NONZERO.values(), ids=NONZERO)


def second_moment(m: Tensor) -> Tensor:
    """A v that is not the square of m."""
    torch.manual_seed(5)
    return m**2 * (0.1 + torch.rand_like(m))


def dual_norm(norm: Norm, m: Tensor) -> Tensor:
    return (m * norm.dualize(m, second_moment(m))).sum((-2, -1))


@every_norm
@every_nonzero_matrix
def test_dualize_lands_on_the_unit_sphere(norm: Norm, m: Tensor) -> None:
    z = norm.dualize(m, second_moment(m))

    assert torch.allclose(norm.norm(z, m, second_moment(m)), torch.ones((), dtype=z.dtype))


@every_norm
@every_nonzero_matrix
def test_hoelder(norm: Norm, m: Tensor) -> None:
    """⟨m, w⟩ <= ‖m‖_* ‖w‖, for Adam's max norm on the support of m, where it is finite."""
    torch.manual_seed(1)
    bound = dual_norm(norm, m)
    for _ in range(20):
        w = torch.randn_like(m) * (m != 0)
        size = norm.norm(w, m, second_moment(m))

        assert bool((m * w).sum() <= bound * size * (1 + 1e-12))


@every_norm
def test_zero_goes_to_zero(norm: Norm) -> None:
    m = MATRICES["zero"]

    assert torch.equal(norm.dualize(m, m), m)


@every_fixed_norm
@every_nonzero_matrix
@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_the_dual_norm_is_positively_homogeneous(norm: Norm, m: Tensor, factor: float) -> None:
    assert torch.allclose(norm.dualize(factor * m, None), norm.dualize(m, None), atol=1e-10)
    assert torch.allclose(dual_norm(norm, factor * m), factor * dual_norm(norm, m))


@every_fixed_norm
@every_matrix
def test_the_dual_norm_obeys_the_triangle_inequality(norm: Norm, m: Tensor) -> None:
    torch.manual_seed(2)
    other = torch.randn_like(m) * m.abs().max()

    both = dual_norm(norm, m) + dual_norm(norm, other)
    assert bool(dual_norm(norm, m + other) <= both * (1 + 1e-12))


@every_norm
@every_matrix
def test_a_batch_is_a_loop(norm: Norm, m: Tensor) -> None:
    batch = torch.stack([m, 2 * m.flip(0), -m]).unflatten(0, (3, 1))
    v = second_moment(batch)
    z = norm.dualize(batch, v)

    assert z.shape == batch.shape and norm.norm(z, batch, v).shape == (3, 1)
    for i in range(3):
        assert torch.allclose(z[i, 0], norm.dualize(batch[i, 0], v[i, 0]), atol=1e-12)


@every_norm
def test_dualize_leaves_its_inputs_alone(norm: Norm) -> None:
    m, v = MATRICES["7x5"].clone(), second_moment(MATRICES["7x5"])
    m_before, v_before = m.clone(), v.clone()
    norm.dualize(m, v).mul_(0)

    assert torch.equal(m, m_before) and torch.equal(v, v_before)


@every_norm
def test_the_scale_is_in_the_dualizer_and_in_the_dual_norm(norm: Norm) -> None:
    m = MATRICES["7x5"]
    v, wider = second_moment(m), replace(norm, scale=3 * norm.scale)  # type: ignore[type-var,attr-defined]

    assert torch.allclose(wider.dualize(m, v), 3 * norm.dualize(m, v))
    assert torch.allclose(3 * wider.norm(m, m, v), norm.norm(m, m, v))


@every_nonzero_matrix
def test_closed_forms_of_the_dual_norms(m: Tensor) -> None:
    rows, columns = m.shape
    expected = {
        L2(): m.div(1e20).norm() * 1e20 if m.abs().max() > 1e10 else m.norm(),
        Rms(): (rows * columns) ** 0.5 * torch.linalg.vector_norm(m),
        RowL2(): torch.linalg.vector_norm(m, dim=1).sum(),
        ColumnL2(): torch.linalg.vector_norm(m, dim=0).sum(),
        Linf(): m.abs().sum(),
        Spectral(polar=SVD()): torch.linalg.svdvals(m).sum(),
        Spectral(polar=SVD(), shape="moonlight"): 0.2
        * max(rows, columns) ** 0.5
        * torch.linalg.svdvals(m).sum(),
    }
    for norm, value in expected.items():
        assert torch.allclose(dual_norm(norm, m), value, rtol=1e-12), norm


@every_nonzero_matrix
def test_adams_two_norms_have_dual_norms_that_are_root_and_square(m: Tensor) -> None:
    """At m, ‖m‖_ada-inf* = Σ m² / (ε + √v) = (‖m‖_ada-2*)² (arXiv 2510.09827)."""
    v = second_moment(m)

    assert torch.allclose(dual_norm(AdaInf(), m), (m**2 / (1e-8 + v.sqrt())).sum())
    assert torch.allclose(dual_norm(AdaInf(), m), dual_norm(Ada2(), m) ** 2)


@pytest.mark.parametrize("norm", [L2(), Spectral(polar=SVD())])
def test_rotations_go_through_the_dualizers_of_invariant_norms(norm: Norm) -> None:
    m = MATRICES["7x5"]
    p, q = (torch.linalg.qr(torch.randn(n, n, dtype=m.dtype))[0] for n in m.shape)

    rotated = norm.dualize(p @ m @ q.mT, None)
    assert torch.allclose(rotated, p @ norm.dualize(m, None) @ q.mT, atol=1e-10)


def test_row_and_column_norms_are_each_others_transposes() -> None:
    m = MATRICES["7x5"]

    assert torch.equal(RowL2().dualize(m.mT, None), ColumnL2().dualize(m, None).mT)


@pytest.mark.parametrize("factor", [1e-20, 1e20])
@pytest.mark.parametrize("norm", [L2(), Rms(), RowL2(), ColumnL2(), Linf(), Spectral()])
def test_extreme_magnitudes_stay_exact_in_float32(norm: Norm, factor: float) -> None:
    """Squares of such entries leave the range of float32."""
    m = MATRICES["7x5"].float()

    assert torch.allclose(norm.dualize(factor * m, None), norm.dualize(m, None), atol=1e-3)


def test_shape_factors() -> None:
    tall, wide = (64, 16), (16, 64)

    assert [shape_factor("one", *s) for s in (tall, wide)] == [1, 1]
    assert [shape_factor("jordan", *s) for s in (tall, wide)] == [2, 1]
    assert [shape_factor("bernstein", *s) for s in (tall, wide)] == [2, 0.5]
    assert [shape_factor("moonlight", *s) for s in (tall, wide)] == pytest.approx([1.6, 1.6])
    assert [shape_factor("inputs", *s) for s in (tall, wide)] == [1 / 16, 1 / 64]


def test_moonlights_factor_makes_entries_of_rms_one_fifth() -> None:
    z = Spectral(shape="moonlight", polar=SVD()).dualize(MATRICES["4x16"], None)

    assert float(z.square().mean().sqrt()) == pytest.approx(0.2)


def test_bernsteins_factor_makes_the_rms_to_rms_operator_norm_one() -> None:
    z = Spectral(shape="bernstein", polar=SVD()).dualize(MATRICES["4x16"], None)

    assert float((16 / 4) ** 0.5 * torch.linalg.matrix_norm(z, 2)) == pytest.approx(1)


def test_blocks_are_dualized_on_their_own() -> None:
    """A fused query, key and value matrix holds three matrices."""
    q, k, v = (torch.randn(4, 5, dtype=torch.float64) for _ in range(3))
    fused, one = Spectral(polar=SVD(), blocks=3), Spectral(polar=SVD())
    whole = torch.cat([q, k, v])

    expected = torch.cat([one.dualize(part, None) for part in (q, k, v)])
    assert torch.allclose(fused.dualize(whole, None), expected)
    assert not torch.allclose(one.dualize(whole, None), expected)
    assert torch.allclose(
        fused.norm(whole, whole, None),
        torch.stack([one.norm(part, part, None) for part in (q, k, v)]).max(),
    )


def test_the_frobenius_estimate_is_below_the_dual_norm_by_at_most_the_root_of_the_rank() -> None:
    norm = Spectral(scale=4.0, polar=SVD())
    for m in NONZERO.values():
        ratio = float(norm.frobenius_dual(m) / dual_norm(norm, m))

        assert min(m.shape) ** -0.5 - 1e-9 <= ratio <= 1 + 1e-9


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: L2(scale=0.0),
        lambda: Spectral(scale=-1.0),
        lambda: Spectral(shape="square"),  # type: ignore[arg-type]
        lambda: Spectral(blocks=0),
        lambda: AdaInf(beta2=1.0),
        lambda: Ada2(eps=0.0),
    ],
)
def test_values_without_sense_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError):
        wrong()  # type: ignore[operator]


def test_the_names_of_shapes_are_the_ones_that_are_known() -> None:
    for shape in SHAPES:
        assert shape_factor(shape, 3, 4) > 0  # type: ignore[arg-type]
