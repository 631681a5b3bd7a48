"""What the image models share: the shape of their inputs."""

from __future__ import annotations

import math

from torch import Tensor

from ..errors import ConfigError


def image_shape(input_size: int, model: str) -> tuple[int, int]:
    """(channels, side) of square grey or RGB images with ``input_size`` values each.

    Raises:
        ConfigError: no such image has that many values.
    """
    for channels in (1, 3):
        side = math.isqrt(input_size // channels)
        if channels * side * side == input_size:
            return channels, side
    raise ConfigError(
        f"model={model} takes square images with 1 or 3 channels, but this dataset declares "
        f"input_size {input_size}, which is none: choose another model."
    )


def as_images(x: Tensor, channels: int, side: int, model: str) -> Tensor:
    """``x`` (B, ...) as (B, channels, side, side)."""
    if not x.is_floating_point():
        raise ConfigError(
            f"model={model} takes real-valued images, but this dataset gives tokens ({x.dtype}): "
            "choose a language model such as model=gpt_tiny."
        )
    return x.reshape(len(x), channels, side, side)
