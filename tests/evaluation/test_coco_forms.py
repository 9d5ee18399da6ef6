"""How tools write COCO's numbers, ids and shapes: training and evaluation take and refuse the same forms."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from support.coco import rle_of
from support.coco_reference import by_pycocotools, rle

# pycocotools 2.0.11 decodes in a way that NumPy 2 warns of; it is a reference here, not a part of the product.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
TRIANGLE = [10, 10, 14, 10, 14, 14]
MASK = np.zeros((20, 30), bool)
MASK[2:8, 2:8] = True
TRUTH: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
    "categories": [{"id": 7, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 7, "segmentation": [SQUARE], "area": 36, "bbox": [2, 2, 6, 6]}
        | {"iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 7, "segmentation": [TRIANGLE], "area": 8, "bbox": [10, 10, 4, 4]}
        | {"iscrowd": 0},
    ],
}
RESULT: dict[str, Any] = {"image_id": 7, "category_id": 7, "segmentation": rle(MASK), "score": 0.5}


class Form(NamedTuple):
    """A value in a place of the file; decision: read, refused, or empty (an annotation without a pixel, no error).

    as_in_pycocotools: it accepts the form as well, and the metrics are equal.
    """

    place: str
    value: Any
    decision: str
    as_in_pycocotools: bool = False


ABSENT = object()  # the key is not there

ID_FORMS: list[Any] = [
    (7, "read"),
    ("7", "read"),
    (7.0, "read"),
    ("7.0", "read"),
    ("7e0", "read"),
    ("1_7", "refused"),
    ("0_7", "refused"),  # Python's int() takes it as 7
    (" 7", "refused"),
    ("7\n", "refused"),
    ("\u0667", "refused"),  # a 7 in Arabic digits
    ("seven", "refused"),
    ("", "refused"),
    (7.5, "refused"),
    (True, "refused"),
    (None, "refused"),
    ([7], "refused"),
    ({}, "refused"),
    (math.nan, "refused"),
    (math.inf, "refused"),
    (ABSENT, "refused"),
]
SEGMENTATION_FORMS: list[Any] = [
    ([SQUARE], "read", True),
    ([SQUARE, TRIANGLE], "read", True),
    ([[str(value) for value in SQUARE]], "read"),
    ([[value + 0.25 for value in SQUARE]], "read", True),
    (rle(MASK), "read", True),
    (rle_of(MASK), "read", True),
    ({**rle(MASK), "size": ["20", 30.0]}, "read"),
    ({**rle_of(MASK), "counts": [str(run) for run in rle_of(MASK)["counts"]]}, "read"),
    ({**rle_of(MASK), "counts": [float(run) for run in rle_of(MASK)["counts"]]}, "read"),
    (rle(MASK & False), "empty", True),
    ([[40, 2, 45, 2, 45, 9]], "empty", True),  # outside the image
    ([[2, 2, 5, 2, 3, 2]], "empty", True),
    (SQUARE, "refused"),
    ("", "refused"),
    ({}, "refused"),
    (0, "refused"),
    (False, "refused"),
    ("mask.png", "refused"),
    ([[]], "refused"),
    ([[], SQUARE], "refused"),
    ([[1, 1]], "refused"),
    ([SQUARE, [1, 1]], "refused"),
    ([[1, 1, 5, 5]], "refused"),
    ([SQUARE, [1, 1, 5, 5]], "refused"),
    ([[*SQUARE, 3]], "refused"),
    ([[*SQUARE[:7], None]], "refused"),
    ([[*SQUARE[:7], True]], "refused"),
    ([[*SQUARE[:7], " 8"]], "refused"),
    ([[*SQUARE[:7], "0_8"]], "refused"),
    ([[*SQUARE[:7], "x"]], "refused"),
    ([[*SQUARE[:7], math.nan]], "refused"),
    ([[*SQUARE[:7], 1e9]], "refused"),
    ([[*SQUARE[:7], 10**400]], "refused"),
    ([[[2, 2], [8, 2], [8, 8]]], "refused"),
    ([None], "refused"),
    ([SQUARE, rle(MASK)], "refused"),
    ([rle(MASK)], "refused"),
    ({"counts": rle(MASK)["counts"]}, "refused"),
    ({"size": [20, 30]}, "refused"),
    ({**rle(MASK), "size": [30, 20]}, "refused"),
    ({**rle(MASK), "size": [True, 30]}, "refused"),
    ({**rle(MASK), "counts": rle(MASK)["counts"] + "P"}, "refused"),
    ({**rle_of(MASK), "counts": [600.5]}, "refused"),
    ({**rle_of(MASK), "counts": [605, -5]}, "refused"),
    ({**rle_of(MASK), "counts": ["6_00"]}, "refused"),
    ({**rle_of(MASK), "counts": []}, "refused"),
]
BOX_FORMS: list[Any] = [
    ([2, 2, 6, 6], "read", True),
    ([2.5, 2, 6, 6], "read", True),
    (["2", 2.0, "6", 6], "read"),
    (ABSENT, "read"),
    (None, "read"),
    ([], "read"),
    ([None, None, None, None], "read"),
    ([2, 2, None, 6], "refused"),
    ([2, 2, 6], "refused"),
    ([2, 2, 6, math.nan], "refused"),
    ([2, 2, 6, True], "refused"),
    ([2, 2, 6, " 6"], "refused"),
    ("2266", "refused"),
    ({"x": 2}, "refused"),
    (0, "refused"),
]
FORMS = [
    *(Form("image id", *form) for form in ID_FORMS),
    *(Form("annotation image_id", *form) for form in ID_FORMS),
    *(Form("category id", *form) for form in ID_FORMS),
    *(Form("annotation category_id", *form) for form in ID_FORMS),
    *(Form("annotation id", *form) for form in ID_FORMS),
    *(Form("annotation segmentation", *form) for form in SEGMENTATION_FORMS),
    Form("annotation segmentation", ABSENT, "empty"),
    Form("annotation segmentation", None, "empty"),
    Form("annotation segmentation", [], "empty"),
    *(Form("annotation bbox", *form) for form in BOX_FORMS),
    Form("annotation iscrowd", 0, "read", True),
    Form("annotation iscrowd", 1, "read", True),
    Form("annotation iscrowd", True, "read", True),
    Form("annotation iscrowd", False, "read", True),
    Form("annotation iscrowd", 1.0, "read", True),
    Form("annotation iscrowd", "1", "read"),
    Form("annotation iscrowd", "0", "read"),
    Form("annotation iscrowd", None, "read"),
    Form("annotation iscrowd", ABSENT, "read"),
    Form("annotation iscrowd", 2, "refused"),
    Form("annotation iscrowd", "yes", "refused"),
    Form("annotation iscrowd", "", "refused"),
    Form("annotation iscrowd", [], "refused"),
    Form("annotation iscrowd", math.nan, "refused"),
    Form("annotation area", 36.5, "read", True),
    Form("annotation area", 0, "read", True),
    Form("annotation area", "36", "read"),
    Form("annotation area", None, "read"),
    Form("annotation area", ABSENT, "read"),
    Form("annotation area", -1, "refused"),
    Form("annotation area", "", "refused"),
    Form("annotation area", "big", "refused"),
    Form("annotation area", " 36", "refused"),
    Form("annotation area", "3_6", "refused"),
    Form("annotation area", True, "refused"),
    Form("annotation area", math.nan, "refused"),
    Form("annotation area", "nan", "refused"),
    Form("annotation area", 10**400, "refused"),
    Form("image height", 20.0, "read"),
    Form("image height", "20", "read"),
    Form("image height", 20.5, "refused"),
    Form("image height", 0, "refused"),
    Form("image height", True, "refused"),
    Form("image height", None, "refused"),
    Form("image height", "2_0", "refused"),
]
RESULT_FORMS = [
    *(Form("image_id", *form) for form in ID_FORMS),
    *(Form("category_id", *form) for form in ID_FORMS),
    *(Form("segmentation", *form) for form in SEGMENTATION_FORMS),
    Form("segmentation", None, "refused"),
    Form("segmentation", [], "refused"),
    Form("score", 0.5, "read", True),
    Form("score", 1, "read", True),
    Form("score", "0.5", "read"),
    Form("score", np.float32(0.5), "read", True),
    Form("score", True, "refused"),
    Form("score", None, "refused"),
    Form("score", "0_5", "refused"),
    Form("score", " 0.5", "refused"),
    Form("score", math.inf, "refused"),
    Form("score", "high", "refused"),
    *(Form("bbox", *form) for form in BOX_FORMS),
]


def name_of(form: Form) -> str:
    value = "absent" if form.value is ABSENT else str(form.value)
    return f"{form.place}={value[:60]}".encode("ascii", "backslashreplace").decode()


def truth_with(form: Form) -> dict[str, Any]:
    truth = copy.deepcopy(TRUTH)
    section, key = form.place.split()
    entry = truth[{"image": "images", "category": "categories", "annotation": "annotations"}[section]][0]
    entry[key] = form.value
    if form.value is ABSENT:
        del entry[key]
    return truth


def training(truth: dict[str, Any], folder: Path) -> Any:
    file = folder / "annotations.json"
    file.write_text(json.dumps(truth))
    return read_coco(Split("train", file, folder))


@pytest.mark.parametrize("form", FORMS, ids=name_of)
def test_forms__training_and_evaluation_decide_the_same(form: Form, tmp_path: Path) -> None:
    truth = truth_with(form)
    if form.decision == "refused":
        with pytest.raises(
            DatasetError, match=r"annotations\.json: (\d+ errors\n  )?(image|annotation|categories|category)"
        ):
            training(truth, tmp_path)
        with pytest.raises(
            DatasetError, match=r"^annotations: (\d+ errors\n  )?(image|annotation|categories|category)"
        ):
            read_ground_truth(truth)
        return
    data, ground = training(truth, tmp_path), read_ground_truth(truth)
    first, second = ground.annotations[0], ground.annotations[-1]
    without_mask = form.place == "annotation segmentation" and form.value in (ABSENT, None, [])
    assert len(ground.annotations) == (1 if without_mask else 2)
    assert len(data.images[0].annotations) == (1 if form.decision == "empty" else 2)
    assert data.images[0].annotations[-1].area == second["area"] == 8
    if form.decision == "read":
        one = data.images[0].annotations[0]
        assert (one.area, int(one.iscrowd)) == (first["area"], first["iscrowd"])
        assert list(one.bbox) == first["bbox"]
    elif not without_mask:  # scored as an object that nothing can match, as in pycocotools
        assert first["segmentation"]["counts"] == rle(MASK & False)["counts"].encode()
    if form.as_in_pycocotools:
        assert_equal_to_pycocotools(truth, [RESULT])


@pytest.mark.parametrize("form", RESULT_FORMS, ids=name_of)
def test_forms__of_results_are_those_of_annotations(form: Form) -> None:
    result = {**RESULT, form.place: form.value}
    if form.value is ABSENT:
        del result[form.place]
    if form.decision == "refused":
        with pytest.raises(DatasetError, match=r"^predictions: entry 0: "):
            read_results([result], read_ground_truth(TRUTH))
        return
    (found,) = read_results([result], read_ground_truth(TRUTH))
    assert (found["image_id"], found["category_id"]) == (1, 1)
    assert (found["area"] == 0) == (form.decision == "empty")
    if form.as_in_pycocotools:
        assert_equal_to_pycocotools(TRUTH, [result])


def assert_equal_to_pycocotools(truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
    """pycocotools takes compressed RLE only in results: others are compressed by its own code."""
    compressed = [{**one, "segmentation": compress(one["segmentation"])} for one in results]
    expected = by_pycocotools(truth, compressed, "segm")
    metrics: dict[str, Any] = {**evaluate_coco(truth, results)}
    for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100"):
        assert metrics[name] == pytest.approx(expected[name], abs=1e-6), name


def compress(segmentation: Any) -> Any:
    if isinstance(segmentation, dict):
        return segmentation if isinstance(segmentation["counts"], str) else coco_mask.frPyObjects(segmentation, 20, 30)
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, 20, 30))


@pytest.mark.parametrize("value", ["seven", "a.png", True, None, " 7"])
def test_forms__ids_that_agree_but_are_not_numbers_are_refused(value: Any, tmp_path: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["images"][0]["id"] = value
    for annotation in truth["annotations"]:
        annotation["image_id"] = value
    with pytest.raises(DatasetError, match="expected an object with an id"):
        training(truth, tmp_path)
    with pytest.raises(DatasetError, match="expected an object with an id"):
        read_ground_truth(truth)


@pytest.mark.parametrize(
    "change",
    [
        lambda truth: truth["images"].append(truth["images"][0]),
        lambda truth: truth["categories"].append({"id": "7", "name": "cat"}),
        lambda truth: truth["annotations"].append(truth["annotations"][0]),
        lambda truth: truth["annotations"].append("no object"),
        lambda truth: truth.pop("annotations"),
        lambda truth: truth.update(images={}),
    ],
)
def test_forms__of_the_whole_file_are_refused_in_the_same_words(change: Any, tmp_path: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    change(truth)
    with pytest.raises(DatasetError) as trained:
        training(truth, tmp_path)
    with pytest.raises(DatasetError) as scored:
        read_ground_truth(truth)
    in_training = str(trained.value).removeprefix(f"{tmp_path / 'annotations.json'}: ")
    assert in_training == str(scored.value).removeprefix("annotations: ")
