"""Libraries' elementwise optimizers on K replicas: theirs is the code, each replica is one row.

An optimizer that treats every entry of every parameter alike does not care how entries are laid
out. So all parameters of a replica become one vector, the K vectors a matrix, and one optimizer of
the library's own class steps on the K rows, in a parameter group each with the replica's
hyperparameters. What is saved is the price of calls: one replica's small tensors cost K times as
many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from .separate import Separate, own_parameters

ELEMENTWISE: dict[str, dict[str, object]] = {  # class -> what options must be, if it has them
    "torch.optim.adadelta.Adadelta": {},
    "torch.optim.adagrad.Adagrad": {},
    "torch.optim.adam.Adam": {},
    "torch.optim.adamax.Adamax": {},
    "torch.optim.adamw.AdamW": {},
    "torch.optim.nadam.NAdam": {},
    "torch.optim.radam.RAdam": {},
    "torch.optim.rmsprop.RMSprop": {},
    "torch.optim.sgd.SGD": {},
    "lion_pytorch.lion_pytorch.Lion": {"decoupled_wd": False},  # by the first lr, one for all
    "pytorch_optimizer.optimizer.adabelief.AdaBelief": {"adanorm": False},  # norms of gradients
    "pytorch_optimizer.optimizer.adabound.AdaBound": {},
}
FUSED = (  # on a GPU: several times faster, and equal to rounding
    "torch.optim.adagrad.Adagrad",
    "torch.optim.adam.Adam",
    "torch.optim.adamw.AdamW",
    "torch.optim.sgd.SGD",
)
OF_A_PARAMETER = ("step", "mu_product")  # states that are one number for all entries
OF_A_GROUP = ("base_lrs",)  # attributes that are lists, an entry for each group (AdaBound)
UNUSED = ("_init_lr",)  # attributes without effect where ELEMENTWISE holds (Lion)
OWN = ("params", "names", "role")  # keys of a group in which a replica's groups may differ
NOT_RETURNED = (*OWN, "lr", "fused")  # the caller's, and ours


class Flat:
    """One optimizer of the library on the replicas' rows.

    Gradients are gathered into rows and the weights of the rows copied to the stacks, so that those
    may lie in memory as models like it: nobody else may change weights between steps. It needs a
    gradient for every parameter. The first step in which one has none ends it: from then on the
    replicas' own optimizers step.
    """

    def __init__(
        self, solos: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor]
    ) -> None:
        self._solos, self._parameters = solos, parameters
        self._separate: Separate | None = None
        stacks = [stack.detach().view(len(solos), -1) for stack in parameters]
        self._sizes = [stack.shape[1] for stack in stacks]
        weights = torch.cat(stacks, 1)
        self._rows = weights.unbind()
        self._parts = list(zip(stacks, weights.split(self._sizes, 1), strict=True))
        self._gradients = torch.zeros_like(weights)
        for row, gradient in zip(self._rows, self._gradients.unbind(), strict=True):
            row.grad = gradient
        self._whole = _on_rows(solos, self._rows)
        self.publish()  # the replicas' own averages are no longer needed

    def step(self, losses: Tensor) -> None:
        gradients = [x.grad for x in self._parameters if x.grad is not None]
        if self._separate is None and len(gradients) < len(self._parameters):
            self.publish()
            self._separate = Separate(self._solos, self._parameters)
        if self._separate is not None:
            self._separate.step(losses)
            return
        count = len(self._solos)
        torch.cat([g.reshape(count, -1) for g in gradients], 1, out=self._gradients)
        for group, solo in zip(self._whole.param_groups, self._solos, strict=True):
            group["lr"] = _lr(solo)
        self._whole.step()
        for stack, part in self._parts:
            stack.copy_(part)

    def publish(self) -> None:
        if self._separate is not None:
            return
        for solo, row, group in zip(self._solos, self._rows, self._whole.param_groups, strict=True):
            if state := self._whole.state.get(row):
                self._give_state(solo, state)
            changed = {name: value for name, value in group.items() if name not in NOT_RETURNED}
            for own in solo.param_groups:
                own.update(changed)

    def _give_state(self, solo: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """What is of the row's entries as views in the parameters' shapes, the rest as copies."""
        parameters = own_parameters(solo)
        counts_there = any(solo.param_groups[0].get(name) for name in ("fused", "capturable"))
        device = parameters[0].device if counts_there else torch.device("cpu")
        entries = {
            name: value.split(self._sizes)
            for name, value in state.items()
            if _is_of_entries(name, value)
        }
        # once to the CPU: a GPU is waited for
        numbers = {
            name: _number(value, device) for name, value in state.items() if name not in entries
        }
        for index, x in enumerate(parameters):
            solo.state[x] = {
                name: entries[name][index].view(x.shape)
                if name in entries
                else _number(numbers[name], device)
                for name in state
            }


def is_elementwise(solos: Sequence[torch.optim.Optimizer]) -> bool:
    """Whether ``Flat`` serves them."""
    first = _attributes(solos[0])
    return (
        all(_treats_entries_alike(solo) for solo in solos)
        and len({(x.dtype, x.device) for solo in solos for x in own_parameters(solo)}) == 1
        and all(_attributes(solo) == first for solo in solos)
    )


def _treats_entries_alike(solo: torch.optim.Optimizer) -> bool:
    needed = ELEMENTWISE.get(_name(solo))
    if needed is None:
        return False
    groups = [_options(group) for group in solo.param_groups]
    options = {**vars(solo), **groups[0]}
    states = [_summary(solo.state.get(x, {})) for x in own_parameters(solo)]
    return (
        all(options.get(name, value) == value for name, value in needed.items())
        and all(group == groups[0] for group in groups)
        and all(state == states[0] for state in states)
    )


def _on_rows(
    solos: Sequence[torch.optim.Optimizer], rows: Sequence[Tensor]
) -> torch.optim.Optimizer:
    """The library's optimizer with a group for each row, after the steps of ``solos``."""
    first = solos[0]
    groups = []
    for solo, row in zip(solos, rows, strict=True):
        group = {**_options(solo.param_groups[0]), "params": [row]}
        groups.append({**group, "fused": True} if _may_fuse(solo, row) else group)
    make = cast(Callable[..., torch.optim.Optimizer], type(first))  # subclasses have defaults
    whole = make(groups)
    for name, value in _attributes(first).items():
        setattr(whole, name, value)
    for name in OF_A_GROUP:
        if name in vars(first):
            setattr(whole, name, [vars(solo)[name][0] for solo in solos])
    for solo, row, group in zip(solos, rows, groups, strict=True):
        if state := _joined(solo, row, fused=bool(group.get("fused"))):
            whole.state[row] = state
    return whole


def _may_fuse(solo: torch.optim.Optimizer, row: Tensor) -> bool:
    """Whether torch has one kernel for the whole step, and nothing else was asked for."""
    group = solo.param_groups[0]
    free = group.get("fused") is None and not group.get("foreach")
    return (
        free
        and not group.get("differentiable")
        and _name(solo) in FUSED
        and row.is_cuda  # a CPU's kernel would not give the bits of a run alone
    )


def _joined(solo: torch.optim.Optimizer, row: Tensor, *, fused: bool) -> dict[str, Any]:
    """The states of a replica's parameters as that of its row."""
    states = [solo.state.get(x, {}) for x in own_parameters(solo)]
    return {
        name: torch.cat([state[name].reshape(-1) for state in states])
        if _is_of_entries(name, value)
        else _number(value, row.device if fused else None)
        for name, value in states[0].items()
    }


def _number(value: Any, device: torch.device | None) -> Any:
    """A copy, which may count on, where it is a tensor."""
    return value.detach().clone().to(device) if isinstance(value, Tensor) else value


def _summary(state: Mapping[str, Any]) -> dict[str, Any]:
    """What the states of a replica's parameters must have in common."""
    return {
        name: "entries"
        if _is_of_entries(name, value)
        else float(value)
        if isinstance(value, Tensor)
        else value
        for name, value in state.items()
    }


def _is_of_entries(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and name not in OF_A_PARAMETER


def _lr(solo: torch.optim.Optimizer) -> float:
    """The learning rate of all groups."""
    rates = {group["lr"] for group in solo.param_groups}
    if len(rates) > 1:
        raise ValueError(f"The groups of a replica have the learning rates {sorted(rates)}.")
    return rates.pop()


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in OWN}


def _attributes(solo: torch.optim.Optimizer) -> dict[str, Any]:
    """What the library's class adds to an optimizer."""
    known = (*vars(torch.optim.Optimizer([torch.zeros(1)], {})), *OF_A_GROUP, *UNUSED)
    return {name: value for name, value in vars(solo).items() if name not in known}


def _name(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
