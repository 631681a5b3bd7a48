"""Our final results of an experiment against published ones, setting by setting.

``python -m analysis.published OURS.csv PUBLISHED.csv --experiment NAME`` prints where they differ.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from optlab.errors import ConfigError, nearest

from .frames import numbers, rows

METHODS = {  # name in the Momo paper's records (arXiv 2305.07583) -> our option
    "adabelief": "adabelief",
    "adabound": "adabound",
    "adam": "adam",
    "lion": "lion",
    "momo": "momo",
    "momo-star": "momo_star",
    "momo-adam": "momo_adam",
    "momo-adam-star": "momo_adam_star",
    "prox-sps": "prox_sps",
    "sgd-m": "sgd_momentum",
}
SCORES = {  # our column -> the published one, its mean over seeds
    "accuracy": "final_val_score",
    "final_loss": "final_val_loss",
}
HIGHER_IS_BETTER = ("accuracy",)
LEAST = 0.003  # in units of the score: as close as two means of three seeds can be asked to be


@dataclass(frozen=True)
class Result:
    """The mean over seeds of one setting's final score."""

    mean: float  # NaN where a seed diverged to a loss that is not finite
    std: float  # between seeds, n - 1 in the denominator; NaN where unknown
    failed: bool  # a seed diverged, or the mean is one of those that count as useless


Key = tuple[str, float]  # our method, learning rate
Results = dict[Key, Result]


@dataclass(frozen=True)
class Comparison:
    """One setting here and there."""

    method: str
    lr: float
    ours: Result
    published: Result

    @property
    def allowed(self) -> float:
        """Difference of the means that says nothing: three published standard deviations."""
        return np.nanmax([3 * self.published.std, LEAST]).item()

    @property
    def agrees(self) -> bool:
        if self.ours.failed and self.published.failed:
            return True
        difference = abs(self.ours.mean - self.published.mean)
        return difference <= self.allowed  # False for NaN

    def sentence(self) -> str:
        def words(result: Result) -> str:
            mark = " (failed)" if result.failed else ""
            return f"{result.mean:.4g} ± {result.std:.2g}{mark}"

        return (
            f"{self.method} lr={self.lr:g}: {words(self.ours)} here, {words(self.published)} "
            f"published; {self.ours.mean - self.published.mean:+.4g} where {self.allowed:.2g} is "
            "allowed."
        )


def read_published(
    path: Path, experiment: str, score: str = "accuracy", useless: float | None = None
) -> Results:
    """The settings of ``experiment`` in a table of published results, by our names.

    The table has a row per setting, with the mean and the standard deviation over the seeds, or a
    row per setting and ``seed``. Settings other than method and learning rate must be one.
    ``useless``: a mean that is no better than that counts as failed.
    """
    table = _experiment(path, experiment)
    table = table.assign(method=table["optimizer"].map(METHODS))
    table = rows(table, table["method"].notna())
    column = SCORES[score]
    if "seed" not in table:
        keys = list(zip(table["method"], numbers(table, "lr"), strict=True))
        _check_once(keys, path)
        parts = zip(
            keys,
            numbers(table, column),
            numbers(table, f"{column}_std"),
            numbers(table, "failed") > 0,
            strict=True,
        )
        return {
            key: Result(mean, std, bool(bad) or _is_useless(mean, score, useless))
            for key, mean, std, bad in parts
        }
    results = {}
    for (method, lr), seeds in _by_setting(table):
        _check_once(list(seeds["seed"]), path)
        values, failed = np.asarray(numbers(seeds, column)), numbers(seeds, "failed") > 0
        results[method, lr] = _mean(values, bool(failed.any()), score, useless)
    return results


def read_ours(path: Path, score: str = "accuracy", useless: float | None = None) -> Results:
    """The settings of a table that ``python -m analysis NAME --export`` wrote.

    ``useless``: a mean that is no better than that counts as failed.
    """
    table = pd.read_csv(path)
    unfinished = rows(table, ~table["outcome"].isin(["finished", "diverged"]))
    if len(unfinished):
        raise ConfigError(
            f"{path}: {len(unfinished)} runs are not done, the first {unfinished['run'].iloc[0]} "
            f"({unfinished['outcome'].iloc[0]}): a comparison needs all seeds of a setting."
        )
    results = {}
    for (method, lr), seeds in _by_setting(table):
        diverged = bool((seeds["outcome"] == "diverged").any())
        results[method, lr] = _mean(np.asarray(numbers(seeds, score)), diverged, score, useless)
    return results


def compare(ours: Results, published: Results) -> list[Comparison]:
    """Every published setting, with ours. Raises ConfigError where we lack one."""
    found = []
    for (method, lr), there in published.items():
        here = [ours[key] for key in ours if key[0] == method and math.isclose(key[1], lr)]
        if not here:
            raise ConfigError(f"Our table has no run of {method} at lr={lr:g}.")
        found.append(Comparison(method, lr, here[0], there))
    return found


def report(comparisons: list[Comparison]) -> str:
    """How many settings agree, and each that does not."""
    apart = [each for each in comparisons if not each.agrees]
    head = f"{len(comparisons) - len(apart)} of {len(comparisons)} settings agree."
    return "\n".join([head, *(each.sentence() for each in apart)])


def _by_setting(table: pd.DataFrame) -> Iterator[tuple[Key, pd.DataFrame]]:
    for index in table.groupby(["method", "lr"]).indices.values():
        seeds = table.iloc[index]
        yield (str(seeds["method"].iloc[0]), float(seeds["lr"].iloc[0])), seeds


def _mean(values: np.ndarray, failed: bool, score: str, useless: float | None) -> Result:
    if not np.isfinite(values).all():
        return Result(math.nan, math.nan, True)
    mean = float(values.mean())
    std = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return Result(mean, std, failed or _is_useless(mean, score, useless))


def _is_useless(mean: float, score: str, useless: float | None) -> bool:
    if useless is None or math.isnan(mean):
        return math.isnan(mean)
    return mean <= useless if score in HIGHER_IS_BETTER else mean >= useless


def _experiment(path: Path, experiment: str) -> pd.DataFrame:
    table = pd.read_csv(path)
    found = rows(table, table["experiment"] == experiment)
    if found.empty:
        known = sorted(set(table["experiment"]))
        raise ConfigError(
            f"{path} has no experiment '{experiment}'.{nearest(experiment, known)} It has: "
            f"{', '.join(known)}."
        )
    return found


def _check_once(keys: Sequence[object], path: Path) -> None:
    if len(set(keys)) < len(keys):
        raise ConfigError(f"{path} has two results of one setting: keep one of them.")


def main(arguments: list[str] | None = None) -> int:
    """Print the comparison. Exit codes: 0 all agree, 1 some do not, or an error."""
    parser = argparse.ArgumentParser(prog="python -m analysis.published", description=__doc__)
    parser.add_argument("ours", type=Path, help="from python -m analysis SWEEP --export FILE")
    parser.add_argument("published", type=Path, help="a table of published results")
    parser.add_argument("--experiment", required=True, help="which of its experiments")
    parser.add_argument("--score", choices=SCORES, default="accuracy", help="our column")
    parser.add_argument(
        "--useless", type=float, help="a score that is no better counts as failed, here and there"
    )
    args = parser.parse_args(arguments)
    try:
        published = read_published(args.published, args.experiment, args.score, args.useless)
        found = compare(read_ours(args.ours, args.score, args.useless), published)
    except (ConfigError, OSError, KeyError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report(found))
    return 0 if all(each.agrees for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
