"""The figures: each file here is one, found by its name.

A figure is a module with ``draw(study: Study) -> tuple[Figure, pd.DataFrame]``: what is drawn, and
the table of exactly that. To add one, add a file; a sweep names it in its ``figures``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from optlab.errors import ConfigError, listed, nearest

from ..curves import Study

Draw = Callable[[Study], tuple[Figure, pd.DataFrame]]


def names() -> list[str]:
    """The names of all figures."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def find(name: str) -> Draw:
    """The ``draw`` of the figure of that name. Raises ConfigError where there is none."""
    if name not in names():
        raise ConfigError(
            f"There is no figure '{name}'.{nearest(name, names())} "
            f"(analysis/figures has: {listed(name, names())})"
        )
    return importlib.import_module(f"{__name__}.{name}").draw
