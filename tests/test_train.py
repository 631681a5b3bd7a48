"""The training loop: what it records, when it stops, what a checkpoint must hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from optlab.build import batch_fingerprint, build, check, weights_fingerprint
from optlab.config import TrainConfig, compose_run
from optlab.data.base import Batch, Data
from optlab.errors import ConfigError
from optlab.schedule import Constant, ConstantLinear
from optlab.store import Record
from optlab.train import Parts, Progress, batch_loss, evaluate, train
from support import tiny

CPU = torch.device("cpu")
CONFIG = TrainConfig(
    steps=10, batch_size=4, eval_every=4, diverged_after=100, max_weight_growth=1e4
)


def quadratic(lr: float, loss: Callable[[Tensor, Tensor], Tensor] | None = None) -> Parts:
    """Minimize w² from w = 1 by gradient descent: w shrinks by (1 - 2 lr) a step."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)

    def batch(step: int) -> Batch:
        del step
        return torch.ones(4, 1), torch.zeros(4, 1)

    def square(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    data = Data(batch, [batch(0)], loss or square, {}, chance_loss=1.0)
    return Parts(model, data, optimizer, Constant(), torch.device("cpu"))


def run(parts: Parts, config: TrainConfig = CONFIG) -> tuple[list[Record], Progress]:
    progress = Progress()
    records = [record for record in train(parts, config, progress) if record is not None]
    return records, progress


def test_records_stand_at_the_start_every_so_often_and_at_the_end() -> None:
    records, progress = run(quadratic(0.1))

    assert [record.step for record in records] == [0, 4, 8, 10]
    assert [record.samples for record in records] == [0, 16, 32, 40]
    assert progress.finished and not progress.cause


def test_losses_are_those_of_gradient_descent() -> None:
    records, _ = run(quadratic(0.1))
    w = [0.8**step for step in range(11)]

    assert [record.val_loss for record in records] == pytest.approx(
        [w[step] ** 2 for step in (0, 4, 8, 10)], rel=1e-5
    )
    assert math.isnan(records[0].train_loss)
    assert [record.train_loss for record in records[1:]] == pytest.approx(
        [sum(v**2 for v in w[a:b]) / (b - a) for a, b in ((0, 4), (4, 8), (8, 10))], rel=1e-5
    )


def test_every_step_boundary_is_yielded() -> None:
    assert len(list(train(quadratic(0.1), CONFIG, Progress()))) == 11


def test_a_loss_that_is_not_finite_ends_the_run_before_it_can_step() -> None:
    calls = 0

    def explodes(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        loss = (outputs - targets).square().mean()
        return loss * math.nan if calls == 5 else loss  # one call is the evaluation at step 0

    parts = quadratic(0.1, explodes)
    records, progress = run(parts)

    assert progress.cause == "non-finite loss" and progress.step == 3
    assert records[-1].step == 3 and math.isnan(records[-1].train_loss)
    assert parts.model.weight.item() == pytest.approx(0.8**3)  # type: ignore[union-attr]


def test_a_loss_above_its_initial_value_for_long_ends_the_run() -> None:
    """At lr 1.05, w doubles back with |1 - 2.1| = 1.1 a step."""
    _, progress = run(quadratic(1.05), replace(CONFIG, steps=100, diverged_after=5))

    assert progress.cause == "loss above its initial value for 5 steps"
    assert progress.step == 5  # the loss of step 0 is the initial value itself


def test_a_spike_that_comes_back_is_no_divergence() -> None:
    """Five steps above the initial loss, then one below, over and over."""
    calls = 0

    def spiky(outputs: Tensor, targets: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        loss = (outputs - targets).square().mean()
        return loss * 0 + (0.5 if calls % 6 == 0 else 2.0 if calls > 1 else 1.0)

    _, progress = run(
        quadratic(0.1, spiky), replace(CONFIG, steps=60, eval_every=1000, diverged_after=6)
    )

    assert not progress.cause and progress.step == 60


def test_exploding_weights_end_the_run() -> None:
    _, progress = run(quadratic(3.0), replace(CONFIG, steps=100, max_weight_growth=100.0))

    assert progress.cause == "weight norm above 100 times its initial value"
    assert progress.step == 4  # 5⁴ = 625, and the norm is looked at with every record


def test_the_evaluation_weighs_batches_by_their_size() -> None:
    parts = quadratic(0.1)
    val = [(torch.ones(3, 1), torch.zeros(3, 1)), (2 * torch.ones(1, 1), torch.zeros(1, 1))]
    parts = replace(parts, data=replace(parts.data, val=val))

    assert evaluate(parts)["loss"] == pytest.approx((3 * 1 + 1 * 4) / 4)


def test_the_schedule_scales_the_learning_rate() -> None:
    run_, _ = tiny("optimizer=adamw", "optimizer.lr=0.5", "train.steps=10", "train.eval_every=1")
    records, _ = run_tiny(run_)

    factors = [ConstantLinear(0.4, 0.1)(step, 10) for step in range(10)]

    assert len(set(factors)) > 3
    assert [record.lr for record in records[1:]] == [0.5 * factor for factor in factors]


def run_tiny(run_: object) -> tuple[list[Record], Progress]:
    parts = build(run_, torch.device("cpu"))  # type: ignore[arg-type]
    return run(parts, run_.train)  # type: ignore[attr-defined]


@pytest.mark.parametrize("clip_norm", [0.5, 1e9])
def test_a_clipped_step_follows_the_gradient_for_at_most_the_norm(clip_norm: float) -> None:
    """w is 1 and its gradient 2: it moves by lr times the smaller of 2 and the norm."""
    parts = quadratic(0.1)
    next(steps := train(parts, replace(CONFIG, clip_norm=clip_norm), Progress()))
    next(steps)

    moved = 1 - parts.model.weight.item()  # type: ignore[union-attr, operator]
    assert moved == pytest.approx(0.1 * min(2.0, clip_norm), rel=1e-5)


def test_the_norm_that_is_clipped_is_that_of_all_parameters_together() -> None:
    """Every gradient shrinks by the same factor, to a whole of 0.01."""
    run_, _ = tiny("optimizer=sgd_momentum", "optimizer.lr=1.0", "optimizer.momentum=0.0")
    free, clipped = (build(run_, torch.device("cpu")) for _ in range(2))
    start = [p.detach().clone() for p in free.model.parameters()]
    moves = []
    for parts, clip_norm in ((free, None), (clipped, 0.01)):
        next(steps := train(parts, replace(run_.train, clip_norm=clip_norm), Progress()))
        next(steps)
        moved = [a.detach() - b for a, b in zip(parts.model.parameters(), start, strict=True)]
        moves.append(torch.cat([each.flatten() for each in moved]))
    factor = parts.schedule(0, run_.train.steps)  # type: ignore[possibly-undefined]

    assert moves[1].norm().item() == pytest.approx(0.01 * factor, rel=1e-4)
    torch.testing.assert_close(moves[1] / moves[1].norm(), moves[0] / moves[0].norm())


def test_clipping_leaves_the_loss_that_momo_models_as_it_is() -> None:
    """The danger of the two together, as published: dual norm clipped, loss not."""
    run_, _ = tiny("optimizer=muonmax_momo", "train.steps=1")
    clipped = replace(run_.train, clip_norm=1e-3)
    parts = [build(run_, torch.device("cpu")) for _ in range(2)]
    free, small = (
        [record for record in train(p, c, Progress()) if record is not None][-1]
        for p, c in zip(parts, (run_.train, clipped), strict=True)
    )

    assert small.train_loss == free.train_loss
    assert small.dual_norm < 0.1 * free.dual_norm


def test_an_initial_seed_fixes_the_weights_and_leaves_the_batches_to_the_seed() -> None:
    def start(*overrides: str) -> tuple[str, str]:
        parts = build(tiny(*overrides)[0], torch.device("cpu"))
        return weights_fingerprint(parts.model), batch_fingerprint(parts.data.train(0))

    default = start("seed=1")
    fixed = [start(f"seed={seed}", "train.init_seed=7") for seed in (1, 2)]

    assert fixed[0][0] == fixed[1][0] == start("seed=7")[0] != default[0]
    assert fixed[0][1] == default[1] != fixed[1][1]


def test_what_is_drawn_later_follows_the_seed_whatever_the_initial_one() -> None:
    run_ = [
        tiny(f"seed={seed}", f"train.init_seed={init}")[0]
        for seed, init in ((1, 7), (1, 8), (2, 7))
    ]
    drawn = []
    for each in run_:
        build(each, torch.device("cpu"))
        drawn.append(torch.rand(3).tolist())

    assert drawn[0] == drawn[1] != drawn[2]


def sizes_of_forward_passes(parts: Parts) -> list[int]:
    """Filled while the model trains: the samples of each of its forward passes."""
    sizes: list[int] = []
    parts.model.register_forward_hook(
        lambda module, args, out: sizes.append(len(args[0])) if module.training else None
    )
    return sizes


@pytest.mark.parametrize(
    ("micro_batch", "sizes"), [(None, [16]), (16, [16]), (99, [16]), (5, [5, 5, 5, 1]), (8, [8, 8])]
)
def test_a_batch_in_pieces_takes_the_step_of_the_whole(
    micro_batch: int | None, sizes: list[int]
) -> None:
    """To rounding of float32: 6 steps in another order of summation, found below 2e-7."""
    run_, _ = tiny("optimizer=muonmax_momo")
    whole = build(run_, torch.device("cpu"))
    parts = build(run_, CPU, micro_batch)
    seen = sizes_of_forward_passes(parts)
    (expected, _), (found, _) = run(whole, run_.train), run(parts, run_.train)

    assert seen == run_.train.steps * sizes
    for a, b in zip(found, expected, strict=True):
        assert (a.step, a.samples) == (b.step, b.samples)
        assert a.val_loss == pytest.approx(b.val_loss, rel=1e-5)
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("model", ["resnet20", "vit_small"])
def test_a_model_that_would_tell_the_pieces_of_a_batch_is_refused(model: str) -> None:
    """Whether it is built for a run or checked before a launch."""
    run_, _ = compose_run([f"model={model}", "train.batch_size=4", "optimizer=adamw"])

    for refuse in (
        lambda: check(run_, micro_batch=3),
        lambda: build(run_, CPU, micro_batch=3),
    ):
        with pytest.raises(ConfigError, match=r"\(3 of 4 samples\).*micro_batch=null"):
            refuse()
    check(run_, micro_batch=4)


def test_a_dropout_that_drops_nothing_may_be_taken_in_pieces() -> None:
    check(compose_run(["model=vit_small", "model.dropout=0.0", "optimizer=adamw"])[0], 3)


def test_bfloat16_is_of_the_forward_pass_alone() -> None:
    """Weights, gradients, the optimizer's state and the loss stay float32."""
    low, _ = tiny("optimizer=adamw", "train.precision=bfloat16")
    parts, plain = build(low, CPU), build(tiny("optimizer=adamw")[0], CPU)
    outputs: list[torch.dtype] = []
    parts.model.register_forward_hook(lambda module, args, out: outputs.append(out.dtype))
    (found, _), (expected, _) = run(parts, low.train), run(plain, low.train)

    assert set(outputs) == {torch.bfloat16}  # in training and in evaluation
    tensors = [*parts.model.parameters(), *(p.grad for p in parts.model.parameters())]
    tensors += [v for state in parts.optimizer.state.values() for v in state.values()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}  # type: ignore[union-attr]
    assert batch_loss(parts, parts.data.train(0)).dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.val_loss != b.val_loss
        assert a.val_loss == pytest.approx(b.val_loss, rel=2**-6)  # bfloat16 has 8 bits


@pytest.mark.parametrize("model", ["gpt2_tiny", "gpt_tiny"])
def test_a_text_model_trains_in_bfloat16(model: str) -> None:
    run_, _ = compose_run(
        [
            *(f"model={model}", "dataset=python_docs", "dataset.val_windows=4", "optimizer=adamw"),
            *("train.precision=bfloat16", "train.steps=3", "train.batch_size=4"),
        ]
    )
    records, progress = run_tiny(run_)

    assert not progress.cause and records[-1].val_loss < records[0].val_loss


def test_what_the_optimizer_reports_is_recorded() -> None:
    records, _ = run_tiny(tiny("optimizer=muonmax_momo", "optimizer.lr=100.0")[0])

    assert all(0 <= record.step_size < 100 for record in records[1:])
    assert all(record.dual_norm > 0 for record in records[1:])


@pytest.mark.parametrize("optimizer", ["adamw", "muonmax_momo"])
def test_the_same_seed_gives_every_method_the_same_start(optimizer: str) -> None:
    """Whatever was trained in the process before."""
    torch.rand(7)
    first, _ = run_tiny(tiny(f"optimizer={optimizer}")[0])
    run_tiny(tiny("optimizer=scion", "seed=9")[0])
    again, _ = run_tiny(tiny(f"optimizer={optimizer}")[0])
    other, _ = run_tiny(tiny("optimizer=scion")[0])

    assert [r.val_loss for r in first] == [r.val_loss for r in again]
    assert first[0].val_loss == other[0].val_loss
    assert first[1].val_loss != other[1].val_loss
