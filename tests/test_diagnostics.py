"""Numbers per parameter role: what they are, when they are taken, and that they change nothing."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from optlab.build import build
from optlab.diagnostics import Gauge, due_every
from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import RunStore
from optlab.train import Progress, train
from support import tiny

ALWAYS = due_every(1, 1, 1)


def test_evaluations_are_due_and_what_is_asked_for_in_between() -> None:
    due = due_every(4, 10, 25)

    assert [step for step in range(1, 26) if due(step)] == [4, 8, 10, 12, 16, 20, 24, 25]
    assert [s for s in range(1, 26) if due_every(0, 10, 25)(s)] == [10, 20, 25]


def test_the_update_is_the_root_mean_square_of_the_change() -> None:
    """Of SGD: lr times that of the gradient."""
    x = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))
    x.grad = torch.arange(6, dtype=torch.float64).view(3, 2)
    optimizer = torch.optim.SGD([{"params": [x], "role": "matrix"}], lr=0.5)
    gauge = Gauge(optimizer, ALWAYS)
    gauge.before(7)
    optimizer.step()
    gauge.after(7)

    assert gauge.take() == {"step": 7, "update/matrix": pytest.approx(0.5 * math.sqrt(55 / 6))}
    assert gauge.take() == {}


def test_dual_norms_per_role_sum_to_that_of_the_max_product_norm() -> None:
    """In the product norm max of PolarGrad's kind the dual norm is the sum over all layers."""
    run, _ = tiny("optimizer=scion_momo")
    parts = build(run, torch.device("cpu"))
    gauge = Gauge(parts.optimizer, ALWAYS)
    for record in train(parts, run.train, Progress(), gauge):
        found = gauge.take()
        if record is not None and record.step:
            values = [value for key, value in found.items() if key.startswith("dual_norm/")]
            assert len(values) == 3 and sum(values) == pytest.approx(record.dual_norm)


@pytest.mark.parametrize("optimizer", ["adamw", "muonmax_momo", "muon_torch"])
def test_measuring_changes_no_number(optimizer: str, tmp_path: object) -> None:
    results = []
    for every in (0, 1):
        run, settings = tiny(f"optimizer={optimizer}")
        tracking = dataclasses.replace(settings.tracking, diagnostics_every=every)
        settings = dataclasses.replace(settings, tracking=tracking)
        store = RunStore(tmp_path / str(every))  # type: ignore[operator]
        store.freeze(run)
        run_one(run.id, store, settings, stop=StopFlag(), report=lambda record: None)
        results.append((store.folder(run.id) / "result.json").read_text())
        steps = [row["step"] for row in store.diagnostics(run.id)]
        assert steps == ([2, 4, 6] if every == 0 else [1, 2, 3, 4, 5, 6])

    assert results[0] == results[1]
