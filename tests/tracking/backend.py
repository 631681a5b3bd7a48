"""A stand-in of W&B's backend on the loopback: it keeps what clients send, and can misbehave.

It speaks what the pinned client speaks: GraphQL, the file stream of a run, uploads. A request that
it does not know is kept in ``unknown`` and answered with an error, so that a new client shows.
What it proves is what optlab sends and how optlab takes failures, not what W&B does with it.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "team"
KEY = "k" * 40
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"

Answer = tuple[int, Any]  # HTTP status and JSON body


@dataclass
class RemoteRun:
    """What the backend knows of one run."""

    entity: str
    project: str
    name: str  # the id of the client
    display_name: str = ""
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = field(default_factory=list)
    state: str = "running"
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)  # of the history
    files: dict[str, bytes] = field(default_factory=dict)
    version: int = 0  # grows with every change

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def values(self) -> dict[str, Any]:
        """The config as a user sees it."""
        return {key: node["value"] for key, node in self.config.items() if key != "_wandb"}


@dataclass
class Request:
    """One request as it came."""

    kind: str  # the GraphQL operation, 'file_stream' or 'upload'
    run: str
    content: Any

    def as_json(self) -> dict[str, Any]:
        content = self.content
        if isinstance(content, bytes):
            content = {"bytes": len(content)}
        return {**asdict(self), "content": content}


class Backend:
    """Use as a context manager; ``url`` is its address.

    ``fault`` decides on every request first: None lets it pass, an ``Answer`` replaces its own, and
    ``hang`` leaves it without an answer until the backend stops.
    """

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], RemoteRun] = {}
        self.charts: dict[str, dict[str, Any]] = {}
        self.reports: list[dict[str, Any]] = []
        self.requests: list[Request] = []
        self.unknown: list[str] = []
        self.fault: Callable[[Request], Answer | None] = lambda request: None
        self.lose_rows = 0  # left out of the first answers to history queries
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Backend:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Disappear: open connections break, new ones are refused."""
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def hang(self, request: Request) -> None:
        """A fault: accept, and never answer."""
        del request
        self._stopping.wait()

    def environment(self) -> dict[str, str]:
        """What points a client to this backend."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY}

    def run(self, name: str, project: str = "optlab") -> RemoteRun:
        return self.runs[project, name]

    def of(self, kind: str) -> list[Request]:
        return [request for request in self.requests if request.kind == kind]

    def dump(self) -> str:
        """Every request as a line of JSON, for a person to read."""
        return "".join(json.dumps(request.as_json()) + "\n" for request in self.requests)

    # what a handler calls

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> Answer:
        request = _parsed(path, body)
        with self._lock:
            self.requests.append(request)
        fault = self.fault(request)
        if fault is not None:
            return fault
        if self._stopping.is_set():
            return 503, {}
        with self._lock:
            if request.kind == "upload":
                return self._upload(path, body) if method == "PUT" else self._download(path)
            if _key(headers) != KEY:
                return 401, {"error": "invalid API key"}
            if request.kind == "file_stream":
                return 200, self._file_stream(path, request.content)
            operation = getattr(self, f"_on_{request.kind}", None)
            if operation is None:
                self.unknown.append(f"{method} {path} {request.kind}: {body[:2000]!r}")
                return 400, {"errors": [{"message": f"unknown {request.kind}"}]}
            return 200, {"data": operation(request.content["variables"])}

    def _file_stream(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        _, _, project, name, _ = path.strip("/").split("/")
        run = self.runs[project, name]
        run.version += 1
        for file, chunk in (content.get("files") or {}).items():
            if file == HISTORY:
                end = chunk["offset"] + len(chunk["content"])
                run.lines[chunk["offset"] : end] = chunk["content"]
            elif file == SUMMARY:
                run.summary = json.loads(chunk["content"][-1])
        if content.get("complete"):
            run.exit_code = content.get("exitcode", 0)
            run.state = "failed" if run.exit_code else "finished"
        return {}

    def _upload(self, path: str, body: bytes) -> Answer:
        _, project, name, file = path.strip("/").split("/", 3)
        self.runs[project, name].files[file] = body
        return 200, {}

    def _download(self, path: str) -> Answer:
        _, project, name, file = path.strip("/").split("/", 3)
        return 200, self.runs[project, name].files[file]

    def _on_Viewer(self, v: dict[str, Any]) -> dict[str, Any]:
        viewer = {"id": "u", "entity": ENTITY, "username": ENTITY, "email": "", "flags": "{}"}
        return {"viewer": {**viewer, "name": ENTITY, "teams": {"edges": []}}}

    _on_GetViewer = _on_Viewer
    _on_GetDefaultEntity = _on_Viewer

    def _on_ServerFeaturesQuery(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_OrganizationCoreWeaveOrganizationID(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": None}}

    def _on_RunResumeStatus(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get((v["project"], v["name"]))
        model = {"id": "p", "name": v["project"], "entity": {"id": "e", "name": ENTITY}}
        return {"model": {**model, "bucket": None if run is None else self._resumable(run)}}

    def _resumable(self, run: RemoteRun) -> dict[str, Any]:
        return {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.display_name,
            "summaryMetrics": _worded(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.lines),
            "eventsLineCount": 0,
            "historyTail": json.dumps([_worded(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": json.dumps(run.config),
            "tags": run.tags,
            "notes": "",
            "wandbConfig": '{"t": {}}',  # telemetry: the run has really begun
        }

    def _on_UpsertBucket(self, v: dict[str, Any]) -> dict[str, Any]:
        if v.get("name") is None:  # by the id that the first answer gave
            (run,) = (run for run in self.runs.values() if f"id-{run.name}" == v["id"])
            inserted = False
        else:
            key = (v["project"], v["name"])
            inserted = key not in self.runs
            run = self.runs.setdefault(key, RemoteRun(v.get("entity") or ENTITY, *key))
        run.version += 1
        run.display_name = v.get("displayName") or run.display_name
        run.group = v.get("groupName") or run.group
        run.job_type = v.get("jobType") or run.job_type
        run.tags = v["tags"] if v.get("tags") is not None else run.tags
        run.state = "running"
        if v.get("config"):
            run.config = json.loads(v["config"])
        if v.get("summaryMetrics"):
            run.summary = json.loads(v["summaryMetrics"])
        bucket = {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.display_name,
            "description": "",
            "config": json.dumps(run.config),
            "sweepName": None,
            "project": {"id": "p", "name": run.project, "entity": {"id": "e", "name": run.entity}},
            "historyLineCount": len(run.lines),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _on_CreateRunFiles(self, v: dict[str, Any]) -> dict[str, Any]:
        at = f"{self.url}/uploads/{v['project']}/{v['run']}"
        files = [{"name": name, "uploadUrl": f"{at}/{name}"} for name in v["files"]]
        created = {"runID": f"id-{v['run']}", "uploadHeaders": [], "files": files}
        return {"createRunFiles": created}

    def _on_MarkRunFilesUploaded(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"markRunFilesUploaded": {"success": True}}

    def _on_CreateCustomChart(self, v: dict[str, Any]) -> dict[str, Any]:
        chart = f"{v['entity']}/{v['chartName']}"
        self.charts[chart] = json.loads(v["spec"])
        return {"createCustomChart": {"chart": {"id": chart}}}

    def _on_DeleteRun(self, v: dict[str, Any]) -> dict[str, Any]:
        self.runs = {key: run for key, run in self.runs.items() if f"id-{run.name}" != v["id"]}
        return {"deleteRun": {"clientMutationId": None}}

    def _on_ArtifactType(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}

    def _on_CreateArtifact(self, v: dict[str, Any]) -> dict[str, Any]:
        """Committed at once: a table's rows also come as a file of the run."""
        artifact = {"id": f"artifact-{v['input']['clientID']}", "state": "COMMITTED"}
        sequence = {"latestArtifact": {"id": artifact["id"]}}
        return {"createArtifact": {"artifact": {**artifact, "artifactSequence": sequence}}}

    # reports

    def _on_ProjectInternalId(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"id": "p", "internalId": "1"}}

    def _on_GetProjects(self, v: dict[str, Any]) -> dict[str, Any]:
        names = sorted({project for project, _ in self.runs})
        node = {
            "id": "p",
            "entityName": ENTITY,
            "createdAt": "",
            "isBenchmark": False,
            "user": None,
        }
        edges = [{"node": {**node, "name": name}, "cursor": name} for name in names]
        info = {"endCursor": None, "hasNextPage": False}
        return {"models": {"edges": edges, "pageInfo": info}}

    def _on_upsertView(self, v: dict[str, Any]) -> dict[str, Any]:
        self.reports.append(json.loads(v["spec"]))
        shown = {key: v.get(key) for key in ("type", "name", "displayName", "description", "spec")}
        project = {"id": "p", "name": v["projectName"], "entityName": v["entityName"]}
        view = {"id": "VmlldzoxMjM0NTY=", **shown, "project": project, "user": None}
        return {
            "upsertView": {"view": {**view, "updatedAt": "2026-01-01T00:00:00"}, "inserted": True}
        }

    # reading back

    def _on_Runs(self, v: dict[str, Any]) -> dict[str, Any]:
        found = [run for run in self.runs.values() if run.project == v["project"]]
        if not found:
            return {"project": None}
        wanted = json.loads(v.get("filters") or "{}")
        found = [run for run in found if _matches(run, wanted)]
        start, size = int(v.get("cursor") or 0), v.get("perPage") or 50
        page = found[start : start + size]
        edges = [
            {"node": self._node(run), "cursor": str(start + index + 1)}
            for index, run in enumerate(page)
        ]
        more = start + size < len(found)
        info = {"endCursor": str(start + len(page)), "hasNextPage": more}
        runs = {"edges": edges, "pageInfo": info}
        return {
            "project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}
        }

    def _on_Run(self, v: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get((v["project"], v["name"]))
        return {"project": {"run": None if run is None else self._node(run)}}

    def _node(self, run: RemoteRun) -> dict[str, Any]:
        stamp = f"2026-01-01T00:{run.version // 60:02d}:{run.version % 60:02d}"
        return {
            "projectId": "1",
            "id": f"id-{run.name}",
            "tags": run.tags,
            "name": run.name,
            "displayName": run.display_name,
            "sweepName": None,
            "state": run.state,
            "config": json.dumps(run.config),
            "group": run.group,
            "jobType": run.job_type,
            "commit": None,
            "readOnly": False,
            "createdAt": "2026-01-01T00:00:00",
            "heartbeatAt": stamp,
            "description": "",
            "notes": "",
            "systemMetrics": "{}",
            "summaryMetrics": _worded(run.summary),
            "historyLineCount": len(run.lines),
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": self._keys(run),
        }

    def _keys(self, run: RemoteRun) -> dict[str, Any]:
        return {"lastStep": run.history[-1]["_step"] if run.lines else -1, "keys": {}, "sets": []}

    def _on_RunHistoryKeys(self, v: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"run": {"historyKeys": self._keys(self.runs[v["project"], v["name"]])}}}

    def _on_RunParquetHistory(self, v: dict[str, Any]) -> dict[str, Any]:
        live = [json.loads(_worded(row)) for row in self._rows(v["project"], v["runName"])]
        history = {"parquetUrls": [], "liveData": live}
        return {"project": {"run": {"parquetHistory": history}}}

    def _on_HistoryPage(self, v: dict[str, Any]) -> dict[str, Any]:
        rows = self._rows(v["project"], v["run"])
        inside = [row for row in rows if v["minStep"] <= row["_step"] < v["maxStep"]]
        return {"project": {"run": {"history": [_worded(row) for row in inside]}}}

    def _rows(self, project: str, name: str) -> list[dict[str, Any]]:
        rows = self.runs[project, name].history
        if self.lose_rows:
            self.lose_rows -= 1
            rows = rows[::2]
        return rows


def _worded(row: dict[str, Any]) -> str:
    """As JSON, which has no NaN: numbers that are not finite become words, as W&B has them."""
    words = {
        key: {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), value)
        if isinstance(value, float)
        else value
        for key, value in row.items()
    }
    return json.dumps(words)


def _matches(run: RemoteRun, wanted: dict[str, Any]) -> bool:
    """The filters that optlab uses, in W&B's dialect of MongoDB's."""
    for key, value in wanted.items():
        if key == "$or":
            if not any(_matches(run, option) for option in value):
                return False
            continue
        found = {"group": run.group, "name": run.name, "jobType": run.job_type, "tags": run.tags}
        own = found[key]
        options = value["$in"] if isinstance(value, dict) else [value]
        if not set(options) & set(own if isinstance(own, list) else [own]):
            return False
    return True


def _parsed(path: str, body: bytes) -> Request:
    parts = path.strip("/").split("/")
    if path.endswith("/file_stream"):
        return Request("file_stream", parts[3], json.loads(body))
    if parts[0] == "uploads":
        return Request("upload", parts[2], body)
    try:
        content = json.loads(body)
        name = content.get("operationName") or ""
    except ValueError:
        return Request(path, "", {"variables": {}})
    if not name:
        found = re.search(r"(?:query|mutation)\s+(\w+)", content.get("query", ""))
        name = found.group(1) if found else path
    variables = content.setdefault("variables", {}) or {}
    content["variables"] = variables
    run = variables.get("name") or variables.get("run") or variables.get("runName") or ""
    return Request(name, str(run), content)


def _key(headers: Any) -> str:
    kind, _, word = (headers.get("Authorization") or "").partition(" ")
    if kind == "Basic":
        return base64.b64decode(word).decode().partition(":")[2]
    return word


def _handler(backend: Backend) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            """Take one request and answer it; a client that goes away meanwhile is no error."""
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            try:
                status, answer = backend.answer(self.command, self.path, self.headers, body)
            except Exception as error:  # a client sent what the stand-in cannot take: that shows
                backend.unknown.append(f"{self.command} {self.path}: {error!r} {body[:500]!r}")
                status, answer = 500, {"error": repr(error)}
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # the client has gone
                self.close_connection = True

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):
                super().handle()

        do_GET = do_POST = do_PUT = _serve

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    return Handler
