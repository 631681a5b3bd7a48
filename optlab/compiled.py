"""Compilation of a model's forward and backward passes by ``torch.compile``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .errors import ConfigError

# Dropout draws what it draws uncompiled: a run is the same, rounding aside, compiled or not.
_OPTIONS: dict[str, Any] = {"fallback_random": True}


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Make ``model`` compile itself as it is called; the names of its weights stay.

    Raises:
        ConfigError: nothing can be compiled on this machine.
    """
    _check_compiler(device)
    model.compile(options=_OPTIONS)


def _check_compiler(device: torch.device) -> None:
    try:
        torch.compile(_one_more, options=_OPTIONS)(torch.zeros(1, device=device))
    except Exception as error:  # many kinds, by what is missing
        cause = str(error).strip().split("\n")[0]
        raise ConfigError(
            f"runtime.compile=true, but torch.compile does not work on this machine ({cause}):"
            " install a C++ compiler such as g++, or train with runtime.compile=false."
        ) from error


def _one_more(x: Tensor) -> Tensor:
    return x + 1
