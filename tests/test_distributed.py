"""Several processes train one run: the numbers of one process, and no hang whatever happens."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optlab.build import build
from optlab.checkpoint import load_checkpoint
from optlab.config import Run
from optlab.distributed import ONE, Meeting, Ranks, check_share, ranks_from_environment
from optlab.errors import ConfigError
from optlab.optim.sharing import gathered, owners
from optlab.optim.steepest import SteepestDescent
from optlab.paths import ROOT
from optlab.store import RunStore
from optlab.team import _check_devices, _check_shares, checksum, state_tensors
from support import TINY, environment, tiny
from teamwork import Answer, Teamwork

METHODS = ["sgd_momentum", "muon_adam", "muonmax_momo", "adamw"]
SAME = {"rel": 1e-4, "abs": 1e-6}  # float32, summed in another order; found: below 1e-6
QUICK = (("BEAT", 0.1), ("SILENT_AFTER", 30.0), ("GRACE", 3.0))  # of optlab.link
SRUN = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}


@pytest.fixture(scope="module")
def teamwork() -> Iterator[Teamwork]:
    made = Teamwork(2)
    yield made
    assert made.close() == [0, 0]  # what their failed runs have left does not keep them


def frozen(folder: Path, *overrides: str) -> tuple[Run, RunStore]:
    run, _ = tiny("train.eval_every=1", *overrides)
    store = RunStore(folder)
    store.freeze(run)
    return run, store


def rows(store: RunStore, run: Run) -> list[dict[str, Any]]:
    records = store.records(run.id)
    return [{k: v for k, v in record.items() if k != "seconds"} for record in records]


def assert_same(store: RunStore, other: RunStore, run: Run, **tolerance: float) -> None:
    """The records and the results of two stores agree."""
    for found, expected in zip(rows(store, run), rows(other, run), strict=True):
        assert found == pytest.approx(expected, nan_ok=True, **(tolerance or SAME))
    result, expected = store.result(run.id), other.result(run.id)
    assert result is not None and expected is not None
    assert result.outcome == expected.outcome and result.step == expected.step
    assert result.weights_fingerprint == expected.weights_fingerprint
    assert result.batch_fingerprint == expected.batch_fingerprint


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one(tmp_path: Path, teamwork: Teamwork, method: str) -> None:
    run, one = frozen(tmp_path / "one", f"optimizer={method}")
    _, two = frozen(tmp_path / "two", f"optimizer={method}")
    teamwork.run(run.id, one, 1)
    leader, follower = teamwork.run(run.id, two, 2)

    assert isinstance(leader, Answer) and isinstance(follower, Answer)
    assert leader.status == follower.status == "finished"
    assert leader.steps == (0, 1, 2, 3, 4, 5, 6) and follower.steps == ()  # rank 0 alone reports
    assert_same(two, one, run)
    meta = json.loads((two.folder(run.id) / "meta.json").read_text())
    assert meta["processes"] == len(meta["hosts"]) == 2
    assert not list(two.folder(run.id).glob("meeting-*"))


def test_a_batch_that_cannot_be_halved_has_the_same_mean(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    """Seven samples: three and four, weighted; a plain mean of the two halves is far off."""
    run, one = frozen(tmp_path / "one", "train.batch_size=7")
    _, two = frozen(tmp_path / "two", "train.batch_size=7")
    teamwork.run(run.id, one, 1)
    teamwork.run(run.id, two, 2)

    assert_same(two, one, run)


def test_text_is_shared_out_by_windows(tmp_path: Path, teamwork: Teamwork) -> None:
    gpt = (
        *("model=gpt_tiny", "dataset=python_docs", "dataset.context=8", "dataset.val_windows=130"),
        *("model.width=8", "model.heads=2", "train.batch_size=5", "train.steps=2"),
        "dataset.loss_lower_bound=0.0",
    )
    run, one = frozen(tmp_path / "one", *gpt)
    _, two = frozen(tmp_path / "two", *gpt)
    teamwork.run(run.id, one, 1)
    teamwork.run(run.id, two, 2)

    assert_same(two, one, run)
    # Three batches of validation, added up in their own order: the bits of one process.
    assert rows(two, run)[0]["val_loss"] == rows(one, run)[0]["val_loss"]


def test_a_step_is_the_same_in_any_pieces_on_any_number_of_processes(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    """In float64, to rounding; Momo with clipping depends on the loss and on the whole gradient.

    Of seven windows two processes take three and four. In pieces of three that is one piece and
    two: gradients that were shared after each piece, not after the last, would never meet.
    """
    text = (
        *("model=gpt2_tiny", "dataset=python_docs", "dataset.context=8", "dataset.val_windows=8"),
        *("model.width=8", "model.heads=2", "train.batch_size=7", "train.steps=3"),
        *("optimizer=momo", "dataset.loss_lower_bound=0.0", "train.clip_norm=0.1"),
    )
    run, whole = frozen(tmp_path / "whole", *text)
    teamwork.run(run.id, whole, 1, float64=True)

    assert rows(whole, run)[-1]["train_loss"] < rows(whole, run)[1]["train_loss"]
    for world, micro_batch in ((1, 1), (1, 3), (1, 7), (2, 2), (2, 3)):
        run, store = frozen(tmp_path / f"{world}-{micro_batch}", *text)
        settings = (f"runtime.micro_batch={micro_batch}",)
        teamwork.run(run.id, store, world, float64=True, settings=settings)

        assert_same(store, whole, run, rel=1e-12, abs=1e-12)
        meta = json.loads((store.folder(run.id) / "meta.json").read_text())
        assert meta["micro_batch"] == micro_batch and meta["processes"] == world


def test_all_processes_find_a_divergence_at_the_same_step(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    method = ("optimizer=sgd_momentum", "optimizer.lr=1e20")
    run, one = frozen(tmp_path / "one", *method)
    _, two = frozen(tmp_path / "two", *method)
    teamwork.run(run.id, one, 1)
    answers = teamwork.run(run.id, two, 2)

    assert [answer.status for answer in answers if isinstance(answer, Answer)] == ["diverged"] * 2
    assert two.result(run.id) is not None and one.result(run.id) is not None
    assert two.result(run.id).diverged_at == one.result(run.id).diverged_at  # type: ignore[union-attr]


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_signal_to_one_process_saves_and_stops_all_at_one_step(
    tmp_path: Path, teamwork: Teamwork, signalled: int
) -> None:
    """And the run goes on from there in any number of processes, as if undisturbed."""
    run, undisturbed = frozen(tmp_path / "undisturbed")
    teamwork.run(run.id, undisturbed, 1)
    for after in (1, 2):
        _, store = frozen(tmp_path / f"{after}")
        event: dict[str, Any] = {f"rank_{signalled}": {"at_step": 2, "event": "terminate"}}
        answers = teamwork.run(run.id, store, 2, **event)

        assert [a.status for a in answers if isinstance(a, Answer)] == ["preempted"] * 2
        assert load_checkpoint(store.folder(run.id) / "checkpoint.pt")["progress"]["step"] == 3
        teamwork.run(run.id, store, after)
        assert "Resumed at step 3." in (store.folder(run.id) / "log.txt").read_text()
        assert_same(store, undisturbed, run)


def test_a_run_of_one_process_goes_on_in_two(tmp_path: Path, teamwork: Teamwork) -> None:
    run, undisturbed = frozen(tmp_path / "undisturbed")
    _, store = frozen(tmp_path / "disturbed")
    teamwork.run(run.id, undisturbed, 1)
    teamwork.run(run.id, store, 1, rank_0={"at_step": 2, "event": "terminate"})
    assert store.status(run.id) == "preempted"
    teamwork.run(run.id, store, 2)

    assert "Resumed at step 3." in (store.folder(run.id) / "log.txt").read_text()
    assert_same(store, undisturbed, run)


def test_two_processes_interrupted_end_bitwise_as_two_undisturbed(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    run, undisturbed = frozen(tmp_path / "undisturbed", "train.batch_size=7")
    _, store = frozen(tmp_path / "disturbed", "train.batch_size=7")
    teamwork.run(run.id, undisturbed, 2)
    teamwork.run(run.id, store, 2, rank_1={"at_step": 3, "event": "terminate"})
    teamwork.run(run.id, store, 2)

    assert str(rows(store, run)) == str(rows(undisturbed, run))  # NaN equals NaN as text
    assert store.result(run.id) == undisturbed.result(run.id)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_exception_in_one_process_fails_the_run_with_its_traceback(
    tmp_path: Path, teamwork: Teamwork, failing: int
) -> None:
    run, store = frozen(tmp_path)
    event: dict[str, Any] = {f"rank_{failing}": {"at_step": 2, "event": "raise"}}
    answers = teamwork.run(run.id, store, 2, **event)

    assert [a.status for a in answers if isinstance(a, Answer)] == ["failed", "failed"]
    failure = store.failure(run.id)
    assert failure is not None and store.status(run.id) == "failed"
    assert failure["cause"].startswith(f"rank {failing} of 2 (")
    assert "MemoryError: 80 GiB" in failure["cause"]
    assert 'raise MemoryError("' in failure["detail"]
    assert "MemoryError: 80 GiB" in (store.folder(run.id) / "log.txt").read_text()

    teamwork.run(run.id, store, 2)
    assert store.status(run.id) == "finished"  # tried again, it trains


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_fails_the_run_by_name(
    tmp_path: Path, teamwork: Teamwork, killed: int
) -> None:
    run, store = frozen(tmp_path)
    event: dict[str, Any] = {f"rank_{killed}": {"at_step": 2, "event": "kill"}}
    answers = teamwork.run(run.id, store, 2, **event)

    assert answers[killed] == -signal.SIGKILL
    survivor = answers[1 - killed]
    assert isinstance(survivor, Answer) and survivor.status == "failed"
    failure = store.failure(run.id)
    assert failure is not None and store.status(run.id) == "failed"
    assert failure["cause"].startswith(f"rank {killed} of 2 (")
    assert "is gone: killed, or out of memory?" in failure["cause"]


def test_a_process_that_is_being_ended_with_its_job_does_not_fail_the_run(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    """Signals came, and SIGKILL reaches the processes one after the other."""
    run, store = frozen(tmp_path)
    answers = teamwork.run(
        *(run.id, store, 2),
        rank_0={"at_step": 2, "event": "terminate and wait"},
        rank_1={"at_step": 2, "event": "kill"},
    )

    assert isinstance(answers[0], Answer) and answers[0].status == "preempted"
    assert store.failure(run.id) is None and store.status(run.id) == "preempted"


def test_a_process_that_hangs_while_another_fails_is_ended(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    """No signal reaches a main thread that waits in a collective; the watch ends its process."""
    run, store = frozen(tmp_path)
    answers = teamwork.run(
        *(run.id, store, 2),
        links=QUICK,
        rank_0={"at_step": 2, "event": "raise"},
        rank_1={"at_step": 2, "event": "sleep"},
    )

    assert isinstance(answers[0], Answer) and answers[0].status == "failed"
    assert answers[1] == 1  # its exit code
    failure = store.failure(run.id)
    assert failure is not None and failure["cause"].endswith("MemoryError: 80 GiB")


@pytest.mark.parametrize("event", ["stop", "stop in the backward pass"])
def test_a_process_that_gives_no_sign_of_life_fails_the_run(
    tmp_path: Path, teamwork: Teamwork, event: str
) -> None:
    """A node that is cut off closes no connection; SIGSTOP does the same."""
    run, store = frozen(tmp_path)
    answers = teamwork.run(
        *(run.id, store, 2), links=QUICK, rank_1={"at_step": 2, "event": event}, revive=1
    )

    if event == "stop":
        assert isinstance(answers[0], Answer) and answers[0].status == "failed"
    else:
        assert answers[0] == 1  # its exit code: the main thread was waiting in a collective
    failure = store.failure(run.id)
    assert failure is not None and store.status(run.id) == "failed"
    assert "rank 1 of 2" in failure["cause"] and "no sign of life" in failure["cause"]


def test_processes_that_compute_apart_fail_the_run(tmp_path: Path, teamwork: Teamwork) -> None:
    """Such as on unlike processors: found at the next record, before it is written."""
    run, store = frozen(tmp_path)
    answers = teamwork.run(run.id, store, 2, rank_1={"at_step": 2, "event": "drift"})

    assert [a.status for a in answers if isinstance(a, Answer)] == ["failed", "failed"]
    assert "no longer hold the same weights" in store.failure(run.id)["cause"]  # type: ignore[index]
    assert [record["step"] for record in store.records(run.id)] == [0, 1, 2]


def test_processes_that_do_not_come_fail_the_run(tmp_path: Path, teamwork: Teamwork) -> None:
    run, store = frozen(tmp_path)
    (answer,) = teamwork.run(run.id, store, 2, links=(("JOIN_WITHIN", 0.3),), only=(0,))

    assert isinstance(answer, Answer) and answer.status == "failed"
    assert "TimeoutError: rank 0 of 2" in store.failure(run.id)["cause"]  # type: ignore[index]
    assert not list(store.folder(run.id).glob("meeting-*"))


def test_a_run_that_another_process_writes_is_left_alone_by_all(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    run, store = frozen(tmp_path)
    with store.lease(run.id):
        answers = teamwork.run(run.id, store, 2)

    assert [a.status for a in answers if isinstance(a, Answer)] == ["busy", "busy"]


def test_bad_input_is_one_sentence_whichever_process_finds_it(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    run, store = frozen(tmp_path, "train.batch_size=1")
    answers = teamwork.run(run.id, store, 2)

    assert [a.status for a in answers if isinstance(a, Answer)] == ["failed", "failed"]
    assert "ConfigError: train.batch_size is 1" in store.failure(run.id)["cause"]  # type: ignore[index]


def launched(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    overrides = [*TINY, "runtime.device=cpu", f"runtime.runs={root}"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node=2", f"{ROOT}/launch.py", *arguments, *overrides],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_torchrun_starts_one_run_on_several_processes(tmp_path: Path) -> None:
    done = launched(root=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished at step 6") == 1  # rank 0 alone speaks
    run, _ = tiny()
    assert json.loads((tmp_path / run.id / "meta.json").read_text())["processes"] == 2


def test_a_sweep_is_refused_to_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    from optlab.launch.command_line import checked

    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="has started 4 of this one"), checked(["-m"]):
        pass


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, (0, 1, 0)),
        (SRUN, (1, 4, 1)),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_LOCALID": "0"}, None),
        # A batch script: SLURM_NTASKS of the job, but no step.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, None),
        # torchrun started by one task of srun on each node: torchrun's ranks are the finer ones.
        ({**SRUN, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, (5, 8, 1)),
    ],
)
def test_ranks_are_those_that_srun_or_torchrun_gave(
    found: dict[str, str], expected: tuple[int, int, int] | None
) -> None:
    ranks = ranks_from_environment(found)

    assert (ranks.rank, ranks.world, ranks.local_rank) == (expected or (0, 1, 0))
    assert ranks.together == (ranks != ONE) and ranks.leads == (ranks.rank == 0)


@pytest.mark.parametrize(
    "found",
    [
        {"RANK": "0", "WORLD_SIZE": "2"},
        {"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
        {"RANK": "x", "WORLD_SIZE": "2", "LOCAL_RANK": "0"},
    ],
)
def test_ranks_that_make_no_sense_are_refused(found: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="srun or torchrun"):
        ranks_from_environment(found)


def test_every_start_has_a_meeting_of_its_own() -> None:
    """Two steps of a job, two jobs, a requeued job: else they would meet each other."""
    job = {**SRUN, "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}
    others = [
        {"SLURM_JOB_ID": "8"},
        {"SLURM_STEP_ID": "1"},
        {"SLURM_RESTART_COUNT": "1"},
    ]
    same = {"SLURM_PROCID": "2"}

    launches = {ranks_from_environment({**job, **other}).launch for other in others}
    assert len(launches | {ranks_from_environment(job).launch}) == 4
    assert ranks_from_environment({**job, **same}).launch == ranks_from_environment(job).launch


def test_a_listener_that_is_gone_is_looked_for_again(tmp_path: Path) -> None:
    """A file that a killed start has left names a port that nobody answers."""
    meeting = Meeting(tmp_path, Ranks(0, 2, 0, "abc"))
    meeting.announce(1, "token")  # nobody listens at port 1
    looks = iter([False, False, True])

    assert list(meeting.places(lambda: next(looks))) == []


def spectral(context: int = 16) -> tuple[nn.Module, SteepestDescent]:
    """A small GPT with stacks of several matrices, wide enough not to be iterated together."""
    run, _ = tiny(
        *("model=gpt_tiny", "dataset=python_docs", "optimizer=muonmax_momo", "model.depth=3"),
        *("model.width=144", "model.heads=2", f"dataset.context={context}"),
        "dataset.loss_lower_bound=0.0",
    )
    parts = build(run, torch.device("cpu"))
    assert isinstance(parts.optimizer, SteepestDescent)
    inputs, targets = parts.data.train(0)
    parts.data.loss(parts.model(inputs), targets).backward()
    return parts.model, parts.optimizer


class Others:
    """A sharing in which this process computes everybody's part, one rank after the other."""

    def __init__(self, world: int) -> None:
        self.world = world
        self.computed: list[int] = []  # units of each rank

    def shared(self, units: Any, costs: Any, compute: Any) -> list[list[Tensor]]:
        chosen = owners(costs, self.world)
        vectors: list[Tensor] = []

        def kept(own: Tensor) -> list[Tensor]:
            vectors.append(own)
            return [torch.zeros_like(own)] * self.world

        for rank in range(self.world):
            gathered(units, chosen, rank, compute, kept)
            self.computed.append(chosen.count(rank))
        return gathered(units, chosen, 0, compute, lambda own: vectors)


@pytest.mark.parametrize("world", [2, 5])
def test_polar_factors_shared_out_are_bitwise_those_computed_here(world: int) -> None:
    alone, shared = spectral(), spectral()
    shared[1].sharing = others = Others(world)
    for _model, optimizer in (alone, shared):
        optimizer.step(lambda: torch.tensor(5.0))
        optimizer.step(lambda: torch.tensor(4.0))

    assert min(others.computed) > 0  # everybody has work
    assert torch.equal(checksum(state_tensors(*alone)), checksum(state_tensors(*shared)))
    for a, b in zip(state_tensors(*alone), state_tensors(*shared), strict=True):
        assert torch.equal(a, b)


def test_work_is_balanced_by_its_cost() -> None:
    assert owners([4, 1, 1, 1, 1], 2) == [0, 1, 1, 1, 1]
    assert owners([1, 1, 1], 8) == [0, 1, 2]
    loads = [0.0] * 4
    costs = [(7 * i) % 11 + 1.0 for i in range(40)]
    for cost, owner in zip(costs, owners(costs, 4), strict=True):
        loads[owner] += cost
    assert max(loads) <= 4 / 3 * sum(costs) / 4


def test_a_checksum_tells_every_kind_of_tensor_apart() -> None:
    tensors = [torch.arange(3.0), torch.tensor(1.0, dtype=torch.float64), torch.ones(2).bfloat16()]
    tensors += [torch.tensor([True, False]), torch.arange(4).view(2, 2).T]
    for index in range(len(tensors)):
        changed = [each.clone() for each in tensors]
        changed[index][(*[0] * tensors[index].dim(),)] = 0 if index == 3 else 9
        assert not torch.equal(checksum(tensors), checksum(changed)), index


def test_models_whose_numbers_depend_on_the_shares_are_refused() -> None:
    for layer in (nn.BatchNorm1d(3), nn.Dropout(0.1)):
        with pytest.raises(ConfigError, match="one GPU per run"):
            _check_shares(nn.Sequential(nn.Linear(3, 3), layer), 8, 2)
    _check_shares(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Dropout(0.0)), 8, 2)
    with pytest.raises(ConfigError, match="at most 3 GPUs"):
        check_share(3, 4)


def test_processes_on_one_gpu_or_on_unlike_devices_are_refused() -> None:
    _check_devices(["cpu", "cpu"])
    _check_devices(["cuda a", "cuda b"])
    with pytest.raises(ConfigError, match="share a GPU"):
        _check_devices(["cuda a", "cuda a"])
    with pytest.raises(ConfigError, match="others have none"):
        _check_devices(["cuda a", "cpu"])
