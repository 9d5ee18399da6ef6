"""One client of the load test `serve_load.py`: it sends good and bad requests and checks each answer."""

from __future__ import annotations

import http.client
import io
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image

from hostile_requests import Hostile, bad_requests, hostile_images
from mask2former_dinov3.serving.connections import SECONDS_FOR_HEADERS

MAX_BYTES, MAX_PIXELS, TIMEOUT, MAX_QUEUE, MAX_CONNECTIONS = 2_000_000, 4_000_000, 20, 8, 64
"""Limits of the server, so small that the clients meet all of them."""
LONGEST_HEAD = 64_000  # bytes of a request's head that h11 takes


@dataclass
class Seen:
    """What the clients observed.

    good: (time of the first attempt, seconds from there to the answer) of each good request. wrong: rules broken.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    good: list[tuple[float, float]] = field(default_factory=list)
    waited: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int | str) -> None:
        with self.lock:
            self.statuses[f"{kind}: {status}"] += 1


class Client:
    """One client: 60 % good requests, the others of all other kinds. pause: mean seconds between two requests."""

    def __init__(self, port: int, images: list[bytes], seed: int, seen: Seen, pause: float = 0.0) -> None:
        self.port = port
        self.images = images
        self.pause = pause
        self.hostile = _hostile_images()
        self.random = random.Random(seed)
        self.seen = seen
        self.bomb = _picture(2001, 2000)
        self.bad: list[tuple[Callable[[], None], int]] = [
            (self.good_tiled, 2),
            (self.not_an_image, 2),
            (self.cut, 2),
            (self.too_many_pixels, 2),
            (self.too_many_bytes, 1),
            (self.wrong_options, 2),
            (self.wrong_type, 1),
            (self.hang_up, 2),
            (self.slow, 1),
            (self.crowd, 1),
            (self.other_pages, 2),
            (self.hostile_image, 8),
            (self.bad_request, 4),
            (self.half_a_head, 1),
            (self.idle_connections, 1),
            (self.endless_body, 1),
        ]

    def run(self, end: float) -> None:
        kinds, weights = zip(*self.bad, strict=True)
        while time.monotonic() < end:
            try:
                kind = self.good if self.random.random() < 0.6 else self.random.choices(kinds, weights)[0]
                kind()
            except Exception as error:
                with self.seen.lock:
                    self.seen.wrong.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            time.sleep(self.random.uniform(0, 2 * self.pause))

    def ask(
        self,
        data: bytes,
        query: str = "",
        kind: str = "image/png",
        path: str = "/predict",
        headers: dict[str, str] | None = None,
    ) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3 * TIMEOUT)
        try:
            sent = headers or {"Content-Type": kind}
            connection.request("POST" if data else "GET", path + query, data or None, sent)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()
        finally:
            connection.close()

    def expect(self, fault: str, status: int, *arguments: Any, **options: Any) -> None:
        """Send a bad request: it must get `status`, or 503 if the queue is full."""
        got, _, body = self.ask(*arguments, **options)
        self.seen.note(fault, got)
        if got not in (status, 503) or "error" not in json.loads(body):
            raise AssertionError(f"{fault}: expected {status}, got {got}: {body[:200]!r}")

    def good(self, query: str = "") -> None:
        data, begun = self.random.choice(self.images), time.monotonic()
        while True:
            status, headers, body = self.ask(data, query)
            self.seen.note("good", status)
            if status not in (503, 504):
                break
            with self.seen.lock:
                self.seen.waited += 1
            time.sleep(int({key.lower(): value for key, value in headers.items()}["retry-after"]))
        if status != 200 or json.loads(body)["images"][0]["id"] != 1:
            raise AssertionError(f"good: expected 200, got {status}: {body[:200]!r}")
        with self.seen.lock:
            self.seen.good.append((begun, time.monotonic() - begun))

    def one_of_the_last(self) -> None:
        """A good request that is in the server when it has to stop: answered, or told to come again."""
        data = self.random.choice(self.images)
        try:
            status, _, _ = self.ask(data)
        except OSError as error:
            status = 0
            with self.seen.lock:
                self.seen.wrong.append(f"at the end: {type(error).__name__}: {error}")
        self.seen.note("at the end", status)

    def good_tiled(self) -> None:
        self.good("?tile=256&threshold=0.3&overlay=true")

    def not_an_image(self) -> None:
        self.expect("not an image", 422, self.random.randbytes(self.random.randint(1, 5000)))

    def cut(self) -> None:
        data = self.random.choice(self.images)
        self.expect("cut short", 422, data[: self.random.randint(1, len(data) // 2)])

    def too_many_pixels(self) -> None:
        self.expect("too many pixels", 413, self.bomb)

    def too_many_bytes(self) -> None:
        self.expect("too many bytes", 413, bytes(MAX_BYTES + 1))

    def wrong_options(self) -> None:
        query = self.random.choice(["?threshold=2", "?tile=1", "?no=1", "?classes=unicorn", "?max_detections=x"])
        self.expect("wrong options", 422, self.random.choice(self.images), query)

    def wrong_type(self) -> None:
        self.expect("wrong type", 415, b"{}", kind="application/json")

    def other_pages(self) -> None:
        for path, expected in (("/", 200), ("/healthz", 200), ("/metrics", 200), ("/no/such", 404)):
            status, _, _ = self.ask(b"", path=path)
            self.seen.note("page", status)
            if status != expected:
                raise AssertionError(f"{path}: expected {expected}, got {status}")

    def hostile_image(self) -> None:
        one = self.random.choice(self.hostile)
        status, _, body = self.ask(one.data, one.query, "application/octet-stream")
        self.seen.note(one.name, status)
        if status not in (*one.statuses, 503, 504):
            raise AssertionError(f"{one.name}: expected one of {one.statuses}, got {status}: {body[:200]!r}")

    def bad_request(self) -> None:
        name, headers, body, query, statuses = self.random.choice(bad_requests(self.random.choice(self.images)))
        try:
            status, _, answer = self.ask(body, query, headers=headers)
        except ConnectionError:
            if max(map(len, headers.values())) < LONGEST_HEAD:
                raise
            status, answer = 400, b""  # refused while it was being sent: the answer was lost on the way
        self.seen.note(name, status)
        if status not in (*statuses, 503):
            raise AssertionError(f"{name}: expected one of {statuses}, got {status}: {answer[:200]!r}")

    def half_a_head(self) -> None:
        """Begin a request and never end its head: the server must close the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=2 * SECONDS_FOR_HEADERS) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: loc")
            self.seen.note("half a head", "closed" if connection.recv(1) == b"" else "answered")

    def idle_connections(self) -> None:
        """Open more connections than the server allows, ask nothing, and be answered on a new one."""
        idle = []
        try:
            for _ in range(MAX_CONNECTIONS * 5 // 4):
                idle.append(socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT))
            status, _, _ = self.ask(b"", path="/healthz")
            self.seen.note("health beside idle connections", status)
            if status != 200:
                raise AssertionError(f"/healthz beside idle connections: expected 200, got {status}")
            time.sleep(self.random.random() * 3)
        finally:
            for one in idle:
                one.close()

    def endless_body(self) -> None:
        """Send a body in parts without saying its length, and no end: refused once it is too large."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=3 * TIMEOUT) as connection:
            head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            with suppress(ConnectionError):  # the answer comes while parts are being sent
                for _ in range(2 * MAX_BYTES // 65536):
                    connection.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
            response = http.client.HTTPResponse(connection)
            try:
                response.begin()
                status: int | str = response.status
            except ConnectionError:  # closed behind the answer, which was lost with what was still on its way
                status = "closed"
            self.seen.note("endless body", status)
            if status not in (413, 503, "closed"):
                raise AssertionError(f"endless body: expected 413, got {status}")

    def _connection(self, data: bytes, sent: int) -> socket.socket:
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
        head += f"Content-Length: {len(data)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=3 * TIMEOUT)
        connection.sendall(head.encode() + data[:sent])
        return connection

    def hang_up(self) -> None:
        data = self.random.choice(self.images)
        with self._connection(data, self.random.choice([len(data) // 2, len(data)])):
            time.sleep(self.random.random() * 0.2)
        self.seen.note("hung up", "-")

    def slow(self) -> None:
        """Never send the second half of a body: the answer must be 408 after the timeout."""
        data = self.random.choice(self.images)
        with self._connection(data, len(data) // 2) as connection:
            response = http.client.HTTPResponse(connection)
            response.begin()
            self.seen.note("slow body", response.status)
            if response.status not in (408, 503):
                raise AssertionError(f"slow body: expected 408, got {response.status}")

    def crowd(self) -> None:
        """Send more good requests at once than the queue holds."""
        crowd = [threading.Thread(target=self._one_of_a_crowd) for _ in range(2 * MAX_QUEUE)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()

    def _one_of_a_crowd(self) -> None:
        try:
            self.good()
        except Exception as error:
            with self.seen.lock:
                self.seen.wrong.append(f"in a crowd: {type(error).__name__}: {error}")


@cache
def _hostile_images() -> list[Hostile]:
    """Those of all clients: packing them takes seconds."""
    return hostile_images()


def _picture(height: int, width: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (width, height)).save(data, "PNG")
    return data.getvalue()
