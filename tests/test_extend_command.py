"""``python -m optlab extend`` and sweeps that declare ``extend``, in real processes."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Command

SWEEP = """
fixed: {model.width: 8, model.depth: 1, train.steps: 6, train.batch_size: 16, train.eval_every: 6}
grid: [{optimizer: [adamw], optimizer.lr: [1.0e-4, 1.0e-3]}]
extend: {rounds: 1, per_decade: 1, guard: 1}
"""
WORDS = ("tracking.mode=off", "hydra/launcher=here")


def test_a_sweep_that_declares_it_grows_and_the_command_goes_on(
    command: Command, clone: Path
) -> None:
    """Six steps of AdamW: the larger the learning rate, the better, up to 0.01 and beyond."""
    (clone / "sweeps" / "x.yaml").write_text(SWEEP)
    launched = command("launch.py", "-m", "sweeps=x", *WORDS, root=clone)
    content = json.loads((clone / "runs" / "extensions" / "x.json").read_text())
    asked = command("-m", "optlab", "extend", "x", *WORDS, "--dry-run", root=clone)
    again = command("-m", "optlab", "extend", "x", *WORDS, "--rounds", "1", root=clone)
    runs = [path for path in (clone / "runs").iterdir() if (path / "result.json").exists()]

    assert launched.returncode == asked.returncode == again.returncode == 0, again.stderr
    assert "to run: lr 0.01; 1 seed, about " in launched.stdout
    assert [each["lr"] for round_ in content["rounds"] for each in round_["additions"]] == [[0.01]]
    assert "3 of 3 runs done" in launched.stdout
    assert "not run, its rounds are spent: lr 0.1" in asked.stdout
    assert "to run: lr 0.1; 1 seed, about " in again.stdout
    assert "4 of 4 runs done" in again.stdout and len(runs) == 4


def test_bad_input_ends_before_anything_starts(command: Command) -> None:
    for words, expected in (
        (("dmo",), "Did you mean 'demo'?"),
        (("demo", "--rounds", "0"), "--rounds must be a count above 0"),
        (("demo", "optimizer.lr=0.1"), "no override states optimizer.lr"),
    ):
        ended = command("-m", "optlab", "extend", *words)

        assert ended.returncode == 1 and expected in ended.stderr and not ended.stdout
