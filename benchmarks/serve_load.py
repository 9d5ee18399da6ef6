"""Load test of the server: several clients send good and bad requests for many minutes, and its memory is watched.

The server is a process of its own on the loopback. A good request must be answered, or refused with 503 or 504 and
Retry-After, and is then sent again. A bad request must get the status of its fault; among them are those of
`hostile_requests.py`, which were made to cost much. Clients that hang up, send slowly, or open connections and ask
nothing must not affect others. The server's memory must not grow. The exit code is 1 if any of this fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from load_client import MAX_BYTES, MAX_CONNECTIONS, MAX_PIXELS, MAX_QUEUE, TIMEOUT, Client, Seen
from machine import describe_machine
from mask2former_dinov3.sample_data import SAMPLE
from server_process import start_server

WINDOW = 5  # minutes, for latencies over time
WARM_UP = 1 / 2  # fraction of the run whose memory is not compared: rare requests set its peak late
GROWTH_MB_PER_HOUR = 60.0  # more than this counts as growth: measurements vary by less


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--minutes", type=float, default=30)
    found.add_argument(
        "--clients", type=int, default=4, help="clients, each sends one request after the other (default: 4)"
    )
    found.add_argument("--model", default=str(SAMPLE / "model"), help="model folder (default: the bundled sample)")
    found.add_argument("--images", type=Path, default=SAMPLE / "valid", help="folder of PNGs; default: the sample's")
    found.add_argument("--pause", type=float, default=0.0, help="mean seconds between two requests of a client")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--output", type=Path, help="write NAME.json and NAME.md")
    return found


@contextmanager
def server(model: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server with limits so small that the clients meet all of them, and its port."""
    flags = {"max-bytes": MAX_BYTES, "max-pixels": MAX_PIXELS, "timeout": TIMEOUT, "max-queue": MAX_QUEUE}
    flags["max-connections"] = MAX_CONNECTIONS
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "mask2former_dinov3", "serve", "--model", model, "--port", "0", *words]
    with start_server(command) as found:
        yield found


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


def latencies(seconds: list[float]) -> dict[str, float]:
    """Percentiles of the seconds of good requests, zeros where there are none."""
    found = np.percentile(seconds, [50, 95, 99]) if seconds else np.zeros(3)
    return {f"seconds_p{part}": round(float(value), 3) for part, value in zip((50, 95, 99), found, strict=True)}


def windows(good: list[tuple[float, float]], begun: float, minutes: float) -> list[dict[str, float]]:
    """The latencies of each WINDOW of the run, by the time of the first attempt."""
    rows: list[dict[str, float]] = []
    for start in np.arange(0, minutes, WINDOW):
        inside = [seconds for at, seconds in good if start <= (at - begun) / 60 < start + WINDOW]
        rows.append({"from_minute": float(start), "answered": len(inside), **latencies(inside)})
    return rows


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run server and clients; returns what was observed, flat and ready for JSON."""
    images = [path.read_bytes() for path in sorted(args.images.glob("*.png"))]
    seen = Seen()
    with server(args.model) as (process, port):
        clients = [Client(port, images, args.seed + index, seen, args.pause) for index in range(args.clients)]
        begun = time.monotonic()
        end = begun + 60 * args.minutes
        threads = [threading.Thread(target=client.run, args=(end,)) for client in clients]
        for thread in threads:
            thread.start()
        memory = watch_memory(process, end, min(5.0, args.minutes * 60 / 20))
        for thread in threads:
            thread.join()
        if process.poll() is None:
            metrics = clients[0].ask(b"", path="/metrics")[2].decode()
            stopping = [threading.Thread(target=clients[0].one_of_the_last) for _ in range(2)]
            for thread in stopping:
                thread.start()
            time.sleep(0.5)
            asked = time.monotonic()
            process.send_signal(signal.SIGTERM)
        code = process.wait(2 * TIMEOUT)
        seconds_to_stop = time.monotonic() - asked
        for thread in stopping:
            thread.join()
    number = {name: float(value) for name, value in re.findall(r"^mask2former_(\S+) (\S+)$", metrics, re.MULTILINE)}
    return {
        **describe_machine(),
        "minutes": args.minutes,
        "clients": args.clients,
        "requests": sum(seen.statuses.values()),
        "statuses": dict(sorted(seen.statuses.items())),
        "pause": args.pause,
        "good_answered": len(seen.good),
        "told_to_wait": seen.waited,
        **latencies([seconds for _, seconds in seen.good]),
        "windows": windows(seen.good, begun, args.minutes),
        "images_per_second": round(number["images_total"] / (60 * args.minutes), 2),
        "images_per_batch": round(number["images_total"] / max(number["batch_size_count"], 1), 2),
        "rss_mb": [[round(minute, 2), round(megabytes, 1)] for minute, megabytes in memory],
        "growth_mb_per_hour": round(growth(memory), 1),
        "still_inside": number["queue_length"],
        "seconds_from_sigterm_to_end": round(seconds_to_stop, 2),
        "exit_code": code,
        "wrong": seen.wrong,
    }


def markdown(result: dict[str, Any]) -> str:
    """The result as a table."""
    left_out = {"rss_mb", "wrong", "statuses", "windows"}
    rows = [f"| {key} | {value} |" for key, value in result.items() if key not in left_out]
    marks = result["rss_mb"][:: max(1, len(result["rss_mb"]) // 10)]
    rows += [f"| {kind} | {count} |" for kind, count in result["statuses"].items()]
    rows += ["| MB at minute | " + ", ".join(f"{mb:.0f} at {minute:.1f}" for minute, mb in marks) + " |"]
    table = ["", "| minutes | good requests answered | p50 (s) | p95 (s) | p99 (s) |", "|---|---|---|---|---|"]
    for one in result["windows"]:
        cells = [one["answered"], *(f"{one[f'seconds_p{part}']:.1f}" for part in (50, 95, 99))]
        span = f"{one['from_minute']:g} to {one['from_minute'] + WINDOW:g}"
        table.append(f"| {span} | {' | '.join(map(str, cells))} |")
    wrong = [f"- {line}" for line in result["wrong"][:20]] or ["Nothing went wrong."]
    return "\n".join(["| | |", "|---|---|", *rows, *table, "", *wrong]) + "\n"


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
