"""Which of the processes that train one run together this one is; how they find each other.

Nothing here imports torch. What the processes then do together is in ``team.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError
from .store import read_json, write_json

_POLL = 0.05  # seconds between two looks at a file
_DIAL = 2.0  # seconds to wait for an address to answer

_SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train a run together: one per GPU."""

    rank: int  # 0, which alone writes, to world - 1
    world: int  # processes
    local_rank: int  # among those of this node
    launch: str  # the same for all of them, and different for any other start of any processes

    @property
    def together(self) -> bool:
        """Whether there are others."""
        return self.world > 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


ONE = Ranks(rank=0, world=1, local_rank=0, launch="")


def ranks_from_environment(environment: Mapping[str, str] = os.environ) -> Ranks:
    """The ranks that torchrun or srun has given to this process; ``ONE`` where neither has.

    srun is known by the variables of its job *step*: a batch script itself has SLURM_NTASKS and
    SLURM_PROCID too, and is alone all the same.

    Raises:
        ConfigError: some of these variables are missing or make no sense.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        keys = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
        return _ranks(environment, _TORCHRUN, keys)
    if "SLURM_STEP_NUM_TASKS" in environment:
        keys = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        return _ranks(environment, _SLURM, keys)
    return ONE


def _ranks(environment: Mapping[str, str], names: tuple[str, ...], keys: tuple[str, ...]) -> Ranks:
    try:
        rank, world, local_rank = (int(environment[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"{', '.join(names)} must be numbers, all three, and are not ({error}): start the"
            " processes with srun or torchrun, or unset these variables."
        ) from error
    if not 0 <= rank < world or not 0 <= local_rank <= rank:
        raise ConfigError(
            f"{names[0]}={rank}, {names[1]}={world} and {names[2]}={local_rank} do not fit"
            " together: start the processes with srun or torchrun, or unset these variables."
        )
    if world == 1:
        return ONE
    text = json.dumps([environment.get(key, "") for key in keys])
    return Ranks(rank, world, local_rank, hashlib.sha256(text.encode()).hexdigest()[:12])


def check_share(batch_size: int, world: int) -> None:
    """Raise unless every one of ``world`` processes gets a sample of each batch."""
    if batch_size < world:
        raise ConfigError(
            f"train.batch_size is {batch_size}, and {world} processes are to share each batch, at"
            f" least one sample each: take at most {batch_size} GPUs per run, or a larger batch."
        )


@dataclass(frozen=True)
class Meeting:
    """The file by which rank 0 says where it listens, in the folder of the run.

    The system chooses the port, so that two runs on one node cannot collide. A file that an earlier
    start has left is told by its token, which only the listener that wrote it knows.
    """

    folder: Path
    ranks: Ranks

    @property
    def file(self) -> Path:
        return self.folder / f"meeting-{self.ranks.launch}.json"

    def announce(self, port: int, token: str) -> None:
        """Say that this process listens at ``port``, and knows ``token``."""
        write_json(self.file, {"hosts": _own_addresses(), "port": port, "token": token})

    def places(self, given_up: Callable[[], bool]) -> Iterator[tuple[str, int, str]]:
        """Host, port and token of listeners that answer, as often as asked, until given up."""
        while not given_up():
            try:
                found = read_json(self.file)
            except (FileNotFoundError, ValueError):
                found = {"hosts": [], "port": 0, "token": ""}
            for host in found["hosts"]:
                if _answers(host, found["port"]):
                    yield host, found["port"], found["token"]
            time.sleep(_POLL)

    def close(self) -> None:
        """All have met."""
        self.file.unlink(missing_ok=True)


def _own_addresses() -> list[str]:
    """Where other processes may reach this one: by name, by address, from the same machine."""
    name = socket.gethostname()
    found = [name]
    with contextlib.suppress(OSError):  # a name that nobody can resolve
        found += [str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET)]
    with (
        contextlib.suppress(OSError),  # no network
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        probe.connect(("192.0.2.1", 9))  # sends nothing; shows the address of the way out
        found.append(probe.getsockname()[0])
    return list(dict.fromkeys([*found, "127.0.0.1"]))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_DIAL).close()
    except OSError:
        return False
    return True
