"""What W&B shows of a run, as a function of the run's own files."""

from __future__ import annotations

import math
from typing import Any

from optlab.tracking import rows
from optlab.tracking.page import page_id
from support import tiny


def record(step: int, **changes: float) -> dict[str, Any]:
    return {"step": step, "samples": 16 * step, "seconds": step / 2, "val_loss": 2.0, **changes}


def test_every_record_is_a_row_and_diagnostics_join_the_record_of_their_step() -> None:
    diagnostics = [{"step": step, "update/matrix": step / 10} for step in (1, 2, 3)]
    found = rows.history([record(0), record(2)], diagnostics)

    assert [row["step"] for row in found] == [0, 1, 2, 3]
    assert found[1] == {"step": 1, "update/matrix": 0.1}
    assert found[2]["val_loss"] == 2.0 and found[2]["update/matrix"] == 0.2


def test_throughput_is_that_since_the_record_before() -> None:
    found = rows.history([record(0), record(2), record(6, seconds=9.0)], [])

    assert math.isnan(found[0]["samples_per_second"])
    assert [row["samples_per_second"] for row in found[1:]] == [32.0, 8.0]


def test_a_history_that_grows_keeps_its_beginning() -> None:
    """Row k is row k at every time, so what W&B lacks is an end."""
    records = [record(step) for step in (0, 2, 4)]
    diagnostics = [{"step": step, "update/matrix": 0.1} for step in (1, 2, 3, 4)]
    for n in range(3):
        earlier = [row for row in diagnostics if row["step"] <= records[n]["step"]]
        part = repr(rows.history(records[: n + 1], earlier))
        assert repr(rows.history(records, diagnostics)).startswith(part[:-1])


def test_config_has_the_keys_that_users_filter_by() -> None:
    run, _ = tiny("optimizer=muonmax_momo", "optimizer.lr=0.5", "seed=3")
    found = rows.config(run)

    assert (found["method"], found["lr"], found["seed"]) == ("muonmax_momo", 0.5, 3)
    assert (found["model"], found["dataset"], found["norms"]) == ("mlp", "digits", "spectral_ada2")
    assert found["resolved"] == run.config


def test_summary_has_the_best_loss_and_leaves_out_what_is_none() -> None:
    losses = (3.0, 1.5, math.nan)
    records = [record(step, val_loss=loss) for step, loss in zip((0, 2, 4), losses, strict=True)]
    found = rows.summary({"run": "a", "outcome": "diverged", "diverged_at": None}, records)

    assert (found["best_loss"], found["best_step"], found["records"]) == (1.5, 2, 3)
    assert "diverged_at" not in found and "run" not in found


def test_pages_have_ids_that_wandb_takes_and_no_two_share_one() -> None:
    names = ["demo", "paper/fig1", "paper-fig1", "x" * 90]
    ids = [page_id(name) for name in names]

    assert len(set(ids)) == len(names)
    assert all(len(id) <= 64 and not set(id) & set("/\\#?%:") for id in ids)
