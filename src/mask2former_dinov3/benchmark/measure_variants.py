"""The whole measurement: every variant on every canvas, in turns with torch in float32."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ..errors import UserError
from ..inference.predictor import load_processor, usable_device
from ..sample_data import SAMPLE
from .asked_process import AskedProcess, ProcessFailedError
from .machine import describe_machine
from .row_table import Row
from .timing import Timed, take_turns
from .variant_process import Task
from .variants import REFERENCE, BenchmarkSettings, Variant, why_unavailable

Say = Callable[[str], None]


def measure_variants(model: str | Path, settings: BenchmarkSettings, say: Say = lambda text: None) -> Iterator[Row]:
    """One row per canvas, runtime and precision, as each is measured; torch in float32 comes first.

    model: folder or hub id. say: called with each step, for people. A variant that is not installed or fails is a row
    with a `note` that says why. Two variants are loaded at a time: torch in float32, and the one that is compared with
    it. They take turns, and `speedup` is the ratio of their median seconds in the same rounds.
    Raises UserError for a model, images or annotations that cannot be used, OptionError for a device.
    """
    device = usable_device(settings.device)
    size = load_processor(str(model)).size
    for canvas in settings.canvases or ((size["height"], size["width"]),):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            images = settings.images or SAMPLE / "valid"
            task = Task(
                model=str(model),
                device=str(device),
                canvas=canvas,
                files=folder,
                images=str(images),
                calibration_images=str(settings.calibration_images or images),
                annotations=None if settings.annotations is None else str(settings.annotations),
                extra_images=settings.extra_images,
                batch_size=settings.batch_size,
            )
            yield from _CanvasRun(task, settings, device, say).rows()


def benchmark_facts(model: str | Path, settings: BenchmarkSettings) -> dict[str, object]:
    """What is known before anything is measured: the machine, the model and the settings, ready for JSON."""
    device = usable_device(settings.device)
    stored = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()}
    return {"machine": describe_machine(device), "model": str(model), "settings": stored}


class _CanvasRun:
    """The rows of one canvas."""

    def __init__(self, task: Task, settings: BenchmarkSettings, device: torch.device, say: Say) -> None:
        self.task, self.settings, self.device, self.say = task, settings, device, say
        self.where = "x".join(map(str, task.canvas))

    def rows(self) -> Iterator[Row]:
        """The rows, `REFERENCE` first."""
        variants = self.settings.variants()
        reasons = {one: why_unavailable(one, self.device) for one in variants}
        with ExitStack() as opened:
            reference = opened.enter_context(self._start(replace(self.task, variant=_pair(REFERENCE))))
            row, alive = self._measured(REFERENCE, reference, None)
            yield row
            possible = [one for one in variants if one.has_file and reasons[one] is None]
            sizes, failed = self._write_files({one.file_precision for one in possible})
            for variant in variants[1:]:
                reason = reasons[variant] or (failed.get(variant.file_precision) if variant.has_file else None)
                if reason is not None:
                    yield self._row(variant) | {"note": reason}
                    continue
                with self._start(replace(self.task, variant=_pair(variant))) as process:
                    row, _ = self._measured(variant, process, reference if alive else None)
                    yield row | ({"file_mb": sizes[variant.file_precision]} if variant.has_file else {})

    def _write_files(self, precisions: set[str]) -> tuple[dict[str, float], dict[str, str]]:
        """Write the ONNX files of these precisions: sizes in MB of those written, reasons why not of the others."""
        sizes: dict[str, float] = {}
        failed: dict[str, str] = {}
        if not precisions:
            return sizes, failed
        with self._start(self.task) as process:
            for precision in ("fp32", *sorted(precisions - {"fp32"})):  # the others are made from fp32
                self.say(f"{self.where}: writing the ONNX file in {precision}")
                try:
                    sizes[precision] = process.ask(precision)["file_mb"]
                except ProcessFailedError as error:
                    failed[precision] = f"no ONNX file: {error}"
                    if precision == "fp32":
                        return sizes, dict.fromkeys(precisions, failed[precision])
        return sizes, failed

    def _measured(self, variant: Variant, process: AskedProcess, reference: AskedProcess | None) -> tuple[Row, bool]:
        """The row of a variant, and whether it ran. Raises UserError where `REFERENCE` does not find what it needs."""
        row = self._row(variant)
        self.say(f"{self.where}: {variant.runtime} in {variant.precision}")
        start = time.perf_counter()
        try:
            process.ask("time")
            row["start_seconds"] = time.perf_counter() - start
            works: dict[str, Timed] = {"this": _timed_by(process)}
            if reference is not None:
                works = {"reference": _timed_by(reference)} | works
            seconds = take_turns(works, self.settings.repeat)
            row |= _latencies(seconds["this"], self.settings.batch_size)
            if reference is not None:
                row["speedup"] = median(seconds["reference"]) / median(seconds["this"])
            row |= process.ask("memory")
            if reference is not None or variant == REFERENCE:
                row |= process.ask("compare")
            if self.settings.annotations is not None:
                row |= process.ask("score")
        except ProcessFailedError as error:
            if error.of_user and variant == REFERENCE:
                raise UserError(str(error)) from error
            return row | {"note": str(error)}, False
        return row, True

    def _row(self, variant: Variant) -> Row:
        height, width = self.task.canvas
        return {
            "height": height,
            "width": width,
            "batch_size": self.settings.batch_size,
            "runtime": variant.runtime,
            "precision": variant.precision,
        }

    def _start(self, task: Task) -> AskedProcess:
        errors = Path(self.task.files) / f"{'-'.join(task.variant or ['files'])}.txt"
        return AskedProcess(task.words(), errors)


def _timed_by(process: AskedProcess) -> Timed:
    return lambda: float(process.ask("time")["seconds"])


def _latencies(seconds: Sequence[float], images: int) -> Row:
    """images: of one batch, whose latency it is."""
    return {
        "images_per_second": images / median(seconds),
        "latency_p50_seconds": median(seconds),
        "latency_p95_seconds": float(np.percentile(seconds, 95)),
    }


def _pair(variant: Variant) -> tuple[str, str]:
    return variant.runtime, variant.precision
