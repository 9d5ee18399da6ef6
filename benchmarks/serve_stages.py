"""Where the time of an answer of `serve` goes: decoding, preparing, the model, masks, RLE, merging, JSON, pictures.

The server is a process of its own, with a clock around each stage; one client sends one request after the other. A
stage's seconds are its own, without those of the stages that it calls. What is not the model is the time until the
client has the answer, less the time of the network's forward passes.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import importlib
import io
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from server_process import start_server

HERE = Path(__file__).resolve().parent
PACKAGE = "mask2former_dinov3"
# Stage -> the functions that do it, by module and name.
STAGES = {
    "decode": ("serving.queue:ModelQueue._decode",),
    "prepare": ("inference.image_processing:Mask2FormerDinov3ImageProcessor.prepare",),
    "collate": ("inference.image_processing:Mask2FormerDinov3ImageProcessor.collate",),
    "model": ("model.modeling:Mask2FormerDinov3ForInstanceSegmentation.forward",),
    "masks": ("inference.image_passes:post_process",),
    "RLE": ("inference.resize_masks:borders_of_blocks", "inference.resize_masks:encode_borders"),
    "copies": ("inference.copies:suppress_copies",),
    "merge": ("inference.tiles.merging:Merger.add_row", "inference.tiles.merging:Merger.instances"),
    "JSON": ("serving.app:to_coco_file", "serving.app:JSONResponse.render"),
    "overlay": ("serving.queue:_draw_png",),
    "preview": ("serving.queue:_preview_png",),
}
QUERIES = {"plain": "", "pictures": "overlay=true&preview=true"}
SIDES = {"1024x1024": (1024, 1024), "3000x4000": (3000, 4000)}  # height x width


class Clock:
    """Seconds of each stage since the last `take`, without the stages inside it."""

    def __init__(self) -> None:
        self.now: Callable[[], float] = time.perf_counter
        self._own = threading.local()
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = defaultdict(float)

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            inner = self._own.__dict__.setdefault("inner", [])
            inner.append(0.0)
            begun = self.now()
            try:
                return function(*args, **options)
            finally:
                whole = self.now() - begun
                own = whole - inner.pop()
                if inner:
                    inner[-1] += whole
                with self._lock:
                    self._seconds[stage] += own

        return timed

    def take(self) -> dict[str, float]:
        with self._lock:
            found, self._seconds = dict(self._seconds), defaultdict(float)
        return found


def find_function(place: str) -> tuple[Any, str, Callable[..., Any]]:
    """The module or class that holds a function of STAGES, the function's name in it, and the function."""
    module, _, name = place.partition(":")
    *owners, last = name.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(f"{PACKAGE}.{module}"))
    return owner, last, getattr(owner, last)


def run_server(report: Path, words: Sequence[str]) -> int:
    """`serve`, which writes the seconds of each answer's stages to `report` before it sends the answer."""
    clock = Clock()
    for stage, places in STAGES.items():
        for place in places:
            owner, name, function = find_function(place)
            setattr(owner, name, clock.around(stage, function))
    app: Any = importlib.import_module(f"{PACKAGE}.serving.app")
    render = app.JSONResponse.render

    def render_and_report(self: Any, content: Any) -> bytes:
        body: bytes = render(self, content)
        report.write_text(json.dumps(clock.take()), encoding="utf-8")
        return body

    app.JSONResponse.render = render_and_report
    return int(importlib.import_module(f"{PACKAGE}.cli").main(["serve", "--port", "0", *words]))


@contextmanager
def server(model: str, source: Path | None, report: Path) -> Iterator[int]:
    """The port of a server of this model. source: the folder `src` of another version of the package."""
    command = [sys.executable, __file__, "--report", str(report), "--model", model]
    environment = os.environ | ({"PYTHONPATH": str(source)} if source else {})
    with start_server(command, environment) as (_, port):
        yield port


def ask(port: int, data: bytes, query: str) -> tuple[float, Any]:
    """Seconds until the client has the answer, and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    begun = time.perf_counter()
    connection.request("POST", f"/predict?{query}", data, {"Content-Type": "image/jpeg"})
    response = connection.getresponse()
    body = response.read()
    seconds = time.perf_counter() - begun
    connection.close()
    answer = json.loads(body)
    if response.status != 200:
        raise SystemExit(f"expected an answer, got {response.status}: {answer}")
    return seconds, answer


def picture(folder: Path, height: int, width: int) -> bytes:
    """The images of a folder side by side, again and again, as a JPEG of this size."""
    tiles = [np.asarray(Image.open(path).convert("RGB").resize((256, 256))) for path in sorted(folder.glob("*.png"))]
    rows, columns = -(-height // 256), -(-width // 256)
    numbers = np.arange(rows * columns).reshape(rows, columns) % len(tiles)
    pixels = np.concatenate([np.concatenate([tiles[number] for number in row], axis=1) for row in numbers])
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[:height, :width])).save(data, "JPEG", quality=92)
    return data.getvalue()


def measure(args: argparse.Namespace, model: str, options: str) -> list[dict[str, Any]]:
    """A row for each version, size and query: medians over `--repeat` requests, after one that is not counted."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sources = {"before": args.baseline, "now": None} if args.baseline else {"now": None}
        reports = {name: Path(folder) / f"{name}.json" for name in sources}
        ports = {name: stack.enter_context(server(model, sources[name], reports[name])) for name in sources}
        for size in args.sizes:
            data = picture(args.images, *SIDES[size])
            for kind in args.answers:
                query = QUERIES[kind]
                seen: dict[str, list[dict[str, float]]] = {name: [] for name in sources}
                answers: dict[str, Any] = {}
                for _ in range(args.repeat + 1):
                    for name, port in ports.items():  # in turns: the speed of a machine changes
                        seconds, answers[name] = ask(port, data, "&".join(filter(None, (options, query))))
                        stages = json.loads(reports[name].read_text(encoding="utf-8"))
                        seen[name].append({"seconds": seconds, **stages})
                found = [answer["annotations"] for answer in answers.values()]
                for name, requests in seen.items():
                    keys = ["seconds", *STAGES]
                    middle = {
                        key: statistics.median(one.get(key, 0.0) for one in requests[1:] or requests) for key in keys
                    }
                    row = {"size": size, "answer": kind, "version": name, "instances": len(found[0]), **middle}
                    row["not the model"] = 1 - middle["model"] / middle["seconds"]
                    row["same"] = all(one == found[0] for one in found)
                    rows.append(row)
                    print(json.dumps(row), file=sys.stderr, flush=True)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table with a line for each row: milliseconds."""
    names = ["seconds", *STAGES]
    lines = [f"| image | answer | | instances | {' | '.join(['whole', *STAGES, 'not the model'])} |"]
    lines.append("|" + "---|" * (len(names) + 5))
    for row in rows:
        numbers = [f"{1000 * row[name]:.0f}" for name in names]
        start = [row["size"], row["answer"], row["version"], str(row["instances"])]
        share = f"{100 * row['not the model']:.0f} %"
        lines.append(f"| {' | '.join([*start, *numbers, share])} |")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    found.add_argument("--model", help="model folder (default: the bundled sample)")
    found.add_argument("--preset", choices=("tiny", "smallplus", "large"), help="random weights, canvas 1024x1024")
    found.add_argument("--options", default="", help="of every request, such as threshold=0.1&max_detections=100")
    found.add_argument("--images", type=Path, help="folder of PNGs that pictures are made of; default: the sample's")
    found.add_argument("--sizes", nargs="*", choices=SIDES, default=list(SIDES))
    found.add_argument("--answers", nargs="*", choices=QUERIES, default=list(QUERIES))
    found.add_argument("--repeat", type=int, default=3, help="requests after the first, which is not counted unless 0")
    found.add_argument("--baseline", type=Path, metavar="SRC", help="src of another version, measured in turns")
    found.add_argument("--output", type=Path, help="folder of the results")
    found.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # in the process of the server
    return found


def main(argv: Sequence[str]) -> int:
    args = parser().parse_args(argv)
    if args.report is not None:
        return run_server(args.report, ["--model", args.model, "--timeout", "600"])
    from machine import describe_run, write_result
    from mask2former_dinov3.sample_data import SAMPLE

    facts = describe_run() | {"model": args.preset or args.model or "the bundled one", "options": args.options}
    args.images = args.images or SAMPLE / "valid"
    with tempfile.TemporaryDirectory() as folder:
        if args.preset:
            from runtimes import save_preset

            save_preset(args.preset, Path(folder))
        rows = measure(args, folder if args.preset else args.model or str(SAMPLE / "model"), args.options)
    print(markdown(rows))
    if args.output:
        write_result(
            args.output, ["serve", args.preset or "sample"], "Answers of serve", facts, markdown(rows), {"rows": rows}
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
