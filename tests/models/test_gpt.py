"""The GPT against the laws of a causal language model and the formulas of its parts."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from optlab.errors import ConfigError
from optlab.models.gpt import GPT, Attention, Block

VOCABULARY, CONTEXT = 11, 9


def small(*, width: int = 8, depth: int = 2, heads: int = 2, vocabulary: int = VOCABULARY) -> GPT:
    torch.manual_seed(0)
    return GPT(
        vocabulary, vocabulary, context=CONTEXT, width=width, depth=depth, heads=heads
    ).double()


def loud(model: GPT) -> GPT:
    """The model with weights so large that attention is far from uniform."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight))
    return model


def some_tokens(batch: int = 3) -> Tensor:
    return torch.randint(VOCABULARY, (batch, CONTEXT), generator=torch.manual_seed(1))


@pytest.mark.parametrize(
    ("vocabulary", "context", "width", "depth", "heads"),
    [(65, 64, 96, 3, 4), (256, 64, 64, 2, 4), (5, 3, 4, 1, 1)],
)
def test_the_number_of_parameters_is_the_closed_form(
    vocabulary: int, context: int, width: int, depth: int, heads: int
) -> None:
    """Embeddings (V + T) D; per block 12 D^2 and two gains D; a last gain D; the head is tied."""
    model = GPT(vocabulary, vocabulary, context=context, width=width, depth=depth, heads=heads)

    count = sum(p.numel() for p in model.parameters())

    assert count == (vocabulary + context) * width + depth * (12 * width**2 + 2 * width) + width


@pytest.mark.parametrize("position", range(CONTEXT))
def test_a_token_changes_no_earlier_output_and_its_own(position: int) -> None:
    model, tokens = loud(small()), some_tokens()
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % VOCABULARY

    difference = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))

    assert torch.all(difference[:position] == 0)
    assert torch.all(difference[position:] > 1e-6)


def test_a_short_text_gives_the_outputs_of_a_long_ones_beginning() -> None:
    model, tokens = loud(small()), some_tokens()

    torch.testing.assert_close(model(tokens[:, :4]), model(tokens)[:, :4])


def test_texts_of_a_batch_do_not_meet() -> None:
    model, tokens = loud(small()), some_tokens()

    torch.testing.assert_close(model(tokens)[1:2], model(tokens[1:2]))


def test_attention_is_the_formula() -> None:
    """softmax(q k^T / sqrt(K)) v under the causal mask, by head, then the projection."""
    torch.manual_seed(0)
    attention, x = Attention(6, 2).double(), torch.randn(2, 5, 6, dtype=torch.float64)
    q, k, v = (x @ attention.qkv.weight.T).split(6, dim=-1)
    mask = torch.ones(5, 5).tril().bool()

    heads = []
    for one in (slice(0, 3), slice(3, 6)):
        scores = q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(3)
        heads.append(scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[..., one])
    expected = torch.cat(heads, dim=-1) @ attention.proj.weight.T

    torch.testing.assert_close(attention(x), expected)


def test_a_block_adds_to_the_normalized_stream() -> None:
    torch.manual_seed(0)
    block, x = Block(6, 2).double(), torch.randn(2, 5, 6, dtype=torch.float64)

    def normalized(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    h = x + block.attn(normalized(x))
    up, down = block.mlp.up.weight, block.mlp.down.weight
    expected = h + F.gelu(normalized(h) @ up.T) @ down.T

    torch.testing.assert_close(block(x), expected)


def test_the_logits_are_the_formula() -> None:
    """Embeddings, blocks, a normalized stream, and its products with the token embedding."""
    model, tokens = loud(small()), some_tokens()
    embedding, gain = model.tok_emb.weight, model.norm.weight

    x = embedding[tokens] + model.pos_emb.weight
    for block in model.blocks:
        x = block(x)
    x = gain * x / (x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    torch.testing.assert_close(model(tokens), x @ embedding.T)


def test_the_head_is_the_token_embedding() -> None:
    """Tokens that never occur get a gradient through the head alone."""
    model = small()
    model(torch.zeros(1, CONTEXT, dtype=torch.int64)).square().sum().backward()

    assert model.tok_emb.weight.grad is not None
    assert torch.all(model.tok_emb.weight.grad[1:].abs().sum(dim=1) > 0)
    assert not any("head" in name for name in model.state_dict())


def test_positions_tell_equal_tokens_apart() -> None:
    outputs = small()(torch.full((1, CONTEXT), 3))

    assert torch.all((outputs[:, 1:] - outputs[:, :-1]).abs().amax(dim=2) > 1e-6)


def test_the_number_of_heads_changes_the_outputs() -> None:
    one, two = loud(small(heads=1)), loud(small(heads=2))
    two.load_state_dict(one.state_dict())

    assert not torch.allclose(one(some_tokens()), two(some_tokens()))


def test_weights_start_with_their_standard_deviations() -> None:
    """0.02; smaller by sqrt(2 depth) where the residual stream is written; gains at one."""
    model = small(width=64, depth=8, vocabulary=256)

    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.all(weight == 1)
        else:
            expected = 0.02 / 4 if re.search(r"attn\.proj|mlp\.down", name) else 0.02
            error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a deviation
            assert weight.std().item() == pytest.approx(expected, rel=error), name


def test_the_initial_loss_is_that_of_a_uniform_prediction() -> None:
    loss = F.cross_entropy(small()(some_tokens()).flatten(0, 1), some_tokens().flatten())

    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.2)


def test_the_seed_determines_the_initial_weights() -> None:
    states = [small().state_dict(), small().state_dict()]

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_roles_name_exactly_the_embeddings() -> None:
    names = [name for name, _ in small().named_parameters()]
    matched = [name for name in names for pattern in GPT.roles if re.search(pattern, name)]

    assert matched == ["tok_emb.weight", "pos_emb.weight"]
    assert set(GPT.roles.values()) == {"embedding"}


def test_it_learns_a_text_by_heart() -> None:
    model, tokens = small(width=16), some_tokens(batch=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.05  # type: ignore[possibly-undefined]


def test_it_builds_without_memory() -> None:
    with torch.device("meta"):
        model = GPT(256, 256, context=64, width=64, depth=2, heads=4)
        outputs = model(torch.zeros(2, 64, dtype=torch.int64))

    assert outputs.shape == (2, 64, 256)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"width": 10, "heads": 4}, "multiple of model.heads, but they are 10 and 4"),
        ({"depth": 0}, "at least 1"),
        ({"heads": 0}, "at least 1"),
        ({"context": 0}, "at least 1"),
        ({"width": 0}, "at least 1"),
        ({"output_size": 10}, "input_size 64 and output_size 10: is it a text"),
    ],
)
def test_impossible_sizes_are_refused(changed: dict[str, int], named: str) -> None:
    sizes = {"input_size": 64, "output_size": 64, "context": 4, "width": 8, "depth": 1, "heads": 2}

    with pytest.raises(ConfigError, match=named):
        GPT(**(sizes | changed))
