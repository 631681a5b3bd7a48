"""The command line of ``launch.py``: one message for bad input, exit codes, the single run.

Exit codes: 0 done (a diverged run included), 1 error, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

from hydra import compose
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ..config import Run, Settings, compose_run
from ..distributed import Ranks, check_share, ranks_from_environment
from ..errors import ConfigError, nearest
from ..overrides import (
    check_option,
    config_loader,
    is_group,
    is_launcher_setting,
    override_values,
    parse_override,
)
from ..paths import CONF
from ..scale import names_scale, refuse_without_file
from ..store import RunStore, check_writable
from ..sweep import Sweep, load
from .find import setting
from .here import train_here
from .launch import Report

_LAUNCHER = "local"  # the one that conf/config.yaml chooses


@contextlib.contextmanager
def checked(arguments: Sequence[str]) -> Iterator[None]:
    """Refuse bad input before Hydra starts; turn what a user can mend into one message, exit 1."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra would print a traceback of its own and exit
    try:
        _check(arguments)
        GlobalHydra.instance().clear()  # the check's; the app makes its own
        yield
    except ConfigError as error:
        sys.exit(str(error))
    except YAMLError as error:
        sys.exit(f"A YAML file cannot be read: {error}")
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__
        sys.exit(str(cause) if isinstance(cause, ConfigError) else f"{error} {cause or ''}".strip())
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        sys.exit(130)


def _check(arguments: Sequence[str]) -> None:
    _check_launcher([argument for argument in arguments if is_launcher_setting(argument)])
    flags = [argument for argument in arguments if argument.startswith("-")]
    overrides = [argument for argument in arguments if "=" in argument and argument not in flags]
    if {"-m", "--multirun"} & set(flags):
        _check_alone(ranks_from_environment())
        if {"--cfg", "-c"} & set(flags):
            raise ConfigError(
                "--cfg shows one run, so it does not go with -m; for the plan of a sweep add "
                "hydra.launcher.dry_run=true instead."
            )
        scale = [override for override in overrides if names_scale(override)]
        if not any(override.startswith("sweeps=") for override in overrides):
            refuse_without_file(scale)
        for override in overrides:
            if override.startswith("sweeps="):
                load(override.removeprefix("sweeps="), scale)
            elif not is_launcher_setting(override):
                _check_options(override)
        sys.argv[1:] = [_as_axis(argument, overrides) for argument in arguments]
        return
    named = [override for override in overrides if override.startswith("sweeps=")]
    if named:
        raise ConfigError(f"{named[0]} is a set of runs: add -m (python launch.py -m {named[0]}).")
    refuse_without_file(overrides)
    of_run = [override for override in overrides if not is_launcher_setting(override)]
    for override in of_run:
        _check_options(override)
    compose_run(of_run)


def _check_alone(ranks: Ranks) -> None:
    if ranks.together:
        raise ConfigError(
            f"A sweep is launched by one process, and srun or torchrun has started {ranks.world} of"
            " this one: start `python launch.py -m` once. Several processes train one run together:"
            " srun or torchrun with launch.py without -m, or gpus_per_run of the slurm launcher."
        )


def _check_launcher(words: Sequence[str]) -> None:
    """Refuse settings that the chosen launcher's file does not state, where Hydra only says no."""
    chosen = [word.partition("=")[2] for word in words if word.startswith("hydra/launcher=")]
    file = CONF / "hydra" / "launcher" / f"{[_LAUNCHER, *chosen][-1]}.yaml"
    if not file.is_file():
        ours = sorted(path.stem for path in file.parent.glob("*.yaml"))
        raise ConfigError(
            f"There is no launcher '{file.stem}'.{nearest(file.stem, ours)} hydra/launcher may be: "
            f"{', '.join(ours)}."
        )
    known = [str(key) for key in OmegaConf.load(file) if key != "_target_"]
    for word in words:
        key = setting(word).split(".")[0]
        if word.lstrip("+").startswith("hydra.launcher.") and key not in known:
            raise ConfigError(
                f"hydra/launcher={file.stem} has no setting '{key}'.{nearest(key, known)} "
                f"It has: {', '.join(known)}."
            )


def _check_options(text: str) -> None:
    group = str(parse_override(text).key_or_group)
    if is_group(group):
        for value in override_values(text):
            check_option(group, str(value))


def _as_axis(argument: str, overrides: Sequence[str]) -> str:
    """``key=value`` as an axis of one value.

    Hydra applies plain overrides to the default run first, where a key of another method's file
    does not exist; axes it leaves to the sweeper.
    """
    key, _, value = argument.partition("=")
    if argument not in overrides or key == "sweeps" or is_launcher_setting(argument):
        return argument
    if parse_override(argument).is_sweep_override():
        return argument
    return f"{key}=choice({value})"


def launch_again(sweep: Sweep, store: RunStore, words: Sequence[str]) -> Report:
    """Launch a sweep as ``launch.py -m`` would with the launcher's settings ``words``.

    ``words`` are overrides such as ``hydra/launcher=slurm`` and ``hydra.launcher.time=60``.
    """
    try:
        loader = config_loader()
        config = compose("config", list(words), return_hydra_config=True)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=_no_task, config=config
        )
    except HydraException as error:
        cause = error.__cause__
        raise ConfigError(str(cause if isinstance(cause, ConfigError) else error)) from error
    return launcher.launch_sweep(sweep, store)  # type: ignore[attr-defined]  # ours, all of them


def _no_task(config: object) -> None:
    """The task that Hydra wants to know, and that launching a sweep does not call."""
    del config


def train_one() -> None:
    """Train the run that Hydra's command line stands for; exits with 1 where it cannot."""
    try:
        _train_one()
    except ConfigError as error:
        sys.exit(str(error))  # raised on, Hydra would print the overrides above it


def _train_one() -> None:
    run, settings = compose_run(list(HydraConfig.get().overrides.task))
    ranks = ranks_from_environment()
    store = RunStore(settings.runtime.runs_folder)
    check_share(run.train.batch_size, ranks.world)
    if ranks.leads:
        check_writable(store.root, "runtime.runs")
    if not store.is_done(run.id):
        from ..build import check  # imports torch

        check(run, settings.runtime.micro_batch)
    if not ranks.leads:  # rank 0 writes and speaks
        if not store.is_done(run.id):
            _train(run, store, settings, ranks)
        return
    _say(f"Run {run.id} ({run.name}) in {store.folder(run.id)}")
    if store.is_done(run.id):
        _say("It is done already; delete its folder to train it again.")
    else:
        store.freeze(run)
        _train(run, store, settings, ranks)
    result = store.result(run.id)
    if result is not None:
        cause = f" ({result.cause})" if result.cause else ""
        _say(
            f"{result.outcome}{cause} at step {result.step}: validation loss "
            f"{result.final_loss:.4f}, initially {result.initial_loss:.4f}."
        )


def _train(run: Run, store: RunStore, settings: Settings, ranks: Ranks) -> None:
    status, cause, _ = train_here(run, store, settings, _say, ranks)
    if status == "preempted":
        if ranks.leads:
            _say("Saved; the same command goes on.")
        raise KeyboardInterrupt
    if status == "failed":
        raise ConfigError(
            f"Run {run.id} is marked failed ({cause}, {store.folder(run.id)}/log.txt). "
            "Launch again to retry it."
        )
    if status == "busy":
        raise ConfigError(f"{cause} Wait for it, or stop that process.")


def _say(line: str) -> None:
    print(line, flush=True)
