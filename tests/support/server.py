"""A real server in a process of its own, and a client for it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlencode

from support.processes import PipedPython

BOUNDARY = "in-between"


class Server:
    """`python -m mask2former_dinov3 serve`, on a free port of this machine."""

    def __init__(self, model: Path, *flags: str, script: Path | None = None) -> None:
        """script: what runs in the place of the package; it must end with `main`."""
        run = ["-m", "mask2former_dinov3"] if script is None else [str(script)]
        command = [sys.executable, *run, "serve", "--model", str(model), "--port", "0", *flags]
        self.process = PipedPython(command, stderr=subprocess.PIPE)
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise AssertionError("".join(self.log))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.rest_of_log()

    def rest_of_log(self) -> str:
        """The whole log of the server; waits until it has ended."""
        if not self.process.stderr.closed:
            self.log += self.process.stderr.readlines()
            self.process.stderr.close()
            self.process.wait()
        return "".join(self.log)

    def wait_for_line(self, text: str) -> None:
        """Read the log until a line contains `text`."""
        for line in self.process.stderr:
            self.log.append(line)
            if text in line:
                return
        raise AssertionError("".join(self.log))

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> int | None:
        """Send it a signal and wait for its end; returns its exit code."""
        self.process.send_signal(sig)
        self.rest_of_log()
        return self.process.returncode

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers in lower case, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def predict(self, data: bytes, kind: str = "image/png", **options: Any) -> tuple[int, dict[str, Any]]:
        """POST /predict with an image as the body: status, JSON."""
        path = f"/predict?{urlencode(options, doseq=True)}"
        status, _, body = self.ask("POST", path, data, {"Content-Type": kind})
        return status, json.loads(body)

    def metric(self, name: str) -> float:
        """A number of /metrics, 0 if it is missing. name: with its labels, without the prefix."""
        _, _, body = self.ask("GET", "/metrics")
        found = re.search(rf"^mask2former_{re.escape(name)} (\S+)$", body.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    @contextmanager
    def half_sent(self, data: bytes) -> Iterator[socket.socket]:
        """A connection that has sent its headers and half of an image, and has a place in the server's queue."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            head += f"Content-Length: {len(data)}\r\n\r\n"
            connection.sendall(head.encode() + data[: len(data) // 2])
            while self.metric("queue_length") < 1:
                time.sleep(0.02)
            yield connection


def form(data: bytes, file_name: str = "a.png", field: str = "image") -> tuple[bytes, str]:
    """A form with one file: its body and content type."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{file_name}"\r\n\r\n'
    return head.encode() + data + f"\r\n--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def answer_on(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer on a connection."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.read()
