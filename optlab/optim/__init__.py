"""Optimizers: steepest descent in any norm, and the few methods that do not fold into it."""

from .steepest import SteepestDescent

__all__ = ["SteepestDescent"]
