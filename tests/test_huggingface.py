"""docs/huggingface.md as printed, and transformers' Trainer as its own example for instance segmentation uses it."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.dataset import CocoInstanceDataset
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.transforms import Augmentation
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.model import Mask2FormerDinov3ForInstanceSegmentation
from support.paths import DOCS, ROOT
from support.processes import start_python

PAGE = DOCS / "huggingface.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def reader(model_folder: Path, toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the page takes it for granted: a trained model, a photo, a data set."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(model_folder, folder / "runs" / "first" / "best")
    shutil.copytree(toy_dataset, folder / "path" / "to" / "dataset")
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "photo.jpg")
    return folder


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true but no accelerator")  # the page has one
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_page__blocks_run_as_printed(number: int, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(BLOCKS[number], f"block {number} of {PAGE.name}", "exec"), names)
    if "write_code" in names:
        assert (reader / "runs" / "first" / "best" / "modeling.py").is_file()
    if "found" in names:
        assert (names["found"].height, names["found"].width) == (60, 80)
    if "several" in names:
        assert len(names["several"]) == 2
    if "trainer" in names:
        scores = [entry["eval_AP"] for entry in names["trainer"].state.log_history if "eval_AP" in entry]
        assert len(scores) == 2
        assert all(0 <= score <= 1 for score in scores)
        assert Predictor.from_pretrained("runs/trainer/last", "cpu").model.config.id2label == {0: "disc", 1: "bar"}


def test_page__has_the_blocks_that_are_checked() -> None:
    assert len(BLOCKS) == 5
    for word in ("write_code", "found", "several", "trainer", "trust_remote_code=True"):
        assert any(word in block for block in BLOCKS)


class Evaluator:
    """As the example's: binary maps of `post_process_instance_segmentation`, collected batch by batch."""

    def __init__(self, processor: Mask2FormerDinov3ImageProcessor) -> None:
        self.processor = processor
        self.pairs: list[tuple[Instances, Instances]] = []

    def __call__(self, batch: Any, compute_result: bool) -> Mapping[str, float] | None:
        class_logits, mask_logits = batch.predictions  # these two, and nothing of different size per image
        outputs = SimpleNamespace(class_queries_logits=class_logits, masks_queries_logits=mask_logits)
        sizes = [tuple(masks.shape[-2:]) for masks in batch.label_ids[0]]
        predictions = self.processor.post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=sizes, return_binary_maps=True
        )
        for masks, labels, found in zip(*batch.label_ids, predictions, strict=True):
            info = found["segments_info"]
            self.pairs.append(
                (
                    Instances.from_masks(masks.numpy(), labels, np.ones(len(labels))),
                    Instances.from_masks(
                        found["segmentation"].numpy(),
                        [one["label_id"] for one in info],
                        [one["score"] for one in info],
                    ),
                )
            )
        if not compute_result:
            return None
        images = [{"id": index, "height": 64, "width": 64} for index in range(len(self.pairs))]
        truth = [one for index, (true, _) in enumerate(self.pairs) for one in true.to_coco(index)]
        results = [one for index, (_, found) in enumerate(self.pairs) for one in found.to_coco(index)]
        categories = [{"id": 0, "name": "disc"}, {"id": 1, "name": "bar"}]
        annotations = [{**one, "id": index} for index, one in enumerate(truth, start=1)]
        metrics = evaluate_coco({"images": images, "annotations": annotations, "categories": categories}, results)
        return {"AP": metrics["AP"], "images": float(metrics["images"]), "truth": float(len(truth))}


def collate_fn(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """The example's."""
    batch: dict[str, Any] = {}
    batch["pixel_values"] = torch.stack([example["pixel_values"] for example in examples])
    batch["class_labels"] = [example["class_labels"] for example in examples]
    batch["mask_labels"] = [example["mask_labels"] for example in examples]
    if "pixel_mask" in examples[0]:
        batch["pixel_mask"] = torch.stack([example["pixel_mask"] for example in examples])
    return batch


@pytest.fixture
def make_trainer(model_folder: Path, toy_dataset: Path, tmp_path: Path) -> Callable[..., Trainer]:
    """make(**arguments): a Trainer on the toy data set, with the arguments that the example sets."""
    processor = Mask2FormerDinov3ImageProcessor.from_pretrained(model_folder)
    splits, _ = find_splits(toy_dataset)
    canvas: dict[str, Any] = {"image_height": 64, "image_width": 64, "image_mean": processor.image_mean}
    canvas |= {"image_std": processor.image_std}

    def make(**arguments: Any) -> Trainer:
        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 3,  # the last batch has one image
            "gradient_accumulation_steps": 2,
            "learning_rate": 5e-4,
            "logging_steps": 1,
            "eval_do_concat_batches": False,
            "batch_eval_metrics": True,
            "remove_unused_columns": False,
            "report_to": "none",
            "use_cpu": True,
            **arguments,
        }
        return Trainer(
            model=Mask2FormerDinov3ForInstanceSegmentation.from_pretrained(model_folder),
            args=TrainingArguments(**settings),
            train_dataset=CocoInstanceDataset(read_coco(splits["train"]), augmentation=Augmentation(), **canvas),
            eval_dataset=CocoInstanceDataset(read_coco(splits["valid"]), **canvas),
            data_collator=collate_fn,
            compute_metrics=Evaluator(processor),
            processing_class=processor,
        )

    return make


def test_trainer__trains_evaluates_saves_and_loads(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(max_steps=3, eval_strategy="steps", eval_steps=3, save_steps=3)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    assert trainer.label_names == ["mask_labels", "class_labels"]
    trainer.train()
    log = trainer.state.log_history
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3]
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"backbone.embeddings.mask_token"}  # which no gradient can reach
    (evaluation,) = (entry for entry in log if "eval_loss" in entry)
    assert evaluation["eval_images"] == 4
    assert evaluation["eval_truth"] == 6  # one of the four images is empty
    assert 0 <= evaluation["eval_AP"] <= 1
    assert evaluation["eval_loss"] > 0

    checkpoint = Path(trainer.args.output_dir) / "checkpoint-3"
    again = Predictor.from_pretrained(checkpoint, "cpu")  # strict: every weight is there
    assert json.loads((checkpoint / "config.json").read_text())["category_ids"] == [3, 7]
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name]), name


def test_trainer__resumes_exactly_and_takes_the_best_back(make_trainer: Callable[..., Trainer]) -> None:
    """Trainer reads its checkpoints by `load_state_dict`, not by `from_pretrained`."""
    every = {"max_steps": 4, "save_steps": 2, "gradient_accumulation_steps": 1}
    straight = make_trainer(**every)
    straight.train()
    resumed = make_trainer(**every)
    resumed.train(resume_from_checkpoint=str(Path(straight.args.output_dir) / "checkpoint-2"))
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3, 4]
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, straight.model.state_dict()[name]), name

    best = make_trainer(
        **every,
        output_dir=straight.args.output_dir + "-best",
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_step",
        greater_is_better=False,
    )
    best.compute_metrics = lambda batch, compute_result: {"eval_step": float(best.state.global_step)}
    best.train()
    expected = Predictor.from_pretrained(Path(best.args.output_dir) / "checkpoint-2", "cpu").model.state_dict()
    for name, value in best.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_trainer__sees_another_augmentation_in_every_epoch(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer(num_train_epochs=2, save_strategy="no")
    first = trainer.train_dataset[0]["pixel_values"]
    trainer.train()
    assert trainer.train_dataset.epoch == 1
    assert not torch.equal(trainer.train_dataset[0]["pixel_values"], first)


def test_trainer__two_processes_evaluate_as_one_does(
    model_folder: Path, make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """Five images with different numbers of instances, so that the last batch is not full."""
    dataset = make_toy_dataset(train=1, valid=5)
    words = [str(ROOT / "tests" / "support" / "trainer_run.py"), str(model_folder), str(dataset), str(tmp_path)]
    shared = {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared["MASTER_PORT"] = str(free.getsockname()[1])
    started = [start_python(words, tmp_path, {**shared, "RANK": rank, "LOCAL_RANK": rank}) for rank in ("0", "1")]
    started.append(start_python(words, tmp_path, {"ACCELERATE_USE_CPU": "true"}))
    for done in [one.finish() for one in started]:
        assert done.returncode == 0, done.stderr[-3000:]
    names = ("eval_AP", "eval_AR100", "eval_images", "eval_detections")
    of_one, *of_two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert of_one["eval_images"] == 5
    assert of_one["eval_detections"] > 5
    for found in of_two:
        assert [found[name] for name in names] == pytest.approx([of_one[name] for name in names])


def test_output__has_its_loss_first(make_trainer: Callable[..., Trainer]) -> None:
    trainer = make_trainer()
    examples = [trainer.train_dataset[index] for index in (0, 1)]
    output = trainer.model(**collate_fn(examples))
    assert next(iter(output)) == "loss"
    assert output.to_tuple()[0] is output.loss
    assert output["loss"] is output.loss
    assert output.pixel_mask.shape == (2, 64, 64)
