"""Finding what a command's words mean: a sweep and its store, a run by id, prefix or name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ..config import Run, compose_run
from ..errors import ConfigError, nearest
from ..overrides import is_launcher_setting
from ..store import RunStore, read_if_there
from ..sweep import Sweep, from_arguments, load

_SHOWN = 6  # candidates of an ambiguous name


def sweep_of(name: str, overrides: Sequence[str]) -> tuple[Sweep, RunStore]:
    """The sweep and its store; an ad-hoc sweep where overrides stand in the place of the name."""
    words = [word for word in (name, *overrides) if not is_launcher_setting(word)]
    sweep = from_arguments(words) if "=" in name else load(name, words[1:])
    return sweep, RunStore(sweep.settings.runtime.runs_folder)


def setting(word: str) -> str:
    """The key of a launcher's setting: ``time`` of ``hydra.launcher.time=60``."""
    return word.split("=")[0].lstrip("+").removeprefix("hydra.launcher.")


def as_asked(sweep: Sweep, words: Iterable[str]) -> Sweep:
    """The sweep with the GPUs per run that launcher settings among ``words`` ask for.

    They win over its files, as they do at a launch.
    """
    values = [word.partition("=")[2] for word in words if setting(word) == "gpus_per_run"]
    if not values or not values[-1].isdigit():  # what is wrong is refused by the launch
        return sweep
    asked = sweep.resources or ({},) * len(sweep.runs)
    gpus = {"gpus_per_run": int(values[-1])}
    return replace(sweep, resources=tuple({**request, **gpus} for request in asked))


def run_of(word: str, runs: Sequence[Run], where: str) -> Run:
    """The one run among ``runs`` with this id, start of an id, or name.

    Raises:
        ConfigError: there is none, or there are several.
    """
    names = {run.id: run.name for run in runs}
    found = _matching(word, names, where)
    return next(run for run in runs if run.id == found)


def stored_run(word: str, overrides: Sequence[str]) -> tuple[str, RunStore]:
    """The id of the one run of the store with this id, start of an id, or name.

    ``overrides`` may name another store (``runtime.runs=...``).
    """
    settings = compose_run(overrides)[1]
    store = RunStore(settings.runtime.runs_folder)
    names = {}
    for path in sorted(store.root.glob("*/config.yaml")):
        labels = read_if_there(path.with_name("job.json")) or {}  # damaged: known by its id alone
        names[path.parent.name] = str(labels.get("name", ""))
    return _matching(word, names, str(store.root)), store


def _matching(word: str, names: Mapping[str, str], where: str) -> str:
    """The id that ``word`` means among ``names`` (id -> name)."""
    if word in names:
        return word
    found = [run_id for run_id, name in names.items() if name == word]
    found = found or [run_id for run_id in names if word and run_id.startswith(word)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(f"{run_id} ({names[run_id]})" for run_id in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise ConfigError(
            f"'{word}' means {len(found)} runs: {shown}{more}. Give the id, or --sweep."
        )
    close = nearest(word, [*dict.fromkeys(names.values()), *names])
    hint = close or (
        " A run is known by its id, the start of it, or its name: python -m optlab status SWEEP "
        "--runs lists them."
    )
    raise ConfigError(f"There is no run '{word}' in {where}.{hint}")
