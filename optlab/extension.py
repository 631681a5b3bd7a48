"""What a sweep was extended by: remembered beside its runs, merged in wherever it is loaded.

``runs/extensions/NAME.json`` lists the rounds of the sweep file ``sweeps/NAME.yaml``
(``NAME-SCALE.json`` those of its scales), each with the learning rates that it added to which
curve. A curve is known by the config of its runs, learning rate and seed aside, so what was found
for one setting never reaches another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .config import Composer
from .errors import ConfigError
from .overrides import is_group
from .store import write_bytes

LR = "optimizer.lr"


@dataclass(frozen=True)
class Addition:
    """What a round added to one curve."""

    curve: str  # see ``curve_id``
    method: str
    at: Mapping[str, Any]  # the curve's overrides, for the reader
    why: tuple[str, ...]
    lr: tuple[float, ...] = ()  # to be run with every seed
    certified: tuple[float, ...] = ()  # not to be run: they repeat the runs at ``by``
    by: float | None = None  # learning rate
    then: float | None = None  # learning rate at which the curve's second stage is run


@dataclass(frozen=True)
class Round:
    """One round of extension."""

    kind: str  # extend, refine, then
    time: str  # ISO
    additions: tuple[Addition, ...]


@dataclass(frozen=True)
class Extension:
    """All rounds of a sweep; none in a fresh store."""

    rounds: tuple[Round, ...] = ()

    def of(self, curve: str) -> list[Addition]:
        """What was added to a curve, round by round."""
        return [each for round_ in self.rounds for each in round_.additions if each.curve == curve]

    def spent(self, curve: str) -> int:
        """Rounds in which a curve was given points to run, refinement aside."""
        return sum(
            any(each.curve == curve and each.lr for each in round_.additions)
            for round_ in self.rounds
            if round_.kind == "extend"
        )

    def lr(self, curve: str) -> list[float]:
        """The learning rates that were added to a curve, ascending."""
        return sorted({lr for each in self.of(curve) for lr in each.lr})

    def then(self, curve: str) -> float | None:
        """The learning rate of a curve's second stage; the last that was chosen counts."""
        chosen = [each.then for each in self.of(curve) if each.then is not None]
        return chosen[-1] if chosen else None

    def certified(self, curve: str) -> dict[float, float]:
        """The certified learning rates of a curve, each with that of the runs that it repeats."""
        return {
            lr: each.by
            for each in self.of(curve)
            for lr in each.certified
            if each.by is not None and lr not in self.lr(curve)
        }


def path_of(root: Path, name: str) -> Path:
    """Where the store at ``root`` remembers the extension of a sweep file, at a scale of its own.

    ``name``: as ``Sweep.grows_as`` says it.
    """
    return root / "extensions" / f"{name}.json"


def read(path: Path) -> Extension:
    """The extension of a sweep; an empty one where there is no file.

    Raises:
        ConfigError: the file cannot be read, perhaps because somebody has edited it.
    """
    try:
        content = json.loads(path.read_text())
        return Extension(tuple(_round(each) for each in content["rounds"]))
    except FileNotFoundError:
        return Extension()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds no readable extension of a sweep ({type(error).__name__}: {error}). "
            "Mend it, or delete it: the sweep is then the one that its file declares, and no run "
            "is lost."
        ) from error


def write(path: Path, extension: Extension) -> None:
    """Write the extension, for programs and people to read; the file is whole or the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"sweep": path.stem, "rounds": [asdict(round_) for round_ in extension.rounds]}
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def _round(content: Mapping[str, Any]) -> Round:
    return Round(
        content["kind"], content["time"], tuple(_addition(each) for each in content["additions"])
    )


def _addition(content: Mapping[str, Any]) -> Addition:
    numbers: dict[str, Any] = {
        name: tuple(float(lr) for lr in content[name]) for name in ("lr", "certified")
    }
    then = content.get("then")
    numbers["then"] = None if then is None else float(then)
    return Addition(**{**content, **numbers, "why": tuple(content["why"])})


def curve_id(composer: Composer, point: Mapping[str, Any]) -> str:
    """What all runs of a curve share: the id of its run at learning rate 1 with seed 0.

    ``point``: the overrides of any of them.
    """
    return composer.run({**overrides_of(point), LR: 1.0, "seed": 0})[0].id


def overrides_of(point: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides among the axes of a block; what a block asks for besides is passed over."""
    return {
        key: value for key, value in point.items() if "." in key or key == "seed" or is_group(key)
    }


def without_lr(point: Mapping[str, Any]) -> dict[str, Any]:
    """The overrides that the points of a curve share."""
    return {key: value for key, value in point.items() if key not in (LR, "seed")}


class CurveIds:
    """``curve_id`` of many points, each curve composed once."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
        self._known: dict[str, str] = {}

    def __call__(self, point: Mapping[str, Any]) -> str:
        key = json.dumps(without_lr(point), sort_keys=True, default=str)
        if key not in self._known:
            self._known[key] = curve_id(self._composer, point)
        return self._known[key]
