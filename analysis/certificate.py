"""What the grid of a curve leaves open: the certificate that stands beside every number of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from optlab.extend import Decision, Ending, Points, account, decide

from . import kernels
from .compared import USABLE, Usable
from .curves import Curve
from .robustness import best

_ANY = 2  # points per decade: only where a grid would grow to depends on it, not whether


@dataclass(frozen=True)
class Certificate:
    """How a curve's grid ends on either side of its basin (see ``optlab.extend``)."""

    method: str
    label: str
    setting: str
    best_lr: float  # NaN where nothing was learned
    waiting: bool  # for runs that are not done: nothing else is known
    left: Ending | None  # None while waiting
    right: Ending | None
    left_censored: bool  # the basin goes on beyond the edge of what was run
    right_censored: bool
    certified: int  # points that were not run: they would repeat the run at ``certified_from``
    certified_from: float  # the largest learning rate that was run; NaN where none is certified
    sentences: tuple[str, ...]  # what is censored or certified, in words

    @property
    def complete(self) -> bool:
        """Whether neither the optimum nor the basin is cut off by the grid or a hole."""
        return not (self.waiting or self.left_censored or self.right_censored)


def certify(curve: Curve, rule: Usable = USABLE) -> Certificate:
    """The certificate of a curve, from its points alone; ``rule`` says what its basin is."""
    points = _points(curve)
    decision = decide(
        points,
        guard=1,
        per_decade=_ANY,
        top=lambda best, initial: kernels.top(best, initial, rule.q, rule.level),
    )
    certified = int(curve.certified.sum())
    return Certificate(
        method=curve.method,
        label=curve.label,
        setting=curve.setting,
        best_lr=math.nan if decision.best is None else points.lr[decision.best],
        waiting=decision.waiting,
        left=decision.left.ending if decision.left else None,
        right=decision.right.ending if decision.right else None,
        left_censored=bool(decision.left and decision.left.censored),
        right_censored=bool(decision.right and decision.right.censored),
        certified=certified,
        certified_from=points.lr[-1] if certified else math.nan,
        sentences=_sentences(decision, points),
    )


def summary(curves: Sequence[Curve], rule: Usable = USABLE) -> str:
    """The certificates of all curves in a line; '' without curves."""
    if not curves:
        return ""
    optima = [best(curve) for curve in curves]
    inside = sum(optimum is not None and optimum.where == "interior" for optimum in optima)
    whole = sum(certify(curve, rule).complete for curve in curves)
    of = f"{len(curves)} curve{'s' if len(curves) > 1 else ''}"
    return f"optimum inside the grid for {inside} of {of}, usable range not cut off for {whole}"


def table(curves: Sequence[Curve], rule: Usable = USABLE) -> pd.DataFrame:
    """One row per curve with the fields of ``Certificate``, '' for None; the sentences as a text.

    ``complete`` is its property.
    """
    rows = [certify(curve, rule) for curve in curves]
    columns = [*(field.name for field in fields(Certificate)), "complete"]
    found = pd.DataFrame(
        [[getattr(row, name) for name in columns] for row in rows], columns=columns
    )
    return found.assign(
        left=[row.left or "" for row in rows],
        right=[row.right or "" for row in rows],
        sentences=["; ".join(row.sentences) for row in rows],
    )


def _points(curve: Curve) -> Points:
    """The points that were run; those that are certified say only that the last one certifies."""
    drawn = curve.certified.any(axis=1)
    run = np.flatnonzero(~drawn)
    last_certifies = bool(drawn.any())
    return Points(
        lr=curve.lr[run].tolist(),
        loss=curve.mean[run].tolist(),
        initial=curve.ceiling,
        diverged=(curve.n_diverged > 0)[run].tolist(),
        ceiling=curve.capped[run].tolist(),
        done=(curve.n == curve.planned)[run].tolist(),
        certified=[last_certifies and i == run[-1] for i in run],
    )


def _sentences(decision: Decision, points: Points) -> tuple[str, ...]:
    ends = {"left": decision.left, "right": decision.right}
    told = [name for name, side in ends.items() if side and _is_told(side.ending)]
    return tuple(words for words in account(decision, points) if words.split(":")[0] in told)


def _is_told(ending: Ending) -> bool:
    return ending in ("open", "limit", "certified")
