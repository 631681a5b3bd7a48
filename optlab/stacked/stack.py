"""K runs that are trained in lock step: one forward pass, one backward pass, one step for all.

Shapes: K replicas, B samples of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import TrainConfig
from ..data.base import Batch
from ..diagnostics import Gauge
from ..train import Parts, Progress, autocast, count_in, evaluate, overall, weighted
from .forward import Generators, StackedModel, States, each
from .optimizers import stepper

_AGREE = 1e-3  # of the largest output: a stack and a run alone, whose sums are rounded differently
_AGREE_HALF = 0.1  # the same in bfloat16


class CannotStack(Exception):
    """Why runs cannot be trained together; they can be alone."""


@dataclass
class Replica:
    """One run of a stack, with parts of its own: what they hold is true whenever it is asked."""

    config: TrainConfig
    parts: Parts
    progress: Progress
    gauge: Gauge
    random: States  # of the generators that its model draws from


class Stack:
    """Replicas that stand at the same step. Who diverges drops out, and the stack shrinks.

    Raises:
        CannotStack: the models cannot be computed together.
    """

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = list(replicas)
        self._common = replicas[0].parts  # device, precision and functions are those of all
        self._same_val = _same_validation([replica.parts for replica in replicas])
        try:
            self._assemble(self.replicas, fold=True)
            if not self._agrees():
                self._assemble(self.replicas, fold=False)
                if not self._agrees():
                    raise CannotStack(
                        f"the outputs of {type(self._common.model).__name__} change when several"
                        " are computed together"
                    )
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            cause = str(error).strip().split("\n")[0]
            raise CannotStack(f"several {type(self._common.model).__name__}: {cause}") from error

    @property
    def step(self) -> int:
        """Steps that every replica has taken."""
        return self.replicas[0].progress.step

    def advance(self) -> list[Replica]:
        """One step of all; those whose loss shows that they have diverged drop out, untouched."""
        started, together = time.perf_counter(), self.replicas
        for replica in together:
            _set_lr(replica)
        losses = self._losses()
        fallen = [
            k
            for k, (replica, loss) in enumerate(zip(together, losses.tolist(), strict=True))
            if _has_diverged(replica, loss)
        ]
        if len(fallen) < len(together):
            losses.sum().backward()
            if fallen:
                losses = losses[self._drop(fallen)]
            self._step(losses.detach())
        seconds = (time.perf_counter() - started) / len(together)
        for replica in together:
            replica.progress.seconds += seconds
        return [together[k] for k in fallen]

    def evaluate(self) -> list[dict[str, float]]:
        """As ``train.evaluate``, of each replica."""
        val = [replica.parts.data.val for replica in self.replicas]
        samples = len(self.replicas) * self.replicas[0].config.batch_size
        if not self.model.folded and samples < max(len(batch[0]) for batch in val[0]):
            # more samples at a time than in training need more memory, and would not be faster
            return [evaluate(replica.parts) for replica in self.replicas]
        return self._evaluated(val)

    def publish(self) -> None:
        """Make the replicas' optimizers and random states true."""
        self._stepper.publish()
        for replica, state in zip(self.replicas, self._generators.states, strict=True):
            replica.random = state

    def keep(self, replicas: Sequence[Replica]) -> None:
        """Go on with some of the replicas."""
        if replicas and len(replicas) < len(self.replicas):
            self.publish()
            self._assemble(replicas, fold=self.model.folded)

    def _assemble(self, replicas: Sequence[Replica], *, fold: bool) -> None:
        parts = [replica.parts for replica in replicas]
        self.replicas = list(replicas)
        self._generators = Generators([r.random for r in replicas], self._common.device)
        self.model = StackedModel([p.model for p in parts], self._generators, fold=fold)
        named = zip(parts[0].model.parameters(), self.model.parameters.values(), strict=True)
        stack_of = {id(solo): stack for solo, stack in named}
        groups = parts[0].optimizer.param_groups
        in_order = [stack_of[id(x)] for group in groups for x in group["params"]]
        self._stepper = stepper([p.optimizer for p in parts], in_order)
        self._sources = list({id(p.data): p.data for p in parts}.values())
        index = {id(data): number for number, data in enumerate(self._sources)}
        self._source_of = torch.tensor([index[id(p.data)] for p in parts])

    def _batch(self, step: int) -> tuple[Tensor, Tensor, bool]:
        """Inputs and targets, (K, B, ...) or, with True, (B, ...) for all."""
        batches = [data.train(step) for data in self._sources]
        if len(batches) == 1:
            return *self._to_device(batches[0]), True
        inputs, targets = (torch.stack(tensors) for tensors in zip(*batches, strict=True))
        if len(batches) < len(self._source_of):
            inputs, targets = inputs[self._source_of], targets[self._source_of]
        return *self._to_device((inputs, targets)), False

    def _losses(self) -> Tensor:
        """The training losses of the next step, (K,), with their graph."""
        self.model.train(True)
        inputs, targets, shared = self._batch(self.step)
        for x in self.model.parameters.values():
            x.grad = None
        with autocast(self._common):
            outputs = self.model.outputs(inputs, shared=shared)
            return each(self._common.data.loss, outputs, targets, shared=shared)

    def _drop(self, fallen: Sequence[int]) -> Tensor:
        """Go on without some replicas, in the middle of a step; the indices of the others, (K,)."""
        gradients = {name: x.grad for name, x in self.model.parameters.items()}
        left = [k for k in range(len(self.replicas)) if k not in fallen]
        self.keep([self.replicas[k] for k in left])
        indices = torch.tensor(left, device=self._common.device)
        for name, x in self.model.parameters.items():
            old = gradients[name]
            x.grad = None if old is None else old[indices]
        return indices

    def _step(self, losses: Tensor) -> None:
        self._clip()
        for replica in self.replicas:
            replica.gauge.before(self.step + 1)
        self._stepper.step(losses)
        for replica in self.replicas:
            replica.progress.step += 1
        if self.replicas[0].gauge.measures:
            self.publish()
            for replica in self.replicas:
                replica.gauge.after(self.step)

    @torch.no_grad()
    def _clip(self) -> None:
        """As ``nn.utils.clip_grad_norm_``, of each replica."""
        limits = [replica.config.clip_norm for replica in self.replicas]
        if all(limit is None for limit in limits):
            return
        gradients = [x.grad for x in self.model.parameters.values() if x.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1) for g in gradients])
        bounds = [math.inf if limit is None else limit for limit in limits]
        largest = torch.tensor(bounds, dtype=norms.dtype, device=norms.device)
        factors = largest / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)
        factors = factors.clamp(max=1.0)
        for g in gradients:
            g.mul_(factors.view(-1, *[1] * (g.dim() - 1)))

    @torch.no_grad()
    def _evaluated(self, val: Sequence[Sequence[Batch]]) -> list[dict[str, float]]:
        self.model.train(False)
        functions = {"loss": self._common.data.loss, **self._common.data.metrics}
        tables = torch.zeros(len(val), len(val[0]), len(functions) + 1, dtype=torch.float64)
        for index, batch in enumerate(val[0]):
            inputs, targets = self._to_device(batch)
            if not self._same_val:
                of_all = zip(*(of_one[index] for of_one in val), strict=True)
                inputs, targets = self._to_device(tuple(map(torch.stack, of_all)))  # type: ignore[arg-type]
            with autocast(self._common):
                outputs = self.model.outputs(inputs, shared=self._same_val)
                means = [
                    each(function, outputs, targets, shared=self._same_val)
                    for function in functions.values()
                ]
            for table, of_one in zip(tables, torch.stack(means, dim=1).tolist(), strict=True):
                table[index] = weighted(of_one, batch[1].numel())
        return [dict(zip(functions, overall(table), strict=True)) for table in tables]

    def _agrees(self) -> bool:
        """Whether the first and the last replica compute what they compute alone.

        The pass in training mode is for the errors that it raises; nothing is left of it.
        """
        buffers = {name: x.clone() for name, x in self.model.buffers.items()}
        states = list(self._generators.states)
        self._losses().sum().backward()
        for name, x in self.model.buffers.items():
            x.copy_(buffers[name])
        self._generators.states[:] = states
        self.model.train(False)
        inputs, _, shared = self._batch(self.step)
        with torch.no_grad(), autocast(self._common):
            outputs = self.model.outputs(inputs, shared=shared)
            alone = {}
            for k in {0, len(self.replicas) - 1}:
                model = self.replicas[k].parts.model
                model.eval()
                alone[k] = model(inputs if shared else inputs[k])
        return all(_close(outputs[k], y, self._common) for k, y in alone.items())

    def _to_device(self, batch: Batch) -> Batch:
        inputs, targets = batch
        device = self._common.device
        return inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _set_lr(replica: Replica) -> None:
    factor = replica.parts.schedule(replica.progress.step, replica.config.steps)
    for group in replica.parts.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def _has_diverged(replica: Replica, loss: float) -> bool:
    replica.progress.cause = count_in(loss, replica.config, replica.progress)
    return bool(replica.progress.cause)


def _same_validation(parts: Sequence[Parts]) -> bool:
    """Whether all replicas have the same validation set."""
    first, *others = {id(p.data): p.data.val for p in parts}.values()
    return all(
        len(first) == len(other)
        and all(
            torch.equal(a, b)
            for ours, theirs in zip(first, other, strict=True)
            for a, b in zip(ours, theirs, strict=True)
        )
        for other in others
    )


def _close(ours: Tensor, alone: Tensor, parts: Parts) -> bool:
    if ours.shape != alone.shape:
        return False
    size = alone.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    tolerance = (_AGREE if parts.precision == "float32" else _AGREE_HALF) * size
    return torch.allclose(ours, alone, rtol=0.0, atol=tolerance, equal_nan=True)
