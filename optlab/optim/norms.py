"""Norms on one parameter, each given by its dualizer.

Every parameter is seen as a matrix (rows, columns): a vector has one row, a convolution's weight
(out, in, k, k) is (out, in k k). All mathematics acts on these last two axes; leading axes are a
batch. ``scale`` s divides the norm, so that both its dual norm and its dualizer carry s. Where the
last of the leading axes is one of K replicas, numbers may be tensors (K,) (see ``replicas``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .polar import Polar, PolarExpress
from .replicas import Hyper, spread

Shape = Literal["one", "jordan", "bernstein", "moonlight", "inputs"]
SHAPES = ("one", "jordan", "bernstein", "moonlight", "inputs")
MATRIX, ROW, COLUMN = (-2, -1), (-1,), (-2,)


class Norm(Protocol):
    """A norm on matrices (..., rows, columns), given by its dualizer.

    The dual norm needs no code: it is ⟨m, dualize(m)⟩, exact for an exact dualizer, and consistent
    with the step for an approximate one. Implementations are frozen dataclasses, so that a norm
    prints as its config.
    """

    @property
    def beta2(self) -> Hyper | None:
        """Weight of the past in the second moment v; None where the norm needs no v."""
        ...

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        """argmax of ⟨m, z⟩ over ‖z‖ <= 1; zero where ``m`` is. ``v``: mean squared gradient."""
        ...

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        """‖w‖, shape (...). For tests and diagnostics; Adam's norms depend on ``m`` and ``v``."""
        ...


@dataclass(frozen=True)
class L2:
    """The Frobenius norm ‖w‖₂ / s; its dualizer is m / ‖m‖₂."""

    beta2: None = field(default=None, init=False, repr=False)  # keeps no v
    scale: Hyper = 1.0

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        return _scaled(_unit(m, MATRIX), self.scale)

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        return _length(w, MATRIX).squeeze(MATRIX) / self.scale


@dataclass(frozen=True)
class Rms:
    """The root mean square ‖w‖₂ / (s √N) of N entries; its dualizer is √N m / ‖m‖₂."""

    beta2: None = field(default=None, init=False, repr=False)  # keeps no v
    scale: Hyper = 1.0

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        return _scaled(_unit(m, MATRIX), self.scale * _entries(m) ** 0.5)

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        return _length(w, MATRIX).squeeze(MATRIX) / (self.scale * _entries(w) ** 0.5)


@dataclass(frozen=True)
class RowL2:
    """The longest row max_i ‖w_i‖₂ / s; dualizer: every row to length 1; dual norm Σ_i ‖m_i‖₂.

    For an embedding (vocabulary, width) a row is a token (arXiv 2502.07529, where it is a column).
    """

    beta2: None = field(default=None, init=False, repr=False)  # keeps no v
    scale: Hyper = 1.0

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        return _scaled(_unit(m, ROW), self.scale)

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        return _length(w, ROW).amax(MATRIX) / self.scale


@dataclass(frozen=True)
class ColumnL2:
    """The longest column max_j ‖w_j‖₂ / s; dualizer: every column to length 1."""

    beta2: None = field(default=None, init=False, repr=False)  # keeps no v
    scale: Hyper = 1.0

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        return _scaled(_unit(m, COLUMN), self.scale)

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        return _length(w, COLUMN).amax(MATRIX) / self.scale


@dataclass(frozen=True)
class Linf:
    """The largest entry max |w_ij| / (s c); its dualizer is the sign, its dual norm Σ |m_ij|.

    ``shape`` is the factor c that depends on the matrix's shape (see ``shape_factor``).
    """

    beta2: None = field(default=None, init=False, repr=False)  # keeps no v
    scale: Hyper = 1.0
    shape: Shape = "one"

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)
        shape_factor(self.shape, 1, 1)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        return _scaled(m.sign(), self._factor(m))

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        return w.abs().amax(MATRIX) / self._factor(w)

    def _factor(self, w: Tensor) -> Hyper:
        return self.scale * shape_factor(self.shape, *w.shape[-2:])


@dataclass(frozen=True)
class Spectral:
    """The largest singular value σ_max(w) / (s c); dual: the nuclear norm; dualizer: U Vᵀ.

    ``shape`` is the factor c that depends on the matrix's shape (see ``shape_factor``). A ratio r
    of the matrices' learning rate to the others' is s c = r if constrained with the product Max,
    and s c = √r if regularized with Euclidean or Hybrid (arXiv 2510.09827). ``blocks`` says how
    many matrices a parameter holds one below the other, such as 3 for fused queries, keys and
    values; the norm is then the largest of theirs.
    """

    beta2: None = field(default=None, init=False, repr=False)  # keeps no v
    scale: Hyper = 1.0
    shape: Shape = "one"
    polar: Polar = field(default_factory=PolarExpress)
    blocks: int = 1

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)
        shape_factor(self.shape, 1, 1)
        if self.blocks < 1:
            raise ConfigError(f"Spectral.blocks must be at least 1, not {self.blocks}.")

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        return self.dualize_together([m])[0]

    def dualize_together(self, ms: Sequence[Tensor]) -> list[Tensor]:
        """Of several stacks of matrices whose blocks' shorter sides agree."""
        blocks = [self._split(m) for m in ms]
        return [
            _scaled(z.view(m.shape), self._factor(z))
            for m, z in zip(ms, self.polar.together(blocks), strict=True)
        ]

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        w_blocks = self._split(w)
        return torch.linalg.matrix_norm(w_blocks, 2).amax(-1) / self._factor(w_blocks)

    def frobenius_dual(self, m: Tensor) -> Tensor:
        """s c ‖m‖_F, shape (...): below the dual norm by up to √rank (arXiv 2510.09827)."""
        m_blocks = self._split(m)
        return _length(m_blocks, MATRIX).sum((-3, -2, -1)) * self._factor(m_blocks)

    def _split(self, w: Tensor) -> Tensor:
        """(..., blocks, rows, columns)."""
        return w.unflatten(-2, (self.blocks, -1))

    def _factor(self, w: Tensor) -> Hyper:
        return self.scale * shape_factor(self.shape, *w.shape[-2:])


@dataclass(frozen=True)
class AdaInf:
    """Adam's metric in max norm, max |w_ij| (ε + √v_ij) / (s |m_ij|) (arXiv 2510.09827).

    Its dualizer at m is s m / (ε + √v). Here v starts at the first squared gradient by default and
    has no bias correction, unlike Adam's.
    """

    scale: Hyper = 1.0
    beta2: Hyper = 0.95
    eps: Hyper = 1.0e-8

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)
        _check_second_moment(self, self.beta2, self.eps)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        denominator = _denominator(v, self.eps)
        return _scaled(torch.div(m, denominator, out=denominator), self.scale)

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        ratios = w.abs() * _denominator(v, self.eps) / m.abs()
        return torch.where(w == 0, 0.0, ratios).amax(MATRIX) / self.scale


@dataclass(frozen=True)
class Ada2:
    """Adam's metric in 2-norm, √(Σ (ε + √v_ij) w_ij²) / s (arXiv 2510.09827).

    Its dualizer is s m / ((ε + √v) ‖m‖_*), where ‖m‖_* = √(Σ m_ij² / (ε + √v_ij)).
    """

    scale: Hyper = 1.0
    beta2: Hyper = 0.95
    eps: Hyper = 1.0e-8

    def __post_init__(self) -> None:
        _check_scale(self, self.scale)
        _check_second_moment(self, self.beta2, self.eps)

    def dualize(self, m: Tensor, v: Tensor | None) -> Tensor:
        root = _denominator(v, self.eps).sqrt_()
        return _scaled(_unit(m / root, MATRIX).div_(root), self.scale)

    def norm(self, w: Tensor, m: Tensor, v: Tensor | None) -> Tensor:
        return _length(w * _denominator(v, self.eps).sqrt(), MATRIX).squeeze(MATRIX) / self.scale


def shape_factor(shape: Shape, rows: int, columns: int) -> float:
    """The factor of a step on a matrix (fan out ``rows``, fan in ``columns``), after its shape.

    ``one`` 1; ``jordan`` √max(1, rows / columns) (K. Jordan, torch.optim.Muon); ``bernstein``
    √(rows / columns), the unit RMS-to-RMS operator norm (arXiv 2410.21265); ``moonlight``
    0.2 √max(rows, columns), the entries' RMS being 0.2 (arXiv 2502.16982); ``inputs`` 1 / columns,
    Scion's for the sign (arXiv 2502.07529).
    """
    factors = {
        "one": 1.0,
        "jordan": max(1.0, rows / columns) ** 0.5,
        "bernstein": (rows / columns) ** 0.5,
        "moonlight": 0.2 * max(rows, columns) ** 0.5,
        "inputs": 1 / columns,
    }
    if shape not in factors:
        raise ConfigError(f"shape must be one of {', '.join(factors)}, not '{shape}'.")
    return factors[shape]


def _entries(x: Tensor) -> int:
    return x.shape[-2] * x.shape[-1]


def _scaled(z: Tensor, factor: Hyper) -> Tensor:
    """``factor`` times ``z``, which may be overwritten."""
    if isinstance(factor, Tensor):
        return z.mul_(spread(factor, 2, z.dtype))
    return z if factor == 1.0 else z.mul_(factor)


def _length(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """‖x‖₂ over ``axes``, kept; safe for entries whose squares leave the range of the dtype."""
    largest = _largest(x, axes)
    return torch.linalg.vector_norm(x / largest, dim=axes, keepdim=True) * largest


def _largest(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The largest entry over ``axes``, kept, in absolute value; above 0."""
    largest = torch.maximum(x.amax(axes, keepdim=True), -x.amin(axes, keepdim=True))
    return largest.clamp(min=torch.finfo(x.dtype).tiny)


def _unit(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """``x`` / ‖x‖₂ over ``axes``; zero where ``x`` is."""
    y = x / _largest(x, axes)
    norm = torch.linalg.vector_norm(y, dim=axes, keepdim=True)
    return y.div_(norm.clamp(min=torch.finfo(x.dtype).tiny))


def _denominator(v: Tensor | None, eps: Hyper) -> Tensor:
    assert v is not None, "the optimizer keeps v for norms with a beta2"
    return v.sqrt().add_(spread(eps, 2, v.dtype))


def _check_scale(norm: object, scale: Hyper) -> None:
    if not scale > 0:
        raise ConfigError(f"{type(norm).__name__}.scale must be above 0, not {scale}.")


def _check_second_moment(norm: object, beta2: Hyper, eps: Hyper) -> None:
    if not 0 <= beta2 < 1:
        raise ConfigError(f"{type(norm).__name__}.beta2 must be in [0, 1), not {beta2}.")
    if not eps > 0:
        raise ConfigError(f"{type(norm).__name__}.eps must be above 0, not {eps}.")
