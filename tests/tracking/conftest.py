"""The stand-in of W&B's backend as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tracking.backend import Backend
from tracking.trained import connected


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend that this process and its children talk to; unknown requests fail the test."""
    with connected(monkeypatch) as running:
        yield running
