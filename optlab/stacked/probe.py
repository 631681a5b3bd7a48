"""How many runs of a kind are worth to be trained together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Settings
from ..store import RunStore


@dataclass(frozen=True)
class Choice:
    """The size of the stacks of a kind."""

    size: int
    gain: float  # over the same runs one by one
    reason: str  # for the size 1


def choose_size(run_ids: Sequence[str], store: RunStore, settings: Settings, most: int) -> Choice:
    """The best size of a stack of these runs, ``most`` at most."""
    del store, settings
    size = min(most, len(run_ids), 4)
    return Choice(size, float(size), "" if size > 1 else "a single run")
