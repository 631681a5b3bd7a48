"""The norm-assignment card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from optlab import card as card_module
from optlab.card import describe, norm_card
from optlab.config import compose_run
from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import RunStore
from support import tiny


def card_of(*overrides: str) -> card_module.Card:
    return norm_card(compose_run(overrides)[0])


def test_every_parameter_stands_once_with_its_norm() -> None:
    rows = {row["parameter"]: row for row in card_of("optimizer=muon_adam").rows}

    assert rows["layers.0.weight"]["norm"].startswith("Spectral")
    assert rows["layers.0.weight"]["shape"] == "128x64"
    assert rows["head.weight"]["norm"] == rows["head.bias"]["norm"] == "AdaInf"
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


def test_the_norms_axis_changes_the_card() -> None:
    cards = [
        card_of("optimizer=scion", f"optimizer/norms={norms}").rows
        for norms in ("spectral_linf", "spectral_adainf")
    ]

    assert [row["role"] for row in cards[0]] == [row["role"] for row in cards[1]]
    assert [row["norm"] for row in cards[0]] != [row["norm"] for row in cards[1]]


def test_a_scale_is_shown() -> None:
    rows = card_of("optimizer=scion", "optimizer.norms.matrix.scale=16.0").rows

    assert {row["scale"] for row in rows if row["role"] == "matrix"} == {16.0}


def test_a_library_method_shows_roles_only() -> None:
    card = card_of("optimizer=adamw")

    assert "norm" not in card.rows[0] and "library's method" in card.doubts[0]
    assert "head" in describe(card)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embedding.weight


def test_a_tied_parameter_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    part = card_module.part
    monkeypatch.setattr(
        card_module, "part", lambda run, group: Tied() if group == "model" else part(run, group)
    )
    card = card_of("optimizer=scion")

    assert len(card.rows) == 1
    assert card.doubts == [
        "head.weight is tied to embedding.weight, and assigned once, as embedding.weight."
    ]


def test_a_matrix_norm_on_a_vector_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    card = card_of("optimizer=scion", "optimizer.norms.vector=${optimizer.norms.matrix}")

    assert any("head.bias" in doubt and "matrix norm" in doubt for doubt in card.doubts)


def test_the_card_is_stored_with_the_run(store: RunStore) -> None:
    run, settings = tiny("optimizer=scion")
    store.freeze(run)
    run_one(run.id, store, settings, stop=StopFlag(), report=lambda record: None)
    stored = json.loads((store.folder(run.id) / "norms.json").read_text())

    assert stored == norm_card(run).as_json()


def test_the_command_prints_the_card(command, tmp_path: Path) -> None:
    done = command("-m", "optlab", "norms", "optimizer=scion", "model.width=16")

    assert done.returncode == 0, done.stderr
    assert "layers.0.weight" in done.stdout and "16x64" in done.stdout
    assert command("-m", "optlab", "norms", "optimizer=scoin").returncode == 1
