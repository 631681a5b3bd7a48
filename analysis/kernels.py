"""The robustness metrics as arrays: from a stack of B curves to a value for each of them.

``analysis.robustness`` says what each of them means; nothing else calls them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.interpolate import PchipInterpolator

from .stack import Stack

Level = Literal["drop", "relative", "absolute"]
Interpolation = Literal["linear", "pchip"]


@dataclass(frozen=True)
class Values:
    """A metric of B curves of one stack: what ``Metric`` says, as arrays (B,)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    censoring: np.ndarray  # of words


def _where_best(stack: Stack) -> np.ndarray:
    """(B,) What cuts the optimum off, in the words of ``Censoring``."""
    rows, i, last = np.arange(len(stack.mean)), stack.best, len(stack.x) - 1
    below, above = np.maximum(i - 1, 0), np.minimum(i + 1, last)
    hole = ~(stack.known[rows, below] & stack.known[rows, above])
    diverged = stack.diverged[rows, below] | stack.diverged[rows, above]
    on_edge = np.where(last == 0, "both", np.where(i == 0, "left", "right"))
    flat = np.full(len(i), stack.plateau is not None)
    return np.select(
        [~stack.found, flat, (i == 0) | (i == last), hole, diverged],
        ["undefined", "flat", on_edge, "hole", "divergence"],
        "interior",
    )


def best_lr(stack: Stack) -> Values:
    """The neighbours bound it; those of the whole plateau where noise hides it."""
    i = stack.best
    first, end = (i, i) if stack.plateau is None else stack.plateau
    x = np.concatenate([[-np.inf], stack.x, [np.inf]])
    low, high = x[np.minimum(i, first)], x[np.maximum(i, end) + 2]
    nan = np.where(stack.found, 0.0, np.nan)
    return Values(stack.best_x + nan, low + nan, high + nan, _where_best(stack))


def best_loss(stack: Stack) -> Values:
    loss, where = stack.best_loss, _where_best(stack)
    last = len(stack.x) - 1
    rows = np.arange(len(loss))
    beside = stack.known[rows, np.maximum(stack.best - 1, 0)]
    beside &= stack.known[rows, np.minimum(stack.best + 1, last)]
    open_ = (stack.best == 0) | (stack.best == last) | ~beside
    return Values(loss, np.where(open_ & stack.found, -np.inf, loss), loss, where)


def vertex(stack: Stack) -> tuple[Values, Values]:
    rows, i, last = np.arange(len(stack.mean)), stack.best, len(stack.x) - 1
    j = np.clip(i, 1, max(1, last - 1))
    where = _where_best(stack)
    if last < 2:
        nan = np.full(len(rows), np.nan)
        return Values(nan, nan, nan, where), Values(nan, nan, nan, where)
    usable = stack.known & ~stack.capped
    three = usable[rows, j - 1] & usable[rows, j] & usable[rows, j + 1] & (i == j) & stack.found
    u, v = stack.x[j - 1] - stack.x[j], stack.x[j + 1] - stack.x[j]
    base = stack.mean[rows, j]
    a, b = stack.mean[rows, j - 1] - base, stack.mean[rows, j + 1] - base
    with np.errstate(invalid="ignore", divide="ignore"):
        curvature = (a / u - b / v) / (u - v)
        slope = (b * u / v - a * v / u) / (u - v)
        shift = np.where(curvature > 0, -slope / (2 * curvature), 0.0)
    drop = np.where(curvature > 0, slope * shift / 2, 0.0)
    nan = np.where(three, 0.0, np.nan)
    x, loss = stack.x[j] + shift + nan, base + drop + nan
    word = np.where(three & (where == "divergence"), "interior", where)
    return Values(x, x, x, word), Values(loss, loss, loss, word)


def top(best: Any, ceiling: Any, q: float, level: Level) -> Any:
    """The loss below which a learning rate is usable; floats, or (B,) arrays."""
    return {
        "drop": best + q * (ceiling - best),
        "relative": best + q * np.abs(best),
        "absolute": best + q,
    }[level]


def width(
    stack: Stack,
    q: float,
    level: Level,
    interpolation: Interpolation,
    sides: tuple[Literal["left", "right"], ...],
) -> Values:
    limit = top(stack.best_loss, stack.ceiling, q, level)
    found = {}
    for side in sides:
        view = stack if side == "right" else stack.mirrored()
        found[side] = _reach(view, limit, interpolation)
    length = np.sum([reach for reach, _, _ in found.values()], axis=0)
    more = np.sum([slack for _, slack, _ in found.values()], axis=0)
    nan = np.where(stack.learned, 0.0, np.nan)
    bounds = {side: bound for side, (_, _, bound) in found.items()}
    return Values(length + nan, length + nan, length + more + nan, _cut(stack.learned, bounds))


def _cut(defined: np.ndarray, bounds: dict[str, np.ndarray]) -> np.ndarray:
    """One word for what bounds an interval: a hole before an edge before divergence."""
    nothing = np.full(len(defined), "")
    left, right = bounds.get("left", nothing), bounds.get("right", nothing)
    edge = (left == "edge", right == "edge")
    hole = (left == "hole") | (right == "hole")
    ceiling = (left == "ceiling") | (right == "ceiling")
    return np.select(
        [~defined, hole, edge[0] & edge[1], *edge, ceiling],
        ["undefined", "hole", "both", "left", "right", "divergence"],
        "interior",
    )


def _reach(
    stack: Stack, top: np.ndarray, interpolation: Interpolation
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How far above lr* the loss stays below ``top``: decades, how much more, what ends it."""
    rows, n = np.arange(len(top)), len(stack.x)
    beyond = np.arange(n) > stack.best[:, None]
    with np.errstate(invalid="ignore"):
        outside = beyond & ~(stack.mean <= top[:, None])
    j = np.where(outside.any(axis=1), outside.argmax(axis=1), n)
    i, j_in = j - 1, np.minimum(j, n - 1)
    bound = np.select(
        [j == n, ~stack.known[rows, j_in], stack.capped[rows, j_in]],
        ["edge", "hole", "ceiling"],
        "crossing",
    )
    step = stack.x[j_in] - stack.x[i]
    crosses = bound == "crossing"
    share = np.zeros(len(rows))
    if crosses.any():
        cross = _linear_crossing if interpolation == "linear" else _pchip_crossing
        share[crosses] = cross(stack, rows[crosses], i[crosses], top[crosses])
    reach = stack.x[i] - stack.best_x + share * step
    slack = np.select([bound == "ceiling", crosses], [step, np.zeros(len(step))], np.inf)
    return reach, slack, bound


def _linear_crossing(stack: Stack, rows: np.ndarray, i: np.ndarray, top: np.ndarray) -> np.ndarray:
    """Share of the way from point i to the next one at which the line reaches ``top``."""
    inside, outside = stack.mean[rows, i], stack.mean[rows, i + 1]
    return (top - inside) / (outside - inside)


def _pchip_crossing(stack: Stack, rows: np.ndarray, i: np.ndarray, top: np.ndarray) -> np.ndarray:
    """The same on the monotone cubic, by bisection; its slopes ignore points at the ceiling.

    On the line where that leaves fewer than two points.
    """
    usable = stack.known & ~stack.capped
    share = _linear_crossing(stack, rows, i, top)
    for k, row in enumerate(rows):
        seen = usable[row]
        if seen.sum() < 2:
            continue
        cubic = PchipInterpolator(stack.x[seen], stack.mean[row, seen])
        low, high = stack.x[i[k]], stack.x[i[k] + 1]
        length, start = high - low, low
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if cubic(middle) <= top[k] else (low, middle)
        share[k] = (low - start) / length
    return share


def sensitivity(stack: Stack) -> Values:
    value = _grid_mean(stack, stack.mean) - stack.best_loss
    worst = np.where(stack.known, stack.mean, stack.ceiling[:, None])
    least = np.where(stack.known, stack.mean, stack.best_loss[:, None])
    nan = np.where(stack.learned, 0.0, np.nan)
    holes = ~stack.known.all(axis=1)
    return Values(
        value + nan,
        np.where(holes, _grid_mean(stack, least) - stack.best_loss, value) + nan,
        np.where(holes, _grid_mean(stack, worst) - stack.best_loss, value) + nan,
        np.select([~stack.learned, holes], ["undefined", "hole"], "interior"),
    )


def _grid_mean(stack: Stack, y: np.ndarray) -> np.ndarray:
    """(B,) means over the grid, trapezoidal in log lr where it is uneven; holes left out."""
    there = ~np.isnan(y)
    if stack.is_uniform:
        count = there.sum(axis=1)
        return np.where(there, y, 0.0).sum(axis=1) / np.where(count, count, np.nan)
    means = np.full(len(y), np.nan)
    patterns, row_pattern = np.unique(there, axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        rows = row_pattern.ravel() == k
        if pattern.any():
            means[rows] = [trapezoidal_mean(stack.x[pattern], z) for z in y[rows][:, pattern]]
    return means


def centred(stack: Stack, decades: float) -> Values:
    area, code = stack.integral(stack.best_x - decades, stack.best_x + decades)
    value = area / (2 * decades) - stack.best_loss
    return _known(stack, value, code)


def misset(stack: Stack, factor: float) -> Values:
    return excess_at(stack, stack.best_x + math.log10(factor), stack.learned)


def excess_at(stack: Stack, x: np.ndarray, defined: np.ndarray) -> Values:
    loss, code = stack.at(x)
    nan = np.where(defined, 0.0, np.nan)
    value = loss - stack.best_loss + nan
    word = np.select([~defined, code != ""], ["undefined", code], "interior")
    low = np.where(np.isnan(value) & defined, -np.inf, value)
    return Values(value, low, np.where(np.isnan(value) & defined, np.inf, value), word)


def _known(stack: Stack, value: np.ndarray, code: np.ndarray) -> Values:
    """A value that a code other than '' makes unknown."""
    value = np.where(stack.learned & (code == ""), value, np.nan)
    word = np.select([~stack.learned, code != ""], ["undefined", code], "interior")
    unknown = np.isnan(value) & stack.learned
    return Values(value, np.where(unknown, -np.inf, value), np.where(unknown, np.inf, value), word)


def _stable_reach(stack: Stack) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As ``_reach`` with the initial loss as level: up to the first point at the ceiling."""
    flat = np.where(stack.known, np.where(stack.capped, 1.0, 0.0), np.nan)
    view = Stack(
        stack.x, flat, stack.known, stack.diverged, stack.capped, stack.ceiling, stack.plateau
    )
    view.__dict__["best"] = stack.best
    return _reach(view, np.full(len(flat), 0.5), "linear")


def largest_stable(stack: Stack) -> Values:
    reach, slack, bound = _stable_reach(stack)
    nan = np.where(stack.learned, 0.0, np.nan)
    x = stack.best_x + reach + nan
    return Values(x, x, x + slack, _cut(stack.learned, {"right": bound}))


def stable_range(stack: Stack) -> Values:
    up, down = _stable_reach(stack), _stable_reach(stack.mirrored())
    length, more = up[0] + down[0], up[1] + down[1]
    nan = np.where(stack.learned, 0.0, np.nan)
    word = _cut(stack.learned, {"left": down[2], "right": up[2]})
    return Values(length + nan, length + nan, length + more + nan, word)


def first_diverging(stack: Stack) -> Values:
    n = len(stack.x)
    above = np.arange(n) > stack.best[:, None]
    diverged = above & stack.diverged
    there = diverged.any(axis=1) & stack.found
    j = np.where(there, diverged.argmax(axis=1), n)
    holes = above & ~stack.known & (np.arange(n) < j[:, None])  # they may have diverged too
    hole = holes.any(axis=1)
    last_good = np.where(hole, holes.argmax(axis=1), j) - 1
    nan = np.where(stack.found, 0.0, np.nan)
    value = np.where(there, stack.x[np.minimum(j, n - 1)], np.nan)
    high = np.where(there, value, np.inf)
    word = np.select([~stack.found, hole, ~there], ["undefined", "hole", "right"], "divergence")
    return Values(value, stack.x[last_good] + nan, high + nan, word)


def regret_area(stack: Stack, best_of_any: float) -> Values:
    drop = stack.ceiling - best_of_any
    with np.errstate(invalid="ignore"):
        regret = np.clip((stack.mean - best_of_any) / drop[:, None], None, 1)
    if len(stack.x) == 1:
        area, code = regret[:, 0], np.full(len(regret), "")
    else:
        view = Stack(
            stack.x, regret, stack.known, stack.diverged, stack.capped, stack.ceiling, None
        )
        ends = (np.full(len(regret), stack.x[0]), np.full(len(regret), stack.x[-1]))
        area, code = view.integral(*ends)
        area = area / (stack.x[-1] - stack.x[0])
    defined = drop > 0
    value = np.where(defined & (code == ""), area, np.nan)
    word = np.select([~defined, code != ""], ["undefined", code], "interior")
    unknown = np.isnan(value) & defined
    return Values(value, np.where(unknown, 0.0, value), np.where(unknown, 1.0, value), word)


def success(stack: Stack, loss: float) -> Values:
    good = stack.known & ~stack.diverged & (np.nan_to_num(stack.mean, nan=np.inf) <= loss)
    n, known = good.shape[1], stack.known.sum(axis=1)
    value = good.sum(axis=1) / np.where(known, known, np.nan)
    low = good.sum(axis=1) / n
    high = (good.sum(axis=1) + n - known) / n
    word = np.select([known == 0, known < n], ["undefined", "hole"], "interior")
    return Values(value, low, high, word)


def tuning_area(stack: Stack, trials: int) -> Values:
    expected = expected_best(stack, np.arange(1, trials + 1))
    code = np.where(stack.known.all(axis=1), "", "hole")
    return _known(stack, expected.mean(axis=1) - stack.best_loss, code)


def expected_best(stack: Stack, k: np.ndarray) -> np.ndarray:
    """(B, len(k)) expectations of the minimum of k draws; NaN for curves with holes."""
    weight = _cover(stack.x)
    order = np.argsort(stack.mean, axis=1)
    losses = np.take_along_axis(stack.mean, order, axis=1)
    below = np.cumsum(weight[order], axis=1)
    # share of the draws no better than l_(j), before and after it
    tail = np.clip(1 - np.concatenate([np.zeros((len(below), 1)), below], axis=1), 0, 1)
    powers: np.ndarray = tail[:, :, None] ** k
    chance = powers[:, :-1] - powers[:, 1:]
    unknown = np.where(stack.known, 0.0, np.nan).sum(axis=1, keepdims=True)
    return (np.nan_to_num(losses)[:, :, None] * chance).sum(axis=1) + unknown


def _cover(x: np.ndarray) -> np.ndarray:
    """(n,) share of log lr that each point stands for; equal on an even grid."""
    if len(x) == 1:
        return np.ones(1)
    spacing = np.diff(x)
    if np.ptp(spacing) < 1e-2 * spacing.max():
        return np.full(len(x), 1 / len(x))
    cells = (np.concatenate([spacing[:1], spacing]) + np.concatenate([spacing, spacing[-1:]])) / 2
    return cells / cells.sum()


def trapezoidal_mean(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) == 1:
        return float(y[0])
    return float((np.diff(x) * (y[1:] + y[:-1]) / 2).sum() / (x[-1] - x[0]))
