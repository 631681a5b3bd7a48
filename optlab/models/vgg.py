"""VGG networks for small images, with batch normalization (arXiv 1409.1556)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from ..errors import ConfigError
from .images import as_images, image_shape


class VGG(nn.Module):
    """Stages of ``convolutions`` 3x3 convolutions, each ended by a 2x2 maximum; a linear head.

    With 2, 2, 3, 3, 3 convolutions of 64, 128, 256, 512, 512 channels it is VGG16 (configuration D)
    without its two hidden linear layers, which small images have no use for.
    """

    roles: ClassVar[dict[str, str]] = {r"^head\.weight$": "head"}

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        widths: Sequence[int],
        convolutions: Sequence[int],
    ) -> None:
        super().__init__()
        if len(widths) != len(convolutions) or not widths or min([*widths, *convolutions]) < 1:
            raise ConfigError(
                "model.widths and model.convolutions must have one positive number per stage, but "
                f"they are {list(widths)} and {list(convolutions)}."
            )
        self.channels, self.side = image_shape(input_size, "vgg16")
        layers: list[nn.Module] = []
        before = self.channels
        for width, count in zip(widths, convolutions, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))  # a side of 1 stays 1
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, output_size)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, output_size) of images (B, ...) with ``input_size`` values each."""
        x_BCSS = self.features(as_images(x, self.channels, self.side, "vgg16"))
        return self.head(x_BCSS.mean((2, 3)))
