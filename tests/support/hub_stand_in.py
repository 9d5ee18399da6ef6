"""A stand-in for the Hugging Face hub: the part of its HTTP API that uploads use, on loopback, in a thread.

Large files go by plain LFS (batch, PUT, verify), so clients need HF_HUB_DISABLE_XET=1. It keeps what it was sent and
can be made to fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

LARGE = (".safetensors", ".jpg", ".pt")  # as a repository's .gitattributes and the hub's look at binary files decide


@dataclass
class Fault:
    """What requests get instead of an answer: a status, or a connection cut in the middle of their body."""

    method: str
    path: str  # a pattern
    status: int | None  # None: cut
    times: int  # so often


@dataclass
class HubStandIn:
    """What the hub holds and has seen. tokens: token -> (user, may write)."""

    endpoint: str = ""
    tokens: dict[str, tuple[str, bool]] = field(default_factory=lambda: {"hf_writes": ("ada", True)})
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    verified: set[str] = field(default_factory=set)
    commits: list[list[str]] = field(default_factory=list)  # the paths of each
    requests: list[str] = field(default_factory=list)  # "METHOD path", in order
    faults: list[Fault] = field(default_factory=list)

    def fail(self, method: str, path: str, status: int | None, times: int = 1000) -> None:
        """Answer requests whose path the pattern is found in with `status`, or cut them off (None)."""
        self.faults.append(Fault(method, path, status, times))

    def sent(self, start: str) -> list[str]:
        """The requests that begin so."""
        return [request for request in self.requests if request.startswith(start)]


@contextmanager
def running_hub() -> Iterator[HubStandIn]:
    """A hub of its own, listening until the block ends."""
    hub = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Answer(Exception):
    """Ends a request."""

    def __init__(self, status: int, content: Any, **headers: str) -> None:
        super().__init__(status)
        self.status, self.content, self.headers = status, content, headers


class _Handler(BaseHTTPRequestHandler):
    hub: HubStandIn
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing on stderr."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        fault = next((f for f in self.hub.faults if self._hits(f, path)), None)
        if fault is not None:
            fault.times -= 1
        if fault is not None and fault.status is None:
            chunked = 20_000 if "Transfer-Encoding" in self.headers else 0
            self.rfile.read(int(self.headers.get("Content-Length") or chunked) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self._body()
        try:
            if fault is not None:
                raise _Answer(fault.status or 500, {"error": f"told to answer {fault.status}"})
            self._dispatch(path, body)
        except _Answer as answer:
            content = json.dumps(answer.content).encode()
            self.send_response(answer.status)
            for name, value in {**answer.headers, "Content-Length": str(len(content))}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(content)

    def _hits(self, fault: Fault, path: str) -> bool:
        return fault.times > 0 and fault.method == self.command and re.search(fault.path, path) is not None

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _dispatch(self, path: str, body: bytes) -> None:
        if self.command == "PUT" and (found := re.fullmatch(r"/storage/(\w+)", path)):
            if hashlib.sha256(body).hexdigest() != found[1]:
                raise _Answer(400, {"error": "not the content of this object"})
            self.hub.blobs[found[1]] = body
            raise _Answer(200, {})
        user, writes = self._user()
        if path == "/api/repos/create":
            self._create(json.loads(body), user, writes)
        if path == "/api/validate-yaml":
            errors = faults_of_card(json.loads(body)["content"])
            raise _Answer(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})
        found = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(\.git/info/lfs/objects/batch|/.+|)", path)
        repo, rest = (found[1], found[2]) if found else ("", path)
        if repo not in self.hub.repositories:
            raise _Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if rest in ("", "/revision/main"):
            raise _Answer(200, {"id": repo, "sha": "0" * 40, "private": self.hub.private[repo], "siblings": []})
        if not writes or not repo.startswith(f"{user}/"):
            raise _Answer(403, {"error": "You don't have write access to this repository"})
        self._write(repo, rest, body)

    def _user(self) -> tuple[str, bool]:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.hub.tokens:
            raise _Answer(401, {"error": "Invalid username or password."})
        return self.hub.tokens[token]

    def _create(self, wanted: dict[str, Any], user: str, writes: bool) -> None:
        owner = wanted["organization"] or user
        name = f"{owner}/{wanted['name']}"
        url = f"{self.hub.endpoint}/{name}"
        if not writes or owner != user:
            raise _Answer(403, {"error": f"You don't have the rights to create a model under the namespace {owner}"})
        if name in self.hub.repositories:
            raise _Answer(409, {"error": "You already created this model repo", "url": url})
        self.hub.repositories[name] = {}
        self.hub.private[name] = wanted.get("visibility") == "private"
        raise _Answer(200, {"url": url})

    def _write(self, repo: str, rest: str, body: bytes) -> None:
        files = self.hub.repositories[repo]
        if rest == "/auth-check/write":
            raise _Answer(200, {})
        if rest == "/preupload/main":
            wanted = json.loads(body)["files"]
            raise _Answer(200, {"files": [_preupload(one["path"], files.get(one["path"])) for one in wanted]})
        if rest == ".git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            raise _Answer(200, {"transfer": "basic", "objects": [self._lfs(repo, one) for one in objects]})
        if rest == "/verify":
            self.hub.verified.add(json.loads(body)["oid"])
            raise _Answer(200, {})
        if rest != "/commit/main":
            raise _Answer(404, {"error": f"nothing at {rest}"})
        lines = [json.loads(line) for line in body.splitlines()]
        changed = {}
        for line in lines[1:]:
            value = line["value"]
            whole = line["key"] == "file"
            changed[value["path"]] = base64.b64decode(value["content"]) if whole else self.hub.blobs[value["oid"]]
        files |= changed
        self.hub.commits.append(sorted(changed))
        raise _Answer(200, {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/1", "commitOid": "1" * 40})

    def _lfs(self, repo: str, one: dict[str, Any]) -> dict[str, Any]:
        """What the batch endpoint says of an object: nothing to do, or where to PUT it and what to call then."""
        if one["oid"] in self.hub.blobs:
            return one
        return {
            **one,
            "actions": {
                "upload": {"href": f"{self.hub.endpoint}/storage/{one['oid']}"},
                "verify": {"href": f"{self.hub.endpoint}/api/models/{repo}/verify"},
            },
        }


def _preupload(path: str, content: bytes | None) -> dict[str, Any]:
    """How a file is to be sent, and the id of what stands in its place."""
    large = path.endswith(LARGE)
    oid = None
    if content is not None:
        git = b"blob %d\0" % len(content) + content
        oid = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(git).hexdigest()
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}


def faults_of_card(content: str) -> list[str]:
    """What the hub would refuse in the front matter of a README.md (hub-docs, modelcard.md)."""
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else None
    if not isinstance(data, dict):
        return ["no front matter"]
    errors = []
    if data.get("license") == "other" and not (data.get("license_name") and data.get("license_link")):
        errors.append("license other needs license_name and license_link")
    for model in data.get("model-index", []):
        if not model.get("name"):
            errors.append("model-index[0].name is required")
        for result in model["results"]:
            needed = [result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name")]
            needed += [metric.get(key) for metric in result["metrics"] for key in ("type", "value")]
            errors += ["model-index: a field is missing"] * (None in needed)
    return errors
