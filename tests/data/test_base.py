"""Laws of the sampler and of the losses that all datasets share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optlab.data.base import (
    Sampler,
    accuracy,
    check_size,
    classify_images,
    cross_entropy,
    data_folder,
    find_file,
    marginal_entropy,
    permutation,
    pixel_statistics,
)
from optlab.errors import ConfigError

SEEDS = st.integers(0, 2**64)


@given(st.integers(1, 40), st.integers(1, 100), SEEDS)
def test_every_sample_comes_exactly_once_per_epoch(size: int, batch_size: int, seed: int) -> None:
    batch_size = min(batch_size, size)
    sampler, epochs = Sampler(size, batch_size, seed), 4

    steps = math.ceil(epochs * size / batch_size)
    stream = torch.cat([sampler(step) for step in range(steps)])

    for epoch in stream[: epochs * size].split(size):
        assert sorted(epoch.tolist()) == list(range(size))


@given(st.integers(1, 40), st.integers(1, 100), SEEDS)
def test_an_epoch_that_drops_its_last_samples_is_whole_batches_of_distinct_ones(
    size: int, batch_size: int, seed: int
) -> None:
    batch_size = min(batch_size, size)
    sampler, whole = Sampler(size, batch_size, seed, drop_last=True), size // batch_size
    order = Sampler(size, size, seed)

    for epoch in range(3):
        taken = torch.cat([sampler(epoch * whole + step) for step in range(whole)])
        assert taken.tolist() == order(epoch)[: whole * batch_size].tolist()


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_batch_above_the_size_of_the_dataset_is_refused(drop_last: bool) -> None:
    Sampler(5, 5, 0, drop_last)
    with pytest.raises(ConfigError, match=r"train.batch_size is 6, and there are 5 training"):
        Sampler(5, 6, 0, drop_last)


@given(st.integers(1, 40), st.integers(1, 100), SEEDS, st.randoms(use_true_random=False))
def test_a_batch_depends_on_seed_and_step_only(size, batch_size, seed, random) -> None:
    """Resuming at any step, or asking in any order, gives the batches of an undisturbed run."""
    batch_size = min(batch_size, size)
    undisturbed = Sampler(size, batch_size, seed)
    expected = [undisturbed(step) for step in range(12)]

    steps = list(range(12))
    random.shuffle(steps)
    permutation.cache_clear()
    resumed = Sampler(size, batch_size, seed)

    for step in steps:
        assert torch.equal(resumed(step), expected[step])
        assert len(expected[step]) == batch_size


def test_a_batch_is_drawn_without_walking_through_the_earlier_ones() -> None:
    """Step 10^12 costs what step 0 costs."""
    permutation.cache_clear()

    assert len(Sampler(1000, 10, 0)(10**12)) == 10
    assert permutation.cache_info().misses == 1


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    """Also where the words of a long seed and of an epoch, put in a row, would be the same."""
    keys = [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0), (2**64, 0)]
    orders = {tuple(permutation(50, seed, epoch)) for seed, epoch in keys}

    assert len(orders) == len(keys)


def test_the_order_is_the_same_on_every_machine() -> None:
    """Pinned: if this fails, all results change; NumPy promises that these streams never do."""
    assert permutation(10, 0, 0).tolist() == [6, 5, 1, 7, 3, 0, 4, 8, 2, 9]
    assert permutation(10, 3, 7).tolist() == [5, 9, 4, 8, 1, 0, 3, 2, 7, 6]


def test_writing_into_a_batch_leaves_later_ones_alone() -> None:
    sampler = Sampler(10, 5, 0)
    expected = sampler(1).clone()

    sampler(1).zero_()

    assert torch.equal(sampler(1), expected)
    with pytest.raises(ValueError, match="read-only"):
        permutation(10, 0, 0)[0] = 3


@pytest.mark.parametrize(
    ("size", "batch_size", "seed", "named"),
    [(0, 1, 0, "training samples"), (5, 0, 0, "train.batch_size"), (5, 1, -1, "seed")],
)
def test_a_sampler_refuses_what_it_cannot_draw(size, batch_size, seed, named) -> None:
    with pytest.raises(ConfigError, match=named):
        Sampler(size, batch_size, seed)


def test_cross_entropy_is_the_mean_over_all_targets() -> None:
    outputs = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.manual_seed(0))
    targets = torch.randint(7, (3, 5), generator=torch.manual_seed(1))

    picked = outputs.log_softmax(-1).gather(-1, targets[..., None])

    torch.testing.assert_close(cross_entropy(outputs, targets), -picked.mean())
    torch.testing.assert_close(
        cross_entropy(outputs[:, 0], targets[:, 0]), -picked[:, 0].mean(), msg="(B, C) outputs"
    )


def test_accuracy_counts_the_largest_logits() -> None:
    outputs = torch.tensor([[[1.0, 2.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]])
    targets = torch.tensor([[1, 0], [1, 0]])

    assert accuracy(outputs, targets) == 0.75
    assert accuracy(outputs[:, 1], targets[:, 1]) == 0.5


@pytest.mark.parametrize(
    ("targets", "entropy"),
    [
        ([0, 1, 2, 3], math.log(4)),
        ([2, 2, 2], 0.0),
        ([0, 5, 5, 5], 2 * math.log(2) - 0.75 * math.log(3)),
    ],
)
def test_marginal_entropy_has_its_closed_forms(targets: list[int], entropy: float) -> None:
    assert marginal_entropy(torch.tensor(targets)) == pytest.approx(entropy, abs=1e-15)


def test_marginal_entropy_is_the_loss_of_the_best_constant_prediction() -> None:
    targets = torch.randint(6, (200,), generator=torch.manual_seed(0)) ** 2 % 6
    logits = torch.zeros(6, dtype=torch.float64)
    counts = torch.bincount(targets, minlength=6)
    best = (counts / counts.sum()).double().clamp_min(1e-30).log()

    at_best = cross_entropy(best.expand(200, 6), targets).item()

    assert marginal_entropy(targets) == pytest.approx(at_best, abs=1e-6)
    assert at_best < cross_entropy(logits.expand(200, 6), targets).item()


def test_pixel_statistics_are_those_of_the_float_images() -> None:
    images = torch.randint(256, (7, 5, 4), generator=torch.manual_seed(0), dtype=torch.uint8)

    mean, std = pixel_statistics(images)

    assert mean == pytest.approx(images.double().mean().item(), rel=1e-12)
    assert std == pytest.approx(images.double().std(correction=0).item(), rel=1e-12)


def test_images_are_scaled_by_training_statistics_and_keep_their_classes() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).reshape(6, 2, 2)
    train, val = (pixels[:5], torch.arange(5)), (pixels[5:], torch.tensor([4]))

    data = classify_images(train, val, seed=0, batch_size=5)
    inputs, classes = data.train(0)

    mean, std = pixel_statistics(pixels[:5])
    torch.testing.assert_close(inputs, (pixels[classes].unsqueeze(1).float() - mean) / std)
    torch.testing.assert_close(data.val[0][0], (pixels[5:].unsqueeze(1).float() - mean) / std)
    assert sorted(classes.tolist()) == [0, 1, 2, 3, 4]
    assert inputs.dtype == torch.float32
    assert classes.dtype == torch.int64


def test_the_chance_loss_of_images_is_that_of_the_training_classes() -> None:
    pixels = torch.arange(16, dtype=torch.uint8).reshape(4, 2, 2)
    train, val = (pixels, torch.tensor([0, 1, 1, 0])), (pixels, torch.tensor([3, 3, 3, 3]))

    assert classify_images(train, val, seed=0, batch_size=1).chance_loss == pytest.approx(
        math.log(2)
    )


def test_validation_batches_hold_the_whole_set_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optlab.data.base.VAL_BATCH", 4)
    pixels, classes = torch.arange(40, dtype=torch.uint8).reshape(10, 2, 2), torch.arange(10)

    data = classify_images((pixels, classes), (pixels, classes), seed=0, batch_size=1)

    assert [len(targets) for _, targets in data.val] == [4, 4, 2]
    assert torch.equal(torch.cat([targets for _, targets in data.val]), classes)
    assert len(torch.cat([inputs for inputs, _ in data.val])) == 10


def test_drawing_batches_leaves_the_global_generators_alone() -> None:
    """Else the order of the batches would change the initial weights."""
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore

    Sampler(100, 7, 3)(50)

    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # type: ignore


def test_the_data_folder_is_optlab_data_or_the_users_cache(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPTLAB_DATA", str(tmp_path / "chosen"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data_folder() == tmp_path / "chosen"

    monkeypatch.setenv("OPTLAB_DATA", "~/data")
    assert data_folder() == tmp_path / "home" / "data"

    monkeypatch.setenv("OPTLAB_DATA", "")
    assert data_folder() == tmp_path / "xdg" / "optlab"

    monkeypatch.delenv("OPTLAB_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_folder() == tmp_path / "home" / ".cache" / "optlab"


def test_a_missing_file_is_named_with_both_remedies(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_file(tmp_path, "mnist/images.gz", dataset="mnist")

    for part in [str(tmp_path / "mnist/images.gz"), "optlab data prepare mnist", "OPTLAB_DATA"]:
        assert part in str(caught.value)


def test_a_declared_size_that_the_data_contradict_is_refused() -> None:
    check_size("output_size", 10, 10)

    with pytest.raises(ConfigError, match=r"dataset\.output_size .* 9, but the data have 10"):
        check_size("output_size", 9, 10)
