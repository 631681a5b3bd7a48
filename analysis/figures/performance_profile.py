"""Performance profiles: on which share of the problems a method is within a factor of the best."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from ..compared import share_grid
from ..curves import Curve, Study
from ..layout import CannotDraw, note, panels
from ..robustness import best, lr_sensitivity, performance_profile
from ..slices import settings_of
from ..style import Style, styles

TAUS = np.geomspace(1, 8, 241)
MARGIN = 0.01  # a target is the reference's best loss and 1 % of its drop
REFERENCE = "adamw"
STEPS, SENSITIVITY = "steps to the target", "LR sensitivity"
NO_PROFILE = (
    "No profile of LR sensitivity:\nit is a mean over a method's grid, and\n"
    "on a problem the methods have different grids."
)
COLUMNS = ["cost", "method", "label", "tau", "share", "problems"]


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Two panels: steps to a target loss at the best learning rate, and LR sensitivity.

    A problem is a model, a dataset and whatever else varies but the optimizer. The target of each
    is the best loss of AdamW, or of the median method where AdamW has none; both with a margin.
    A sentence stands in the place of LR sensitivities that are over different grids.
    """
    costs = _costs(study)
    problems = costs["problem"].nunique()
    if problems < 2:
        raise CannotDraw(
            f"it compares methods over several problems (model, dataset ...), and the sweep has "
            f"results on {problems}"
        )
    lines = list(dict.fromkeys(zip(costs["method"], costs["own"], strict=True)))
    looks = dict(zip(lines, styles(lines), strict=True))
    grid = panels(2, columns=2, width=2.6, height=1.9, gap=(0.5, 0.5))
    tables = []
    for axes, cost in zip(grid.axes, (STEPS, SENSITIVITY), strict=True):
        if cost == SENSITIVITY and not _share_grids(costs):
            _say(axes, NO_PROFILE)
            continue
        profile = _profile(costs, cost)
        _draw_profiles(axes, profile, looks, cost)
        tables.append(profile.assign(cost=cost, problems=problems))
    grid.axes[0].set_ylabel(f"share of the {problems} problems")
    grid.title(study.name)
    grid.legend([_handle(_label(*line), look) for line, look in looks.items()])
    return grid.figure, pd.concat(tables, ignore_index=True).reindex(columns=COLUMNS)


def _share_grids(costs: pd.DataFrame) -> bool:
    """On each problem all methods have one grid, so that their LR sensitivities compare."""
    return all(share_grid(list(group["curve"])) for _, group in costs.groupby("problem"))


def _say(axes: Axes, sentence: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, sentence, transform=axes.transAxes, ha="center", va="center", fontsize=7)


def _costs(study: Study) -> pd.DataFrame:
    """One row per curve: its problem, its method, and both costs (inf: never got there)."""
    by_run = study.runs.set_index("run")
    rows = []
    for curve in study.curves:
        first = by_run.loc[next(run for run in curve.run.flat if run != "")]
        words = settings_of(curve.setting)
        own = {k: v for k, v in words.items() if _is_methods(k)}
        rest = {k: v for k, v in words.items() if not _is_methods(k)}
        named = {"model": first["model"], "dataset": first["dataset"], **rest}
        rows.append(
            {
                "problem": " ".join(f"{k}={v}" for k, v in sorted(named.items())),
                "method": curve.method,
                "own": " ".join(f"{k}={v}" for k, v in own.items()),
                "curve": curve,
            }
        )
    costs = pd.DataFrame(rows, columns=["problem", "method", "own", "curve"])
    done = [curve.done.any() for curve in costs["curve"]]
    costs = costs.loc[done].reset_index(drop=True)
    targets = {problem: _target(group) for problem, group in costs.groupby("problem")}
    return costs.assign(
        **{
            STEPS: [
                _steps_to(study.records, curve, targets[problem])
                for problem, curve in zip(costs["problem"], costs["curve"], strict=True)
            ],
            SENSITIVITY: [_sensitivity(curve) for curve in costs["curve"]],
        }
    )


def _is_methods(key: str) -> bool:
    return key.split(".")[0] in ("optimizer", "norms", "schedule")


def _target(group: pd.DataFrame) -> float:
    """The loss to be reached on one problem."""
    optima = [(curve, best(curve)) for curve in group["curve"]]
    goals = {
        (curve.method, curve.setting): found.loss + MARGIN * max(curve.ceiling - found.loss, 0)
        for curve, found in optima
        if found
    }
    own = [goal for (method, _), goal in goals.items() if method == REFERENCE]
    return min(own) if own else float(np.median(list(goals.values()))) if goals else -math.inf


def _steps_to(records: pd.DataFrame, curve: Curve, target: float) -> float:
    """Steps until the seed mean at the best learning rate first reaches the target."""
    optimum = best(curve)
    if optimum is None:
        return math.inf
    ids = curve.run[optimum.index][curve.done[optimum.index]]
    own = records.loc[records["run"].isin(ids), ["run", "step", "val_loss"]].astype(
        {"step": float, "val_loss": float}
    )
    means = own.groupby("step")["val_loss"].mean()
    reached = means.index[(means <= target) & (means.index > 0)]
    return float(reached.min()) if len(reached) else math.inf


def _sensitivity(curve: Curve) -> float:
    """LR sensitivity in nats; inf where nothing was learned; above 0, as a profile needs."""
    value = lr_sensitivity(curve)
    return max(value, 1e-12) if math.isfinite(value) else math.inf


def _profile(costs: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The profile of one cost, columns ``method``, ``own``, ``label``, ``tau``, ``share``."""
    key = costs["method"] + "\n" + costs["own"]
    table = pd.DataFrame({"method": key, "problem": costs["problem"], "cost": costs[cost]})
    profile = performance_profile(table, TAUS)
    parts = profile["method"].str.split("\n", n=1, expand=True)
    labels = [_label(*line) for line in zip(parts[0], parts[1], strict=True)]
    return profile.assign(method=parts[0], own=parts[1], label=labels)


def _label(method: str, own: str) -> str:
    (look,) = styles([(method, "")])
    return f"{look.label} ({own})" if own else look.label


def _draw_profiles(
    axes: Axes, profile: pd.DataFrame, looks: dict[tuple[str, str], Style], cost: str
) -> None:
    for i, (line, look) in enumerate(looks.items()):
        own = profile.loc[(profile["method"] == line[0]) & (profile["own"] == line[1])]
        axes.plot(
            own["tau"],
            own["share"],
            look.dash,
            color=look.colour,
            marker=look.marker,
            markevery=(5 * (i % 6), 40),
            drawstyle="steps-post",
        )
        for tau, share in _steps_of(own["tau"].to_numpy(), own["share"].to_numpy()):
            text = f"{_label(*line)}\nwithin {tau:.2f} x the best on {share:.0%} of the problems"
            note(axes, tau, share, text)
    axes.set_xscale("log")
    axes.set_xlim(1, TAUS[-1])
    axes.xaxis.set_major_locator(FixedLocator([1, 1.5, 2, 3, 4, 6, 8]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tau, _: f"{tau:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel(f"factor of the lowest {cost}", fontsize=7.5)
    axes.set_title(cost, fontsize=8)


def _steps_of(taus: np.ndarray, shares: np.ndarray) -> Sequence[tuple[float, float]]:
    """Where a profile begins, and where it rises."""
    rises = [0, *(np.flatnonzero(np.diff(shares)) + 1)]
    return [(float(taus[i]), float(shares[i])) for i in rises]


def _handle(label: str, look: Style) -> Line2D:
    return Line2D([], [], color=look.colour, linestyle=look.dash, marker=look.marker, label=label)
