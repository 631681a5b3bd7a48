"""The setting hydra.launcher.stack: what it may be, what it goes with, what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from optlab.config import Run
from optlab.errors import ConfigError
from optlab.launch import rehearsal
from optlab.launch.batch import read_batch
from optlab.launch.local import launch_local
from optlab.launch.slurm import launch_slurm, options
from optlab.launch.stacking import arrange, check_stack
from optlab.launch.worker import Probed
from optlab.paths import CONF
from optlab.store import RunStore, write_json
from optlab.sweep import ad_hoc
from support import shrunk

SLURM = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
del SLURM["_target_"]


@pytest.mark.parametrize("value", [0, -3, True, 2.0, "all", None, "16"])
def test_a_stack_that_is_no_number_of_runs_is_refused(value: Any) -> None:
    sentence = "hydra.launcher.stack must be auto, or how many runs of one kind"
    with pytest.raises(ConfigError, match=sentence):
        check_stack(value)
    with pytest.raises(ConfigError, match=sentence):
        options({**SLURM, "stack": value}, ())


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_the_command_line_refuses_it_in_one_sentence(command, launcher: str) -> None:
    words = [f"hydra/launcher={launcher}", "hydra.launcher.stack=many"]
    done = command("launch.py", "-m", *shrunk("seed=0,1"), *words)

    assert done.returncode == 1
    assert done.stderr.strip().startswith("hydra.launcher.stack must be auto, or how many")
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_launcher_in_this_process_has_no_stacks(command) -> None:
    words = ["hydra/launcher=here", "hydra.launcher.stack=2"]
    done = command("launch.py", "-m", *shrunk("seed=0,1"), *words)

    assert done.returncode == 1 and "hydra/launcher=here has no setting 'stack'" in done.stderr


OBSTACLES = [
    ("runtime.compile=true", "runtime.compile=true compiles the model of one run"),
    ("runtime.micro_batch=4", "runtime.micro_batch=4 splits the batch of one run"),
]


@pytest.mark.parametrize(("override", "why"), OBSTACLES)
def test_what_no_stack_can_do_is_refused_with_a_number(
    store: RunStore, override: str, why: str
) -> None:
    sweep = ad_hoc(shrunk("seed=0,1", override))
    with pytest.raises(ConfigError, match=f"stack=2 trains several runs in one process, and {why}"):
        launch_local(sweep, store, print, workers=1, dry_run=False, stack=2)
    with pytest.raises(ConfigError, match=why):
        launch_slurm(sweep, store, print, options({**SLURM, "stack": 2}, ()))
    assert not store.root.exists()


@pytest.mark.parametrize(("override", "why"), OBSTACLES)
def test_what_no_stack_can_do_is_said_with_auto(store: RunStore, override: str, why: str) -> None:
    sweep, said = ad_hoc(shrunk("seed=0,1", override)), []
    made = arrange(sweep.runs, "auto", sweep.settings, Answers([]), 2, store, said.append)

    assert made == [(run,) for run in sweep.runs]
    assert said == [f"Not stacked: {why}."]


@pytest.mark.parametrize(
    ("stack", "overrides", "line"),
    [
        (4, (), "To be stacked, up to 4 at a time: 6 runs of 2 kinds."),
        ("auto", (), "To be stacked, where a probe at the launch finds a gain: 6 runs of 2 kinds."),
        ("auto", OBSTACLES[0][:1], f"Not stacked: {OBSTACLES[0][1]}."),
        (1, (), ""),
    ],
)
def test_a_dry_run_says_which_runs_may_be_stacked(
    store: RunStore,
    monkeypatch: pytest.MonkeyPatch,
    stack: int | str,
    overrides: tuple[str, ...],
    line: str,
) -> None:
    monkeypatch.setattr(rehearsal, "rehearse", lambda runs: "")
    said: list[str] = []
    sweep = ad_hoc(shrunk("optimizer=adamw,adam", "seed=0,1,2", *overrides))
    launch_local(sweep, store, said.append, workers=2, dry_run=True, stack=stack)

    assert said[1:] == ([line] if line else [])
    assert not store.root.exists()


def test_runs_of_several_processes_are_refused_with_a_number(store: RunStore) -> None:
    sweep = ad_hoc(shrunk("seed=0,1"))
    chosen = options({**SLURM, "stack": 2, "gpus_per_run": 2}, ())
    with pytest.raises(ConfigError, match="give each run 2 processes of its own: choose one"):
        launch_slurm(sweep, store, print, chosen)
    assert not store.root.exists()


@pytest.fixture
def submission(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What a dry run says of the jobs; it builds nothing."""
    monkeypatch.setattr(rehearsal, "rehearse", lambda runs: "")

    def call(*overrides: str, **change: Any) -> list[str]:
        said: list[str] = []
        chosen = options({**SLURM, "dry_run": True, **change}, ())
        launch_slurm(ad_hoc(shrunk(*overrides)), store, said.append, chosen)
        return said[1].split("\n") + said[2:]

    return call


def test_a_job_holds_a_stack_and_the_plan_says_so(submission) -> None:
    lines = submission("seed=range(0,40)", stack=16)

    assert lines[0].startswith("Would submit 40 runs as 3 jobs")
    assert "up to 14 runs per job in stacks of up to 14" in lines[0]


def test_a_job_may_hold_several_stacks(submission) -> None:
    lines = submission("seed=range(0,40)", stack=4, runs_per_job=20)

    assert lines[0].startswith("Would submit 40 runs as 2 jobs")
    assert "up to 20 runs per job in stacks of up to 4" in lines[0]


@pytest.mark.parametrize("stack", [1, "auto"])
def test_neither_one_nor_auto_changes_what_a_job_holds(submission, stack: int | str) -> None:
    lines = submission("seed=range(0,5)", stack=stack, runs_per_job=2)

    assert lines[0].startswith("Would submit 5 runs as 3 jobs")
    assert ("stacked where a probe in the job finds" in lines[0]) == (stack == "auto")
    assert len(lines) == 1


def test_auto_says_that_it_finds_one_run_in_each_job(submission) -> None:
    lines = submission("seed=0,1", stack="auto")

    assert "each job holds one run" in lines[1] and "hydra.launcher.stack=16" in lines[1]


def test_auto_says_that_runs_of_several_processes_are_not_stacked(submission) -> None:
    lines = submission("seed=0,1", stack="auto", gpus_per_run=4)

    assert lines[1].startswith("Not stacked (") and "4 processes of its own." in lines[1]


def test_a_batch_from_before_it_means_one(tmp_path: Path) -> None:
    settings = {"runtime": vars(SETTINGS.runtime), "tracking": vars(SETTINGS.tracking)}
    old = {
        "name": "s.1", "sweep": "s", "store": "", "code": "", "tasks": [["a"]], "words": [],
        "settings": settings, "side_by_side": 1, "gpus_per_run": 0, "save_within": 60,
        "max_requeues": 1,
    }  # fmt: skip
    write_json(tmp_path / "batch.json", old)
    write_json(tmp_path / "new.json", {**old, "stack": "auto"})

    assert read_batch(tmp_path / "batch.json").stack == 1
    assert read_batch(tmp_path / "new.json").stack == "auto"


SETTINGS = ad_hoc(shrunk("seed=0")).settings


@dataclass
class Answers:
    """A pool whose probes have these answers; remembers what it was asked."""

    answers: list[Probed]
    asked: list[tuple[list[str], int]] = field(default_factory=list)

    def probe(
        self,
        kinds: Sequence[tuple[tuple[Run, ...], int]],
        say: Callable[[str], None],
        stop: Callable[[], bool],
    ) -> list[Probed]:
        del say, stop
        self.asked = [([run.name for run in runs], most) for runs, most in kinds]
        return self.answers


def arranged(
    store: RunStore, stack: int | str, workers: int, answers: list[Probed], *overrides: str
) -> tuple[list[str], list[int], list[tuple[list[str], int]]]:
    """What is said, the sizes of the stacks, what the pool is asked."""
    runs = [run for words in overrides for run in ad_hoc(shrunk(*words.split())).runs]
    said: list[str] = []
    pool = Answers(answers)
    made = arrange(runs, stack, SETTINGS, pool, workers, store, said.append)
    assert sorted(run.id for part in made for run in part) == sorted(run.id for run in runs)
    return said, [len(part) for part in made], pool.asked


LONG = "train.steps=300"
CURVES = (f"optimizer=adamw seed=range(0,12) {LONG}", f"optimizer=adam seed=range(0,12) {LONG}",
          f"optimizer=muon_torch seed=0,1,2 {LONG}", f"optimizer=lion seed=0 {LONG}")  # fmt: skip


def test_auto_says_what_the_probe_has_picked_and_what_trains_separately(store: RunStore) -> None:
    answers = [Probed(6, 3.0, ""), Probed(12, 6.0, ""), Probed(1, 1.0, "no gain")]
    said, sizes, asked = arranged(store, "auto", 2, answers, *CURVES)

    assert said == [
        "Stacked: 24 runs in 3 stacks of up to 12 (3x to 6x by a probe); separately: 3 runs of "
        "muon_torch (no gain), 1 run of lion (the only one of its kind)."
    ]
    assert [(len(names), most) for names, most in asked] == [(12, 12), (12, 12), (3, 3)]
    assert sizes.count(1) == 4


def test_a_number_needs_no_probe(store: RunStore) -> None:
    said, sizes, asked = arranged(store, 4, 2, [], *CURVES)

    assert asked == [] and max(sizes) == 4
    assert said[0].startswith("Stacked: 2") and "of up to 4;" in said[0]
    assert said[0].endswith("separately: 1 run of lion (the only one of its kind).")


def test_one_curve_is_probed_for_the_share_of_a_worker(store: RunStore) -> None:
    _, sizes, asked = arranged(store, "auto", 2, [Probed(14, 5.0, "")], f"seed=range(0,27) {LONG}")

    assert [most for _, most in asked] == [14]
    assert sizes == [14, 13]


def test_where_every_run_has_a_worker_nothing_is_probed(store: RunStore) -> None:
    said, sizes, asked = arranged(store, "auto", 4, [], f"seed=0,1,2 {LONG}")

    assert asked == [] and sizes == [1, 1, 1]
    assert said == ["Stacked: none; separately: 3 runs of muonmax_momo (as many workers as runs)."]


def test_what_is_done_before_a_probe_would_be_is_not_probed(store: RunStore) -> None:
    said, sizes, asked = arranged(store, "auto", 1, [], "seed=range(0,9)")

    assert asked == [] and sizes == [1] * 9
    assert said == ["Stacked: none; separately: 9 runs of muonmax_momo (too short for a probe)."]


def test_single_runs_are_no_news(store: RunStore) -> None:
    said, sizes, asked = arranged(store, "auto", 2, [], "seed=0", "optimizer=adamw seed=0")

    assert (said, sizes, asked) == ([], [1, 1], [])


def test_stack_one_says_and_asks_nothing(store: RunStore) -> None:
    said, sizes, asked = arranged(store, 1, 2, [], *CURVES)

    assert (said, asked, max(sizes)) == ([], [], 1)
