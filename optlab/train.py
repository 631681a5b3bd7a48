"""Training as a generator of records, interruptible at every step boundary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .config import TrainConfig
from .data.base import Batch, Data
from .diagnostics import Gauge
from .schedule import Schedule
from .store import Record
from .team import Alone, Team, state_tensors


@dataclass(frozen=True)
class Parts:
    """What a run trains, and with what."""

    model: nn.Module
    data: Data
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    device: torch.device
    team: Team = field(default_factory=Alone)
    replica: Callable[[Tensor], Tensor] | None = None  # the model, in a team of several processes
    precision: str = "float32"  # of forward passes and losses, or bfloat16
    micro_batch: int | None = None  # samples of a forward pass in training; None: all at once

    @property
    def forward(self) -> Callable[[Tensor], Tensor]:
        """The forward pass to train by."""
        return self.model if self.replica is None else self.replica


@dataclass
class Progress:
    """Where a training stands; all of it is in a checkpoint."""

    step: int = 0  # optimizer steps taken
    records: int = 0  # yielded so far
    recorded: int = 0  # step of the last record
    capped_steps: int = 0  # at the last record: steps so far whose size was lr itself
    seconds: float = 0.0  # of training, evaluation excluded
    loss_sum: float = 0.0  # of the training losses since the last record, nats
    loss_count: int = 0
    steps_above: int = 0  # steps in a row with the loss above its initial value
    initial_loss: float = math.nan  # validation loss at step 0
    initial_norm: float = math.nan  # global norm of the weights at step 0
    cause: str = ""  # of the divergence, if the training has diverged
    finished: bool = False


def train(
    parts: Parts, config: TrainConfig, progress: Progress, gauge: Gauge | None = None
) -> Iterator[Record | None]:
    """Train from ``progress`` on; yield at every step boundary.

    What is yielded is a record at step 0, every ``eval_every`` steps and at the end, else None;
    the caller may save the state there, or stop. A training that diverges ends with the record of
    that step and ``progress.cause`` set: a loss that is not finite is found before it can step.
    ``gauge`` measures the steps that it finds due.
    """
    if progress.step == 0 and progress.records == 0:
        yield first_record(parts, config, progress, evaluate(parts))
    while not progress.finished:
        _advance(parts, config, progress, gauge)
        values = evaluate(parts) if record_due(config, progress) else None
        yield boundary(parts, config, progress, values)


def first_record(
    parts: Parts, config: TrainConfig, progress: Progress, values: dict[str, float]
) -> Record:
    """The record at step 0, from an evaluation's ``values``; what follows is compared to it."""
    progress.initial_norm = _weight_norm(parts.model)
    record = _record(parts, config, progress, values)
    progress.initial_loss = record.val_loss
    return record


def record_due(config: TrainConfig, progress: Progress) -> bool:
    """Whether the step boundary at which a training stands needs an evaluation."""
    return _is_last(config, progress) or progress.step % config.eval_every == 0


def boundary(
    parts: Parts, config: TrainConfig, progress: Progress, values: dict[str, float] | None
) -> Record | None:
    """Take in a step boundary, with an evaluation's ``values`` where one is due; its record."""
    record = None
    if values is not None:
        record = _record(parts, config, progress, values)
        progress.cause = progress.cause or _exploded(parts, config, progress)
    progress.finished = _is_last(config, progress)
    return record


def _is_last(config: TrainConfig, progress: Progress) -> bool:
    return progress.step == config.steps or bool(progress.cause)


def _advance(parts: Parts, config: TrainConfig, progress: Progress, gauge: Gauge | None) -> None:
    """One optimizer step, unless the loss at hand shows that the training has diverged."""
    started = time.perf_counter()
    lr_factor = parts.schedule(progress.step, config.steps)
    for group in parts.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * lr_factor
    *early, last = micro_batches(parts, progress.step)
    parts.model.train()
    parts.optimizer.zero_grad()
    part = _accumulated(parts, config, early)
    last_loss, share = batch_loss(parts, last), len(last[1]) / config.batch_size
    part = part + last_loss.detach().double() * share
    loss = parts.team.sum(part).to(last_loss.dtype)
    progress.cause = count_in(loss.item(), config, progress)
    if not progress.cause:
        parts.team.backward(last_loss, share)
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parts.model.parameters(), config.clip_norm)
        if gauge is not None:
            gauge.before(progress.step + 1)
        parts.optimizer.step(lambda: loss)  # type: ignore[arg-type]  # torch types it as float
        progress.step += 1
        if gauge is not None:
            gauge.after(progress.step)
    progress.seconds += time.perf_counter() - started


def micro_batches(parts: Parts, step: int) -> list[Batch]:
    """What this process takes of the batch of ``step``, in pieces of the samples that fit."""
    inputs, targets = parts.team.shard(parts.data.train(step))
    size = parts.micro_batch or len(targets)
    return list(zip(inputs.split(size), targets.split(size), strict=True))


def _accumulated(parts: Parts, config: TrainConfig, batches: Sequence[Batch]) -> Tensor:
    """The share of ``batches`` in the loss, float64, shape (); their gradients are added up."""
    total = torch.zeros((), dtype=torch.float64, device=parts.device)
    with parts.team.apart():
        for batch in batches:
            loss, share = batch_loss(parts, batch), len(batch[1]) / config.batch_size
            parts.team.backward(loss, share)
            total += loss.detach().double() * share
    return total


def batch_loss(parts: Parts, batch: Batch) -> Tensor:
    """The mean loss over a batch, shape (), with the graph of its gradient."""
    inputs, targets = _to_device(batch, parts.device)
    with autocast(parts):
        return parts.data.loss(parts.forward(inputs), targets)


def autocast(parts: Parts) -> torch.autocast:
    """The context of a forward pass and its loss."""
    low = parts.precision == "bfloat16"
    return torch.autocast(parts.device.type, dtype=torch.bfloat16, enabled=low)


def count_in(loss: float, config: TrainConfig, progress: Progress) -> str:
    """Count a training loss in; why the training has diverged, else ''."""
    progress.loss_sum += loss
    progress.loss_count += 1
    if not math.isfinite(loss):
        return "non-finite loss"
    progress.steps_above = progress.steps_above + 1 if loss > progress.initial_loss else 0
    if progress.steps_above >= config.diverged_after:
        return f"loss above its initial value for {config.diverged_after} steps"
    return ""


def _exploded(parts: Parts, config: TrainConfig, progress: Progress) -> str:
    growth = _weight_norm(parts.model) / progress.initial_norm
    if growth <= config.max_weight_growth:  # False for NaN
        return ""
    return f"weight norm above {config.max_weight_growth:g} times its initial value"


def _record(
    parts: Parts, config: TrainConfig, progress: Progress, evaluated: dict[str, float]
) -> Record:
    """The record of a full evaluation; starts a new mean of the training loss."""
    values = dict(evaluated)
    group = parts.optimizer.param_groups[0]
    train_loss = progress.loss_sum / progress.loss_count if progress.loss_count else math.nan
    capped = _capped(group, progress)
    progress.loss_sum, progress.loss_count = 0.0, 0
    progress.records += 1
    progress.recorded = progress.step
    return Record(
        step=progress.step,
        samples=progress.step * config.batch_size,
        seconds=progress.seconds,
        train_loss=train_loss,
        val_loss=values.pop("loss"),
        lr=float(group["lr"]),
        step_size=float(group.get("step_size", group["lr"])),
        dual_norm=float(group.get("dual_norm", math.nan)),
        capped=capped,
        extra=values,
    )


def _capped(group: dict[str, Any], progress: Progress) -> float:
    """Share of the steps since the last record whose size was lr itself; counts them in."""
    if "capped_steps" not in group:  # no step yet, or no rule that truncates
        return math.nan
    before, progress.capped_steps = progress.capped_steps, int(group["capped_steps"])
    steps = progress.step - progress.recorded
    return (progress.capped_steps - before) / steps if steps else math.nan


@torch.no_grad()
def evaluate(parts: Parts) -> dict[str, float]:
    """Loss and metrics over the whole validation set, means over its targets."""
    parts.team.check_alike(state_tensors(parts.model, parts.optimizer))
    parts.model.eval()
    functions = {"loss": parts.data.loss, **parts.data.metrics}
    val = parts.data.val
    table = torch.zeros(len(val), len(functions) + 1, dtype=torch.float64)  # sums and counts
    for index in parts.team.turns(len(val)):
        inputs, targets = _to_device(val[index], parts.device)
        with autocast(parts):
            outputs = parts.model(inputs)
            means = [function(outputs, targets).item() for function in functions.values()]
        table[index] = weighted(means, targets.numel())
    return dict(zip(functions, overall(parts.team.filled(table)), strict=True))


def weighted(means: Sequence[float], count: int) -> Tensor:
    """The row of one validation batch: sums over its ``count`` targets, and ``count``."""
    return torch.tensor([*(mean * count for mean in means), count])


def overall(table: Tensor) -> list[float]:
    """The means over all targets of the rows of ``weighted``.

    Added up row by row: the same bits whoever has filled the rows.
    """
    sums = [0.0] * table.shape[1]
    for row in table.tolist():
        sums = [total + value for total, value in zip(sums, row, strict=True)]
    *totals, count = sums
    return [total / count for total in totals]


def _weight_norm(model: nn.Module) -> float:
    return torch.nn.utils.get_total_norm([p.detach() for p in model.parameters()]).item()


def _to_device(batch: Batch, device: torch.device) -> Batch:
    inputs, targets = batch
    return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def random_states() -> dict[str, Any]:
    """Every generator that training may draw from, as tensors."""
    states: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()  # of this process's GPU, one of any number
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Undo what was drawn since ``random_states``."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
