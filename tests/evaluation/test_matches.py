"""Which result finds which object: equal to pycocotools' own matches, ties and crowd regions included."""

from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.matches import Overlaps, match_overlaps, overlaps_of
from support.coco_reference import Scene, blob, moved, random_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def matches_of_pycocotools(scene: Scene, iou: float, limit: int) -> dict[int, tuple[int, bool]]:
    """Number of the result in the list, from 1 -> (id of its annotation or 0, whether it is ignored)."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(scene.truth)
        truth.createIndex()
        found = truth.loadRes(copy.deepcopy(scene.results))
        evaluation = COCOeval(truth, found, "segm")
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.maxDets = [limit]
        evaluation.params.areaRng = [[0, 1e10]]
        evaluation.params.areaRngLbl = ["all"]
        evaluation.evaluate()
    expected: dict[int, tuple[int, bool]] = {}
    for image in filter(None, evaluation.evalImgs):
        for number, match, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True):
            expected[int(number)] = (int(match), bool(ignored))
    return expected


def overlaps_in(scene: Scene, limit: int = 100) -> Overlaps:
    truth = read_ground_truth(scene.truth)
    return overlaps_of(truth, read_results(scene.results, truth), limit)


def crowded_scene(seed: int, levels: int) -> Scene:
    scene = random_scene(seed, levels)
    for image in [one["id"] for one in scene.truth["images"]]:
        size = next(one for one in scene.truth["images"] if one["id"] == image)
        region = blob(scene.rng, size["height"], size["width"], 40)
        scene.annotate(image, 7, region, iscrowd=1)
        for shift in (0, 3):
            scene.detect(image, 7, moved(region, shift, 0), round(scene.rng.random(), 1))
    return scene


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
@pytest.mark.parametrize(("seed", "levels", "limit"), [(0, 0, 100), (3, 3, 100), (11, 1, 100), (5, 3, 2)])
def test_match_overlaps__equals_pycocotools(seed: int, levels: int, limit: int, iou: float) -> None:
    scene = crowded_scene(seed, levels) if levels else random_scene(seed)
    overlaps = overlaps_in(scene, limit)
    matches = match_overlaps(overlaps, iou)
    ids = [one["id"] for one in scene.truth["annotations"]]
    got = {
        row + 1: (ids[index] if index >= 0 else 0, bool(ignored))
        for row, index, ignored in zip(
            overlaps.result_row.tolist(), matches.object_of.tolist(), matches.ignored.tolist(), strict=True
        )
    }
    assert got == matches_of_pycocotools(scene, iou, limit)
    assert overlaps.left_out == len(scene.results) - len(got)
    assert matches.right.any()
    assert matches.wrong.any()
    assert not (matches.right & matches.wrong).any()
    for index, result in enumerate(matches.result_of.tolist()):
        assert result < 0 or matches.object_of[result] == index


def test_overlaps_of__are_the_iou_of_every_pair_in_an_image() -> None:
    scene = crowded_scene(2, 3)
    overlaps = overlaps_in(scene)
    assert np.all(np.diff(overlaps.result_image) >= 0)
    table = {
        (result, index): value
        for result, index, value in zip(
            overlaps.pair_result.tolist(), overlaps.pair_object.tolist(), overlaps.pair_iou.tolist(), strict=True
        )
    }
    assert list(table) == sorted(table)
    objects = scene.truth["annotations"]
    for position, row in enumerate(overlaps.result_row.tolist()):
        result = scene.results[row]
        for index, one in enumerate(objects):
            if one["image_id"] == result["image_id"]:
                expected = coco_mask.iou([result["segmentation"]], [one["segmentation"]], [one["iscrowd"]])[0][0]
                assert table.get((position, index), 0.0) == pytest.approx(expected)
            else:
                assert (position, index) not in table


@pytest.mark.parametrize("empty", ["results", "annotations"])
def test_match_overlaps__without_results_or_objects(empty: str) -> None:
    scene = random_scene(4)
    if empty == "results":
        scene.results.clear()
    else:
        scene.truth["annotations"].clear()
    overlaps = overlaps_in(scene)
    matches = match_overlaps(overlaps, 0.5)
    assert not matches.right.any()
    assert len(matches.wrong) == len(scene.results)
    assert matches.wrong.all()
    assert (matches.result_of == -1).all()
