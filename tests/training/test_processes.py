"""Several processes (gloo, CPU) train as one does, and stop as one does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.paths import ROOT, SOURCE
from support.processes import start_python, start_two

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
FIXED_POINTS = str(ROOT / "tests" / "support" / "fixed_points_run.py")
ON_CPU = {"ACCELERATE_USE_CPU": "true"}


def write_config(folder: Path, dataset: Path, **options: Any) -> Path:
    folder.mkdir()
    settings: dict[str, Any] = {
        "dataset_name": str(dataset),
        "output_dir": str(folder / "run"),
        "backbone": "tiny",
        "image_height": 64,
        "image_width": 64,
        "num_queries": 10,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "mask_feature_size": 32,
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


def run_on(processes: int, config: Path) -> Path:
    """Train with fixed random points; returns the run folder."""
    words = [FIXED_POINTS, str(config)]
    started = (
        start_two(words, config.parent, ON_CPU) if processes == 2 else [start_python(words, config.parent, ON_CPU)]
    )
    for done in [one.finish() for one in started]:
        assert done.returncode == 0, done.stderr[-3000:]
    return config.parent / "run"


def test_processes__two_and_accumulation_equal_one_big_batch(toy_dataset: Path, tmp_path: Path) -> None:
    """Same losses, weights and AP; one of the images has no instances (its process would otherwise weigh too much)."""
    one = run_on(1, write_config(tmp_path / "one", toy_dataset, per_device_train_batch_size=2))
    two = run_on(2, write_config(tmp_path / "two", toy_dataset))
    accumulated = run_on(1, write_config(tmp_path / "accumulated", toy_dataset, gradient_accumulation_steps=2))
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
        one = run_on(1, write_config(tmp_path / f"{name}1", toy_dataset, per_device_train_batch_size=2, **more))
        two = run_on(2, write_config(tmp_path / f"{name}2", toy_dataset, **more))
        weights, expected = (load_file(run / "last" / "model.safetensors") for run in (two, one))
        for key, tensor in expected.items():
            torch.testing.assert_close(weights[key], tensor, atol=1e-4, rtol=0, msg=f"{name}: {key}")


def wait_for(path: Path, is_running: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert is_running(), f"ended before {path} appeared"
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def test_processes__sigterm_to_one_stops_and_saves_all(toy_dataset: Path, tmp_path: Path) -> None:
    """Under torchrun, which starts a new interpreter for each process."""
    config = write_config(tmp_path / "stopped", toy_dataset, max_train_steps=10000)
    words = [*TORCHRUN, "-m", "mask2former_dinov3", "train", "--config", str(config)]
    process = start_python(words, tmp_path, {**ON_CPU, "PYTHONPATH": str(SOURCE)})
    run = tmp_path / "stopped" / "run"
    wait_for(run / "metrics.jsonl", lambda: process.poll() is None)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGTERM)
    done = process.finish()
    assert done.returncode != 0
    saved = list(run.glob("checkpoint-*"))
    assert len(saved) == 1, done.stderr[-3000:]
    assert f"--resume-from-checkpoint {saved[0]}" in done.stderr


def test_processes__that_would_each_train_alone_are_refused(toy_dataset: Path, tmp_path: Path) -> None:
    """As torchrun starts them where torch sees no GPU: accelerate lets each one train for itself, into one folder."""
    if torch.cuda.is_available():
        pytest.skip("with a GPU they are a group")
    config = write_config(tmp_path / "alone", toy_dataset)
    words = ["-m", "mask2former_dinov3", "train", "--config", str(config)]
    done = [one.finish() for one in start_two(words, tmp_path)]
    assert [one.returncode for one in done] == [1, 1], [one.stderr[-3000:] for one in done]
    errors = "".join(one.stderr for one in done)
    assert errors.count("error: WORLD_SIZE: expected the 2 processes of the launcher as one group, got 1, which") == 1
    assert "set ACCELERATE_USE_CPU=true" in errors
    assert not (tmp_path / "alone" / "run").exists()


def test_processes__an_error_in_one_stops_all_and_is_shown_once(toy_dataset: Path, tmp_path: Path) -> None:
    """An image that only one process meets disappears while the run goes on: all end, and what was done is saved."""
    dataset = tmp_path / "broken"
    shutil.copytree(toy_dataset, dataset)
    config = write_config(tmp_path / "failing", dataset, max_train_steps=10000, max_bad_images=0)
    started = start_two(["-m", "mask2former_dinov3", "train", "--config", str(config)], tmp_path, ON_CPU)
    run = tmp_path / "failing" / "run"
    wait_for(run / "metrics.jsonl", lambda: all(one.poll() is None for one in started))
    (dataset / "train" / "002.png").unlink()
    done = [one.finish() for one in started]
    assert [one.returncode for one in done] == [1, 1], [one.stderr[-3000:] for one in done]
    errors = "".join(one.stderr for one in done)
    assert errors.count("error: ") == 1
    assert errors.count("002.png") == 1
    (saved,) = run.glob("checkpoint-*")
    assert len(torch.load(saved / "rng.pt", weights_only=True)) == 2


def test_processes__one_that_is_stopped_is_given_up(toy_dataset: Path, tmp_path: Path) -> None:
    """SIGSTOP to the second: the first ends by itself, says what to do, and saves what it can."""
    options = {"max_train_steps": 10000, "process_group_timeout": 5}
    config = write_config(tmp_path / "stopped", toy_dataset, **options)
    started = start_two(["-m", "mask2former_dinov3", "train", "--config", str(config)], tmp_path, ON_CPU)
    run = tmp_path / "stopped" / "run"
    wait_for(run / "metrics.jsonl", lambda: all(one.poll() is None for one in started))
    os.kill(started[1].pid, signal.SIGSTOP)
    try:
        done = started[0].finish()
    finally:
        os.killpg(started[1].pid, signal.SIGKILL)
        started[1].process.join(120)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "has not answered for 5 seconds (process_group_timeout); resume with" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(list(run.glob("checkpoint-*"))) == 1
