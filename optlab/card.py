"""The norm-assignment card: which norm each parameter of a run gets, and what is doubtful in it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn

from .build import part
from .config import Run
from .optim.roles import Assigned, Assignment, assign, lint, param_groups


@dataclass(frozen=True)
class Card:
    """One row per parameter, and sentences about what is doubtful."""

    rows: list[dict[str, Any]]  # parameter, shape, role, norm, scale, rule, share of all parameters
    doubts: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def norm_card(run: Run) -> Card:
    """The card of a run's method and model; nothing is trained or loaded.

    Raises:
        ConfigError: a rule that matches no parameter, a parameter with two rules.
    """
    with torch.device("meta"):
        model: nn.Module = part(run, "model")
    has_norms = "norms" in run.config["optimizer"]
    return card_of(model, part(run, "optimizer").keywords["norms"] if has_norms else None, run)


def card_of(model: nn.Module, norms: Assignment | None, run: Run) -> Card:
    """The card of a run's ``model`` with ``norms``.

    A method without norms (torch's, libraries') has a card with roles only.

    Raises:
        ConfigError: as ``norm_card``.
    """
    groups = param_groups(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    if norms is None:
        rows = [
            _row(name, tuple(parameter.shape), group["role"], total)
            for group in groups
            for name, parameter in zip(group["names"], group["params"], strict=True)
        ]
        return Card(rows, [f"{run.method} is a library's method: its own rules decide."])
    assigned = assign(groups, norms)
    return Card([_assigned_row(each, total) for each in assigned], [*lint(assigned), *_tied(model)])


def _assigned_row(assigned: Assigned, total: int) -> dict[str, Any]:
    row = _row(assigned.name, assigned.shape, assigned.role, total)
    scale = getattr(assigned.norm, "scale", None)
    return {**row, "norm": _described(assigned.norm), "scale": scale, "rule": assigned.rule}


def _row(name: str, shape: Sequence[int], role: str, total: int) -> dict[str, Any]:
    return {
        "parameter": name,
        "shape": "x".join(map(str, shape)),
        "role": role,
        "share": math.prod(shape) / total,
    }


def _described(norm: object) -> str:
    """The norm and those of its choices that are words, such as Spectral(shape=jordan)."""
    assert is_dataclass(norm)
    words = [
        f"{field.name}={value}"
        for field in fields(norm)
        if isinstance(value := getattr(norm, field.name), str)
    ]
    return f"{type(norm).__name__}({', '.join(words)})" if words else type(norm).__name__


def _tied(model: nn.Module) -> list[str]:
    """A sentence for every parameter with several names: it is assigned once, under the first."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [
        f"{', '.join(others)} is tied to {first}, and assigned once, as {first}."
        for first, *others in names.values()
        if others
    ]


def describe(card: Card) -> str:
    """The card as a text table, doubts below it."""
    import pandas as pd  # kept out of the workers, which only store the card

    table = pd.DataFrame(card.rows)
    table["share"] = [f"{100 * share:.1f} %" for share in table["share"]]
    lines = [table.to_string(index=False), *(f"Note: {doubt}" for doubt in card.doubts)]
    return "\n".join(lines)
