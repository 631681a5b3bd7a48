"""wandb's client as optlab uses it: lean, never waiting for long, its errors in a sentence."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..config import TrackingConfig
from ..errors import ConfigError

if TYPE_CHECKING:
    import wandb

START_WITHIN = 7  # seconds; with the import, a server that never answers costs less than 10
REQUEST = 20.0  # seconds for one request, once the server has answered before
LEAN = {
    "console": "off",
    "silent": True,
    "disable_git": True,
    "disable_code": True,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 1,  # a killed process loses a second, not 15
}
# A server that has gone away must not hold a process for long; `sync` sends again what it lacks.
PATIENCE = {
    "x_file_stream_retry_max": 3,
    "x_file_stream_retry_wait_min_seconds": 0.5,
    "x_file_stream_retry_wait_max_seconds": 3.0,
    "x_file_stream_timeout_seconds": REQUEST,
    "x_file_transfer_retry_max": 3,
    "x_file_transfer_retry_wait_min_seconds": 0.5,
    "x_file_transfer_retry_wait_max_seconds": 3.0,
    "x_file_transfer_timeout_seconds": REQUEST,
    "x_graphql_retry_max": 3,
    "x_graphql_retry_wait_min_seconds": 0.5,
    "x_graphql_retry_wait_max_seconds": 3.0,
    "x_graphql_timeout_seconds": REQUEST,
}


def imported() -> Any:
    """The module wandb, quiet and without reports to its vendor."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb  # half a second, and not needed when tracking is off

    return wandb


def target(config: TrackingConfig) -> str:
    """Where runs go: server, account and project, as one word."""
    server = imported().setup().settings.base_url
    return f"{server}/{config.entity or os.environ.get('WANDB_ENTITY', '-')}/{config.project}"


def init(
    config: TrackingConfig,
    folder: Path,
    *,
    mode: Literal["online", "offline"],
    id: str,
    name: str,
    group: str | None,
    tags: Sequence[str],
    job_type: Literal["train", "summary"],
    values: Mapping[str, Any],
) -> wandb.Run:
    """Open a W&B run; an online one goes on behind the rows that W&B has of it already."""
    wandb = imported()
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise wandb.errors.AuthenticationError("no API key")
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        id=id,
        name=name,
        group=group,
        tags=list(tags),
        job_type=job_type,
        config=dict(values),
        dir=folder,
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=wandb.Settings(init_timeout=START_WITHIN, **LEAN, **PATIENCE),
    )
    run.define_metric("*", step_metric="step")
    return run


def check_login() -> None:
    """Raise ConfigError unless the server answers and takes the API key."""
    wandb = imported()
    os.environ.setdefault("WANDB_HTTP_TIMEOUT", str(START_WITHIN))
    try:
        _reach(wandb.setup().settings.base_url)
        if not wandb.login(prompt=False, verify=True):
            raise wandb.errors.AuthenticationError("no API key")
    except ConfigError:
        raise
    except Exception as error:  # the client raises many kinds; all mean that nothing can be sent
        raise ConfigError(explain(error)) from error


def _reach(server: str) -> None:
    """Raise ConfigError unless the server answers anything, within seconds.

    The client itself tries for up to two minutes, and then blames its helper process.
    """
    query = json.dumps({"query": "query Viewer { viewer { id } }", "variables": {}}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/graphql", query, headers)
    try:
        urllib.request.urlopen(request, timeout=START_WITHIN).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500:
            return  # it is there, and wants a key
        reason: object = error
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLError):
            return  # the client has certificates of its own
    else:
        return
    raise ConfigError(f"{server} does not answer: check the network and WANDB_BASE_URL ({reason}).")


def explain(error: BaseException) -> str:
    """What went wrong, and what to do, in a sentence."""
    server = imported().setup().settings.base_url
    text = " ".join(str(error).split())
    lower = text.lower()
    if "no api key" in lower or "no-tty" in lower:
        return f"There is no API key for {server}: run `wandb login`, or set WANDB_API_KEY."
    if re.search(r"\b401\b", text) or "api key" in lower or "unauthorized" in lower:
        return (
            f"{server} does not accept the API key: run `wandb login --relogin`, or set "
            f"WANDB_API_KEY ({text})."
        )
    if re.search(r"\b403\b", text) or "permission" in lower:
        return (
            f"{server} does not let this account write there: check tracking.entity and "
            f"tracking.project ({text})."
        )
    if any(
        word in lower
        for word in ("deadline", "timed out", "timeout", "connection refused", "no such host")
    ):
        return f"{server} does not answer: check the network and WANDB_BASE_URL ({text})."
    return f"{type(error).__name__}: {text}"


@lru_cache(maxsize=1)
def api() -> Any:
    """wandb's reader; one for each process."""
    return imported().Api(timeout=int(REQUEST))


def reset(dropped: wandb.Run | None) -> None:
    """End the helper process, which may be dead or hold on to an id, unless another run uses it."""
    with contextlib.suppress(Exception):  # whatever it was, it is gone
        wandb = imported()
        if wandb.setup().most_recent_active_run in (None, dropped):
            api.cache_clear()  # it speaks through that process
            wandb.teardown(exit_code=1)
