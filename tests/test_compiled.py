"""torch.compile of a model: the same numbers, the same checkpoints, on one process and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from optlab.compiled import compile_model
from optlab.errors import ConfigError
from optlab.paths import ROOT
from optlab.store import RunStore
from support import TINY, environment, tiny
from teamwork import Answer, Teamwork

CPU = torch.device("cpu")


def can_compile() -> bool:
    try:
        compile_model(nn.Linear(1, 1), CPU)
    except ConfigError:
        return False
    return True


pytestmark = [
    pytest.mark.slow,
    # PyTorch's own import of its compiler
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated"),
]


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(6, 6), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.layer(x)).tanh()


@pytest.fixture(scope="module")
def teamwork() -> Iterator[Teamwork]:
    made = Teamwork(2)
    yield made
    made.close()


def require_compiler() -> None:
    if not can_compile():
        pytest.skip("torch.compile does not work on this machine")


def test_a_compiled_model_is_the_model() -> None:
    """Dropout drops the same; the weights have their names; the evaluation is compiled too."""
    require_compiler()
    torch.manual_seed(0)
    plain, compiled = Dropping(), Dropping()
    compiled.load_state_dict(plain.state_dict())
    compile_model(compiled, CPU)
    compiled.load_state_dict(plain.state_dict())
    assert list(compiled.state_dict()) == ["layer.weight", "layer.bias"]
    x = torch.randn(4, 6)

    for training in (True, False):
        counters.clear()
        outputs = []
        for model in (plain, compiled):
            torch.manual_seed(1)
            model.train(training)
            outputs.append(model(x))
            outputs[-1].sum().backward()

        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(compiled.layer.weight.grad, plain.layer.weight.grad)
        assert counters["stats"]["unique_graphs"] == 1
        assert training == bool((outputs[0] == 0).any())


def test_a_compiled_run_of_two_processes_goes_on_uncompiled(
    tmp_path: Path, teamwork: Teamwork
) -> None:
    require_compiler()
    run, _ = tiny("train.eval_every=1", "train.precision=bfloat16")
    stores = [RunStore(tmp_path / name) for name in ("plain", "compiled")]
    for store in stores:
        store.freeze(run)
    plain, compiled = stores
    teamwork.run(run.id, plain, 1)
    compiling = ("runtime.compile=true", "runtime.micro_batch=3")
    event = {"at_step": 3, "event": "terminate"}
    answers = teamwork.run(run.id, compiled, 2, settings=compiling, rank_1=event)

    assert [a.status for a in answers if isinstance(a, Answer)] == ["preempted"] * 2
    meta = json.loads((compiled.folder(run.id) / "meta.json").read_text())
    assert meta["compile"] is True and meta["processes"] == 2
    teamwork.run(run.id, compiled, 1)
    assert "Resumed at step 4." in (compiled.folder(run.id) / "log.txt").read_text()
    losses = [[record["val_loss"] for record in store.records(run.id)] for store in stores]
    assert losses[1] == pytest.approx(losses[0], rel=2**-6)  # bfloat16 has 8 bits
    assert len(losses[0]) == 7


def test_without_a_compiler_a_run_says_so_before_it_trains(tmp_path: Path) -> None:
    overrides = [*TINY, "runtime.device=cpu", f"runtime.runs={tmp_path}", "runtime.compile=true"]
    paths = {"PATH": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    hidden = {key: value for key, value in os.environ.items() if key in ("CC", "CXX")}
    done = subprocess.run(
        [sys.executable, f"{ROOT}/launch.py", *overrides],
        env={**environment(), **paths, **dict.fromkeys(hidden, "/nonexistent")},
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 1
    assert "torch.compile does not work on this machine" in done.stderr
    assert "runtime.compile=false" in done.stderr
    assert not list(tmp_path.glob("*/records.jsonl"))
