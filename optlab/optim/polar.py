"""Polar factors: the orthogonal matrix U Vᵀ nearest to a matrix U S Vᵀ, exact or iterated.

Every one takes (..., m, n), leading axes being a batch, and returns the same shape and dtype. Zero
singular values stay zero; a matrix that is not finite gives NaN, and the others of its batch what
they give without it. The iterations apply odd quintics a s + b s³ + c s⁵ to the singular
values of the normalized matrix, one triple (a, b, c) a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError

Triple = tuple[float, float, float]
Precision = Literal["auto", "bfloat16", "float32", "float64"]


class Polar(Protocol):
    """A map from matrices to their (approximate) polar factors."""

    def __call__(self, x: Tensor) -> Tensor:
        """U Vᵀ of ``x`` = U S Vᵀ, (..., m, n); invariant to positive factors, zero at zero."""
        ...

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        """Of several stacks of matrices whose shorter sides agree, in as few calls as possible."""
        ...


@dataclass(frozen=True)
class SVD:
    """The exact polar factor, by singular value decomposition in the input's dtype."""

    def __call__(self, x: Tensor) -> Tensor:
        y = _unit_scale(x)
        finite = y.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
        # of a matrix that is not finite svd raises, for the whole batch
        u, s, vt = torch.linalg.svd(torch.where(finite, y, 0.0), full_matrices=False)
        zero = s[..., :1] * torch.finfo(x.dtype).eps * max(x.shape[-2:])
        return torch.where(finite, (u * (s > zero).unsqueeze(-2)) @ vt, torch.nan)

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return [self(x) for x in xs]


@dataclass(frozen=True)
class Jordan:
    """Newton-Schulz with one quintic throughout (K. Jordan, Muon): singular values 0.68 to 1.2."""

    steps: int = 5
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        _check_steps(self, self.steps)

    def __call__(self, x: Tensor) -> Tensor:
        return self.together([x])[0]

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return iterate(xs, (JORDAN,) * self.steps, 1.0, self.dtype)


@dataclass(frozen=True)
class You:
    """Newton-Schulz with the 5 or 6 quintics of You Jiacheng; the six are modula's."""

    steps: Literal[5, 6] = 6
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        if self.steps not in (5, 6):
            raise ConfigError(f"You has 5 or 6 steps, not {self.steps}.")

    def __call__(self, x: Tensor) -> Tensor:
        return self.together([x])[0]

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return iterate(xs, YOU5 if self.steps == 5 else YOU6, 1.0, self.dtype)


@dataclass(frozen=True)
class PolarExpress:
    """The composition of ``steps`` quintics of least largest error (arXiv 2505.16932, Alg. 1).

    Optimal for singular values in [1e-3, 1] relative to the Frobenius norm. ``safety`` divides the
    input, and the polynomials' arguments, so that rounding cannot leave the interval.
    """

    steps: int = 6
    safety: float = 1.01
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        _check_steps(self, self.steps)
        check_safe(self.triples, self.safety)

    @property
    def triples(self) -> tuple[Triple, ...]:
        """The quintics of the steps, safety included."""
        safe = _deflated(POLAR_EXPRESS, self.safety)
        return safe[: self.steps] + (POLAR_EXPRESS_END,) * (self.steps - len(safe))

    def __call__(self, x: Tensor) -> Tensor:
        return self.together([x])[0]

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return iterate(xs, self.triples, self.safety, self.dtype)


@dataclass(frozen=True)
class Cans:
    """Chebyshev-optimal quintics (arXiv 2506.10935), with a ``safety`` as in PolarExpress.

    The published list has none and explodes just above 1, where rounding to bfloat16 leads.
    """

    steps: int = 5
    safety: float = 1.02
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        _check_steps(self, self.steps)
        check_safe(self.triples, self.safety)

    @property
    def triples(self) -> tuple[Triple, ...]:
        """The quintics of the steps, safety included; the last repeats."""
        safe = _deflated(CANS, self.safety)
        return safe[: self.steps] + safe[-1:] * (self.steps - len(safe))

    def __call__(self, x: Tensor) -> Tensor:
        return self.together([x])[0]

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return iterate(xs, self.triples, self.safety, self.dtype)


@dataclass(frozen=True)
class Turbo:
    """Turbo-Muon: almost-orthogonal scaling of the rows, then You's last four quintics.

    (arXiv 2512.04632.) The scaling bounds the largest singular value by 1 and saves a step, but
    changes the matrix: the result is near the polar factor where the rows are near orthogonal.
    """

    dtype: Precision = "auto"

    def __call__(self, x: Tensor) -> Tensor:
        return self.together([x])[0]

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return iterate(xs, YOU5[1:], 1.0, self.dtype, _bounded_rows)


@dataclass(frozen=True)
class Quintics:
    """Any list of quintics (a, b, c), checked to keep singular values positive."""

    triples: Sequence[Sequence[float]]
    safety: float = 1.0
    dtype: Precision = "auto"

    def __post_init__(self) -> None:
        triples = tuple((float(a), float(b), float(c)) for a, b, c in self.triples)
        object.__setattr__(self, "triples", triples)  # hashable, whatever a YAML file gives
        _check_steps(self, len(triples))
        check_safe(triples, self.safety)

    def __call__(self, x: Tensor) -> Tensor:
        return self.together([x])[0]

    def together(self, xs: Sequence[Tensor]) -> list[Tensor]:
        return iterate(xs, [(a, b, c) for a, b, c in self.triples], self.safety, self.dtype)


JORDAN: Triple = (3.4445, -4.7750, 2.0315)
YOU5: tuple[Triple, ...] = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
YOU6: tuple[Triple, ...] = (
    (3955 / 1024, -8306 / 1024, 5008 / 1024),
    (3735 / 1024, -6681 / 1024, 3463 / 1024),
    (3799 / 1024, -6499 / 1024, 3211 / 1024),
    (4019 / 1024, -6385 / 1024, 2906 / 1024),
    (2677 / 1024, -3029 / 1024, 1162 / 1024),
    (2172 / 1024, -1833 / 1024, 682 / 1024),
)
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.287212, -23.595887, 17.300387),
    (4.107059, -2.947850, 0.544843),
    (3.948691, -2.908902, 0.551819),
    (3.318420, -2.488488, 0.510049),
    (2.300652, -1.668904, 0.418807),
    (1.891301, -1.267996, 0.376804),
    (1.875001, -1.250002, 0.375000),
)
POLAR_EXPRESS_END: Triple = (1.875, -1.25, 0.375)
CANS: tuple[Triple, ...] = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)


def iterate(
    xs: Sequence[Tensor],
    triples: Sequence[Triple],
    safety: float,
    dtype: Precision,
    bound: Callable[[Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Apply the quintics ``triples`` to the singular values of x / (``safety`` ‖x‖_F).

    ``xs`` are stacks of matrices whose shorter sides agree; in bfloat16, where a call costs more
    than the arithmetic on small matrices, they share the m x m products. ``bound`` further scales
    the rows or columns of the normalized matrices.
    """
    working = _working_dtype(xs[0], dtype)
    if len(xs) > 1 and not _is_half(working):
        return [y for x in xs for y in iterate([x], triples, safety, dtype, bound)]
    ys = [_normalized(x.reshape(-1, *x.shape[-2:]), safety) for x in xs]
    ys = ys if bound is None else [bound(y) for y in ys]
    ys = [y.to(working) for y in ys]
    for run in runs(ys, triples):
        ys = apply_quintics(ys, run)
    return [y.reshape(x.shape).to(x.dtype) for x, y in zip(xs, ys, strict=True)]


def apply_quintics(ys: Sequence[Tensor], triples: Sequence[Triple]) -> list[Tensor]:
    """Y <- a Y + B Y, where B = b A + c A² and A = Y Yᵀ, for each triple; Y (batch, m, n) each.

    Y itself is only formed at the end: until then its factor and A are iterated, which are m x m
    and one batch for all ``ys``. This is the Gram form; with one triple it is the standard
    Newton-Schulz step. Tall matrices are multiplied from the right instead.
    """
    grams = [torch.bmm(y.mT, y) if _is_tall(y) else torch.bmm(y, y.mT) for y in ys]
    gram = grams[0] if len(ys) == 1 else torch.cat(grams)
    if _is_half(gram.dtype) and len(triples) > 1:
        factors = _split(_factor(gram, triples), ys)
        return [
            torch.bmm(y, factor) if _is_tall(y) else torch.bmm(factor, y)
            for y, factor in zip(ys, factors, strict=True)
        ]
    alpha, q = _parts_of_factor(gram, triples)
    return [
        torch.baddbmm(y, y, q, beta=alpha) if _is_tall(y) else torch.baddbmm(y, q, y, beta=alpha)
        for y, q in zip(ys, _split(q, ys), strict=True)
    ]


def _split(batch: Tensor, ys: Sequence[Tensor]) -> Sequence[Tensor]:
    """The parts of ``batch`` that belong to each of ``ys``."""
    return torch.split_with_sizes(batch, [y.shape[0] for y in ys])


def _factor(gram: Tensor, triples: Sequence[Triple]) -> Tensor:
    """The product of the T = a I + b A + c A², where A <- T A T; ``gram`` is the first A.

    In bfloat16, A and T so stay closer to each other than with the identity apart, and products
    without an addition are faster.
    """
    t = factor = _quintic(gram, triples[0])
    for triple in triples[1:]:
        gram = torch.bmm(torch.bmm(t, gram), t)
        t = _quintic(gram, triple)
        factor = torch.bmm(t, factor)
    return factor


def _quintic(gram: Tensor, triple: Triple) -> Tensor:
    """T = a I + b A + c A²."""
    a, b, c = triple
    t = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    t.diagonal(dim1=-2, dim2=-1).add_(a)
    return t


def _parts_of_factor(gram: Tensor, triples: Sequence[Triple]) -> tuple[float, Tensor]:
    """α and Q of the factor α I + Q: A <- (a + B)² A and α + Q <- (a + B) (α + Q)."""
    (a, b, c), *others = triples
    polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    alpha, q = a, polynomial
    for a_next, b, c in others:
        gram = torch.baddbmm(gram, polynomial, gram, beta=a)
        gram = torch.baddbmm(gram, polynomial, gram, beta=a)
        a = a_next
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        weighted = torch.add(polynomial, q, alpha=a / alpha)
        alpha, q = a * alpha, torch.baddbmm(weighted, polynomial, q, beta=alpha)
    return alpha, q


def _is_half(dtype: torch.dtype) -> bool:
    return dtype in (torch.bfloat16, torch.float16)


def _is_tall(y: Tensor) -> bool:
    return y.shape[-2] > y.shape[-1]


def runs(ys: Sequence[Tensor], triples: Sequence[Triple]) -> list[list[Triple]]:
    """The triples, in runs after which the Y are formed anew.

    Runs of three save products where one side is at least twice the other. In bfloat16 they are
    shorter: where p(s) / s falls far below a, the next steps amplify rounding errors that A and Y
    do not share, without bound. There only the last of two steps may do so, and the first step is
    alone.
    """
    if not any(max(y.shape[-2:]) >= 2 * min(y.shape[-2:]) for y in ys):
        return [[triple] for triple in triples]
    half = _is_half(ys[0].dtype)
    found, may_go_on = [[triples[0]]], not half
    for a, b, c in triples[1:]:
        if may_go_on and len(found[-1]) < (2 if half else 3):
            found[-1].append((a, b, c))
        else:
            found.append([(a, b, c)])
        may_go_on = not half or (a - b**2 / (4 * c)) / a >= 0.18
    return found


def _normalized(x: Tensor, safety: float) -> Tensor:
    """``x`` / (``safety`` ‖x‖_F), zero at zero."""
    y = _unit_scale(x)
    norm = torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True)
    return y.mul_((safety * norm).clamp(min=torch.finfo(x.dtype).tiny).reciprocal())


def _bounded_rows(y: Tensor) -> Tensor:
    """The short side divided by the roots of the absolute row sums of its Gram matrix.

    (AOL, arXiv 2208.03160.) The largest singular value is then at most 1.
    """
    tall = y.shape[-2] > y.shape[-1]
    sums = (y.mT @ y if tall else y @ y.mT).abs().sum(-1)
    scale = sums.clamp(min=torch.finfo(y.dtype).tiny).rsqrt()
    return y * (scale.unsqueeze(-2) if tall else scale.unsqueeze(-1))


def _unit_scale(x: Tensor) -> Tensor:
    """``x`` divided by its largest entry: squares of 1e-20 or 1e20 leave the range of float32."""
    largest = torch.maximum(x.amax((-2, -1), keepdim=True), -x.amin((-2, -1), keepdim=True))
    return x * largest.clamp(min=torch.finfo(x.dtype).tiny).reciprocal()


def _working_dtype(x: Tensor, dtype: Precision) -> torch.dtype:
    if dtype != "auto":
        return getattr(torch, dtype)
    if x.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if x.is_cuda else torch.float32


def check_safe(triples: Sequence[Triple], safety: float) -> None:
    """Raise unless the composition is safe for normalized singular values s in (0, 1.02].

    Every prefix must be positive, since a negative value turns descent into ascent, and the whole
    at most 2. Published lists fail in both ways; 1.02 leaves room for rounding to bfloat16.

    Raises:
        ConfigError: the composition is not safe.
    """
    s = torch.linspace(0.0, 1.02, 20001, dtype=torch.float64, device="cpu")[1:]
    values = s / safety
    for step, triple in enumerate(triples, 1):
        values = _apply(values, triple)
        bad = ~(values > 0) if step < len(triples) else ~((values > 0) & (values <= 2))
        if bool(bad.any()):
            raise ConfigError(
                f"{step} quintics with safety {safety:g} map the singular value"
                f" {float(s[bad][0]):.4g} to {float(values[bad][0]):.4g}, not into (0, 2]: raise"
                " the safety, or take other coefficients."
            )


def _deflated(triples: Sequence[Triple], safety: float) -> tuple[Triple, ...]:
    """The quintics of s / ``safety``."""
    return tuple((a / safety, b / safety**3, c / safety**5) for a, b, c in triples)


def _apply(s: Tensor, triple: Triple) -> Tensor:
    a, b, c = triple
    return s * (a + s**2 * (b + c * s**2))


def _check_steps(polar: object, steps: int) -> None:
    if steps < 1:
        raise ConfigError(f"{type(polar).__name__} needs at least 1 step, not {steps}.")
