"""How long a store takes to be read and analysed, for the first time and again.

    python benchmarks/analysis_store.py [--runs 3000] [--records 200]

Each look is a process of its own: its time includes the imports of pandas and of the analysis, not
the composition of the sweep nor the figures.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

METHODS = ("adamw", "muon_adam", "scion", "muonmax", "muonmax_momo")
SEEDS = 5
OLD = 1_000_000_000  # seconds; what was just written is not remembered


def main() -> None:
    args = _parser().parse_args()
    if args.look:
        _look(Path(args.look), args.runs)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, args.runs, args.records)
        print(f"{args.runs} runs x {args.records} records")
        for name in ("first", "again", "again"):
            command = [sys.executable, __file__, "--look", folder, "--runs", str(args.runs)]
            start = time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            print(f"{name}: {time.perf_counter() - start:.2f} s in all, {done.stdout.strip()}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=3000)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--look", help=argparse.SUPPRESS)
    return parser


def _runs(count: int) -> list:
    """Runs over methods, learning rates and seeds, without composing each of them."""
    from optlab.config import Run, compose_run

    config = json.dumps(dict(compose_run(["optimizer=adamw"])[0].config))
    choices = {"model": "mlp", "dataset": "digits", "schedule": "constant", "optimizer/norms": ""}
    points = max(1, count // (len(METHODS) * SEEDS))
    runs = []
    for i in range(count):
        own = json.loads(config)
        own["seed"], place = i % SEEDS, i // SEEDS
        own["optimizer"]["lr"] = 10 ** (-4 + 5 * (place // len(METHODS)) / points)
        method = METHODS[place % len(METHODS)]
        own["optimizer"]["_method"] = method
        runs.append(Run(own, {**choices, "optimizer": method}))
    return runs


def _write(root: Path, count: int, records: int) -> None:
    import os

    import numpy as np

    rng = np.random.default_rng(0)
    for run in _runs(count):
        folder = root / "runs" / run.id
        folder.mkdir(parents=True)
        x = np.log10(run.lr) + 2
        final = min(2.3, 0.1 + 0.2 * x**2) + 0.01 * rng.standard_normal()
        losses = np.linspace(2.3, final, records) + 0.001 * rng.standard_normal(records)
        lines = [
            {
                "step": 10 * k,
                "samples": 640 * k,
                "seconds": 0.01 * k,
                "train_loss": loss,
                "val_loss": loss,
                "lr": run.lr,
                "step_size": run.lr,
                "dual_norm": 1.0,
                "accuracy": 0.5,
            }
            for k, loss in enumerate(losses.tolist())
        ]
        (folder / "records.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        result = {
            "outcome": "finished",
            "cause": "",
            "step": 10 * records,
            "diverged_at": None,
            "initial_loss": 2.3,
            "final_loss": losses[-1],
            "final_train_loss": losses[-1],
            "accuracy": 0.5,
            "chance_loss": 2.3,
            "at_chance": False,
            "weights_fingerprint": f"w{run.seed}",
            "batch_fingerprint": f"b{run.seed}",
        }
        (folder / "result.json").write_text(json.dumps(result))
        for name in ("records.jsonl", "result.json"):
            os.utime(folder / name, (OLD, OLD))


def _look(root: Path, count: int) -> None:
    runs = _runs(count)
    before = time.process_time()
    from analysis import compared, tables
    from analysis.curves import curves
    from analysis.reading import read
    from optlab.store import RunStore

    start = time.perf_counter()
    table, records, _ = read(RunStore(root / "runs"), runs, root / "cache.npz")
    reading = time.perf_counter() - start
    found = curves(table)
    text = [tables.text(found), tables.markdown(found), *compared.summary(found)]
    analysing = time.perf_counter() - start - reading
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"read {reading:.2f} s ({len(records)} records), analysed {analysing:.2f} s "
        f"({len(found)} curves, {sum(map(len, text))} characters), of the processor "
        f"{time.process_time() - before:.2f} s with imports, peak {peak:.0f} MB"
    )


if __name__ == "__main__":
    main()
