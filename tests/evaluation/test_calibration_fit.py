"""The fit of a score calibration: known maps are found, and only what helps on other images is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from mask2former_dinov3.data.coco_types import CocoResult
from mask2former_dinov3.evaluation.calibration_fit import calibrate_results, calibration_in, choose_calibration
from mask2former_dinov3.evaluation.matches import Overlaps, ResultMatches
from mask2former_dinov3.inference.score_calibration import UNCHANGED, ScoreCalibration


def drawn(
    scale: float, shift: float, images: int = 60, each: int = 60, seed: int = 0
) -> tuple[Overlaps, ResultMatches]:
    """Results whose chance to be right is the map of their score; no masks."""
    rng = np.random.default_rng(seed)
    number = images * each
    score = rng.beta(0.7, 1.2, number).clip(1e-4, 1 - 1e-4)
    right = rng.random(number) < expit(scale * logit(score) + shift)
    nothing, floats = np.zeros(0, np.int64), np.zeros(0)
    overlaps = Overlaps(
        result_row=np.arange(number),
        result_image=np.repeat(np.arange(1, images + 1), each),
        result_category=np.ones(number, np.int64),
        score=score,
        result_area=np.ones(number),
        object_image=nothing,
        object_category=nothing,
        crowd=np.zeros(0, bool),
        area=floats,
        pair_result=nothing,
        pair_object=nothing,
        pair_iou=floats,
        left_out=0,
    )
    place = np.where(right, 0, -1)
    return overlaps, ResultMatches(0.5, place, right * 0.9, np.zeros(number, bool), nothing)


@pytest.mark.parametrize(("scale", "shift"), [(1.5, -2.5), (0.6, 0.8), (1.0, 1.0)])
def test_choose_calibration__finds_the_map_that_the_results_were_drawn_with(scale: float, shift: float) -> None:
    found = choose_calibration(*drawn(scale, shift))
    assert (found["scale"], found["shift"]) == pytest.approx((scale, shift), abs=0.15)
    assert found["helps"]
    assert found["mapped"] < 0.03 < found["error"]
    assert calibration_in(found) == ScoreCalibration(found["scale"], found["shift"])


def test_choose_calibration__leaves_scores_that_are_right() -> None:
    helps = [choose_calibration(*drawn(1.0, 0.0, seed=seed))["helps"] for seed in range(10)]
    assert sum(helps) <= 1
    found = choose_calibration(*drawn(1.0, 0.0))
    assert (found["scale"], found["shift"]) == pytest.approx((1, 0), abs=0.1)
    assert calibration_in(found) == UNCHANGED


def test_choose_calibration__fits_nothing_to_few_images_or_results_or_to_scores_that_are_no_chances() -> None:
    few_images = drawn(1.5, -2.5, images=9)
    no_right = drawn(1.0, -30.0)
    overlaps, matches = drawn(1.5, -2.5)
    for one in (few_images, no_right, (replace(overlaps, score=overlaps.score * 50), matches)):
        found = choose_calibration(*one)
        assert (found["scale"], found["shift"], found["helps"]) == (1.0, 0.0, False)
        assert found["error"] == found["mapped"] > 0


def test_choose_calibration__stays_finite_where_right_and_wrong_results_do_not_overlap() -> None:
    overlaps, matches = drawn(1.0, 0.0)
    apart = replace(matches, object_of=np.where(overlaps.score > 0.5, 0, -1))
    found = choose_calibration(overlaps, apart)
    assert np.isfinite([found["scale"], found["shift"]]).all()
    assert found["helps"]


def test_calibrate_results__changes_scores_only_where_the_map_was_applied(tmp_path: Path) -> None:
    mask: Any = {"size": [4, 4], "counts": "abc"}
    results = [CocoResult(image_id=1, category_id=1, segmentation=mask, score=score) for score in (0.9, 0.2)]
    numbers = choose_calibration(*drawn(1.5, -2.5))
    assert calibrate_results(results, numbers) == results
    assert calibrate_results(results, None) == results
    mapped = calibrate_results(results, {**numbers, "applied": True})
    expected = calibration_in(numbers).apply([0.9, 0.2]).astype(np.float32).tolist()
    assert [one["score"] for one in mapped] == expected
    assert [{**one, "score": 0} for one in mapped] == [{**one, "score": 0} for one in results]
