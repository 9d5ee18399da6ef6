"""Load test of the server: several clients send good and bad requests for many minutes, and its memory is watched.

The server is a process of its own on the loopback. A good request must be answered, or refused with 503 or 504 and
Retry-After, and is then sent again. A bad request must get the status of its fault. Clients that hang up or send slowly
must not affect others. The server's memory must not grow. The exit code is 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from machine import describe_machine
from mask2former_dinov3.sample_data import SAMPLE

MAX_BYTES, MAX_PIXELS, TIMEOUT, MAX_QUEUE = 2_000_000, 4_000_000, 20, 8
WARM_UP = 1 / 3  # fraction of the run whose memory is not compared
GROWTH_MB_PER_HOUR = 60.0  # more than this counts as growth: measurements vary by less


@dataclass
class Seen:
    """What the clients observed. seconds: of good requests, from their first attempt on. wrong: rules broken."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    waited: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, status: int | str) -> None:
        with self.lock:
            self.statuses[f"{kind}: {status}"] += 1


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--minutes", type=float, default=30)
    found.add_argument(
        "--clients", type=int, default=4, help="clients, each sends one request after the other (default: 4)"
    )
    found.add_argument("--model", default=str(SAMPLE / "model"), help="model folder (default: the bundled sample)")
    found.add_argument("--images", type=Path, default=SAMPLE / "valid", help="folder of PNGs; default: the sample's")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--output", type=Path, help="write NAME.json and NAME.md")
    return found


@contextmanager
def server(model: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server with limits so small that the clients meet all of them, and its port."""
    flags = {"max-bytes": MAX_BYTES, "max-pixels": MAX_PIXELS, "timeout": TIMEOUT, "max-queue": MAX_QUEUE}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "mask2former_dinov3", "serve", "--model", model, "--port", "0", *words]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://\S+:(\d+)$", line.strip()):
                break
        else:
            raise SystemExit("the server did not start")
        threading.Thread(
            target=lambda: [None for _ in process.stderr or ()], daemon=True
        ).start()  # else a full pipe stops the server
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            process.kill()


class Client:
    """One client: 60 % good requests, the others of all other kinds."""

    def __init__(self, port: int, images: list[bytes], seed: int, seen: Seen) -> None:
        self.port = port
        self.images = images
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
        ]

    def run(self, end: float) -> None:
        kinds, weights = zip(*self.bad, strict=True)
        while time.monotonic() < end:
            try:
                kind = self.good if self.random.random() < 0.6 else self.random.choices(kinds, weights)[0]
                kind()
            except Exception as error:
                with self.seen.lock:
                    self.seen.wrong.append(f"{type(error).__name__}: {error}")

    def ask(self, data: bytes, query: str = "", kind: str = "image/png", path: str = "/predict") -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3 * TIMEOUT)
        try:
            connection.request("POST" if data else "GET", path + query, data or None, {"Content-Type": kind})
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
            self.seen.seconds.append(time.monotonic() - begun)

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


def _picture(height: int, width: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (width, height)).save(data, "PNG")
    return data.getvalue()


def watch_memory(process: subprocess.Popen[str], end: float, every: float) -> list[tuple[float, float]]:
    """(minutes, resident MB of the server), every `every` seconds until `end` or until the server ends."""
    found, begun = [], time.monotonic()
    while time.monotonic() < end and process.poll() is None:
        found.append(((time.monotonic() - begun) / 60, psutil.Process(process.pid).memory_info().rss / 1e6))
        time.sleep(every)
    return found


def growth(memory: list[tuple[float, float]]) -> float:
    """MB per hour: slope of a line through the minimum of each minute after the warm-up.

    The minimum is what remains between two batches; their pixels are not growth.
    """
    least: dict[int, float] = {}
    for minute, megabytes in memory[int(WARM_UP * len(memory)) :]:
        least[int(minute)] = min(megabytes, least.get(int(minute), megabytes))
    return float(np.polyfit(np.array(list(least)) / 60, list(least.values()), 1)[0]) if len(least) > 2 else 0.0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run server and clients; returns what was observed, flat and ready for JSON."""
    images = [path.read_bytes() for path in sorted(args.images.glob("*.png"))]
    seen = Seen()
    with server(args.model) as (process, port):
        end = time.monotonic() + 60 * args.minutes
        clients = [Client(port, images, args.seed + index, seen) for index in range(args.clients)]
        threads = [threading.Thread(target=client.run, args=(end,)) for client in clients]
        for thread in threads:
            thread.start()
        memory = watch_memory(process, end, min(5.0, args.minutes * 60 / 20))
        for thread in threads:
            thread.join()
        if process.poll() is None:
            metrics = clients[0].ask(b"", path="/metrics")[2].decode()
            process.send_signal(signal.SIGTERM)
        code = process.wait(2 * TIMEOUT)
    number = {name: float(value) for name, value in re.findall(r"^mask2former_(\S+) (\S+)$", metrics, re.MULTILINE)}
    p50, p95, p99 = np.percentile(seen.seconds, [50, 95, 99]) if seen.seconds else (0.0, 0.0, 0.0)
    return {
        **describe_machine(),
        "minutes": args.minutes,
        "clients": args.clients,
        "requests": sum(seen.statuses.values()),
        "statuses": dict(sorted(seen.statuses.items())),
        "good_answered": len(seen.seconds),
        "told_to_wait": seen.waited,
        "seconds_p50": round(float(p50), 3),
        "seconds_p95": round(float(p95), 3),
        "seconds_p99": round(float(p99), 3),
        "images_per_second": round(number["images_total"] / (60 * args.minutes), 2),
        "images_per_batch": round(number["images_total"] / max(number["batch_size_count"], 1), 2),
        "rss_mb": [[round(minute, 2), round(megabytes, 1)] for minute, megabytes in memory],
        "growth_mb_per_hour": round(growth(memory), 1),
        "still_inside": number["queue_length"],
        "exit_code": code,
        "wrong": seen.wrong,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    left_out = {"rss_mb", "wrong", "statuses"}
    rows = [f"| {key} | {value} |" for key, value in result.items() if key not in left_out]
    marks = result["rss_mb"][:: max(1, len(result["rss_mb"]) // 10)]
    rows += [f"| {kind} | {count} |" for kind, count in result["statuses"].items()]
    rows += ["| MB at minute | " + ", ".join(f"{mb:.0f} at {minute:.1f}" for minute, mb in marks) + " |"]
    wrong = [f"- {line}" for line in result["wrong"][:20]] or ["Nothing went wrong."]
    return "\n".join(["| | |", "|---|---|", *rows, "", *wrong]) + "\n"


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    result = measure(args)
    print(markdown(result))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.with_suffix(".json").write_text(json.dumps(result, indent=1) + os.linesep)
        args.output.with_suffix(".md").write_text(markdown(result))
    long = args.minutes >= 10  # in a shorter run memory still grows to its working size
    grown = long and result["growth_mb_per_hour"] > GROWTH_MB_PER_HOUR
    return int(bool(result["wrong"]) or result["exit_code"] != 0 or result["still_inside"] != 0 or grown)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
