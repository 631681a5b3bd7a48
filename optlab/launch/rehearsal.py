"""What a dry run tries: each kind of run built on the meta device, and the data looked for.

It needs torch, so it happens in a process of its own: the plan is on the screen before that has
started, and neither a GPU nor the data need be there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from ..config import Run
from ..errors import ConfigError
from ..paths import ROOT
from .launch import refuse, representatives


@dataclass(frozen=True)
class Rehearsed:
    """What came of it."""

    sizes: dict[str, list[int]]  # model -> parameters of those that could be built, each once
    kinds: int  # of runs that could be built
    problems: dict[str, str]  # id of a run that cannot be built -> why
    lacking: list[str]  # why data cannot be read, a sentence each


def rehearse(pending: Sequence[Run]) -> str:
    """Build each kind of the runs to do, in a process of its own; what to say.

    Raises:
        ConfigError: some cannot be built, so that the launch would be refused.
    """
    if not pending:
        return ""
    kinds = representatives(pending)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "optlab.launch.rehearsal"],
        input=json.dumps([asdict(run) for run in kinds]),
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ConfigError(
            f"The runs could not be built: the process that tried ended with {done.returncode}."
        )
    found = Rehearsed(**json.loads(done.stdout))
    refuse(found.problems, pending)
    models = ", ".join(
        f"{name} ({' or '.join(f'{size:,}' for size in sizes)} parameters)"
        for name, sizes in found.sizes.items()
    )
    count = f"all {found.kinds} kinds of runs" if found.kinds > 1 else "the run"
    lines = [f"Built without weights: {count} to do; {models}."]
    lines += [f"Before the launch: {sentence}" for sentence in found.lacking]
    return "\n".join(lines)


def _rehearsed(kinds: Sequence[Run]) -> Rehearsed:
    from ..build import load_data, outline  # imports torch

    found = Rehearsed({}, len(kinds), {}, [])
    looked_for = []
    for run in kinds:
        try:
            model = outline(run)
        except ConfigError as error:
            found.problems[run.id] = str(error)
            continue
        size = sum(p.numel() for p in model.parameters())
        sizes = found.sizes.setdefault(run.choices["model"], [])
        sizes += [size] if size not in sizes else []
        data = {**run.config["dataset"], "loss_lower_bound": None}
        if data not in looked_for:
            looked_for.append(data)
            try:
                load_data(run)
            except ConfigError as error:
                found.lacking.append(str(error))
    return found


if __name__ == "__main__":
    print(json.dumps(asdict(_rehearsed([Run(**each) for each in json.load(sys.stdin)]))))
