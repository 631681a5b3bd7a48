"""A sweep read back from W&B is the table that the run store gives."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main
from analysis.sweeps import analyse_sweep, settings
from analysis.wandb_page import refresh
from optlab.errors import ConfigError
from optlab.store import RunStore
from optlab.sweep import Sweep
from optlab.tracking import read as reading
from optlab.tracking.publish import Job, publish_all
from optlab.tracking.read import Download, read
from tracking.backend import ENTITY, Answer, Backend, RemoteRun, Request
from tracking.trained import connected, sweep_in, train_all, with_certified

PROJECT = f"{ENTITY}/optlab"
DIGITS = ("model.width=8,9",)  # an axis that the table does not show by itself


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen runs: finished and diverged ones, one that failed, one that stopped, one missing.

    Of the four that are certified, two repeat another run, one was trained after all and diverged,
    and the run that the last would repeat is missing.
    """
    folder = tmp_path_factory.mktemp("read")
    sweep = sweep_in(folder, *DIGITS)
    store = train_all(sweep, lacking=1)
    failed, stopped = sweep.runs[3].id, sweep.runs[4].id
    for run_id in (failed, stopped):
        (store.folder(run_id) / "result.json").unlink()
    store.fail(failed, "OutOfMemoryError: too large", "a traceback")
    (store.folder(stopped) / "checkpoint.pt").write_bytes(b"")
    trained, by = (each := with_certified(sweep).certified[1]).run, store.result(each.by.id)
    assert by is not None
    store.freeze(trained)
    store.finish(trained.id, replace(by, outcome="diverged", final_loss=math.nan, diverged_at=2))
    return folder


@pytest.fixture(scope="module")
def remote(trained: Path) -> dict[tuple[str, str], RemoteRun]:
    """What W&B has of them once they are published."""
    sweep = sweep_in(trained, *DIGITS)
    runs, tracking = sweep.settings.runtime.runs_folder, sweep.settings.tracking
    with pytest.MonkeyPatch.context() as patch, connected(patch) as backend:
        jobs = [Job(runs, run.id, tracking, False, False) for run in sweep.runs]
        assert {sent.status for sent in publish_all(jobs, 1)} == {"published", "empty"}
        refresh(with_certified(sweep))
        return backend.runs


@pytest.fixture
def published(
    backend: Backend,
    trained: Path,
    remote: dict[tuple[str, str], RemoteRun],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Sweep, RunStore]:
    monkeypatch.setattr(reading, "WAIT", 0.01)
    backend.runs = copy.deepcopy(remote)
    sweep = with_certified(sweep_in(trained, *DIGITS))
    return sweep, RunStore(sweep.settings.runtime.runs_folder)


def assert_same(found: Download, sweep: Sweep, store: RunStore) -> None:
    """Values, order, columns and dtypes."""
    runs = store.runs_table(sweep.runs, sweep.certified).assign(setting=settings(sweep))

    pd.testing.assert_frame_equal(found.runs, runs, check_exact=True)
    pd.testing.assert_frame_equal(found.records, store.records_table(sweep.runs), check_exact=True)


def test_the_tables_are_those_of_the_store_and_come_from_the_cache_the_next_time(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, store = published
    found = read(PROJECT, sweep.name, tmp_path / "cache")

    outcomes = set(found.runs["outcome"])
    assert outcomes == {"finished", "diverged", "failed", "preempted", "missing"}
    assert list(found.runs["certified_by"] != "") == [False] * 16 + [True, False, True, False]
    assert list(found.runs["outcome"][16:]) == ["finished", "diverged", "finished", "missing"]
    assert_same(found, sweep, store)
    assert (found.command, found.figures, found.notes) == (sweep.command, sweep.figures, ())
    asked = len(backend.of("HistoryPage"))
    assert_same(read(PROJECT, sweep.name, tmp_path / "cache"), sweep, store)
    assert len(backend.of("HistoryPage")) == asked > 0


def test_histories_that_come_incomplete_are_asked_for_again(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, store = published
    backend.lose_rows = 5
    found = read(PROJECT, sweep.name, tmp_path / "cache")

    assert found.notes == ()
    assert_same(found, sweep, store)


def test_rows_that_wandb_does_not_give_are_named(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, store = published
    backend.lose_rows = 10**6
    found = read(PROJECT, sweep.name, tmp_path / "cache")

    assert len(found.notes) == 15 and "W&B gave 2 of the 4 records of run" in found.notes[0]
    pd.testing.assert_frame_equal(
        found.runs.drop(columns="setting"),
        store.runs_table(sweep.runs, sweep.certified),
        check_exact=True,
    )


def test_a_sweep_without_a_page_lacks_only_what_was_never_started(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, _ = published
    backend.runs = {key: run for key, run in backend.runs.items() if run.job_type == "train"}
    found = read(PROJECT, sweep.name, tmp_path / "cache")

    assert set(found.runs["run"]) == {run.id for run in sweep.runs[:-1]}
    assert "has no page in W&B" in found.notes[0]


def test_a_run_that_streams_is_running_and_one_that_died_so_is_preempted(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, _ = published
    streaming, dead = (backend.run(run.id) for run in sweep.runs[:2])
    for run, state in ((streaming, "running"), (dead, "crashed")):
        run.state = state
        run.summary = {"outcome": "running", "step": 2, "val_loss": 2.0}
    found = read(PROJECT, sweep.name, tmp_path / "cache").runs

    assert list(found["outcome"][:2]) == ["running", "preempted"]
    assert found["final_loss"][:2].isna().all()


def test_requests_that_fail_now_and_then_do_no_harm(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    """The first request of a kind for a run fails."""
    sweep, store = published
    seen: set[tuple[str, str]] = set()

    def fault(request: Request) -> Answer | None:
        first = (request.kind, request.run) not in seen
        seen.add((request.kind, request.run))
        return (400, {}) if first and request.kind in ("Runs", "HistoryPage") else None

    backend.fault = fault
    assert_same(read(PROJECT, sweep.name, tmp_path / "cache"), sweep, store)


def test_a_server_that_refuses_is_told_in_a_sentence(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, _ = published
    backend.fault = lambda request: (403, {}) if request.kind == "Runs" else None
    with pytest.raises(ConfigError, match=r"W&B does not give .* does not let this account"):
        read(PROJECT, sweep.name, tmp_path / "cache")


@pytest.mark.parametrize(
    ("project", "group", "message"),
    [
        ("optlab", "demo", "needs ENTITY/PROJECT"),
        (PROJECT, "dema", "has no runs of the sweep 'dema'"),
        (f"{ENTITY}/optlap", "demo", "no such project"),
    ],
)
def test_what_is_not_there_is_said(
    backend: Backend,
    published: tuple[Sweep, RunStore],
    tmp_path: Path,
    project: str,
    group: str,
    message: str,
) -> None:
    with pytest.raises(ConfigError, match=message):
        read(project, group, tmp_path / "cache")


def test_the_command_writes_the_same_files_as_from_the_store(
    published: tuple[Sweep, RunStore], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, _ = published
    remote = ["--from-wandb", PROJECT, "--group", sweep.name, "--out", str(tmp_path / "a")]
    code = main([*remote, f"runtime.results={tmp_path}/r"])
    analyse_sweep(sweep, tmp_path / "b")
    first, second = tmp_path / "a", tmp_path / "b"
    # the page links to the store, and the cache is of the store
    own = {"report.html", ".tables.cache"}
    names = sorted({path.name for path in second.iterdir()} - own)

    assert code == 0, capsys.readouterr().err
    assert names == sorted({path.name for path in first.iterdir()} - own)
    assert "robustness.csv" in names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_page_links_every_run_to_wandb_and_says_where_it_was_read(
    backend: Backend, published: tuple[Sweep, RunStore], tmp_path: Path
) -> None:
    sweep, _ = published
    out = tmp_path / "a"
    words = ["--from-wandb", PROJECT, "--group", sweep.name, f"runtime.results={tmp_path}/r"]
    assert main([*words, "--out", str(out)]) == 0
    text = (out / "report.html").read_text()
    links = re.findall(rf'href="{backend.url}/([^"]*)"', text)

    assert sorted(links) == sorted(f"{PROJECT}/runs/{run.id}" for run in sweep.runs[:-1])
    assert re.search(rf"read from</th><td>Weights &amp; Biases, {PROJECT}</td><td.*>15<", text)


def test_a_group_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from-wandb", PROJECT]) == 1
    assert "needs --group SWEEP" in capsys.readouterr().err
