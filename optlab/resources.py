"""What a job asks a cluster for; outside of a run's id, and the same for all runs of an array."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from .errors import ConfigError, nearest

Request = Mapping[str, Any]  # some of the keys of Resources, as a YAML file states them


@dataclass(frozen=True)
class Resources:
    """The request of one job. None leaves the choice to SLURM."""

    partition: str | None
    account: str | None
    qos: str | None
    time: int  # minutes
    nodes: int  # that a run's GPUs are spread over
    gpus_per_run: int
    cpus: int  # cores of a task; a job has one task per GPU of a run, at least one
    memory: str | None  # of a node, such as 16G
    constraint: str | None
    runs_per_job: int
    side_by_side: int  # runs of a job that train at the same time
    additional: str  # further options of sbatch, as JSON, so that requests can be compared

    @property
    def tasks_per_node(self) -> int:
        return max(1, self.gpus_per_run // self.nodes)

    @property
    def processes(self) -> int:
        """That train each run together."""
        return self.nodes * self.tasks_per_node

    @property
    def options(self) -> dict[str, Any]:
        """The ``additional`` options of sbatch."""
        return json.loads(self.additional)


KEYS = tuple(field.name for field in fields(Resources))
_WORDS = ("partition", "account", "qos", "constraint", "memory")
_COUNTS = {"nodes": 1, "gpus_per_run": 0, "cpus": 1, "runs_per_job": 1, "side_by_side": 1}


def check_keys(request: Any, where: str) -> None:
    """Raise unless ``request`` maps keys of ``Resources``; ``where`` is the file that states it."""
    if not isinstance(request, Mapping):
        raise ConfigError(
            f"{where}: resources must map keys to values, such as {{time: 120}}, not {request!r}."
        )
    for key in request:
        if key not in KEYS:
            raise ConfigError(
                f"{where}: resources has no key '{key}'.{nearest(str(key), KEYS)} "
                f"It has: {', '.join(KEYS)}."
            )


def resources(request: Request) -> Resources:
    """A complete request as ``Resources``.

    Raises:
        ConfigError: a value of the wrong type, or values that do not go together.
    """
    values = dict(request)
    for key in _WORDS:
        if values[key] is not None:
            values[key] = str(values[key])
    for key, least in _COUNTS.items():
        if type(values[key]) is not int or values[key] < least:
            raise ConfigError(
                f"{key} (hydra.launcher.{key}, or resources.{key} of a file) must be a whole "
                f"number of at least {least}, not {values[key]!r}."
            )
    additional = values["additional"] or {}
    if not isinstance(additional, Mapping):
        raise ConfigError(
            f"additional must map options of sbatch to values, such as {{reservation: night}}, "
            f"not {additional!r}."
        )
    values["additional"] = json.dumps(dict(additional), sort_keys=True)
    values["time"] = minutes(values["time"])
    made = Resources(**values)
    if made.gpus_per_run % made.nodes:
        raise ConfigError(
            f"gpus_per_run={made.gpus_per_run} cannot be spread evenly over nodes={made.nodes}."
        )
    if made.gpus_per_run > 1 and made.side_by_side > 1:
        raise ConfigError(
            f"side_by_side={made.side_by_side} shares a GPU between runs, and gpus_per_run="
            f"{made.gpus_per_run} gives one run several: choose one of the two."
        )
    if made.side_by_side > made.runs_per_job:
        raise ConfigError(
            f"side_by_side={made.side_by_side} runs cannot train at the same time in a job of "
            f"runs_per_job={made.runs_per_job}: raise runs_per_job."
        )
    return made


def minutes(value: Any) -> int:
    """A time limit in minutes, from minutes or SLURM's ``[days-]hours:minutes:seconds``."""
    if type(value) is int and value > 0:
        return value
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d)(?::(\d\d))?", str(value))
    if not match or (match[1] and match[4] is None and len(match[2]) > 2):
        raise ConfigError(
            f"time must be a number of minutes above 0, or a text such as '12:00:00' or "
            f"'1-12:00:00' (in quotes in a YAML file), not {value!r}."
        )
    days, first, second, third = (int(part or 0) for part in match.groups())
    if match[1] or match[4]:  # days-hours:minutes[:seconds], hours:minutes:seconds
        seconds = ((days * 24 + first) * 60 + second) * 60 + third
    else:  # minutes:seconds
        seconds = first * 60 + second
    if seconds < 60:
        raise ConfigError(f"time must be at least a minute, not {value!r}.")
    return seconds // 60
