"""A few steps of each kind of run of a sweep, to forecast what was never measured."""

from __future__ import annotations

import itertools
import math
import statistics
from dataclasses import replace

from ..config import Run, Settings
from ..errors import ConfigError
from ..store import RunStore
from ..sweep import Sweep
from .launch import Say
from .pace import Measure, keep_probe, paces, parts

_WARM_UP = 5  # steps that are not counted, at most half of them
_FAR = 10**9  # a step that no probe reaches


def probe(sweep: Sweep, store: RunStore, steps: int, say: Say) -> None:
    """Train ``steps`` steps of each kind of run of the sweep that was never measured, and time it.

    Nothing is written but the measures: no run is begun. The device is the one that a run in this
    process would get, so that a probe in a job on a GPU measures that GPU.
    """
    known = paces(store, sweep.runs)
    kinds: dict[str, Run] = {}
    for run in sorted(sweep.runs, key=lambda run: run.lr):  # small steps do not diverge
        kinds.setdefault(parts(run), run)
    for kind, run in kinds.items():
        if kind in known:
            continue
        made = _measured(run, sweep.settings, steps)
        keep_probe(store, run, made)
        say(
            f"Probed {run.method}: {1000 * made.seconds_per_step:.3g} ms a step over {steps} steps "
            f"on {made.device}."
        )


def _measured(run: Run, settings: Settings, steps: int) -> Measure:
    import torch

    from ..build import build, choose_device
    from ..provenance import device_name
    from ..train import Progress, train

    torch.set_num_threads(settings.runtime.threads)
    runtime = settings.runtime
    device = choose_device(runtime.device)
    built = build(run, device, runtime.micro_batch, compiles=runtime.compile)
    endless = replace(run.train, steps=_FAR, eval_every=_FAR)
    # As if step 0 had been evaluated: an evaluation may take longer than all the steps here.
    progress = Progress(records=1, initial_loss=math.inf, initial_norm=1.0)
    taken = [0.0]
    for _ in train(built, endless, progress):
        taken.append(progress.seconds)
        if progress.step == steps or progress.finished:
            break
    if progress.cause:
        raise ConfigError(
            f"The probe of {run.name} diverged at step {progress.step} ({progress.cause}), so it "
            "measures nothing: give the sweep a smaller learning rate, or train one run of it."
        )
    each = [after - before for before, after in itertools.pairwise(taken)]
    counted = each[min(_WARM_UP, steps // 2) :]
    state = {"model": built.model.state_dict(), "optimizer": built.optimizer.state_dict()}
    sink = _Sink()
    torch.save(state, sink)  # type: ignore[arg-type]  # it only writes and flushes
    return Measure(statistics.median(counted), None, sink.size, device_name(built.device))


class _Sink:
    """A file that keeps nothing but its size."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, data: bytes) -> int:
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""
