"""Which runs stand in one stack, and how stacks are cut for the workers that train them."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optlab.config import Run
from optlab.stacked.grouping import Group, by_kind, even, kind, packs, stacks
from support import environment, tiny


def run(*overrides: str) -> Run:
    return tiny(*overrides)[0]


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("adamw", ("optimizer.lr=0.5",)),
        ("adamw", ("seed=7",)),
        ("adamw", ("optimizer.weight_decay=0.1", "optimizer.eps=1.0e-6")),
        ("adamw", ("optimizer.betas=[0.9,0.999]",)),
        ("adamw", ("schedule=cosine",)),
        ("adamw", ("schedule.floor=0.5",)),
        ("adamw", ("train.init=orthogonal", "train.init_seed=3")),
        ("adamw", ("train.clip_norm=1.0",)),
        ("adamw", ("train.max_weight_growth=10.0", "train.diverged_after=3")),
        ("muonmax_momo", ("dataset.loss_lower_bound=0.3",)),
        ("muonmax_momo", ("optimizer.norms.matrix.scale=2.0", "optimizer.momentum=0.5")),
        ("muonmax_momo", ("optimizer.norms.others.beta2=0.99",)),
    ],
)
def test_runs_that_differ_in_what_a_stack_can_vary_are_of_one_kind(
    method: str, changes: tuple[str, ...]
) -> None:
    one, other = run(f"optimizer={method}"), run(f"optimizer={method}", *changes)

    assert one.id != other.id
    assert kind(one) == kind(other)


@pytest.mark.parametrize(
    ("method", "change"),
    [
        ("muon_adam", "optimizer.kind=regularized"),
        ("adamw", "model.width=4"),
        ("adamw", "model.depth=2"),
        ("adamw", "train.steps=7"),
        ("adamw", "train.batch_size=8"),
        ("adamw", "train.eval_every=3"),
        ("adamw", "train.precision=bfloat16"),
        ("muonmax_momo", "optimizer.momentum_form=ema_zero"),
        ("muonmax_momo", "optimizer.norms.matrix.polar.steps=5"),
        ("muonmax_momo", "optimizer.norms.matrix.polar.safety=1.05"),
        ("muonmax_momo", "optimizer.norms.matrix.blocks=2"),
        ("muonmax_momo", "optimizer/norms=spectral_linf"),
        ("muon_torch", "optimizer.ns_steps=4"),
    ],
)
def test_what_decides_the_shape_of_the_computation_parts_kinds(method: str, change: str) -> None:
    assert kind(run(f"optimizer={method}")) != kind(run(f"optimizer={method}", change))


def test_null_and_a_number_are_of_two_kinds() -> None:
    """Whether there is a norm of its own for a role is structure."""
    without, given_one = run(), run()
    norms = dict(given_one.config["optimizer"]["norms"], head={"scale": 1.0})
    optimizer = {**given_one.config["optimizer"], "norms": norms}
    changed = Run({**given_one.config, "optimizer": optimizer}, given_one.choices)

    assert kind(without) != kind(changed)


def test_one_and_zero_are_not_the_numbers_that_they_look_like() -> None:
    """Whole numbers and truth values are structure, also where they equal a float."""
    config = run().config
    kinds = {
        kind(Run({**config, "optimizer": {"x": value}}, {})) for value in (1, 0, True, 0.0, 1.0)
    }

    assert len(kinds) == 4  # the two floats are one


def test_runs_are_grouped_in_the_order_in_which_they_stand() -> None:
    mixed = [
        run(f"optimizer={method}", f"optimizer.lr={lr}")
        for lr in (0.1, 0.2)
        for method in ("adamw", "adam")
    ]
    grouped = by_kind(mixed)

    assert [[each.name for each in group] for group in grouped] == [
        ["adamw-lr0.1-s0", "adamw-lr0.2-s0"],
        ["adam-lr0.1-s0", "adam-lr0.2-s0"],
    ]


def groups_of(*parts: tuple[int, int, float | None]) -> list[Group]:
    """Groups of (runs, size, gain), each of a kind of its own."""
    made = []
    for index, (count, size, gain) in enumerate(parts):
        config = {**BASE.config, "model": {"width": index}}
        runs = [Run({**config, "seed": seed}, BASE.choices) for seed in range(count)]
        made.append(Group(runs, size, gain))
    return made


BASE = run()
PARTS = st.tuples(st.integers(1, 40), st.integers(1, 20), st.sampled_from([None, 1.0, 2.5, 6.0]))


@given(st.lists(PARTS, min_size=1, max_size=6), st.integers(1, 5))
def test_every_run_is_in_one_stack_of_its_kind_no_larger_than_allowed(parts, workers) -> None:
    groups = groups_of(*parts)
    made = stacks(groups, workers)

    seen = Counter(each.id for stack in made for each in stack)
    assert seen == Counter(each.id for group in groups for each in group.runs)
    sizes = {kind(group.runs[0]): group.size for group in groups}
    for stack in made:
        (of,) = {kind(each) for each in stack}
        assert len(stack) <= sizes[of]


@given(st.lists(PARTS, min_size=1, max_size=6), st.integers(1, 5))
def test_stacks_of_a_kind_are_of_one_size_give_or_take_a_run(parts, workers) -> None:
    made = stacks(groups_of(*parts), workers)

    for of in {kind(stack[0]) for stack in made}:
        sizes = [len(stack) for stack in made if kind(stack[0]) == of]
        assert max(sizes) - min(sizes) <= 1


@given(st.lists(PARTS, min_size=1, max_size=6), st.integers(1, 5))
def test_what_takes_longest_comes_first(parts, workers) -> None:
    groups = groups_of(*parts)
    of = {kind(group.runs[0]): group for group in groups}
    times = [of[kind(stack[0])].time(len(stack)) for stack in stacks(groups, workers)]

    assert all(later <= before for before, later in pairwise(times))


@given(st.integers(2, 60), st.integers(1, 6), st.sampled_from([None, 2.0, 4.0]))
def test_one_kind_keeps_every_worker_busy(count, workers, gain) -> None:
    """No stack is larger than a worker's share of the runs."""
    made = stacks(groups_of((count, 16, gain)), workers)

    assert max(map(len, made)) <= -(-count // workers)


def test_many_kinds_are_not_cut_for_nothing() -> None:
    """Every worker has many stacks: smaller ones would only cost."""
    made = stacks(groups_of(*[(9, 16, 5.0)] * 24), 2)

    assert [len(stack) for stack in made] == [9] * 24


def test_a_long_kind_beside_short_ones_is_cut() -> None:
    """Else one worker would train it long after the other has ended."""
    made = stacks(groups_of((32, 32, 8.0), (2, 2, 2.0)), 2)

    assert sorted(map(len, made)) == [2, 16, 16]


def test_one_worker_gets_stacks_as_large_as_allowed() -> None:
    assert [len(stack) for stack in stacks(groups_of((17, 8, None)), 1)] == [6, 6, 5]


def test_the_time_of_a_stack_lies_between_one_run_and_the_measured_size() -> None:
    (group,) = groups_of((20, 10, 5.0))
    alone = group.time(1)

    assert group.time(10) == pytest.approx(2 * alone)
    assert group.time(1) < group.time(5) < group.time(10) < group.time(20)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 20))
def test_packs_hold_every_run_once_and_no_more_than_they_may(counts, most) -> None:
    runs = [each for group in groups_of(*[(n, 1, None) for n in counts]) for each in group.runs]
    made = packs(runs, most)

    assert Counter(each.id for pack in made for each in pack) == Counter(r.id for r in runs)
    assert max(map(len, made)) <= most


def test_few_kinds_share_a_pack() -> None:
    """Two halves of one kind; a pack of small ones; none is cut that would fit whole."""
    groups = groups_of((18, 1, None), (5, 1, None), (7, 1, None), (3, 1, None))
    made = packs([each for group in groups for each in group.runs], 16)

    held = [Counter(each.config["model"]["width"] for each in pack) for pack in made]
    assert held == [{0: 9, 2: 7}, {0: 9, 1: 5}, {3: 3}]


def test_even_parts_keep_the_order() -> None:
    (group,) = groups_of((5, 1, None))

    assert [[each.seed for each in part] for part in even(group.runs, 2)] == [[0, 1, 2], [3, 4]]


def test_grouping_needs_no_torch() -> None:
    code = "import sys, optlab.stacked.grouping; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), check=False)

    assert done.returncode == 0
