"""Polar factors: exact laws of the exact one, stated accuracy of the others, safe coefficients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from optim.inputs import matrices, nonzero_matrices, spectra
from optlab.errors import ConfigError
from optlab.optim.polar import (
    CANS,
    JORDAN,
    POLAR_EXPRESS,
    SVD,
    YOU5,
    YOU6,
    Cans,
    Jordan,
    Polar,
    PolarExpress,
    Quintics,
    Turbo,
    You,
    _bounded_rows,
    check_safe,
    iterate,
    runs,
)

ITERATIONS: dict[str, Polar] = {
    "jordan": Jordan(),
    "you5": You(5),
    "you6": You(6),
    "polar express 5": PolarExpress(5),
    "polar express 6": PolarExpress(6),
    "polar express 9": PolarExpress(9),
    "cans": Cans(),
    "cans 7": Cans(7),
    "turbo": Turbo(),
    "quintics": Quintics([[2.0, -1.5, 0.5]] * 8),
}
POLARS: dict[str, Polar] = {"svd": SVD(), **ITERATIONS}
MATRICES, NONZERO = matrices(), nonzero_matrices()

every_polar = pytest.mark.parametrize("polar", POLARS.values(), ids=POLARS)
every_iteration = pytest.mark.parametrize("polar", ITERATIONS.values(), ids=ITERATIONS)


def in_dtype(polar: Polar, dtype: str) -> Polar:
    return type(polar)(**{**vars(polar), "dtype": dtype})


def singular_values(x: Tensor) -> Tensor:
    return torch.linalg.svdvals(x.double())


@pytest.mark.parametrize("x", NONZERO.values(), ids=NONZERO)
def test_svd_gives_singular_values_of_one_on_the_range_and_zero_beside(x: Tensor) -> None:
    s = singular_values(SVD()(x))
    rank = int(torch.linalg.matrix_rank(x / x.abs().max()))

    assert torch.allclose(s[:rank], torch.ones_like(s[:rank]), atol=1e-12)
    assert torch.allclose(s[rank:], torch.zeros_like(s[rank:]), atol=1e-12)


@pytest.mark.parametrize("x", NONZERO.values(), ids=NONZERO)
def test_svd_times_its_transpose_is_the_symmetric_root(x: Tensor) -> None:
    """For x = U S Vᵀ, x (U Vᵀ)ᵀ = U S Uᵀ, whose trace is the nuclear norm."""
    root = x @ SVD()(x).mT
    scale = x.abs().max()

    assert torch.allclose(root / scale, root.mT / scale, atol=1e-12)
    assert torch.allclose(root.trace() / scale, singular_values(x).sum() / scale, atol=1e-12)


@every_polar
@pytest.mark.parametrize("x", MATRICES.values(), ids=MATRICES)
def test_orientation_does_not_matter(polar: Polar, x: Tensor) -> None:
    if isinstance(polar, Turbo) and x.shape[0] == x.shape[1]:
        pytest.skip("Turbo scales the rows of a square matrix, not its columns")
    assert torch.allclose(polar(x.mT), polar(x).mT, atol=1e-8)


@every_polar
@pytest.mark.parametrize("x", MATRICES.values(), ids=MATRICES)
def test_a_batch_is_a_loop(polar: Polar, x: Tensor) -> None:
    batch = torch.stack([x, 2 * x.flip(0), -x]).unflatten(0, (3, 1))

    assert polar(batch).shape == batch.shape
    for row, single in zip(polar(batch), batch, strict=True):
        assert torch.allclose(row[0], polar(single[0]), atol=1e-8)


@every_polar
def test_zero_goes_to_zero(polar: Polar) -> None:
    assert torch.equal(polar(MATRICES["zero"]), MATRICES["zero"])


@every_polar
@pytest.mark.parametrize("factor", [1e-20, 1e-3, 1e20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_positive_factors_do_not_matter(polar: Polar, factor: float, dtype: torch.dtype) -> None:
    """Squares of such entries leave the range of float32."""
    x = MATRICES["7x5"].to(dtype)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3

    assert torch.allclose(polar(factor * x), polar(x), atol=tolerance)


@every_polar
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_not_hidden_and_stays_where_it_is(polar: Polar, bad: float) -> None:
    x = torch.stack([MATRICES["7x5"], 2 * MATRICES["7x5"] + 1])
    expected = polar(x)
    x[0, 0, 0] = bad
    found = polar(x)

    assert bool(found[0].isnan().all())
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("polar", [p for p in POLARS.values() if not isinstance(p, Turbo)])
def test_rotations_go_through(polar: Polar) -> None:
    """polar(P x Qᵀ) = P polar(x) Qᵀ for orthogonal P, Q."""
    x = MATRICES["7x5"]
    p, q = (torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0] for n in x.shape)

    assert torch.allclose(polar(p @ x @ q.mT), p @ polar(x) @ q.mT, atol=1e-8)


@pytest.mark.parametrize(
    ("polar", "low", "high"),
    [
        (Jordan(), 0.68, 1.21),  # never converges
        (You(5), 0.97, 1.04),
        (You(6), 0.99, 1.001),
        (PolarExpress(5), 0.83, 1.13),
        (PolarExpress(6), 0.99, 1.002),
        (PolarExpress(9), 1 - 1e-10, 1 + 1e-10),
        (Cans(5), 0.84, 1.125),
    ],
)
def test_singular_values_end_in_the_known_interval(polar: Polar, low: float, high: float) -> None:
    """For inputs whose singular values are above 1 % of the Frobenius norm (reference, 3.3)."""
    s = singular_values(polar(torch.diag(torch.linspace(0.03, 1.0, 40, dtype=torch.float64))))

    assert low <= float(s.min()) and float(s.max()) <= high


@pytest.mark.parametrize("polar", [PolarExpress(), You(6)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dual_norms_of_the_default_are_within_half_a_percent(polar: Polar, dtype: str) -> None:
    """⟨x, polar(x)⟩ against the nuclear norm, on Gaussian matrices and 1 / k spectra."""
    torch.manual_seed(0)
    gaussian = torch.randn(256, 256, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(gaussian)
    for x in (gaussian, (u / torch.arange(1, 257, dtype=torch.float64)) @ vt):
        estimate = (x * in_dtype(polar, dtype)(x.float()).double()).sum()

        assert float(estimate / singular_values(x).sum()) == pytest.approx(1, abs=0.005)


def test_jordan_underestimates_dual_norms() -> None:
    """Why it is not the default: steps that depend on the dual norm come out 5 to 7 % short."""
    torch.manual_seed(0)
    x = torch.randn(256, 256, dtype=torch.float64)

    assert 0.85 < float((x * Jordan()(x)).sum() / singular_values(x).sum()) < 0.97


@every_iteration
@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_never_becomes_ascent_in_bfloat16(polar: Polar, rank: int) -> None:
    """Where the largest singular value is the norm, lists with a sign flip or a pole fail."""
    torch.manual_seed(0)
    for _ in range(40):
        x = torch.randn(64, rank) @ torch.randn(rank, 128)
        z = in_dtype(polar, "bfloat16")(x)

        assert float((x * z).sum()) > 0.5 * float(singular_values(x).sum())


@pytest.mark.parametrize(
    ("triples", "safety"),
    [
        (POLAR_EXPRESS[:5], 1.0),  # explodes above 1
        (CANS, 1.0),
        (CANS, 1.01),
        ([(4.0098, -7.0585, 2.4635), *YOU5[2:]], 1.0),  # negative at 1 ("aol" of a known package)
        ([(3.3657, -3.3421, 0.0), *YOU5[1:]], 1.0),  # a cubic, negative above 1.0035
        ([(3.4916, -4.8224, 2.1095)] * 7, 1.0),  # ROOT's (2048, 2048): an unstable fixed point
    ],
)
def test_unsafe_coefficients_are_refused(
    triples: list[tuple[float, float, float]], safety: float
) -> None:
    with pytest.raises(ConfigError, match="raise the safety"):
        check_safe(triples, safety)


@pytest.mark.parametrize("triples", [(JORDAN,) * 5, YOU5, YOU5[1:], YOU6])
def test_fixed_coefficients_are_safe(triples: tuple[tuple[float, float, float], ...]) -> None:
    check_safe(triples, 1.0)


def test_polar_express_and_cans_check_their_safety() -> None:
    for unsafe in (
        lambda: PolarExpress(5, safety=1.0),
        lambda: Cans(safety=1.0),
        lambda: Quintics([[3.0, -4.5, 0.5]]),
    ):
        with pytest.raises(ConfigError):
            unsafe()


def test_step_counts_are_checked() -> None:
    for wrong in (lambda: Jordan(0), lambda: You(4), lambda: PolarExpress(0), lambda: Cans(0)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"steps?, not"):
            wrong()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Jordan(5), Jordan(6)),
        (You(5), You(6)),
        (PolarExpress(5), PolarExpress(6)),
        (PolarExpress(5), PolarExpress(5, safety=1.1)),
        (Cans(4), Cans(5)),
        (Cans(5), Cans(5, safety=1.1)),
        (Jordan(5), Jordan(5, dtype="float32")),
        (Turbo(), Turbo(dtype="bfloat16")),
    ],
)
def test_every_option_changes_the_result(one: Polar, other: Polar) -> None:
    assert not torch.equal(one(MATRICES["7x5"]), other(MATRICES["7x5"]))


def test_the_default_precision_is_the_inputs_on_a_cpu() -> None:
    x = MATRICES["7x5"]

    assert torch.equal(Jordan()(x), Jordan(dtype="float64")(x))
    assert torch.equal(Jordan()(x.float()), Jordan(dtype="float32")(x.float()))
    assert Jordan()(x.bfloat16()).dtype == torch.bfloat16


def standard_form(x: Tensor, triples: list[tuple[float, float, float]]) -> Tensor:
    for a, b, c in triples:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("polar", [Jordan(), You(6), PolarExpress(7), Cans()])
def test_the_gram_form_is_the_standard_form(polar: Polar) -> None:
    """In exact arithmetic; float64, on a wide matrix that takes runs of three steps."""
    x = MATRICES["4x16"]
    triples = {Jordan: [JORDAN] * 5, You: list(YOU6)}.get(type(polar)) or list(polar.triples)  # type: ignore[attr-defined]
    safety = getattr(polar, "safety", 1.0)

    assert max(len(run) for run in runs([x[None]], triples)) == 3
    expected = standard_form(x / (safety * torch.linalg.matrix_norm(x)), triples)
    assert torch.allclose(polar(x), expected, atol=1e-10)


@every_iteration
@pytest.mark.parametrize(("m", "n"), [(64, 256), (128, 512), (16, 1024)])
def test_the_gram_form_is_safe_in_float32(polar: Polar, m: int, n: int) -> None:
    for name, x in spectra(m, n).items():
        gram, exact = in_dtype(polar, "float32")(x.float()), in_dtype(polar, "float64")(x)
        error = torch.linalg.matrix_norm(gram.double() - exact, 2)

        assert float(error) < 0.05 if "spread" in name or name == "cauchy" else float(error) < 5e-3


@every_iteration
@pytest.mark.parametrize(("m", "n"), [(128, 512), (512, 128), (96, 4096), (16, 64)])
def test_the_gram_form_never_explodes_in_bfloat16(polar: Polar, m: int, n: int) -> None:
    """Without forming Y anew, these spectra end at singular values of 10 to 1e13."""
    for x in spectra(m, n).values():
        largest = float(singular_values(in_dtype(polar, "bfloat16")(x.float())).max())

        assert largest < 1.4


@pytest.mark.parametrize(("m", "n"), [(64, 256), (128, 512), (512, 128), (256, 1024)])
def test_the_gram_form_in_bfloat16_is_accurate(m: int, n: int) -> None:
    """With the identity kept apart from B, A and Y lose each other: the error is then 4 to 5 %."""
    torch.manual_seed(0)
    x = torch.randn(m, n, dtype=torch.float64)
    exact = Jordan(dtype="float64")(x)
    error = torch.linalg.matrix_norm(Jordan(dtype="bfloat16")(x.float()).double() - exact)

    assert float(error / torch.linalg.matrix_norm(exact)) < 0.04


def stacks(dtype: torch.dtype) -> list[Tensor]:
    """Of matrices that share their shorter side: tall, square, wide, and in blocks."""
    torch.manual_seed(0)
    shapes = [(2, 1, 192, 64), (3, 1, 64, 64), (1, 1, 64, 256), (1, 3, 64, 64)]
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


@every_polar
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_together_is_one_by_one(polar: Polar, dtype: torch.dtype) -> None:
    """To the bit, so that a model's results do not depend on what is stacked with what."""
    xs = stacks(dtype)

    for x, z in zip(xs, polar.together(xs), strict=True):
        assert torch.equal(z, polar(x))


@every_iteration
def test_together_in_bfloat16_is_as_good_as_one_by_one(polar: Polar) -> None:
    xs = stacks(torch.float32)

    for x, z in zip(xs, in_dtype(polar, "bfloat16").together(xs), strict=True):
        exact = in_dtype(polar, "float64")(x.double())
        error = torch.linalg.matrix_norm(z - exact) / torch.linalg.matrix_norm(exact)
        assert z.dtype == x.dtype and float(error.max()) < 0.06


def test_stacks_share_products_in_bfloat16() -> None:
    """A call costs more than the arithmetic in it: 35 for four stacks, and not 60."""

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            self.count += func.overloadpacket.__name__ in ("bmm", "baddbmm")
            return func(*args, **(kwargs or {}))

    with Products() as products:
        Jordan(5, "bfloat16").together(stacks(torch.float32))

    assert products.count == 3 * 4 + 3 * 4 + 5 + 2 * 3


def test_bfloat16_takes_long_runs_only_of_coefficients_that_allow_them() -> None:
    wide = torch.zeros(1, 128, 512, dtype=torch.bfloat16)

    assert [len(run) for run in runs([wide], [JORDAN] * 5)] == [1, 2, 2]
    assert [len(run) for run in runs([wide], PolarExpress(5).triples)] == [1, 1, 1, 1, 1]
    assert [len(run) for run in runs([wide.float()], PolarExpress(5).triples)] == [3, 2]
    assert [len(run) for run in runs([wide[..., :128].float()], PolarExpress(5).triples)] == [1] * 5


def test_the_largest_singular_value_after_row_scaling_is_at_most_one() -> None:
    """AOL's guarantee: Turbo's first step sees no singular value above 1."""
    identity = ((1.0, 0.0, 0.0),)
    for x in nonzero_matrices().values():
        (y,) = iterate([x], identity, 1.0, "auto", _bounded_rows)
        assert float(singular_values(y).max()) <= 1 + 1e-12
