"""Where a grid must grow: the rules, and rounds of them on synthetic landscapes."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.errors import ConfigError
from optlab.extend import (
    HIGHEST,
    LOWEST,
    Decision,
    Extend,
    Points,
    Side,
    account,
    decide,
    grid_point,
    parse_extend,
    plan_round,
    refinement,
    spacing,
)
from optlab.sweep import log_grid

INITIAL = 2.0
Entry = float | str  # a loss, 'diverged', 'hole' or a loss that is certified, as '=0.3'


def points(entries: Sequence[Entry], first: int = -2, per_decade: int = 1) -> Points:
    """A curve from 10^first on."""
    lr = [grid_point(first * per_decade + k, per_decade) for k in range(len(entries))]
    diverged = [entry == "diverged" for entry in entries]
    losses = [
        INITIAL
        if entry == "diverged"
        else math.nan
        if entry == "hole"
        else min(INITIAL, float(str(entry).lstrip("=")))
        for entry in entries
    ]
    return Points(
        lr=lr,
        loss=losses,
        initial=INITIAL,
        diverged=diverged,
        ceiling=[loss >= INITIAL for loss in losses],
        done=[entry != "hole" for entry in entries],
        certified=[str(entry).startswith("=") for entry in entries],
    )


@pytest.mark.parametrize(
    ("entries", "left", "right"),
    [
        ([1.0, 0.9, 0.1, 0.9, 1.0], ("bounded", ()), ("bounded", ())),
        ([0.9, 0.1, 0.9, 1.0], ("open", (0.001,)), ("bounded", ())),
        ([0.1, 0.9, 1.0], ("open", (0.001, 0.0001)), ("bounded", ())),
        ([1.0, 0.9, 0.1], ("bounded", ()), ("open", (10.0, 100.0))),
        ([1.0, 0.9, 0.1, 0.15, 0.9], ("bounded", ()), ("open", (1000.0,))),
        ([0.1], ("open", (0.001, 0.0001)), ("open", (0.1, 1.0))),
        ([1.0, 0.9, 0.1, "diverged"], ("bounded", ()), ("divergence", ())),
        ([1.0, 0.9, 0.1, 2.5], ("bounded", ()), ("divergence", ())),
        ([1.0, 0.9, 0.1, 0.9, "diverged"], ("bounded", ()), ("bounded", ())),
        ([1.0, 0.9, 0.1, 0.9, "=1.9"], ("bounded", ()), ("bounded", ())),
        ([1.0, 0.9, 0.1, "=0.1"], ("bounded", ()), ("certified", (100.0, 1000.0))),
        ([1.0, 0.9, 0.1, "=0.9"], ("bounded", ()), ("certified", (100.0,))),
        ([1.0, 0.9, "=0.1", 0.9], ("bounded", ()), ("open", (100.0,))),
        (["diverged", "diverged"], ("open", (0.001, 0.0001)), ("divergence", ())),
        ([2.0, 2.1], ("open", (0.001, 0.0001)), ("divergence", ())),
    ],
)
def test_two_points_are_wanted_beyond_the_basin_on_either_side(
    entries: list[Entry], left: tuple[str, tuple], right: tuple[str, tuple]
) -> None:
    decision = decide(points(entries), guard=2, per_decade=1)

    assert decision.left and (decision.left.ending, decision.left.wanted) == left
    assert decision.right and (decision.right.ending, decision.right.wanted) == right
    assert set(decision.to_run) == {lr for end, lrs in (left, right) if end == "open" for lr in lrs}
    assert decision.to_draw == (right[1] if right[0] == "certified" else ())


@given(st.lists(st.sampled_from([0.1, 1.0, "diverged", "=0.1", "hole"]), min_size=1, max_size=6))
def test_a_hole_anywhere_asks_for_nothing(entries: list[Entry]) -> None:
    decision = decide(points(entries), guard=2, per_decade=1)

    assert decision.waiting == ("hole" in entries)
    if decision.waiting:
        assert (
            decision.to_run == decision.to_draw == () and account(decision, points(entries)) == []
        )


def test_a_side_whose_basin_reaches_the_edge_is_censored() -> None:
    decision = decide(points([0.9, 0.1]), guard=2, per_decade=1)

    assert decision.left and decision.right
    assert not decision.left.censored and decision.right.censored
    assert account(decision, points([0.9, 0.1])) == [
        "left: only 1 of the points wanted lie beyond the basin",
        "right: the basin reaches 0.1, the edge of the grid: a larger lr may do",
    ]


def test_the_nearest_points_come_first_from_both_sides() -> None:
    assert decide(points([0.1]), guard=2, per_decade=1).to_run == (0.001, 0.1, 0.0001, 1.0)


def test_nothing_is_wanted_beyond_the_bounds() -> None:
    low = decide(points([0.1, 0.9, 1.0], first=-8), guard=2, per_decade=1)
    high = decide(points([1.0, 0.9, 0.1], first=2), guard=2, per_decade=1)

    assert low.left == Side("limit", 0) and Side("limit", 0).censored and not low.to_run
    assert high.right == Side("open", 0, (HIGHEST,))
    assert "1e-08 and 100000 are the bounds" in account(low, points([0.1, 0.9, 1.0], first=-8))[0]


@pytest.mark.parametrize("per_decade", [1, 2, 3, 4, 5])
def test_new_points_are_those_of_the_log_grid_next_to_the_edge(per_decade: int) -> None:
    grid = log_grid(-3, 0, per_decade)
    wide = log_grid(-4, 1, per_decade)
    curve = replace(points([0.1] * len(grid)), lr=grid)
    decision = decide(curve, guard=per_decade, per_decade=per_decade)

    assert spacing(grid) == per_decade
    assert sorted([*grid, *decision.to_run]) == wide


def test_a_grid_between_the_points_of_the_log_grid_goes_on_with_these() -> None:
    curve = replace(points([0.1, 0.1, 0.1]), lr=[0.02, 0.05, 0.3])

    assert spacing([0.02, 0.05, 0.3]) == 1
    assert decide(curve, guard=1, per_decade=2).to_run == (0.01, 1.0)
    assert spacing([0.1]) == 2


def test_refining_halves_the_spacing_beside_the_optimum() -> None:
    assert refinement([0.01, 0.1, 1.0], 1) == (0.03162, 0.3162)
    assert refinement([0.01, 0.03162, 0.1], 1) == (0.01778, 0.05623)
    assert refinement([0.01, 0.03162, 0.1], 0) == (0.01778,)
    assert refinement([0.1], 0) == ()
    assert refinement([0.2, 0.3], 0) == (0.2449,)
    assert set(refinement(log_grid(-2, 0, 3), 3)) <= set(log_grid(-2, 0, 6))


@dataclass
class Study:
    """Curves over landscapes, extended round by round as a launch would; every run is counted."""

    landscapes: dict[str, Callable[[float], Entry]]
    settings: Extend
    room: float = math.inf

    def __post_init__(self) -> None:
        self.curves: dict[str, dict[float, Entry]] = {name: {} for name in self.landscapes}
        self.rounds: list[dict[str, tuple[float, ...]]] = []
        self.cost = 0.0

    def run(self, curve: str, lr: Sequence[float]) -> None:
        for each in lr:
            assert each not in self.curves[curve], "run twice"
            assert LOWEST <= each <= HIGHEST
            self.curves[curve][each] = self.landscapes[curve](math.log10(each))

    def decisions(self) -> dict[str, Decision]:
        per_decade = self.settings.per_decade or 2
        return {
            name: decide(self.points(name), self.settings.guard, per_decade) for name in self.curves
        }

    def points(self, curve: str) -> Points:
        cells = dict(sorted(self.curves[curve].items()))
        return replace(points(list(cells.values())), lr=list(cells))

    def extend(self, order: Sequence[str] | None = None) -> None:
        """Until nothing is wanted; one unit of cost a point."""
        for _ in range(1000):
            decisions = self.decisions()
            spent = {name: sum(name in each for each in self.rounds) for name in self.curves}
            plan = plan_round(
                {name: decisions[name] for name in order or decisions},
                spent,
                self.settings.rounds,
                cost=lambda curve: 1.0,
                room=self.room - self.cost,
            )
            if not plan:
                return
            self.rounds.append({each.curve: each.lr for each in plan})
            for each in plan:
                self.run(each.curve, each.lr)
                self.cost += len(each.lr)
        raise AssertionError("does not terminate")


def valley(centre: float, slope: float, cliff: float) -> Callable[[float], Entry]:
    """One minimum at 10^centre; diverging from 10^cliff on; everything else learns a little."""

    def loss(x: float) -> Entry:
        if x >= cliff:
            return "diverged"
        return INITIAL - 1.5 * math.exp(-slope * abs(x - centre))

    return loss


valleys = st.builds(
    lambda centre, slope, room: (centre, slope, centre + room),
    centre=st.floats(-6.5, 3.5),
    slope=st.floats(0.2, 2.0),
    room=st.floats(0.6, 9.0),
)
grids = st.tuples(st.integers(-6, 1), st.integers(0, 4))


@given(valley_of=valleys, grid=grids, per_decade=st.integers(1, 4), guard=st.integers(1, 3))
def test_with_enough_rounds_the_optimum_is_found_and_lies_inside(
    valley_of: tuple[float, float, float], grid: tuple[int, int], per_decade: int, guard: int
) -> None:
    landscape = valley(*valley_of)
    study = Study({"a": landscape}, Extend(rounds=100, per_decade=per_decade, guard=guard))
    study.run("a", log_grid(grid[0], grid[0] + grid[1], per_decade))
    study.extend()
    (decision,) = study.decisions().values()
    found = study.points("a")
    everywhere = {lr: landscape(math.log10(lr)) for lr in log_grid(-8, 5, per_decade)}
    best = min((loss, lr) for lr, loss in everywhere.items() if isinstance(loss, float))

    assert decision.best is not None and found.lr[decision.best] == best[1]
    for side in decision.sides:
        assert side.ending in ("bounded", "divergence", "limit")
        if side.ending == "limit":
            assert LOWEST in found.lr or HIGHEST in found.lr


@given(
    landscapes=st.dictionaries(st.sampled_from("abcd"), valleys, min_size=1),
    grid=grids,
    rounds=st.integers(1, 4),
    guard=st.integers(1, 3),
    room=st.integers(0, 12),
)
def test_rounds_and_budget_are_kept_and_nothing_is_run_twice(
    landscapes: dict, grid: tuple[int, int], rounds: int, guard: int, room: int
) -> None:
    valleys = {name: valley(*each) for name, each in landscapes.items()}
    study = Study(valleys, Extend(rounds=rounds, per_decade=2, guard=guard), room=room)
    for name in valleys:
        study.run(name, log_grid(grid[0], grid[0] + grid[1], 2))  # asserts that none is run twice
    study.extend()

    assert study.cost <= room
    for name in valleys:
        assert sum(name in each for each in study.rounds) <= rounds
        assert all(len(each.get(name, ())) <= 2 * guard for each in study.rounds)


@given(
    landscapes=st.dictionaries(st.sampled_from("abcd"), valleys, min_size=2),
    room=st.integers(0, 12),
    shuffle=st.randoms(use_true_random=False),
)
def test_the_order_of_curves_and_of_points_does_not_matter(
    landscapes: dict, room: int, shuffle: random.Random
) -> None:
    order = list(landscapes)
    shuffle.shuffle(order)
    studies = []
    for names in (sorted(landscapes), order):
        valleys = {name: valley(*landscapes[name]) for name in names}
        study = Study(valleys, Extend(rounds=2, per_decade=2), room=room)
        for name in names:
            grid = log_grid(-3, -1, 2)
            shuffle.shuffle(grid)
            study.run(name, grid)
        study.extend(names)
        studies.append(study)

    assert studies[0].curves == studies[1].curves and studies[0].rounds == studies[1].rounds


@given(valley_of=valleys, cliff=st.floats(-2.4, 3.0), guard=st.integers(1, 4))
def test_no_more_than_the_first_diverging_points_are_run_on_the_right(
    valley_of: tuple[float, float, float], cliff: float, guard: int
) -> None:
    """Divergence is never followed: at most one round runs into it."""
    study = Study({"a": valley(valley_of[0], valley_of[1], cliff)}, Extend(100, 2, guard))
    study.run("a", log_grid(-3, -2.5, 2))
    study.extend()

    assert sum(entry == "diverged" for entry in study.curves["a"].values()) <= guard


def test_a_plateau_that_certifies_itself_is_not_run_further() -> None:
    """Flat from 0.1 on, where no step is capped any more."""
    study = Study({"a": lambda x: "=0.2" if x >= -1 else 0.2 - x / 2}, Extend(rounds=100, guard=2))
    study.run("a", log_grid(-3, -2, 2))
    study.extend()
    (decision,) = study.decisions().values()

    assert max(study.curves["a"]) == 0.1
    assert decision.to_draw == (0.3162, 1.0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"round": 3}, "unknown key 'round'. Did you mean 'rounds'?"),
        ({"rounds": 0}, "extend.rounds must be a count above 0, not 0"),
        ({"rounds": None}, "extend.rounds must be a count above 0, not None"),
        ({"guard": 1.5}, "extend.guard must be a count above 0"),
        ({"per_decade": True}, "extend.per_decade must be a count above 0"),
        (3, "extend must be a mapping such as 'extend: {rounds: 3, per_decade: 2, guard: 2}'"),
    ],
)
def test_wrong_settings_are_refused(value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_extend(value, "sweeps/x.yaml")

    assert expected in str(caught.value) and "sweeps/x.yaml" in str(caught.value)


def test_settings_have_defaults() -> None:
    assert parse_extend({}, "") == Extend(rounds=3, per_decade=None, guard=2)
    assert parse_extend({"per_decade": None, "guard": 1}, "") == Extend(guard=1)
