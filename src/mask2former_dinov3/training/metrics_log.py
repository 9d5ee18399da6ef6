"""What a run tells: metrics.jsonl, the tracker, and one live line."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from tqdm import tqdm

from ..atomic_files import write_text


class RunLog:
    """One JSON object a line in `metrics.jsonl`, the same numbers to accelerate's tracker, the newest on the live line.

    Only the main process writes. A resumed run first drops the lines of steps that it will do again.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, *, first_step: int, num_steps: int) -> None:
        self.accelerator = accelerator
        self.path = output_dir / "metrics.jsonl"
        self.started = self.window_started = time.perf_counter()
        self.window_images = 0
        self.shown: dict[str, str] = {}
        if accelerator.is_main_process:
            self._drop_lines_after(first_step)
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            disable=not accelerator.is_main_process,
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _drop_lines_after(self, step: int) -> None:
        if not self.path.is_file():
            return
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line that a kill cut short
        write_text(self.path, "".join(line + "\n" for line in kept))

    def step_done(self, images: int) -> None:
        """Count an optimiser step of so many images."""
        self.window_images += images
        self.bar.update()

    def restart_clock(self) -> None:
        """Evaluation and saving do not count in images per second."""
        self.window_started, self.window_images = time.perf_counter(), 0

    def training(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """Losses and rate since the last call."""
        seconds = time.perf_counter() - self.window_started
        speed = {"images_per_second": self.window_images / max(seconds, 1e-9), "memory_gb": memory_gb()}
        self.restart_clock()
        self._write(step, epoch, {**values, **speed})
        self.shown |= {
            "loss": f"{values['loss']:.3f}",
            "img/s": f"{speed['images_per_second']:.2f}",
            "GB": f"{speed['memory_gb']:.1f}",
        }
        self._show()

    def evaluation(self, step: int, epoch: float, split: str, metrics: dict[str, Any]) -> None:
        """Metrics of one evaluation."""
        self._write(step, epoch, {"split": split, **metrics})
        if split == "valid":
            self.shown["AP"] = f"{metrics['AP']:.3f}"
            self._show()

    def _show(self) -> None:
        self.bar.set_postfix_str(", ".join(f"{name} {self.shown[name]}" for name in sorted(self.shown)))

    def _write(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        if not self.accelerator.is_main_process:
            return
        elapsed = time.perf_counter() - self.started
        # A gradient that overflowed in fp16 is infinite, which JSON has no word for.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = {"step": step, "epoch": round(epoch, 4), "time": round(elapsed, 3), **finite}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        prefix = f"{values['split']}/" if "split" in values else "train/"
        numbers = {prefix + key: value for key, value in values.items() if isinstance(value, int | float)}
        self.accelerator.log(numbers, step=step)


def memory_gb() -> float:
    """Peak of the accelerator's memory, or this process's resident memory on a CPU, in GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9
