"""Times one optimizer step of ours against torch's and pytorch_optimizer's Muon, side by side.

    python benchmarks/optimizer_step.py [--sets d64 d128 d256 d512] [--rounds 15] [--threads 1]
        [--device cpu]

All contenders take turns within one process, so that what else the machine does hits all of them;
the ratios of the medians count, the milliseconds hold only there. With one thread on a CPU they are
of processor time, which waiting for others does not stretch. Newton-Schulz is Jordan's five steps
in bfloat16 for everyone. Peers without a step for embeddings and vectors get torch's fused AdamW.
All profit from ``keep_freed_memory``, as runs do.

The last column is the share of the matrix-product peak, measured in the same rounds, counted on the
4 m² n + 2 m³ operations a step of the standard iteration, whatever form is computed. The row of the
products alone is a floor: our iteration on matrices at hand, stacked and normalized, and nothing
else; torch's fused AdamW on all parameters shows what reading and writing them takes.

The tables are Markdown. pytorch_optimizer is compared where it is installed (``pip install
--no-deps pytorch_optimizer``).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from optlab.models.gpt import GPT
from optlab.optim import SteepestDescent
from optlab.optim.layers import arranged
from optlab.optim.memory import keep_freed_memory
from optlab.optim.norms import Ada2, AdaInf, Norm, Spectral
from optlab.optim.polar import JORDAN, Jordan, apply_quintics, runs
from optlab.optim.product import Hybrid, Max, ProductNorm
from optlab.optim.roles import Assignment, assign, param_groups
from optlab.optim.steepest import Kind
from optlab.optim.stepsize import Constant, Momo, StepSize

SETS = {  # width, depth, vocabulary
    "d64": (64, 4, 128),
    "d128": (128, 4, 128),
    "d256": (256, 8, 8192),
    "d512": (512, 6, 8192),
    "gpt2_small": (768, 12, 50257),
}
LR = 1e-6  # the weights hardly move
NEWTON_SCHULZ_STEPS = 5

Step = Callable[[], object]


def main() -> None:
    args = arguments()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    print(
        f"torch {torch.__version__}, {device}, {args.threads} threads, medians of {args.rounds}"
        " interleaved rounds"
    )
    for name in args.sets:
        contenders = {label: make(gpt(name, device)) for label, make in CONTENDERS.items()}
        print_table(name, *interleaved(contenders, args.rounds, device))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS)[:4])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def gpt(name: str, device: torch.device) -> nn.Module:
    """A GPT with the parameter set ``name`` and a random gradient."""
    width, depth, vocabulary = SETS[name]
    torch.manual_seed(0)
    model = GPT(
        vocabulary, vocabulary, context=128, width=width, depth=depth, heads=width // 32
    ).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    return model


def ours(
    others: Norm, kind: Kind, product: ProductNorm, step_size: StepSize
) -> Callable[[nn.Module], Step]:
    def make(model: nn.Module) -> Step:
        optimizer = SteepestDescent(
            param_groups(model),
            LR,
            0.95,
            0.0,
            norms=Assignment(spectral(), others),
            kind=kind,
            product=product,
            step_size=step_size,
        )
        loss = torch.ones((), device=next(model.parameters()).device)
        return lambda: optimizer.step(lambda: loss)

    return make


def spectral() -> Spectral:
    return Spectral(polar=Jordan(NEWTON_SCHULZ_STEPS, "bfloat16"))


def torch_muon(model: nn.Module) -> Step:
    matrices, others = split(model)
    muon = torch.optim.Muon(
        matrices, lr=LR, momentum=0.95, weight_decay=0.0, ns_steps=NEWTON_SCHULZ_STEPS
    )
    adamw = torch.optim.AdamW(others, lr=LR, weight_decay=0.0, fused=True)
    return lambda: (muon.step(), adamw.step())


def pytorch_optimizer_muon(model: nn.Module) -> Step:
    import pytorch_optimizer

    matrices, others = split(model)
    muon = pytorch_optimizer.Muon(
        [{"params": matrices, "use_muon": True}], lr=LR, ns_steps=NEWTON_SCHULZ_STEPS
    )
    adamw = torch.optim.AdamW(others, lr=LR, weight_decay=0.0, fused=True)
    return lambda: (muon.step(), adamw.step())


def torch_adamw(model: nn.Module) -> Step:
    return torch.optim.AdamW(model.parameters(), lr=LR, fused=True).step


def products_alone(model: nn.Module) -> Step:
    """The iteration of ours on matrices that are stacked, normalized and in bfloat16 already."""
    groups = [group for group in param_groups(model) if group["role"] == "matrix"]
    parameters = [p for group in groups for p in group["params"]]
    batches = []
    for layers in arranged(parameters, assign(groups, Assignment(spectral(), AdaInf()))):
        stacks = layers.stacks([p.detach() for p in layers.x])
        norms = [torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in stacks]
        batches.append([(x / n).bfloat16() for x, n in zip(stacks, norms, strict=True)])

    def step() -> None:
        for ys in batches:
            for run in runs(ys, (JORDAN,) * NEWTON_SCHULZ_STEPS):
                ys = apply_quintics(ys, run)

    return step


def split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    groups = {group["role"]: group["params"] for group in param_groups(model)}
    return groups.pop("matrix"), [p for params in groups.values() for p in params]


TORCH, OURS = "torch.optim.Muon + AdamW", "optlab MuonAdam"
ALONE = ("products alone", "torch.optim.AdamW alone")
CONTENDERS: dict[str, Callable[[nn.Module], Step]] = {
    TORCH: torch_muon,
    OURS: ours(AdaInf(), "constrained", Max(), Constant()),
    "optlab MuonMax-Momo": ours(Ada2(), "regularized", Hybrid(), Momo(lower_bound=0.0)),
    ALONE[0]: products_alone,
    ALONE[1]: torch_adamw,
}
if find_spec("pytorch_optimizer"):
    CONTENDERS["pytorch_optimizer.Muon + AdamW"] = pytorch_optimizer_muon


def interleaved(
    steps: dict[str, Step], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Seconds a step of each contender, one value a round; and the peak, FLOP/s.

    A contender's caches are cold when its turn comes: its first step in a round is not counted.
    """
    product, operations = matrix_product(device)
    repeats = {label: max(1, int(0.02 / seconds(step, 2, device))) for label, step in steps.items()}
    found: dict[str, list[float]] = {label: [] for label in steps}
    peak = 0.0
    for _ in range(rounds):
        for label, step in steps.items():
            step()
            found[label].append(seconds(step, repeats[label], device))
        product()
        peak = max(peak, operations / seconds(product, 1, device))
    return found, peak


def seconds(step: Step, repeats: int, device: torch.device) -> float:
    clock = clock_of(device)
    synchronize(device)
    started = clock()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (clock() - started) / repeats


def clock_of(device: torch.device) -> Callable[[], float]:
    """Processor time where one thread does all the work, which others cannot stretch by waiting."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def print_table(name: str, found: dict[str, list[float]], peak: float) -> None:
    width, depth, vocabulary = SETS[name]
    medians = {label: statistics.median(times) for label, times in found.items()}
    operations = newton_schulz_operations(gpt(name, torch.device("cpu")))
    print(f"\nGPT {width} wide, {depth} deep, vocabulary {vocabulary};", end=" ")
    print(f"peak {peak / 1e9:.0f} GFLOP/s\n")
    print("| step | ms | faster than torch | time against ours | share of peak |")
    print("|---|---|---|---|---|")
    for label, time_ in medians.items():
        share = "" if label == ALONE[1] else f"{operations / time_ / peak:.0%}"
        print(
            f"| {label} | {1e3 * time_:.2f} | {medians[TORCH] / time_:.2f}x"
            f" | {time_ / medians[OURS]:.2f} | {share} |"
        )


def newton_schulz_operations(model: nn.Module) -> float:
    """Of the standard iteration on all matrices, a multiplication and an addition being two."""
    shapes: Sequence[Tensor] = split(model)[0]
    sizes = [(min(x.shape), max(x.shape)) for x in shapes]
    return sum(NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3) for m, n in sizes)


def matrix_product(device: torch.device) -> tuple[Step, float]:
    """A product that runs at the machine's peak in bfloat16, and its operations."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return lambda: a @ a, 2 * size**3


if __name__ == "__main__":
    main()
