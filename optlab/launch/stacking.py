"""How the runs of a launch are stacked: the setting, what stands against it, the sizes."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..config import Run, Settings
from ..errors import ConfigError
from ..stacked.grouping import (
    TOO_BRIEF,
    Group,
    by_kind,
    probe_allowance,
    probe_cost,
    sizes_to_try,
    stacks,
)
from ..store import RunStore
from .launch import Say
from .pace import guess, paces, parts
from .plan import plural
from .pool import Stack
from .worker import Probed

AUTO = "auto"
_ALONE = "the only one of its kind"
_SPREAD = "as many workers as runs"
_UNWORTHY = "no gain"


def check_stack(value: Any) -> int | str:
    """The setting ``hydra.launcher.stack``.

    Raises:
        ConfigError: it is neither ``auto`` nor a number of runs.
    """
    if value != AUTO and (type(value) is not int or value < 1):
        raise ConfigError(
            "hydra.launcher.stack must be auto, or how many runs of one kind to train together at "
            f"most (1: each by itself), not {'null' if value is None else repr(value)}."
        )
    return value


def obstacle(settings: Settings, processes: int = 1) -> str:
    """Why no runs can be stacked with these settings; '' where they can.

    ``processes`` train each run together.
    """
    if settings.runtime.compile:
        return "runtime.compile=true compiles the model of one run"
    if settings.runtime.micro_batch is not None:
        return f"runtime.micro_batch={settings.runtime.micro_batch} splits the batch of one run"
    if processes > 1:
        return f"gpus_per_run and nodes give each run {processes} processes of its own"
    return ""


def refuse_stack(stack: int | str, why: str) -> None:
    """Raise where the command line or the launcher's file asks for stacks that cannot be."""
    if isinstance(stack, int) and stack > 1 and why:
        raise ConfigError(
            f"hydra.launcher.stack={stack} trains several runs in one process, and {why}: choose "
            "one of the two (hydra.launcher.stack=1, or auto, which stacks where it can)."
        )


class Prober(Protocol):
    """Who can tell how many runs of a kind to train together: a pool."""

    def probe(
        self, kinds: Sequence[tuple[Stack, int]], say: Say, stop: Callable[[], bool]
    ) -> list[Probed]:
        """An answer for each kind, of at most as many runs as the number beside it."""
        ...


def arrange(
    runs: Sequence[Run],
    stack: int | str,
    settings: Settings,
    pool: Prober,
    workers: int,
    store: RunStore,
    say: Say,
    stop: Callable[[], bool] = lambda: False,
) -> list[Stack]:
    """The runs as stacks for the workers of the pool; says what was picked."""
    if stack == 1:
        return [(run,) for run in runs]
    why = obstacle(settings)
    if why:
        say(f"Not stacked: {why}.")
        return [(run,) for run in runs]
    kinds = by_kind(runs)
    if stack == AUTO:
        chosen = _probed(kinds, pool, workers, say, stop)
    else:
        chosen = [_stated(each, int(stack)) for each in kinds]
    # One worker, or one kind: what comes first does not matter.
    seconds = _seconds(kinds, store) if min(workers, len(kinds)) > 1 else {}
    groups = [
        Group(each, size, gain, seconds.get(parts(each[0]), 1.0))
        for each, (size, gain, _) in zip(kinds, chosen, strict=True)
    ]
    made = stacks(groups, workers)
    line = _described(groups, [reason for *_, reason in chosen], made)
    if line:
        say(line)
    return made


def foreseen(runs: Sequence[Run], stack: int | str, settings: Settings) -> str:
    """What a dry run says of stacks: which runs could be in one; '' where there is nothing to say.

    How large they are is decided at the launch: by the probe, and for the workers that there are.
    """
    kinds = [each for each in by_kind(runs) if len(each) > 1]
    if stack == 1 or not kinds:
        return ""
    if why := obstacle(settings):
        return f"Not stacked: {why}."
    how = (
        "where a probe at the launch finds a gain" if stack == AUTO else f"up to {stack} at a time"
    )
    count = plural(sum(map(len, kinds)), "run")
    return f"To be stacked, {how}: {count} of {plural(len(kinds), 'kind')}."


_Chosen = tuple[int, float | None, str]  # size, gain, why the size is 1


def _stated(runs: Sequence[Run], most: int) -> _Chosen:
    return (min(most, len(runs)), None, _ALONE if len(runs) == 1 else _SPREAD)


def _probed(
    kinds: Sequence[Sequence[Run]],
    pool: Prober,
    workers: int,
    say: Say,
    stop: Callable[[], bool],
) -> list[_Chosen]:
    """Ask the workers, but not about kinds that would be done before, or have a worker a run."""
    share = max(1, workers // len(kinds))  # workers for each kind
    most = [math.ceil(len(each) / share) for each in kinds]
    chosen: list[_Chosen] = [(1, None, _unasked(*each)) for each in zip(kinds, most, strict=True)]
    wanted = [index for index, (*_, reason) in enumerate(chosen) if not reason]
    answers = pool.probe([(tuple(kinds[index]), most[index]) for index in wanted], say, stop)
    for index, answer in zip(wanted, answers, strict=True):
        size = max(1, min(answer.size, len(kinds[index])))
        reason = _SPREAD if size > 1 else answer.reason.rstrip(".") or _UNWORTHY
        chosen[index] = (size, answer.gain, reason)
    return chosen


def _unasked(runs: Sequence[Run], most: int) -> str:
    """Why a kind of which a worker gets ``most`` runs is not probed; '' if it is."""
    if len(runs) == 1:
        return _ALONE
    if most == 1:
        return _SPREAD
    allowance = probe_allowance(most, runs[0].train.steps)
    return TOO_BRIEF if probe_cost(sizes_to_try(most)[0]) > allowance else ""


def _seconds(kinds: Sequence[Sequence[Run]], store: RunStore) -> dict[str, float]:
    """A step of a run by its parts, where it was ever measured; else that of the median."""
    first = [each[0] for each in kinds]
    known = paces(store, first)
    by_parts = {parts(run): run for run in first}
    guessed = {key: known.get(key) or guess(run, known, by_parts) for key, run in by_parts.items()}
    found = {key: pace.seconds_per_step for key, pace in guessed.items() if pace}
    typical = statistics.median(found.values()) if found else 1.0
    return {key: found.get(key, typical) for key in by_parts}


def _described(groups: Sequence[Group], reasons: Sequence[str], made: Sequence[Stack]) -> str:
    """One line about what is stacked and what is not, and why; '' where nothing could be."""
    if all(len(group.runs) == 1 for group in groups):
        return ""
    of = {run.id: index for index, group in enumerate(groups) for run in group.runs}
    together = [stack for stack in made if len(stack) > 1]
    gains = [
        gain
        for stack in together
        if (gain := groups[of[stack[0].id]].gain_of(len(stack))) is not None
    ]
    alone: dict[str, Counter[str]] = {}
    for stack in made:
        if len(stack) == 1:
            counts = alone.setdefault(reasons[of[stack[0].id]], Counter())
            counts[stack[0].method] += 1
    separately = "; separately: " + ", ".join(
        f"{plural(counts.total(), 'run')} of {', '.join(sorted(counts))} ({reason})"
        for reason, counts in alone.items()
    )
    if not together:
        return f"Stacked: none{separately}."
    runs = plural(sum(map(len, together)), "run")
    largest = max(map(len, together))
    return (
        f"Stacked: {runs} in {plural(len(together), 'stack')} of up to {largest}"
        f"{_gained(gains)}{separately if alone else ''}."
    )


def _gained(gains: Sequence[float]) -> str:
    if not gains:
        return ""
    low, high = f"{min(gains):.2g}x", f"{max(gains):.2g}x"
    return f" ({low if low == high else f'{low} to {high}'} by a probe)"
