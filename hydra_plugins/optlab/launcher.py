"""The launchers ``hydra/launcher=local`` and ``hydra/launcher=here``."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from optlab.errors import ConfigError
from optlab.launch.here import launch_here
from optlab.launch.launch import Report
from optlab.launch.local import launch_local
from optlab.store import RunStore
from optlab.sweep import Sweep


class HereLauncher(Launcher):
    """Trains in this process."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        del hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        del job_overrides, initial_job_idx
        raise ConfigError("hydra/launcher=here needs hydra/sweeper=optlab.")

    def launch_sweep(self, sweep: Sweep, store: RunStore) -> Report:
        return launch_here(sweep, store, print, dry_run=self.dry_run)


class LocalLauncher(Launcher):
    """Trains in a pool of worker processes on this machine."""

    def __init__(self, workers: int, dry_run: bool) -> None:
        if type(workers) is not int or workers < 0:
            raise ConfigError(
                f"hydra.launcher.workers must be a number of processes, or 0 for one per core, "
                f"not {workers!r}."
            )
        self.workers = workers
        self.dry_run = dry_run

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        del hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        del job_overrides, initial_job_idx
        raise ConfigError("hydra/launcher=local needs hydra/sweeper=optlab.")

    def launch_sweep(self, sweep: Sweep, store: RunStore) -> Report:
        return launch_local(sweep, store, print, workers=self.workers, dry_run=self.dry_run)
