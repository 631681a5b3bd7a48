"""The sweeper: turns a command line into a sweep, has it launched, and shows what came of it."""

from __future__ import annotations

import sys

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from optlab.errors import ConfigError
from optlab.launch.launch import Report
from optlab.launch.rounds import extend_rounds
from optlab.store import RunStore
from optlab.sweep import from_arguments

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
        if not report.waiting and (self._extend or (sweep.extend and report.ok)):
            report = extend_rounds(
                lambda: from_arguments(arguments),
                store,
                launcher.launch_sweep,
                print,
                rounds=self._rounds,
                refine=self._refine,
            )
            sweep = from_arguments(arguments)
        if report.waiting:
            print(
                f"{report.waiting} runs are queued or running. Watch: python -m optlab status "
                f"{sweep.command.removeprefix('sweeps=')}; tables and figures: "
                f"python -m analysis {sweep.command.removeprefix('sweeps=')}."
            )
            if sweep.extend:
                print(f"When they are done: python -m optlab extend {sweep.file}.")
            return
        from analysis.sweeps import analyse_sweep  # half a second of pandas and matplotlib

        text = analyse_sweep(sweep)
        print(text)
        if not report.ok:
            sys.exit(1)
