"""Certified learning rates: runs that would repeat, bit by bit, one that is done.

Momo's step size is min(lr, what the model of the loss allows). Where the second was the smaller
one at every step, the learning rate never entered the weights, and a larger one would not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from .config import Run

if TYPE_CHECKING:
    from .store import Result

_STEEPEST = "optlab.optim.SteepestDescent"


@dataclass(frozen=True)
class Certified:
    """A run that need not be trained, and the one whose numbers are its own."""

    run: Run
    by: Run


def why_not(by: Run, result: Result | None, run: Run) -> str:
    """Why the done run ``by`` does not certify ``run``; '' where it does.

    It does where nothing of ``run`` differs but a larger learning rate, and nothing of ``by``
    depended on its own: its rule truncates the step at the learning rate and never took that
    itself, and no other part of the step takes it. What is needed, condition by condition:

    - the two configs differ in ``optimizer.lr`` alone, so nothing else was tied to it;
    - the learning rate of ``run`` is the larger one. A schedule is a factor that knows the step
      alone, so the cap is then no smaller at any step;
    - the optimizer is ``SteepestDescent``, whose step uses the learning rate as the cap of the step
      size and, with ``decay_by: lr``, for weight decay, and for nothing else;
    - there is no such weight decay; by the step taken (``decay_by: step``) it is harmless;
    - no step of ``by`` was capped. A step that is exactly the learning rate counts as capped, so a
      schedule that is 0 at some step certifies nothing.

    A diverged run certifies too: it would diverge again, at the same step. What the configs do not
    say (machine, library versions) is that of ``by``.
    """
    if result is None:
        return f"{by.name} is not done"
    if not run.lr >= by.lr:
        return f"its learning rate {run.lr:g} is smaller than {by.lr:g}"
    others = _differences(by.config, run.config)
    if others:
        return f"{', '.join(others)} differs too"
    return why_not_any(by, result)


def why_not_any(by: Run, result: Result) -> str:
    """Why the done run ``by`` certifies no larger learning rate; '' where it certifies all."""
    optimizer = by.config["optimizer"]
    if optimizer["_target_"] != _STEEPEST:
        return f"{optimizer['_target_']} may use the learning rate for more than a cap"
    if result.capped_steps is None:
        return "its steps at the cap were not counted: no rule truncates its step size at it"
    if result.capped_steps:
        return f"{result.capped_steps} of {result.step} steps were the learning rate itself"
    if optimizer["weight_decay"] and optimizer.get("decay_by", "step") != "step":
        return "its weights decay by the learning rate"
    return ""


def contradict(first: Result, second: Result) -> bool:
    """Whether two runs that should be the same, bit by bit, are not: another machine, perhaps."""
    return repr(asdict(first)) != repr(asdict(second))  # as text, NaN is NaN


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys in which two configs differ, ``optimizer.lr`` aside."""
    found = []
    for key in sorted({*one, *other}):
        name, a, b = f"{prefix}{key}", one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += _differences(a, b, f"{name}.")
        elif a != b and name != "optimizer.lr":
            found.append(name)
    return found
