"""Composition, validation and ids of runs."""

from __future__ import annotations

import math
from dataclasses import MISSING, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from optlab.config import Composer, Run, TrainConfig, coerced, compose_run
from optlab.errors import ConfigError
from optlab.overrides import parse
from optlab.paths import CONF


def run_of(*overrides: str) -> Run:
    return compose_run(overrides)[0]


def test_the_id_is_twelve_hex_digits_and_the_same_every_time() -> None:
    first, second = run_of("seed=3"), run_of("seed=3")

    assert first.id == second.id
    assert len(first.id) == 12 and int(first.id, 16) >= 0


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "optimizer.lr=0.011",
        "optimizer=adamw",
        "optimizer/norms=spectral_adainf",
        "model.width=64",
        "train.steps=301",
        "train.diverged_after=101",
        "train.clip_norm=1.0",
        "train.init_seed=0",
        "dataset.loss_lower_bound=0.1",
        "schedule.floor=0.2",
    ],
)
def test_whatever_can_change_the_numbers_changes_the_id(override: str) -> None:
    assert run_of(override).id != run_of().id


@pytest.mark.parametrize(
    "override",
    [
        "runtime.runs=/elsewhere",
        "runtime.device=cpu",
        "runtime.threads=4",
        "runtime.checkpoint_every=1.0",
        "runtime.micro_batch=8",
        "runtime.compile=true",
        "tracking.mode=off",
        "tracking.project=other",
    ],
)
def test_a_change_of_machine_does_not_change_the_id(override: str) -> None:
    assert run_of(override).id == run_of().id


NEUTRAL = [
    "train.clip_norm=null",
    "train.init_seed=null",
    "train.init=default",
    "train.precision=float32",
]


def test_every_option_of_training_with_a_neutral_value_is_listed_here() -> None:
    """Also: that value is the default, in the file as in the class."""
    options = {each.name: each.default for each in fields(TrainConfig)}
    neutral = {key: value for key, value in options.items() if value is not MISSING}
    stated = OmegaConf.load(CONF / "config.yaml").train

    assert [override.split("=")[0] for override in NEUTRAL] == [f"train.{key}" for key in neutral]
    assert {key: stated[key] for key in neutral} == neutral


@pytest.mark.parametrize("override", NEUTRAL)
def test_an_option_at_its_neutral_value_is_no_part_of_a_run(override: str) -> None:
    key = override.split("=")[0].removeprefix("train.")

    assert run_of(override).id == run_of().id
    assert key not in run_of(override).config["train"]


def test_a_run_from_before_an_option_is_read_with_its_neutral_value() -> None:
    run = run_of()

    assert run.train.clip_norm is None and run.train.init_seed is None
    assert run_of("train.clip_norm=2").train.clip_norm == 2.0


def test_the_ids_of_the_default_run_and_of_a_text_run_stay_what_they_were() -> None:
    """A change here disowns every result that users have: say so under Numbers in CHANGELOG.md."""
    text = ["dataset=python_docs", "dataset.loss_lower_bound=2.1", "train.batch_size=16"]

    assert run_of().id == "b7ee0eb94751"
    assert run_of("optimizer=adamw", "seed=3").id == "bf4926b05f51"
    assert run_of("model=gpt2_tiny", *text).id == "2c67e02cd571"


def test_the_same_integer_may_stand_for_a_float_that_can_be_null() -> None:
    assert run_of("train.clip_norm=1").id == run_of("train.clip_norm=1.0").id
    assert type(run_of("train.init_seed=1").config["train"]["init_seed"]) is int


def test_an_integer_where_a_float_is_expected_is_the_same_run() -> None:
    assert run_of("optimizer.lr=1").id == run_of("optimizer.lr=1.0").id


def test_the_id_survives_yaml() -> None:
    """Small floats such as 1e-05 are a word in plain YAML 1.1."""
    run = run_of("optimizer.lr=1e-5", "dataset.loss_lower_bound=3e-7")
    text = OmegaConf.to_yaml(OmegaConf.create(dict(run.config)))
    back = Run(OmegaConf.to_container(OmegaConf.create(text)), run.choices)  # type: ignore[arg-type]

    assert back.id == run.id


@given(st.permutations(["seed=1", "optimizer=adamw", "optimizer.lr=0.5", "model.width=32"]))
def test_the_order_of_overrides_does_not_matter(overrides: list[str]) -> None:
    assert run_of(*overrides).id == run_of(*sorted(overrides)).id


def test_interpolations_are_resolved_in_a_run() -> None:
    run = run_of("optimizer=muonmax_momo", "dataset.loss_lower_bound=0.25")

    assert run.config["optimizer"]["step_size"]["lower_bound"] == 0.25


def test_a_composer_gives_what_a_fresh_composition_gives() -> None:
    """The cached bases must not leak from one run into the next."""
    composer = Composer()
    points = [{"optimizer": "adamw", "optimizer.lr": lr, "seed": 2} for lr in (0.1, 0.2, 0.1)]
    ids = [composer.run(point)[0].id for point in points]
    fresh = [run_of("optimizer=adamw", f"optimizer.lr={lr}", "seed=2").id for lr in (0.1, 0.2, 0.1)]

    assert ids == fresh


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer=sgd_momentun", "Did you mean 'sgd_momentum'?"),
        ("dataset=digit", "Did you mean 'digits'?"),
        ("optimizer.lrr=1", "There is no key 'optimizer.lrr'. Did you mean 'optimizer.lr'?"),
        ("train.step=3", "Did you mean 'train.steps'?"),
        ("trian.steps=3", "Did you mean 'train.steps'?"),
        ("seed.x=1", "There is no key 'seed.x'"),
        ("+new_key=1", "'+new_key=1' would change which keys a run has"),
        ("++optimizer.lr=1", "would change which keys"),
        ("~seed", "would change which keys"),
        ("seed=1.5", "seed must be an integer, not 1.5"),
        ("seed=null", "seed must be an integer, not None"),
        ("optimizer.lr=abc", "optimizer.lr must be a number, not 'abc'"),
        ("optimizer.lr=true", "optimizer.lr must be a number, not True"),
        ("optimizer.lr=-1", "optimizer.lr must be above 0, not -1.0"),
        ("optimizer.lr=0", "optimizer.lr must be above 0"),
        ("optimizer.lr=nan", "optimizer.lr must be a finite number, not nan"),
        ("optimizer.lr=inf", "optimizer.lr must be a finite number, not inf"),
        ("schedule.floor=nan", "schedule.floor must be a finite number"),
        ("seed=-1", "seed must be 0 or more"),
        ("seed=99999999999999999999999999", "below 2^63"),
        ("optimizer.norms.by_name=1", "optimizer.norms.by_name must be a dict"),
        ("train.steps=0", "train.steps must be above 0"),
        ("train.batch_size=0", "train.batch_size must be above 0"),
        ("runtime.threads=0", "runtime.threads must be at least 1"),
        ("runtime.checkpoint_every=-1", "runtime.checkpoint_every at least 0"),
        ("runtime.device=gpu", "runtime.device must be one of auto, cpu, cuda, not 'gpu'"),
        ("tracking.mode=offlin", "tracking.mode must be one of"),
        ("train.clip_norm=0", "train.clip_norm must be above 0, not 0.0"),
        ("train.clip_norm=often", "train.clip_norm must be a number or null, not 'often'"),
        ("train.init_seed=1.5", "train.init_seed must be an integer or null, not 1.5"),
        ("train.init=muP", "one of default, gpt2, orthogonal, mup, not 'muP'"),
        ("train.precision=bf16", "one of float32, bfloat16, not 'bf16'"),
        ("runtime.micro_batch=0", "runtime.micro_batch must be a number of samples, or null"),
        ("runtime.micro_batch=1.5", "runtime.micro_batch must be an integer or null, not 1.5"),
        ("train.init_seed=-1", "train.init_seed must be 0 or more"),
        ("optimizer.lr=1,2", "add -m"),
        ("optimizer.lr=[1", "is not an override"),
    ],
)
def test_bad_overrides_are_refused_with_what_to_do(override: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(override)

    assert expected in str(caught.value)


def test_a_key_that_is_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr is given 2 times"):
        run_of("optimizer.lr=0.1", "optimizer.lr=0.2")


def test_an_integer_default_says_how_to_allow_fractions() -> None:
    with pytest.raises(ConfigError, match=r"write its default as 6\.0"):
        run_of("optimizer.norms.matrix.polar.steps=0.5")


def test_norms_of_a_method_without_norms_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer/norms=l2 is no choice of optimizer=adamw"):
        run_of("optimizer=adamw", "optimizer/norms=l2")


def test_the_options_are_listed_nearest_first() -> None:
    with pytest.raises(ConfigError, match=r"has: muonmax(_momo)?, muonmax"):
        run_of("optimizer=muonmaxx")


def test_momo_without_a_lower_bound_says_where_to_set_one() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.loss_lower_bound=0\.0"):
        run_of("optimizer=muonmax_momo", "dataset=shakespeare")

    assert run_of("optimizer=adamw", "dataset=shakespeare").method == "adamw"
    assert run_of("optimizer=muonmax_momo", "dataset=shakespeare", "dataset.loss_lower_bound=1")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_pass_through_the_override_grammar(value: float) -> None:
    key, parsed = parse(f"optimizer.lr={value!r}")

    assert key == "optimizer.lr"
    assert math.isclose(parsed, value, rel_tol=0, abs_tol=0)


def test_a_default_of_null_takes_any_word_and_makes_integers_floats() -> None:
    assert coerced("tracking.entity", None, "team") == "team"
    assert isinstance(coerced("dataset.loss_lower_bound", None, 1), float)
