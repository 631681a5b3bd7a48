"""Composition of runs from the YAML files, their validation and their ids.

The YAML files are the schema: a key that no file states does not exist, and the type of its value
there is the type that an override must have.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from yaml import YAMLError

from .composed import recall, remember
from .errors import ConfigError, listed, nearest
from .overrides import check_option, config_loader, is_group, parse, unique
from .paths import CONF, ROOT
from .resources import check_keys

_PLAIN = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")
_DEEPEST = 100  # levels of a config and its interpolations
OUTSIDE_ID = ("runtime", "tracking")  # cannot change the numbers of a run

Tree = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class TrainConfig:
    """How long and how a run trains; the section ``train`` of a run's config.

    A field with a default here came later. Where it has that value, a run's config does not state
    it, and so the runs from before it keep their ids; the defaults here must never change.
    """

    steps: int
    batch_size: int
    eval_every: int
    diverged_after: int
    max_weight_growth: float
    clip_norm: float | None = None  # global l2 norm of the gradient; None: not clipped
    init_seed: int | None = None  # of the initial weights; None: the run's seed
    init: str = "default"  # of the weights; default: the model's own
    precision: str = "float32"  # of the forward pass and the loss


@dataclass(frozen=True)
class RuntimeConfig:
    """Where a run lives and what it may use; the section ``runtime``, outside of a run's id."""

    runs: str
    results: str
    device: str
    threads: int
    checkpoint_every: float  # seconds
    micro_batch: int | None = None  # samples of a forward pass, per process; None: all it has
    compile: bool = False  # torch.compile

    @property
    def runs_folder(self) -> Path:
        return ROOT / self.runs

    @property
    def results_folder(self) -> Path:
        return ROOT / self.results


# Keys that may be null, with an example of what else they may be: the YAML files do not show it.
_NULLABLE = {
    f"{section}.{each.name}": {"int | None": 1, "float | None": 1.0}[str(each.type)]
    for section, kind in (("train", TrainConfig), ("runtime", RuntimeConfig))
    for each in fields(kind)
    if each.default is None
}


@dataclass(frozen=True)
class TrackingConfig:
    """The mirror in Weights & Biases; the section ``tracking``, outside of a run's id."""

    mode: str
    project: str
    entity: str | None
    group: str | None  # None: the name of the sweep that launches the run
    tags: list[str]
    diagnostics_every: int  # steps


@dataclass(frozen=True)
class Settings:
    """All that is outside of a run's id."""

    runtime: RuntimeConfig
    tracking: TrackingConfig
    resources: Mapping[str, Any] = field(default_factory=dict)  # asked for by the parts' files


@dataclass(frozen=True)
class Run:
    """A resolved config and the options that composed it."""

    config: Mapping[str, Any]  # resolved; everything that can change the numbers
    choices: Mapping[str, str]  # Hydra group -> option, for labels only

    @cached_property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the config's canonical JSON."""
        text = json.dumps(self.config, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def method(self) -> str:
        return self.choices["optimizer"]

    @property
    def lr(self) -> float:
        return self.config["optimizer"]["lr"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def train(self) -> TrainConfig:
        return section(TrainConfig, self.config, "train")

    @property
    def name(self) -> str:
        """Short and sortable, such as ``muonmax_momo-lr0.1-s0``."""
        return f"{self.method}-lr{self.lr:g}-s{self.seed}"


def section(kind: type[T], tree: Mapping[str, Any], name: str) -> T:
    """The section ``name`` of a config as its dataclass; its keys must be the dataclass's."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in tree[name]:
        if key not in known:
            raise ConfigError(
                f"conf/config.yaml: {name} has no key '{key}'.{nearest(key, known)} "
                f"It has: {', '.join(known)}."
            )
    required = [each.name for each in fields(kind) if each.default is MISSING]  # type: ignore[arg-type]
    missing = [key for key in required if key not in tree[name]]
    if missing:
        raise ConfigError(f"conf/config.yaml: {name} lacks the key '{missing[0]}'.")
    return kind(**tree[name])


@dataclass(frozen=True)
class _Base:
    """What a combination of group options composes to, before any value is set."""

    tree: Tree  # interpolations as they stand
    resolved: Tree
    choices: dict[str, str]


class Composer:
    """Composes runs from overrides; each combination of group options goes through Hydra once."""

    def __init__(self) -> None:
        self._bases: dict[tuple[str, ...], _Base] = {}

    def run(self, point: Mapping[str, Any]) -> tuple[Run, Settings]:
        """The run that the overrides ``point`` (Hydra key -> value) stand for.

        Raises:
            ConfigError: an unknown option or key, a value of the wrong type, a run without sense.
        """
        groups = {key: value for key, value in point.items() if is_group(key)}
        base = self._base(tuple(f"{key}={value}" for key, value in groups.items()))
        tree = _copied(base.tree)
        for key, value in point.items():
            if key not in groups:
                set_value(tree, key, coerced(key, example(base.resolved, key), value))
        resolved = resolve(tree, base.choices)
        settings = Settings(
            section(RuntimeConfig, resolved, "runtime"),
            section(TrackingConfig, resolved, "tracking"),
            _take_resources(resolved, base.choices),
        )
        config = {key: value for key, value in resolved.items() if key not in OUTSIDE_ID}
        validate(config, settings, base.choices)
        return Run(without_neutral(config), base.choices), settings

    def _base(self, groups: tuple[str, ...]) -> _Base:
        if groups not in self._bases:
            known = recall(groups, CONF)
            if known is None:
                known = _compose(groups)
                remember(groups, CONF, known)
            tree, choices = known
            self._bases[groups] = _Base(tree, resolve(tree, choices), choices)
        return self._bases[groups]


def _take_resources(resolved: Tree, choices: Mapping[str, str]) -> Tree:
    """Remove ``resources`` from the sections of the groups; what they ask for together."""
    asked: Tree = {}
    for group, options in resolved.items():
        if isinstance(options, dict) and "resources" in options:
            request = options.pop("resources")
            check_keys(request, f"conf/{group}/{choices.get(group)}.yaml")
            asked.update(request)
    return asked


def without_neutral(config: Tree) -> Tree:
    """``config`` less the keys of ``train`` whose value changes nothing: see ``TrainConfig``."""
    neutral = {
        each.name: each.default for each in fields(TrainConfig) if each.default is not MISSING
    }
    train = {
        key: value
        for key, value in config["train"].items()
        if key not in neutral or value != neutral[key]
    }
    return {**config, "train": train}


def compose_run(overrides: Sequence[str]) -> tuple[Run, Settings]:
    """The one run that command-line overrides stand for."""
    return Composer().run(unique([parse(override) for override in overrides]))


def _compose(groups: tuple[str, ...]) -> list[Tree]:
    """The tree, interpolations as they stand, and the choices of a combination of options."""
    for group in groups:
        check_option(*group.split("=", 1))
    config_loader()
    try:
        cfg = compose("config", list(groups), return_hydra_config=True)
    except YAMLError as error:
        raise ConfigError(f"A file of conf/ is no valid YAML: {error}") from error
    except HydraException as error:
        detail = f" {error.__cause__}" if error.__cause__ else ""
        if "No match in the defaults list" in str(error):
            nested = [group for group in groups if "/" in group]
            parents = {group.split("/")[0] for group in nested}
            chosen = [group for group in groups if group.split("=")[0] in parents]
            raise ConfigError(
                f"{', '.join(nested)} is no choice of {', '.join(chosen) or 'the default method'}: "
                "its file has no such group in its defaults."
            ) from error
        raise ConfigError(f"The config cannot be composed: {error}{detail}") from error
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict) and isinstance(choices, dict)
    for key in ("hydra", "sweeps"):
        tree.pop(key, None)
    ours = {str(k): str(v) for k, v in choices.items() if "hydra" not in str(k) and k != "sweeps"}
    return [{str(key): value for key, value in tree.items()}, ours]


def _copied(node: Any) -> Any:
    """A copy of plain containers; ``copy.deepcopy`` takes ten times as long."""
    if isinstance(node, dict):
        return {key: _copied(value) for key, value in node.items()}
    return [_copied(value) for value in node] if isinstance(node, list) else node


def resolve(tree: Tree, choices: Mapping[str, str]) -> Tree:
    """``tree`` with its interpolations replaced by what they point to."""
    try:
        return {key: _plainly_resolved(value, tree, 0) for key, value in tree.items()}
    except _NotPlain:  # left to OmegaConf, which knows every form, and takes 10 ms a run
        return _resolved(tree, choices)


class _NotPlain(Exception):
    """An interpolation that is more than the name of another value, or leads nowhere."""


def _plainly_resolved(node: Any, tree: Tree, depth: int) -> Any:
    """``node`` of ``tree``, its interpolations of the form ``${section.key}`` replaced."""
    if depth > _DEEPEST:  # a cycle
        raise _NotPlain
    if isinstance(node, dict):
        return {key: _plainly_resolved(value, tree, depth + 1) for key, value in node.items()}
    if isinstance(node, list):
        return [_plainly_resolved(value, tree, depth + 1) for value in node]
    if not isinstance(node, str | int | float | None) or node == "???":
        raise _NotPlain
    if not isinstance(node, str) or ("${" not in node and "\\" not in node):
        return node
    match = _PLAIN.fullmatch(node)
    target: Any = tree
    for part in match[1].split(".") if match else [""]:
        if not isinstance(target, dict) or part not in target:
            raise _NotPlain
        target = target[part]
    return _plainly_resolved(target, tree, depth + 1)


def _resolved(tree: Tree, choices: Mapping[str, str]) -> Tree:
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(tree), resolve=True)
    except InterpolationKeyError as error:
        wanted = str(error).split("'")[1]  # Interpolation key 'dataset.context' not found
        user, owner = str(error.full_key).split(".")[0], wanted.split(".")[0]
        raise ConfigError(
            f"{user}={choices.get(user)} does not fit {owner}={choices.get(owner)}: "
            f"{error.full_key} is ${{{wanted}}}, and conf/{owner}/{choices.get(owner)}.yaml has "
            f"no such key. Choose another {user} or another {owner}."
        ) from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"The config cannot be resolved: {error}") from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def example(tree: Tree, key: str) -> Any:
    """The value that the YAML files give the dotted ``key``; it must exist."""
    node: Any = tree
    parent = ""
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            raise _unknown_key(tree, key, parent)
        node, parent = node[part], f"{parent}.{part}".lstrip(".")
    return node


def set_value(tree: Tree, key: str, value: Any) -> None:
    """Set the dotted ``key``, which exists, in ``tree``."""
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree[parent]
    tree[last] = value


def _unknown_key(tree: Tree, key: str, parent: str) -> ConfigError:
    known = list(_dotted(tree))
    last = key.rpartition(".")[2]
    named = [other for other in known if other.rpartition(".")[2] == last]
    if named:  # the right name in the wrong place, such as lr for optimizer.lr
        named.sort(key=lambda other: (other.count("."), other))
        hint = f" Did you mean '{named[0]}'?"
    else:
        hint = nearest(key, known)
    beside = [other for other in known if other.rpartition(".")[0] == parent]
    return ConfigError(
        f"There is no key '{key}'.{hint} "
        f"{parent or 'A run'} has: {listed(key, beside) or 'no keys below it'}."
    )


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def coerced(key: str, example: Any, value: Any) -> Any:
    """``value`` in the type of ``example``; an int may stand where a float is expected."""
    if isinstance(value, str) and value.startswith("${"):
        return value  # an interpolation
    if key in _NULLABLE:
        return _coerced_or_null(key, value)
    if type(value) is int and (example is None or isinstance(example, float)):
        return float(value)  # 1 and 1.0 are one run
    if example is None or type(value) is type(example):
        return value
    hint = ""
    if type(example) is int and isinstance(value, float):
        hint = f" If fractions make sense here, write its default as {float(example)!r}."
    raise ConfigError(
        f"{key} must be {_described(example)}, not {value!r} (its default is {example!r}).{hint}"
    )


def _coerced_or_null(key: str, value: Any) -> Any:
    example = _NULLABLE[key]
    if type(value) is int and isinstance(example, float):
        return float(value)
    if value is None or type(value) is type(example):
        return value
    raise ConfigError(f"{key} must be {_described(example)} or null, not {value!r}.")


def _described(example: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a word"}
    return names.get(type(example), f"a {type(example).__name__}")


def validate(config: Mapping[str, Any], settings: Settings, choices: Mapping[str, str]) -> None:
    """Raise for a run that composes but makes no sense."""
    for key, value in _leaves(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} must be a finite number, not {value}.")
    for group in ("model", "dataset", "optimizer", "schedule"):
        if not isinstance(config[group], Mapping) or "_target_" not in config[group]:
            raise ConfigError(f"conf/{group}/{choices[group]}.yaml states no _target_.")
    if not isinstance(config["optimizer"].get("lr"), float):
        raise ConfigError(
            f"conf/optimizer/{choices['optimizer']}.yaml must state lr, as a number such as 0.01."
        )
    if not config["optimizer"]["lr"] > 0:
        raise ConfigError(f"optimizer.lr must be above 0, not {config['optimizer']['lr']}.")
    train = section(TrainConfig, config, "train")
    for key in _NULLABLE:
        _coerced_or_null(
            key, example({"runtime": vars(settings.runtime), "train": vars(train)}, key)
        )
    _check_choice("train.init", train.init, ("default", "gpt2", "orthogonal", "mup"))
    _check_choice("train.precision", train.precision, ("float32", "bfloat16"))
    _check_seed("seed", config["seed"])
    if train.init_seed is not None:
        _check_seed("train.init_seed", train.init_seed)
    for each in fields(train):
        value = getattr(train, each.name)
        if type(value) in (int, float) and each.name != "init_seed" and not value > 0:
            raise ConfigError(f"train.{each.name} must be above 0, not {value}.")
    step_size = config["optimizer"].get("step_size") or {}
    if step_size.get("lower_bound", 0.0) is None:
        raise ConfigError(
            f"Momo (optimizer={choices['optimizer']}) needs a lower bound of the loss, and "
            f"conf/dataset/{choices['dataset']}.yaml states none (loss_lower_bound: null). Set one "
            "in nats, such as dataset.loss_lower_bound=0.0, or take a method without Momo."
        )
    if settings.runtime.threads < 1 or settings.runtime.checkpoint_every < 0:
        raise ConfigError(
            f"runtime.threads must be at least 1 and runtime.checkpoint_every at least 0, not "
            f"{settings.runtime.threads} and {settings.runtime.checkpoint_every}."
        )
    if settings.runtime.micro_batch is not None and settings.runtime.micro_batch < 1:
        raise ConfigError(
            "runtime.micro_batch must be a number of samples, or null for the whole batch, not "
            f"{settings.runtime.micro_batch}."
        )
    _check_choice("runtime.device", settings.runtime.device, ("auto", "cpu", "cuda"))
    _check_tracking(settings.tracking)


def _check_seed(key: str, seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ConfigError(f"{key} must be 0 or more and below 2^63, not {seed}.")


def _check_tracking(tracking: TrackingConfig) -> None:
    _check_choice("tracking.mode", tracking.mode, ("offline", "online", "off"))
    if not re.fullmatch(r"[^/\\#?%:]{1,128}", tracking.project):
        raise ConfigError(
            f"tracking.project must be 1 to 128 characters without / \\ # ? % :, not "
            f"'{tracking.project}'; the account or team is tracking.entity."
        )
    for tag in tracking.tags:
        if not isinstance(tag, str) or not 0 < len(tag) <= 64:
            raise ConfigError(f"tracking.tags must be words of 1 to 64 characters, not {tag!r}.")
    if tracking.diagnostics_every < 0:
        raise ConfigError(
            "tracking.diagnostics_every must be a number of steps, or 0 for the evaluations alone, "
            f"not {tracking.diagnostics_every}."
        )


def _check_choice(key: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{key} must be one of {', '.join(known)}, not '{value}'.")


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, value in items:
        if isinstance(value, Mapping | list):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
