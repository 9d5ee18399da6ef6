"""The bundled model as an .onnx file, and an onnxruntime that takes less memory than it does by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime

from mask2former_dinov3.export import onnx_export
from mask2former_dinov3.export.onnx_export import trace
from mask2former_dinov3.sample_data import SAMPLE
from support.memory import give_back_memory

CHECKED_IMAGES = 3  # by `export`, one and then two together: another image in the second batch takes 0.4 GB more


class FrugalOptions(onnxruntime.SessionOptions):
    """Sessions free what a run needed: the arena that they keep by default grows to 1 GB for two images."""

    def __init__(self) -> None:
        super().__init__()
        self.enable_cpu_mem_arena = False


def limit_onnxruntime() -> None:
    """Let all further sessions of this process be frugal; results are the same."""
    vars(onnxruntime)["SessionOptions"] = FrugalOptions


def trace_and_give_back(*args: Any, **options: Any) -> None:
    """As `trace`, but the memory of the graphs that torch's exporter makes on its way is free for the check."""
    trace(*args, **options)
    give_back_memory(True)


def export_sample(file: Path) -> None:
    """Export the bundled model with its instances in the graph. Takes a minute and 1.5 GB: for a process of its own."""
    limit_onnxruntime()
    vars(onnx_export).update(CHECKED_IMAGES=CHECKED_IMAGES, trace=trace_and_give_back)
    onnx_export.export(SAMPLE / "model", file, with_postprocess=True)
