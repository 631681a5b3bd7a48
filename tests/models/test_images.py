"""The image models: published sizes, formulas, roles, and that they learn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optlab.errors import ConfigError
from optlab.models.images import image_shape
from optlab.models.resnet import BasicBlock, ResNet, ZeroPad
from optlab.models.vgg import VGG
from optlab.models.vit import Block, ViT
from optlab.optim.roles import param_groups

CIFAR = 3 * 32 * 32


def resnet(depth: int, classes: int = 10, size: int = CIFAR) -> ResNet:
    if depth == 18:
        widths = [64, 128, 256, 512]
        return ResNet(size, classes, widths=widths, blocks=2, shortcut="projection")
    return ResNet(size, classes, widths=[16, 32, 64], blocks=(depth - 2) // 6, shortcut="zero_pad")


def vgg16(size: int = CIFAR) -> VGG:
    return VGG(size, 10, widths=[64, 128, 256, 512, 512], convolutions=[2, 2, 3, 3, 3])


def vit(size: int = CIFAR, width: int = 512, depth: int = 6, dropout: float = 0.1) -> ViT:
    return ViT(size, 10, patch=4, width=width, depth=depth, heads=8, hidden=512, dropout=dropout)


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (lambda: resnet(20), 269_722),  # 0.27M in table 6 of arXiv 1512.03385
        (lambda: resnet(110), 1_727_962),  # 1.7M there
        (
            lambda: resnet(18),
            11_173_962,
        ),  # torchvision's 11.69M, less its 7x7 stem and 1,000 classes
        (vgg16, 14_728_266),  # the 13 convolutions of configuration D and 10 classes
        (vit, 9_523_722),
    ],
    ids=["resnet20", "resnet110", "resnet18", "vgg16", "vit_small"],
)
def test_the_number_of_parameters_is_the_published_one(make, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in make().parameters()) == count


@pytest.mark.parametrize(("depth", "sides_of_stages"), [(20, [32, 16, 8]), (18, [32, 16, 8, 4])])
def test_a_resnet_halves_the_side_at_each_later_stage(
    depth: int, sides_of_stages: list[int]
) -> None:
    sides = []
    model = resnet(depth)
    for block in model.blocks:
        block.register_forward_hook(lambda m, i, out: sides.append(out.shape[-1]))
    model(torch.randn(2, 3, 32, 32))

    assert sorted(set(sides), reverse=True) == sides_of_stages
    assert sides == sorted(sides, reverse=True)


def test_a_zero_padded_shortcut_sees_every_second_pixel_and_adds_empty_channels() -> None:
    x = torch.randn(2, 4, 6, 6)
    y = ZeroPad(4, 2)(x)

    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


def test_a_block_whose_branch_is_zero_is_its_shortcut() -> None:
    block = BasicBlock(4, 4, stride=1, shortcut="zero_pad").eval()
    nn.init.zeros_(block.norm2.weight)
    x = torch.randn(2, 4, 6, 6)

    assert torch.equal(block(x), x.relu())


def test_the_projection_is_trained_and_the_zero_padding_is_not() -> None:
    names = {name for name, _ in resnet(18).named_parameters()}

    assert "blocks.2.shortcut.0.weight" in names
    assert not [name for name, _ in resnet(20).named_parameters() if "shortcut" in name]


def test_a_vit_whose_branches_are_zero_reads_its_class_token_alone() -> None:
    model = vit(width=16, depth=1, dropout=0.0)
    for layer in (model.blocks[0].proj, model.blocks[0].down):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    expected = model.head(model.norm(model.class_token[0] + model.pos_emb[0]))

    torch.testing.assert_close(model(torch.randn(3, 3, 32, 32)), expected.expand(3, -1))


def test_a_vit_sees_each_patch_as_one_token() -> None:
    """A change inside one patch changes one row of what the first block gets, plus none else."""
    model = vit(width=16, depth=1, dropout=0.0).eval()
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    x = torch.zeros(1, 3, 32, 32)
    model(x)
    x[0, 1, 5, 9] = 1.0  # patch row 1, column 2
    model(x)
    changed = (seen[0] != seen[1]).any(dim=-1)[0].nonzero().flatten().tolist()

    assert changed == [1 + 1 * 8 + 2]


def test_attention_of_a_vit_is_the_formula() -> None:
    block = Block(16, 2, 8, 0.0).double()
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    q, k, v = (x @ block.qkv.weight.T).chunk(3, dim=-1)
    heads = []
    for i in (slice(0, 8), slice(8, 16)):
        weights = (q[..., i] @ k[..., i].transpose(1, 2) / 8**0.5).softmax(-1)
        heads.append(weights @ v[..., i])

    torch.testing.assert_close(block._attend(x), torch.cat(heads, dim=-1))


def test_dropout_acts_in_training_alone() -> None:
    model, x = vit(width=16, depth=1), torch.randn(2, 3, 32, 32)

    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("make", [lambda: resnet(20), vgg16, lambda: vit(width=16, depth=1)])
def test_roles(make) -> None:
    groups = {group["role"]: group["names"] for group in param_groups(make())}

    assert groups["head"] == ["head.weight"]
    if "conv" in groups:
        assert all("norm" not in name and "bias" not in name for name in groups["conv"])
    else:
        assert groups["embedding"] == ["class_token", "pos_emb"]
        assert "patch_emb.weight" in groups["matrix"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(64, 4, widths=[8, 16], blocks=1, shortcut="zero_pad"),
        lambda: ResNet(64, 4, widths=[8, 16], blocks=1, shortcut="projection"),
        lambda: VGG(64, 4, widths=[8, 16], convolutions=[1, 1]),
        lambda: ViT(64, 4, patch=4, width=16, depth=1, heads=2, hidden=16, dropout=0.0),
    ],
    ids=["zero_pad", "projection", "vgg", "vit"],
)
def test_it_learns_which_quadrant_is_bright(make) -> None:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    targets = torch.arange(32) % 4
    x = 0.1 * torch.randn(32, 1, 8, 8)
    for image, quadrant in zip(x, targets.tolist(), strict=True):
        image[0, 4 * (quadrant // 2) :, 4 * (quadrant % 2) :][:4, :4] += 1.0
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(x), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("size", "shape"), [(64, (1, 8)), (784, (1, 28)), (3072, (3, 32)), (12288, (3, 64))]
)
def test_the_shape_of_images_follows_from_their_size(size: int, shape: tuple[int, int]) -> None:
    assert image_shape(size, "resnet") == shape


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: resnet(20, size=65), "input_size 65"),
        (lambda: ResNet(64, 4, widths=[], blocks=1, shortcut="zero_pad"), "rising"),
        (lambda: ResNet(64, 4, widths=[16, 8], blocks=1, shortcut="zero_pad"), "rising"),
        (lambda: ResNet(64, 4, widths=[8], blocks=1, shortcut="none"), "zero_pad or projection"),  # type: ignore[arg-type]
        (lambda: VGG(64, 4, widths=[8], convolutions=[1, 1]), "one positive number per stage"),
        (lambda: VGG(64, 4, widths=[0], convolutions=[1]), "one positive number per stage"),
        (lambda: ViT(64, 4, patch=3, width=8, depth=1, heads=2, hidden=8, dropout=0.0), "divide"),
        (lambda: ViT(64, 4, patch=4, width=9, depth=1, heads=2, hidden=8, dropout=0.0), "divide"),
        (
            lambda: ViT(64, 4, patch=4, width=8, depth=1, heads=2, hidden=8, dropout=1.0),
            r"\[0, 1\)",
        ),
        (lambda: resnet(20)(torch.zeros(2, 3072, dtype=torch.int64)), "gives tokens"),
    ],
)
def test_what_makes_no_model_is_refused_in_words(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()
