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

from mask2former_dinov3.data.coco import parse_coco, read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.read_rules import ReadRules
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
    """A value in a place of the file, and what is done with it.

    decision: read; refused; empty (an annotation without a pixel, no error); none (an annotation without a mask, left
    out); strays (read without the parts of fewer than 3 points, counted); mask (malformed and replaced by the mask's,
    counted). In results, where all of it is used, none and mask are refused.
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
    (2.0**53 + 2, "refused"),  # a float that stands for several whole numbers
    (1e30, "refused"),
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
    ("", "none"),
    ({}, "none"),
    (0, "refused"),
    (False, "refused"),
    ("mask.png", "refused"),
    ([[]], "none"),
    ([[], []], "none"),
    ([""], "none"),
    ([[], SQUARE], "strays"),
    ([[1, 1]], "none"),
    ([SQUARE, [1, 1]], "strays"),
    ([[1, 1], SQUARE, [3, 3]], "strays"),
    ([[1, 1, 5, 5]], "refused"),
    ([SQUARE, [1, 1, 5, 5]], "strays"),
    ([SQUARE, [1, 1, 5]], "refused"),
    ([[2, 2], [8, 2], [8, 8]], "refused"),
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
    ([None], "none"),
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
    ("", "read"),
    ([2, 2, None, 6], "mask"),
    ([2, 2, 6], "mask"),
    ([2, 2, 6, math.nan], "mask"),
    ([math.nan] * 4, "mask"),
    ([2, 2, 6, True], "mask"),
    ([2, 2, 6, " 6"], "mask"),
    ("2266", "mask"),
    ({"x": 2}, "mask"),
    (0, "mask"),
]
FORMS = [
    *(Form("image id", *form) for form in ID_FORMS),
    *(Form("annotation image_id", *form) for form in ID_FORMS),
    *(Form("category id", *form) for form in ID_FORMS),
    *(Form("annotation category_id", *form) for form in ID_FORMS),
    *(Form("annotation id", *form) for form in ID_FORMS),
    *(Form("annotation segmentation", *form) for form in SEGMENTATION_FORMS),
    Form("annotation segmentation", ABSENT, "none"),
    Form("annotation segmentation", None, "none"),
    Form("annotation segmentation", [], "none"),
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
    Form("annotation iscrowd", "", "read"),
    Form("annotation iscrowd", "true", "read"),
    Form("annotation iscrowd", "False", "read"),
    Form("annotation iscrowd", [], "refused"),
    Form("annotation iscrowd", math.nan, "refused"),
    Form("annotation area", 36.5, "read", True),
    Form("annotation area", 0, "read", True),
    Form("annotation area", "36", "read"),
    Form("annotation area", None, "read"),
    Form("annotation area", ABSENT, "read"),
    Form("annotation area", -1, "mask"),
    Form("annotation area", "", "read"),
    Form("annotation area", "big", "mask"),
    Form("annotation area", " 36", "mask"),
    Form("annotation area", "3_6", "mask"),
    Form("annotation area", True, "mask"),
    Form("annotation area", math.nan, "mask"),
    Form("annotation area", "nan", "mask"),
    Form("annotation area", 10**400, "mask"),
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
    assert len(ground.annotations) == (1 if form.decision == "none" else 2)
    assert len(data.images[0].annotations) == (1 if form.decision in ("empty", "none") else 2)
    assert data.images[0].annotations[-1].area == second["area"] == 8
    if form.decision in ("read", "strays", "mask"):
        one = data.images[0].annotations[0]
        assert (one.area, int(one.iscrowd)) == (first["area"], first["iscrowd"])
        assert list(one.bbox) == first["bbox"]
    elif form.decision == "empty":  # scored as an object that nothing can match, as in pycocotools
        assert first["segmentation"]["counts"] == rle(MASK & False)["counts"].encode()
    check_notes(form, tmp_path, ground.notes)
    if form.as_in_pycocotools:
        assert_equal_to_pycocotools(truth, [RESULT])


def check_notes(form: Form, folder: Path, notes: list[str]) -> None:
    """What is read otherwise than written is counted, in training and evaluation."""
    _, faults = parse_coco(Split("train", folder / "annotations.json", folder))
    kinds = [(fault.severity, fault.kind) for fault in faults]
    where = form.place.rpartition(" ")[2]
    if form.decision in ("read", "refused"):
        assert kinds == []
        assert notes == []
    elif form.decision in ("mask", "strays"):
        (fault,) = faults
        assert kinds == [
            {"mask": ("warning", f"malformed {where.replace('bb', 'b')}"), "strays": ("note", "stray parts")}[
                form.decision
            ]
        ]
        assert notes == [str(fault)]
    else:
        assert [severity for severity, _ in kinds] == ["warning"]
        assert notes == [
            "1 annotation of annotations without a mask, not scored"
            if form.decision == "none"
            else "1 mask of annotations without a pixel, scored as objects that nothing matches"
        ]


@pytest.mark.parametrize("form", RESULT_FORMS, ids=name_of)
def test_forms__of_results_are_those_of_annotations(form: Form) -> None:
    result = {**RESULT, form.place: form.value}
    if form.value is ABSENT:
        del result[form.place]
    truth = read_ground_truth(TRUTH)
    if form.decision in ("refused", "none", "mask"):
        with pytest.raises(DatasetError, match=r"^predictions: entry 0: "):
            read_results([result], truth)
        return
    (found,) = read_results([result], truth)
    assert len(truth.notes) == (form.decision == "strays")
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
        lambda truth: truth.update(images=[]),
        lambda truth: truth.update(categories=[]),
        lambda truth: truth.pop("categories"),
        lambda truth: truth["images"][0].pop("file_name"),
        lambda truth: truth["images"][0].update(file_name=3),
        lambda truth: truth["categories"][0].update(name=None),
        lambda truth: truth["categories"][0].update(name=""),
        lambda truth: truth["categories"][0].update(name=" "),
        lambda truth: truth["categories"][0].update(name=["dog"]),
        lambda truth: truth["categories"][0].update(name=True),
        lambda truth: truth["categories"][0].update(name=math.nan),
        lambda truth: truth["categories"].append({"id": 8}),
        lambda truth: (
            truth["categories"].append({"id": 8, "name": "dog"}),
            truth["annotations"][0].update(category_id=8),
        ),
        lambda truth: (
            truth["categories"].append({"id": 8, "name": " dog "}),
            truth["annotations"][0].update(category_id=8),
        ),
        lambda truth: [one.update(segmentation=[rle(MASK)]) for one in truth["annotations"]],
        lambda truth: [one.update(iscrowd="yes") for one in truth["annotations"]],
        lambda truth: truth["images"][0].update(width=0),
        lambda truth: truth["images"][0].update(height=-5),
        lambda truth: [truth.pop(key) for key in list(truth)],
        lambda truth: [truth.pop("images"), truth.pop("categories")],
    ],
)
def test_forms__of_the_whole_file_are_refused_in_the_same_words(change: Any, tmp_path: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    change(truth)
    with pytest.raises(DatasetError) as trained:
        training(truth, tmp_path)
    with pytest.raises(DatasetError) as scored:
        read_ground_truth(tmp_path / "annotations.json")
    assert str(trained.value) == str(scored.value)


def test_forms__content_in_memory_needs_no_file_names() -> None:
    """Nobody opens its images; Trainer's users make it without names."""
    truth = copy.deepcopy(TRUTH)
    expected = read_ground_truth(truth).annotations
    for image in truth["images"]:
        del image["file_name"]
    assert read_ground_truth(truth).annotations == expected


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ([0, 1], ["0", "1"]),
        ([1, 0.5], ["1", "0.5"]),
        (["0", 1], ["0", "1"]),
        ([" cat", "dog\t"], ["cat", "dog"]),
        (["cafe\u0301", "dog"], ["caf\u00e9", "dog"]),
        (["dog", "Dog"], ["dog", "Dog"]),
    ],
)
def test_forms__of_class_names_are_one_text_in_both(names: list[Any], read: list[str], tmp_path: Path) -> None:
    truth = copy.deepcopy(TRUTH)
    truth["categories"] = [{"id": 7 + place, "name": name} for place, name in enumerate(names)]
    truth["annotations"][1]["category_id"] = 8
    assert [category.name for category in training(truth, tmp_path).categories] == read
    ground = read_ground_truth(truth)
    assert ground.names == read
    changed = sum(one != other for one, other in zip(names, read, strict=True))
    assert [note[:26] for note in ground.notes] == ([f"{changed} of 2 category names read"] if changed else [])


def test_forms__one_cause_is_one_line(tmp_path: Path) -> None:
    """Annotations of a faulty image, category or section are no further faults."""
    truth = copy.deepcopy(TRUTH)
    truth["images"] = [{"id": number, "file_name": f"{number}.png", "height": 0, "width": 0} for number in range(4)]
    truth["images"].append({"id": "1_7", "file_name": "b.png", "height": 20, "width": 30})
    truth["categories"].append({"id": 8, "name": None})
    first = truth["annotations"][0]
    truth["annotations"] = [{**first, "id": number, "image_id": number % 4} for number in range(12)]
    truth["annotations"] += [{**first, "id": 12 + number, "image_id": "1_7"} for number in range(3)]
    truth["annotations"] += [{**first, "id": 20, "image_id": 0, "category_id": 8}]
    lines = [
        "4 images, for example: 0.png: height and width: expected whole numbers of pixels above 0, got 0 and 0 "
        "(images 0, 1, 2, 3)",
        'images[4]: expected an object with an id (a whole number), got the id "1_7"',
        "category 8: expected a name, got null",
    ]
    for read in (lambda: training(truth, tmp_path), lambda: read_ground_truth(truth)):
        with pytest.raises(DatasetError) as caught:
            read()
        assert sorted(str(caught.value).splitlines()[1:]) == sorted(f"  {line}" for line in lines)


def crowded(crowds: int, others: int, images: int = 1) -> dict[str, Any]:
    """A file with crowd regions and other instances, spread over images."""
    truth = copy.deepcopy(TRUTH)
    truth["images"] = [{"id": n, "file_name": f"{n}.png", "height": 20, "width": 30} for n in range(1, images + 1)]
    first = truth["annotations"][0]
    truth["annotations"] = [
        {**first, "id": number + 1, "image_id": number % images + 1, "iscrowd": int(number < crowds)}
        for number in range(crowds + others)
    ]
    return truth


@pytest.mark.parametrize(
    ("crowds", "others", "images", "warned"),
    [
        (0, 5, 1, False),
        (8, 4, 4, True),
        (1, 20, 1, False),  # as in COCO: few, and one of a class in an image
        (2, 100, 50, False),
        (2, 18, 50, True),  # a tenth
        (2, 100, 1, True),  # two of a class in one image
        (1, 0, 1, True),  # nothing else
    ],
)
def test_forms__crowd_regions_that_a_tool_may_have_marked_are_counted(
    crowds: int, others: int, images: int, warned: bool, tmp_path: Path
) -> None:
    truth = crowded(crowds, others, images)
    (tmp_path / "a.json").write_text(json.dumps(truth))
    _, faults = parse_coco(Split("train", tmp_path / "a.json", tmp_path))
    assert [(fault.severity, fault.kind) for fault in faults] == ([("warning", "crowd regions")] if warned else [])
    notes = [note for note in read_ground_truth(truth).notes if "crowd regions: background" in note]
    assert len(notes) == warned
    if warned:
        assert len(faults[0].places) == crowds
        words = f"{crowds} of {crowds + others} annotation{'' if crowds + others == 1 else 's'} have iscrowd 1"
        assert words in str(faults[0])
        assert "set crowd to instances" in notes[0]


def test_forms__crowd_regions_can_be_instances_in_training_and_evaluation(tmp_path: Path) -> None:
    truth = crowded(8, 4, 4)
    (tmp_path / "a.json").write_text(json.dumps(truth))
    rules = ReadRules(crowd="instances")
    data, faults = parse_coco(Split("train", tmp_path / "a.json", tmp_path, rules=rules))
    assert [one.iscrowd for image in data.images for one in image.annotations] == [False] * 12
    assert [(fault.severity, fault.kind) for fault in faults] == [("note", "crowd regions")]
    results = [
        {"image_id": one["image_id"], "category_id": 7, "segmentation": one["segmentation"], "score": 0.5}
        for one in truth["annotations"][8:]
    ]
    ignored, counted = (evaluate_coco(truth, results, rules=one) for one in (ReadRules(), rules))
    assert ignored["AR100"] == pytest.approx(1)
    assert counted["AR100"] == pytest.approx(4 / 12)
    assert by_pycocotools(truth, [{**one, "segmentation": compress(one["segmentation"])} for one in results], "segm")[
        "AR100"
    ] == pytest.approx(1)


def test_forms__images_with_an_object_left_out_can_be_dropped_in_both(tmp_path: Path) -> None:
    """Without a mask, or with one that covers nothing: the same images are left out everywhere."""
    truth = crowded(0, 8, 4)
    truth["annotations"][0]["segmentation"] = None  # of image 1
    truth["annotations"][5]["segmentation"] = [[40, 2, 45, 2, 45, 9]]  # of image 2, outside it
    (tmp_path / "a.json").write_text(json.dumps(truth))
    rules = ReadRules(incomplete_images="drop")
    data, faults = parse_coco(Split("train", tmp_path / "a.json", tmp_path, rules=rules))
    assert [image.id for image in data.images] == [3, 4]
    assert [path.name for path in data.elsewhere] == ["1.png", "2.png"]
    assert str(faults[-1]) == "2 images left out, with an object without a mask (incomplete_images: drop) (images 1, 2)"
    assert all("left out of training with its image" in fault.reason for fault in faults[:-1])
    ground = read_ground_truth(truth, rules=rules)
    assert sorted(ground.images) == [3, 4]
    assert ground.skipped == {1, 2}
    assert len(ground.annotations) == 4
    assert ground.notes == [str(faults[-1])]
    result = {"image_id": 1, "category_id": 7, "segmentation": rle(MASK), "score": 0.5}
    assert read_results([result], ground) == []
    kept = parse_coco(Split("train", tmp_path / "a.json", tmp_path))[0]
    assert [image.id for image in kept.images] == [1, 2, 3, 4]
    assert [len(image.annotations) for image in kept.images] == [1, 1, 2, 2]
    assert sorted(read_ground_truth(truth, [2, 3], rules).images) == [3]


def test_forms__nothing_to_score_is_said() -> None:
    notes = evaluate_coco(crowded(3, 0), [])["notes"]
    assert any(
        note.startswith("annotations: nothing to score, no object with a mask (3 crowd regions)") for note in notes
    )
