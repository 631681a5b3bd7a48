"""Stacks of parameters: what is stacked, and that averages are found again without copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optim.problems import descend, net, steepest, weights
from optlab.optim.layers import CACHED, SMALL, arranged
from optlab.optim.norms import AdaInf, Linf, Norm, Spectral
from optlab.optim.polar import PolarExpress
from optlab.optim.roles import Assignment, assign, param_groups

SPECTRAL = Spectral(polar=PolarExpress())


def shapes_together(model: nn.Module, norm: Norm) -> list[list[tuple[int, ...]]]:
    groups = param_groups(model)
    parameters = [p for group in groups for p in group["params"]]
    found = arranged(parameters, assign(groups, Assignment(norm, norm)))
    return [[tuple(x.shape) for x in layers.x] for layers in found]


def linear(*shapes: tuple[int, int], device: str = "cpu") -> nn.Module:
    """``shapes`` as nn.Linear's weight has them: (out, in)."""
    return nn.ModuleList(nn.Linear(n, m, bias=False, device=device) for m, n in shapes)


def test_small_matrices_of_one_shorter_side_stand_together_by_shape() -> None:
    model = linear((8, 24), (8, 8), (32, 8), (8, 24), (7, 8))

    assert shapes_together(model, SPECTRAL) == [[(8, 8), (8, 24), (8, 24), (32, 8)], [(7, 8)]]
    assert shapes_together(model, Linf())[0] == [(8, 24), (8, 24)]


def test_blocks_count_as_the_matrices_that_they_are() -> None:
    model = linear((24, 8), (16, 8))

    assert shapes_together(model, SPECTRAL) == [[(16, 8), (24, 8)]]
    assert shapes_together(model, Spectral(polar=PolarExpress(), blocks=4)) == [
        [(24, 8)],
        [(16, 8)],
    ]


def test_large_matrices_share_with_their_like_only() -> None:
    m = SMALL + 1

    assert len(shapes_together(linear((m, 2 * m), (2 * m, m), (m, 2 * m)), SPECTRAL)) == 2


@pytest.mark.parametrize(("device", "parts"), [("cpu", [3, 2]), ("meta", [5])])
def test_a_stack_on_a_cpu_fits_its_cache(device: str, parts: list[int]) -> None:
    """A third of the limit each; other devices take all in one call."""
    model = linear(*[(256, CACHED // 256 // 3)] * 5, device=device)

    assert [len(part) for part in shapes_together(model, SPECTRAL)] == parts


def test_a_matrix_beyond_the_limit_stands_alone() -> None:
    model = linear(*[(256, CACHED // 128)] * 2, device="cpu")

    assert [len(part) for part in shapes_together(model, SPECTRAL)] == [1, 1]


def pointers(optimizer: torch.optim.Optimizer) -> list[int]:
    return [state[name].data_ptr() for state in optimizer.state.values() for name in ("m", "v")]


def everywhere_adam(model: nn.Module, **changes: Any) -> torch.optim.Optimizer:
    return steepest(model, norms=Assignment(AdaInf(), AdaInf()), **changes)


def test_averages_stay_where_they_are() -> None:
    model = net()
    optimizer = everywhere_adam(model)
    descend(model, optimizer, [0])
    before = pointers(optimizer)
    descend(model, optimizer, [1, 2])

    assert pointers(optimizer) == before


def test_those_of_one_shape_lie_in_one_piece() -> None:
    model = net()
    optimizer = everywhere_adam(model)
    descend(model, optimizer, [0])
    first, second = (optimizer.state[layer.weight]["m"] for layer in model.layers)  # type: ignore[union-attr]

    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    assert second.data_ptr() - first.data_ptr() == 8 * first.numel()


def test_a_loaded_state_is_copied_and_the_file_left_alone() -> None:
    """torch hands the loaded tensors themselves to the optimizer."""
    model, other = net(), net()
    optimizer, resumed = everywhere_adam(model), everywhere_adam(other)
    descend(model, optimizer, range(3))
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved["state"])
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(saved)
    descend(other, resumed, range(3, 5))

    for state, before in zip(saved["state"].values(), kept.values(), strict=True):
        assert torch.equal(state["m"], before["m"]) and torch.equal(state["v"], before["v"])
    descend(model, optimizer, range(3, 5))
    assert torch.equal(weights(model), weights(other))


def test_an_average_that_was_replaced_by_hand_counts() -> None:
    """As after surgery on the state: what the state holds is what the next step averages."""
    results: list[Tensor] = []
    for replace in (False, True):
        model = net()
        optimizer = everywhere_adam(model)
        descend(model, optimizer, range(2))
        for state in optimizer.state.values():
            if replace:
                state["m"] = 2 * state["m"]
            else:
                state["m"].mul_(2)
        descend(model, optimizer, [2])
        results.append(weights(model))

    assert torch.equal(*results)
