"""The training run: what it leaves, exact resuming, stopping, and what it refuses."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from mask2former_dinov3.atomic_files import write_folder
from mask2former_dinov3.config.train_config import TrainConfig, load_config
from mask2former_dinov3.data.read_rules import ReadRules
from mask2former_dinov3.errors import (
    CheckpointError,
    ConfigError,
    DatasetError,
    MissingExtraError,
    OptionError,
    UserError,
)
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.training.build_model import build_model
from mask2former_dinov3.training.ema import AveragedWeights
from mask2former_dinov3.training.launch import start_accelerator
from mask2former_dinov3.training.train import load_data, train
from support.processes import start_python
from support.run_config import make_config


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = (load_file(path / "model.safetensors") for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_train__leaves_the_run_folder_of_the_contract(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = make_config(toy_dataset, run, max_train_steps=4, checkpointing_steps=2, with_tracking=True)
    metrics = train(config)
    assert {"AP", "AP50", "boundary_AP", "box_AP", "per_class"} <= metrics.keys()
    assert set(metrics["per_class"]) == {"disc", "bar"}
    for folder in ("best", "last", "checkpoint-2", "checkpoint-4"):
        names = {path.name for path in (run / folder).iterdir()}
        assert {
            "config.json",
            "model.safetensors",
            "model.safetensors.sha256",
            "preprocessor_config.json",
            "README.md",
        } <= names, folder
        assert "DINOV3_LICENSE.md" not in names  # random weights: nothing of Meta's is in them
    assert load_config(run / "train_config.json", {})[0] == config
    entries = lines(run)
    assert [line["step"] for line in entries if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in entries if "AP" in line] == [2, 4]
    assert {"epoch", "time", "lr", "images_per_second", "memory_gb", "grad_norm"} <= entries[0].keys()
    assert list(run.rglob("events.out.tfevents*"))
    assert json.loads((run / "best" / "config.json").read_text())["category_ids"] == [3, 7]
    assert not [path.name for path in run.iterdir() if path.name.startswith(".")]


def test_train__lays_the_code_beside_the_model_on_request(toy_dataset: Path, tmp_path: Path) -> None:
    train(make_config(toy_dataset, tmp_path / "run", with_code=True))
    with_code = {path.parent.name for path in (tmp_path / "run").glob("*/modeling.py")}
    assert with_code == {"best", "last"}
    for folder in with_code:
        assert "AutoConfig" in json.loads((tmp_path / "run" / folder / "config.json").read_text())["auto_map"]


def test_train__without_validation_data(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(make_config(make_toy_dataset(valid=0), run, valid_split=0)) == {}
    assert (run / "last" / "model.safetensors").is_file()
    assert not (run / "best").exists()
    assert not any("AP" in line for line in lines(run))


def test_train__holds_images_out_when_there_is_one_file(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    metrics = train(make_config(make_toy_dataset(train=12, valid=0), tmp_path / "run", valid_split=0.3))
    assert 1 <= metrics["images"] <= 8


def test_train__reaches_its_first_evaluation_with_what_check_data_accepts(
    make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """UTF-16, ids as text, a class named 0, fewer classes in valid, stray points, and a Unicode form of a file name."""
    root = make_toy_dataset(valid=2)
    for split in ("train", "valid"):
        file = root / split / "_annotations.coco.json"
        content = json.loads(file.read_text())
        content["categories"][1]["name"] = 0
        for image in content["images"]:
            image["id"] = f"{image['id']}.0"
        for annotation in content["annotations"]:
            annotation |= {"iscrowd": bool(annotation["iscrowd"]), "bbox": [1, None, 2, 3], "area": "?"}
        content["annotations"][1]["segmentation"].append([5.0, 5.0])
        content["annotations"].append({**content["annotations"][0], "id": 99, "segmentation": [[]]})
        if split == "valid":
            content["categories"] = content["categories"][1:]
            content["annotations"] = [one for one in content["annotations"] if one["category_id"] == 7]
            content["images"][0]["file_name"] = "caf\u00e9.png"
            (root / "valid" / "000.png").rename(root / "valid" / "cafe\u0301.png")
        file.write_text(json.dumps(content), encoding="utf-16")
    metrics = train(make_config(root, tmp_path / "run", max_train_steps=1))
    assert set(metrics["per_class"]) == {"0"}
    assert any("1 part of fewer than 3 points" in note for note in metrics["notes"])
    assert json.loads((tmp_path / "run" / "best" / "config.json").read_text())["id2label"] == {"0": "disc", "1": "0"}


def test_load_data__reads_crowd_regions_and_incomplete_images_as_configured(
    make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    root = make_toy_dataset()
    file = root / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = None  # of image 10
    file.write_text(json.dumps(content))
    data = load_data(make_config(root, tmp_path))
    assert [one.iscrowd for one in data["train"].images[2].annotations] == [False, False, True]
    assert data["train"].images[0].id == 10
    data = load_data(make_config(root, tmp_path, crowd="instances", incomplete_images="drop"))
    assert [image.id for image in data["train"].images] == [11, 12, 13, 14, 15]
    assert [one.iscrowd for one in data["train"].images[1].annotations] == [False] * 3
    assert data["valid"].rules == data["train"].rules == ReadRules("instances", "drop")


@pytest.mark.long
def test_train__overfits_the_toy_set_to_a_high_ap(toy_dataset: Path, tmp_path: Path) -> None:
    """Scored on the six images it is trained on, masks, classes and scores must come out nearly right."""
    train_file = str(toy_dataset / "train" / "_annotations.coco.json")
    config = make_config(
        toy_dataset,
        tmp_path / "run",
        dataset_name=None,
        train_annotations=train_file,
        train_images=str(toy_dataset / "train"),
        valid_annotations=train_file,
        valid_images=str(toy_dataset / "train"),
        image_width=80,
        image_height=80,
        per_device_train_batch_size=3,
        max_train_steps=50,
        learning_rate=1e-3,
        checkpointing_steps=None,
        backbone_lr_multiplier=1.0,
        num_queries=20,
        encoder_layers=1,
        decoder_layers=2,
        mask_feature_size=128,
        num_warmup_steps=20,
        flip="none",
        scale_min=1,
        scale_max=1,
        color_jitter=0,
    )
    metrics = train(config)
    assert metrics["AP"] > 0.85
    assert min(metrics["per_class"].values()) > 0.7
    block = metrics["operating_point"]
    assert block["points"]["0.50"]["f1"] > 0.9
    assert lines(tmp_path / "run")[-1]["f1"] == block["points"]["0.50"]["f1"]
    for name in ("best", "last"):
        stored = json.loads((tmp_path / "run" / name / "config.json").read_text())
        assert stored["score_threshold"] == block["threshold"]
        assert stored["score_threshold_source"]["metric"] == "best F1"
        assert stored["score_threshold_source"]["data"] == block["data"]
        assert block["data"].endswith("/train")
        assert (
            f"Score threshold: {block['threshold']:g} (best F1" in (tmp_path / "run" / name / "README.md").read_text()
        )


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"neck": "adapter", "query_init": "seeds", "matching": "pixels", "mask_stride": 2, "ema_decay": 0.5},
        {"frozen_blocks": 2, "layer_decay": 0.8, "repeat_factor": 1.0, "class_weights": "auto"},
        {"lora_rank": 4, "ema_decay": 0.5, "gradient_checkpointing": True, "mixed_precision": "bf16"},
    ],
)
def test_resume__is_bit_for_bit_the_straight_run(toy_dataset: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    """6 images, 4 a step: after 3 of 6 steps the run stands in the middle of its third epoch."""
    options = {
        **model,
        "max_train_steps": 6,
        "checkpointing_steps": 3,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 2,
        "num_warmup_steps": 2,
        "lr_scheduler_type": "cosine",
    }
    straight, cut = tmp_path / "straight", tmp_path / "cut"
    train(make_config(toy_dataset, straight, **options))
    cut.mkdir()
    for name in ("checkpoint-3", "best"):
        shutil.copytree(straight / name, cut / name)
    shutil.copy(straight / "metrics.jsonl", cut)  # with the lines of steps 4 to 6, which will be done again
    torch.manual_seed(12345)
    train(make_config(toy_dataset, cut, **options, resume_from_checkpoint="latest"))
    assert same_weights(straight / "last", cut / "last")
    for name in ("optimizer.pt", "rng.pt"):
        first, second = (torch.load(run / "checkpoint-6" / name, weights_only=True) for run in (straight, cut))
        torch.testing.assert_close(first, second, atol=0, rtol=0)
    varying = {"time", "images_per_second", "memory_gb", "seconds"}
    kept = [
        [{key: value for key, value in line.items() if key not in varying} for line in lines(run)]
        for run in (straight, cut)
    ]
    assert kept[0] == kept[1]
    first = next(line for line in lines(straight) if "loss" in line)
    assert ("loss_seed" in first) == ("query_init" in model)
    assert all(math.isfinite(first[name]) for name in first if name.startswith("loss"))
    states = [json.loads((run / "checkpoint-6" / "state.json").read_text()) for run in (straight, cut)]
    assert states[0]["best_metric"] == states[1]["best_metric"]
    assert not same_weights(straight / "checkpoint-3", straight / "last")


def test_train__averaged_weights_are_what_is_scored_and_saved(toy_dataset: Path, tmp_path: Path) -> None:
    """Against the average written out from the weights of every step: checkpoints hold the weights themselves."""
    run, decay = tmp_path / "run", 0.25
    config = make_config(
        toy_dataset, run, max_train_steps=4, checkpointing_steps=1, save_total_limit=None, ema_decay=decay
    )
    train(config)
    expected = dict(started_model(config).state_dict())
    for step in range(1, 5):
        own = min(decay, (1 + step) / (10 + step))
        weights = loaded(run / f"checkpoint-{step}")
        expected = {name: own * expected[name] + (1 - own) * weight for name, weight in weights.items()}
    for name, weight in loaded(run / "last").items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5)
    assert not same_weights(run / "last", run / "checkpoint-4")
    frozen = make_config(toy_dataset, run, ema_decay=decay, freeze_backbone=True)
    model = started_model(frozen)
    averaged = AveragedWeights(model, decay)
    backbone = "backbone.model.layer.0.mlp.up_proj.weight"
    assert averaged.model.get_parameter(backbone) is model.get_parameter(backbone)
    assert not any(name.startswith("backbone.") for name in averaged.state_dict())


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return dict(Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(folder).state_dict())


def started_model(config: TrainConfig) -> Mask2FormerDinov3ForInstanceSegmentation:
    torch.manual_seed(config.seed)
    return build_model(config, load_data(config)["train"])


def test_resume__takes_a_new_learning_rate_and_says_so(
    toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train(make_config(toy_dataset, run, max_train_steps=2, lr_scheduler_type="constant"))
    options = {"max_train_steps": 3, "lr_scheduler_type": "constant", "learning_rate": 1e-5, "weight_decay": 0.5}
    train(make_config(toy_dataset, run, **options, resume_from_checkpoint="latest"))
    assert "learning_rate: was 0.0005, now 1e-05" in caplog.text
    assert lines(run)[-2]["lr"] == pytest.approx(1e-5)
    groups = torch.load(run / "checkpoint-3" / "optimizer.pt", weights_only=True)["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.0, 0.5}
    assert groups[0]["lr"] == pytest.approx(1e-5)


def test_save__needs_no_git_and_gives_others_access(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = tmp_path / "run"
    train(make_config(toy_dataset, run, max_train_steps=1))
    assert "commit" not in json.loads((run / "checkpoint-1" / "state.json").read_text())["made_by"]
    modes = {path.stat().st_mode & 0o777 for path in (run / "last").iterdir()}
    assert len(modes) == 1


def test_interrupt__saves_and_says_how_to_resume(toy_dataset: Path, tmp_path: Path) -> None:
    """Ctrl-C in a real process with a data worker; the resumed run ends where a straight one does."""
    options = {"max_train_steps": 30, "checkpointing_steps": None, "dataloader_num_workers": 1}
    straight, run = tmp_path / "straight", tmp_path / "run"
    train(make_config(toy_dataset, straight, **options))
    config = make_config(toy_dataset, run, **options)
    file = tmp_path / "config.json"
    file.write_text(config.model_dump_json())
    process = start_python(["-m", "mask2former_dinov3", "train", "--config", str(file)], tmp_path)
    end = time.monotonic() + 240
    while not (run / "metrics.jsonl").exists() and time.monotonic() < end:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    done = process.finish()
    errors = done.stderr
    assert done.returncode == 130, errors[-2000:]
    (saved,) = run.glob("checkpoint-*")
    assert f"--resume-from-checkpoint {saved}" in errors
    assert "Traceback" not in errors
    train(make_config(toy_dataset, run, **options, resume_from_checkpoint=str(saved)))
    assert same_weights(straight / "last", run / "last")


def test_train__not_finite_loss_names_the_images(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def poisoned(*args: Any) -> Any:
        model = build_model(*args)
        forward, calls = model.forward, list[str]()

        def fails_later(**inputs: Any) -> Any:
            calls.extend(["mask_labels"] if "mask_labels" in inputs else [])
            if len(calls) == 3:
                inputs["pixel_values"] = inputs["pixel_values"] * float("inf")
            return forward(**inputs)

        monkeypatch.setattr(model, "forward", fails_later)
        return model

    monkeypatch.setattr("mask2former_dinov3.training.train.build_model", poisoned)
    with pytest.raises(UserError, match=r"step 3: expected a finite loss, got one that is not, on images \[1\d, 1\d\]"):
        train(make_config(toy_dataset, run, max_train_steps=5, checkpointing_steps=2))
    weights = load_file(run / "checkpoint-2" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert not (run / "last").exists()


def test_train__not_finite_gradient_stops_before_the_weights_are_spoilt(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A square root at 0 has the value 0 and no finite slope: the loss looks fine, the gradient is not."""

    def poisoned(*args: Any) -> Any:
        model = build_model(*args)
        forward = model.forward
        weight = model.head.transformer_decoder.class_predictor.weight

        def with_a_root(**inputs: Any) -> Any:
            output = forward(**inputs)
            if output.loss is not None:
                output.loss = output.loss + (weight - weight.detach()).sqrt().sum()
            return output

        monkeypatch.setattr(model, "forward", with_a_root)
        return model

    monkeypatch.setattr("mask2former_dinov3.training.train.build_model", poisoned)
    with pytest.raises(
        UserError, match=r"step 1: expected a finite gradient, got one that is not, on images \[1\d, 1\d\]"
    ):
        train(make_config(toy_dataset, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_train__a_full_disk_leaves_what_was_saved(toy_dataset: Path, tmp_path: Path) -> None:
    """Writing fails for real: the process may not write files over 4 MB from the third step on. Data workers, who
    ignore the signal by which Python ends them, end before the error is out: it would never let the process end.
    """
    run = tmp_path / "run"
    config = make_config(toy_dataset, run, max_train_steps=1)
    train(config)
    before = {path.name: path.read_bytes() for path in (run / "last").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))
    try:
        options = {"max_train_steps": 3, "resume_from_checkpoint": "latest", "checkpointing_steps": 2}
        with pytest.raises(CheckpointError, match="could not be written"):
            train(make_config(toy_dataset, run, **options, dataloader_num_workers=2))
        assert not multiprocessing.active_children()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in (run / "last").iterdir()} == before
    assert not [path.name for path in run.iterdir() if path.name.startswith(".") or path.name == "checkpoint-2"]


def test_write_folder__keeps_the_old_one_when_writing_fails(tmp_path: Path) -> None:
    folder = tmp_path / "best"
    with write_folder(folder) as new:
        (new / "file").write_text("good")

    def fill() -> None:
        with write_folder(folder) as new:
            (new / "file").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="best: could not be written"):
        fill()
    assert (folder / "file").read_text() == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_write_folder__leaves_other_errors_as_they_are(tmp_path: Path) -> None:
    """A fault of this package in the block is no full disk."""
    folder = tmp_path / "best"
    with write_folder(folder) as new:
        (new / "file").write_text("good")

    def fail() -> None:
        with write_folder(folder):
            raise RuntimeError("a fault of this package")

    with pytest.raises(RuntimeError, match=r"^a fault of this package$"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_train__names_a_missing_checkpoint_before_it_reads_data(tmp_path: Path) -> None:
    config = make_config(tmp_path / "no-data", tmp_path / "run", resume_from_checkpoint=str(tmp_path / "none"))
    with pytest.raises(OptionError, match=r"^resume_from_checkpoint: expected a checkpoint-\* folder"):
        train(config)


def test_train__refuses_a_folder_it_cannot_write(toy_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="choose another"):
        train(make_config(toy_dataset, tmp_path / "file" / "run"))


def test_train__refuses_to_overwrite_a_run_before_it_says_anything(
    toy_dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    train(make_config(toy_dataset, run, max_train_steps=1))
    caplog.clear()
    with caplog.at_level(logging.INFO), pytest.raises(OptionError) as caught:
        train(make_config(toy_dataset, run))
    assert caplog.messages == []
    assert str(caught.value) == (
        f"output_dir: expected a folder without a run, got {run} with an earlier run; "
        "resume it with --resume-from-checkpoint latest, or choose another --output-dir"
    )


def test_resume__refuses_what_does_not_fit(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    message = (
        f"resume_from_checkpoint: expected a checkpoint-* folder in {run}, got none; "
        "leave the option out to start a new run"
    )
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        train(make_config(toy_dataset, run, resume_from_checkpoint="latest"))
    train(make_config(toy_dataset, run, max_train_steps=1))
    again = {"resume_from_checkpoint": "latest"}
    with pytest.raises(ConfigError, match="made with 2 images per optimiser step"):
        train(make_config(toy_dataset, run, **again, gradient_accumulation_steps=2))
    kept = (run / "train_config.json").read_text()
    with pytest.raises(ConfigError) as caught:
        train(make_config(toy_dataset, run, **again, num_queries=50, freeze_backbone=True, seed=7, flip="both"))
    for text in ("num_queries: was 100, now 50", "freeze_backbone: was None, now True", "seed: was 0, now 7", "flip: "):
        assert text in str(caught.value)
    with pytest.raises(ConfigError, match=r"frozen_blocks: was 0, now 1\n  layer_decay: was 1.0, now 0.5"):
        train(make_config(toy_dataset, run, **again, frozen_blocks=1, layer_decay=0.5))
    with pytest.raises(ConfigError, match="lora_rank: was 0, now 4"):
        train(make_config(toy_dataset, run, **again, lora_rank=4))
    assert (run / "train_config.json").read_text() == kept
    (run / "checkpoint-1" / "optimizer.pt").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt: expected a file of a checkpoint, got a damaged one"):
        train(make_config(toy_dataset, run, **again))
    missing = f"got {run / 'last'} without state.json, optimizer.pt, rng.pt"
    with pytest.raises(OptionError, match=re.escape(missing)):
        train(make_config(toy_dataset, run, resume_from_checkpoint=str(run / "last")))


def test_train__refuses_faulty_data_with_the_messages_of_check_data(
    make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    dataset = make_toy_dataset()
    file = dataset / "train" / "_annotations.coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 99
    content["images"][1]["file_name"] = "gone.png"
    file.write_text(json.dumps(content))
    with pytest.raises(DatasetError) as caught:
        train(make_config(dataset, tmp_path / "run"))
    assert "99" in str(caught.value)
    assert "gone.png" in str(caught.value)


def test_train__bf16_stays_close_to_float32(toy_dataset: Path, tmp_path: Path) -> None:
    runs = {name: tmp_path / name for name in ("no", "bf16")}
    for name, run in runs.items():
        train(make_config(toy_dataset, run, mixed_precision=name, checkpointing_steps=None))
    full, half = (lines(run)[0]["loss"] for run in runs.values())
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    assert all(tensor.dtype == torch.float32 for tensor in load_file(runs["bf16"] / "last/model.safetensors").values())


@pytest.mark.parametrize("known", [True, False])
def test_start_accelerator__warns_of_bf16_on_a_cpu_that_does_not_know_it(
    known: bool, toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("a run on a GPU does not ask the CPU")
    monkeypatch.setattr("mask2former_dinov3.training.launch.cpu_has_bf16", lambda: known)
    start_accelerator(make_config(toy_dataset, tmp_path / "run", mixed_precision="bf16"))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert ("--mixed-precision no" in caplog.text) is not known


def test_train__says_which_precision_or_tracker_cannot_be_had(toy_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match=r"report_to=wandb needs wandb.*mask2former-dinov3\[trackers\]"):
        train(make_config(toy_dataset, tmp_path / "run", with_tracking=True, report_to="wandb"))
    advice = "install mlflow, or use tensorboard, which is always installed"
    with pytest.raises(
        OptionError, match=f"^report_to: expected a tracker that is installed here, got mlflow; {advice}"
    ):
        train(make_config(toy_dataset, tmp_path / "run", with_tracking=True, report_to="mlflow"))
    if not torch.cuda.is_available():
        message = "mixed_precision: expected bf16 or no on a CPU, got fp16; fp16 needs a GPU"
        with pytest.raises(OptionError, match=f"^{message}$"):
            train(make_config(toy_dataset, tmp_path / "run", mixed_precision="fp16"))


def test_checkpoints__are_rotated(toy_dataset: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(make_config(toy_dataset, run, max_train_steps=4, checkpointing_steps=1, save_total_limit=2))
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
