"""The methods of conf/optimizer as they are built from their YAML files."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optlab.build import build
from optlab.config import compose_run
from optlab.errors import ConfigError
from optlab.optim import SteepestDescent
from optlab.optim.memory import keep_freed_memory
from optlab.optim.norms import Spectral
from optlab.optim.roles import param_groups
from optlab.paths import CONF, ROOT
from optlab.train import Parts

SMALL = ("model.width=8", "model.depth=2", "train.batch_size=8")
METHODS = sorted(path.stem for path in (CONF / "optimizer").glob("*.yaml"))
CANNOT_RESUME = {"momo_official", "momo_adam_official"}  # state outside of state_dict
PAPER = {  # arXiv 2510.09827: kind, product, norm of the rest
    "muon_adam": ("constrained", "Max", "AdaInf"),
    "scion": ("constrained", "Max", "Linf"),
    "polargrad": ("regularized", "Euclidean", "Ada2"),
    "muonmax": ("regularized", "Hybrid", "Ada2"),
}


def parts_of(*overrides: str) -> Parts:
    run, _ = compose_run([*SMALL, *overrides])
    return build(run, torch.device("cpu"))


def steepest_of(*overrides: str) -> SteepestDescent:
    optimizer = parts_of(*overrides).optimizer
    assert isinstance(optimizer, SteepestDescent)
    return optimizer


def take(parts: Parts, steps: range) -> Tensor:
    """Train on the batches ``steps``; the weights after."""
    for step in steps:
        inputs, targets = parts.data.train(step)
        loss = parts.data.loss(parts.model(inputs), targets)
        parts.optimizer.zero_grad()
        loss.backward()
        parts.optimizer.step(lambda loss=loss: loss)  # type: ignore[arg-type]
    return torch.cat([p.detach().reshape(-1) for p in parts.model.parameters()])


@pytest.mark.parametrize("method", sorted(set(METHODS) - CANNOT_RESUME))
def test_every_method_resumes_exactly_from_a_file(method: str, tmp_path: Path) -> None:
    straight = take(parts_of(f"optimizer={method}"), range(6))

    first = parts_of(f"optimizer={method}")
    take(first, range(3))
    torch.save((first.model.state_dict(), first.optimizer.state_dict()), tmp_path / "checkpoint")
    model_state, optimizer_state = torch.load(tmp_path / "checkpoint", weights_only=True)
    second = parts_of(f"optimizer={method}", "seed=1")
    second.model.load_state_dict(model_state)
    second.optimizer.load_state_dict(optimizer_state)
    second = Parts(second.model, first.data, second.optimizer, second.schedule, second.device)

    assert torch.equal(take(second, range(3, 6)), straight)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("momo", ["", "_momo"])
def test_the_papers_methods_are_its_points_of_the_design_space(name: str, momo: str) -> None:
    optimizer = steepest_of(f"optimizer={name}{momo}")

    assert PAPER[name] == (
        optimizer.kind,
        type(optimizer.product).__name__,
        type(optimizer.norms.others).__name__,
    )
    assert type(optimizer.step_size).__name__ == ("Momo" if momo else "Constant")
    assert isinstance(optimizer.norms.matrix, Spectral)


def test_momo_takes_the_datasets_lower_bound() -> None:
    optimizer = steepest_of("optimizer=muonmax_momo", "dataset.loss_lower_bound=0.125")

    assert optimizer.step_size.lower_bound == 0.125  # type: ignore[attr-defined]


NORMS = ("spectral_linf", "spectral_adainf", "spectral_ada2")
PRODUCTS = ("Max", "Euclidean", "Hybrid")
KINDS = ("constrained", "regularized")


def variant(method: str, norms: str, product: str, kind: str, lr: float) -> Tensor:
    overrides = (
        f"optimizer={method}",
        f"optimizer/norms={norms}",
        f"optimizer.product._target_=optlab.optim.product.{product}",
        f"optimizer.kind={kind}",
        f"optimizer.lr={lr}",
    )
    return take(parts_of(*overrides), range(2))


def test_the_18_untruncated_variants_come_out_of_one_method_by_its_fields() -> None:
    """{norm of others} x {product} x {kind} (arXiv 2510.09827)."""
    found = [
        variant("muon_adam", *cell, lr=0.01)  # type: ignore[arg-type]
        for cell in itertools.product(NORMS, PRODUCTS, KINDS)
    ]

    assert len(found) == 18
    for one, other in itertools.combinations(found, 2):
        assert not torch.allclose(one, other, rtol=0, atol=1e-7)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("norms", NORMS)
def test_fully_truncated_steps_do_not_depend_on_the_kind(norms: str, product: str) -> None:
    """Both kinds then stop where the model reaches its bound, (f̄ - f_*) / ‖m‖_* away."""
    constrained, regularized = (
        variant("muon_adam_momo", norms, product, kind, lr=1e4) for kind in KINDS
    )

    assert torch.allclose(constrained, regularized, atol=1e-6)


def test_the_weights_of_sgd_momentum_and_its_steepest_form_agree() -> None:
    """Both YAML files mean an average of gradients by momentum."""
    sgd = take(parts_of("optimizer=sgd_momentum"), range(5))
    steepest = take(parts_of("optimizer=sgd_steepest"), range(5))

    assert torch.allclose(sgd, steepest, atol=1e-6)


@pytest.mark.parametrize("name", ["momo", "momo_star"])
def test_the_weights_of_momo_and_its_official_form_agree(name: str) -> None:
    star = "true" if name == "momo_star" else "false"
    official = parts_of("optimizer=momo_official", f"optimizer.use_fstar={star}")

    ours = take(parts_of(f"optimizer={name}"), range(5))
    assert torch.allclose(take(official, range(5)), ours, atol=1e-5)


@pytest.mark.parametrize("name", ["momo_adam", "momo_adam_star"])
def test_the_weights_of_momo_adam_and_its_official_form_agree(name: str) -> None:
    star = "true" if name == "momo_adam_star" else "false"
    official = parts_of("optimizer=momo_adam_official", f"optimizer.use_fstar={star}")

    ours = take(parts_of(f"optimizer={name}"), range(5))
    assert torch.allclose(take(official, range(5)), ours, atol=1e-5)


def test_official_momo_refuses_an_unknown_bound() -> None:
    model = nn.Linear(2, 2)
    from optlab.optim.momo_official import momo_official

    with pytest.raises(ConfigError, match="loss_lower_bound"):
        momo_official(
            param_groups(model), 1.0, 0.9, 0.0, lb=None, bias_correction=False, use_fstar=False
        )


def test_torchs_muon_follows_the_schedule_and_is_torchs() -> None:
    parts = parts_of("optimizer=muon_torch")
    names = [name for name, _ in parts.model.named_parameters()]
    matrices = [name for name in names if "layers" in name and name.endswith("weight")]
    reference = parts_of("optimizer=muon_torch").model
    both = dict(reference.named_parameters())
    muon = torch.optim.Muon([both[n] for n in matrices], lr=0.01, momentum=0.95, weight_decay=0.0)
    adamw = torch.optim.AdamW(
        [both[n] for n in names if n not in matrices], lr=0.01, betas=(0.95, 0.95), weight_decay=0
    )
    for step in range(3):
        for group in (*parts.optimizer.param_groups, *muon.param_groups, *adamw.param_groups):
            group["lr"] = 0.01 / (step + 1)
        inputs, targets = parts.data.train(step)
        loss = F.cross_entropy(reference(inputs), targets)
        reference.zero_grad()
        loss.backward()
        muon.step()
        adamw.step()
        take(parts, range(step, step + 1))

    for name, p in parts.model.named_parameters():
        assert torch.equal(p, both[name]), name


def test_torchs_muon_needs_matrices_and_others() -> None:
    from optlab.optim.muon_torch import TorchMuon

    with pytest.raises(ConfigError, match="needs matrices"):
        TorchMuon(
            param_groups(nn.Linear(2, 2, bias=False)),
            0.1,
            0.9,
            0.0,
            ns_steps=5,
            adjust_lr_fn="original",
            adamw_betas=[0.9, 0.9],
        )


def test_freed_memory_can_be_kept_where_the_system_is_linux() -> None:
    assert keep_freed_memory() == sys.platform.startswith("linux")


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    script = ROOT / "benchmarks" / "optimizer_step.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script), "--sets", "d64", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )

    assert done.returncode == 0, done.stderr
    assert "optlab MuonMax-Momo" in done.stdout and "faster than torch" in done.stdout
    assert "| products alone |" in done.stdout


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["muon_adam", "scion_momo", "muonmax_momo_stale", "ggnc"])
def test_a_gpu_steps_as_the_cpu_does(method: str) -> None:
    """In float32, to 1e-4 after five steps: products are summed in another order there."""
    overrides = (
        *SMALL,
        f"optimizer={method}",
        "optimizer.norms.matrix.polar.dtype=float32",
    )
    run, _ = compose_run(overrides)
    found = []
    for device in ("cpu", "cuda"):
        parts = build(run, torch.device(device))
        for step in range(5):
            inputs, targets = (part.to(device) for part in parts.data.train(step))
            loss = parts.data.loss(parts.model(inputs), targets)
            parts.optimizer.zero_grad()
            loss.backward()
            parts.optimizer.step(lambda loss=loss: loss)  # type: ignore[arg-type]
        found.append(torch.cat([p.detach().cpu().reshape(-1) for p in parts.model.parameters()]))

    assert torch.allclose(found[0], found[1], rtol=0, atol=1e-4)
