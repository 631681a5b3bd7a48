"""GPT-2: published sizes, its formula, and the two forms of its attention matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from optlab.errors import ConfigError
from optlab.models.gpt2 import GPT2
from optlab.optim.roles import param_groups


def make(width: int = 16, depth: int = 2, heads: int = 4, qkv: str = "fused") -> GPT2:
    return GPT2(11, 11, context=8, width=width, depth=depth, heads=heads, qkv=qkv)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "count"),
    [
        (768, 12, 12, 124_439_808),
        (1024, 24, 16, 354_823_168),
        (1280, 36, 20, 774_030_080),
    ],
    ids=["small", "medium", "large"],
)
@pytest.mark.parametrize("qkv", ["fused", "split"])
def test_the_number_of_parameters_is_the_published_one(
    width: int, depth: int, heads: int, count: int, qkv: str
) -> None:
    with torch.device("meta"):
        model = GPT2(50257, 50257, context=1024, width=width, depth=depth, heads=heads, qkv=qkv)

    assert sum(p.numel() for p in model.parameters()) == count


def test_split_matrices_that_are_the_parts_of_the_fused_one_give_the_same_output() -> None:
    fused, split = make(qkv="fused").double(), make(qkv="split").double()
    state = fused.state_dict()
    for name in [name for name in state if ".attend.qkv." in name]:
        for part, value in zip("qkv", state[name].chunk(3), strict=True):
            state[name.replace("attend.qkv", f"attend.{part}")] = value
        del state[name]
    split.load_state_dict(state)
    tokens = torch.randint(11, (3, 8))

    torch.testing.assert_close(split(tokens), fused(tokens))


def test_one_block_is_the_formula() -> None:
    model = make(depth=1).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(11, (2, 5))
    w = dict(model.named_parameters())

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["tok_emb.weight"][tokens] + w["pos_emb.weight"][:5]
    qkv = norm(x, "blocks.0.norm1") @ w["blocks.0.attend.qkv.weight"].T
    q, k, v = (qkv + w["blocks.0.attend.qkv.bias"]).chunk(3, dim=-1)
    heads = []
    for i in range(0, 16, 4):
        scores = q[..., i : i + 4] @ k[..., i : i + 4].transpose(1, 2) / 2.0
        scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., i : i + 4])
    x = x + torch.cat(heads, -1) @ w["blocks.0.proj.weight"].T + w["blocks.0.proj.bias"]
    h = norm(x, "blocks.0.norm2") @ w["blocks.0.up.weight"].T + w["blocks.0.up.bias"]
    h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
    x = x + h @ w["blocks.0.down.weight"].T + w["blocks.0.down.bias"]
    expected = norm(x, "norm") @ w["tok_emb.weight"].T

    torch.testing.assert_close(model(tokens), expected)


def test_no_token_sees_a_later_one() -> None:
    model, tokens = make(), torch.randint(11, (1, 8))
    other = tokens.clone()
    other[0, 5] = (other[0, 5] + 1) % 11

    assert torch.equal(model(tokens)[0, :5], model(other)[0, :5])
    assert not torch.equal(model(tokens)[0, 5:], model(other)[0, 5:])


def test_the_initial_weights_are_those_of_gpt2() -> None:
    torch.manual_seed(0)
    model = GPT2(500, 500, context=64, width=128, depth=8, heads=4, qkv="fused")
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any()
        elif p.dim() == 2:
            to_residual = "proj" in name or "down" in name
            assert p.std().item() == pytest.approx(0.005 if to_residual else 0.02, rel=0.05), name


def test_the_loss_starts_at_that_of_a_uniform_guess() -> None:
    torch.manual_seed(0)
    model, tokens = make(width=32), torch.randint(11, (16, 8))
    loss = F.cross_entropy(model(tokens).flatten(0, 1), torch.randint(11, (128,)))

    assert loss.item() == pytest.approx(math.log(11), abs=0.05)


def test_roles_and_the_tied_head() -> None:
    groups = {group["role"]: group["names"] for group in param_groups(make(qkv="split"))}

    assert groups["embedding"] == ["tok_emb.weight", "pos_emb.weight"]
    assert "blocks.0.attend.q.weight" in groups["matrix"] and "head" not in groups
    assert all(name.endswith("bias") or "norm" in name for name in groups["vector"])


def test_an_unknown_form_of_attention_matrices_is_refused() -> None:
    with pytest.raises(ConfigError, match="fused or split, not 'both'"):
        make(qkv="both")
