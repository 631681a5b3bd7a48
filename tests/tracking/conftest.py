"""The stand-in of W&B's backend as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import wandb

from optlab.tracking import client, publish
from tracking.backend import Backend


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """A backend that this process and its children talk to; unknown requests fail the test.

    Nothing leaves the loopback: beyond it there is only a proxy where nobody listens.
    """
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    with Backend() as running:
        alone = {**running.environment(), **nowhere, "NO_PROXY": "127.0.0.1"}
        for name, value in alone.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(publish, "CONFIRM_WITHIN", 1.0)
        _forget()
        yield running
    _forget()
    assert running.unknown == []


def _forget() -> None:
    """Let the client read its environment anew."""
    client.api.cache_clear()
    wandb.teardown()
