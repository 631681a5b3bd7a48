"""The sweep's own page in W&B, and the report: what is sent."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from analysis.wandb_page import page, refresh
from optlab.sweep import Sweep
from optlab.tracking.page import FIELDS, page_id, specification
from optlab.tracking.report import publish_report
from tracking.backend import ENTITY, Backend, RemoteRun
from tracking.trained import sweep_in, train_all, with_certified


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Eight runs, of which one is missing, and two certified ones: one repeats a missing run."""
    sweep = sweep_in(tmp_path_factory.mktemp("page"))
    train_all(sweep, lacking=1)
    return with_certified(sweep)


@pytest.fixture(autouse=True)
def _forgotten(sweep: Sweep) -> None:
    path = sweep.settings.runtime.results_folder / sweep.name / "wandb.json"
    path.unlink(missing_ok=True)


def table(run: RemoteRun, key: str) -> dict[str, list]:
    return json.loads(run.files[run.summary[key]["path"]])


def test_the_page_has_tables_chart_figure_and_coverage(
    backend: Backend, sweep: Sweep, tmp_path: Path
) -> None:
    said = refresh(sweep)
    (tmp_path / "requests.jsonl").write_text(backend.dump())
    run, shown = backend.run(page_id(sweep.name)), page(sweep)

    assert (run.group, run.job_type) == (sweep.name, "summary")
    assert said == f"The sweep's page: {backend.url}/{ENTITY}/optlab/runs/{page_id(sweep.name)}"
    points, robustness = table(run, "points"), table(run, "robustness")
    assert points["columns"] == list(shown.points.columns)
    assert [row[3] for row in points["data"]] == list(shown.points["lr"])
    assert [row[0] for row in robustness["data"]] == ["adamw", "muonmax_momo"]
    assert run.files[run.summary["figure"]["path"]].startswith(b"\x89PNG")
    counts = {status: run.summary[f"runs_{status}"] for status in shown.coverage}
    assert counts == {"finished": 5, "diverged": 2, "missing": 2, "certified": 1}
    assert run.values["command"] == sweep.command
    assert [row["run"] for row in run.values["missing"]] == [sweep.runs[-1].id]
    certified = [each.run.id for each in sweep.certified]
    assert [row["run"] for row in run.values["certified"]] == certified
    assert [run_id for run_id, _ in run.values["runs"]] == [
        *(each.id for each in sweep.runs),
        *certified,
    ]


def test_the_curves_are_a_native_chart_over_a_logarithmic_axis(
    backend: Backend, sweep: Sweep
) -> None:
    """Every column that the specification names is one of the table's, and is filled."""
    refresh(sweep)
    run = backend.run(page_id(sweep.name))
    panel = run.config["_wandb"]["value"]["visualize"]["lr_sensitivity"]["panel_config"]
    chart = backend.charts[panel["panelDefId"]]
    named = set(re.findall(r"\$\{field:(\w+)\}", json.dumps(chart)))
    rows = table(run, "lr_sensitivity_table")

    assert chart["encoding"]["x"]["scale"] == {"type": "log"}
    assert named == set(panel["fieldSettings"]) == set(FIELDS)
    assert set(panel["fieldSettings"].values()) == set(rows["columns"])
    assert panel["stringSettings"]["title"].startswith(sweep.name)
    lines = {row[rows["columns"].index("label")] for row in rows["data"]}
    assert lines == {"AdamW", "MuonMax-Momo"}
    assert all(cell is not None for row in rows["data"] for cell in row)


def test_where_charts_cannot_be_registered_the_preset_serves(
    backend: Backend, sweep: Sweep
) -> None:
    backend.fault = lambda request: (
        (403, {"errors": [{"message": "permission denied"}]})
        if request.kind == "CreateCustomChart"
        else None
    )
    said = refresh(sweep)
    run = backend.run(page_id(sweep.name))
    panel = run.config["_wandb"]["value"]["visualize"]["lr_sensitivity"]["panel_config"]
    rows = table(run, "lr_sensitivity_table")

    assert "drawn in W&B's preset, over log10 of the learning rate" in said
    assert panel["panelDefId"] == "wandb/lineseries/v0"
    assert {row[0] for row in rows["data"]} == {-2.0, 30.0, 31.0}


def test_an_unchanged_page_is_left_alone(backend: Backend, sweep: Sweep) -> None:
    first = refresh(sweep)
    before = len(backend.requests)

    assert refresh(sweep) == first
    assert len(backend.requests) == before


def test_the_scale_of_the_losses_is_in_the_specification() -> None:
    for scale in ("log", "linear"):
        layers = specification(scale)["layer"]
        assert all(layer["encoding"]["y"]["scale"]["type"] == scale for layer in layers)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # wandb-workspaces, at its import
def test_a_report_has_the_page_and_a_panel_per_quantity(backend: Backend, sweep: Sweep) -> None:
    refresh(sweep)
    url = publish_report(sweep.name, sweep.settings.tracking, "optlab_lr_sensitivity_v1_linear")
    (report,) = backend.reports
    text = json.dumps(report)

    assert url.startswith(backend.url)
    for word in ("val_loss", "step_size", "dual_norm", "capped", "points", "robustness"):
        assert f'"{word}"' in text, word
    assert f"{ENTITY}/optlab_lr_sensitivity_v1_linear" in text
    assert (sweep.name in text and "Panel Grid" in text) or "panel-grid" in text
