"""Labels in doubt and the verdict, on scenes where it is known what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from mask2former_dinov3.evaluation.coco_ap import score_results
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.report_numbers import Findings, count_findings
from mask2former_dinov3.evaluation.verdict import verdict_of
from support.coco_reference import Scene, moved, rle


def square(column: int, row: int = 0, side: int = 20) -> np.ndarray:
    mask = np.zeros((90, 120), bool)
    mask[5 + 28 * row : 5 + 28 * row + side, 5 + 28 * column : 5 + 28 * column + side] = True
    return mask


def findings_of(scene: Scene, max_detections: int = 100) -> Findings:
    truth = read_ground_truth(scene.truth)
    results = read_results(scene.results, truth)
    return count_findings(truth, results, score_results(truth, results, max_detections))


def good_scene(images: int = 12) -> Scene:
    """Two classes, three objects of each in every image, all found at scores of about 0.9; noise at 0.1."""
    scene = Scene(categories=(1, 7))
    for image in range(1, images + 1):
        scene.image(image)
        for column in range(3):
            for row, category in ((0, 1), (1, 7)):
                scene.annotate(image, category, square(column, row))
                scene.detect(image, category, square(column, row), 0.9 + 0.001 * column)
        scene.detect(image, 1, square(3, 2, 6), 0.1)
    return scene


def test_doubtful_labels__none_where_all_is_found() -> None:
    assert findings_of(good_scene()).numbers.doubts == []


def test_doubtful_labels__finds_each_kind() -> None:
    scene = good_scene()
    scene.truth["annotations"][0]["category_id"] = 7  # another class than the result of image 1
    scene.detect(2, 1, square(0, 2), 0.95)  # an object without a label
    scene.annotate(3, 1, square(0, 2))  # nothing finds it
    scene.annotate(4, 7, square(0, 1))  # on a label that is there already
    half = square(0) & moved(square(0), 12, 0)
    outlined = next(one for one in scene.truth["annotations"] if one["image_id"] == 5)
    outlined.update(segmentation=rle(half), area=float(half.sum()))
    found = findings_of(scene)
    kinds = {(one.kind, one.image) for one in found.numbers.doubts}
    assert kinds == {
        ("other class", 1),
        ("no label", 2),
        ("never found", 3),
        ("annotated twice", 4),
        ("other outline", 5),
    }
    suspicions = {one.kind: one.suspicion for one in found.numbers.doubts}
    assert suspicions["annotated twice"] == 1
    assert suspicions["never found"] <= 0.5 < suspicions["no label"] <= 1
    other = next(one for one in found.numbers.doubts if one.kind == "other class")
    assert (other.category, other.suggested) == (2, 1)
    assert found.truth.annotations[other.item]["source_id"] == 1


def test_doubtful_labels__an_object_counts_once_and_crowd_regions_never() -> None:
    scene = good_scene()
    scene.annotate(1, 1, square(3, 0), iscrowd=1)
    scene.detect(1, 1, square(3, 0, 10), 0.95)  # in the crowd region
    scene.truth["annotations"][0]["category_id"] = 7
    scene.detect(1, 1, moved(square(0), 1, 0), 0.89)  # a second result against the same label
    found = findings_of(scene).numbers.doubts
    assert [(one.kind, one.image) for one in found] == [("other class", 1)]


def test_verdict_of__names_a_limit_before_all_else() -> None:
    scene = good_scene()
    sentences = verdict_of(findings_of(scene, max_detections=2))
    assert len(sentences) == 5
    assert sentences[3].text.startswith(
        "At most 2 results per image and class count for AP, so its recall cannot be above 0.667"
    )
    sentences = verdict_of(findings_of(scene), num_queries=2)
    assert sentences[3].text.startswith("The model has 2 queries, so its recall cannot be above 0.667")
    assert "No other kind of error" in verdict_of(findings_of(scene))[3].text


def test_verdict_of__names_the_weak_class() -> None:
    scene = good_scene()
    scene.results = [
        one
        for one in scene.results
        if one["category_id"] == 1 or one["image_id"] % 2  # half of class 7 is missed
    ]
    texts = [one.text for one in verdict_of(findings_of(scene))]
    assert 'weakest on the class "class 7"' in texts[1]
    assert "18 objects are missed by every result" in texts[3]


@pytest.mark.parametrize("seed", [0, 1])
def test_count_findings__repeats(seed: int) -> None:
    scene = good_scene(4)
    truth = read_ground_truth(scene.truth)
    results = read_results(scene.results, truth)
    metrics = score_results(truth, results, 100)
    first, second = (count_findings(truth, results, metrics, seed=seed).numbers for _ in range(2))
    assert first.intervals == second.intervals
    assert first.images == second.images
