"""The GPT against the laws of a causal language model and the formulas of its parts."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn import functional as F

from optlab.build import part
from optlab.config import compose_run
from optlab.errors import ConfigError
from optlab.models.gpt import GPT, Attention, Block, Perceptron, rotary, rotated, swiglu_hidden
from optlab.optim.roles import param_groups
from optlab.paths import CONF

VOCABULARY, CONTEXT = 11, 9


MODERN: dict[str, Any] = {"positions": "rotary", "mlp": "swiglu", "tied": False, "qkv": "split"}
FORMS: list[dict[str, Any]] = [{}, {"positions": "rotary", "mlp": "relu2"}, MODERN]


def small(
    *, width: int = 8, depth: int = 2, heads: int = 2, vocabulary: int = VOCABULARY, **form: Any
) -> GPT:
    torch.manual_seed(0)
    sizes = {"context": CONTEXT, "width": width, "depth": depth, "heads": heads}
    return GPT(vocabulary, vocabulary, **sizes, **form).double()


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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("position", range(CONTEXT))
def test_a_token_changes_no_earlier_output_and_its_own(position: int, form: dict[str, Any]) -> None:
    model, tokens = loud(small(**form)), some_tokens()
    changed = tokens.clone()
    changed[:, position] = (changed[:, position] + 1) % VOCABULARY

    difference = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))

    assert torch.all(difference[:position] == 0)
    assert torch.all(difference[position:] > 1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_a_short_text_gives_the_outputs_of_a_long_ones_beginning(form: dict[str, Any]) -> None:
    model, tokens = loud(small(**form)), some_tokens()

    torch.testing.assert_close(model(tokens[:, :4]), model(tokens)[:, :4])


@pytest.mark.parametrize("form", FORMS)
def test_texts_of_a_batch_do_not_meet(form: dict[str, Any]) -> None:
    model, tokens = loud(small(**form)), some_tokens()

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


@pytest.mark.parametrize("form", FORMS)
def test_weights_start_with_their_standard_deviations(form: dict[str, Any]) -> None:
    """0.02; smaller by sqrt(2 depth) where the residual stream is written; gains at one."""
    model = small(width=64, depth=8, vocabulary=256, **form)

    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert torch.all(weight == 1)
        else:
            expected = 0.02 / 4 if re.search(r"attn\.proj|mlp\.down", name) else 0.02
            error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a deviation
            assert weight.std().item() == pytest.approx(expected, rel=error), name


@pytest.mark.parametrize("form", FORMS)
def test_the_initial_loss_is_that_of_a_uniform_prediction(form: dict[str, Any]) -> None:
    loss = F.cross_entropy(small(**form)(some_tokens()).flatten(0, 1), some_tokens().flatten())

    assert loss.item() == pytest.approx(math.log(VOCABULARY), abs=0.2)


def test_the_seed_determines_the_initial_weights() -> None:
    states = [small().state_dict(), small().state_dict()]

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_roles_name_exactly_the_embeddings() -> None:
    names = [name for name, _ in small().named_parameters()]
    roles = small().roles
    matched = [name for name in names for pattern in roles if re.search(pattern, name)]

    assert matched == ["tok_emb.weight", "pos_emb.weight"]
    assert set(roles.values()) == {"embedding"}


def test_it_learns_a_text_by_heart() -> None:
    model, tokens = small(width=16), some_tokens(batch=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()

    assert loss.item() < 0.05  # type: ignore[possibly-undefined]


@pytest.mark.parametrize("form", FORMS)
def test_it_builds_without_memory(form: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = GPT(256, 256, context=64, width=64, depth=2, heads=4, **form)
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
        ({"positions": "rotery"}, r"learned or rotary, not 'rotery'.* Did you mean 'rotary'\?"),
        ({"mlp": "relu"}, "gelu, swiglu or relu2, not 'relu'"),
        ({"qkv": "both"}, "fused or split, not 'both'"),
        ({"positions": "rotary", "width": 6}, "must be even, but it is 3"),
    ],
)
def test_impossible_sizes_and_forms_are_refused(changed: dict[str, Any], named: str) -> None:
    sizes: dict[str, Any] = {
        "input_size": 64,
        "output_size": 64,
        "context": 4,
        "width": 8,
        "depth": 1,
        "heads": 2,
    }

    with pytest.raises(ConfigError, match=named):
        GPT(**(sizes | changed))


@pytest.mark.parametrize(
    ("size", "count"),
    [
        ("tiny", 3_314_048),
        ("small", 123_551_232),  # GPT-2's are 124,439,808, 354,823,168 and 774,030,080
        ("medium", 353_306_624),
        ("large", 772_579_840),
    ],
)
def test_sizes_have_the_parameters_that_their_files_say(size: str, count: int) -> None:
    """V D; per block 4 D^2, 24 D round(D/3) of SwiGLU and two gains D; a last gain D."""
    values: Any = OmegaConf.load(CONF / "model" / f"gpt_{size}.yaml")
    chosen = {key: values[key] for key in ("width", "depth", "heads", *MODERN)}
    with torch.device("meta"):
        model = GPT(50257, 50257, context=1024, **chosen)
    d = values.width
    found = sum(p.numel() for p in model.parameters())

    assert found == 50257 * d + values.depth * (4 * d**2 + 24 * d * round(d / 3) + 2 * d) + d
    assert found == count


@pytest.mark.parametrize("width", [8, 64, 100, 768, 1024, 1280, 1600])
def test_a_swiglu_has_the_parameters_of_four_times_the_width(width: int) -> None:
    """To the hidden width's multiple of 8."""
    hidden = swiglu_hidden(width)
    counts = [
        sum(p.numel() for p in Perceptron(width, a).parameters()) for a in ("swiglu", "relu2")
    ]

    assert hidden % 8 == 0 and counts == [3 * width * hidden, 8 * width**2]
    assert abs(counts[0] - counts[1]) <= 8 * width


def test_an_untied_head_adds_a_matrix_and_learned_positions_another() -> None:
    def count(**form: Any) -> int:
        return sum(p.numel() for p in small(**form).parameters())

    assert count(tied=False) - count() == VOCABULARY * 8
    assert count() - count(positions="rotary") == CONTEXT * 8


def test_rotation_is_the_formula() -> None:
    """Entries i and i + K/2 are one complex number, turned by position * 10000^(-2i/K)."""
    x = torch.randn(5, 6, dtype=torch.float64)
    expected = torch.empty_like(x)
    for t in range(5):
        for i in range(3):
            angle = t * 10000 ** (-2 * i / 6)
            turned = complex(x[t, i], x[t, i + 3]) * complex(math.cos(angle), math.sin(angle))
            expected[t, i], expected[t, i + 3] = turned.real, turned.imag

    torch.testing.assert_close(rotated(x, rotary(5, 6, x)), expected, rtol=1e-13, atol=1e-13)


def test_scores_of_rotated_vectors_depend_on_their_distance_alone() -> None:
    q, k = torch.randn(2, 16, dtype=torch.float64).unbind()
    rotation = rotary(40, 16, q)
    queries, keys = (rotated(each.expand(40, 16), rotation) for each in (q, k))
    scores = queries @ keys.T

    for distance in range(-39, 40):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0].std() > 0.1  # and it does depend on it


def test_rotation_keeps_lengths_and_leaves_the_first_position() -> None:
    x = torch.randn(3, 2, 30, 8, dtype=torch.float64)
    turned = rotated(x, rotary(30, 8, x))

    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0]) and not torch.equal(turned, x)


def test_the_angles_of_late_positions_are_exact_in_float32() -> None:
    cos, _ = rotary(100_000, 64, torch.zeros(1))

    assert cos.dtype == torch.float32
    assert cos[99_999, 1].item() == pytest.approx(math.cos(99_999 * 10000 ** (-1 / 32)), abs=1e-7)


def test_rotated_vectors_keep_their_precision() -> None:
    x = torch.randn(4, 8).bfloat16()

    assert rotated(x, rotary(4, 8, torch.zeros(1))).dtype == torch.bfloat16


def test_rotary_positions_tell_orders_of_earlier_tokens_apart() -> None:
    model, tokens = loud(small(depth=1, positions="rotary")), torch.tensor([[1, 2, 3, 4]])
    difference = (model(tokens) - model(tokens[:, [1, 0, 2, 3]]))[0, -1].abs().max()

    assert difference > 1e-3


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
def test_perceptrons_are_their_formulas(mlp: Any) -> None:
    perceptron, x = Perceptron(6, mlp).double(), torch.randn(4, 6, dtype=torch.float64)
    w = {name: weight.detach() for name, weight in perceptron.named_parameters()}
    hidden = torch.empty(4, len(w["up.weight"]), dtype=torch.float64)
    for sample in range(4):
        for unit, row in enumerate(w["up.weight"]):
            up = sum(a * b for a, b in zip(row.tolist(), x[sample].tolist(), strict=True))
            if mlp == "relu2":
                hidden[sample, unit] = max(0.0, up) ** 2
            else:
                gate = float(w["gate.weight"][unit] @ x[sample])
                hidden[sample, unit] = gate / (1 + math.exp(-gate)) * up

    torch.testing.assert_close(perceptron(x), hidden @ w["down.weight"].T)


def fused_and_split(**form: Any) -> tuple[GPT, GPT]:
    """Two models with the same weights."""
    fused, split = loud(small(**form)), small(**form, qkv="split")
    state = fused.state_dict()
    for name in [name for name in state if "qkv" in name]:
        for letter, rows in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace("qkv", letter)] = rows
    split.load_state_dict(state)
    return fused, split


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_split_attention_is_fused_attention_with_the_rows_of_its_matrix(positions: str) -> None:
    fused, split = fused_and_split(positions=positions)

    torch.testing.assert_close(split(some_tokens()), fused(some_tokens()))


def test_a_spectral_step_takes_split_matrices_one_by_one() -> None:
    """And so it steps elsewhere than from the fused matrix, which has one polar factor."""
    make = part(compose_run(["optimizer=muon_adam"])[0], "optimizer")
    models = fused_and_split()
    for model in models:
        optimizer = make(param_groups(model))
        model(some_tokens()).square().mean().backward()
        optimizer.step()
    attentions = [model.blocks[0].attn for model in models]
    fused, split = attentions[0].qkv.weight, attentions[1].q.weight  # type: ignore[union-attr]

    assert not torch.allclose(fused[: len(split)], split)  # type: ignore[index, arg-type]


def test_an_untied_head_with_the_embeddings_weights_is_the_tied_one() -> None:
    tied, untied = loud(small()), loud(small(tied=False))
    state = {**tied.state_dict(), "head.weight": tied.tok_emb.weight}

    assert not torch.allclose(untied(some_tokens()), tied(some_tokens()))
    untied.load_state_dict(state)
    torch.testing.assert_close(untied(some_tokens()), tied(some_tokens()))


@pytest.mark.parametrize("form", [{"mlp": "relu2"}, {"positions": "rotary"}])
def test_a_form_changes_the_outputs_of_the_same_weights(form: dict[str, Any]) -> None:
    plain, other = loud(small()), small(**form)
    other.load_state_dict(plain.state_dict(), strict=False)

    assert not torch.allclose(other(some_tokens()), plain(some_tokens()))


def test_the_roles_of_the_modern_form() -> None:
    groups = {group["role"]: group["names"] for group in param_groups(small(depth=1, **MODERN))}

    assert groups["embedding"] == ["tok_emb.weight"] and groups["head"] == ["head.weight"]
    block = ["attn.q", "attn.k", "attn.v", "attn.proj", "mlp.up", "mlp.gate", "mlp.down"]
    assert groups["matrix"] == [f"blocks.0.{name}.weight" for name in block]
    assert all("norm" in name for name in groups["vector"])
