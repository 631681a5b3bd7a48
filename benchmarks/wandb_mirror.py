"""What the mirror in W&B costs: a run with it and without, and one logged row.

    python benchmarks/wandb_mirror.py [--rounds 5]

The same run of the default config, trained in one process, is timed without tracking, mirrored
offline, and mirrored online to the tests' stand-in of W&B's server, which runs beside it. Rounds
are interleaved; what is printed are medians of ratios within a round, and milliseconds per row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from optlab.config import Run, Settings, compose_run  # noqa: E402  # after the path is set
from optlab.run import run_one  # noqa: E402
from optlab.stop import StopFlag  # noqa: E402
from optlab.store import Record, RunStore  # noqa: E402
from optlab.tracking import client  # noqa: E402
from optlab.tracking.mirror import Mirror  # noqa: E402
from tracking.backend import Backend  # noqa: E402

MODES = ("off", "offline", "online")
ROWS = 1000


def in_mode(settings: Settings, mode: str) -> Settings:
    return replace(settings, tracking=replace(settings.tracking, mode=mode))


def seconds_of_run(run: Run, settings: Settings, mode: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        store.freeze(run)
        started = time.perf_counter()
        run_one(run.id, store, in_mode(settings, mode), stop=StopFlag(), report=lambda _: None)
        return time.perf_counter() - started


def parts_of_mirror(run: Run, settings: Settings, mode: str) -> tuple[float, float, float]:
    """Seconds to open, for one row, and to close."""
    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder))
        store.freeze(run)
        times = [time.perf_counter()]
        mirror = Mirror.start(run, store, in_mode(settings, mode).tracking)
        times.append(time.perf_counter())
        for step in range(ROWS):
            mirror.log(Record(step, step, step / 8, 1.0, 1.0, 0.1, 0.1, 1.0), {})
        times.append(time.perf_counter())
        mirror.finish("finished")
        times.append(time.perf_counter())
        opened, rows, closed = (b - a for a, b in pairwise(times))
        return opened, rows / ROWS, closed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with Backend() as backend:
        os.environ.update(backend.environment())
        run, settings = compose_run([])
        before = time.perf_counter()
        client.imported()
        print(f"import of wandb: {time.perf_counter() - before:.2f} s, once per process")
        runs = [compose_run([f"seed={seed}"])[0] for seed in range(rounds + 1)]
        for mode in MODES:  # the first runs of a process also start the client's helper
            print(f"first run, {mode}: {seconds_of_run(runs[-1], settings, mode):.2f} s")
        ratios: dict[str, list[float]] = {"offline": [], "online": []}
        for turn, run in enumerate(runs[:-1]):  # each mode takes every place of the round
            order = [*MODES[turn % 3 :], *MODES[: turn % 3]]
            times = {mode: seconds_of_run(run, settings, mode) for mode in order}
            for mode, found in ratios.items():
                found.append(times[mode] / times["off"])
        for mode, found in ratios.items():
            spread = f"{min(found):.2f} to {max(found):.2f}"
            print(f"run {mode} / run off: {statistics.median(found):.2f} ({spread})")
        for mode in ratios:
            run = compose_run([f"seed={1000 + len(mode)}"])[0]
            opened, row, closed = parts_of_mirror(run, settings, mode)
            print(f"{mode}: open {opened:.3f} s, a row {1000 * row:.3f} ms, close {closed:.3f} s")


if __name__ == "__main__":
    main()
