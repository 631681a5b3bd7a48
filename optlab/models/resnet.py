"""Residual networks for small images, with batch normalization (arXiv 1512.03385).

Shape suffixes: B batch, C channels, S side of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .images import as_images, image_shape

Shortcut = Literal["zero_pad", "projection"]


class ResNet(nn.Module):
    """A 3x3 stem, then stages of ``blocks`` basic blocks; each later stage halves the side.

    With widths 16, 32, 64 and ``zero_pad`` it is the CIFAR network of section 4.2 with
    6 ``blocks`` + 2 layers (3: ResNet20, 18: ResNet110); with 64, 128, 256, 512, two blocks and
    ``projection`` it is ResNet18 with the stem that small images need. Convolutions start normal
    with He's fan-out variance, without biases.
    """

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        widths: Sequence[int],
        blocks: int,
        shortcut: Shortcut,
    ) -> None:
        super().__init__()
        _check(widths, blocks, shortcut)
        self.channels, self.side = image_shape(input_size, "resnet")
        self.stem = _conv3(self.channels, widths[0])
        self.stem_norm = nn.BatchNorm2d(widths[0])
        into = [widths[0], *(width for width in widths for _ in range(blocks))]
        self.blocks = nn.ModuleList(
            BasicBlock(before, after, stride=1 + (before != after), shortcut=shortcut)
            for before, after in pairwise(into)
        )
        self.head = nn.Linear(widths[-1], output_size)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, output_size) of images (B, ...) with ``input_size`` values each."""
        x_BCSS = as_images(x, self.channels, self.side, "resnet")
        x_BCSS = F.relu(self.stem_norm(self.stem(x_BCSS)))
        for block in self.blocks:
            x_BCSS = block(x_BCSS)
        return self.head(x_BCSS.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, added to the input or to its shortcut."""

    def __init__(self, before: int, after: int, *, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv3(before, after, stride), nn.BatchNorm2d(after)
        self.conv2, self.norm2 = _conv3(after, after), nn.BatchNorm2d(after)
        same = before == after and stride == 1
        if same:
            self.shortcut = nn.Identity()
        elif shortcut == "zero_pad":
            self.shortcut = ZeroPad(after - before, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x_BCSS: Tensor) -> Tensor:
        y_BCSS = F.relu(self.norm1(self.conv1(x_BCSS)))
        return F.relu(self.norm2(self.conv2(y_BCSS)) + self.shortcut(x_BCSS))


class ZeroPad(nn.Module):
    """Every ``stride``-th pixel, and ``channels`` more channels of zeros (the paper's option A)."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x_BCSS: Tensor) -> Tensor:
        half = self.channels // 2
        seen = x_BCSS[:, :, :: self.stride, :: self.stride]
        return F.pad(seen, (0, 0, 0, 0, half, self.channels - half))


def _conv3(before: int, after: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)


def _check(widths: Sequence[int], blocks: int, shortcut: str) -> None:
    rising = all(before < after for before, after in pairwise(widths))
    if not widths or min(widths) < 1 or not rising or blocks < 1:
        raise ConfigError(
            "model.widths must be rising numbers of channels, one per stage, and model.blocks at "
            f"least 1, but they are {list(widths)} and {blocks}."
        )
    if shortcut not in ("zero_pad", "projection"):
        raise ConfigError(f"model.shortcut must be zero_pad or projection, not {shortcut!r}.")
