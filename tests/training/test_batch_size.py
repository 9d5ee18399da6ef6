"""`per_device_train_batch_size: "auto"`, and what a run says when memory is full."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.training import batch_size
from mask2former_dinov3.training.batch_size import images_per_step
from mask2former_dinov3.training.device_memory import free_cpu_memory, free_in_cgroups, peak_memory
from mask2former_dinov3.training.train import train
from support.processes import run_python
from support.small_run import metric_lines, small_config, weights_equal

BATCH, STEPS = "per_device_train_batch_size", "gradient_accumulation_steps"


def resolved(run: Path) -> tuple[int, int]:
    stored = json.loads((run / "train_config.json").read_text())
    return stored[BATCH], stored[STEPS]


def test_auto__trains_as_the_number_that_it_finds(
    toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit: the steps that are tried leave weights, random states, averages and the gradients' state alone.

    On a CPU 4 images at most, which a step of 8 has twice. A resumed run keeps the number.
    """
    caplog.set_level(logging.INFO)
    options = {"ema_decay": 0.5, "copy_paste": 0.5, "max_grad_norm": 0.01, "lr_scheduler_type": "linear"}
    auto, written = tmp_path / "auto", tmp_path / "written"
    train(small_config(toy_dataset, auto, **options, **{BATCH: "auto", STEPS: 8}))
    assert resolved(auto) == (4, 2)
    assert "per_device_train_batch_size: 4, with gradient_accumulation_steps 2 (8 images per optimiser step)" in (
        caplog.text
    )
    assert "the fullest images, with up to 4 instances, take" in caplog.text
    assert "more at a time are hardly faster on a CPU" in caplog.text
    train(small_config(toy_dataset, written, **options, **{BATCH: 4, STEPS: 2}))
    assert metric_lines(auto) == metric_lines(written)
    assert weights_equal(auto / "last", written / "last")
    for name in ("optimizer.pt", "rng.pt"):
        first, second = (torch.load(run / "checkpoint-2" / name, weights_only=True) for run in (auto, written))
        torch.testing.assert_close(first, second, atol=0, rtol=0)
    caplog.clear()
    more = {"max_train_steps": 3, "resume_from_checkpoint": "latest", BATCH: "auto", STEPS: 8}
    train(small_config(toy_dataset, auto, **options, **more))
    assert resolved(auto) == (4, 2)
    assert f"per_device_train_batch_size: 4, as in {auto / 'checkpoint-2'}" in caplog.text


def test_auto__takes_what_the_memory_holds(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """5 GB for one image and 7 for two make 13 for four, more than 0.9 of 12: they are not tried."""
    caplog.set_level(logging.INFO)
    tried: list[int] = []

    def peak(device: torch.device, job: Any) -> int:
        tried.append(int(5e9 + 2e9 * len(tried)))
        return tried[-1]

    monkeypatch.setattr(batch_size, "usable_memory", lambda device: int(12e9))
    monkeypatch.setattr(batch_size, "resident_memory", lambda: int(4e9))
    monkeypatch.setattr(batch_size, "peak_memory", peak)
    train(small_config(toy_dataset, tmp_path / "run", max_train_steps=1, **{BATCH: "auto", STEPS: 4}))
    assert resolved(tmp_path / "run") == (2, 2)
    assert len(tried) == 2
    assert "take 7 of 12 GB; 4 do not fit into 90 % of it" in caplog.text


def test_auto__keeps_the_images_of_a_step(tmp_path: Path) -> None:
    """As many as with the number that it replaces: of the file, or the default; beside it they are given."""

    def images(words: list[str], **content: Any) -> int:
        file = tmp_path / "options.json"
        file.write_text(json.dumps({"dataset_name": "d", "output_dir": "o", **content}))
        return images_per_step(load_config(file, words)[0])

    flag = ["--per-device-train-batch-size", "auto"]
    assert images(flag, **{BATCH: 4, STEPS: 4}) == 16
    assert images(flag, **{STEPS: 4}) == 8
    assert images(flag) == 2
    assert images([*flag, "--gradient-accumulation-steps", "6"], **{BATCH: 4, STEPS: 4}) == 6
    assert images([], **{BATCH: "auto", STEPS: 4}) == 4
    assert images([], **{BATCH: "auto"}) == 2
    assert images([], **{BATCH: 3, STEPS: 4}) == 12
    with pytest.raises(ValueError, match='expected a whole number above 0, or "auto", got "car"'):
        images(["--per-device-train-batch-size", "car"])


TWO_MEMORIES = """
import os, sys
from mask2former_dinov3.training import batch_size
from mask2former_dinov3.cli import main
batch_size.usable_memory = lambda device: int(1e12 if os.environ["RANK"] == "0" else 1)
sys.exit(main(sys.argv[1:]))
"""


def test_auto__is_the_smallest_of_all_processes(toy_dataset: Path, tmp_path: Path) -> None:
    """The second process has no memory for more than one image."""
    options = {"max_train_steps": 1, "max_hours": 5, BATCH: "auto", STEPS: 2}  # of which the main process has the clock
    config = small_config(toy_dataset, tmp_path / "run", **options)
    (tmp_path / "options.json").write_text(json.dumps(config.model_dump(mode="json")))
    (tmp_path / "two.py").write_text(TWO_MEMORIES)
    words = [str(tmp_path / "two.py"), "train", "--config", str(tmp_path / "options.json")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = run_python([*torchrun, *words], tmp_path, {"ACCELERATE_USE_CPU": "true"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert resolved(tmp_path / "run") == (1, 2)
    assert "(2 images per optimiser step and process)" in done.stderr


LITTLE_MEMORY = """
import resource, sys
import psutil
import mask2former_dinov3.training.train
from mask2former_dinov3.cli import main
limit = psutil.Process().memory_info().vms + int(sys.argv[1]) * 1_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
sys.exit(main(sys.argv[2:]))
"""


def test_full_memory__names_the_options_that_need_less(toy_dataset: Path, tmp_path: Path) -> None:
    """For real: a process that may take 600 MB more, and images that need several GB. Without what is set already."""
    (tmp_path / "little.py").write_text(LITTLE_MEMORY)
    options = {"image_height": 512, "image_width": 512, BATCH: 16, "scale_max": 1.0, "num_queries": 100}
    config = small_config(toy_dataset, tmp_path / "run", **options, gradient_checkpointing=True)
    (tmp_path / "options.json").write_text(json.dumps(config.model_dump(mode="json")))
    words = [str(tmp_path / "little.py"), "600", "train", "--config", str(tmp_path / "options.json")]
    done = run_python(words, tmp_path)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    lines = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert lines[0].startswith("error: out of memory on the device: ")
    assert lines[0].endswith("what needs less, the best first (estimated here, for batches of 16 on 512x512):")
    flags = [line.split(":")[0].strip() for line in lines[1:]]
    small = "--per-device-train-batch-size 8 --gradient-accumulation-steps 2"
    assert [flag for flag in flags if "bf16" not in flag] == [small, "--image-height 384 --image-width 384"]
    saved = [float(line.split("about ")[1].split(" GB less")[0]) for line in lines[1:] if "bf16" not in line]
    assert saved[0] / saved[1] == pytest.approx(0.5 / (1 - 384**2 / 512**2), rel=0.1)


def test_free_memory__is_that_of_the_smallest_group(tmp_path: Path) -> None:
    """Version 2: the process's group has no limit, the one above has 1,000 bytes of which 300 are a cache."""
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("400\n")
    (inner / "memory.stat").write_text("inactive_file 0\n")
    (tmp_path / "outer" / "memory.max").write_text("1000\n")
    (tmp_path / "outer" / "memory.current").write_text("900\n")
    (tmp_path / "outer" / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/outer/inner\n")
    assert free_in_cgroups(tmp_path, own) == [400]
    old = tmp_path / "memory" / "job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("5000\n")
    (old / "memory.usage_in_bytes").write_text("2000\n")
    (old / "memory.stat").write_text("total_inactive_file 100\n")
    own.write_text("5:cpu:/x\n4:memory:/job\n")
    assert free_in_cgroups(tmp_path, own) == [3100]
    assert free_in_cgroups(tmp_path, tmp_path / "none") == []
    assert free_cpu_memory() > 0


def test_peak_memory__is_none_where_memory_is_full() -> None:
    def full() -> None:
        raise MemoryError

    def wrong() -> None:
        raise RuntimeError("shapes differ")

    cpu = torch.device("cpu")
    assert peak_memory(cpu, full) is None
    assert (peak_memory(cpu, lambda: None) or 0) > 0
    with pytest.raises(RuntimeError, match="shapes differ"):
        peak_memory(cpu, wrong)
