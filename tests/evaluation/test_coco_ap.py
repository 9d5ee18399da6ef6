"""`evaluate_coco`: equal to pycocotools, also in edge cases; faults of both files are listed."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.evaluation import coco_ap
from mask2former_dinov3.evaluation.coco_ap import cut_notes, evaluate_coco
from support.coco_reference import Scene, blob, by_pycocotools, disturbed, moved, random_scene, rle
from support.paths import PACKAGE

SAMPLE = PACKAGE / "sample"  # real nuclei, polygons and RLE
TOLERANCE = 1e-6

# pycocotools 2.0.11 decodes in a way that NumPy 2 warns of; it is a reference here, not a part of the product.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def assert_equal_to_pycocotools(
    truth: dict[str, Any], results: list[dict[str, Any]], max_detections: int = 100
) -> dict[str, Any]:
    metrics: dict[str, Any] = {**evaluate_coco(truth, results, max_detections=max_detections)}
    expected = by_pycocotools(truth, results, "segm", max_detections)
    for name, value in expected.items():
        got = metrics[name] if name in metrics else metrics["per_class"][name]
        assert got == pytest.approx(value, abs=TOLERANCE), name
    boxes = by_pycocotools(truth, results, "bbox", max_detections)["AP"]
    assert metrics["box_AP"] == pytest.approx(boxes, abs=TOLERANCE)
    return metrics


@pytest.mark.parametrize("seed", range(4))
def test_evaluate_coco__equals_pycocotools_on_random_scenes(seed: int) -> None:
    scene = random_scene(seed)
    metrics = assert_equal_to_pycocotools(scene.truth, scene.results)
    assert 0 < metrics["AP"] < 1
    assert metrics["images"] == 4
    assert metrics["detections"] == len(scene.results)


@pytest.mark.parametrize("levels", [1, 3])
def test_evaluate_coco__equals_pycocotools_with_tied_scores(levels: int) -> None:
    scene = random_scene(11, levels)
    assert_equal_to_pycocotools(scene.truth, scene.results)
    scene.truth["images"].reverse()  # ties are broken by the order of ids, not of the file
    assert_equal_to_pycocotools(scene.truth, scene.results)


@pytest.mark.parametrize("max_detections", [5, 10, 100, 300])
def test_evaluate_coco__equals_pycocotools_with_300_instances_in_an_image(max_detections: int) -> None:
    scene = Scene(5, categories=(1,))
    scene.image(1, 300, 300)
    for row in range(15):
        for column in range(20):
            mask = np.zeros((300, 300), bool)
            mask[row * 20 + 2 : row * 20 + 16, column * 15 + 2 : column * 15 + 13] = True
            scene.annotate(1, 1, mask)
            scene.detect(1, 1, moved(mask, *scene.rng.integers(0, 3, 2)), scene.rng.random())
    metrics = assert_equal_to_pycocotools(scene.truth, scene.results, max_detections)
    assert metrics["max_detections"] == max_detections
    assert metrics["AR100"] <= max_detections / 300
    if max_detections < 300:
        assert f"more than {max_detections} instances" in metrics["notes"][0]
        assert f"AR above {max_detections / 300:.3f}" in metrics["notes"][0]
    else:
        assert metrics["notes"] == []


def test_evaluate_coco__perfect_results_reach_the_ceiling_that_the_note_states() -> None:
    scene = Scene(categories=(1,))
    scene.image(1, 100, 100)
    for index in range(25):
        mask = np.zeros((100, 100), bool)
        mask[index // 5 * 20 : index // 5 * 20 + 12, index % 5 * 20 : index % 5 * 20 + 12] = True
        scene.annotate(1, 1, mask)
        scene.detect(1, 1, mask, 1 - index / 100)
    metrics = evaluate_coco(scene.truth, scene.results, max_detections=10)
    # 10 of 25 found: recall 0.4, and 41 of the 101 recalls 0.00 ... 1.00 are reached.
    assert metrics["AP"] == pytest.approx(41 / 101)
    assert metrics["AR100"] == pytest.approx(0.4)
    assert "AP cannot be above 0.406 nor AR above 0.400" in metrics["notes"][0]


def test_evaluate_coco__is_zero_when_nothing_is_detected() -> None:
    scene = random_scene(0)
    metrics = assert_equal_to_pycocotools_without_results(scene.truth)
    for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", "boundary_AP", "box_AP"):
        assert metrics[name] == 0
    assert metrics["detections"] == 0


def assert_equal_to_pycocotools_without_results(truth: dict[str, Any]) -> dict[str, Any]:
    metrics: dict[str, Any] = {**evaluate_coco(truth, [])}
    for name, value in by_pycocotools(truth, [], "segm").items():
        assert metrics.get(name, metrics["per_class"].get(name)) == value, name
    return metrics


def test_evaluate_coco__is_minus_one_without_ground_truth() -> None:
    scene = Scene()
    scene.image(1)
    scene.detect(1, 7, blob(scene.rng, 90, 120, 20) | True, 0.9)
    metrics = assert_equal_to_pycocotools(scene.truth, scene.results)
    numbers = {key: value for key, value in metrics.items() if key.startswith(("AP", "AR", "box", "boundary"))}
    assert set(numbers.values()) == {-1.0}
    assert set(metrics["per_class"].values()) == {-1.0}
    json.dumps(metrics, allow_nan=False)


def test_evaluate_coco__ignores_crowds_as_pycocotools_does() -> None:
    scene = Scene(categories=(1,))
    scene.image(1)
    scene.image(2)
    crowd = np.zeros((90, 120), bool)
    crowd[20:80, 20:100] = True
    scene.annotate(1, 1, crowd, iscrowd=1)
    scene.detect(1, 1, moved(crowd, 2, 2), 0.9)
    scene.detect(1, 1, blob(scene.rng, 90, 120, 9), 0.8)
    only_crowd = assert_equal_to_pycocotools(scene.truth, scene.results)
    assert only_crowd["AP"] == -1
    one = np.zeros((90, 120), bool)
    one[5:30, 5:40] = True
    scene.annotate(2, 1, one)
    scene.detect(2, 1, one, 0.95)
    assert_equal_to_pycocotools(scene.truth, scene.results)


def test_evaluate_coco__equals_pycocotools_for_results_with_boxes_before_and_after_load_res() -> None:
    scene = random_scene(3)
    for result in scene.results:
        result["bbox"] = [value + 0.5 for value in coco_mask.toBbox(result["segmentation"]).tolist()]
    assert_equal_to_pycocotools(scene.truth, scene.results)
    plain = random_scene(4)
    expected = by_pycocotools(plain.truth, plain.results, "segm")
    with contextlib.redirect_stdout(io.StringIO()):
        ground = COCO()
        ground.dataset = copy.deepcopy(plain.truth)
        ground.createIndex()
        ground.loadRes(plain.results)  # writes area, bbox, id and iscrowd into the list
    assert evaluate_coco(plain.truth, plain.results)["APs"] == pytest.approx(expected["APs"], abs=TOLERANCE)


@pytest.mark.parametrize("seed", [0, 1])
def test_evaluate_coco__boundary_ap_is_that_of_its_definition(seed: int) -> None:
    scene = random_scene(seed)
    metrics = evaluate_coco(scene.truth, scene.results)
    expected = by_pycocotools(scene.truth, scene.results, "segm", boundary=True)["AP"]
    assert metrics["boundary_AP"] == pytest.approx(expected, abs=TOLERANCE)
    assert metrics["boundary_AP"] < metrics["AP"]


@pytest.mark.parametrize(("split", "max_detections"), [("train", 100), ("valid", 100), ("train", 20)])
def test_evaluate_coco__equals_pycocotools_on_real_annotations(split: str, max_detections: int) -> None:
    truth = json.loads((SAMPLE / split / "_annotations.coco.json").read_text())
    metrics = assert_equal_to_pycocotools(truth, disturbed(truth), max_detections)
    ceiling = [note for note in metrics["notes"] if "AP cannot be above" in note]
    assert bool(ceiling) == (max_detections == 20)  # the fullest image of train holds 28


def test_evaluate_coco__annotation_id_0_counts_like_any_other() -> None:
    scene = random_scene(2)
    expected = by_pycocotools(scene.truth, scene.results, "segm")["AP"]
    for annotation in scene.truth["annotations"]:
        annotation["id"] -= 1
    assert evaluate_coco(scene.truth, scene.results)["AP"] == pytest.approx(expected, abs=TOLERANCE)


def test_evaluate_coco__takes_ids_and_numbers_as_text_and_every_kind_of_segmentation(tmp_path: Path) -> None:
    scene = Scene(categories=(4,))
    scene.image(12)
    square = np.zeros((90, 120), bool)
    square[10:40, 20:60] = True
    scene.annotate(12, 4, square)
    scene.detect(12, 4, square, 0.9)
    annotation = scene.truth["annotations"][0]
    annotation.update(image_id="12", category_id="4", id="8", area=str(annotation["area"]), iscrowd="0")
    scene.truth["images"][0].update(height="90", width=120.0)
    runs = np.diff(np.flatnonzero(np.diff(np.r_[2, square.T.ravel(), 2])))
    uncompressed = {"size": [90, 120], "counts": runs.tolist()}
    polygon = [[20, 10, 60, 10, 60, 40, 20, 40]]
    (tmp_path / "truth.json").write_text(json.dumps(scene.truth))
    for segmentation in (uncompressed, polygon, scene.results[0]["segmentation"]):
        result = [{**scene.results[0], "segmentation": segmentation, "image_id": "12", "score": "0.9"}]
        (tmp_path / "results.json").write_text(json.dumps(result))
        metrics = evaluate_coco(tmp_path / "truth.json", tmp_path / "results.json")
        assert metrics["AP"] == pytest.approx(1)


def test_evaluate_coco__image_ids_choose_what_is_scored() -> None:
    scene = random_scene(6)
    chosen = {3, 1}
    part = {
        **scene.truth,
        "images": [one for one in scene.truth["images"] if one["id"] in chosen],
        "annotations": [one for one in scene.truth["annotations"] if one["image_id"] in chosen],
    }
    results = [one for one in scene.results if one["image_id"] in chosen]
    metrics = evaluate_coco(scene.truth, scene.results, image_ids=chosen)
    assert metrics["AP"] == pytest.approx(by_pycocotools(part, results, "segm")["AP"], abs=TOLERANCE)
    assert metrics["images"] == 2
    assert metrics["detections"] == len(results)
    with pytest.raises(DatasetError, match="image_ids: expected ids of images in the file, got 77"):
        evaluate_coco(scene.truth, scene.results, image_ids=[77])


def test_evaluate_coco__leaves_its_arguments_alone_and_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    scene = random_scene(7)
    before = copy.deepcopy((scene.truth, scene.results))
    evaluate_coco(scene.truth, scene.results)
    assert (scene.truth, scene.results) == before
    assert capsys.readouterr() == ("", "")


def test_evaluate_coco__an_unused_category_of_a_shared_name_is_left_out() -> None:
    """As in training: Roboflow writes its project as category 0. Two used ones of a name are refused by both."""
    scene = Scene(categories=(0, 1, 2))
    scene.image(1)
    mask = np.ones((90, 120), bool)
    scene.annotate(1, 1, mask)
    scene.detect(1, 1, mask, 0.5)
    scene.detect(1, 0, mask, 0.9)
    for category in scene.truth["categories"][:2]:
        category["name"] = "cell"
    metrics = evaluate_coco(scene.truth, scene.results)
    assert metrics["per_class"] == {"cell": pytest.approx(1), "class 2": -1}
    assert metrics["detections"] == 1  # that of the unused category is not scored
    assert any('category 0 "cell": left out' in note for note in metrics["notes"])
    scene.annotate(1, 0, mask)
    with pytest.raises(DatasetError, match='expected a name of its own for each, got 2 called "cell"'):
        evaluate_coco(scene.truth, [])


def test_evaluate_coco__annotations_without_a_mask_are_left_out_and_counted() -> None:
    scene = Scene(categories=(1,))
    scene.image(1)
    mask = np.zeros((90, 120), bool)
    mask[:50, :50] = True
    scene.annotate(1, 1, mask)
    scene.detect(1, 1, mask, 1.0)
    scene.truth["annotations"] += [
        {"id": 2, "image_id": 1, "category_id": 1, "segmentation": [], "bbox": [1, 1, 5, 5], "area": 25},
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25},
    ]
    metrics = evaluate_coco(scene.truth, scene.results)
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["notes"] == ["2 annotations of annotations without a mask, not scored"]


def test_evaluate_coco__lists_every_result_that_cannot_be_scored() -> None:
    scene = Scene(categories=(1, 2))
    scene.image(1)
    good = {"image_id": 1, "category_id": 1, "segmentation": rle(np.ones((90, 120), bool)), "score": 0.5}
    bad: list[Any] = [
        {**good, "image_id": 9},
        {**good, "category_id": 9},
        {**good, "score": float("nan")},
        {**good, "score": "high"},
        {**good, "segmentation": rle(np.ones((9, 12), bool))},
        {**good, "segmentation": {"size": [90, 120], "counts": "abc"}},
        {**good, "segmentation": [[1, 1, 2, 2]]},
        {**good, "segmentation": [[1, 1, 2, 2, float("nan"), 4]]},
        {**good, "segmentation": "mask.png"},
        {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.4},
        {"category_id": 1, "segmentation": []},
        "no object",
    ]
    with pytest.raises(DatasetError) as caught:
        evaluate_coco(scene.truth, [good, *bad])
    message = str(caught.value)
    assert message.startswith("predictions: 12 errors\n")
    for index, reason in enumerate(
        [
            "image_id: expected the id of an image in annotations, got 9",
            "category_id: expected the id of a category in annotations, got 9",
            "score: expected a finite number, got NaN",
            'score: expected a finite number, got "high"',
            "RLE size: expected [height, width] of the image, [90, 120], got [9, 12]",
            "RLE counts: expected whole groups of characters, got counts cut short within a number",
            "polygon: expected at least 3 points, got 2",
            "polygon: expected coordinates within 100000 pixels, got NaN or infinity",
            "segmentation: expected a list of polygons or an RLE object, got a string",
            "got no segmentation; only masks can be scored, not boxes alone",
            "expected image_id, category_id, segmentation and score, got no image_id, score",
            'expected an object, got "no object"',
        ],
        start=1,
    ):
        assert any(f"entry {index}:" in line and reason in line for line in message.splitlines()), reason


def test_evaluate_coco__says_what_is_wrong_with_the_files(tmp_path: Path) -> None:
    scene = random_scene(0)
    with pytest.raises(DatasetError, match=r"none\.json: expected COCO annotations .*, got no such file"):
        evaluate_coco(tmp_path / "none.json", [])
    broken = tmp_path / "broken.json"
    broken.write_text('{"images": [')
    with pytest.raises(DatasetError, match=r"expected COCO annotations .*, got invalid JSON"):
        evaluate_coco(broken, [])
    with pytest.raises(
        DatasetError, match=r"expected COCO results \(a list of objects\), or a COCO data set .*, got a folder"
    ):
        evaluate_coco(scene.truth, tmp_path)
    with pytest.raises(
        DatasetError, match=r'annotations: expected the keys images, annotations and categories, got \["pict'
    ):
        evaluate_coco({"pictures": []}, [])
    with pytest.raises(
        DatasetError, match=r"predictions: expected COCO results with a score, got 77 entries without one"
    ):
        evaluate_coco(scene.truth, scene.truth)  # annotations instead of results
    with pytest.raises(OptionError, match=r"^max_detections: expected a whole number above 0, got 0$"):
        evaluate_coco(scene.truth, [], max_detections=0)


def test_evaluate_coco__lists_every_annotation_that_cannot_be_scored() -> None:
    scene = random_scene(0)
    annotations = scene.truth["annotations"]
    annotations[0]["image_id"] = 99
    annotations[1]["category_id"] = 99
    annotations[2]["segmentation"] = {"size": [4, 4], "counts": [16]}
    with pytest.raises(DatasetError) as caught:
        evaluate_coco(scene.truth, [])
    assert str(caught.value).startswith("annotations: 3 errors\n")
    assert "annotation 1: image_id: expected the id of one of the images, got 99" in str(caught.value)
    assert "annotation 2: category_id: expected the id of one of the categories, got 99" in str(caught.value)
    assert "annotation 3: RLE size: expected" in str(caught.value)
    twice = random_scene(0).truth
    twice["images"].append(dict(twice["images"][0], height=None))
    with pytest.raises(DatasetError, match="expected an id of its own, got id 3 for"):
        evaluate_coco(twice, [])


def test_evaluate_coco__equals_pycocotools_when_classes_are_matched_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coco_ap, "CATEGORIES_AT_ONCE", 1)
    scene = random_scene(3)
    assert len(scene.truth["categories"]) > 1
    assert_equal_to_pycocotools(scene.truth, scene.results)


def test_evaluate_coco__of_many_classes_takes_memory_for_those_that_are_there() -> None:
    """As many classes as LVIS has, and more: 3,000 took 1.8 GB."""
    scene = random_scene(3)
    few = evaluate_coco(scene.truth, scene.results)
    more = [{"id": 10**6 + number, "name": f"other {number}"} for number in range(3_000)]
    truth = {**scene.truth, "categories": [*more[:1203], *scene.truth["categories"], *more[1203:]]}
    tracemalloc.start()
    many = evaluate_coco(truth, scene.results)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    own = {key: few[key] for key in ("per_class", "operating_point", "seconds")}
    assert {**many, **own} == few
    assert many["operating_point"]["threshold"] == few["operating_point"]["threshold"]
    assert len(many["per_class"]) == len(truth["categories"])
    assert {name: many["per_class"][name] for name in few["per_class"]} == few["per_class"]
    assert {many["per_class"][str(one["name"])] for one in more} == {-1.0}
    assert peak < 100e6


def test_cut_notes__are_about_results_without_low_scores() -> None:
    high = [{"score": 0.4 + place / 100} for place in range(20)]
    (note,) = cut_notes(high)
    assert note.startswith("no result has a score below 0.4: with a score threshold applied, AP is lower than that of")
    assert cut_notes([*high, {"score": 0.05}]) == []
    assert cut_notes(high[:19]) == []  # too few to tell
    assert cut_notes([]) == []
