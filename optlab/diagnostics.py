"""Numbers per parameter role, of single steps: dual norms and how much the weights move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Gauge:
    """Measures the optimizer steps that are due; the step itself stays as it is.

    ``dual_norm/ROLE``: the sum of the dual norms of the role's layers, for methods that have them.
    ``update/ROLE``: root mean square of the change of the role's weights, decay included; the role
    is ``all`` where the optimizer has one group for all weights.
    Between ``before`` and ``after`` of a step that is due there is a second copy of the weights.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, due: Callable[[int], bool]) -> None:
        self._optimizer, self._due = optimizer, due
        self._weights: list[list[Tensor]] | None = None
        self._measured: tuple[int, dict[str, Tensor]] | None = None

    @property
    def measures(self) -> bool:
        """Whether it is between ``before`` and ``after`` of a step that is due."""
        return self._weights is not None

    def before(self, step: int) -> None:
        """Call before the optimizer's step number ``step``, counted from 1."""
        if self._due(step):
            groups = self._optimizer.param_groups
            self._weights = [[x.detach().clone() for x in group["params"]] for group in groups]

    def after(self, step: int) -> None:
        """Call after it; nothing here waits for the device."""
        if self._weights is None:
            return
        values = {f"dual_norm/{role}": d for role, d in self._dual_norms().items()}
        for group, old in zip(self._optimizer.param_groups, self._weights, strict=True):
            values[f"update/{group.get('role', 'all')}"] = _rms_change(group["params"], old)
        self._weights, self._measured = None, (step, values)

    def take(self) -> dict[str, Any]:
        """What the last step that was due has shown, ``step`` among it; {} the second time."""
        if self._measured is None:
            return {}
        (step, values), self._measured = self._measured, None
        numbers = torch.stack([value.double() for value in values.values()]).tolist()
        return {"step": step, **dict(zip(values, numbers, strict=True))}

    def _dual_norms(self) -> dict[str, Tensor]:
        return getattr(self._optimizer, "dual_norms_by_role", dict)()


@torch.no_grad()
def _rms_change(new: list[Tensor], old: list[Tensor]) -> Tensor:
    norms = torch.stack([(x - y).norm().double() for x, y in zip(new, old, strict=True)])
    return norms.norm() / sum(x.numel() for x in new) ** 0.5


def due_every(every: int, eval_every: int, last: int) -> Callable[[int], bool]:
    """Whether a step is due: one of ``every`` (0: none), and those that an evaluation follows."""

    def due(step: int) -> bool:
        evaluated = step % eval_every == 0 or step == last
        return evaluated or (every > 0 and step % every == 0)

    return due
