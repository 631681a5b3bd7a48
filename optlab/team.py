"""The processes that train one run: what each computes, and how they come to the same numbers.

Every process holds the whole model and the whole state of the optimizer, bit for bit the same. It
takes its share of each batch; gradients and losses are averaged, and everything after that is
computed everywhere alike, polar factors excepted, which are shared out.
"""

# torch documents PrefixStore, and does not export it
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import ctypes
import gc
import hashlib
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .data.base import Batch
from .distributed import check_share
from .errors import ConfigError
from .link import Flag, Link, PeerFailed
from .optim.sharing import gathered, owners
from .optim.steepest import SteepestDescent

COLLECTIVE_WITHIN = timedelta(minutes=10)  # a peer may be late by one checkpoint or evaluation

_GLANCE = 5e-5  # seconds between two looks at a collective

# Layers whose numbers depend on which samples a process sees, or in which order it draws.
_NOT_SHARED = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


class Team(Protocol):
    """What training asks of the processes that share it."""

    @property
    def world(self) -> int:
        """Processes."""
        ...

    @property
    def leads(self) -> bool:
        """Whether this process writes the records, checkpoints and results."""
        ...

    def shard(self, batch: Batch) -> Batch:
        """This process's part of a batch."""
        ...

    def sum(self, part: Tensor) -> Tensor:
        """The sum of what all processes give, float64, shape ()."""
        ...

    def backward(self, loss: Tensor, share: float) -> None:
        """Add the gradient of ``share`` times ``loss``, of all processes, to the parameters'."""
        ...

    def apart(self) -> AbstractContextManager[object]:
        """Within it, forward and backward passes add this process's gradients alone.

        The next backward pass outside adds what has gathered to that of the others.
        """
        ...

    def turns(self, count: int) -> Iterable[int]:
        """Which of ``count`` things this process does."""
        ...

    def filled(self, table: Tensor) -> Tensor:
        """The rows of all processes, where each has filled those of its turns and left zeros."""
        ...

    def stops(self, flag: Flag) -> bool:
        """Whether all stop at this step boundary."""
        ...

    def check_alike(self, tensors: Iterable[Tensor]) -> None:
        """Raise unless the tensors are bitwise the same in all processes."""
        ...


class Alone:
    """One process: nothing to share, nothing to wait for."""

    world = 1
    leads = True

    def shard(self, batch: Batch) -> Batch:
        return batch

    def sum(self, part: Tensor) -> Tensor:
        return part

    def backward(self, loss: Tensor, share: float) -> None:
        (loss * share).backward()

    def apart(self) -> AbstractContextManager[object]:
        return nullcontext()

    def turns(self, count: int) -> Iterable[int]:
        return range(count)

    def filled(self, table: Tensor) -> Tensor:
        return table

    def stops(self, flag: Flag) -> bool:
        return flag.is_set

    def check_alike(self, tensors: Iterable[Tensor]) -> None:
        pass


class Group:
    """Several processes; use as a context manager around the training."""

    def __init__(self, link: Link, device: torch.device, stop: Flag) -> None:
        self._link, self.device, self._stop = link, device, stop
        self._stopping = False
        self._replica: weakref.ref[DistributedDataParallel] | None = None
        self._reducer: weakref.ref[object] | None = None  # DDP's
        self.world, self.rank = link.ranks.world, link.ranks.rank

    @property
    def leads(self) -> bool:
        return self._link.ranks.leads

    def __enter__(self) -> Group:
        cuda = self.device.type == "cuda"
        _check_devices(self._link.gather("device", _described(self.device)))
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.PrefixStore("group", self._link.store),
            rank=self.rank,
            world_size=self.world,
            timeout=COLLECTIVE_WITHIN,
            device_id=self.device if cuda else None,
        )
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        group = dist.group.WORLD
        assert group is not None
        if kind is not None and self.device.type == "cuda":
            group.abort()  # frees peers, and this process, from collectives that cannot end
        dist.destroy_process_group()
        if kind is not None or self._reduces():
            _never_free(group)

    def _reduces(self) -> bool:
        """Whether DDP still holds the group."""
        if self._reducer is not None and self._reducer() is not None:
            gc.collect()
        return self._reducer is not None and self._reducer() is not None

    def replicate(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_size: int,
        loss: Callable[[Callable[[Tensor], Tensor]], Tensor],
    ) -> Callable[[Tensor], Tensor]:
        """The forward pass of ``model`` whose backward pass averages gradients over the processes.

        All models become that of rank 0, and ``optimizer`` shares out its polar factors. ``loss``
        is that of any batch by a forward pass, as in training.
        """
        _check_shares(model, batch_size, self.world)
        if isinstance(optimizer, SteepestDescent):
            optimizer.sharing = self
        # Not as views of DDP's buckets: the bits of a dot product depend on where its vectors lie.
        replica = DistributedDataParallel(model)
        self._replica, self._reducer = weakref.ref(replica), weakref.ref(replica.reducer)
        # DDP sorts its buckets anew after its first backward pass, and the bits of a sum may depend
        # on the place of a number in its bucket: a resumed run, too, is to start with the new ones.
        loss(replica).backward()
        optimizer.zero_grad()
        return replica

    def shard(self, batch: Batch) -> Batch:
        inputs, targets = batch
        first = self.rank * len(targets) // self.world
        last = (self.rank + 1) * len(targets) // self.world
        return inputs[first:last], targets[first:last]

    def sum(self, part: Tensor) -> Tensor:
        """Also tells all processes whether any of them was told to stop."""
        values = torch.tensor([0.0, self._stop.is_set], dtype=torch.float64, device=part.device)
        values[0] = part
        self._wait(dist.all_reduce(values, async_op=True), look=True)
        self._stopping = bool(values[1] > 0)
        return values[0]

    def backward(self, loss: Tensor, share: float) -> None:
        (loss * (share * self.world)).backward()  # DDP divides the sum by the number of processes

    def apart(self) -> AbstractContextManager[object]:
        replica = self._replica() if self._replica is not None else None
        assert replica is not None
        return replica.no_sync()

    def turns(self, count: int) -> Iterable[int]:
        return range(self.rank, count, self.world)

    def filled(self, table: Tensor) -> Tensor:
        """Exact: every row is one process's numbers plus zeros."""
        table = table.to(self.device)
        self._wait(dist.all_reduce(table, async_op=True))
        return table.cpu()

    def stops(self, flag: Flag) -> bool:
        """As agreed in the last step, whichever process ``flag`` was set in."""
        if self._stopping:
            flag.is_set = True
        return self._stopping

    def check_alike(self, tensors: Iterable[Tensor]) -> None:
        own = checksum(tensors).to(self.device)
        sums = self._all_gather(own)
        if any(not torch.equal(each, own) for each in sums):
            raise RuntimeError(
                "The processes of this run no longer hold the same weights and optimizer state bit"
                " for bit. They compute alike only on equal hardware: ask for equal nodes (such as"
                " a constraint on the kind of GPU), and launch again."
            )

    def shared(
        self,
        units: Sequence[Sequence[Tensor]],
        costs: Sequence[float],
        compute: Callable[[int], Sequence[Tensor]],
    ) -> list[list[Tensor]]:
        return gathered(units, owners(costs, self.world), self.rank, compute, self._all_gather)

    def _all_gather(self, own: Tensor) -> list[Tensor]:
        parts = list(own.new_empty(self.world, *own.shape).unbind())
        self._wait(dist.all_gather(parts, own, async_op=True))
        return parts

    def _wait(self, work: dist.Work | None, *, look: bool = False) -> None:
        """Wait for a collective, unless a peer fails, which may then never come to it.

        On a GPU only where the host waits anyway (``look``).
        """
        assert work is not None
        while (look or self.device.type == "cpu") and not work.is_completed():
            if self._link.trouble.is_set():
                raise PeerFailed("another process has failed, or gives no sign of life")
            time.sleep(_GLANCE)
        work.wait()


def _never_free(group: dist.ProcessGroup) -> None:
    """Keep a group, with its threads, until the process ends.

    Gloo cannot give up a collective, and a group that is freed waits for its threads. Where DDP's
    reducer is the last to hold the group, it waits with the interpreter's lock, which these threads
    need in order to end, and so does the watch in order to end the process: all would hang.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def checksum(tensors: Iterable[Tensor]) -> Tensor:
    """16 bytes, uint8 (16,), that tell bits apart; tensors stay where they are, sums travel."""
    sums = [_bits(tensor.detach()).sum(dtype=torch.int64).cpu() for tensor in tensors]
    digest = hashlib.sha256(torch.stack(sums).numpy().tobytes()).digest()[:16]
    return torch.tensor(list(digest), dtype=torch.uint8)


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    """All that the next step depends on, in an order that is the same in all processes."""
    yield from model.state_dict().values()
    state = optimizer.state_dict()
    for node in (*state["state"].values(), *state["param_groups"]):
        yield from (value for value in node.values() if isinstance(value, Tensor))


def _bits(tensor: Tensor) -> Tensor:
    words = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(words[tensor.element_size()])


def own_device(device: torch.device, local_rank: int) -> torch.device:
    """The device of this process: with ``cuda``, its own GPU of those that it sees."""
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if count > 1 and local_rank >= count:
        raise ConfigError(
            f"This is process {local_rank + 1} of its node, where only {count} GPUs are visible:"
            " start one process per GPU."
        )
    index = local_rank if count > 1 else 0  # a scheduler may show each process its own GPU only
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return device.type
    return f"cuda {torch.cuda.get_device_properties(device).uuid}"


def _check_devices(devices: Sequence[str]) -> None:
    """Raise unless all are CPUs, or each is a GPU of its own."""
    kinds = {device.split()[0] for device in devices}
    if len(kinds) > 1:
        raise ConfigError(
            f"Some processes of this run have a GPU and others have none ({', '.join(devices)}):"
            " give each of them one, or set runtime.device=cpu."
        )
    if kinds == {"cuda"} and len(set(devices)) < len(devices):
        raise ConfigError(
            f"Several processes of this run share a GPU ({', '.join(devices)}): start one process"
            " per GPU."
        )


def _check_shares(model: nn.Module, batch_size: int, world: int) -> None:
    """Raise for what several processes cannot train as one would."""
    check_share(batch_size, world)
    if layer := _not_shared(model):
        raise ConfigError(
            f"The model has a {layer}, whose numbers would depend on how a batch is shared out, and"
            " a run is the same on any number of GPUs: train this model with one GPU per run."
        )


def check_micro_batch(model: nn.Module, batch_size: int, micro_batch: int | None) -> None:
    """Raise for a model that cannot take a batch in pieces as it would take it whole."""
    layer = _not_shared(model)
    if layer and micro_batch is not None and micro_batch < batch_size:
        raise ConfigError(
            f"The model has a {layer}, whose numbers would depend on runtime.micro_batch"
            f" ({micro_batch} of {batch_size} samples), and a run is the same with any: train this"
            " model with runtime.micro_batch=null."
        )


def _not_shared(model: nn.Module) -> str:
    """The first layer that sees or draws what depends on the samples around it; '' if none does."""
    for name, module in model.named_modules():
        if isinstance(module, _NOT_SHARED) and getattr(module, "p", 1.0) > 0:  # of a dropout
            return f"{type(module).__name__} ({name})"
    return ""
