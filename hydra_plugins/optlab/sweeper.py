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
from optlab.store import RunStore
from optlab.sweep import from_arguments

from .launcher import HereLauncher, LocalLauncher, SlurmLauncher


class OptlabSweeper(Sweeper):
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
        report = launcher.launch_sweep(sweep, store)
        if launcher.dry_run:
            return
        if report.waiting:
            words = shown(sweep.command)
            print(
                f"{report.waiting} runs are queued or running. Watch: python -m optlab status "
                f"{words}; tables and figures: python -m analysis {words}."
            )
            return
        from analysis.sweeps import analyse_sweep  # half a second of pandas and matplotlib

        text = analyse_sweep(sweep)
        print(text)
        if not report.ok:
            sys.exit(1)


def shown(command: str) -> str:
    """The words of a sweep's command as a person would type them."""
    plain = re.sub(r"=choice\(([^()]*)\)", r"=\1", command.removeprefix("sweeps="))
    return shlex.join(shlex.split(plain))
