"""Errors that a user causes and can mend: one message each, without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(Exception):
    """Bad user input: says what was expected, what was found and what to do."""


def nearest(name: str, options: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the option closest to ``name``, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(options), n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def listed(name: str, options: Iterable[str]) -> str:
    """The options, comma separated, those most like ``name`` first."""

    def distance(option: str) -> float:
        return -difflib.SequenceMatcher(None, name, option).ratio()

    return ", ".join(sorted(options, key=lambda option: (distance(option), option)))
