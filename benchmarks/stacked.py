"""Times stacks of runs against the same runs trained one by one.

    python benchmarks/stacked.py [--cases digits_mlp ...] [--methods adamw ...] [--sizes 8 16 32]
        [--rounds 5] [--processes 0] [--device cpu]
    python benchmarks/stacked.py --sweep demo [--rounds 3] [--words KEY=VALUE ...]

The first form takes steps, the second launches whole sweeps, start-up and files included.

Steps: K runs with learning rates and seeds of their own take their steps (a) one run after the
other in one process, (b) in the honest alternative, as many single-thread processes as cores, each
with K runs; and stacked, likewise in one process and in all. In every round each form has its turn,
in which all processes begin together; the medians of the rounds' ratios count.

Sweeps: ``launch.py -m`` with ``hydra.launcher.stack=1`` and with ``auto``, in turns, each into an
empty store; their robustness tables are compared.

Tables are Markdown. Datasets that have to be prepared are found as training finds them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CASES = {
    "digits_mlp": ["model=mlp", "dataset=digits"],
    "digits_mlp_small": ["model=mlp", "model.width=32", "model.depth=2", "dataset=digits"],
    "fashion_mlp": ["model=mlp", "dataset=fashion_mnist"],
    "fashion_cnn": [
        "model=resnet20", "model.widths=[8,16]", "model.blocks=1", "dataset=fashion_mnist",
    ],
    "docs_gpt": [
        "model=gpt_tiny", "dataset=python_docs", "train.batch_size=8",
        "dataset.loss_lower_bound=0.0",
    ],
}  # fmt: skip
METHODS = ("adamw", "muon_adam", "muonmax_momo")
TURN = 0.3  # seconds that a form has in a round, at least one step
ENDLESS = 10**9  # steps


def main() -> None:
    args = arguments()
    if args.sweep:
        sweeps(args.sweep, args.rounds, args.words)
        return
    processes = args.processes or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        context.Process(target=work, args=(theirs, args.device), daemon=True).start()
        workers.append(ours)
    print(f"{processes} processes, median of {args.rounds} rounds; times as fast as (a), (b)\n")
    print("| runs | K | alone, steps/s | stacked | (a) 1 process | (b) all cores | memory |")
    print("|---|---|---|---|---|---|---|")
    for case in args.cases:
        for method in args.methods:
            for size in args.sizes:
                print(row(workers, case, method, size, args.rounds), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time stacks of runs against runs one by one.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=0, help="0: one per core")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sweep", help="launch this sweep as a whole instead")
    parser.add_argument("--words", nargs="*", default=[], help="further words of the launch")
    return parser.parse_args()


def row(workers: Sequence[Connection], case: str, method: str, size: int, rounds: int) -> str:
    for worker in workers:
        worker.send(("make", [*CASES[case], f"optimizer={method}"], size))
    problems = [worker.recv() for worker in workers]
    if problems[0]:
        return f"| {case}, {method} | {size} | not stacked: {problems[0]} | | | | |"
    one, many = [], []
    for _ in range(rounds + 1):  # the first warms up
        one.append(turn(workers[:1]))
        many.append(turn(workers))
    memory = ask(workers[:1], "memory")[0]
    a, b = one[1:], many[1:]
    return " | ".join([
        f"| {case}, {method}",
        f"{size}",
        f"{statistics.median(alone for alone, _ in a):.0f}",
        f"{statistics.median(stacked for _, stacked in a):.0f}",
        f"{statistics.median(stacked / alone for alone, stacked in a):.2f}x",
        f"{statistics.median(stacked / alone for alone, stacked in b):.2f}x",
        f"{memory} |",
    ])  # fmt: skip


def turn(workers: Sequence[Connection]) -> tuple[float, float]:
    """Steps of single runs a second, of all workers: alone, stacked."""
    return sum(ask(workers, "alone")), sum(ask(workers, "stacked"))


def ask(workers: Sequence[Connection], what: str) -> list[Any]:
    for worker in workers:
        worker.send((what,))
    return [worker.recv() for worker in workers]


def work(connection: Connection, device: str) -> None:
    """A process that takes steps when it is told to."""
    import torch

    torch.set_num_threads(1)
    forms: dict[str, Callable[[], float]] = {}
    while True:
        try:
            what, *how = connection.recv()
        except EOFError:  # all is measured
            return
        if what == "make":
            forms.clear()  # gives the memory back first
            found = made(device, *how)
            forms = {} if isinstance(found, str) else found
            connection.send(found if isinstance(found, str) else "")
        elif what == "memory":
            peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
            connection.send("-" if peak is None else f"{peak:.0f} MiB")
        else:
            connection.send(forms[what]())


def made(device: str, words: list[str], size: int) -> dict[str, Callable[[], float]] | str:
    """What takes turns; why there is no stack, where there is none."""
    import torch

    from optlab.attempt import prepare_process
    from optlab.build import build, load_data
    from optlab.config import compose_run
    from optlab.diagnostics import Gauge
    from optlab.stacked.stack import CannotStack, Replica, Stack
    from optlab.train import Progress, random_states, train

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = []
    for index in range(size):
        lr = f"optimizer.lr={1e-5 * (1 + index / size)}"  # so small that nothing diverges
        run, settings = compose_run([*words, lr, f"seed={index % 3}", f"runtime.device={device}"])
        runs.append(run)
    place = prepare_process(settings)
    data = {run.seed: load_data(run) for run in runs}
    config = replace(runs[0].train, steps=ENDLESS, eval_every=ENDLESS)

    def begun() -> Progress:
        return Progress(records=1, initial_loss=float("inf"))

    singles = [train(build(run, place, data=data[run.seed]), config, begun()) for run in runs]

    def replica(run: Any) -> Replica:
        parts = build(run, place, data=data[run.seed])
        gauge = Gauge(parts.optimizer, lambda step: False)
        return Replica(config, parts, begun(), gauge, random_states())

    try:
        stack = Stack([replica(run) for run in runs])
    except CannotStack as error:
        return str(error)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def rate(action: Callable[[], object]) -> float:
        """Steps of single runs a second."""
        wait()
        started, times = time.perf_counter(), 0
        while time.perf_counter() - started < TURN:
            action()
            times += 1
            wait()
        return times * size / (time.perf_counter() - started)

    def one_by_one() -> None:
        for steps in singles:
            next(steps)

    return {"alone": lambda: rate(one_by_one), "stacked": lambda: rate(stack.advance)}


def sweeps(name: str, rounds: int, words: Sequence[str]) -> None:
    """Whole launches, in turns."""
    seconds: dict[str, list[float]] = {"1": [], "auto": []}
    tables = {}
    for _ in range(rounds):
        for stack, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter()
                launch(name, stack, Path(folder), words)
                taken.append(time.perf_counter() - started)
                (table,) = Path(folder).glob("results/**/robustness.md")
                tables[stack] = table.read_text()
    ratios = [one / auto for one, auto in zip(seconds["1"], seconds["auto"], strict=True)]
    print(f"| {name} | seconds, each round |\n|---|---|")
    for stack, taken in seconds.items():
        print(f"| stack={stack} | {', '.join(f'{each:.0f}' for each in taken)} |")
    print(
        f"\nTimes as fast: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    )
    same = tables["1"] == tables["auto"]
    print("The robustness tables are equal." if same else "The robustness tables differ:")
    if not same:
        print(tables["1"], tables["auto"], sep="\n")


def launch(name: str, stack: str, folder: Path, words: Sequence[str]) -> None:
    command = [
        sys.executable, "launch.py", "-m", f"sweeps={name}", f"hydra.launcher.stack={stack}",
        f"runtime.runs={folder / 'runs'}", f"runtime.results={folder / 'results'}", *words,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(("Stacked", "Not stacked", "Ended")):
            print(f"  {line}", flush=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
