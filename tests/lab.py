"""A store whose runs have the losses of a landscape, without training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from optlab.config import Run
from optlab.launch.launch import Report
from optlab.launch.rounds import extend_rounds
from optlab.store import Record, Result, RunStore
from optlab.sweep import Sweep, load

BEST = {"adamw": -2.0, "scion": -0.5, "muonmax_momo": 0.0}
INITIAL = 2.0


def valley(run: Run) -> float | str:
    """A minimum at ``BEST``, a cliff at lr 2, and Momo's plateau from lr 1 on."""
    x = math.log10(run.lr)
    if run.method == "muonmax_momo":
        return 0.2 + max(0.0, -x) + 0.01 * run.seed
    return "diverged" if run.lr > 2 else 0.2 + abs(x - BEST[run.method]) + 0.01 * run.seed


class Lab:
    """A sweep file, a store, and a launch that gives every run the loss of a landscape at once."""

    def __init__(self, root: Path, text: str) -> None:
        self.store = RunStore(root / "runs")
        self.landscape: Callable[[Run], float | str] = valley
        self.launches: list[list[tuple[str, float, int]]] = []
        self.said: list[str] = []
        (root / "sweeps").mkdir()
        (root / "sweeps" / "x.yaml").write_text(text)

    def load(self, *overrides: str) -> Sweep:
        return load("x", [f"runtime.runs={self.store.root}", *overrides])

    def launch(self, sweep: Sweep, store: RunStore) -> Report:
        runs = [run for run in sweep.runs if sweep.only is None or run.id in sweep.only]
        self.launches.append(sorted((run.method, run.lr, run.seed) for run in runs))
        for run in runs:
            assert not store.is_done(run.id), "run twice"
            self.finish(run)
        return Report()

    def finish(self, run: Run) -> None:
        loss, momo = self.landscape(run), run.method == "muonmax_momo"
        self.store.freeze(run)
        for step in (0, 6):
            self.store.append(run.id, Record(step, step, 0.5 * step, 1.0, 1.0, run.lr, run.lr, 1.0))
        diverged = loss == "diverged"
        result = Result(
            outcome="diverged" if diverged else "finished",
            cause="",
            step=6,
            diverged_at=6 if diverged else None,
            initial_loss=INITIAL,
            final_loss=math.nan if isinstance(loss, str) else loss,
            final_train_loss=1.0,
            accuracy=0.5,
            chance_loss=2.3,
            at_chance=False,
            weights_fingerprint="w",
            batch_fingerprint="b",
            capped_steps=(0 if run.lr >= 1 else 6) if momo else None,
        )
        self.store.finish(run.id, result)

    def extend(self, *overrides: str, **options: object) -> Report:
        def grown() -> Sweep:
            return self.load(*overrides)

        return extend_rounds(grown, self.store, self.launch, self.said.append, **options)  # type: ignore[arg-type]

    def lr(self, method: str, *overrides: str) -> list[float]:
        return sorted({run.lr for run in self.load(*overrides).runs if run.method == method})
