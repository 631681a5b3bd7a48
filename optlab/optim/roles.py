"""Parameter roles, and the norm that each parameter gets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError, nearest
from .norms import Norm, Spectral
from .product import ROLES

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Assignment:
    """A norm for every parameter: by its role, with exceptions by its name.

    ``conv`` is that of ``matrix`` where null; ``embedding``, ``head`` and ``vector`` are ``others``
    where null. A key of ``by_name`` is a glob on parameter names, such as ``blocks.*.qkv.weight``.
    """

    matrix: Norm
    others: Norm
    conv: Norm | None = None
    embedding: Norm | None = None
    head: Norm | None = None
    vector: Norm | None = None
    by_name: Mapping[str, Norm] = field(default_factory=dict)

    def of_role(self, role: str) -> Norm:
        """The norm of the parameters with ``role`` that have no exception."""
        chosen = {
            "matrix": self.matrix,
            "conv": self.conv or self.matrix,
            "embedding": self.embedding or self.others,
            "head": self.head or self.others,
            "vector": self.vector or self.others,
        }
        return chosen[role]


@dataclass(frozen=True)
class Assigned:
    """One line of the norm-assignment card."""

    name: str
    shape: tuple[int, ...]
    role: str
    norm: Norm
    rule: str  # the role, or the glob that made an exception


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """One PyTorch parameter group per role, with keys ``params``, ``names`` and ``role``.

    A role is what ``model.roles`` (regular expression on the name -> role) declares, else what the
    module is (embedding, convolution), else ``vector`` below two axes and ``matrix`` with two. A
    tied parameter stands once, under its first name. Parameters that need no gradient are left out.

    Raises:
        ConfigError: an unknown role; a pattern that matches no parameter; two roles for one
            parameter; three or more axes and no declared role; no parameters.
    """
    names = _names_of_parameters(model)
    parameters = {aliases[0]: p for p, aliases in names.items() if p.requires_grad}
    if not parameters:
        raise ConfigError(f"{type(model).__name__} has no parameters to train.")
    declared = _declared(model, names)
    found = {
        name: declared.get(name) or _guessed(model, name, parameter)
        for name, parameter in parameters.items()
    }
    return [
        {
            "params": [parameters[name] for name in found if found[name] == role],
            "names": [name for name in found if found[name] == role],
            "role": role,
        }
        for role in ROLES
        if role in found.values()
    ]


def assign(groups: Iterable[Mapping[str, Any]], norms: Assignment) -> list[Assigned]:
    """The norm of every parameter of ``groups``, in their order.

    The key ``replicas`` of a group is the shape (K,) of the parameters' leading axis, if they are
    stacks of the parameters of K replicas.

    Raises:
        ConfigError: a group without role and names; a glob that matches no parameter, or two that
            match the same one; blocks that do not divide the rows.
    """
    cards = []
    for group in groups:
        _check_group(group)
        for name, parameter in zip(group["names"], group["params"], strict=True):
            shape = tuple(parameter.shape[len(group.get("replicas", ())) :])
            globs = [glob for glob in norms.by_name if fnmatchcase(name, glob)]
            if len(globs) > 1:
                raise ConfigError(
                    f"norms.by_name: {globs[0]!r} and {globs[1]!r} both match {name}."
                )
            norm = norms.by_name[globs[0]] if globs else norms.of_role(group["role"])
            rule = globs[0] if globs else group["role"]
            _check_blocks(name, shape, norm)
            cards.append(Assigned(name, shape, group["role"], norm, rule))
    for glob in norms.by_name:
        if not any(card.rule == glob for card in cards):
            raise _no_match("norms.by_name has a glob", glob, [card.name for card in cards])
    return cards


def lint(cards: Sequence[Assigned]) -> list[str]:
    """Doubtful assignments, one sentence each."""
    return [
        f"{card.name}, shape {card.shape}, has a matrix norm (Spectral), which on a vector is L2."
        for card in cards
        if isinstance(card.norm, Spectral) and min(as_matrix(card.shape)) == 1
    ]


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of a parameter of ``shape``; a vector has one row."""
    if len(shape) < 2:
        return 1, shape[0] if shape else 1
    columns = 1
    for size in shape[1:]:
        columns *= size
    return shape[0], columns


def _names_of_parameters(model: nn.Module) -> dict[Tensor, list[str]]:
    names: dict[Tensor, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return names


def _declared(model: nn.Module, names: Mapping[Tensor, list[str]]) -> dict[str, str]:
    """First name -> role, of the parameters that a pattern of ``model.roles`` matches."""
    roles: dict[str, str] = {}
    kind = type(model).__name__
    for pattern, role in getattr(model, "roles", {}).items():
        if role not in ROLES:
            raise ConfigError(
                f"{kind}.roles has an unknown role '{role}'.{nearest(role, ROLES)}"
                f" The roles are: {', '.join(ROLES)}."
            )
        matches = [
            aliases[0]
            for aliases in names.values()
            if any(re.search(pattern, alias) for alias in aliases)
        ]
        if not matches:
            raise _no_match(f"{kind}.roles has a pattern", pattern, [n[0] for n in names.values()])
        for name in matches:
            if roles.setdefault(name, role) != role:
                raise ConfigError(f"{kind}.roles gives {name} two roles: {roles[name]}, {role}.")
    return roles


def _guessed(model: nn.Module, name: str, parameter: Tensor) -> str:
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return "embedding"
    if parameter.dim() < 2:
        return "vector"
    if isinstance(module, _CONVOLUTIONS):
        return "conv"
    if parameter.dim() == 2:
        return "matrix"
    raise ConfigError(
        f"{name} has {parameter.dim()} axes, {tuple(parameter.shape)}, and no role: declare one in"
        f" {type(model).__name__}.roles ({', '.join(ROLES)}); conv is the matrix"
        f" {as_matrix(parameter.shape)}."
    )


def _check_group(group: Mapping[str, Any]) -> None:
    if "role" not in group or "names" not in group:
        raise ConfigError(
            "A parameter group has no 'role' and 'names': build the optimizer on"
            " optlab.optim.roles.param_groups(model)."
        )


def _check_blocks(name: str, shape: Sequence[int], norm: Norm) -> None:
    rows, _ = as_matrix(shape)
    if isinstance(norm, Spectral) and rows % norm.blocks:
        raise ConfigError(f"{name} has {rows} rows, which are not {norm.blocks} blocks (norms).")


def _no_match(what: str, pattern: str, names: Sequence[str]) -> ConfigError:
    return ConfigError(
        f"{what} that matches no parameter: '{pattern}'.{nearest(pattern, names)}"
        f" The parameters are: {', '.join(names)}."
    )
