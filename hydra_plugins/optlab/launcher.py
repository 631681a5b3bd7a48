"""The launchers ``hydra/launcher=local``, ``here`` and ``slurm``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from optlab.errors import ConfigError
from optlab.launch.here import launch_here
from optlab.launch.launch import Report
from optlab.launch.local import launch_local
from optlab.launch.stacking import check_stack
from optlab.store import RunStore
from optlab.sweep import Sweep


class SweepLauncher(Launcher):
    """What Hydra demands of a launcher, and optlab's sweeper does not use.

    The classes below differ in what they do with a whole sweep; Hydra's own way, jobs as lists of
    overrides whose results a launcher must wait for, cannot freeze, skip or return early.
    """

    words: tuple[str, ...] = ()  # overrides of own settings that the command line states

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        del hydra_context, task_function
        words = config.hydra.overrides.hydra
        self.words = tuple(word for word in words if word.lstrip("+").startswith("hydra.launcher."))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        del job_overrides, initial_job_idx
        raise ConfigError("optlab's launchers need hydra/sweeper=optlab.")


class HereLauncher(SweepLauncher):
    """Trains in this process."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run

    def launch_sweep(self, sweep: Sweep, store: RunStore) -> Report:
        return launch_here(sweep, store, print, dry_run=self.dry_run)


class LocalLauncher(SweepLauncher):
    """Trains in a pool of worker processes on this machine."""

    def __init__(self, workers: int, stack: int | str, dry_run: bool) -> None:
        if type(workers) is not int or workers < 0:
            raise ConfigError(
                f"hydra.launcher.workers must be a number of processes, or 0 for one per core, "
                f"not {workers!r}."
            )
        self.workers, self.stack = workers, check_stack(stack)
        self.dry_run = dry_run

    def launch_sweep(self, sweep: Sweep, store: RunStore) -> Report:
        return launch_local(
            sweep, store, print, workers=self.workers, stack=self.stack, dry_run=self.dry_run
        )


class SlurmLauncher(SweepLauncher):
    """Submits to SLURM; ``settings`` are the keys of ``conf/hydra/launcher/slurm.yaml``."""

    def __init__(self, dry_run: bool, **settings: Any) -> None:
        self.dry_run = dry_run
        self.settings = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def launch_sweep(self, sweep: Sweep, store: RunStore) -> Report:
        from optlab.launch.slurm import launch_slurm, options  # imports submitit

        made = options({**self.settings, "dry_run": self.dry_run}, self.words)
        return launch_slurm(sweep, store, print, made)
