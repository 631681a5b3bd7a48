"""Times one optimizer step of ours against torch's and pytorch_optimizer's Muon, side by side.

    python benchmarks/optimizer_step.py [--sets d64 d128 d256 d512] [--rounds 7] [--threads 1]
        [--device cpu]

All contenders take turns within one process, so that what else the machine does hits all of them;
the ratios of the medians count, the milliseconds hold only there. Newton-Schulz is Jordan's five
steps in bfloat16 for everyone. Peers without a step for embeddings and vectors get torch's fused
AdamW. All profit from ``keep_freed_memory``, as runs do. The last column is the share of the
measured matrix-product peak, counted on the 4 m² n + 2 m³ operations a step of the standard
iteration, whatever form is computed.

pytorch_optimizer is compared where it is installed (``pip install --no-deps pytorch_optimizer``).
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
from optlab.optim.memory import keep_freed_memory
from optlab.optim.norms import Ada2, AdaInf, Norm, Spectral
from optlab.optim.polar import Jordan
from optlab.optim.product import Hybrid, Max, ProductNorm
from optlab.optim.roles import Assignment, param_groups
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
    peak = matrix_product_peak(device)
    print(
        f"torch {torch.__version__}, {device}, {args.threads} threads, median of {args.rounds}"
        f" interleaved rounds; bfloat16 matrix-product peak {peak / 1e9:.0f} GFLOP/s"
    )
    for name in args.sets:
        contenders = {label: make(gpt(name, device)) for label, make in CONTENDERS.items()}
        print_table(name, interleaved(contenders, args.rounds, device), name, peak)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS)[:4])
    parser.add_argument("--rounds", type=int, default=7)
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
            norms=Assignment(Spectral(polar=Jordan(NEWTON_SCHULZ_STEPS, "bfloat16")), others),
            kind=kind,
            product=product,
            step_size=step_size,
        )
        loss = torch.ones((), device=next(model.parameters()).device)
        return lambda: optimizer.step(lambda: loss)

    return make


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


def split(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    groups = {group["role"]: group["params"] for group in param_groups(model)}
    return groups.pop("matrix"), [p for params in groups.values() for p in params]


CONTENDERS: dict[str, Callable[[nn.Module], Step]] = {
    "torch.optim.Muon + AdamW": torch_muon,
    "optlab MuonAdam": ours(AdaInf(), "constrained", Max(), Constant()),
    "optlab MuonMax-Momo": ours(Ada2(), "regularized", Hybrid(), Momo(lower_bound=0.0)),
    "torch.optim.AdamW alone": torch_adamw,
}
if find_spec("pytorch_optimizer"):
    CONTENDERS["pytorch_optimizer.Muon + AdamW"] = pytorch_optimizer_muon


def interleaved(
    steps: dict[str, Step], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds a step of each contender, one value a round, after one round to warm up."""
    repeats = {label: max(1, int(0.05 / seconds(step, 2, device))) for label, step in steps.items()}
    found: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            found[label].append(seconds(step, repeats[label], device))
    return found


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


def print_table(title: str, found: dict[str, list[float]], parameter_set: str, peak: float) -> None:
    reference = statistics.median(found["torch.optim.Muon + AdamW"])
    operations = newton_schulz_operations(gpt(parameter_set, torch.device("cpu")))
    print(f"\n{title}: width, depth, vocabulary {SETS[parameter_set]}")
    print(f"{'':32}{'ms':>9}{'faster than torch':>20}{'share of peak':>16}")
    for label, times in found.items():
        median = statistics.median(times)
        share = "" if "alone" in label else f"{operations / median / peak:.0%}"
        print(f"{label:32}{1e3 * median:9.2f}{reference / median:19.2f}x{share:>16}")


def newton_schulz_operations(model: nn.Module) -> float:
    """Of the standard iteration on all matrices, a multiplication and an addition being two."""
    shapes: Sequence[Tensor] = split(model)[0]
    sizes = [(min(x.shape), max(x.shape)) for x in shapes]
    return sum(NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3) for m, n in sizes)


def matrix_product_peak(device: torch.device) -> float:
    """FLOP/s: the best of several bfloat16 products."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
        for _ in range(5):
            best = max(best, 2 * size**3 / seconds(lambda a=a: a @ a, 2, device))
    return best


if __name__ == "__main__":
    main()
