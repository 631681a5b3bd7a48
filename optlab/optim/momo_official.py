"""Momo and Momo-Adam of their authors' package momo-opt, to compare ours with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

import torch

from ..errors import ConfigError


def momo_official(
    params: Iterable[dict[str, Any]],
    lr: float,
    beta: float,
    weight_decay: float,
    *,
    lb: float | None,
    bias_correction: bool,
    use_fstar: bool,
) -> torch.optim.Optimizer:
    """``momo.Momo`` with one group: with several its estimate of the bound is wrong."""
    return _package().Momo(
        _parameters(params),
        lr=lr,
        beta=beta,
        weight_decay=weight_decay,
        lb=_checked(lb),
        bias_correction=bias_correction,
        use_fstar=use_fstar,
    )


def momo_adam_official(
    params: Iterable[dict[str, Any]],
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    *,
    lb: float | None,
    use_fstar: bool,
) -> torch.optim.Optimizer:
    """``momo.MomoAdam`` on all parameters in one group."""
    return _package().MomoAdam(
        _parameters(params),
        lr=lr,
        betas=tuple(betas),
        eps=eps,
        weight_decay=weight_decay,
        lb=_checked(lb),
        use_fstar=use_fstar,
    )


def _package() -> ModuleType:
    try:
        import momo
    except ImportError as error:
        raise ConfigError("Momo's official code is not installed: pip install momo-opt.") from error
    return momo


def _parameters(groups: Iterable[dict[str, Any]]) -> list[torch.Tensor]:
    return [parameter for group in groups for parameter in group["params"]]


def _checked(lb: float | None) -> float:
    if lb is None:
        raise ConfigError("Momo needs a lower bound of the loss: set dataset.loss_lower_bound.")
    return lb
