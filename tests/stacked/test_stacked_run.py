"""The life of stacked runs: each has its own, whatever happens to the others."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optlab.attempt import Attempt
from optlab.build import build, optimizer_of
from optlab.checkpoint import load_checkpoint
from optlab.config import Run, compose_run
from optlab.stacked import memory
from optlab.stacked import run as stacked_run
from optlab.stacked import stack as stack_module
from optlab.stacked.run import run_stack
from optlab.stacked.stack import Stack
from optlab.stop import StopFlag
from optlab.store import RunStore
from optlab.train import Parts
from stacked.sidebyside import (
    alone,
    assert_same,
    built,
    frozen,
    in_float64,
    settings,
    tinies,
    together,
)
from support import environment, tiny

FLOAT32 = 2e-5  # sums in another order, over the 6 steps of a tiny run
CALM = ("optimizer=muonmax_momo", "train.eval_every=1")
EACH = (["seed=0"], ["seed=1"], ["seed=0", "optimizer.lr=0.003"], ["seed=2", "optimizer.lr=0.3"])


@pytest.fixture
def runs() -> list[Run]:
    return tinies(*CALM, each=EACH)


def test_nobody_can_tell_a_stacked_run_from_one_that_was_alone(
    tmp_path: Path, runs: list[Run]
) -> None:
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    told = together(runs, ours)
    alone(runs, theirs)

    assert told.status == {run.id: "finished" for run in runs} and told.lines == []
    assert_same(runs, ours, theirs, FLOAT32)
    for run in runs:
        files = {path.name for path in ours.folder(run.id).iterdir()}
        assert files == {path.name for path in theirs.folder(run.id).iterdir()}
        meta, other = (
            json.loads((store.folder(run.id) / "meta.json").read_text()) for store in (ours, theirs)
        )
        assert meta.keys() == other.keys()
        assert (meta["stacked_with"], other["stacked_with"]) == (3, 0)
        assert meta["weights_fingerprint"] == other["weights_fingerprint"]
        assert meta["batch_fingerprint"] == other["batch_fingerprint"]


def test_each_run_has_its_share_of_the_time(store: RunStore, runs: list[Run]) -> None:
    for run in runs:
        store.freeze(run)
    together(runs, store)

    seconds = [[record["seconds"] for record in store.records(run.id)] for run in runs]
    assert all(each == seconds[0] for each in seconds)
    assert seconds[0][-1] > 0


@pytest.mark.parametrize("stop_at", [0, 1, 4])
@pytest.mark.parametrize("first", ["stacked", "alone"])
@pytest.mark.parametrize("then", ["stacked", "alone"])
def test_a_stack_goes_on_from_the_checkpoints_of_runs_alone_and_they_from_its(
    tmp_path: Path, runs: list[Run], stop_at: int, first: str, then: str
) -> None:
    disturbed, undisturbed = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    train = {"stacked": together, "alone": alone}
    with in_float64():
        alone(runs, undisturbed)
        train[first](runs, disturbed, stop_at=stop_at)
        assert {disturbed.status(run.id) for run in runs} == {"preempted"}
        torch.rand(5)  # another process would have other random states
        train[then](runs, disturbed)

    assert_same(runs, disturbed, undisturbed, 1e-9)


def test_an_interrupted_stack_ends_bitwise_as_an_undisturbed_one(
    tmp_path: Path, runs: list[Run]
) -> None:
    disturbed, undisturbed = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    together(runs, undisturbed)
    told = together(runs, disturbed, stop_at=2)
    assert set(told.status.values()) == {"preempted"}
    together(runs, disturbed)

    assert_same(runs, disturbed, undisturbed, 0.0)


@pytest.mark.parametrize("victim", [0, 1, 3])
def test_a_stack_killed_between_two_writes_ends_bitwise_as_an_undisturbed_one(
    tmp_path: Path, runs: list[Run], victim: int
) -> None:
    """SIGKILL in the middle of a boundary: some runs have its record, or its checkpoint already."""
    disturbed, undisturbed = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    together(runs, undisturbed)
    ids = [run.id for run in runs]
    code = f"""
        import os, signal
        from pathlib import Path
        from optlab.config import compose_run
        from optlab.stacked.run import run_stack
        from optlab.stop import StopFlag
        from optlab.store import RunStore
        _, settings = compose_run(["runtime.checkpoint_every=0.0", "tracking.mode=off"])
        def report(run_id, record):
            if record.step == 4 and run_id == {ids[victim]!r}:
                os.kill(os.getpid(), signal.SIGKILL)
        run_stack({ids!r}, RunStore(Path({str(disturbed.root)!r})), settings, stop=StopFlag(),
                  report=report, ended=lambda run_id, outcome: None, say=print)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment())
    assert done.returncode == -signal.SIGKILL
    assert {disturbed.status(run.id) for run in runs} == {"preempted"}

    assert set(together(runs, disturbed).status.values()) == {"finished"}
    assert_same(runs, disturbed, undisturbed, 0.0)
    for run in runs:
        assert "Resumed at step 3." in (disturbed.folder(run.id) / "log.txt").read_text()


def test_dropout_draws_what_it_draws_alone_also_after_an_interruption(tmp_path: Path) -> None:
    vit = ["model=vit_small", "model.patch=4", "model.width=8", "model.depth=1", "model.heads=2",
           "model.hidden=8", "model.dropout=0.5", "train.steps=6", "train.batch_size=8",
           "train.eval_every=1", "tracking.mode=off"]  # fmt: skip
    runs = [compose_run([*vit, f"seed={seed}"])[0] for seed in range(3)]
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    with in_float64():
        together(runs, ours, stop_at=3)
        together(runs[:2], ours)  # the third goes on alone
        alone(runs[2:], ours)
        alone(runs, theirs)

    assert_same(runs, ours, theirs, 1e-9)


def test_runs_at_different_steps_each_go_on_from_their_own(tmp_path: Path, runs: list[Run]) -> None:
    disturbed, undisturbed = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    with in_float64():
        alone(runs, undisturbed)
        together(runs[:2], disturbed, stop_at=3)
        alone(runs[2:3], disturbed, stop_at=1)
        told = together(runs, disturbed)

    assert told.status == {run.id: "finished" for run in runs}
    assert_same(runs, disturbed, undisturbed, 1e-9)


def test_runs_that_are_done_are_told_and_left_alone(store: RunStore, runs: list[Run]) -> None:
    for run in runs:
        store.freeze(run)
    alone(runs[:2], store)
    before = [(store.folder(run.id) / "records.jsonl").stat().st_mtime_ns for run in runs[:2]]

    assert together(runs, store).status == {run.id: "finished" for run in runs}
    after = [(store.folder(run.id) / "records.jsonl").stat().st_mtime_ns for run in runs[:2]]
    assert before == after


class TestWhoDiverges:
    @pytest.fixture
    def wild(self) -> list[Run]:
        rates = ("0.01", "1e30", "0.003", "1e4")
        return tinies(
            "optimizer=sgd_momentum", "train.steps=12", "train.eval_every=3",
            "train.diverged_after=2", each=[[f"optimizer.lr={rate}"] for rate in rates],
        )  # fmt: skip

    def test_drops_out_at_its_step_and_the_others_go_on(
        self, tmp_path: Path, wild: list[Run]
    ) -> None:
        ours, theirs = frozen(tmp_path / "a", wild), frozen(tmp_path / "b", wild)
        with in_float64():
            told = together(wild, ours)
            alone(wild, theirs)

        assert list(told.status.values()).count("diverged") == 2
        assert told.outcomes[0][1].status == "diverged"  # told as soon as it is known
        ends = [ours.result(run.id) for run in wild]
        assert [end.step < 12 for end in ends if end] == [False, True, False, True]
        assert_same(wild, ours, theirs, 1e-9)

    def test_by_its_weights_at_an_evaluation(self, tmp_path: Path) -> None:
        each = [[f"train.max_weight_growth={bound}"] for bound in ("1e4", "1.0001", "1e5")]
        runs = tinies("optimizer=muon_adam", "optimizer.lr=0.1", each=each)
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        with in_float64():
            told = together(runs, ours)
            alone(runs, theirs)

        assert sorted(told.status.values()) == ["diverged", "finished", "finished"]
        assert_same(runs, ours, theirs, 1e-9)

    def test_may_be_all_of_them(self, tmp_path: Path) -> None:
        runs = tinies("optimizer=sgd_momentum", each=[["optimizer.lr=1e30"], ["optimizer.lr=2e30"]])
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        told = together(runs, ours)
        alone(runs, theirs)

        assert set(told.status.values()) == {"diverged"}
        assert_same(runs, ours, theirs, 1e-3)

    def test_touches_no_bit_of_the_others(self, tmp_path: Path) -> None:
        """One stack in which a replica turns to NaN, and one in which it does not."""
        runs = tinies("optimizer=muonmax_momo", "train.eval_every=1", each=EACH)
        poisoned = runs[1].id

        def poison(run: Run, parts: Parts) -> Parts:
            if run.id == poisoned:
                next(parts.model.parameters()).data.fill_(float("nan"))
            return parts

        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        with built(poison):
            told = together(runs, ours)
        assert told.status[poisoned] == "diverged"
        together([run for run in runs if run.id != poisoned], theirs)

        others = [run for run in runs if run.id != poisoned]
        assert_same(others, ours, theirs, 0.0)


class TestWhatIsTheRunsOwn:
    def test_clipping(self, tmp_path: Path) -> None:
        each = [["train.clip_norm=0.1"], ["train.clip_norm=null"], ["train.clip_norm=1.0"]]
        runs = tinies("optimizer=sgd_momentum", "train.eval_every=1", each=each)
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        with in_float64():
            together(runs, ours)
            alone(runs, theirs)

        assert_same(runs, ours, theirs, 1e-9)

    def test_schedules(self, tmp_path: Path) -> None:
        runs = tinies(
            "optimizer=adamw", "train.eval_every=1",
            each=[["schedule=cosine"], ["schedule=constant"], ["schedule.floor=0.5"]],
        )  # fmt: skip
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        with in_float64():
            together(runs, ours)
            alone(runs, theirs)

        rates = [ours.records(run.id)[-1]["lr"] for run in runs]
        assert len(set(rates)) == 3
        assert_same(runs, ours, theirs, 1e-9)

    def test_lower_bounds_that_the_dataset_states(self, tmp_path: Path) -> None:
        runs = tinies(
            "optimizer.lr=10.0", "train.eval_every=1",
            each=[["dataset.loss_lower_bound=0.0"], ["dataset.loss_lower_bound=2.0"]],
        )  # fmt: skip
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        with in_float64():
            together(runs, ours)
            alone(runs, theirs)

        sizes = [ours.records(run.id)[1]["step_size"] for run in runs]
        assert sizes[0] > 2 * sizes[1] > 0
        assert_same(runs, ours, theirs, 1e-9)

    def test_numbers_per_role_at_their_cadence(self, tmp_path: Path, runs: list[Run]) -> None:
        _, often = tiny("tracking.diagnostics_every=2")
        runs = tinies("optimizer=muonmax_momo", "train.eval_every=3", each=EACH)
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        with in_float64(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("stacked.sidebyside.settings", lambda: often)
            together(runs, ours)
            alone(runs, theirs)

        assert [row["step"] for row in ours.diagnostics(runs[0].id)] == [2, 3, 4, 6]
        assert_same(runs, ours, theirs, 1e-9)

    def test_rounding_to_bfloat16(self, tmp_path: Path) -> None:
        runs = tinies(
            "optimizer=adamw", "train.precision=bfloat16", "train.eval_every=1", each=EACH[:2]
        )
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        told = together(runs, ours)
        alone(runs, theirs)

        assert told.lines == []
        assert_same(runs, ours, theirs, 0.02)


class TestWhatGoesWrong:
    def test_with_the_disk_of_one_run_ends_that_one(self, store: RunStore, runs: list[Run]) -> None:
        for run in runs:
            store.freeze(run)
        append = store.append

        def full(run_id: str, record: Any) -> None:
            if run_id == runs[1].id and record.step == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            append(run_id, record)

        store.append = full  # type: ignore[method-assign]
        told = together(runs, store)

        assert told.status == {run.id: "failed" if run is runs[1] else "finished" for run in runs}
        assert dict(told.outcomes)[runs[1].id].disk_full
        failure = store.failure(runs[1].id)
        assert failure is not None and "No space left" in failure["cause"]

    def test_a_run_that_another_process_has_is_left_to_it(
        self, store: RunStore, runs: list[Run]
    ) -> None:
        for run in runs:
            store.freeze(run)
        with store.lease(runs[2].id):
            told = together(runs, store)
        assert told.status == {run.id: "busy" if run is runs[2] else "finished" for run in runs}

    def test_a_run_that_is_taken_over_leaves_the_stack(
        self, store: RunStore, runs: list[Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for run in runs:
            store.freeze(run)
        monkeypatch.setattr(stacked_run, "CHECK_EVERY", 0.0)
        append = store.append

        def taken(run_id: str, record: Any) -> None:
            append(run_id, record)
            if run_id == runs[0].id and record.step == 2:
                owner = json.loads((store.folder(run_id) / "owner.json").read_text())
                other = json.dumps({**owner, "pid": 1})
                (store.folder(run_id) / "owner.json").write_text(other)

        store.append = taken  # type: ignore[method-assign]
        told = together(runs, store)

        assert told.status == {run.id: "busy" if run is runs[0] else "finished" for run in runs}
        assert not store.is_done(runs[0].id)

    def test_a_run_that_cannot_be_built_fails_alone(self, store: RunStore, runs: list[Run]) -> None:
        def broken(run: Run, parts: Parts) -> Parts:
            if run is not None and run.id == runs[3].id:
                raise MemoryError("80 GiB")
            return parts

        for run in runs:
            store.freeze(run)
        with built(broken):
            told = together(runs, store)
        assert told.status == {run.id: "failed" if run is runs[3] else "finished" for run in runs}
        assert "80 GiB" in (store.folder(runs[3].id) / "log.txt").read_text()

    def test_an_error_of_the_stack_costs_none_of_its_runs(
        self, tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        advance = Stack.advance

        def fails(self: Stack) -> Any:
            if self.step == 3:
                raise RuntimeError("the stack is broken")
            return advance(self)

        monkeypatch.setattr(Stack, "advance", fails)
        ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
        told = together(runs, ours)
        alone(runs, theirs)

        (line,) = told.lines
        assert "A stack of 4 runs has failed (RuntimeError: the stack is broken)" in line
        assert set(told.status.values()) == {"finished"}
        assert_same(runs, ours, theirs, 0.0)  # trained alone, from their beginnings

    def test_too_little_memory_halves_the_stack(
        self, tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        advance = Stack.advance

        def fails(self: Stack) -> Any:
            if len(self.replicas) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return advance(self)

        monkeypatch.setattr(Stack, "advance", fails)
        store = frozen(tmp_path, runs)
        told = together(runs, store)

        (line,) = told.lines
        assert line.startswith("A stack of 4 runs needs more memory than there is")
        assert told.status == {run.id: "finished" for run in runs}
        metas = [json.loads((store.folder(run.id) / "meta.json").read_text()) for run in runs]
        assert [meta["stacked_with"] for meta in metas] == [1, 1, 1, 1]

    def test_no_more_runs_are_begun_than_fit_into_memory(
        self, tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stacked_run, "most_that_fit", lambda parts, free: 3)
        store = frozen(tmp_path, runs)
        told = together(runs, store)

        assert told.lines == ["3 of 4 runs of a stack fit into memory at a time."]
        metas = [json.loads((store.folder(run.id) / "meta.json").read_text()) for run in runs]
        assert [meta["stacked_with"] for meta in metas] == [2, 2, 2, 0]

    def test_workers_share_the_memory(
        self, tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        each = memory.bytes_of_replica(build(runs[0], torch.device("cpu")))
        monkeypatch.setattr(memory, "_available", lambda: 8 * each)
        monkeypatch.setattr(memory, "_left_to_cgroup", lambda: None)
        stop, lines = StopFlag(), []
        run_stack(
            [run.id for run in runs],
            frozen(tmp_path, runs),
            settings(),
            stop=stop,
            report=lambda run_id, record: None,
            ended=lambda run_id, outcome: None,
            say=lines.append,
            workers=2,
        )
        assert lines == ["2 of 4 runs of a stack fit into memory at a time."]


class Decides(nn.Module):
    """Control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(x.flatten(1))
        return y if y.sum() > 0 else -y


class Centres(nn.Module):
    """Linear layers are all that has weights, and yet samples meet."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(x - x.mean(0))


def _with_model(model: type[nn.Module]) -> Any:
    def change(run: Run, parts: Parts) -> Parts:
        torch.manual_seed(run.seed)
        made = model()
        return replace(parts, model=made, optimizer=optimizer_of(run)(made))

    return built(change)


def test_a_model_that_cannot_be_stacked_is_trained_run_by_run_with_the_reason(
    tmp_path: Path, runs: list[Run]
) -> None:
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    with _with_model(Decides):
        told = together(runs, ours)
        alone(runs, theirs)

    (line,) = told.lines
    assert line.startswith("Not stacked: several Decides: vmap: It looks like you're attempting to")
    assert set(told.status.values()) == {"finished"}
    assert_same(runs, ours, theirs, 0.0)


def test_a_model_whose_samples_meet_is_not_folded_into_one_batch(
    tmp_path: Path, runs: list[Run]
) -> None:
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    with _with_model(Centres):
        told = together(runs, ours)
        alone(runs, theirs)

    assert told.lines == []
    assert_same(runs, ours, theirs, FLOAT32)


def test_outputs_that_differ_from_those_alone_are_noticed(
    tmp_path: Path, runs: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = stack_module.StackedModel.outputs

    def wrong(self: Any, inputs: Tensor, *, shared: bool = False) -> Tensor:
        return outputs(self, inputs, shared=shared).roll(1, 0)

    monkeypatch.setattr(stack_module.StackedModel, "outputs", wrong)
    store = frozen(tmp_path, runs)
    told = together(runs, store)

    assert told.lines == [
        "Not stacked: the outputs of MLP change when several are computed together."
    ]
    assert set(told.status.values()) == {"finished"}


def test_a_checkpoint_holds_one_run_not_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = [[f"seed={seed}"] for seed in range(8)]
    runs = tinies("optimizer=adamw", "model.width=64", each=each)
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    together(runs, ours, stop_at=2)
    alone(runs, theirs, stop_at=2)

    files = [store.folder(runs[3].id) / "checkpoint.pt" for store in (ours, theirs)]
    stacked, single = (file.stat().st_size for file in files)
    assert stacked < 1.1 * single
    a, b = map(load_checkpoint, files)
    assert a.keys() == b.keys() and a["model"].keys() == b["model"].keys()
    assert a["optimizer"]["state"].keys() == b["optimizer"]["state"].keys()


class TestMemory:
    def parts(self, *overrides: str) -> Parts:
        return build(tiny(*overrides)[0], torch.device("cpu"))

    def test_replicas_are_bounded_by_weights_and_activations(self) -> None:
        small, wide = self.parts(), self.parts("model.width=512")
        many = self.parts("train.batch_size=1024")
        of = memory.bytes_of_replica
        assert of(wide) > of(small) + 8 * 4 * 500 * 64
        assert of(many) > of(small) + 900 * 64 * 4

    def test_what_is_free_is_shared_out_and_one_always_goes(self) -> None:
        parts = self.parts()
        each = memory.bytes_of_replica(parts)
        assert memory.most_that_fit(parts, 8 * each) == 4
        assert memory.most_that_fit(parts, 0) == 1
        assert memory.most_that_fit(parts, None) is None

    def test_the_estimate_leaves_no_trace(self) -> None:
        words = ["model=resnet20", "model.widths=[3,4]", "model.blocks=1", "train.batch_size=8"]
        parts = build(compose_run(words)[0], torch.device("cpu"))
        state = torch.get_rng_state()
        buffers = {name: x.clone() for name, x in parts.model.named_buffers()}
        memory.bytes_of_replica(parts)
        assert torch.equal(torch.get_rng_state(), state)
        for name, x in parts.model.named_buffers():
            assert torch.equal(x, buffers[name])

    def test_the_limit_of_a_control_group_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(memory, "_CGROUP", tmp_path)
        unlimited = memory.free_memory(torch.device("cpu"))
        (tmp_path / "memory.max").write_text("1000000\n")
        (tmp_path / "memory.current").write_text("400000\n")
        assert memory.free_memory(torch.device("cpu")) == 600000
        assert memory.free_memory(torch.device("cpu"), workers=4) == 150000
        (tmp_path / "memory.max").write_text("max\n")
        assert unlimited is None or unlimited > 600000


def test_an_attempt_is_abandoned_once(store: RunStore, runs: list[Run]) -> None:
    """The mirror of a run whose stack has failed is closed before the run begins again."""
    for run in runs:
        store.freeze(run)
    closed: list[str] = []
    abandon = Attempt.abandon

    def noted(self: Attempt, error: BaseException) -> None:
        closed.append(self.run.id)
        abandon(self, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attempt, "abandon", noted)
        patch.setattr(Stack, "advance", lambda self: (_ for _ in ()).throw(ValueError("no")))
        told = together(runs, store)
    assert sorted(closed) == sorted(run.id for run in runs)
    assert set(told.status.values()) == {"finished"}
