"""Launching through SLURM: job arrays by Submitit, submitted once and then on their own."""

from __future__ import annotations

import contextlib
import fcntl
import io
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError
from submitit.helpers import clean_env

from ..config import Run
from ..distributed import check_share
from ..errors import ConfigError
from ..paths import ROOT
from ..resources import KEYS, Resources, resources
from ..stacked.grouping import packs
from ..store import RunStore
from ..sweep import Sweep
from .batch import Batch, adopt, new_name, note_intent, note_job, note_withdrawn, write_batch
from .find import setting
from .launch import Report, Say, conclude, prepare, refuse, representatives
from .plan import Plan, duration, plural
from .progress import Display
from .snapshot import snapshot
from .stacking import AUTO, check_stack, obstacle, refuse_stack
from .standing import ALIVE, standings

_POLL = 5.0  # seconds between two looks at the queue while waiting


@dataclass(frozen=True)
class Options:
    """The settings of ``conf/hydra/launcher/slurm.yaml`` that are not a request to SLURM."""

    setup: tuple[str, ...]
    array_parallelism: int | None
    max_array: int
    save_within: int  # seconds
    max_requeues: int
    wait: bool
    dry_run: bool
    request: Mapping[str, Any]  # the keys of Resources, as the launcher's file states them
    given: frozenset[str]  # those that the command line states; they win over every file
    words: tuple[str, ...] = ()  # what the command line states, for a retry to repeat
    stack: int | str = 1  # runs of one kind to be trained together at most, or auto


def options(settings: Mapping[str, Any], words: Sequence[str]) -> Options:
    """The launcher's settings, checked.

    ``words``: those overrides among them that the command line states, such as
    ``hydra.launcher.time=60``.

    Raises:
        ConfigError: a value of the wrong type.
    """
    setup = settings["setup"] or []
    lines = [setup] if isinstance(setup, str) else setup
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise ConfigError(f"hydra.launcher.setup must be a list of lines of shell, not {setup!r}.")
    for key, least in {"max_array": 1, "save_within": 10, "max_requeues": 0}.items():
        _check_count(key, settings[key], least)
    check_stack(settings["stack"])
    if settings["array_parallelism"] is not None:
        _check_count("array_parallelism", settings["array_parallelism"], 1)
    for key in ("wait", "dry_run"):
        if type(settings[key]) is not bool:
            raise ConfigError(f"hydra.launcher.{key} must be true or false, not {settings[key]!r}.")
    own = {key: settings[key] for key in settings if key not in KEYS and key != "setup"}
    request = {key: settings[key] for key in KEYS}
    kept = tuple(word for word in words if setting(word) not in ("wait", "dry_run"))
    given = frozenset(setting(word).split(".")[0] for word in words) & frozenset(KEYS)
    return Options(tuple(lines), **own, request=request, given=given, words=kept)


def _check_count(key: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(
            f"hydra.launcher.{key} must be a whole number of at least {least}, not {value!r}."
        )


def launch_slurm(sweep: Sweep, store: RunStore, say: Say, options: Options) -> Report:
    """Submit what is pending of the sweep; return at once, unless ``options.wait``.

    Everything that can be checked is checked before anything is submitted, and a submission that
    SLURM refuses is taken back as a whole.
    """
    requests = _requests(sweep, options)
    _check_stack(sweep, requests, options)
    if not options.dry_run:
        _need_slurm()
    with _one_at_a_time(store, say, options):
        if not options.dry_run:
            adopt([run.id for run in sweep.runs], store, say)
        gpus = {run_id: request.gpus_per_run for run_id, request in requests.items()}
        plan = prepare(sweep, store, say, dry_run=options.dry_run, gpus=gpus)
        report = Report(waiting=sum(plan.counts[state] for state in ALIVE))
        if plan.pending:
            batches = _batches(plan, store, requests, options)
            _check_parallelism(options, len(batches))
            say(_described(batches, options))
            if line := _not_stacked(batches, options):
                say(line)
        if plan.pending and not options.dry_run:
            _submit(plan, store, batches, options, say)
            report.waiting += len(plan.pending)
    if options.wait and report.waiting:
        report = _wait(sweep, store, say)
    return report


def _requests(sweep: Sweep, options: Options) -> dict[str, Resources]:
    """What each run asks for: the launcher's file, the run's files, the command line."""
    given = {key: options.request[key] for key in options.given}
    asked = sweep.resources or ({},) * len(sweep.runs)
    made = {
        run.id: resources({**options.request, **request, **given})
        for run, request in zip(sweep.runs, asked, strict=True)
    }
    for request in set(made.values()):
        _check_time(request, options)
    for run in sweep.runs:
        check_share(run.train.batch_size, max(1, made[run.id].gpus_per_run))
    return made


def _check_time(request: Resources, options: Options) -> None:
    """A job needs time to train: at least as long as it is given to save."""
    if request.time * 60 < 2 * options.save_within:
        raise ConfigError(
            f"time={request.time} min is too short for a checkpoint: a run is told to save "
            f"{options.save_within} s before the end (hydra.launcher.save_within), and needs at "
            f"least as long before that to get anywhere. Give it at least "
            f"{math.ceil(2 * options.save_within / 60)} minutes, or shorten save_within."
        )


def _check_stack(sweep: Sweep, requests: Mapping[str, Resources], options: Options) -> None:
    for request in set(requests.values()):
        refuse_stack(options.stack, obstacle(sweep.settings, request.processes))


def _not_stacked(batches: Sequence[tuple[Resources, Batch]], options: Options) -> str:
    """Why ``auto`` stacks nothing, where that can be known before the jobs run; else ''."""
    if options.stack != AUTO:
        return ""
    reasons = []
    for request, batch in batches:
        why = obstacle(batch.settings, request.processes)
        if not why and request.runs_per_job == 1:
            why = (
                "each job holds one run, and stack=auto stacks those that a job holds: raise "
                "hydra.launcher.runs_per_job, or state a number, such as hydra.launcher.stack=16"
            )
        reasons += [f"Not stacked ({batch.name}): {why}."] if why else []
    return "\n".join(reasons)


def _need_slurm() -> None:
    for program in ("sbatch", "squeue", "srun"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"There is no SLURM on this machine ({program}: not found). Launch on a login node "
                "of the cluster, or train here with hydra/launcher=local."
            )


@contextlib.contextmanager
def _one_at_a_time(store: RunStore, say: Say, options: Options) -> Iterator[None]:
    """Let one launch into the store at a time.

    Where the lock does not reach another machine, the jobs themselves see to it that each run is
    trained by the batch it was submitted with last.
    """
    if options.dry_run:
        yield
        return
    store.root.mkdir(parents=True, exist_ok=True)
    with (store.root / "launch.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another launch is at work in {store.root}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _batches(
    plan: Plan, store: RunStore, requests: Mapping[str, Resources], options: Options
) -> list[tuple[Resources, Batch]]:
    """One array per class of resources, cut where SLURM would not take it as one."""
    classes: dict[Resources, list[Run]] = {}
    for run in plan.pending:
        classes.setdefault(requests[run.id], []).append(run)
    longest = min(options.max_array, _max_array_size())
    made = []
    for request, runs in classes.items():
        tasks = _tasks(runs, request, options)
        for part in _chunks(tasks, longest):
            batch = Batch(
                name=new_name(plan.sweep.name),
                sweep=plan.sweep.name,
                store=str(store.root.absolute()),
                code="",
                tasks=tuple(part),
                settings=plan.sweep.settings,
                side_by_side=request.side_by_side,
                gpus_per_run=request.gpus_per_run,
                save_within=options.save_within,
                max_requeues=options.max_requeues,
                words=options.words,
                stack=options.stack,
            )
            made.append((request, batch))
    return made


def _tasks(runs: Sequence[Run], request: Resources, options: Options) -> list[tuple[str, ...]]:
    """The ids of the runs of each job. Where a number of them is stacked, jobs are of one kind."""
    if isinstance(options.stack, int) and options.stack > 1:
        held = packs(runs, max(request.runs_per_job, options.stack))
    else:
        held = _chunks(runs, request.runs_per_job)
    return [tuple(run.id for run in pack) for pack in held]


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _check_parallelism(options: Options, arrays: int) -> None:
    if options.array_parallelism and options.array_parallelism < arrays:
        raise ConfigError(
            f"hydra.launcher.array_parallelism={options.array_parallelism} jobs at a time cannot "
            f"be shared out among the {arrays} arrays of this launch: state {arrays} or more, or "
            "ask for fewer arrays (hydra.launcher.max_array, runs_per_job)."
        )


def _max_array_size() -> int:
    """What this SLURM takes as one array; no limit where it cannot be asked (a dry run)."""
    try:
        done = subprocess.run(
            ["scontrol", "show", "config"], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return sys.maxsize
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        if name.strip() == "MaxArraySize" and value.strip().isdigit():
            return max(1, int(value))
    return sys.maxsize


def _described(batches: Sequence[tuple[Resources, Batch]], options: Options) -> str:
    """What is submitted, a line per array."""
    verb = "Would submit" if options.dry_run else "Submitting"
    lines = []
    for request, batch in batches:
        runs = sum(len(ids) for ids in batch.tasks)
        words = [
            f"{verb} {plural(runs, 'run')} as {plural(len(batch.tasks), 'job')} ({batch.name})",
            f"partition {request.partition}" if request.partition else "",
            f"{request.gpus_per_run} GPU" if request.gpus_per_run else "no GPU",
            _cores(request),
            f"on {request.nodes} nodes" if request.nodes > 1 else "",
            request.memory or "",
            f"at most {duration(60 * request.time)}",
            _held(request, batch),
            f"{request.side_by_side} side by side" if request.side_by_side > 1 else "",
        ]
        lines.append(", ".join(word for word in words if word) + ".")
    return "\n".join(lines)


def _held(request: Resources, batch: Batch) -> str:
    """The runs of a job, and whether they are stacked."""
    if isinstance(batch.stack, int) and batch.stack > 1:
        largest = max(len(ids) for ids in batch.tasks)
        size = min(largest, batch.stack)
        return f"up to {plural(largest, 'run')} per job in stacks of up to {size}"
    if request.runs_per_job == 1:
        return ""
    stacked = ", stacked where a probe in the job finds that it pays" * (batch.stack == AUTO)
    return f"{request.runs_per_job} runs per job{stacked}"


def _cores(request: Resources) -> str:
    """The cores of a job; one has as many processes as it asks for ``cpus`` for."""
    each = f" ({request.cpus} per process)" if request.processes > 1 else ""
    return plural(request.processes * request.cpus, "core") + each


def _submit(
    plan: Plan,
    store: RunStore,
    batches: Sequence[tuple[Resources, Batch]],
    options: Options,
    say: Say,
) -> None:
    from ..build import problems  # imports torch

    micro_batch = plan.sweep.settings.runtime.micro_batch
    refuse(problems(representatives(plan.pending), micro_batch), plan.pending)
    results = plan.sweep.settings.runtime.results_folder
    code = snapshot(ROOT, store.root.absolute() / "code", (store.root, results))
    ready = [(request, replace(batch, code=str(code))) for request, batch in batches]
    parallel = options.array_parallelism
    share = parallel // len(ready) if parallel else None
    executors = [_executor(request, batch, options, share) for request, batch in ready]
    with _own_environment():
        try:
            for executor, (_, batch) in zip(executors, ready, strict=True):
                _try(executor, batch)
        except ConfigError:
            for _, batch in ready:
                batch.folder.rmdir()
            raise
        _submit_all(executors, [batch for _, batch in ready], say)
    say(f"The jobs run from {code}; editing the code or the YAML files no longer changes them.")


def _submit_all(executors: Sequence[SlurmExecutor], batches: Sequence[Batch], say: Say) -> None:
    """All arrays or none: what was submitted before SLURM refused one is cancelled."""
    submitted: list[str] = []
    for executor, batch in zip(executors, batches, strict=True):
        write_batch(batch)
        note_intent(batch)
        try:
            array = _sbatch(executor, batch)
        except FailedJobError as error:
            for job in submitted:
                subprocess.run(["scancel", job], check=False)
            for other in batches:
                note_withdrawn(other)
            raise _refused(str(error)) from error
        submitted.append(array)
        note_job(batch, array)
        say(f"Submitted {batch.name} as job {array}; logs in {batch.folder}.")


def _sbatch(executor: SlurmExecutor, batch: Batch) -> str:
    """Submit the array; its number."""
    executor.parameters["map_count"] = len(batch.tasks)
    with contextlib.redirect_stderr(io.StringIO()):  # the error holds it too
        return executor._submit_command(_command(batch)).job_id


def _command(batch: Batch) -> str:
    # Not submitit's own, which unpickles a function: a file with the runs' ids says all, and a job
    # whose launcher was killed before it could move a pickle is no worse off.
    return f"{shlex.quote(sys.executable)} -u -m optlab.launch.job {shlex.quote(str(batch.file))}"


def _try(executor: SlurmExecutor, batch: Batch) -> None:
    """Ask SLURM whether it would take the array, with a reason if not."""
    executor.parameters["map_count"] = len(batch.tasks)
    text = executor._make_submission_file_text(_command(batch), batch.name)
    done = subprocess.run(["sbatch", "--test-only"], input=text, capture_output=True, text=True)
    if done.returncode:
        raise _refused(done.stderr)


def _refused(message: str) -> ConfigError:
    said = " ".join(message.split()) or "no reason given"
    return ConfigError(
        f"SLURM refuses the jobs: {said}. Nothing was submitted. Change the request (partition, "
        "account, qos, time, nodes, gpus_per_run, cpus, memory, constraint: all of hydra.launcher) "
        "and launch again."
    )


def _executor(
    request: Resources, batch: Batch, options: Options, parallel: int | None
) -> SlurmExecutor:
    """Submitit's executor, which writes the job script and calls ``sbatch``."""
    batch.folder.mkdir(parents=True, exist_ok=True)
    executor = SlurmExecutor(folder=batch.folder)
    extra = {"requeue": True, **request.options}
    parameters: dict[str, Any] = {
        "job_name": batch.name,
        "partition": request.partition,
        "account": request.account,
        "qos": request.qos,
        "time": request.time,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks_per_node,
        "cpus_per_task": request.cpus,
        "gpus_per_node": request.gpus_per_run // request.nodes or None,
        "mem": request.memory,
        "constraint": request.constraint,
        "signal_delay_s": options.save_within,
        "array_parallelism": parallel or len(batch.tasks),
        "wckey": None,  # submitit would send its own name, which some sites refuse
        "stderr_to_stdout": True,
        "setup": [*options.setup, *_setup(batch)],
        "teardown": _teardown(batch),
        "additional_parameters": {k: v for k, v in extra.items() if v not in (None, False)},
        # Of SLURM 22.05 on, srun does not take the number from sbatch.
        # Processes that train together look after each other, and rank 0 writes why they fail: it
        # must have the time. What hangs all the same is ended.
        "srun_args": [f"--cpus-per-task={request.cpus}", "--kill-on-bad-exit=0", "--wait=120"],
    }
    executor.update_parameters(**parameters)
    return executor


def _setup(batch: Batch) -> list[str]:
    """Lines of the job script before the training."""
    lines = [
        "trap : TERM  # the script stays until the training has saved; children are not concerned",
        f"cd {shlex.quote(batch.code)} || exit 1",
        f"export PYTHONPATH={shlex.quote(batch.code)}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
    if data := os.environ.get("OPTLAB_DATA"):
        lines.append(f"export OPTLAB_DATA={shlex.quote(os.path.abspath(data))}")
    return lines


def _teardown(batch: Batch) -> list[str]:
    """Lines of the job script after the training: the requeue, once nothing is running any more."""
    job = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
    return [
        "code=$?",
        "# 75: saved and stopped by USR2. 140: USR2 came before Python could handle it.",
        "if [ $code -eq 75 ] || [ $code -eq 140 ]; then",
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {batch.max_requeues} ]; then',
        "    # Incomplete: a job that was cancelled in the meantime stays cancelled.",
        f'    scontrol requeue Incomplete "{job}" && sleep 60  # SLURM ends this script',
        "  fi",
        "fi",
        "exit $code",
    ]


@contextlib.contextmanager
def _own_environment() -> Iterator[None]:
    """Without what a job or a launch around this process has set, but with the cluster's config."""
    config = os.environ.get("SLURM_CONF")
    with clean_env():
        if config:
            os.environ["SLURM_CONF"] = config
        yield


def _wait(sweep: Sweep, store: RunStore, say: Say) -> Report:
    """Wait until none of the sweep's runs is queued or running; Ctrl-C leaves the jobs alone."""
    ids = [run.id for run in sweep.runs]
    names = {run.id: run.name for run in sweep.runs}
    say("Waiting for the jobs; Ctrl-C stops the waiting only.")
    with Display(len(ids), 1) as display:
        while True:
            found = standings(ids, store)
            counts = Counter(standing.state for standing in found.of.values())
            ended = Counter({k: v for k, v in counts.items() if k not in ALIVE})
            display.update(Counter(map(str, ended.elements())), counts["running"])
            if not any(counts[state] for state in ALIVE):
                break
            time.sleep(_POLL)
    found = standings(ids, store, explain=True)
    report = Report(Counter(str(standing.state) for standing in found.of.values()))
    for run_id in found.among("failed", "lost", "preempted", "missing"):
        standing = found.of[run_id]
        report.failures[names[run_id]] = standing.cause or standing.state
    conclude(report, store, say, sweep, sweep.runs)
    return report
