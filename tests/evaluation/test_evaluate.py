"""From a model to its metrics: classes matched, the same for any batches and processes, the model left unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.coco import Category, CocoData, read_coco
from mask2former_dinov3.data.coco_types import CocoResult
from mask2former_dinov3.data.layout import Split, find_splits
from mask2former_dinov3.data.read_rules import ReadRules
from mask2former_dinov3.errors import CheckpointError, ConfigError, DatasetError, OptionError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.evaluate import evaluate_model, match_categories, predict_split
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.onnx_model import OnnxConfig

CANVAS = {"height": 256, "width": 256}


class ColourModel(nn.Module):
    """Knows the toy data set's colours (red discs, green bars): right without training, logits at stride 4."""

    device = torch.device("cpu")

    def __init__(self, names: tuple[str, ...] = ("disc", "bar")) -> None:
        super().__init__()
        self.config = OnnxConfig(dict(enumerate(names)), [3, 7], num_labels=len(names), num_queries=2, mask_stride=4)
        self.anywhere = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Dropout()
        self.names = names

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> SimpleNamespace:
        assert not self.training
        assert not torch.is_grad_enabled()
        assert pixel_mask.shape == pixel_values.shape[:1] + pixel_values.shape[2:]
        mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        red, green, _ = (pixel_values * std + mean).unbind(1)  # each (B, H, W)
        masks = F.avg_pool2d(torch.stack([red - green, green - red], 1) - 0.31, 4) * 50  # (B, 2, H/4, W/4)
        classes = torch.full((len(pixel_values), 2, 3), -9.0)
        for query, name in enumerate(("disc", "bar")):
            classes[:, query, self.names.index(name)] = 9
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


@pytest.fixture
def processor() -> Mask2FormerDinov3ImageProcessor:
    return Mask2FormerDinov3ImageProcessor(CANVAS)


def read_toy(root: Path, name: str = "valid") -> CocoData:
    return read_coco(Split(name, root / name / "_annotations.coco.json", root / name))


def test_predict_split__masks_fit_at_original_size(
    toy_dataset: Path, processor: Mask2FormerDinov3ImageProcessor
) -> None:
    data = read_toy(toy_dataset, "train")
    metrics = evaluate_coco(data.annotations, predict_split(ColourModel(), processor, data))
    assert metrics["per_class"]["bar"] > 0.95
    assert 0.4 < metrics["per_class"]["disc"] < 0.7  # bars lie on discs, and what a bar hides is not red
    assert metrics["detections"] == 20  # two queries for each of two classes in five images; one image is empty


def test_predict_split__matches_classes_by_name_not_by_place(
    toy_dataset: Path, processor: Mask2FormerDinov3ImageProcessor
) -> None:
    data = read_toy(toy_dataset)
    expected = evaluate_coco(data.annotations, predict_split(ColourModel(), processor, data))
    swapped = evaluate_coco(data.annotations, predict_split(ColourModel(("bar", "disc")), processor, data))
    assert swapped["per_class"] == expected["per_class"]


@pytest.mark.parametrize("world", [2, 3, 9])
def test_predict_split__shares_of_several_processes_give_what_one_gives(
    world: int, toy_dataset: Path, processor: Mask2FormerDinov3ImageProcessor
) -> None:
    data = read_toy(toy_dataset, "train")
    alone = predict_split(ColourModel(), processor, data)
    shares = [predict_split(ColourModel(), processor, data, rank=rank, world=world) for rank in range(world)]
    joined = [result for share in reversed(shares) for result in share]

    def in_order(results: list[CocoResult]) -> list[CocoResult]:
        return sorted(results, key=lambda one: one["image_id"])

    assert in_order(joined) == in_order(alone)
    scores = [evaluate_coco(data.annotations, results) for results in (alone, joined)]
    assert {**scores[0], "seconds": 0} == {**scores[1], "seconds": 0}


@pytest.mark.parametrize("batch_size", [2, 4, 64])
def test_predict_split__does_not_depend_on_the_batch(
    batch_size: int, toy_dataset: Path, processor: Mask2FormerDinov3ImageProcessor
) -> None:
    data = read_toy(toy_dataset, "train")
    one = predict_split(ColourModel(), processor, data)
    assert predict_split(ColourModel(), processor, data, batch_size=batch_size) == one
    assert {result["image_id"] for result in one} <= {record.id for record in data.images}


def test_predict_split__leaves_every_module_in_its_mode(
    toy_dataset: Path, processor: Mask2FormerDinov3ImageProcessor
) -> None:
    model = ColourModel().train()
    model.frozen.eval()
    predict_split(model, processor, read_toy(toy_dataset))
    assert model.training
    assert not model.frozen.training


def test_predict_split__stops_at_an_image_that_is_not_as_annotated(
    make_toy_dataset: Callable[..., Path], processor: Mask2FormerDinov3ImageProcessor
) -> None:
    root = make_toy_dataset()
    data = read_toy(root)
    Image.new("RGB", (70, 50)).save(data.images[1].path)
    with pytest.raises(DatasetError, match=r"001\.png: expected 64 x 80 pixels .*, got 50 x 70; correct the"):
        predict_split(ColourModel(), processor, data)
    data.images[1].path.write_bytes(b"nothing")
    model = ColourModel().train()
    with pytest.raises(DatasetError, match=r"001\.png"):
        predict_split(model, processor, data, batch_size=3)
    assert model.training
    with pytest.raises(OptionError, match=r"^batch_size: expected a whole number above 0, got 0$"):
        predict_split(model, processor, data, batch_size=0)


def test_match_categories__lists_both_sides(toy_dataset: Path) -> None:
    data = read_toy(toy_dataset)
    assert match_categories({0: "disc", 1: "bar"}, data) == [3, 7]
    assert match_categories({0: "bar", 1: "disc"}, data) == [7, 3]
    with pytest.raises(DatasetError) as caught:
        match_categories({0: "disc", 1: "rod", 2: "ring"}, data)
    message = str(caught.value)
    assert "annotations: disc, bar" in message
    assert "model:       disc, rod, ring" in message
    assert "not in the model: bar; not in the annotations: ring, rod" in message
    assert match_categories({0: "rod", 1: "bar", 2: "disc"}, data) == [None, 7, 3]  # a part of the model's classes
    accents = replace(data, categories=(Category(3, "caf\u00e9"), Category(7, "0")))
    assert match_categories({0: "cafe\u0301", 1: "0"}, accents) == [3, 7]
    with pytest.raises(DatasetError, match="expected the classes of the model"):
        match_categories({0: "disc", 1: "bar", 2: "disc"}, data)
    more = replace(data, categories=(*data.categories, Category(9, "ring")))
    with pytest.raises(DatasetError, match="not in the model: ring; not in the annotations: none"):
        match_categories({0: "disc", 1: "bar"}, more)


@pytest.mark.parametrize("kept", ["disc", "bar"])
def test_predict_split__a_file_with_a_part_of_the_classes_scores_as_the_whole_one(
    kept: str, make_toy_dataset: Callable[..., Path], processor: Mask2FormerDinov3ImageProcessor
) -> None:
    """As if the other class were listed without instances: its detections do not count."""
    root = make_toy_dataset()
    file = root / "valid" / "_annotations.coco.json"
    truth = json.loads(file.read_text())
    (category,) = [one for one in truth["categories"] if one["name"] == kept]
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] == category["id"]]
    file.write_text(json.dumps(truth))
    listed = evaluate_coco(file, predict_split(ColourModel(), processor, read_toy(root)))
    file.write_text(json.dumps({**truth, "categories": [category]}))
    results = predict_split(ColourModel(), processor, read_toy(root))
    assert {result["category_id"] for result in results} == {category["id"]}
    alone = evaluate_coco(file, results)
    assert alone["AP"] == listed["AP"] > 0.4
    assert alone["per_class"] == {kept: listed["per_class"][kept]}


@pytest.mark.parametrize("classes", [None, {"round": "disc"}])
def test_evaluate_model__scores_the_classes_that_model_and_file_have(
    classes: dict[str, str | None] | None, model_folder: Path, make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    """A file of disc, which a map may have to name so, and ring: as if ring had never been annotated."""
    file = make_toy_dataset() / "valid" / "_annotations.coco.json"
    truth = json.loads(file.read_text())
    bars = [one for one in truth["annotations"] if one["category_id"] == 7]
    names = {3: "disc" if classes is None else "round", 7: "ring"}
    truth["categories"] = [{**one, "name": names[one["id"]]} for one in truth["categories"]]
    file.write_text(json.dumps(truth))
    split = Split("valid", file, file.parent, classes=classes)
    metrics = evaluate_model(model_folder, split, None, tmp_path / "out", device="cpu")
    left_out = f"'ring' ({len(bars)} objects) is left out: background from now on".replace("'", '"')
    assert [note for note in metrics["notes"] if left_out in note]
    assert "classes of the model that the annotations lack are not scored: bar" in metrics["notes"]
    truth["categories"] = truth["categories"][:1]
    truth["annotations"] = [one for one in truth["annotations"] if one not in bars]
    file.write_text(json.dumps(truth))
    alone = evaluate_model(model_folder, split, None, tmp_path / "alone", device="cpu")
    assert metrics["per_class"] == alone["per_class"]
    assert metrics["operating_point"] == alone["operating_point"]
    assert set(metrics["per_class"]) == {"disc"}
    truth["categories"] = [{**truth["categories"][0], "name": "ring"}]
    file.write_text(json.dumps(truth))
    with pytest.raises(DatasetError, match="not in the model: ring; not in the annotations: bar, disc"):
        evaluate_model(model_folder, file, file.parent, tmp_path / "none", device="cpu")


def test_evaluate_model__leaves_metrics_and_results_that_agree(
    model_folder: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    file = toy_dataset / "valid" / "_annotations.coco.json"
    metrics = evaluate_model(model_folder, file, file.parent, tmp_path / "out", batch_size=2, device="cpu")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written == metrics
    assert set(written) >= {
        *("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "boundary_AP", "box_AP"),
        *("per_class", "images", "detections", "max_detections", "seconds"),
    }
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert metrics["detections"] == len(results) > 0
    assert {result["category_id"] for result in results} <= {3, 7}
    again = evaluate_model(None, file, None, tmp_path / "again", predictions=tmp_path / "out" / "predictions.json")
    of_model, of_file = (one["operating_point"].pop("calibration") for one in (metrics, again))
    assert (of_model["before"], of_file["before"]) == ([1.0, 0.0], None)  # which scores these are is known of a model
    assert {**of_model, "before": None} == of_file
    assert {**again, "seconds": 0} == {**metrics, "seconds": 0}
    assert json.loads((tmp_path / "again" / "predictions.json").read_text()) == results
    (tmp_path / "cut.json").write_text(json.dumps([{**one, "score": 0.5 + one["score"] / 2} for one in results]))
    cut = evaluate_model(None, file, None, tmp_path / "of_cut", predictions=tmp_path / "cut.json")
    assert any(note.startswith("no result has a score below 0.5") for note in cut["notes"])
    evaluate_model(None, file, None, tmp_path / "out", predictions=tmp_path / "out" / "predictions.json")  # in place
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.json",
        "images.json",
        "metrics.json",
        "predictions.json",
    ]


def test_evaluate_model__says_what_more_instances_than_queries_cost(
    model_folder: Path, make_toy_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    file = make_toy_dataset(valid=1) / "valid" / "_annotations.coco.json"
    truth = json.loads(file.read_text())
    first = truth["annotations"][0]
    truth["annotations"] += [{**first, "id": 100 + index} for index in range(12)]
    file.write_text(json.dumps(truth))
    metrics = evaluate_model(model_folder, file, file.parent, tmp_path / "out", device="cpu")
    assert any("num_queries=8" in note for note in metrics["notes"])


def test_evaluate_model__says_what_it_reads_otherwise_and_does_not_score(
    model_folder: Path, make_toy_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = make_toy_dataset(valid=2) / "valid" / "_annotations.coco.json"
    truth = json.loads(file.read_text())
    truth["categories"] = [one for one in truth["categories"] if one["name"] == "bar"]
    truth["annotations"] = [one for one in truth["annotations"] if one["category_id"] == 7]
    truth["annotations"][0]["segmentation"].append([5, 5])
    truth["images"][0]["file_name"] = "/elsewhere/000.png"
    file.write_text(json.dumps(truth), encoding="utf-16")
    (file.parent / "stray.png").write_bytes((file.parent / "000.png").read_bytes())
    with caplog.at_level("INFO"):
        metrics = evaluate_model(model_folder, file, file.parent, tmp_path / "out", device="cpu")
    assert set(metrics["per_class"]) == {"bar"}
    assert [note for note in metrics["notes"] if "1 part of fewer than 3 points" in note]
    assert "classes of the model that the annotations lack are not scored: disc" in metrics["notes"]
    assert "1 image file not where the name says, found in" in caplog.text
    assert "stray.png" not in caplog.text
    rules = ReadRules(incomplete_images="drop")
    truth["annotations"][0]["segmentation"] = []
    file.write_text(json.dumps(truth))
    results = tmp_path / "results.json"
    results.write_text("[]")
    assert evaluate_model(None, file, None, tmp_path / "a", predictions=results)["images"] == 2
    assert evaluate_model(None, file, None, tmp_path / "b", predictions=results, rules=rules)["images"] == 1


def test_evaluate_model__needs_a_model_or_predictions(toy_dataset: Path, tmp_path: Path) -> None:
    file = toy_dataset / "valid" / "_annotations.coco.json"
    with pytest.raises(ConfigError, match="expected a model and the folder of the images, or a file of predictions"):
        evaluate_model(None, file, None, tmp_path)
    with pytest.raises(CheckpointError, match=r"got a folder without config\.json"):
        evaluate_model(tmp_path, file, file.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [64, 80], "counts": [-5, 5125]}, "expected run lengths of 0 or more, got -5"),
        ({"size": [64, 80], "counts": [0, 10**30]}, "= 5120 pixels, got a longer run"),
        ({"size": [64, 80], "counts": "zzzz~~~~"}, "expected characters of the compressed form"),
        ({"size": [64, 80], "counts": [0, 7]}, "64 x 80 = 5120 pixels, got 7"),
        ([[1e300, 1, 5, 1, 5, 5]], r"within 100000 pixels, got 1e\+300"),
    ],
)
def test_evaluate_coco__refuses_masks_that_cannot_be(segmentation: Any, reason: str, toy_dataset: Path) -> None:
    truth = json.loads((toy_dataset / "valid" / "_annotations.coco.json").read_text())
    image = next(one for one in truth["images"] if one["width"] == 80)
    result = {"image_id": image["id"], "category_id": 3, "segmentation": segmentation, "score": 0.5}
    with pytest.raises(DatasetError, match=reason):
        evaluate_coco(truth, [result])


def test_evaluate__of_a_run_is_on_its_own_split(
    model_folder: Path, toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out images are scored as in training: those alone, with nothing but the model named."""
    run = tmp_path / "run"
    shutil.copytree(model_folder, run / "best")
    file = toy_dataset / "train" / "_annotations.coco.json"
    options = {"train_annotations": str(file), "valid_split": 0.4, "output_dir": str(run)}
    (run / "train_config.json").write_text(json.dumps(options))
    held_out = find_splits(None, train_annotations=file, valid_split=0.4)[0]["valid"].image_ids
    assert held_out is not None
    for split, number in (("valid", len(held_out)), ("train", 6 - len(held_out))):
        output = tmp_path / split
        words = ["evaluate", "--model", str(run / "best"), "--output", str(output), "--split", split]
        assert main([*words, "--device", "cpu"]) == 0
        metrics = json.loads((output / "metrics.json").read_text())
        assert metrics["images"] == number
    again = evaluate_coco(file, tmp_path / "valid" / "predictions.json", image_ids=held_out)
    metrics = json.loads((tmp_path / "valid" / "metrics.json").read_text())
    assert again["AP"] == metrics["AP"]
    assert main([*words[:-1], "test"]) == 1
    assert "--split: expected a split of" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(model_folder), "--output", str(tmp_path / "none")]) == 1
    assert "--annotations: expected a file, a --dataset, or a --model in its run folder" in capsys.readouterr().err
