"""The sweeper: turns a command line into a sweep, has it launched, and shows what came of it."""

from __future__ import annotations

import re
import shlex
import sys

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from optlab.errors import ConfigError
from optlab.launch.find import as_asked
from optlab.launch.launch import Report
from optlab.launch.rounds import extend_rounds
from optlab.store import RunStore
from optlab.sweep import Sweep, from_arguments

from .launcher import HereLauncher, LocalLauncher, SlurmLauncher


class OptlabSweeper(Sweeper):
    """Launches a sweep and lets it grow; with ``extend`` only the latter.

    ``refine`` and ``rounds`` are those of ``launch.rounds.extend_rounds``.
    """

    def __init__(self, extend: bool, refine: bool, rounds: int | None) -> None:
        self._extend, self._refine, self._rounds = extend, refine, rounds

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        launcher = self._launcher
        if not isinstance(launcher, HereLauncher | LocalLauncher | SlurmLauncher):
            raise ConfigError(
                f"The launcher {type(launcher).__name__} cannot launch optlab's sweeps: use "
                "hydra/launcher=local, here or slurm."
            )
        sweep = from_arguments(arguments)
        store = RunStore(sweep.settings.runtime.runs_folder)
        report = Report() if self._extend else launcher.launch_sweep(sweep, store)
        if launcher.dry_run:
            return
        grows = sweep.extend or sweep.in_stages
        if self._extend or (grows and report.ok and not report.waiting):
            report = extend_rounds(
                lambda: as_asked(from_arguments(arguments), launcher.words),
                store,
                launcher.launch_sweep,
                print,
                rounds=self._rounds,
                refine=self._refine,
            )
            sweep = from_arguments(arguments)
        if report.waiting:
            print(_what_next(sweep, report.waiting))
            return
        from analysis.sweeps import analyse_sweep  # half a second of pandas and matplotlib

        text = analyse_sweep(sweep)
        print(text)
        if sweep.settings.tracking.mode == "online":
            from analysis.wandb_page import refresh

            try:
                print(refresh(sweep))
            except ConfigError as error:  # W&B is a mirror: the launch itself went well
                print(error, file=sys.stderr)
        if not report.ok:
            sys.exit(1)


def _what_next(sweep: Sweep, waiting: int) -> str:
    """What to type once a detached launch has been submitted."""
    words = shown(sweep.command)
    grow = f"; to extend it then: python -m optlab extend {words}" if sweep.extend else ""
    if sweep.in_stages and not sweep.second:
        grow = f"; to go on with its second stage then: python -m optlab extend {words}"
    return (
        f"{waiting} runs are queued or running. Watch: python -m optlab status {words}; tables and "
        f"figures: python -m analysis {words}{grow}."
    )


def shown(command: str) -> str:
    """The words of a sweep's command as a person would type them."""
    plain = re.sub(r"=choice\(([^()]*)\)", r"=\1", command.removeprefix("sweeps="))
    return shlex.join(shlex.split(plain))
