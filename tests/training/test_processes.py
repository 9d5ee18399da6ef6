"""Several processes (gloo, CPU) train as one does, and stop as one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parents[1]
SOURCE = TESTS.parent / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def write_config(folder: Path, dataset: Path, **options: Any) -> Path:
    folder.mkdir()
    settings: dict[str, Any] = {
        "dataset_name": str(dataset),
        "output_dir": str(folder / "run"),
        "backbone": "tiny",
        "image_height": 64,
        "image_width": 64,
        "scale_min": 0.9,
        "scale_max": 1.1,
        "max_train_steps": 3,
        "learning_rate": 1e-3,
        "adam_epsilon": 1e-5,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "constant",
        "dataloader_num_workers": 0,
        "per_device_train_batch_size": 1,
        "logging_steps": 1,
        "checkpointing_steps": None,
        "with_tracking": False,
        "max_detections": 10,
        **options,
    }
    path = folder / "config.json"
    path.write_text(json.dumps(settings))
    return path


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def finish(command: list[str], config: Path) -> Path:
    result = subprocess.run(
        [*command, str(TESTS / "support" / "fixed_points_run.py"), str(config)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return config.parent / "run"


def test_processes__two_and_accumulation_equal_one_big_batch(toy_dataset: Path, tmp_path: Path) -> None:
    """Same losses, weights and AP; one of the images has no instances (its process would otherwise weigh too much)."""
    one = finish([sys.executable], write_config(tmp_path / "one", toy_dataset, per_device_train_batch_size=2))
    two = finish(TORCHRUN, write_config(tmp_path / "two", toy_dataset))
    accumulated = finish(
        [sys.executable], write_config(tmp_path / "accumulated", toy_dataset, gradient_accumulation_steps=2)
    )
    expected = load_file(one / "last" / "model.safetensors")
    for run in (two, accumulated):
        for mine, theirs in zip(lines(run)[:3], lines(one)[:3], strict=True):
            for name in ("loss", "loss_cross_entropy", "loss_mask", "loss_dice", "grad_norm"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), (run, name)
        weights = load_file(run / "last" / "model.safetensors")
        assert weights.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(weights[name], tensor, atol=1e-4, rtol=0, msg=f"{run.parent.name}: {name}")
        assert lines(run)[-1]["AP"] == pytest.approx(lines(one)[-1]["AP"], abs=1e-6)


def test_processes__two_train_adapters_and_last_blocks_as_one_does(toy_dataset: Path, tmp_path: Path) -> None:
    """Every weight that is trained has a gradient in every process: DDP would otherwise stop, or wait for ever."""
    ways: dict[str, dict[str, Any]] = {"lora": {"lora_rank": 4}, "blocks": {"frozen_blocks": 2, "layer_decay": 0.8}}
    for name, options in ways.items():
        more = {**options, "gradient_checkpointing": True, "max_train_steps": 2}
        one = finish(
            [sys.executable], write_config(tmp_path / f"{name}1", toy_dataset, per_device_train_batch_size=2, **more)
        )
        two = finish(TORCHRUN, write_config(tmp_path / f"{name}2", toy_dataset, **more))
        weights, expected = (load_file(run / "last" / "model.safetensors") for run in (two, one))
        for key, tensor in expected.items():
            torch.testing.assert_close(weights[key], tensor, atol=1e-4, rtol=0, msg=f"{name}: {key}")


def start_two(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TORCHRUN, "-m", "mask2former_dinov3", "train", "--config", str(config)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def test_processes__sigterm_to_one_stops_and_saves_all(toy_dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "stopped", toy_dataset, max_train_steps=10000)
    process = start_two(config)
    run = tmp_path / "stopped" / "run"
    try:
        wait_for(run / "metrics.jsonl", process)
        workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGTERM)
        output, _ = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    saved = list(run.glob("checkpoint-*"))
    assert len(saved) == 1, output[-3000:]
    assert f"--resume_from_checkpoint {saved[0]}" in output


def test_processes__an_error_in_one_stops_all(toy_dataset: Path, tmp_path: Path) -> None:
    """An image that only one process meets disappears while the run goes on."""
    import shutil

    dataset = tmp_path / "broken"
    shutil.copytree(toy_dataset, dataset)
    config = write_config(tmp_path / "failing", dataset, max_train_steps=10000)
    process = start_two(config)
    try:
        wait_for(tmp_path / "failing" / "run" / "metrics.jsonl", process)
        (dataset / "train" / "002.png").unlink()
        output, _ = process.communicate(timeout=90)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    assert "002.png" in output
    assert "another process failed" in output
