"""How many replicas of a run fit into memory."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ..train import Parts, batch_loss, micro_batches

_COPIES = 8  # of the weights: gradient, averages, what a step makes of them on its way
_SHARE = 0.5  # of the free memory: other processes need some, and estimates err
_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def most_that_fit(parts: Parts, free: int | None) -> int | None:
    """Replicas like ``parts`` for which ``free`` bytes are enough, at least 1; None: no limit."""
    return None if free is None else max(1, int(_SHARE * free / bytes_of_replica(parts)))


def bytes_of_replica(parts: Parts) -> int:
    """An estimate of what training a further replica takes: weights, activations, inputs."""
    weights = sum(x.nbytes for x in [*parts.model.parameters(), *parts.model.buffers()])
    kept = 0

    def count(x: Tensor) -> Tensor:
        nonlocal kept
        kept += x.nbytes
        return x

    (batch,) = micro_batches(parts, 0)
    states = torch.get_rng_state()
    buffers = [x.clone() for x in parts.model.buffers()]
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        batch_loss(parts, batch)
    for x, before in zip(parts.model.buffers(), buffers, strict=True):
        x.copy_(before)
    torch.set_rng_state(states)
    val = parts.data.val[0]
    inputs = batch[0].nbytes + val[0].nbytes
    return _COPIES * weights + 2 * kept + 2 * inputs


def free_memory(device: torch.device, workers: int = 1) -> int | None:
    """Bytes that this process, one of ``workers`` that train, may still take on ``device``.

    None where that is not known.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        sharing = math.ceil(workers / torch.cuda.device_count())
        return torch.cuda.mem_get_info(device)[0] // sharing + unused
    known = [each for each in (_available(), _left_to_cgroup()) if each is not None]
    return min(known) // workers if known else None


def _available() -> int | None:
    """Of the machine, where it is Linux."""
    if not _MEMINFO.is_file():
        return None
    for line in _MEMINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _left_to_cgroup() -> int | None:
    """Of the limit under which this process stands, as SLURM and containers set one."""
    own = Path("/proc/self/cgroup")
    if not own.is_file():
        return None
    paths = [line[3:] for line in own.read_text().splitlines() if line.startswith("0::")]
    left = []
    for folder in [_CGROUP, *(_CGROUP / path.lstrip("/") for path in paths)]:
        try:
            limit = (folder / "memory.max").read_text().strip()
            used = int((folder / "memory.current").read_text())
        except OSError:
            continue
        if limit != "max":
            left.append(int(limit) - used)
    return min(left, default=None)
