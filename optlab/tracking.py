"""The mirror of a run in Weights & Biases; whatever goes wrong there never hurts the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config import Run, TrackingConfig
from .store import Record

if TYPE_CHECKING:
    import wandb


class Mirror:
    """One W&B run; after its first error it is dropped, with a line in the run's log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wandb: wandb.Run | None = None

    @classmethod
    def start(cls, run: Run, folder: Path, config: TrackingConfig) -> Mirror:
        """Open the mirror, or none where ``tracking.mode`` is ``off``."""
        mirror = cls(folder)
        if config.mode != "off":
            mirror._guarded(lambda: mirror._open(run, config))
        return mirror

    def log(self, record: Record) -> None:
        """Send one record, under its training step."""
        row = asdict(record)
        row.update(row.pop("extra"))
        self._guarded(lambda: self._wandb and self._wandb.log(row))

    def finish(self, outcome: str, summary: Mapping[str, Any]) -> None:
        """Close the W&B run with its outcome and the run's final numbers."""
        self._guarded(lambda: self._close(outcome, summary))

    def _open(self, run: Run, config: TrackingConfig) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # no reports to the vendor
        import wandb  # half a second, and not needed when tracking is off

        self._wandb = wandb.init(
            id=run.id,
            name=run.name,
            project=config.project,
            entity=config.entity,
            job_type="train",
            config=_flat(run),
            dir=self._folder,
            mode=config.mode,  # type: ignore[arg-type]  # validated with the config
            resume="allow" if config.mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                x_disable_stats=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
                x_transaction_log_flush_interval=1,  # a killed process loses a second, not 15
                disable_git=True,
                disable_code=True,
                init_timeout=10,
                silent=True,
            ),
        )
        self._wandb.define_metric("*", step_metric="step")

    def _close(self, outcome: str, summary: Mapping[str, Any]) -> None:
        if self._wandb is None:
            return
        self._wandb.summary.update({**summary, "outcome": outcome})
        self._wandb.finish(exit_code=1 if outcome == "failed" else 0)
        self._wandb = None

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # the local records are the truth, the mirror is a convenience
            stamp = datetime.now(timezone.utc).isoformat(timespec="seconds")
            with (self._folder / "log.txt").open("a") as file:
                file.write(
                    f"{stamp} W&B failed and is dropped for the rest of this run "
                    f"({type(error).__name__}: {error}); training goes on.\n"
                )
            self._drop()

    def _drop(self) -> None:
        """Let go of the W&B run, so that its id is free for another attempt."""
        dropped, self._wandb = self._wandb, None
        if dropped is not None:
            with contextlib.suppress(Exception):  # the failure has been told already
                dropped.finish(exit_code=1)


def _flat(run: Run) -> dict[str, Any]:
    """The resolved config, and on top of it the keys that users filter by."""
    keys = {"method": run.method, "lr": run.lr, "norms": run.choices.get("optimizer/norms", "")}
    return {**run.config, **keys, "choices": dict(run.choices)}
