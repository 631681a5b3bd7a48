"""A sweep: a YAML file, or a command line, that stands for a set of runs.

``fixed`` overrides hold for every run; ``grid`` is a list of blocks, each the product of its axes,
and the sweep is the union of the blocks; every point is run with every one of the ``seeds``.
``then`` states the axes of a second stage, which each curve is given at its best learning rate.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from . import extension as extensions
from .certify import Certified
from .config import OUTSIDE_ID, Composer, Run, Settings
from .errors import ConfigError, nearest
from .extend import Extend, grid_point, parse_extend
from .extension import LR, CurveIds, overrides_of, without_lr
from .overrides import check_option, is_group, override_values, parse_override, unique
from .paths import ROOT
from .resources import Request, check_keys
from .scale import refuse_without_file, scaled
from .scale import split as split_scale

DEFAULT = "demo"
FIGURES = ROOT / "analysis" / "figures"
_SCALE_KEYS = ("fixed", "grid", "seeds", "figures", "resources", "budget", "extend", "then")
_KEYS = (*_SCALE_KEYS, "scales")
_RESOURCES = "resources"  # of a block; travels as an axis of one value, which is no override
_THEN = "then"  # of a block: the axes of its second stage; travels likewise
_STAGE = "stage"  # of a block of the second stage: what its curve shares, and its axes
_BESIDE = (_RESOURCES, _THEN, _STAGE)  # no overrides
_GPU_HOURS = "budget.gpu_hours"  # as an override; says nothing about the runs
_LOG_KEYS = ("log10", "per_decade")
_BY = "by"  # of a certified point: the learning rate of the run that it repeats; no override

Axes = dict[str, list[Any]]  # override key -> values; the product of the axes is a block of runs
Point = dict[str, Any]  # override key -> value


@dataclass(frozen=True)
class Second:
    """A run of the second stage; the first stage may have it too."""

    run: Run
    curve: Point  # what its curve of the first stage shares, learning rate and seed aside
    axes: Point  # what the second stage varies


@dataclass(frozen=True)
class Sweep:
    """A named set of runs, without duplicates, seed by seed."""

    name: str
    command: str  # the words after ``python launch.py -m`` that launch it
    runs: tuple[Run, ...]
    points: tuple[Point, ...]  # the overrides that each run stands for, parallel to ``runs``
    figures: tuple[str, ...]
    settings: Settings
    notes: tuple[str, ...] = ()  # what a reader of the sweep should know
    resources: tuple[Request, ...] = ()  # asked for by each run's files, parallel to ``runs``
    budget: float | None = None  # GPU-hours that the sweep may cost in all; None: any number
    file: str = ""  # that it grows with, below sweeps/; '' where the command line states the lrs
    scale: str = ""  # of the file; '' is the file itself
    extend: Extend | None = None  # how its grids of learning rates grow; None: they stay
    certified: tuple[Certified, ...] = ()  # not among ``runs``: need not be trained
    certified_points: tuple[Point, ...] = ()  # parallel to ``certified``
    only: frozenset[str] | None = None  # ids of the runs that a launch may start; None: all
    then: tuple[Axes, ...] = ()  # axes of the second stage, parallel to ``runs``; {} for none
    second: tuple[Second, ...] = ()  # as far as its learning rates are chosen; among ``runs``
    first_ids: frozenset[str] = frozenset()  # of the runs of the first stage

    @property
    def grows_as(self) -> str:
        """The name under which the store remembers how the sweep has grown."""
        return _scaled_name(self.file, self.scale)

    @property
    def in_stages(self) -> bool:
        """Whether some of its curves have a second stage."""
        return any(self.then)

    @property
    def words(self) -> str:
        """What names the file and its scale behind ``python -m optlab COMMAND``."""
        return f"{self.file} scale={self.scale}" if self.scale else self.file


@dataclass(frozen=True)
class _Declared:
    blocks: list[Axes]
    figures: tuple[str, ...]
    budget: float | None
    extend: Extend | None


def load(name: str, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep that ``sweeps/name.yaml`` declares, restricted or changed by ``overrides``.

    ``scale=NAME`` takes the file at that scale (see ``scale``).
    An override of a group (``optimizer=scion``) selects among the options that the file names;
    an override of a value (``optimizer.lr=0.1``, ``seed=range(0,5)``) replaces the file's values.
    Learning rates that the sweep was extended by (see ``extension``) are part of it, unless an
    override states the learning rates.

    Raises:
        ConfigError: no such sweep or scale, an unknown key, an empty grid, runs that cannot be
            composed.
    """
    check_sweep(name)
    path = ROOT / "sweeps" / f"{name}.yaml"
    scale, of_runs = split_scale(overrides)
    declared = _declared(path, scale)
    changes, outside = _split(of_runs)
    blocks = _changed(declared.blocks, changes, f"sweeps/{name}.yaml")
    chosen = [f"scale={scale}"] if scale else []
    command = shlex.join([f"sweeps={name}", *chosen, *of_runs])

    composer = Composer()
    scaled_name = _scaled_name(name, scale)
    if LR in changes:
        blocks = [{key: block[key] for key in block if key != _THEN} for block in blocks]
    _check_second(blocks, composer, f"sweeps/{name}.yaml")
    added, certified, second = _extension(scaled_name, blocks, changes, outside, composer)
    where, figures = f"sweeps/{name}.yaml", declared.figures
    all_blocks, outside = [*blocks, *added, *second], {_GPU_HOURS: declared.budget, **outside}
    suffixed = _suffixed(scaled_name, changes)
    sweep = _compose(suffixed, command, where, all_blocks, figures, outside, composer)
    if LR in changes:
        return sweep
    sweep = replace(sweep, file=name, scale=scale, extend=declared.extend)
    sweep = _with_stages(sweep)
    return _with_certified(sweep, composer, certified, sum(len(_product(block)) for block in added))


def _extension(
    name: str, blocks: list[Axes], changes: Axes, outside: Point, composer: Composer
) -> tuple[list[Axes], list[Point], list[Axes]]:
    """Blocks of what the sweep was extended by, the points that are certified, the second stage.

    Of its own curves: what was added to others, under other overrides, is not this sweep's.
    """
    _, settings = composer.run({k: v for k, v in outside.items() if k != _GPU_HOURS})
    extension = extensions.read(extensions.path_of(settings.runtime.runs_folder, name))
    if not extension.rounds or LR in changes:
        return [], [], []
    curve_id = CurveIds(composer)
    added: list[Axes] = []
    certified: list[Point] = []
    second: list[Axes] = []
    for block in [block for block in blocks if LR in block]:
        for curve in _product({**block, LR: [None], "seed": [None]}):
            of_curve = curve_id(_overrides(curve))
            axes = {**{key: [value] for key, value in curve.items()}, "seed": block["seed"]}
            lr = [lr for lr in extension.lr(of_curve) if lr not in block[LR]]
            added += [{**axes, LR: lr}] if lr else []
            for lr, by in extension.certified(of_curve).items():
                points = map(_overrides, _product({**axes, LR: [lr]}))
                certified += [{**point, _BY: by} for point in points]
            chosen, then = extension.then(of_curve), curve.get(_THEN)
            if chosen is not None and then:
                first = {key: axes[key] for key in axes if key != _THEN}
                stage = (without_lr(_overrides(curve)), tuple(then))
                second.append({**first, LR: [chosen], **then, _STAGE: [stage]})
    return added, certified, second


def _overrides(point: Point) -> Point:
    return {key: value for key, value in point.items() if key not in _BESIDE}


def _check_second(blocks: list[Axes], composer: Composer, where: str) -> None:
    """Refuse a second stage that cannot be composed before the first one has started."""
    for block in blocks:
        first = next(iter(_product(block)))
        for axes in _product(first.get(_THEN, {})) if _THEN in first else []:
            try:
                composer.run({**_overrides(first), **axes})
            except ConfigError as error:
                raise ConfigError(f"{where}, under {_THEN}: {error}") from error


def _with_stages(sweep: Sweep) -> Sweep:
    """The sweep with a note on its second stage."""
    if not sweep.in_stages:
        return sweep
    keys = ", ".join(dict.fromkeys(key for axes in sweep.then for key in axes))
    count = len(sweep.runs) - len(sweep.first_ids)
    note = f"A second stage, over {keys}, follows at the best learning rate of each curve."
    if sweep.second:
        note = f"{count} of its runs are a second stage, over {keys}, at the best learning rates."
    return replace(sweep, notes=(*sweep.notes, note))


def _with_certified(sweep: Sweep, composer: Composer, points: list[Point], added: int) -> Sweep:
    """The sweep with its certified runs, and notes on what was not declared."""
    certified: dict[str, tuple[Point, Certified]] = {}
    for point in points:
        by = point.pop(_BY)
        run, _ = composer.run(overrides_of(point))
        source, _ = composer.run({**overrides_of(point), LR: by})
        certified[run.id] = (overrides_of(point), Certified(run, source))
    for run in sweep.runs:  # declared or added after all
        certified.pop(run.id, None)
    notes = [f"{added} of its runs were added by python -m optlab extend."] if added else []
    if certified:
        notes.append(f"{len(certified)} more are certified: they would repeat others bit by bit.")
    return replace(
        sweep,
        notes=(*sweep.notes, *notes),
        certified=tuple(each for _, each in certified.values()),
        certified_points=tuple(point for point, _ in certified.values()),
    )


def ad_hoc(overrides: Sequence[str]) -> Sweep:
    """The product of command-line overrides in Hydra's sweep syntax."""
    refuse_without_file(overrides)
    changes, outside = _split(overrides)
    return _compose(
        _suffixed("adhoc", changes),
        shlex.join(overrides),
        "The command line",
        [changes],
        ("lr_sensitivity",),
        outside,
        Composer(),
    )


def from_arguments(arguments: Sequence[str]) -> Sweep:
    """The sweep of a command line: ``sweeps=NAME``, else an ad-hoc one, else ``demo``."""
    named = [argument for argument in arguments if argument.startswith("sweeps=")]
    overrides = [argument for argument in arguments if argument not in named]
    if named:
        return load(named[-1].removeprefix("sweeps="), overrides)
    axes, _ = _split(overrides)
    return ad_hoc(overrides) if axes else load(DEFAULT, overrides)


def check_sweep(name: str) -> None:
    """Raise unless ``sweeps/name.yaml`` exists."""
    if (ROOT / "sweeps" / f"{name}.yaml").is_file():
        return
    known = known_sweeps()
    of_file = re.fullmatch(r"(.+)-[0-9a-f]{6}", name)
    if of_file and (of_file[1] == "adhoc" or of_file[1] in known):
        words = "KEY=VALUE ..." if of_file[1] == "adhoc" else f"{of_file[1]} KEY=VALUE ..."
        raise ConfigError(
            f"There is no file '{name}' in sweeps/: a launch with overrides has that name. In its "
            f"place, repeat what was launched: {words}"
        )
    raise ConfigError(
        f"There is no sweep '{name}'.{nearest(name, known)} sweeps/ has: {', '.join(known)}."
    )


def known_sweeps() -> list[str]:
    """The files of sweeps/, as they are named on the command line."""
    folder = ROOT / "sweeps"
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def _declared(path: Path, scale: str) -> _Declared:
    """The blocks of a sweep file at a scale, ``fixed`` and ``seeds`` among their axes."""
    where = f"sweeps/{path.relative_to(ROOT / 'sweeps')}"
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (OmegaConfBaseException, YAMLError, OSError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where} must hold the keys {', '.join(_KEYS)}.")
    for key in content:
        if key not in _KEYS:
            raise ConfigError(
                f"{where} has the unknown key '{key}'.{nearest(str(key), _KEYS)} "
                f"A sweep file may have: {', '.join(_KEYS)}."
            )
    content = scaled(content, scale, _SCALE_KEYS, where)
    fixed = content.get("fixed") or {}
    if not isinstance(fixed, dict):
        raise ConfigError(f"{where}: fixed must map override keys to values, not {fixed!r}.")
    for key, value in fixed.items():
        _refuse_setting(str(key), where)
        _refuse_nested(str(key), value, f"{where}: fixed")
    fixed = {str(key): [value] for key, value in fixed.items()}
    seeds = {"seed": _seeds(content.get("seeds", 1), where)}
    grid = content.get("grid") or []
    if not isinstance(grid, list):
        raise ConfigError(f"{where}: grid must be a list of blocks, not {grid!r}.")
    if not grid:
        raise ConfigError(f"{where}: the grid is empty. State at least one block under 'grid'.")
    shared = _resources(content.get(_RESOURCES), where)
    then = _then(content.get(_THEN), where)
    axes = [_axes(block, where, shared, then) for block in grid]
    _refuse_unused(fixed, axes, where)
    blocks = [{**fixed, **block, **seeds} for block in axes]
    if any(_THEN in block and LR not in block for block in blocks):
        raise ConfigError(
            f"{where}: a second stage ('{_THEN}') follows at the best learning rate, so its block "
            f"needs the axis '{LR}'."
        )
    extend = None if content.get("extend") is None else parse_extend(content["extend"], where)
    if extend and not any(LR in block for block in blocks):
        raise ConfigError(f"{where}: extend has nothing to extend: no block has the axis '{LR}'.")
    figures = _figures(content.get("figures") or ["lr_sensitivity"], where)
    if any("seed" in each for each in (fixed, *axes)):
        raise ConfigError(
            f"{where}: seeds have a key of their own, beside fixed and grid, such as seeds: 3 or "
            "seeds: [7]; take 'seed' out of the others."
        )
    return _Declared(blocks, figures, _budget(content.get("budget"), where), extend)


def _figures(value: Any, where: str) -> tuple[str, ...]:
    known = [path.stem for path in FIGURES.glob("*.py") if path.stem != "__init__"]
    if not isinstance(value, list):
        raise ConfigError(f"{where}: figures must be a list, such as [lr_sensitivity].")
    for name in value:
        if name not in known:
            raise ConfigError(
                f"{where}: there is no figure '{name}'.{nearest(str(name), known)} "
                f"analysis/figures/ has: {', '.join(sorted(known))}."
            )
    return tuple(value)


def _budget(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, dict) or list(value) != ["gpu_hours"]:
        raise ConfigError(f"{where}: budget must be {{gpu_hours: number}}, not {value!r}.")
    return _gpu_hours(value["gpu_hours"], where)


def _gpu_hours(value: Any, where: str) -> float | None:
    if value is not None and (type(value) not in (int, float) or not 0 <= value < math.inf):
        raise ConfigError(
            f"{where}: budget.gpu_hours must be a number of at least 0, or null for no budget, "
            f"not {value!r}."
        )
    return value


def _seeds(value: Any, where: str) -> list[int]:
    seeds = list(range(value)) if type(value) is int else value
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise ConfigError(f"{where}: seeds must be a count above 0 or a list, not {value!r}.")
    _refuse_repeated(seeds, f"{where}: seeds")
    return seeds


def _refuse_repeated(values: Sequence[Any], what: str) -> None:
    """Raise where a value stands twice; 1 and 1.0 are one value, 1 and true are two."""
    for index, value in enumerate(values):
        for other in values[:index]:
            if value == other and isinstance(value, bool) == isinstance(other, bool):
                raise ConfigError(f"{what} states {value!r} more than once: state it once.")


def _refuse_unused(fixed: Axes, blocks: Sequence[Axes], where: str) -> None:
    """Raise for a fixed value that no run would have."""
    for key in fixed:
        if all(key in block for block in blocks):
            raise ConfigError(
                f"{where}: '{key}' is fixed, and an axis of every block of the grid, so that no "
                "run would have the fixed value: state it in one of the two."
            )


def _refuse_nested(key: str, value: Any, what: str) -> None:
    """Raise for a section with keys below it in the place of dotted keys."""
    if "." not in key and isinstance(value, dict):
        inner, example = next(iter(value.items()), ("KEY", "VALUE"))
        raise ConfigError(
            f"{what} states {key} with keys below it. Overrides have dotted keys: write "
            f"{key}.{inner}: {example}."
        )


def _resources(value: Any, where: str) -> Request:
    if value is None:
        return {}
    check_keys(value, where)
    return value


def _then(value: Any, where: str) -> Axes:
    """The axes of a second stage; none where nothing is stated."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not value:
        raise ConfigError(
            f"{where}: {_THEN} must map the axes of the second stage to values, such as "
            f"{{optimizer.norms.matrix.scale: [1, 4]}}, not {value!r}."
        )
    for key in map(str, value):
        if key in (LR, "seed", "optimizer"):
            raise ConfigError(
                f"{where}: {key} is no axis of a second stage, which has one method, the best "
                "learning rate of its curve and all seeds."
            )
        _refuse_setting(key, where)
    return {str(key): _values(str(key), values, where) for key, values in value.items()}


def _axes(block: Any, where: str, shared: Request, then: Axes) -> Axes:
    if not isinstance(block, dict) or not block:
        raise ConfigError(
            f"{where}: the grid has a block without axes ({block!r}); state some, such as "
            "'optimizer: [adamw]' and 'optimizer.lr: {log10: [-4, 0], per_decade: 2}'."
        )
    asked = {**shared, **_resources(block.get(_RESOURCES), where)}
    second = _then(block[_THEN], where) if _THEN in block else then
    axes = {str(key): value for key, value in block.items() if key not in (_RESOURCES, _THEN)}
    for key in axes:
        _refuse_setting(key, where)
    values = {key: _values(key, value, where) for key, value in axes.items()}
    beside = {_RESOURCES: [asked] if asked else [], _THEN: [second] if second else []}
    return {**values, **{key: value for key, value in beside.items() if value}}


def _refuse_setting(key: str, where: str) -> None:
    if key.split(".")[0] in OUTSIDE_ID:
        raise ConfigError(
            f"{where}: {key} cannot change the numbers of a run, so it has no place in a sweep: "
            "give it on the command line."
        )


def _values(key: str, value: Any, where: str) -> list[Any]:
    if isinstance(value, dict):
        return _log_grid(key, value, where)
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ConfigError(f"{where}: the axis '{key}' is empty, so its block stands for no run.")
    _refuse_repeated(values, f"{where}: the axis '{key}'")
    return values


def _log_grid(key: str, value: Mapping[Any, Any], where: str) -> list[float]:
    if sorted(map(str, value)) != sorted(_LOG_KEYS):
        _refuse_nested(key, value, f"{where}: a block of the grid")
        raise ConfigError(
            f"{where}: the axis '{key}' must be a list of values or "
            f"{{log10: [low, high], per_decade: n}}, not {dict(value)!r}."
        )
    ends, per_decade = value["log10"], value["per_decade"]
    numbers = ends if isinstance(ends, list) else []
    whole = type(per_decade) is int and per_decade > 0
    if len(numbers) != 2 or not all(type(n) in (int, float) for n in numbers) or not whole:
        raise ConfigError(
            f"{where}: the axis '{key}' must be {{log10: [low, high], per_decade: n}} with two "
            f"exponents and a count above 0, not {dict(value)!r}."
        )
    if numbers[0] > numbers[1]:
        raise ConfigError(
            f"{where}: the axis '{key}' must rise, and log10: {numbers} falls: write "
            f"[{numbers[1]}, {numbers[0]}]."
        )
    return log_grid(numbers[0], numbers[1], per_decade)


def log_grid(low: float, high: float, per_decade: int) -> list[float]:
    """The points 10^(k / per_decade) between 10^low and 10^high, in four significant digits.

    Grids of the same spacing share their points wherever they begin, so extending one adds runs
    and repeats none.
    """
    first, last = round(low * per_decade), round(high * per_decade)
    if first > last:
        raise ConfigError(f"A log grid must rise: log10: [{low}, {high}] is empty.")
    return [grid_point(k, per_decade) for k in range(first, last + 1)]


def _split(overrides: Sequence[str]) -> tuple[Axes, Point]:
    """Overrides that change runs, as axes, and those outside of a run's id, as values."""
    axes: Axes = {}
    outside: Point = {}
    given = unique([(str(parse_override(text).key_or_group), text) for text in overrides])
    for key, text in given.items():
        values = override_values(text)
        if key.split(".")[0] not in (*OUTSIDE_ID, "budget"):
            axes[key] = values
        elif len(values) == 1:
            outside[key] = values[0]
        else:
            raise ConfigError(f"'{text}': {key} cannot change the numbers, so it is no axis.")
    return axes, outside


def _changed(blocks: list[Axes], changes: Axes, where: str) -> list[Axes]:
    """The blocks with every change applied: groups select, values replace."""
    for key, values in changes.items():
        if is_group(key):
            for value in values:
                _check_selected(key, value, blocks, where)
            blocks = [selected for block in blocks if (selected := _select(block, key, values))]
        else:
            blocks = [_replaced(block, key, values) for block in blocks]
    return blocks


def _replaced(block: Axes, key: str, values: list[Any]) -> Axes:
    """The block with the values of one axis, which may be one of its second stage."""
    (then,) = block.get(_THEN, [{}])
    if key in then:
        return {**block, _THEN: [{**then, key: values}]}
    return {**block, key: values}


def _select(block: Axes, key: str, values: list[Any]) -> Axes | None:
    kept = [value for value in block.get(key, values) if value in values]
    return {**block, key: kept} if kept else None


def _check_selected(key: str, value: Any, blocks: list[Axes], where: str) -> None:
    check_option(key, value)
    offered = {str(option) for block in blocks for option in block.get(key, [value])}
    if value not in offered:
        raise ConfigError(
            f"{where} has no run with {key}={value}; it has: {', '.join(sorted(offered))}. "
            "Add it to the sweep's grid, where it needs its own learning rates."
        )


def _suffixed(name: str, changes: Axes) -> str:
    """Changed sweeps get a name of their own, so that they never overwrite each other's results."""
    if not changes:
        return name
    digest = hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:6]
    return f"{name}-{digest}"


def _scaled_name(name: str, scale: str) -> str:
    """The name of a file's sweep at a scale; one that another file has is refused."""
    if not scale:
        return name
    if (ROOT / "sweeps" / f"{name}-{scale}.yaml").is_file():
        raise ConfigError(
            f"sweeps/{name}-{scale}.yaml and the scale '{scale}' of sweeps/{name}.yaml would both "
            "be the sweep of that name: rename one of them."
        )
    return f"{name}-{scale}"


def _compose(
    name: str,
    command: str,
    where: str,
    blocks: list[Axes],
    figures: tuple[str, ...],
    outside: Point,
    composer: Composer,
) -> Sweep:
    points = [point for block in blocks for point in _product(block)]
    budget = _gpu_hours(outside.pop(_GPU_HOURS, None), "The command line")
    problems: Counter[str] = Counter()
    twins: Counter[tuple[str, str]] = Counter()
    runs: dict[str, tuple[Run, Point, Settings, Request, Axes, bool]] = {}
    second: dict[str, Second] = {}
    for point in points:
        asked, then = point.pop(_RESOURCES, {}), point.pop(_THEN, {})
        stage = point.pop(_STAGE, None)
        try:
            run, settings = composer.run({**point, **outside})
        except ConfigError as error:
            problems[str(error)] += 1
        else:
            item = (run, point, settings, {**settings.resources, **asked}, then, stage is None)
            if stage is not None:
                curve, keys = stage
                second[run.id] = Second(run, curve, {key: point[key] for key in keys})
            first, *_ = runs.setdefault(run.id, item)
            if first.choices != run.choices:
                twins[_options(first), _options(run)] += 1
    if problems:
        raise ConfigError(_summary(problems, len(points), where))
    # Seed by seed, so that a partial sweep already holds whole curves.
    ordered = sorted(runs.values(), key=lambda item: item[0].seed)
    return Sweep(
        name,
        command,
        tuple(run for run, *_ in ordered),
        tuple(point for _, point, *_ in ordered),
        figures,
        _grouped(ordered[0][2], name),
        tuple(
            f"{count} runs of {other} have the config of {first}: they are the same runs, and "
            f"stand once, as {first}."
            for (first, other), count in twins.items()
        ),
        tuple(asked for _, _, _, asked, _, _ in ordered),
        budget,
        then=tuple(then for *_, then, _ in ordered),
        second=tuple(second[run.id] for run, *_ in ordered if run.id in second),
        first_ids=frozenset(run.id for run, *_, first in ordered if first),
    )


def _grouped(settings: Settings, name: str) -> Settings:
    """``settings`` with the sweep's name as the group of its runs in W&B, unless another is set."""
    tracking = settings.tracking
    return replace(settings, tracking=replace(tracking, group=tracking.group or name))


def _options(run: Run) -> str:
    return " ".join(f"{group}={option}" for group, option in sorted(run.choices.items()))


def _product(block: Axes) -> list[Point]:
    return [dict(zip(block, values, strict=True)) for values in itertools.product(*block.values())]


def _summary(problems: Counter[str], total: int, where: str) -> str:
    if total == 1:
        return next(iter(problems))
    lines = [f"{count} of {total} runs: {text}" for text, count in problems.most_common()]
    return f"{where}: {sum(problems.values())} of {total} runs cannot be composed.\n" + "\n".join(
        f"  {line}" for line in lines
    )
