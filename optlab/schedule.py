"""Schedules: the factor on the base learning rate, a pure function of (step, total)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from .errors import ConfigError


class Schedule(Protocol):
    """The factor on the base learning rate."""

    def __call__(self, step: int, total: int) -> float:
        """The factor of ``step`` = 0, ..., ``total`` - 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """1 throughout."""

    def __call__(self, step: int, total: int) -> float:
        return 1.0


@dataclass(frozen=True)
class ConstantLinear:
    """1 for ``constant_fraction`` of training, then a line that would be 0 at its end, no lower
    than ``floor`` (arXiv 2510.09827: fraction 0.4, floor 0.1; there is no warm-up)."""

    constant_fraction: float
    floor: float

    def __post_init__(self) -> None:
        _check_fraction("constant_linear.constant_fraction", self.constant_fraction)
        _check_fraction("constant_linear.floor", self.floor)

    def __call__(self, step: int, total: int) -> float:
        return max(_line_to_zero(step / total, self.constant_fraction), self.floor)


@dataclass(frozen=True)
class Linear:
    """From 1 at step 0 on a line that reaches 0 at ``total``."""

    def __call__(self, step: int, total: int) -> float:
        return _line_to_zero(step / total, 0.0)


@dataclass(frozen=True)
class Cosine:
    """Linear warm-up, then half a cosine from 1 to ``floor`` at ``total`` (arXiv 1608.03983)."""

    warmup_fraction: float
    floor: float

    def __post_init__(self) -> None:
        _check_fraction("cosine.warmup_fraction", self.warmup_fraction)
        _check_fraction("cosine.floor", self.floor)

    def __call__(self, step: int, total: int) -> float:
        warmup = round(self.warmup_fraction * total)
        if step < warmup:
            return _warmup(step, warmup)
        progress = (step - warmup) / (total - warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear warm-up, then 1, then at last a line to 0 at ``total`` (arXiv 2404.06395)."""

    warmup_fraction: float
    decay_fraction: float

    def __post_init__(self) -> None:
        _check_fraction("wsd.warmup_fraction", self.warmup_fraction)
        _check_fraction("wsd.decay_fraction", self.decay_fraction)
        if self.warmup_fraction + self.decay_fraction > 1:
            raise ConfigError("schedule: warmup_fraction and decay_fraction add up to more than 1.")

    def __call__(self, step: int, total: int) -> float:
        warmup = round(self.warmup_fraction * total)
        if step < warmup:
            return _warmup(step, warmup)
        return _line_to_zero(step / total, 1 - self.decay_fraction)


def _warmup(step: int, warmup: int) -> float:
    """A line through 1 / (warmup + 1) at step 0 and 1 at step ``warmup``."""
    return (step + 1) / (warmup + 1)


def _line_to_zero(progress: float, start: float) -> float:
    """1 up to ``start``, then a line that reaches 0 at ``progress`` 1."""
    return 1.0 if progress <= start else (1.0 - progress) / (1.0 - start)


def _check_fraction(name: str, value: float) -> None:
    if not (0 <= value <= 1 and math.isfinite(value)):
        raise ConfigError(f"schedule: {name} must be in [0, 1], not {value}.")
