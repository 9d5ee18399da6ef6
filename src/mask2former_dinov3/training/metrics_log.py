"""The log of a run: metrics.jsonl, the tracker, and a progress bar on a terminal or lines in a log file."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import psutil
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tqdm import tqdm

from ..atomic_files import flush, write_text
from ..data.coco_types import Metrics
from ..data.fitting import PixelArray
from ..reports.pictures import encode_jpeg

logger = logging.getLogger(__name__)
ABANDONED = "metrics.abandoned.jsonl"
"""Lines of steps that a run went back before: it went on from an older checkpoint, or was killed after its last one."""


class MetricsLog:
    """Appends one JSON object a line to `metrics.jsonl` and passes the same numbers to accelerate's tracker.

    On a terminal a progress bar shows the newest numbers; elsewhere, as in a log file, each call adds a line. Only the
    main process writes. A resumed run first moves the lines of the steps that it will repeat to `ABANDONED`. evaluates:
    whether it evaluates its first step again.
    """

    def __init__(
        self, accelerator: Accelerator, output_dir: Path, *, first_step: int, num_steps: int, evaluates: bool = False
    ) -> None:
        self.accelerator = accelerator
        self.path = output_dir / "metrics.jsonl"
        self.first_step, self.num_steps = first_step, num_steps
        self.started = self.window_started = time.perf_counter()
        self.window_images = 0
        self.newest: dict[str, str] = {}
        self.newest_step = first_step
        if accelerator.is_main_process:
            self._move_lines_after(first_step, evaluates)
        self.bar = tqdm(
            total=num_steps,
            initial=first_step,
            disable=not (accelerator.is_main_process and sys.stderr.isatty()),
            unit="step",
            dynamic_ncols=True,
            smoothing=0.1,
        )

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def _move_lines_after(self, step: int, evaluates: bool) -> None:
        if not self.path.is_file():
            return
        kept: list[str] = []
        moved: list[str] = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
                is_kept = found["step"] < step or (found["step"] == step and not (evaluates and "split" in found))
                (kept if is_kept else moved).append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line that was cut off when the process was killed
        if moved:
            with self.path.with_name(ABANDONED).open("a", encoding="utf-8") as file:
                file.writelines(line + "\n" for line in moved)
            flush(self.path.with_name(ABANDONED))
            logger.info("%d lines of metrics.jsonl after step %d are moved to %s", len(moved), step, ABANDONED)
        write_text(self.path, "".join(line + "\n" for line in kept))

    def flush(self) -> None:
        """Write the lines so far to the disk, before a checkpoint that the run may go on from."""
        if self.accelerator.is_main_process and self.path.is_file():
            flush(self.path)

    def count_step(self, images: int, num_steps: int) -> None:
        """Count an optimiser step of so many images, of a run that has `num_steps` by now."""
        self.window_images += images
        self.num_steps = self.bar.total = num_steps
        self.bar.update()

    def restart_clock(self) -> None:
        """Start measuring images per second again, so that evaluation and saving do not count."""
        self.window_started, self.window_images = time.perf_counter(), 0

    def log_training(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Log losses and learning rate since the last call. values: `loss`, `lr` and any others."""
        seconds = time.perf_counter() - self.window_started
        speed = {"images_per_second": self.window_images / max(seconds, 1e-9), "memory_gb": memory_gb()}
        self.restart_clock()
        self._write(step, epoch, {**values, **speed})
        self._show(
            step,
            {
                "loss": f"{values['loss']:.3f}",
                "lr": f"{values['lr']:.3g}",
                "img/s": f"{speed['images_per_second']:.2f}",
                "GB": f"{speed['memory_gb']:.1f}",
            },
        )

    def log_evaluation(self, step: int, epoch: float, split: str, metrics: Metrics) -> None:
        """Log the metrics of one evaluation; of its operating point the numbers at the threshold."""
        values: dict[str, object] = {"split": split, **metrics}
        shown = {"AP": f"{metrics['AP']:.3f}"}
        if "operating_point" in metrics:
            del values["operating_point"]
            block = metrics["operating_point"]
            point = block["points"]["0.50"]
            values["score_threshold"] = block["threshold"]
            values |= {"precision": point["precision"], "recall": point["recall"], "f1": point["f1"]}
            if block["threshold"] is not None:
                shown["F1"] = f"{point['f1']:.3f} at {block['threshold']:.2f}"
        self._write(step, epoch, values)
        self._show(step, {name if split == "valid" else f"{split} {name}": text for name, text in shown.items()})

    def log_picture(self, step: int, name: str, picture: PixelArray) -> None:
        """Send a picture (h, w, 3) to TensorBoard, W&B, trackio or MLflow; other trackers get numbers only.

        A tracker that does not take it is a warning: pictures are for looking on.
        """
        for tracker in self.accelerator.trackers:
            try:
                _send_picture(tracker, step, name, picture, self.newest_step)
            except Exception as error:  # each tracker has its own
                logger.warning("%s took no picture of %s: %s", tracker.name, name, error)

    def _show(self, step: int, texts: dict[str, str]) -> None:
        """Update the bar, or log a line with the time that is left at the mean speed so far."""
        if not self.bar.disable:
            self.newest |= texts
            self.bar.set_postfix_str(", ".join(f"{name} {self.newest[name]}" for name in sorted(self.newest)))
        elif self.accelerator.is_main_process:
            done, left = step - self.first_step, self.num_steps - step
            eta = tqdm.format_interval((time.perf_counter() - self.started) / max(done, 1) * left)
            shown = ", ".join(f"{name} {text}" for name, text in texts.items())
            logger.info("step %d/%d: %s, ETA %s", step, self.num_steps, shown, eta)

    def _write(self, step: int, epoch: float, values: Mapping[str, object]) -> None:
        if not self.accelerator.is_main_process:
            return
        elapsed = time.perf_counter() - self.started
        # In fp16 a gradient may overflow to infinity, which JSON cannot express.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = {"step": step, "epoch": round(epoch, 4), "time": round(elapsed, 3), **finite}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        prefix = f"{values['split']}/" if "split" in values else "train/"
        numbers = {prefix + key: value for key, value in values.items() if isinstance(value, int | float)}
        if isinstance(per_class := values.get("per_class"), Mapping):  # -1: the data have no object of the class
            numbers |= {f"{prefix}per_class/{name}": value for name, value in per_class.items() if value >= 0}
        self.accelerator.log(numbers, step=step)
        self.newest_step = step


def _send_picture(tracker: GeneralTracker, step: int, name: str, picture: PixelArray, newest_step: int) -> None:
    """newest_step: of what the tracker has by now; all but TensorBoard want no earlier one."""
    if tracker.name == "tensorboard":
        tracker.tracker.add_image(name, picture, step, dataformats="HWC")
        tracker.tracker.flush()
        return
    step = max(step, newest_step)
    if tracker.name == "wandb":
        tracker.log_images({name: [picture]}, step=step)
    elif tracker.name == "trackio":
        import trackio  # chosen by the user, so installed

        tracker.log({name: trackio.Image(picture)}, step=step)
    elif tracker.name == "mlflow":
        with tempfile.TemporaryDirectory() as folder:
            stem = re.sub(r"[^A-Za-z0-9._-]", "_", name)  # what names of its artifacts may hold
            file = Path(folder) / f"{stem}_{step:07}.jpg"
            file.write_bytes(encode_jpeg(picture))
            tracker.log_artifact(str(file), "pictures")


def memory_gb() -> float:
    """Peak GPU memory, or the current resident memory of this process on a CPU, in GB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return float(psutil.Process().memory_info().rss) / 1e9
