"""Scales of a sweep file: the same experiment at other sizes, chosen by ``scale=NAME``.

What a scale states under ``fixed`` is merged onto the file's: where it chooses another option of a
group (``dataset: mnist``), what the file fixes below that group (``dataset.context``) belongs to
the file's option and is left out. Every other key replaces the file's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import ConfigError, nearest
from .overrides import override_values, unique

KEY = "scale"
PAPER = "paper"  # the file itself


def split(overrides: Sequence[str]) -> tuple[str, list[str]]:
    """The scale that ``overrides`` choose ('' is the file itself), and the other overrides.

    Raises:
        ConfigError: several scales.
    """
    chosen = [word for word in overrides if names_scale(word)]
    unique([(KEY, word) for word in chosen])
    others = [word for word in overrides if word not in chosen]
    if not chosen:
        return "", others
    values = override_values(chosen[0])
    if len(values) > 1:
        raise ConfigError(f"'{chosen[0]}': launch one scale of a sweep at a time.")
    return ("" if values[0] == PAPER else str(values[0])), others


def names_scale(word: str) -> bool:
    """Whether an override chooses a scale."""
    return word.startswith(f"{KEY}=")


def refuse_without_file(overrides: Sequence[str]) -> None:
    """Raise for a scale where no sweep file is named."""
    for word in overrides:
        if names_scale(word):
            raise ConfigError(
                f"{word} chooses a scale of a sweep file: name the file too, as in "
                f"python launch.py -m sweeps=NAME {KEY}=mini."
            )


def scaled(
    content: Mapping[Any, Any], scale: str, keys: Sequence[str], where: str
) -> dict[Any, Any]:
    """The content of the sweep file ``where`` at a scale ('' is the file itself).

    ``keys``: that a scale may have. All scales are checked, whichever is chosen.

    Raises:
        ConfigError: an unknown scale, or scales that are not understood.
    """
    plain = {key: value for key, value in content.items() if key != "scales"}
    scales = _checked(content.get("scales"), keys, where)
    if not scale:
        return plain
    if not scales:
        raise ConfigError(f"{where} has no scales, so {KEY}={scale} means nothing there.")
    if scale not in scales:
        raise ConfigError(
            f"{where} has no scale '{scale}'.{nearest(scale, scales)} It has: "
            f"{', '.join([PAPER, *scales])}."
        )
    changes = scales[scale]
    return {**plain, **changes, "fixed": _merged(plain.get("fixed"), changes.get("fixed") or {})}


def _merged(fixed: Any, changes: Mapping[Any, Any]) -> Any:
    """What the file fixes, and what the scale does."""
    if not isinstance(fixed, dict):
        return changes if fixed is None else fixed  # which is refused where it is read
    chosen = [f"{key}." for key in changes if fixed.get(key, changes[key]) != changes[key]]
    kept = {key: value for key, value in fixed.items() if not str(key).startswith(tuple(chosen))}
    return {**kept, **changes}


def _checked(scales: Any, keys: Sequence[str], where: str) -> dict[str, dict[Any, Any]]:
    if scales is None:
        return {}
    if not isinstance(scales, dict) or not all(isinstance(each, dict) for each in scales.values()):
        raise ConfigError(
            f"{where}: scales must map names to what they change, such as "
            f"{{mini: {{fixed: {{train.steps: 100}}}}}}, not {scales!r}."
        )
    if PAPER in scales:
        raise ConfigError(f"{where}: the scale '{PAPER}' is the file itself; name another.")
    for name, changes in scales.items():
        for key in changes:
            if key not in keys:
                raise ConfigError(
                    f"{where}: the scale '{name}' has the unknown key '{key}'."
                    f"{nearest(str(key), keys)} It may have: {', '.join(keys)}."
                )
        if not isinstance(changes.get("fixed") or {}, dict):
            raise ConfigError(
                f"{where}: fixed of the scale '{name}' must map override keys to values, not "
                f"{changes['fixed']!r}."
            )
    return {str(name): changes for name, changes in scales.items()}
