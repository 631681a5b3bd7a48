"""Initial weights: the law of each kind, for every model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optlab.build import batch_fingerprint, build, weights_fingerprint
from optlab.models.gpt import GPT
from optlab.models.gpt2 import GPT2
from optlab.models.initial import initialize
from optlab.models.mlp import MLP
from optlab.models.resnet import ResNet
from optlab.models.vgg import VGG
from optlab.models.vit import ViT
from optlab.optim.roles import param_groups
from support import tiny

KINDS = ["gpt2", "orthogonal", "mup"]
TEXT = {"context": 16, "width": 48, "depth": 2, "heads": 4}
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(64, 10, width=48, depth=2),
    "gpt": lambda: GPT(200, 200, positions="rotary", mlp="swiglu", tied=False, **TEXT),  # type: ignore[arg-type]
    "gpt2": lambda: GPT2(200, 200, qkv="fused", **TEXT),
    "gpt2_split": lambda: GPT2(200, 200, qkv="split", **TEXT),
    "resnet": lambda: ResNet(64, 10, widths=[8, 16], blocks=1, shortcut="projection"),
    "vgg": lambda: VGG(64, 10, widths=[8, 16], convolutions=[1, 2]),
    "vit": lambda: ViT(64, 10, patch=2, width=48, depth=2, heads=4, hidden=96, dropout=0.1),
}
every_model = pytest.mark.parametrize("name", MODELS)


def drawn(name: str, kind: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = MODELS[name]()
    initialize(model, kind)
    return model


def weights(model: nn.Module, *roles: str) -> Iterator[tuple[str, Tensor]]:
    for group in param_groups(model):
        if group["role"] in roles:
            yield from zip(group["names"], group["params"], strict=True)


def matrices(model: nn.Module) -> Iterator[Tensor]:
    """Convolutions flattened, fused queries, keys and values one by one."""
    for name, weight in weights(model, "matrix", "conv", "head"):
        yield from weight.detach().flatten(1).chunk(3 if "qkv" in name else 1)


@every_model
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_redraws_the_weights_and_leaves_gains_and_biases(name: str, kind: str) -> None:
    plain, model = drawn(name, "default"), drawn(name, kind)
    before = dict(plain.named_parameters())

    for other, weight in weights(model, "matrix", "conv", "head"):
        assert not torch.equal(weight, before[other]), other
    for other, weight in weights(model, "vector"):
        assert torch.equal(weight, before[other]), other


@every_model
def test_the_seed_determines_the_weights(name: str) -> None:
    for kind in KINDS:
        prints = [weights_fingerprint(drawn(name, kind, seed)) for seed in (0, 0, 1)]
        assert prints[0] == prints[1] != prints[2]


@every_model
def test_gpt2_is_normal_and_smaller_where_the_stream_is_written(name: str) -> None:
    model = drawn(name, "gpt2")

    for other, weight in weights(model, "matrix", "conv", "head", "embedding"):
        to_residual = other.endswith(("proj.weight", "down.weight"))
        expected = 0.02 / math.sqrt(2 * 2) if to_residual else 0.02
        error = 5 / math.sqrt(2 * weight.numel())  # five standard errors of a deviation
        assert weight.std().item() == pytest.approx(expected, rel=error), other


@every_model
def test_orthogonal_matrices_keep_lengths_on_their_smaller_side(name: str) -> None:
    for matrix in matrices(drawn(name, "orthogonal")):
        rows, columns = matrix.shape
        gram = matrix @ matrix.T if rows < columns else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(min(rows, columns)), atol=1e-5, rtol=0)
    plain = dict(drawn(name, "default").named_parameters())
    for other, weight in weights(drawn(name, "orthogonal"), "embedding"):
        assert torch.equal(weight, plain[other])


@every_model
def test_mup_matrices_have_the_spectral_norm_of_their_shape(name: str) -> None:
    for matrix in matrices(drawn(name, "mup")):
        rows, columns = matrix.shape
        norm = torch.linalg.matrix_norm(matrix.double(), 2).item()
        assert norm == pytest.approx(math.sqrt(rows / columns), rel=1e-5)
        singular = torch.linalg.svdvals(matrix)
        assert min(rows, columns) == 1 or singular[-1] < 0.95 * singular[0]  # not orthogonal


@every_model
def test_mup_embeddings_have_unit_root_mean_square_or_unit_length_where_tied(name: str) -> None:
    for _, weight in weights(drawn(name, "mup"), "embedding"):
        length = 1.0 if name.startswith("gpt2") else math.sqrt(weight.shape[1])
        torch.testing.assert_close(weight.norm(dim=1), torch.full((len(weight),), length))


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
@pytest.mark.parametrize("kind", ["gpt2", "mup"])
def test_the_first_predictions_of_a_text_model_are_near_uniform(name: str, kind: str) -> None:
    model, tokens = drawn(name, kind), torch.randint(200, (8, 17))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    assert loss.item() == pytest.approx(math.log(200), rel=0.2)


def test_a_run_starts_with_the_weights_that_it_asks_for() -> None:
    def start(*overrides: str) -> tuple[str, str]:
        parts = build(tiny(*overrides)[0], torch.device("cpu"))
        return weights_fingerprint(parts.model), batch_fingerprint(parts.data.train(0))

    starts = [start(f"train.init={kind}") for kind in ("default", *KINDS)]

    assert len({weights for weights, _ in starts}) == 4
    assert len({batch for _, batch in starts}) == 1
    assert starts[0] == start()
    seeded = [start("train.init=mup", "train.init_seed=0", f"seed={seed}") for seed in (1, 2)]
    assert seeded[0][0] == seeded[1][0] == starts[3][0]
