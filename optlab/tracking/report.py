"""A W&B report of a sweep with its panels preset, by the extra ``reports`` (wandb-workspaces)."""

from __future__ import annotations

from typing import Any

from ..config import TrackingConfig
from ..errors import ConfigError
from . import client
from .page import FIELDS, page_id

LINES = (
    ("val_loss", "validation loss"),
    ("train_loss", "training loss"),
    ("step_size", "step size"),
    ("dual_norm", "dual norm of the momentum"),
    ("capped", "share of the steps at the cap"),
)


def build_report(sweep: str, entity: str, project: str, chart: str) -> Any:
    """The report as wandb-workspaces describes it; nothing is sent.

    The sweep's own page first (chart, figure, tables), then a line per run for each of ``LINES``,
    coloured by method. Runs are found by their tag, which each of their sweeps has given them.
    """
    reports = _reports()
    page = reports.Runset(
        entity=entity, project=project, name="page", filters=f"Config('sweep') = '{sweep}'"
    )
    runs = reports.Runset(
        entity=entity,
        project=project,
        name="runs",
        filters=f"Tags in ['{sweep}'] and Metric('JobType') = 'train'",
        groupby=["config.method"],
    )
    own = [
        reports.CustomChart(
            query={"summaryTable": {"tableKey": "lr_sensitivity_table"}},
            chart_name=f"{entity}/{chart}",
            chart_fields=dict(FIELDS),
            chart_strings={"title": sweep},
        ),
        reports.MediaBrowser(media_keys=["figure"], title="final loss against learning rate"),
        reports.WeavePanelSummaryTable(table_name="points"),
        reports.WeavePanelSummaryTable(table_name="robustness"),
    ]
    lines = [reports.LinePlot(x="step", y=[key], title=title) for key, title in LINES]
    return reports.Report(
        entity=entity,
        project=project,
        title=f"{sweep}: dependence on the learning rate",
        description=f"Made by optlab; the sweep's page is run {page_id(sweep)}.",
        blocks=[
            reports.H1("Final loss against learning rate"),
            reports.PanelGrid(runsets=[page], panels=own),
            reports.H1("Training"),
            reports.PanelGrid(runsets=[runs], panels=lines),
        ],
    )


def publish_report(sweep: str, tracking: TrackingConfig, chart: str) -> str:
    """Save a new report of the sweep, with the chart of its page; its address."""
    _reports()
    entity = tracking.entity or client.api().default_entity
    try:
        return build_report(sweep, entity, tracking.project, chart).save().url
    except Exception as error:  # the client raises errors of many kinds
        raise ConfigError(f"W&B refused the report: {client.explain(error)}") from error


def _reports() -> Any:
    client.imported()
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError as error:
        raise ConfigError(
            'A report needs the extra `reports`: pip install "optlab[reports]", or '
            "pip install wandb-workspaces."
        ) from error
    return reports
