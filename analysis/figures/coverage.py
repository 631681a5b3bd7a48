"""What a sweep has and what it lacks: rows of methods, columns of learning rates, a box per run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path

from ..curves import Curve, Study, is_diverged
from ..layout import WIDTH, CannotDraw, certified, lr_columns, note
from ..tables import lr_text

# face, hatch: dark where there is a result, light and hatched where there is none
LOOKS = {
    "finished": ("#0072B2", ""),
    "at chance": ("#56B4E9", "----"),
    "diverged": ("#222222", ""),
    "certified": ("#009E73", "||"),  # not trained: known to repeat another run bit by bit
    "failed": ("#D55E00", "xxxx"),
    "lost": ("#E69F00", "++++"),
    "preempted": ("#F6DFA9", "\\\\\\\\"),
    "running": ("#D9EAD3", "////"),
    "queued": ("#EEEEEE", "||||"),
    "missing": ("#FFFFFF", ""),
}
RESULTS = ("finished", "at chance", "diverged", "certified")
COLUMNS = ["method", "setting", "label", "lr", "planned", "done", *LOOKS, "without_result"]
MOST = 120  # rows
BOX, AIR = 0.80, 0.10  # height and margin of a cell, in cells


@dataclass(frozen=True)
class _Cell:
    """All runs of one method at one learning rate."""

    row: int
    column: int
    lr: float
    state: dict[int, str]  # by seed
    runs: dict[int, str]  # ids by seed


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """A cell per point of the sweep, in it a box per seed that says how its run stands."""
    curves = [*study.curves, *study.second]
    if not curves:
        raise CannotDraw("the sweep has no runs, so there is nothing to draw")
    if len(curves) > MOST:
        raise CannotDraw(f"its {len(curves)} rows fit no page; its table holds them")
    lrs = np.unique(np.concatenate([curve.lr for curve in curves]))
    states = _states(study.runs)
    cells = [list(_cells(curve, row, lrs, states)) for row, curve in enumerate(curves)]
    width = min(9.0, max(3.2, 1.6 + 0.36 * len(lrs)))
    figure = Figure(figsize=(max(width, WIDTH * 0.6), 0.9 + 0.22 * len(curves)))
    axes = figure.add_subplot()
    for curve, row in zip(curves, cells, strict=True):
        _draw_row(axes, curve, row, len(lrs))
    _draw_boxes(axes, [cell for row in cells for cell in row])
    _frame(axes, study, curves, lrs)
    return figure, _table(curves, cells)


def _states(runs: pd.DataFrame) -> dict[str, str]:
    """How each run stands, in a word of ``LOOKS``."""
    state = runs["outcome"].mask(is_diverged(runs), "diverged")
    at_chance = (state == "finished") & runs["at_chance"].isin([True])
    state = state.mask(at_chance, "at chance")
    state = state.mask(runs["run"].isin(certified(runs)), "certified")
    return dict(zip(runs["run"], state, strict=True))


def _cells(curve: Curve, row: int, lrs: np.ndarray, states: dict[str, str]) -> Iterator[_Cell]:
    for i, lr in enumerate(curve.lr):
        runs = {int(s): run for s, run in zip(curve.seeds, curve.run[i], strict=True) if run != ""}
        state = {seed: states[run] for seed, run in runs.items()}
        yield _Cell(row, int(np.searchsorted(lrs, lr)), float(lr), state, runs)


def _draw_row(axes: Axes, curve: Curve, cells: list[_Cell], columns: int) -> None:
    done = sum(state in RESULTS for cell in cells for state in cell.state.values())
    planned = sum(len(cell.state) for cell in cells)
    row = cells[0].row
    axes.text(columns - 0.35, row, f"{done}/{planned}", va="center", fontsize=6.5)
    for cell in cells:
        lines = [f"{curve.label}, lr {lr_text(cell.lr)}"]
        lines += [f"seed {seed}: {state} ({cell.runs[seed]})" for seed, state in cell.state.items()]
        note(axes, cell.column, row, "\n".join(lines[:12]))


def _draw_boxes(axes: Axes, cells: list[_Cell]) -> None:
    boxes: dict[str, list[Path]] = defaultdict(list)
    for cell in cells:
        width = (1 - 2 * AIR) / max(len(cell.state), 1)
        for k, state in enumerate(cell.state.values()):
            left, top = cell.column - 0.5 + AIR + k * width, cell.row - BOX / 2
            right, bottom = left + width, top + BOX
            corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
            boxes[state].append(Path(corners, closed=True))
    for state, paths in boxes.items():  # one path per state: thousands of runs stay a small file
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), **_paint(state)))


def _paint(state: str) -> dict[str, Any]:
    face, hatch = LOOKS[state]
    return {"facecolor": face, "hatch": hatch or None, "edgecolor": "0.55", "linewidth": 0.4}


def _frame(axes: Axes, study: Study, curves: Sequence[Curve], lrs: np.ndarray) -> None:
    lr_columns(axes, lrs)
    axes.set_xlim(-0.6, len(lrs) + 0.4)
    axes.set_ylim(len(curves) - 0.4, -0.6)
    axes.set_yticks(range(len(curves)), [curve.label for curve in curves])
    axes.tick_params(length=0, labelsize=7)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_xlabel("learning rate")
    states = Counter(_states(study.runs).values())
    done = sum(states[state] for state in RESULTS)
    axes.set_title(f"{study.name}: {done} of {len(study.runs)} runs have a result")
    handles = [
        Patch(**_paint(state), label=f"{state} ({states[state]})")
        for state in LOOKS
        if states[state]
    ]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _table(curves: Sequence[Curve], cells: list[list[_Cell]]) -> pd.DataFrame:
    """One row per cell: how many of its runs stand how, and the ids of those without a result."""
    rows = []
    for curve, row in zip(curves, cells, strict=True):
        for cell in row:
            counts = Counter(cell.state.values())
            lacking = [cell.runs[s] for s, state in cell.state.items() if state not in RESULTS]
            rows.append(
                {
                    "method": curve.method,
                    "setting": curve.setting,
                    "label": curve.label,
                    "lr": cell.lr,
                    "planned": len(cell.state),
                    "done": len(cell.state) - len(lacking),
                    **{state: counts[state] for state in LOOKS},
                    "without_result": " ".join(lacking),
                }
            )
    return pd.DataFrame(rows, columns=COLUMNS)
