"""The model card: front matter, what it says of data and run, its picture, and a snippet that runs as printed."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from numpy.typing import NDArray
from PIL import Image

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.data.coco import Annotation, Category, ImageRecord
from mask2former_dinov3.data.coco_types import CocoResult, Metrics
from mask2former_dinov3.instances import Instances, encode_masks
from mask2former_dinov3.model import Mask2FormerDinov3Config
from mask2former_dinov3.model_folder.card import RunDescription, model_card
from mask2former_dinov3.model_folder.card_picture import MAX_BYTES, choose_image, draw_card_picture, shrink_to_card
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.training.run_description import describe_run
from mask2former_dinov3.training.train import load_data, train
from support.hub_stand_in import faults_of_card

METRICS: Metrics = {
    "AP": 0.51234,
    "AP50": 0.75,
    "AP75": -1.0,
    "box_AP": 0.5,
    "per_class": {"disc": 0.6, "bar | rod": -1.0},
}
RUN = RunDescription(
    name="cells",
    dataset="slides",
    splits={"train": (6, 10), "valid": (4, 6)},
    options={"learning_rate": 0.001},
    changed={"learning_rate": 0.001, "flip": "all"},
    made_by={"mask2former-dinov3": "0.1.0", "torch": "2.13.0"},
    step=120,
    step_size=16,
)


def config_of(source: str | None = None) -> Mask2FormerDinov3Config:
    names = {0: "disc", 1: "bar | rod"}
    return Mask2FormerDinov3Config.preset(
        "tiny", id2label=names, label2id={v: k for k, v in names.items()}, backbone_source=source, num_queries=30
    )


def options(dataset: Path, run: Path, **changes: Any) -> dict[str, Any]:
    return {
        **{"dataset_name": str(dataset), "output_dir": str(run), "backbone": "tiny", "num_queries": 8},
        **{"image_height": 64, "image_width": 96, "max_train_steps": 1, "dataloader_num_workers": 0},
        **{"with_tracking": False, "mixed_precision": "no", **changes},
    }


def test_model_card__front_matter_is_what_the_hub_accepts() -> None:
    card = model_card(config_of("facebook/dinov3-vits16plus-pretrain-lvd1689m"), (64, 96), METRICS, RUN)
    assert faults_of_card(card) == []
    data = ModelCard(card).data
    assert (data["library_name"], data["pipeline_tag"]) == ("mask2former-dinov3", "image-segmentation")
    assert data["tags"] == ["instance-segmentation", "mask2former", "dinov3"]
    assert (data["license"], data["license_name"]) == ("other", "dinov3-license")
    assert data["license_link"].startswith("https://ai.meta.com/")
    assert data["model_name"] == "cells"
    assert {one.metric_type: one.metric_value for one in data["eval_results"]} == {
        **{"AP": 0.5123, "AP50": 0.75, "box_AP": 0.5}  # AP75 is undefined
    }
    assert {one.dataset_name for one in data["eval_results"]} == {"slides"}
    assert data.get("datasets") is None  # a folder of one's own
    hub = ModelCard(model_card(config_of(), (64, 96), METRICS, replace(RUN, dataset="ada/slides"))).data
    assert hub["datasets"] == ["ada/slides"]
    assert hub.get("license") is None


def test_model_card__says_data_results_recipe_limits_and_licence() -> None:
    card = model_card(config_of("facebook/dinov3-vits16plus-pretrain-lvd1689m"), (64, 96), METRICS, RUN)
    for text in (
        "`slides`",
        "| train | 6 | 10 |",
        "| valid | 4 | 6 |",
        "| AP | 0.5123 |",
        "| disc | 0.6000 |",
        r"| bar \| rod | undefined |",
        "Steps: 120; images per step: 16; canvas: 64 x 96 pixels",
        "| `learning_rate` | `0.001` |",
        '| `flip` | `"all"` |',
        "[train_config.json](train_config.json)",
        "Made by mask2former-dinov3 0.1.0, torch 2.13.0.",
        "neck: pyramid; 30 queries",
        "at most 30 instances",
        "with one value for 4 x 4 of them",
        "fall under the DINOv3 License",
    ):
        assert text in card, text
    assert "overlay.jpg" not in card


def test_model_card__says_no_more_than_is_known() -> None:
    cases: list[tuple[Metrics, RunDescription | None]] = [({}, RUN), ({}, None), (METRICS, None)]
    for metrics, run in cases:
        card = model_card(config_of("/somewhere/weights"), (64, 96), metrics, run)
        assert faults_of_card(card) == []
        assert ("## Results" in card) is bool(metrics)
        assert ("## Recipe" in card) is ("## Data" in card) is (run is not None)
        assert "model-index" not in card
        assert "/somewhere" not in card
    unknown = model_card(config_of(), (64, 96), {})
    assert "No weights of DINOv3 are in this model." not in unknown  # it may have been trained by others, on Meta's
    assert "If they derive from Meta's DINOv3" in unknown


def test_describe_run__tells_names_for_paths_and_what_differs_from_the_defaults(
    toy_dataset: Path, tmp_path: Path
) -> None:
    config, _ = load_config(None, options(toy_dataset, tmp_path / "run", hub_token="secret", head=str(tmp_path / "h")))
    described = describe_run(config, load_data(config))
    assert described.name == "run"
    assert described.dataset == toy_dataset.name
    assert described.splits == {"train": (6, 10), "valid": (4, 6)}
    assert described.changed == {
        **{"backbone": "tiny", "head": "h", "num_queries": 8, "image_height": 64, "image_width": 96},
        **{"max_train_steps": 1, "mixed_precision": "no"},
    }
    assert str(tmp_path) not in json.dumps(described.options)
    assert str(toy_dataset.parent) not in json.dumps(described.options)
    assert "secret" not in repr(described)
    assert load_config(None, described.options)[0].output_dir == "run"
    explicit = {"dataset_name": None, "train_annotations": str(toy_dataset / "train" / "_annotations.coco.json")}
    named, _ = load_config(None, options(toy_dataset, tmp_path / "run", hub_model_id="ada/cells", **explicit))
    described = describe_run(named, load_data(named))
    assert (described.name, described.dataset) == ("cells", toy_dataset.name)


def run_snippet(card: str, folder: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of a card, as printed, in the folder of the model."""
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    shutil.copy(image, folder / "image.jpg")
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})


def test_train__leaves_cards_with_picture_and_a_snippet_that_runs(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    config, _ = load_config(None, options(toy_dataset, run, max_train_steps=2, checkpointing_steps=1))
    train(config)
    for name in ("best", "last"):
        card = (run / name / "README.md").read_text()
        assert faults_of_card(card) == []
        assert "![Instances outlined in a validation image](overlay.jpg)" in card
        assert "where 2 are annotated" in card
        with Image.open(run / name / "overlay.jpg") as picture:
            assert picture.format == "JPEG"
            assert picture.size in ((512, 576), (640, 512))  # eight times the image's
        told = json.loads((run / name / "train_config.json").read_text())
        assert (told["max_train_steps"], told["output_dir"]) == (2, "run")
    assert "Steps: 2; images per step: 2; canvas: 64 x 96" in card
    assert "after 2 steps" in card
    assert not list(run.glob("checkpoint-*/overlay.jpg"))
    capsys.readouterr()
    run_snippet(card, run / "last", next((toy_dataset / "valid").glob("*.png")), monkeypatch)
    assert re.fullmatch(r"\d+ \[.*\] \[.*\]\n", capsys.readouterr().out)


def test_train__card_without_validation_shows_no_picture(make_toy_dataset: Callable[..., Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(load_config(None, options(make_toy_dataset(valid=0), run, valid_split=0))[0])
    card = (run / "last" / "README.md").read_text()
    assert faults_of_card(card) == []
    assert not (run / "last" / "overlay.jpg").exists()
    assert "## Recipe" in card
    for word in ("overlay", "## Results", "| valid |"):
        assert word not in card, word


def test_sample_model__card_is_true_and_its_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(SAMPLE / "model", tmp_path / "model"))
    card = (folder / "README.md").read_text()
    assert faults_of_card(card) == []
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    best = max(float(line["AP"]) for line in lines if "AP" in line)
    assert {one.metric_type: one.metric_value for one in ModelCard(card).data["eval_results"]}["AP"] == round(best, 4)
    changed = re.findall(r"^\| `(\w+)` \| `(.+)` \|$", card, re.MULTILINE)
    stored = json.loads((folder / "train_config.json").read_text())
    assert changed
    assert {name: json.loads(value) for name, value in changed} == {name: stored[name] for name, _ in changed}
    run_snippet(card, folder, next((SAMPLE / "valid").glob("*.png")), monkeypatch)
    assert "'nucleus'" in capsys.readouterr().out


def record_of(image: Path, count: int, number: int = 1) -> ImageRecord:
    """An image with so many annotations, and a crowd region."""
    with Image.open(image) as picture:
        width, height = picture.size
    square = [np.array([[0.0, 0.0], [4.0, 0.0], [4.0, 4.0], [0.0, 4.0]])]
    annotations = [
        Annotation(n, 0, 3, square, iscrowd=n == count, bbox=(0.0, 0.0, 4.0, 4.0), area=16.0) for n in range(count + 1)
    ]
    return ImageRecord(number, image.name, image, height, width, annotations)


def result_of(mask: NDArray[np.bool_], score: float) -> CocoResult:
    (rle,) = encode_masks(mask[None])
    return {"image_id": 1, "category_id": 3, "segmentation": rle, "score": score}


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    """The picture that compresses worst."""
    pixels = np.random.default_rng(0).integers(0, 256, (1400, 1600, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


def test_choose_image__most_instances_up_to_fifty_of_the_first_fifty_images(noise: Path) -> None:
    def chosen(*counts: int) -> int:
        records = [record_of(noise, count, number) for number, count in enumerate(counts)]
        return len(choose_image(records).annotations) - 1

    assert chosen(3, 50, 51, 7) == 50
    assert chosen(80, 60, 90) == 60
    assert chosen(*[1] * 50, 9) == 1
    assert chosen(0) == 0


def test_shrink_to_card__reads_masks_at_the_places_of_the_new_pixels() -> None:
    rng = np.random.default_rng(0)
    masks = np.stack([np.kron(rng.random((30, 41)) < 0.3, np.ones((50, 50))) > 0, np.zeros((1500, 2050), bool)])
    masks[1, 700, 901] = True  # between two of the new pixels
    found = Instances.from_masks(masks, [1, 0], [0.9, 0.8], ((3, "disc"), (7, "bar")))
    image = np.zeros((1500, 2050, 3), np.uint8)
    small, kept = shrink_to_card(image, found)
    assert small.shape == (749, 1024, 3)
    rows, columns = (np.floor((np.arange(n) + 0.5) * old / n).astype(int) for n, old in ((749, 1500), (1024, 2050)))
    np.testing.assert_array_equal(kept.masks, masks[:1][:, rows][:, :, columns])
    assert (kept.names, kept.scores.tolist()) == (["bar"], [pytest.approx(0.9)])
    nothing = shrink_to_card(image, found[[]])[1]
    assert (len(nothing), nothing.height, nothing.width) == (0, 749, 1024)
    same = shrink_to_card(small, kept)
    assert same[1] is kept


def test_draw_card_picture__is_small_and_shows_the_results_where_they_are(noise: Path) -> None:
    mask = np.zeros((1400, 1600), bool)
    mask[200:1200, 300:800] = True
    results = [result_of(mask, 0.9), result_of(~mask, 0.4)]
    overlay = draw_card_picture(record_of(noise, 2), results, [Category(3, "disc")])
    assert (
        "scores of at least 0.40: 2 instances, where 2 are annotated; only 1 reach 0.50, so the best-scored ones are "
        "drawn." in overlay.caption
    )
    assert len(overlay.jpeg) <= MAX_BYTES
    only = draw_card_picture(record_of(noise, 1), results, [Category(3, "disc")])
    assert "scores of at least 0.50: 1 instances" in only.caption
    with Image.open(io.BytesIO(only.jpeg)) as picture:
        pixels = np.asarray(picture, dtype=float)
        assert max(picture.size) <= 1024
    height, width = pixels.shape[:2]
    inside = pixels[round(height * 0.3) : round(height * 0.7), round(width * 0.25) : round(width * 0.45)].mean((0, 1))
    outside = pixels[:, round(width * 0.6) :].mean((0, 1))
    assert np.ptp(inside) > 40
    assert np.ptp(outside) < 10  # noise is grey on the whole
    nothing = draw_card_picture(record_of(noise, 0), [], [Category(3, "disc")])
    assert "scores of at least 0.50: 0 instances, where 0 are annotated." in nothing.caption
