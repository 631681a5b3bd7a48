"""torch.optim.Muon on matrices and torch.optim.AdamW on the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError


class TorchMuon(torch.optim.Optimizer):
    """Two optimizers of torch behind one interface; a baseline, and the oracle of our Muon.

    Args:
        params: from ``optlab.optim.roles.param_groups(model)``; Muon gets the role ``matrix``.
        lr: of both.
        momentum: weight of the past in Muon's Nesterov average.
        weight_decay: of both, decoupled.
        ns_steps, adjust_lr_fn: Muon's.
        adamw_betas: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        *,
        ns_steps: int,
        adjust_lr_fn: str,
        adamw_betas: Sequence[float],
    ) -> None:
        super().__init__(params, {"lr": lr})
        matrices = [group for group in self.param_groups if group["role"] == "matrix"]
        others = [group for group in self.param_groups if group["role"] != "matrix"]
        if not matrices or not others:
            raise ConfigError("optimizer=muon_torch needs matrices and other parameters.")
        # built on the very groups of this optimizer, so that a schedule reaches them
        self._muon = torch.optim.Muon(
            matrices,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )
        beta1, beta2 = adamw_betas
        self._adamw = torch.optim.AdamW(
            others, lr=lr, betas=(beta1, beta2), weight_decay=weight_decay
        )
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """One step of each; the closure returns the loss and is called once."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        self._muon.step()
        self._adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        """Let both work on the state and the groups of this optimizer."""
        self._muon.state = self._adamw.state = self.state
        self._muon.param_groups = [g for g in self.param_groups if g["role"] == "matrix"]
        self._adamw.param_groups = [g for g in self.param_groups if g["role"] != "matrix"]
