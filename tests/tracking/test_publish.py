"""`python -m optlab sync`: a sweep from the run store in W&B, whole, once, and repaired."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import wandb

from commands.stores import fill
from conftest import Command
from optlab.commands import sync
from optlab.errors import ConfigError
from optlab.launch.queue import Job as QueueJob
from optlab.store import Record, RunStore
from optlab.sweep import Sweep, from_arguments
from optlab.tracking import client, memory, publish, rows
from optlab.tracking.publish import Job, Sent
from support import shrunk
from tracking.backend import ENTITY, Answer, Backend, Request
from tracking.test_mirror import assert_whole
from tracking.trained import sweep_in, train, train_all


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of eight runs, two of them diverged; never written again."""
    folder = tmp_path_factory.mktemp("trained")
    train_all(sweep_in(folder))
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> tuple[Sweep, RunStore]:
    shutil.copytree(trained / "runs", tmp_path / "runs")
    sweep = sweep_in(tmp_path)
    return sweep, RunStore(sweep.settings.runtime.runs_folder)


def sent(sweep: Sweep, *, count: int = 99, **flags: bool) -> list[Sent]:
    """Publish the first runs of a sweep in this process."""
    again, rewrite = flags.get("again", False), flags.get("rewrite", False)
    runtime, tracking = sweep.settings.runtime, sweep.settings.tracking
    jobs = [Job(runtime.runs_folder, r.id, tracking, again, rewrite) for r in sweep.runs[:count]]
    answers = list(publish.publish_all(jobs, workers=1))
    print(*answers, sep="\n")
    return answers


def leaves(tree: object, prefix: str = "") -> dict[str, object]:
    """Values by dotted key; W&B leaves out nodes that are empty."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    found: dict[str, object] = {}
    for key, node in tree.items():
        found.update(leaves(node, f"{prefix}.{key}"))
    return found


def refusing(name: str) -> Answer:
    return 400, {"errors": [{"message": f"run {name} cannot be written"}]}


def test_every_run_is_in_wandb_as_it_is_in_the_store(
    backend: Backend, copied: tuple[Sweep, RunStore]
) -> None:
    sweep, store = copied
    answers = sent(sweep)

    assert {answer.status for answer in answers} == {"published"}
    for run in sweep.runs:
        remote = backend.run(run.id)
        assert_whole(backend, store, run.id)
        assert (remote.group, remote.job_type, remote.state) == (sweep.name, "train", "finished")
        assert leaves(remote.values) == leaves(rows.config(run))
        assert remote.summary["outcome"] == store.status(run.id)


def test_publishing_twice_sends_nothing(backend: Backend, copied: tuple[Sweep, RunStore]) -> None:
    sweep, _ = copied
    sent(sweep)
    before = len(backend.requests)
    answers = sent(sweep)

    assert {answer.status for answer in answers} == {"unchanged"}
    assert len(backend.requests) == before


def test_publishing_again_on_purpose_repeats_no_row(
    backend: Backend, copied: tuple[Sweep, RunStore]
) -> None:
    sweep, store = copied
    sent(sweep, count=2)
    (store.folder(sweep.runs[0].id) / memory.NAME).unlink()  # what was published is forgotten
    answers = [*sent(sweep, count=1), *sent(sweep, count=2, again=True)]

    assert [answer.rows for answer in answers] == [0, 0, 0]
    assert_whole(backend, store, sweep.runs[0].id)
    assert_whole(backend, store, sweep.runs[1].id)


def test_what_is_refused_is_named_and_the_next_round_goes_on(
    backend: Backend, copied: tuple[Sweep, RunStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, store = copied
    bad = sweep.runs[1]
    backend.fault = lambda request: (
        refusing(bad.name) if request.kind == "UpsertBucket" and request.run == bad.id else None
    )
    answers = {answer.run_id: answer for answer in sent(sweep, count=3)}

    assert [answers[run.id].status for run in sweep.runs[:3]] == [
        "published",
        "refused",
        "published",
    ]
    assert "cannot be written" in answers[bad.id].message and answers[bad.id].name == bad.name
    backend.fault = lambda request: None
    answers = {answer.run_id: answer for answer in sent(sweep, count=3)}
    assert [answers[run.id].status for run in sweep.runs[:3]] == [
        "unchanged",
        "published",
        "unchanged",
    ]
    assert_whole(backend, store, bad.id)


def test_a_server_that_takes_rows_and_loses_them_is_found_out(
    backend: Backend, copied: tuple[Sweep, RunStore]
) -> None:
    """The client ends without an error after a few refusals; only asking W&B shows the loss."""
    sweep, store = copied
    backend.fault = lambda request: (403, {}) if request.kind == "file_stream" else None
    (answer,) = sent(sweep, count=1)

    assert answer.status == "refused" and "shows 0 of its" in answer.message
    backend.fault = lambda request: None
    assert sent(sweep, count=1)[0].status == "published"
    assert_whole(backend, store, sweep.runs[0].id)


def test_a_running_sweep_is_published_as_far_as_it_is(backend: Backend, tmp_path: Path) -> None:
    """Then the rows that have come since; what streams by itself is left alone."""
    sweep = sweep_in(tmp_path)
    store = RunStore(sweep.settings.runtime.runs_folder)
    run, answers = sweep.runs[2], []
    overrides = [f"optimizer={run.method}", f"optimizer.lr={run.lr}", f"seed={run.seed}"]
    only = dataclasses.replace(sweep, runs=(run,))

    def publish_now(record: object) -> None:
        answers.extend(sent(only))

    train(store, "off", *overrides, report=publish_now)
    answers += sent(only)

    assert [(answer.status, answer.rows) for answer in answers] == [
        ("published", 1),
        ("published", 1),
        ("published", 1),
        ("published", 1),
        ("published", 0),  # the outcome
    ]
    assert_whole(backend, store, run.id)
    assert backend.run(run.id).summary["outcome"] == "finished"


def test_a_run_that_streams_by_itself_is_left_alone(backend: Backend, tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)
    store = RunStore(sweep.settings.runtime.runs_folder)
    run, answers = sweep.runs[2], []
    overrides = [f"optimizer={run.method}", f"optimizer.lr={run.lr}", f"seed={run.seed}"]
    only = dataclasses.replace(sweep, runs=(run,))
    train(store, "online", *overrides, report=lambda record: answers.extend(sent(only)))

    assert {answer.status for answer in answers} == {"live"}
    assert [(answer.status, answer.rows) for answer in sent(only)] == [("published", 0)]
    assert_whole(backend, store, run.id)


@pytest.mark.parametrize("mode", ["online", "off"])
def test_a_running_run_whose_mirror_is_gone_is_published(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """Dropped in mid-run; or that of an attempt that was killed, where this one has none online."""
    sweep = sweep_in(tmp_path)
    store = RunStore(sweep.settings.runtime.runs_folder)
    run, answers = sweep.runs[2], []
    overrides = [f"optimizer={run.method}", f"optimizer.lr={run.lr}", f"seed={run.seed}"]
    only = dataclasses.replace(sweep, runs=(run,))
    if mode != "online":
        where = client.target(sweep.settings.tracking)
        store.freeze(run)
        memory.remember(
            store.folder(run.id), where, memory.Published(run.id, sweep.name, live=True)
        )

    sound = wandb.Run.log

    def fail(*arguments: object, **options: object) -> None:
        raise ConnectionResetError("gone")

    def publish_now(record: Record) -> None:
        monkeypatch.setattr(wandb.Run, "log", sound)
        answers.extend(sent(only))
        if record.step == 0:  # the mirror's next row
            monkeypatch.setattr(wandb.Run, "log", fail)

    train(store, mode, *overrides, report=publish_now)
    answers += sent(only)
    statuses = [answer.status for answer in answers]

    assert statuses == ["live" if mode == "online" else "published", *["published"] * 4]
    assert_whole(backend, store, run.id)


def test_a_failed_run_shows_its_cause(backend: Backend, copied: tuple[Sweep, RunStore]) -> None:
    sweep, store = copied
    run = sweep.runs[0]
    (store.folder(run.id) / "result.json").unlink()
    store.fail(run.id, "OutOfMemoryError: too large", "a traceback")
    sent(sweep, count=1)

    assert backend.run(run.id).state == "failed"
    assert backend.run(run.id).summary["cause"] == "OutOfMemoryError: too large"


def test_a_run_of_two_sweeps_keeps_its_group_and_has_both_tags(
    backend: Backend, copied: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, _ = copied
    other = sweep_in(tmp_path, "optimizer=adamw")
    shared = other.runs[0]
    assert shared.id in {run.id for run in sweep.runs} and other.name != sweep.name
    sent(dataclasses.replace(sweep, runs=(shared,)))
    (answer,) = sent(other, count=1)

    assert answer.status == "published" and answer.rows == 0
    assert backend.run(shared.id).group == sweep.name
    assert set(backend.run(shared.id).tags) == {sweep.name, other.name}


def test_a_run_that_was_trained_outside_of_any_sweep_gets_the_group_of_its_first_sweep(
    backend: Backend, tmp_path: Path
) -> None:
    """By publication, or by the mirror of an attempt that a sweep launches."""
    sweep = sweep_in(tmp_path)
    store = RunStore(sweep.settings.runtime.runs_folder)
    first, second = (run for run in sweep.runs if run.method == "adamw" and run.seed == 0)
    words = {
        run.id: [f"optimizer={run.method}", f"optimizer.lr={run.lr}", f"seed={run.seed}"]
        for run in (first, second)
    }
    train(store, "online", *words[first.id])
    train(store, "online", *words[second.id], stop_at=0)
    assert [backend.run(run.id).group for run in (first, second)] == [None, None]
    sent(dataclasses.replace(sweep, runs=(first,)))
    train(store, "online", *words[second.id], group=sweep.name)

    for run in (first, second):
        assert backend.run(run.id).group == sweep.name
        assert sweep.name in backend.run(run.id).tags
        assert_whole(backend, store, run.id)


def test_another_history_is_refused_and_rewritten_on_demand(
    backend: Backend, copied: tuple[Sweep, RunStore]
) -> None:
    """As where the store was deleted and trained anew with another cadence."""
    sweep, store = copied
    run = sweep.runs[0]
    sent(sweep, count=1)
    (store.folder(run.id) / memory.NAME).unlink()
    lines = (store.folder(run.id) / "records.jsonl").read_text().splitlines(keepends=True)
    (store.folder(run.id) / "records.jsonl").write_text("".join(lines[:1] + lines[2:]))
    (store.folder(run.id) / "diagnostics.jsonl").write_text("")
    (answer,) = sent(sweep, count=1)

    assert answer.status == "refused" and "With --rewrite" in answer.message
    (answer,) = sent(sweep, count=1, rewrite=True)
    assert answer.status == "published"
    assert {name for _, name in backend.runs} == {f"{run.id}-2"}
    assert len(backend.run(f"{run.id}-2").lines) == len(lines) - 1
    assert sent(sweep, count=1)[0].status == "unchanged"


def test_the_command_publishes_in_several_processes(
    backend: Backend, copied: tuple[Sweep, RunStore], command: Command
) -> None:
    """And a sweep's page; its exit code says whether W&B took everything."""
    sweep, store = copied
    words = ["-m", "optlab", "sync", "demo", *words_of(sweep)]
    done = command(*words, "--workers", "2")

    assert done.returncode == 0, done.stderr
    count = sum(len(store.records(run.id)) for run in sweep.runs)
    assert f"8 published; {count} rows sent." in done.stdout
    for run in sweep.runs:
        assert_whole(backend, store, run.id)
    assert (
        f"The sweep's page: {backend.url}/{ENTITY}/optlab/runs/summary-{sweep.name}" in done.stdout
    )
    assert ("optlab", f"summary-{sweep.name}") in backend.runs


def test_the_command_names_what_is_refused_and_exits_with_1(
    backend: Backend,
    copied: tuple[Sweep, RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep, _ = copied
    bad = sweep.runs[3]

    def fault(request: Request) -> Answer | None:
        refused = request.kind == "UpsertBucket" and request.run == bad.id
        return refusing(bad.name) if refused else None

    backend.fault = fault
    monkeypatch.setattr(sync, "_page", lambda sweep, args: 0)
    code = main(["sync", "demo", *words_of(sweep), "--workers", "1"])
    out = capsys.readouterr().out

    assert code == 1
    assert f"refused: {bad.name} ({bad.id})" in out and "7 published, 1 refused" in out


def test_a_wrong_key_publishes_nothing_and_says_so_once(
    backend: Backend,
    copied: tuple[Sweep, RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sweep, _ = copied
    monkeypatch.setenv("WANDB_API_KEY", "w" * 40)
    code = main(["sync", "demo", *words_of(sweep)])
    error = capsys.readouterr().err.strip()

    assert code == 1 and backend.runs == {}
    assert f"{backend.url} does not accept the API key" in error.splitlines()[-1]


@pytest.mark.parametrize("fault", ["never answers", "answers 500", "is not there"])
def test_a_server_that_is_away_is_told_at_once(
    backend: Backend,
    copied: tuple[Sweep, RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    """The client would try for two minutes, and then speak of its own helper process."""
    sweep, _ = copied
    monkeypatch.setattr(client, "START_WITHIN", 1)
    if fault == "is not there":
        backend.stop()
    else:
        backend.fault = backend.hang if fault == "never answers" else lambda request: (500, {})
    code = main(["sync", "demo", *words_of(sweep)])
    error = capsys.readouterr().err.strip().splitlines()[-1]

    assert code == 1
    assert f"{backend.url} does not answer: check the network and WANDB_BASE_URL" in error
    assert len(backend.requests) <= 1  # and nobody tries again


@pytest.mark.parametrize(
    ("files", "cancelled"),
    [
        (["slurm", "records", "result"], ""),
        (["slurm", "records", "failure"], ""),
        (["slurm", "records"], ""),  # lost
        (["slurm", "records"], "2026-01-01"),
        (["slurm"], "2026-01-01"),
        ([], ""),  # never begun
    ],
)
def test_watching_goes_on_until_nothing_is_queued_or_running(
    copied: tuple[Sweep, RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    files: list[str],
    cancelled: str,
) -> None:
    """However the last run ends; over a round in which W&B is away."""
    sweep, store = copied
    run = sweep.runs[0]
    fill(store, run, ["slurm"])
    rounds: list[str] = []

    def one_round(sweep: Sweep, args: object, say: object) -> bool:
        rounds.append(store.status(run.id))
        if len(rounds) == 2:
            raise ConfigError("W&B does not answer.")
        return True

    def sleep(seconds: float) -> None:
        if len(rounds) == 3:
            fill(store, run, files, cancelled=cancelled)
            if not files:
                shutil.rmtree(store.folder(run.id))
        assert len(rounds) < 10

    def alive() -> dict[str, QueueJob]:
        return {} if len(rounds) >= 3 else {"7_0": QueueJob("queued", "Priority", 0.0, "")}

    monkeypatch.setattr(sync, "_round", one_round)
    monkeypatch.setattr("optlab.launch.standing.alive", alive)
    monkeypatch.setattr(sync.time, "sleep", sleep)

    assert main(["sync", "demo", *words_of(sweep), "--watch"]) == 0
    done = bool({"result", "failure"} & set(files))
    assert len(rounds) == (4 if done else 5), rounds  # where it is not done, one look more
    assert ("nothing is queued or running" in capsys.readouterr().out) != done


def test_an_ad_hoc_sweep_is_published_by_the_words_of_its_launch(
    backend: Backend, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = [f"runtime.runs={tmp_path}/runs", f"runtime.results={tmp_path}/results"]
    words = ["optimizer.lr=0.1,0.2", "optimizer=adamw", *shrunk(), *places]
    sweep = from_arguments(words)
    train_all(sweep)
    code = main(["sync", *words, "--workers", "1"])
    said = capfd.readouterr()

    assert code == 0, said.err
    assert f"Publishing 2 runs of {sweep.name}" in said.out and "2 published" in said.out
    assert {run.group for run in backend.runs.values()} == {sweep.name}
    assert ("optlab", f"summary-{sweep.name}") in backend.runs


def words_of(sweep: Sweep) -> list[str]:
    return sweep.command.split()[1:]


def main(arguments: list[str]) -> int:
    from optlab.__main__ import main

    return main(arguments)
