"""Overrides of the command line, ``key=value`` in Hydra's syntax, as keys and plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from .errors import ConfigError, listed, nearest
from .paths import CONF

T = TypeVar("T")


def unique(pairs: Sequence[tuple[str, T]]) -> dict[str, T]:
    """The pairs as a dict; a key that is given twice is refused."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ConfigError(f"{key} is given {keys.count(key)} times; give it once.")
    return dict(pairs)


def config_loader() -> ConfigLoader:
    """Hydra's loader over conf/ and sweeps/, whether or not a Hydra app is running."""
    if not GlobalHydra.instance().is_initialized():
        initialize_config_dir(str(CONF), version_base="1.3")
    return GlobalHydra.instance().config_loader()


def is_group(key: str) -> bool:
    """Whether ``key`` names a config group (``optimizer``) and not a value (``optimizer.lr``)."""
    return "." not in key and (CONF / key).is_dir()


def options(group: str) -> list[str]:
    """The options of a config group."""
    return sorted(config_loader().get_group_options(group))


def check_option(group: str, option: str) -> None:
    """Raise unless ``group`` has ``option``."""
    known = options(group)
    if option not in known:
        raise ConfigError(
            f"{group} has no option '{option}'.{nearest(option, known)} "
            f"conf/{group}/ has: {listed(option, known)}."
        )


def parse(override: str) -> tuple[str, Any]:
    """Key and value of one command-line override that is not a sweep."""
    parsed = parse_override(override)
    if parsed.is_sweep_override():
        raise ConfigError(
            f"'{override}' stands for several runs: add -m to run them all (python launch.py -m)."
        )
    return str(parsed.key_or_group), plain(parsed.value())


def is_launcher_setting(word: str) -> bool:
    """Whether an override says where runs run, and not what they are.

    Options of sbatch are added (``+hydra.launcher.additional.reservation=night``): no file states
    them.
    """
    return word.startswith(("hydra.", "hydra/", "+hydra.launcher.additional."))


def parse_override(text: str) -> Override:
    """One override in Hydra's syntax; additions and deletions are refused.

    Raises:
        ConfigError: the text is no override, or it starts with ``+``, ``++`` or ``~``.
    """
    try:
        (override,) = OverridesParser.create(config_loader=config_loader()).parse_overrides([text])
    except HydraException as error:
        raise ConfigError(f"'{text}' is not an override such as optimizer.lr=0.1: {error}") from (
            error
        )
    if override.is_delete() or override.is_add() or override.is_force_add():
        raise ConfigError(
            f"'{text}' would change which keys a run has. A run has exactly the keys that the "
            f"files in conf/ state: change a value without the leading '{text[0]}', or add the "
            "key to its YAML file and to the code that reads it."
        )
    return override


def override_values(text: str) -> list[Any]:
    """The values that an override stands for: one, or those of commas, range() or glob()."""
    override = parse_override(text)
    if not override.is_sweep_override():
        return [plain(override.value())]
    try:
        return [plain(value) for value in override.sweep_iterator()]
    except HydraException as error:
        raise ConfigError(
            f"'{text}' is no list of values: use commas, range() or glob(), or a sweep file."
        ) from error


def plain(value: Any) -> Any:
    """A value of Hydra's override grammar as plain Python."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    return value
