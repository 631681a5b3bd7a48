"""Certified learning rates: what a run says about larger ones, against runs at these."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from optlab.attempt import capped_steps
from optlab.build import build
from optlab.certify import contradict, why_not
from optlab.config import Run
from optlab.run import run_one
from optlab.stop import StopFlag
from optlab.store import Record, Result, RunStore
from optlab.train import Progress, train
from support import tiny

HUGE = "optimizer.lr=1e4"  # no step comes near it, nor near a tenth of it, the schedule's floor


def trained(run: Run) -> tuple[Tensor, list[dict]]:
    """The weights of a run at its end, and its records without those of the clock and of the lr."""
    parts = build(run, torch.device("cpu"))
    records = [asdict(record) for record in train(parts, run.train, Progress()) if record]
    for record in records:
        del record["seconds"], record["lr"]
    del records[0]["step_size"]  # before the first step, that is the learning rate
    weights = torch.cat([p.detach().flatten() for p in parts.model.parameters()])
    return weights, records


def done(run: Run, store: RunStore) -> Result:
    """The result of a run, trained in the store."""
    store.freeze(run)
    run_one(run.id, store, tiny()[1], stop=StopFlag(), report=lambda record: None)
    result = store.result(run.id)
    assert result is not None
    return result


def at(run: Run, factor: float) -> Run:
    """``run`` with its learning rate times ``factor``."""
    optimizer = {**run.config["optimizer"], "lr": run.lr * factor}
    return replace(run, config={**run.config, "optimizer": optimizer})


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=muonmax_momo"],
        ["optimizer=muonmax_momo_stale", "schedule=cosine"],
        ["optimizer=muon_adam_momo", "schedule=wsd"],
        ["optimizer=momo_star", "optimizer.weight_decay=0.1"],
        ["optimizer=momo_adam"],
    ],
    ids=" ".join,
)
def test_a_run_without_a_capped_step_is_every_run_of_a_larger_lr_bit_by_bit(
    store: RunStore, overrides: list[str]
) -> None:
    run, _ = tiny(HUGE, *overrides)
    result = done(run, store)
    weights, records = trained(run)

    assert result.capped_steps == 0
    for larger in (at(run, 3.0), at(run, 100.0)):
        assert why_not(run, result, larger) == ""
        other_weights, other_records = trained(larger)
        assert torch.equal(weights, other_weights)
        assert repr(records) == repr(other_records)  # as text, NaN is NaN
        assert not contradict(result, done(larger, store))


def test_weight_decay_by_the_learning_rate_is_seen_and_not_certified(store: RunStore) -> None:
    run, _ = tiny(HUGE, "optimizer.weight_decay=1e-7", "optimizer.decay_by=lr")
    result = done(run, store)

    assert result.capped_steps == 0
    assert why_not(run, result, at(run, 3.0)) == "its weights decay by the learning rate"
    assert not torch.equal(trained(run)[0], trained(at(run, 3.0))[0])


def test_a_capped_step_is_seen_and_not_certified(store: RunStore) -> None:
    """At 0.1 the first steps are the learning rate itself; later ones are truncated."""
    run, _ = tiny("optimizer.lr=0.1")
    result = done(run, store)

    assert result.capped_steps is not None and 0 < result.capped_steps < 6
    assert "of 6 steps were the learning rate itself" in why_not(run, result, at(run, 3.0))
    assert not torch.equal(trained(run)[0], trained(at(run, 3.0))[0])


@pytest.mark.parametrize("method", ["muonmax", "adamw", "ggnc", "momo_official"])
def test_a_method_without_a_truncated_step_certifies_nothing(store: RunStore, method: str) -> None:
    run, _ = tiny(f"optimizer={method}")
    result = done(run, store)

    assert result.capped_steps is None
    assert why_not(run, result, at(run, 3.0))


def test_a_smaller_learning_rate_or_another_config_is_not_certified(store: RunStore) -> None:
    run, _ = tiny(HUGE)
    result = done(run, store)
    other, _ = tiny("optimizer.lr=2e4", "seed=1", "model.width=16")

    assert "smaller" in why_not(run, result, at(run, 0.5))
    assert why_not(run, result, other) == "model.width, seed differs too"
    assert "not done" in why_not(run, None, at(run, 3.0))


def test_a_diverged_run_certifies_its_divergence(store: RunStore) -> None:
    run, _ = tiny(HUGE, "optimizer.step_size.lower_bound=-1e3", "train.diverged_after=2")
    result = done(run, store)

    assert (result.outcome, result.capped_steps) == ("diverged", 0)
    assert why_not(run, result, at(run, 3.0)) == ""
    assert not contradict(result, done(at(run, 3.0), store))


def test_results_that_differ_contradict_each_other(store: RunStore) -> None:
    result = done(tiny(HUGE)[0], store)

    assert not contradict(result, replace(result))
    assert contradict(result, replace(result, final_loss=result.final_loss * (1 + 1e-15)))


def test_the_share_of_capped_steps_is_counted_from_record_to_record() -> None:
    """At learning rate 0.1 every step is told apart by the step size in its own record."""
    every, _ = tiny("optimizer.lr=0.1", "train.eval_every=1")
    third, _ = tiny("optimizer.lr=0.1", "train.eval_every=4")
    each = records_of(every)[1:]
    expected = [float(record.step_size == record.lr) for record in each]
    shares = [record.capped for record in records_of(third)]

    assert [record.capped for record in each] == expected and 0 < sum(expected) < 6
    assert repr(shares) == repr([float("nan"), sum(expected[:4]) / 4, sum(expected[4:]) / 2])


def test_a_run_that_was_begun_without_the_count_certifies_nothing() -> None:
    """It was resumed after an update: its first steps were not counted."""
    old, new = {"step": 0}, {"step": 0, "capped": float("nan")}

    assert capped_steps([new, {"step": 4, "capped": 0.25}, {"step": 6, "capped": 0.5}]) == 2
    assert capped_steps([new, {"step": 4, "capped": 0.0}, {"step": 4, "capped": float("nan")}]) == 0
    assert capped_steps([old, {"step": 4, "capped": 0.0}]) is None
    assert capped_steps([new, {"step": 4}, {"step": 6, "capped": 0.0}]) is None
    assert capped_steps([new, {"step": 4, "capped": float("nan")}]) is None
    assert capped_steps([new]) is None


def records_of(run: Run) -> list[Record]:
    parts = build(run, torch.device("cpu"))
    return [record for record in train(parts, run.train, Progress()) if record]
