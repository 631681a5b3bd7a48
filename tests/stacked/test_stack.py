"""Stacked runs are the runs that they are alone: every method, every model, every way to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from optlab.config import compose_run
from optlab.paths import CONF
from stacked.sidebyside import alone, assert_same, frozen, in_float64, tinies, together

METHODS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
STEPS = 200
# float64: only the order of sums differs. 200 steps multiply a rounding error of 1e-16 by less than
# this; sums in another order, once fed through the sign of an entry near 0, need more.
WITHIN = 1e-7
SMALL = {  # by class: overrides that make a file's model tiny, and the data that it takes
    "MLP": ["model.width=8", "model.depth=1", "train.batch_size=16"],
    "Linear": ["train.batch_size=16"],
    "ResNet": ["model.widths=[3,4]", "model.blocks=1", "train.batch_size=8"],
    "VGG": ["model.widths=[3,4]", "model.convolutions=[1,1]", "train.batch_size=8"],
    "ViT": [
        "model.patch=4", "model.width=8", "model.depth=1", "model.heads=2", "model.hidden=8",
        "train.batch_size=8",
    ],
    "GPT": [
        "dataset=python_docs", "dataset.context=8", "model.width=8", "model.depth=1",
        "model.heads=2", "train.batch_size=2",
    ],
    "GPT2": [
        "dataset=python_docs", "dataset.context=8", "model.width=8", "model.depth=1",
        "model.heads=2", "train.batch_size=2",
    ],
}  # fmt: skip


def _default_lr(method: str) -> float:
    return float(OmegaConf.load(CONF / "optimizer" / f"{method}.yaml").lr)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_the_steps_that_it_takes_alone(tmp_path: Path, method: str) -> None:
    lr = _default_lr(method)
    runs = [
        run
        for rate in (lr / 3, lr)
        for run in tinies(
            f"optimizer={method}",
            f"optimizer.lr={rate}",
            f"train.steps={STEPS}",
            "train.eval_every=50",
            each=[["seed=0"], ["seed=1"]],
        )
    ]
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    with in_float64():
        told = together(runs, ours)
        alone(runs, theirs)

    assert told.lines == []
    assert_same(runs, ours, theirs, WITHIN)


def _forms() -> dict[str, tuple[str, ...]]:
    """The forms of the models of conf/, made tiny: sizes of one form are one."""
    forms: dict[str, tuple[str, ...]] = {}
    for path in sorted((CONF / "model").glob("*.yaml")):
        kind = str(OmegaConf.load(path)["_target_"]).rpartition(".")[2]
        words = (f"model={path.stem}", *SMALL[kind])
        config = compose_run([*words, "optimizer=muon_adam"])[0].config["model"]
        forms.setdefault(json.dumps(config, sort_keys=True), words)
    return {words[0].removeprefix("model="): words for words in forms.values()}


FORMS = _forms()


@pytest.mark.parametrize("form", FORMS)
def test_every_model_computes_what_it_computes_alone(tmp_path: Path, form: str) -> None:
    common = ("optimizer=muon_adam", f"train.steps={STEPS}", f"train.eval_every={STEPS}")
    each = (["seed=0"], ["seed=1", "optimizer.lr=0.003"], ["seed=1", "optimizer.lr=0.01"])
    runs = [compose_run([*FORMS[form], *common, *own])[0] for own in each]
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    with in_float64():
        told = together(runs, ours)
        alone(runs, theirs)

    assert told.lines == []
    assert_same(runs, ours, theirs, WITHIN)


def _products_do_not_depend_on_their_company(width: int, batch: int) -> bool:
    """Whether matrix products of replicas are the bits of single ones, on this machine."""
    x, w, g = (torch.randn(5, *shape) for shape in ((batch, 64), (width, 64), (batch, width)))
    together = torch.bmm(x, w.mT), torch.bmm(g, w), torch.bmm(g.mT, x)
    apart = [(x[k] @ w[k].T, g[k] @ w[k], g[k].T @ x[k]) for k in range(5)]
    return all(torch.equal(of[k], apart[k][i]) for i, of in enumerate(together) for k in range(5))


@pytest.mark.parametrize("method", ["sgd_momentum", "adamw", "polargrad", "muonmax_momo"])
def test_on_a_cpu_a_perceptron_takes_the_very_bits_also_where_it_diverges(
    tmp_path: Path, method: str
) -> None:
    """At large learning rates rounding is amplified to differences that one can see."""
    if not _products_do_not_depend_on_their_company(width=24, batch=16):
        pytest.skip("batched matrix products of this machine round otherwise than single ones")
    each = [[f"optimizer.lr={lr}", f"seed={k % 2}"] for k, lr in enumerate((0.01, 0.1, 1.0, 100.0))]
    runs = tinies(
        f"optimizer={method}", "model.width=24", "model.depth=2", "train.steps=100",
        "train.eval_every=10", each=each,
    )  # fmt: skip
    ours, theirs = frozen(tmp_path / "a", runs), frozen(tmp_path / "b", runs)
    told = together(runs, ours)
    alone(runs, theirs)

    assert told.lines == []
    assert_same(runs, ours, theirs, 0.0)
