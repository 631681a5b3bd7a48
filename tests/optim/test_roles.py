"""Roles of parameters and the assignment of norms to them."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from optim.problems import Net, net, steepest
from optlab.errors import ConfigError
from optlab.optim.norms import L2, AdaInf, ColumnL2, Linf, Rms, RowL2, Spectral
from optlab.optim.roles import Assignment, as_matrix, assign, lint, param_groups


def roles(model: nn.Module) -> dict[str, str]:
    groups = param_groups(model)
    return {name: group["role"] for group in groups for name in group["names"]}


def with_roles(patterns: dict[str, str]) -> nn.Module:
    model = net()
    model.roles = patterns  # type: ignore[assignment]
    return model


def test_roles_follow_modules_shapes_and_declarations() -> None:
    assert roles(net()) == {
        "embedding.weight": "embedding",
        "conv.weight": "conv",
        "conv.bias": "vector",
        "layers.0.weight": "matrix",
        "layers.0.bias": "vector",
        "layers.1.weight": "matrix",
        "layers.1.bias": "vector",
        "out.weight": "matrix",
        "norm.weight": "vector",
        "norm.bias": "vector",
        "head.weight": "head",
        "head.bias": "vector",
    }


def test_there_is_one_group_a_role_with_parameters_in_the_models_order() -> None:
    groups = param_groups(net())

    assert len({group["role"] for group in groups}) == len(groups)
    assert next(g["names"] for g in groups if g["role"] == "matrix") == [
        "layers.0.weight",
        "layers.1.weight",
        "out.weight",
    ]
    assert sum(len(group["params"]) for group in groups) == len(list(net().parameters()))


class Tied(nn.Module):
    roles: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_parameter_stands_once_and_answers_to_both_names() -> None:
    tied = Tied()
    assert roles(tied) == {"embedding.weight": "embedding"}

    tied.roles = {"^head": "head"}  # type: ignore[misc]
    assert roles(tied) == {"embedding.weight": "head"}


def test_frozen_parameters_are_left_out() -> None:
    model = net()
    model.embedding.weight.requires_grad_(False)

    model.head.weight.requires_grad_(False)  # whose pattern in Net.roles then matches it still

    assert not {"embedding.weight", "head.weight"} & set(roles(model))


def test_a_pattern_that_matches_nothing_lists_the_parameters() -> None:
    with pytest.raises(ConfigError, match=r"'\^wte'.*layers\.0\.weight"):
        param_groups(with_roles({"^wte": "embedding"}))


def test_an_unknown_role_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'matrix'"):
        param_groups(with_roles({"^head": "matrices"}))


def test_two_roles_for_one_parameter_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"gives head\.weight two roles"):
        param_groups(with_roles({"^head": "head", r"weight$": "matrix"}))


def test_more_than_two_axes_need_a_declaration_unless_they_are_a_convolutions() -> None:
    model = nn.ParameterDict({"experts": torch.zeros(4, 3, 2)})
    with pytest.raises(ConfigError, match=r"3 axes, \(4, 3, 2\)"):
        param_groups(model)

    model.roles = {"^experts$": "conv"}  # type: ignore[assignment]
    assert roles(model) == {"experts": "conv"}


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(ConfigError, match="no parameters"):
        param_groups(nn.ReLU())


def test_parameters_are_seen_as_matrices() -> None:
    assert as_matrix(()) == (1, 1)
    assert as_matrix((7,)) == (1, 7)
    assert as_matrix((7, 5)) == (7, 5)
    assert as_matrix((8, 6, 3, 3)) == (8, 54)


def test_norms_go_by_role_and_null_roles_follow_matrix_or_others() -> None:
    simple = Assignment(matrix=Spectral(), others=Linf())
    full = Assignment(Spectral(), Linf(), RowL2(), ColumnL2(), L2(), Rms())

    def of(norms: Assignment) -> dict[str, str]:
        cards = assign(param_groups(net()), norms)
        return {card.role: type(card.norm).__name__ for card in cards}

    assert of(simple) == {
        "matrix": "Spectral",
        "conv": "Spectral",
        "embedding": "Linf",
        "head": "Linf",
        "vector": "Linf",
    }
    assert of(full) == {
        "matrix": "Spectral",
        "conv": "RowL2",
        "embedding": "ColumnL2",
        "head": "L2",
        "vector": "Rms",
    }


def test_globs_on_names_make_exceptions() -> None:
    norms = Assignment(Spectral(), AdaInf(), by_name={"layers.*.weight": RowL2(scale=2.0)})
    cards = {card.name: card for card in assign(param_groups(net()), norms)}

    assert cards["layers.1.weight"].norm == RowL2(scale=2.0)
    assert cards["layers.1.weight"].rule == "layers.*.weight"
    assert cards["out.weight"].norm == Spectral() and cards["out.weight"].rule == "matrix"


@pytest.mark.parametrize(
    ("by_name", "message"),
    [
        ({"blocks.*": Linf()}, r"'blocks\.\*'.*layers\.0\.weight"),
        ({"layers.*": Linf(), "*.0.weight": L2()}, r"both match layers\.0\.weight"),
    ],
)
def test_globs_that_match_nothing_or_the_same_are_refused(
    by_name: dict[str, Linf], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        assign(param_groups(net()), Assignment(Spectral(), Linf(), by_name=by_name))


def test_blocks_must_divide_the_rows() -> None:
    with pytest.raises(ConfigError, match=r"layers\.0\.weight.*8 rows.*3 blocks"):
        assign(param_groups(net()), Assignment(Spectral(blocks=3), Linf()))


def test_plain_parameters_without_roles_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"param_groups\(model\)"):
        steepest(net(), params=[{"params": list(net().parameters())}])


def test_lint_finds_a_matrix_norm_on_a_vector() -> None:
    sound = assign(param_groups(net()), Assignment(Spectral(), Linf()))
    doubtful = assign(param_groups(net()), Assignment(Spectral(), Linf(), vector=Spectral()))

    assert lint(sound) == []
    assert len(lint(doubtful)) == 6 and all("vector" in line for line in lint(doubtful))


def test_the_roles_of_the_class_are_not_changed() -> None:
    assert Net.roles == {r"^head\.weight$": "head"}
