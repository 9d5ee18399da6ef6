"""What a run shows on a terminal and in a log file, and which lines metrics.jsonl holds."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image

from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.training.metrics_log import MetricsLog
from support.coco_reference import random_scene


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def log_two_steps(accelerator: Accelerator, folder: Path) -> None:
    """Steps 19 and 20 of 40, then an evaluation."""
    with MetricsLog(accelerator, folder, first_step=18, num_steps=40) as log:
        for step in (19, 20):
            log.count_step(4, 40)
            log.log_training(step, step / 10, {"loss": 2.5, "lr": 1e-4, "grad_norm": float("inf")})
        log.log_evaluation(20, 2.0, "valid", {"AP": 0.25, "AP50": 0.5})


def test_metrics_log__without_a_terminal_adds_lines_and_no_bar(
    accelerator: Accelerator, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="mask2former_dinov3"):
        log_two_steps(accelerator, tmp_path)
    assert capfd.readouterr().err == ""
    numbers = r"loss 2\.500, lr 0\.0001, img/s \d+\.\d\d, GB \d+\.\d, ETA \d\d:\d\d"
    expected = [f"step 19/40: {numbers}", f"step 20/40: {numbers}", r"step 20/40: AP 0\.250, ETA \d\d:\d\d"]
    assert len(caplog.messages) == len(expected)
    for message, pattern in zip(caplog.messages, expected, strict=True):
        assert re.fullmatch(pattern, message), message


def test_metrics_log__has_the_numbers_at_the_threshold_and_no_curves(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scene = random_scene(3, 3)
    metrics = evaluate_coco(scene.truth, scene.results)
    block = metrics["operating_point"]
    with (
        caplog.at_level(logging.INFO, logger="mask2former_dinov3"),
        MetricsLog(accelerator, tmp_path, first_step=0, num_steps=4) as log,
    ):
        log.log_evaluation(2, 1.0, "valid", metrics)
    (line,) = [json.loads(one) for one in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    point = block["points"]["0.50"]
    assert line["score_threshold"] == block["threshold"]
    assert (line["precision"], line["recall"], line["f1"]) == (point["precision"], point["recall"], point["f1"])
    assert "operating_point" not in line
    assert f"AP {metrics['AP']:.3f}, F1 {point['f1']:.3f} at {block['threshold']:.2f}, ETA" in caplog.messages[-1]


class FakeTracker:
    """As accelerate's trackers of W&B and of others; remembers what it gets."""

    def __init__(self, name: str, fault: Exception | None = None) -> None:
        self.name, self.fault, self.got = name, fault, list[tuple[str, tuple[int, ...], int]]()

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers, which are not looked at here."""

    def log_images(self, values: dict[str, list[np.ndarray[Any, Any]]], step: int) -> None:
        if self.fault:
            raise self.fault
        self.got += [(name, pictures[0].shape, step) for name, pictures in values.items()]

    def log_artifact(self, path: str, folder: str) -> None:
        with Image.open(path) as picture:
            self.got.append((f"{folder}/{Path(path).name}", (*picture.size[::-1], 3), 0))


def test_log_picture__reaches_the_trackers_that_take_pictures(
    accelerator: Accelerator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """W&B drops earlier steps, MLflow refuses some letters, and a tracker that fails does not end the run."""
    trackers = [FakeTracker("wandb"), FakeTracker("mlflow"), FakeTracker("aim"), FakeTracker("wandb", OSError("gone"))]
    accelerator.trackers = trackers
    picture = np.zeros((4, 6, 3), np.uint8)
    with MetricsLog(accelerator, tmp_path, first_step=0, num_steps=40) as log:
        log.log_picture(0, "training samples", picture)
        log.log_training(9, 1.0, {"loss": 2.5, "lr": 1e-4})
        log.log_picture(5, "worst images/1 a(1).jpg", picture)
    assert trackers[0].got == [("training samples", (4, 6, 3), 0), ("worst images/1 a(1).jpg", (4, 6, 3), 9)]
    names = ["pictures/training_samples_0000000.jpg", "pictures/worst_images_1_a_1_.jpg_0000009.jpg"]
    assert trackers[1].got == [(name, (4, 6, 3), 0) for name in names]
    assert trackers[2].got == []
    assert caplog.text.count("wandb took no picture of ") == 2
    assert "training samples: gone" in caplog.text


def read_all(reader: int) -> str:
    """What is written to a pseudo-terminal until it is closed."""
    parts: list[bytes] = []
    with os.fdopen(reader, "rb", buffering=0) as file, suppress(OSError):  # Linux ends with an error
        while part := file.read(4096):
            parts.append(part)
    return b"".join(parts).decode()


def test_metrics_log__on_a_terminal_shows_a_bar_and_no_lines(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, 150))
    with ThreadPoolExecutor(1) as pool, caplog.at_level(logging.INFO, logger="mask2former_dinov3"):
        reading = pool.submit(read_all, reader)
        with os.fdopen(writer, "w") as terminal:
            monkeypatch.setattr(sys, "stderr", terminal)
            log_two_steps(accelerator, tmp_path)
            monkeypatch.undo()
        shown = reading.result(timeout=60)
    assert "\r" in shown
    assert re.search(r"20/40 .*AP 0\.250, GB \d+\.\d, img/s \d+\.\d\d, loss 2\.500, lr 0\.0001", shown), shown
    assert not caplog.messages


def test_metrics_log__drops_lines_that_a_resumed_run_repeats(accelerator: Accelerator, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 18}\n{"step": 19}\n{"step": 20, "AP"')
    log_two_steps(accelerator, tmp_path)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["step"] for line in lines] == [18, 19, 20, 20]
    assert lines[1]["grad_norm"] is None  # JSON has no infinity
    assert (lines[3]["split"], lines[3]["AP"]) == ("valid", 0.25)
