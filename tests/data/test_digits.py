"""The digits against scikit-learn's own loader, and the laws of their split."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from optlab.data.base import Batch, Data, pixel_statistics
from optlab.data.digits import Digits, stratified_split
from optlab.errors import ConfigError

DIGITS = Digits(input_size=64, output_size=10, loss_lower_bound=0.0)
NOWHERE = Path("does not matter")


def load(seed: int = 0, batch_size: int = 1438) -> Data:
    return DIGITS.load(NOWHERE, seed=seed, batch_size=batch_size)


def rows(batch: Batch) -> list[tuple[float, ...]]:
    """Each sample as pixels and class, sorted."""
    inputs, classes = batch
    return sorted(map(tuple, torch.cat([inputs.flatten(1), classes[:, None]], dim=1).tolist()))


def test_the_images_and_classes_are_those_of_scikit_learn() -> None:
    """Training and validation together are the whole dataset, every sample once, standardized."""
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).to(torch.uint8)
    train, _ = stratified_split(classes)
    mean, std = pixel_statistics(pixels[train])
    expected: Tensor = (pixels.float() - mean) / std

    data = load()
    ours = rows(data.train(0)) + rows(data.val[0])

    assert sorted(ours) == rows((expected, torch.from_numpy(classes)))


def test_loading_does_not_import_scikit_learn() -> None:
    """Its import takes about a second, which every worker would pay."""
    program = (
        "import sys; from pathlib import Path; from optlab.data.digits import Digits;"
        "Digits(64, 10, 0.0).load(Path(), seed=0, batch_size=1);"
        "assert not any(name.split('.')[0] == 'sklearn' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_split_is_disjoint_complete_and_stratified() -> None:
    classes = np.repeat(np.arange(4), [5, 50, 101, 13])[
        np.random.RandomState(0).permutation(5 + 50 + 101 + 13)
    ]

    train, val = stratified_split(classes)

    assert sorted([*train, *val]) == list(range(len(classes)))
    assert np.bincount(classes[val]).tolist() == [1, 10, 20, 3]


def test_the_split_of_the_digits_never_changes() -> None:
    """Pinned: 1438 for training, 359 for validation, a fifth of each class."""
    data = load()
    inputs, classes = data.val[0]

    assert len(data.train(0)[1]) == 1438
    assert torch.bincount(classes).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert hashlib.sha256(classes.numpy().tobytes()).hexdigest()[:12] == "7d108ee8fe30"
    assert inputs.shape == (359, 1, 8, 8)


def test_training_inputs_have_mean_zero_and_unit_scale() -> None:
    inputs, _ = load().train(0)

    assert inputs.dtype == torch.float32
    assert inputs.double().mean().item() == pytest.approx(0, abs=1e-6)
    assert inputs.double().std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_the_seed_orders_the_training_batches_and_nothing_else() -> None:
    first, second = load(seed=0), load(seed=1)

    assert not torch.equal(first.train(0)[1], second.train(0)[1])
    assert rows(first.train(0)) == rows(second.train(0))
    assert all(torch.equal(a, b) for a, b in zip(first.val[0], second.val[0], strict=True))


def test_a_freshly_loaded_dataset_resumes_at_any_step() -> None:
    undisturbed = load(batch_size=100)
    batches = [undisturbed.train(step) for step in range(30)]

    resumed = load(batch_size=100)

    for step in range(17, 30):
        assert all(map(torch.equal, resumed.train(step), batches[step]))


def test_a_network_beats_the_chance_loss() -> None:
    """Inputs and classes belong together: a linear model learns from the one the other."""
    data = load(batch_size=100)
    model = torch.nn.Linear(64, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(100):
        inputs, classes = data.train(step)
        optimizer.zero_grad()
        data.loss(model(inputs.flatten(1)), classes).backward()
        optimizer.step()

    inputs, classes = data.val[0]
    outputs = model(inputs.flatten(1))

    assert data.chance_loss == pytest.approx(np.log(10), abs=1e-3)
    assert data.loss(outputs, classes).item() < 0.2 * data.chance_loss
    assert data.metrics["accuracy"](outputs, classes) > 0.9


@pytest.mark.parametrize(("key", "found"), [("input_size", 64), ("output_size", 10)])
def test_wrong_declared_sizes_are_refused(key: str, found: int) -> None:
    sizes = {"input_size": 64, "output_size": 10, key: 7}

    with pytest.raises(ConfigError, match=rf"dataset\.{key} .* 7, but the data have {found}"):
        Digits(**sizes, loss_lower_bound=0.0).load(NOWHERE, seed=0, batch_size=1)


def test_a_missing_or_gutted_scikit_learn_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("optlab.data.digits.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        load()

    spec = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("optlab.data.digits.find_spec", lambda name: spec)
    with pytest.raises(ConfigError, match=r"digits\.csv\.gz, which does not exist"):
        load()
