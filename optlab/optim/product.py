"""Product norms: how the layers share a step, given the dual norm of each.

The norm of all weights is a norm of the vector of layer norms. Its dualizer gives the length of
every layer's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, nearest

ROLES = ("matrix", "conv", "embedding", "head", "vector")
MATRIX_ROLES = ("matrix", "conv")  # the layers that the papers call matrices


class ProductNorm(Protocol):
    """A norm on R^L, monotone on vectors with entries >= 0, given by its dualizer."""

    def dualize(self, d: Tensor, roles: Sequence[str]) -> Tensor:
        """Lengths s >= 0 of the steps, (L,), from the layers' dual norms ``d`` >= 0, (L,).

        The dual norm of the whole is ⟨d, s⟩. ``roles``: of the L layers.
        """
        ...

    def norm(self, w: Tensor, roles: Sequence[str]) -> Tensor:
        """The norm of all weights, shape (), from the layers' norms ``w``, (L,). For tests."""
        ...


@dataclass(frozen=True)
class Max:
    """max_l ‖w_l‖: every layer makes a full step; the dual norm is the sum."""

    def dualize(self, d: Tensor, roles: Sequence[str]) -> Tensor:
        return torch.ones_like(d)

    def norm(self, w: Tensor, roles: Sequence[str]) -> Tensor:
        return w.amax(-1)


@dataclass(frozen=True)
class Euclidean:
    """√(Σ_l ‖w_l‖²): steps in proportion to the dual norms."""

    def dualize(self, d: Tensor, roles: Sequence[str]) -> Tensor:
        return d / _positive(_length(d))

    def norm(self, w: Tensor, roles: Sequence[str]) -> Tensor:
        return _length(w).squeeze(-1)


@dataclass(frozen=True)
class Hybrid:
    """√((max over matrices)² + Σ over the other layers ‖w_l‖²): MuonMax's (arXiv 2510.09827)."""

    def dualize(self, d: Tensor, roles: Sequence[str]) -> Tensor:
        is_matrix = members(tuple(roles), MATRIX_ROLES, d.device)
        of_matrices = torch.where(is_matrix, d, 0.0).sum(-1, keepdim=True)
        rest = torch.where(is_matrix, 0.0, d)
        total = _length(torch.cat([of_matrices, rest], -1))
        return torch.where(is_matrix, of_matrices, d) / _positive(total)

    def norm(self, w: Tensor, roles: Sequence[str]) -> Tensor:
        is_matrix = members(tuple(roles), MATRIX_ROLES, w.device)
        largest = torch.where(is_matrix, w, 0.0).amax(-1, keepdim=True)
        rest = torch.where(is_matrix, 0.0, w)
        return _length(torch.cat([largest, rest], -1)).squeeze(-1)


@dataclass(frozen=True)
class Group:
    """The layers with a role in ``roles``, and the norm of the vector of their norms."""

    roles: Sequence[str]
    within: ProductNorm


@dataclass(frozen=True)
class Nested:
    """A norm ``across`` groups of the norms ``within`` each; every role is in one group.

    Hybrid is Euclidean across Max over (matrix, conv) and Euclidean over the rest.
    """

    across: ProductNorm
    groups: Sequence[Group]

    def __post_init__(self) -> None:
        named = [role for group in self.groups for role in group.roles]
        for role in named:
            if role not in ROLES:
                raise ConfigError(f"Nested: no role '{role}'.{nearest(role, ROLES)}")
        if sorted(named) != sorted(ROLES):
            raise ConfigError(
                f"Nested needs each of the roles {', '.join(ROLES)} in one of its groups; they"
                f" have: {', '.join(named)}."
            )

    def dualize(self, d: Tensor, roles: Sequence[str]) -> Tensor:
        parts = [torch.where(mask, d, 0.0) for mask in self._masks(d, roles)]
        inner = [
            group.within.dualize(part, roles)
            for group, part in zip(self.groups, parts, strict=True)
        ]
        totals = [(part * s).sum(-1) for part, s in zip(parts, inner, strict=True)]
        outer = self.across.dualize(torch.stack(totals, -1), ["group"] * len(totals))
        steps = [
            torch.where(mask, s * outer[..., i, None], 0.0)
            for i, (mask, s) in enumerate(zip(self._masks(d, roles), inner, strict=True))
        ]
        return torch.stack(steps).sum(0)

    def norm(self, w: Tensor, roles: Sequence[str]) -> Tensor:
        parts = [
            group.within.norm(torch.where(mask, w, 0.0), roles)
            for group, mask in zip(self.groups, self._masks(w, roles), strict=True)
        ]
        return self.across.norm(torch.stack(parts, -1), ["group"] * len(parts))

    def _masks(self, d: Tensor, roles: Sequence[str]) -> list[Tensor]:
        return [members(tuple(roles), tuple(group.roles), d.device) for group in self.groups]


@lru_cache(maxsize=64)
def members(roles: tuple[str, ...], chosen: tuple[str, ...], device: torch.device) -> Tensor:
    """Which layers have a role in ``chosen``, bool (L,); cached: a GPU gets its copy once."""
    return torch.tensor([role in chosen for role in roles], device=device)


def _length(d: Tensor) -> Tensor:
    """‖d‖₂ over the last axis, kept; safe for entries whose squares leave the range."""
    largest = _positive(d.amax(-1, keepdim=True))
    return torch.linalg.vector_norm(d / largest, dim=-1, keepdim=True) * largest


def _positive(x: Tensor) -> Tensor:
    return x.clamp(min=torch.finfo(x.dtype).tiny)
