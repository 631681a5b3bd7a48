"""The perceptron against its formula."""

from __future__ import annotations

import pytest
import torch

from optlab.errors import ConfigError
from optlab.models.mlp import MLP


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_output_is_the_formula() -> None:
    model = MLP(6, 3, width=5, depth=2).double()
    x = torch.randn(4, 1, 2, 3, dtype=torch.float64)
    w = dict(model.named_parameters())

    h = x.reshape(4, 6)
    h = (h @ w["layers.0.weight"].T + w["layers.0.bias"]).clamp_min(0)
    h = (h @ w["layers.1.weight"].T + w["layers.1.bias"]).clamp_min(0)
    expected = h @ w["head.weight"].T + w["head.bias"]

    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(("width", "depth"), [(1, 1), (7, 3), (16, 2)])
def test_the_number_of_parameters_is_the_closed_form(width: int, depth: int) -> None:
    count = parameters(MLP(64, 10, width=width, depth=depth))

    assert count == 65 * width + (depth - 1) * (width + 1) * width + 10 * (width + 1)


def test_depth_zero_is_a_linear_model() -> None:
    assert [name for name, _ in MLP(6, 3, width=5, depth=0).named_parameters()] == [
        "head.weight",
        "head.bias",
    ]


def test_the_head_is_the_only_exception_among_the_roles() -> None:
    names = [name for name, _ in MLP(6, 3, width=5, depth=1).named_parameters()]

    assert names == ["layers.0.weight", "layers.0.bias", "head.weight", "head.bias"]
    assert MLP.roles == {r"^head\.weight$": "head"}


def test_the_seed_determines_the_initial_weights() -> None:
    """And they are those that torch's linear layers draw, in the order of the layers."""
    torch.manual_seed(3)
    model = MLP(6, 3, width=5, depth=1)
    torch.manual_seed(3)
    expected = [torch.nn.Linear(6, 5).weight, torch.nn.Linear(5, 3).weight]

    assert torch.equal(model.layers[0].weight, expected[0])  # type: ignore[arg-type]
    assert torch.equal(model.head.weight, expected[1])


@pytest.mark.parametrize(("width", "depth"), [(0, 1), (-3, 1), (4, -1)])
def test_impossible_sizes_are_refused(width: int, depth: int) -> None:
    with pytest.raises(ConfigError, match=f"they are {width} and {depth}"):
        MLP(6, 3, width=width, depth=depth)


def test_tokens_are_refused_with_the_models_that_take_them() -> None:
    with pytest.raises(ConfigError, match="model=gpt_tiny"):
        MLP(6, 3, width=5, depth=1)(torch.zeros(2, 6, dtype=torch.int64))


def test_it_builds_without_memory() -> None:
    with torch.device("meta"):
        assert MLP(64, 10, width=8, depth=2)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
