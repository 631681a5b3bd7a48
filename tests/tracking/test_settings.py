"""The section `tracking`: what it refuses, and that it is outside of a run's id."""

from __future__ import annotations

from pathlib import Path

import pytest

from optlab.config import compose_run
from optlab.errors import ConfigError
from tracking.trained import sweep_in


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tracking.mode=onlin", "tracking.mode must be one of offline, online, off"),
        ("tracking.project=team/optlab", "the account or team is tracking.entity"),
        ("tracking.tags=['']", "tracking.tags must be words of 1 to 64 characters"),
        ("tracking.tags=[3]", "tracking.tags must be words"),
        ("tracking.tags=demo", "tracking.tags must be a list"),
        ("tracking.diagnostics_every=-1", "tracking.diagnostics_every must be a number of steps"),
        ("tracking.diagnostic_every=1", "tracking.diagnostics_every"),
    ],
)
def test_bad_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run([override])


@pytest.mark.parametrize(
    "override",
    ["mode=off", "project=p", "entity=e", "group=g", "tags=[a]", "diagnostics_every=3"],
)
def test_no_setting_is_part_of_the_id(override: str) -> None:
    assert compose_run([f"tracking.{override}"])[0].id == compose_run([])[0].id


def test_the_group_is_the_name_of_the_sweep_unless_one_is_set(tmp_path: Path) -> None:
    sweep = sweep_in(tmp_path)

    assert sweep.settings.tracking.group == sweep.name
    assert sweep_in(tmp_path, "tracking.group=mine").settings.tracking.group == "mine"
    assert compose_run([])[1].tracking.group is None
