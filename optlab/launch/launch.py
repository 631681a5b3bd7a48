"""Making the runs of a sweep exist: what every launcher does before, between and after."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..config import Run
from ..errors import ConfigError
from ..store import RunStore, check_writable
from ..sweep import Sweep
from ..tracking.memory import was_published
from .plan import Plan, describe, make_plan, plural, refusal, refuse_beyond_budget

Say = Callable[[str], None]


@dataclass
class Report:
    """How the attempts of one launch ended."""

    counts: Counter[str] = field(default_factory=Counter)  # outcome -> runs
    failures: dict[str, str] = field(default_factory=dict)  # name of the run -> cause
    stopped: str = ""  # why the launch ended before its last run
    waiting: int = 0  # runs that are left to a queue

    @property
    def ok(self) -> bool:
        return not self.failures and not self.stopped and not self.counts["busy"]


def prepare(
    sweep: Sweep,
    store: RunStore,
    say: Say,
    *,
    dry_run: bool,
    gpus: Mapping[str, int] | None = None,
) -> Plan:
    """Say what is to be done; unless this is a dry run, freeze the runs that will be trained.

    ``gpus`` of each run, by id, where they are known.
    """
    plan = make_plan(sweep, store, gpus)
    say(describe(plan))
    if dry_run:
        from .rehearsal import rehearse  # which imports this module

        if sentence := rehearse(plan.pending):
            say(sentence)
        if sentence := refusal(plan):
            say(f"It would be refused. {sentence}")
    else:
        refuse_beyond_budget(plan)
        check_writable(store.root, "runtime.runs")
        check_writable(sweep.settings.runtime.results_folder, "runtime.results")
        for run in plan.pending:
            store.freeze(run)
    return plan


def representatives(runs: Sequence[Run]) -> list[Run]:
    """One run of each config that differs in more than seed and learning rate."""
    kinds: dict[str, Run] = {}
    for run in runs:
        optimizer = {**run.config["optimizer"], "lr": None}
        kind = {**run.config, "seed": None, "optimizer": optimizer}
        kinds.setdefault(json.dumps(kind, sort_keys=True), run)
    return list(kinds.values())


def refuse(problems: Mapping[str, str], pending: Sequence[Run]) -> None:
    """Raise if any representative cannot be built, each message once, with the methods it hits."""
    if not problems:
        return
    methods: dict[str, set[str]] = {}
    by_id = {run.id: run.method for run in pending}
    for run_id, message in problems.items():
        methods.setdefault(message, set()).add(by_id[run_id])
    if len(methods) == 1:
        raise ConfigError(next(iter(methods)))
    lines = [f"  {', '.join(sorted(names))}: {text}" for text, names in methods.items()]
    raise ConfigError("Nothing was started:\n" + "\n".join(lines))


def conclude(report: Report, store: RunStore, say: Say, sweep: Sweep, runs: Sequence[Run]) -> None:
    """Say how the launch of ``runs`` ended, failures by cause with a place to look.

    Runs that were left to another process, and that it has done by now, are no trouble.
    """
    if report.counts["busy"] and all(store.is_done(run.id) for run in runs):
        report.counts["done by another process"] = report.counts.pop("busy")
    words = ", ".join(f"{count} {status}" for status, count in sorted(report.counts.items()))
    say(f"Ended: {words or 'nothing'}.")
    causes: dict[str, list[str]] = {}
    for name, cause in report.failures.items():
        causes.setdefault(cause, []).append(name)
    for cause, names in causes.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        say(f"Failed: {', '.join(names[:3])}{more}: {cause}")
    if causes:
        say(f"Logs are in {store.root}/<id>/log.txt. Launch again to retry what failed.")
    if report.counts["busy"]:
        busy = plural(report.counts["busy"], "run")
        say(f"Left alone: {busy} that another process trains.")
    if report.stopped:
        say(report.stopped)
    if sweep.settings.tracking.mode == "online":
        _say_unknown_to_wandb(sweep, runs, store, say)


def _say_unknown_to_wandb(sweep: Sweep, runs: Sequence[Run], store: RunStore, say: Say) -> None:
    """Say which runs should have been streamed to W&B, and are mirrored offline instead."""
    done = [run for run in runs if store.is_done(run.id)]
    unknown = [run for run in done if not was_published(store.folder(run.id))]
    if unknown:
        example = store.folder(unknown[0].id) / "log.txt"
        say(
            f"W&B has nothing of {plural(len(unknown), 'run')}, mirrored offline instead ({example}"
            f" says why); python -m optlab sync {sweep.command.removeprefix('sweeps=')} publishes"
            " what is lacking."
        )
