"""CIFAR: the archive's bytes become images, and training moves them as seed and step say."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from optlab.data import cifar
from optlab.data.base import Data, Sampler
from optlab.data.cifar import Cifar10, Cifar100, classify_colour_images, epoch_draws, moved
from optlab.data.prepare import RemoteFile, prepare
from optlab.errors import ConfigError

IMAGES, TESTS = 12, 5
KINDS = {"cifar10": (Cifar10, 10), "cifar100": (Cifar100, 100)}


def records(kind: type, images: int, classes: int, seed: int) -> np.ndarray:
    """Random records, uint8 (images, labels + pixels); the last image has the last class."""
    random = np.random.RandomState(seed)
    table = random.randint(256, size=(images, kind.layout.labels + 3072)).astype(np.uint8)
    table[:, 0] = random.randint(20, size=images)  # coarse where there are two
    table[:, kind.layout.labels - 1] = random.randint(classes, size=images)
    table[-1, kind.layout.labels - 1] = classes - 1
    return table


def archive(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.fixture(params=KINDS)
def made(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An archive in the official format with few images: (dataset class, its records, classes)."""
    kind, classes = KINDS[request.param]
    layout = dataclasses.replace(kind.layout, images=IMAGES, tests=TESTS)
    monkeypatch.setattr(kind, "layout", layout)
    names = [*layout.train, *layout.test]
    sizes = [IMAGES] * len(layout.train) + [TESTS]
    tables = [
        records(kind, size, classes, seed)
        for seed, size in zip(range(len(names)), sizes, strict=True)
    ]
    contents = {name: table.tobytes() for name, table in zip(names, tables, strict=True)}
    archive(tmp_path / kind.files[0].path, {**contents, "README": b"other"})
    return kind, tables, classes


def loaded(kind: type, classes: int, folder: Path, **changes: object) -> Data:
    settings = {"augment": False, "drop_last": False, **changes}
    dataset = kind(input_size=3072, output_size=classes, loss_lower_bound=0.0, **settings)
    return dataset.load(folder, seed=0, batch_size=4)


def test_every_image_is_the_archives_red_then_green_then_blue(made, tmp_path: Path) -> None:
    kind, tables, classes = made
    data = loaded(kind, classes, tmp_path)
    train, labels = np.concatenate(tables[:-1]), kind.layout.labels
    pixels = train[:, labels:].reshape(-1, 3, 32, 32).astype(np.float64)
    mean, std = (f(pixels, axis=(0, 2, 3))[:, None, None] for f in (np.mean, np.std))
    order = torch.cat([Sampler(len(train), 4, 0)(step) for step in range(len(train) // 4)])

    for step in range(len(train) // 4):
        inputs, targets = data.train(step)
        chosen = order[4 * step : 4 * step + 4].numpy()
        assert inputs.numpy() == pytest.approx((pixels[chosen] - mean) / std, abs=1e-5)
        assert targets.tolist() == train[chosen, labels - 1].tolist()
    (inputs, targets), val = data.val[0], tables[-1]
    expected = (val[:, labels:].reshape(-1, 3, 32, 32).astype(np.float64) - mean) / std
    assert inputs.numpy() == pytest.approx(expected, abs=1e-5)
    assert targets.tolist() == val[:, labels - 1].tolist()
    assert len(data.val) == 1


def test_a_prepared_archive_is_the_one_that_is_read(
    made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it is kept to the first batch, through ``prepare`` as the command calls it."""
    kind, _, classes = made
    kept = tmp_path / kind.files[0].path
    content = kept.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    there = RemoteFile(kind.files[0].path, (kept.as_uri(),), len(content), digest)
    monkeypatch.setattr(kind, "files", (there,))
    said: list[str] = []

    prepare("it", kind(3072, classes, 0.0, True, False), tmp_path / "new", said.append)

    assert said[-1] == f"Dataset it is ready in {tmp_path / 'new'}."
    one, other = (loaded(kind, classes, folder) for folder in (tmp_path, tmp_path / "new"))
    assert torch.equal(one.train(0)[0], other.train(0)[0])


def test_validation_images_are_not_moved(made, tmp_path: Path) -> None:
    kind, _, classes = made
    plain, augmented = (loaded(kind, classes, tmp_path, augment=a) for a in (False, True))

    assert torch.equal(plain.val[0][0], augmented.val[0][0])
    assert not torch.equal(plain.train(0)[0], augmented.train(0)[0])
    assert torch.equal(plain.train(0)[1], augmented.train(0)[1])


def colour(images: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.RandomState(seed)
    pixels = torch.from_numpy(random.randint(1, 256, size=(images, 3, 6, 6)).astype(np.uint8))
    return pixels, torch.arange(images) % 10


def test_a_moved_image_is_the_image_read_elsewhere() -> None:
    images, _ = colour(3)
    mirror = torch.tensor([False, True, False])
    shift = torch.tensor([[1, -2], [0, 3], [-4, 4]])
    result = moved(images, mirror, shift)

    for b in range(3):
        for row in range(6):
            for column in range(6):
                r, c = row + shift[b, 0].item(), column + shift[b, 1].item()
                inside = 0 <= r < 6 and 0 <= c < 6
                source = images[b].flip(-1) if mirror[b] else images[b]
                expected = source[:, r, c] if inside else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(result[b, :, row, column], expected)


def test_an_epoch_mirrors_about_half_and_shifts_everywhere_evenly() -> None:
    mirror, shift = epoch_draws(90_000, 3, 1)

    assert 0.49 < mirror.mean() < 0.51
    counts = np.bincount((shift[:, 0] + 4) * 9 + shift[:, 1] + 4, minlength=81)
    assert counts.min() > 900 and counts.max() < 1350  # 1,111 each, standard deviation 33
    assert not np.array_equal(epoch_draws(90_000, 3, 2)[1], shift)
    assert not np.array_equal(epoch_draws(90_000, 4, 1)[1], shift)


def test_resuming_at_any_step_gives_the_images_of_an_undisturbed_run() -> None:
    """Over three epochs of ten images, batches of four, some across the end of an epoch."""

    def data() -> Data:
        epoch_draws.cache_clear()
        return classify_colour_images(colour(10), colour(2), Sampler(10, 4, 5), augment=True)

    undisturbed = data()
    expected = [undisturbed.train(step)[0] for step in range(8)]

    for step in (7, 2, 5):
        assert torch.equal(data().train(step)[0], expected[step])


def test_an_image_is_moved_anew_in_each_epoch() -> None:
    data = classify_colour_images(colour(10), colour(2), Sampler(10, 10, 5), augment=True)
    epochs = [dict(zip(t.tolist(), x, strict=True)) for x, t in map(data.train, range(2))]

    assert sum(torch.equal(epochs[0][k], epochs[1][k]) for k in range(10)) <= 2


def test_augmentation_leaves_torchs_and_numpys_generators_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore
    epoch_draws.cache_clear()
    classify_colour_images(colour(10), colour(2), Sampler(10, 4, 5), augment=True).train(3)

    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # type: ignore


def test_the_draws_are_the_same_on_every_machine() -> None:
    """Pinned: if this fails, all results on augmented images change."""
    mirror, shift = epoch_draws(6, 0, 0)

    assert mirror.astype(int).tolist() == [1, 0, 1, 0, 1, 1]
    assert shift.tolist() == [[3, -4], [-2, 2], [0, -1], [0, -1], [-3, -4], [1, 0]]


@pytest.mark.parametrize("damage", ["cut", "flipped", "no tar", "missing", "short"])
def test_a_damaged_archive_is_refused_with_the_remedy(made, tmp_path: Path, damage: str) -> None:
    kind, tables, classes = made
    path = tmp_path / kind.files[0].path
    whole, name = path.read_bytes(), kind.layout.test[0]
    if damage in ("missing", "short"):
        names = [*kind.layout.train, *([] if damage == "missing" else [name])]
        tables = [*tables[:-1], tables[-1][:-1]]
        archive(path, {n: t.tobytes() for n, t in zip(names, tables, strict=False)})
    else:
        flipped = whole[:5000] + bytes([whole[5000] ^ 255]) + whole[5001:]
        wrong = {"cut": whole[:-5000], "flipped": flipped, "no tar": gzip.compress(b"x" * 4096)}
        path.write_bytes(wrong[damage])
    cifar.unpacked.cache_clear()

    remedy = rf"is not the whole archive of {path.parent.name}: .*data prepare {path.parent.name}"
    with pytest.raises(ConfigError, match=remedy):
        loaded(kind, classes, tmp_path)


def test_an_absent_archive_names_its_preparation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run `python -m optlab data prepare cifar10`"):
        loaded(Cifar10, 10, tmp_path)


def test_a_wrong_number_of_classes_is_told(made, tmp_path: Path) -> None:
    kind, *_ = made
    with pytest.raises(ConfigError, match=r"dataset\.output_size is declared as 7"):
        loaded(kind, 7, tmp_path)


def test_an_epoch_may_drop_its_last_images(made, tmp_path: Path) -> None:
    kind, tables, classes = made
    train = np.concatenate(tables[:-1])
    dataset = kind(3072, classes, 0.0, augment=True, drop_last=True)
    data, sampler = dataset.load(tmp_path, seed=2, batch_size=7), Sampler(len(train), 7, 2, True)

    assert len(train) % 7
    for step in range(3 * len(train) // 7):
        labels = train[sampler(step).numpy(), kind.layout.labels - 1]
        assert data.train(step)[1].tolist() == labels.tolist()
