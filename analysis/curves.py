"""One method's final loss against its learning rate, as a matrix of learning rates by seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from optlab.errors import ConfigError

from . import style

COLUMNS = (
    *("run", "method", "lr", "seed", "model", "dataset", "norms", "schedule", "steps"),
    *("outcome", "cause", "initial_loss", "final_loss", "at_chance"),
)
OUTCOMES = (
    *("finished", "diverged", "failed", "lost", "preempted", "running", "queued", "missing"),
)
SETTINGS = ("model", "dataset", "norms", "schedule", "steps")


@dataclass(frozen=True, eq=False)
class Curve:
    """Final validation losses of one method over its grid: n learning rates by S seeds.

    The ceiling rule: a run that diverged counts with its own initial loss, and so does one that
    finished above it, because a mean over 1e5 and 0.3 says nothing. Holes (runs that are missing,
    queued, running, failed, lost or preempted) count nowhere: ``loss`` is NaN and ``done`` false.
    """

    method: str
    setting: str  # what tells apart the curves of one method ('model=mlp'), '' where there is one
    lr: np.ndarray  # (n,) ascending
    seeds: np.ndarray  # (S,) ascending
    run: np.ndarray  # (n, S) run ids, '' where the sweep plans none
    loss: np.ndarray  # (n, S) nats, never above ``initial``
    initial: np.ndarray  # (n, S) nats, validation loss before the first step
    done: np.ndarray  # (n, S) bool, finished or diverged
    diverged: np.ndarray  # (n, S) bool
    at_chance: np.ndarray  # (n, S) bool, finished no better than a constant prediction
    certified: np.ndarray  # (n, S) bool, not trained: has the numbers of the run it would repeat
    # (S,) initial weights and first batch of each seed, '' where they are unknown or not the same
    # in all runs of the seed; () where the table has none
    fingerprints: tuple[str, ...] = ()
    unit: str = "nats"

    @property
    def label(self) -> str:
        label = style.style(self.method).label
        return f"{label} ({self.setting})" if self.setting else label

    @property
    def ceiling(self) -> float:
        """l_0 in nats: the mean initial loss over the seeds; NaN where no run recorded one."""
        return float(self.initial[self.run != ""].mean())

    @property
    def n(self) -> np.ndarray:
        """(n,) Number of seeds that are done."""
        return self.done.sum(axis=1)

    @property
    def planned(self) -> np.ndarray:
        """(n,) Number of seeds that the sweep asks for."""
        return (self.run != "").sum(axis=1)

    @property
    def mean(self) -> np.ndarray:
        """(n,) Mean over the seeds that are done; NaN where none is."""
        total = np.where(self.done, self.loss, 0.0).sum(axis=1)
        return np.where(self.n > 0, total / np.maximum(self.n, 1), np.nan)

    @property
    def std(self) -> np.ndarray:
        """(n,) Sample standard deviation over the seeds that are done; NaN below two."""
        square = np.where(self.done, (self.loss - self.mean[:, None]) ** 2, 0.0).sum(axis=1)
        return np.where(self.n > 1, np.sqrt(square / np.maximum(self.n - 1, 1)), np.nan)

    @property
    def low(self) -> np.ndarray:
        """(n,) Smallest loss over the seeds that are done; NaN where none is."""
        low = np.where(self.done, self.loss, np.inf).min(axis=1)
        return np.where(self.n > 0, low, np.nan)

    @property
    def high(self) -> np.ndarray:
        """(n,) Largest loss over the seeds that are done; NaN where none is."""
        high = np.where(self.done, self.loss, -np.inf).max(axis=1)
        return np.where(self.n > 0, high, np.nan)

    @property
    def n_diverged(self) -> np.ndarray:
        """(n,) Number of seeds that diverged."""
        return self.diverged.sum(axis=1)

    @property
    def capped(self) -> np.ndarray:
        """(n,) bool: some seed counts with the ceiling, so the mean is not a measured loss."""
        return np.any(self.diverged | (self.done & (self.loss >= self.initial)), axis=1)


@dataclass(frozen=True, eq=False)
class Study:
    """A sweep as a figure sees it: its runs, its records and their curves."""

    name: str
    runs: pd.DataFrame  # one row per run
    records: pd.DataFrame  # one row per record, 'run' points into ``runs``
    curves: Sequence[Curve]
    # what a usable learning rate may lose, as in ``robustness.width``
    q: float = 0.05
    level: Literal["drop", "relative", "absolute"] = "drop"
    second: Sequence[Curve] = ()  # of the second stage: no curves over lr, one point each
    second_axes: Sequence[str] = ()  # what the second stage varies
    lrs: Sequence[float] = ()  # whose loss curves are drawn; by default each curve's best


def curves(runs: pd.DataFrame) -> list[Curve]:
    """The curves of a table of runs (columns: ``COLUMNS``), in the order of ``style``.

    A method gets one curve for each combination of those of ``SETTINGS`` that differ within it; a
    column ``setting``, if there is one, says in words what else does.
    Raises ConfigError where a column is missing, a value is out of range, or two runs claim the
    same point.
    """
    _check(runs)
    if runs.empty:
        return []
    runs = runs.assign(setting=curve_settings(runs), ceiling=_ceilings(runs))
    keys = sorted(set(zip(runs["method"], runs["setting"], strict=True)))
    units = list(runs["unit"].dropna()) if "unit" in runs else []
    unit = str(units[0]) if units else "nats"
    found = [
        _curve(
            method,
            setting,
            runs.loc[(runs["method"] == method) & (runs["setting"] == setting)],
            unit,
        )
        for method, setting in keys
    ]
    return sorted(
        found, key=lambda curve: (style.order(curve.method), style.natural(curve.setting))
    )


def among(grid: np.ndarray, lrs: Sequence[float]) -> np.ndarray:
    """(n, k) bool: where the grid of n learning rates has which of the k; four digits suffice."""
    return np.isclose(grid[:, None], np.asarray(lrs, float)[None, :], rtol=1e-3, atol=0)


def is_diverged(runs: pd.DataFrame) -> pd.Series:
    """Whether each run diverged: by its outcome, or finished with a non-finite loss."""
    finished = runs["outcome"] == "finished"
    non_finite = ~np.isfinite(runs["final_loss"].astype(float))
    return (runs["outcome"] == "diverged") | (finished & non_finite)


def is_done(runs: pd.DataFrame) -> pd.Series:
    """Whether each run has a result: finished, or diverged."""
    return runs["outcome"].isin(["finished", "diverged"])


def is_certified(runs: pd.DataFrame) -> pd.Series:
    """Whether each run was not trained, but has the numbers of one that it would repeat."""
    if "certified_by" not in runs:
        return pd.Series(False, index=runs.index)
    return runs["certified_by"].fillna("").astype(str) != ""


def varies_within(methods: Iterable[str], values: Iterable[object]) -> np.ndarray:
    """(runs,) bool: whether the run's method occurs with more than one of the values."""
    methods, seen = list(methods), defaultdict[str, set](set)
    for method, value in zip(methods, values, strict=True):
        seen[method].add(value)
    return np.array([len(seen[method]) > 1 for method in methods], dtype=bool)


def _curve(method: str, setting: str, block: pd.DataFrame, unit: str) -> Curve:
    lr, row = np.unique(block["lr"].to_numpy(float), return_inverse=True)
    seeds, column = np.unique(block["seed"].to_numpy(), return_inverse=True)
    _check_unique(method, block)

    def grid(values: np.ndarray, empty: object, dtype: type) -> np.ndarray:
        cells = np.full((len(lr), len(seeds)), empty, dtype=dtype)
        cells[row, column] = values
        return cells

    done, diverged = is_done(block).to_numpy(), is_diverged(block).to_numpy()
    ceiling = block["ceiling"].to_numpy(float)
    capped = np.fmin(block["final_loss"].to_numpy(float), ceiling)
    loss = np.where(done, np.where(diverged, ceiling, capped), np.nan)
    at_chance = block["at_chance"].isin([True]).to_numpy()
    return Curve(
        method=method,
        setting=setting,
        lr=lr,
        seeds=seeds,
        run=grid(block["run"].to_numpy(), "", object),
        loss=grid(loss, np.nan, float),
        initial=grid(ceiling, np.nan, float),
        done=grid(done, False, bool),
        diverged=grid(diverged, False, bool),
        at_chance=grid(done & ~diverged & at_chance, False, bool),
        certified=grid(is_certified(block).to_numpy(), False, bool),
        fingerprints=_fingerprints(block, seeds),
        unit=unit,
    )


def _fingerprints(block: pd.DataFrame, seeds: np.ndarray) -> tuple[str, ...]:
    """What proves that two methods began alike: per seed, weights and first batch of its runs."""
    if not {"weights_fingerprint", "batch_fingerprint"} <= set(block.columns):
        return ()
    weights, batch = (
        block[column].fillna("").astype(str)
        for column in ("weights_fingerprint", "batch_fingerprint")
    )
    both = (weights + "/" + batch).where((weights != "") & (batch != ""), "")
    found = both[both != ""].groupby(block["seed"]).unique()
    return tuple(
        found[seed][0] if seed in found.index and len(found[seed]) == 1 else "" for seed in seeds
    )


def curve_settings(runs: pd.DataFrame) -> pd.Series:
    """What tells each run's curve from the others of its method, in words."""
    setting = runs["setting"] if "setting" in runs else pd.Series("", index=runs.index)
    for column in SETTINGS:
        varies = varies_within(runs["method"], runs[column])
        named = setting + f" {column}=" + runs[column].astype(str)
        setting = setting.where(~varies, named)
    return setting.str.strip()


def _ceilings(runs: pd.DataFrame) -> pd.Series:
    """Each run's initial loss; where it has none, that of its seed, else of its problem."""
    own = runs["initial_loss"].astype(float)
    own = own.where(np.isfinite(own))
    problem = [runs["model"], runs["dataset"]]
    of_seed = own.groupby([*problem, runs["seed"]]).transform("mean")
    return own.fillna(of_seed).fillna(own.groupby(problem).transform("mean"))


def _check(runs: pd.DataFrame) -> None:
    absent = [column for column in COLUMNS if column not in runs.columns]
    if absent:
        raise ConfigError(f"The table of runs lacks the columns {', '.join(absent)}.")
    strange = sorted(set(runs["outcome"]) - set(OUTCOMES))
    if strange:
        raise ConfigError(
            f"Expected the outcomes {', '.join(OUTCOMES)}; the table of runs has "
            f"{', '.join(map(repr, strange))}."
        )
    lr = runs["lr"].astype(float)
    wrong = runs[~(np.isfinite(lr) & (lr > 0))]
    if len(wrong):
        first = wrong.iloc[0]
        raise ConfigError(
            f"Expected positive learning rates; {len(wrong)} of {len(runs)} runs have none, the "
            f"first is run {first['run']} ({first['method']}, lr={first['lr']})."
        )


def _check_unique(method: str, block: pd.DataFrame) -> None:
    twice = block.loc[block.duplicated(["lr", "seed"], keep=False)]
    if len(twice):
        point = (twice["lr"] == twice["lr"].iloc[0]) & (twice["seed"] == twice["seed"].iloc[0])
        first = twice.loc[point]
        raise ConfigError(
            f"Expected one run per method, learning rate and seed; {len(twice)} runs of {method} "
            f"share theirs, such as {' and '.join(first['run'])} (lr={first['lr'].iloc[0]:.4g}, "
            f"seed={first['seed'].iloc[0]}). They differ in something that the table does not "
            "show: analyse them one setting at a time, by an override that fixes it."
        )
