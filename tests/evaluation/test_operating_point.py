"""Curves equal to a count by hand, choices equal to a search, intervals that hold as often as they say."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from numpy.typing import NDArray

from mask2former_dinov3.errors import ConfigError, OptionError
from mask2former_dinov3.evaluation.bootstrap import LEVEL
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.matches import Overlaps, ResultMatches, match_overlaps, overlaps_of
from mask2former_dinov3.evaluation.operating_point import (
    BEST_F1,
    Aim,
    choose_point,
    short_number_between,
)
from mask2former_dinov3.evaluation.score_curves import ScorePoint, score_curve
from support.coco_reference import Scene, random_scene

AIMS = [
    BEST_F1,
    Aim(target_precision=0.6),
    Aim(target_precision=0.2),
    Aim(target_recall=0.3),
    Aim(target_recall=1.0),
    Aim(cost_fp=1, cost_fn=4),
]


def matched(scene: Scene, iou: float = 0.5) -> tuple[Overlaps, ResultMatches]:
    truth = read_ground_truth(scene.truth)
    overlaps = overlaps_of(truth, read_results(scene.results, truth), 100)
    return overlaps, match_overlaps(overlaps, iou)


def count_above(scene: Scene, threshold: float, iou: float, category: int | None) -> ScorePoint:
    """The counts with a matching of its own of the results above the threshold."""
    above = Scene()
    above.truth, above.results = scene.truth, [one for one in scene.results if one["score"] >= threshold]
    overlaps, matches = matched(above, iou)
    mine = slice(None) if category is None else overlaps.result_category == category
    objects = ~overlaps.crowd & (True if category is None else overlaps.object_category == category)
    right = int(matches.right[mine].sum())
    return ScorePoint(threshold, right, int(matches.wrong[mine].sum()), int(objects.sum()) - right)


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("category", [None, 1, 2])
@pytest.mark.parametrize(("seed", "levels"), [(0, 1000), (3, 3)])
def test_score_curve__equals_a_count_of_the_results_above_each_score(
    seed: int, levels: int, category: int | None, iou: float
) -> None:
    scene = random_scene(seed, levels)
    curve = score_curve(*matched(scene, iou), category)
    assert np.all(np.diff(curve.scores) < 0)
    assert len(curve.scores) > 1
    for index, score in enumerate(curve.scores.tolist()):
        expected = count_above(scene, score, iou, category)
        assert curve.at(score) == expected
        numbers = (curve.precision[index], curve.recall[index], curve.f1[index])
        assert numbers == pytest.approx((expected.precision, expected.recall, expected.f1))
    assert curve.at(1.01) == ScorePoint(1.01, 0, 0, curve.objects)
    assert curve.at(0.0) == ScorePoint(0.0, int(curve.right[-1]), int(curve.wrong[-1]), curve.at(0.0).missed)


def best_by_search(aim: Aim, points: list[ScorePoint]) -> ScorePoint:
    """The chosen point by the words of `Aim`; points from the highest threshold down."""
    if aim.target_precision is not None:
        reached = [one for one in points if one.precision >= aim.target_precision]
        return max(reached, key=lambda one: one.recall) if reached else max(points, key=lambda one: one.precision)
    if aim.target_recall is not None:
        reached = [one for one in points if one.recall >= aim.target_recall]
        return max(reached, key=lambda one: one.precision) if reached else max(points, key=lambda one: one.recall)
    if aim.cost_fp is not None and aim.cost_fn is not None:
        costs = aim.cost_fp, aim.cost_fn
        return min(points, key=lambda one: costs[0] * one.wrong + costs[1] * one.missed)
    return max(points, key=lambda one: one.f1)


@pytest.mark.parametrize("aim", AIMS, ids=lambda aim: aim.text)
@pytest.mark.parametrize(("seed", "levels"), [(5, 1000), (3, 3), (11, 1)])
def test_choose_point__is_the_best_of_all_thresholds(seed: int, levels: int, aim: Aim) -> None:
    overlaps, matches = matched(random_scene(seed, levels))
    curve = score_curve(overlaps, matches)
    choice = choose_point(overlaps, matches, aim, resamples=20)
    assert choice is not None
    best = best_by_search(aim, [curve.at(score) for score in curve.scores.tolist()])
    got = choice.point
    assert (got.right, got.wrong, got.missed) == (best.right, best.wrong, best.missed)
    assert curve.at(got.threshold) == got
    assert choice.reached == aim.reached(best)
    assert np.all(aim.losses(curve, got, curve.scores) >= 0)


def test_choose_point__target_out_of_reach_is_said_with_the_nearest() -> None:
    overlaps, matches = matched(random_scene(3, 3))
    choice = choose_point(overlaps, matches, Aim(target_recall=1.0))
    assert choice is not None
    assert not choice.reached
    assert choice.point.recall == score_curve(overlaps, matches).recall.max() < 1


def test_choose_point__without_a_right_result_there_is_none() -> None:
    scene = random_scene(4)
    scene.truth["annotations"].clear()
    assert choose_point(*matched(scene)) is None


def drawn_images(rng: np.random.Generator, images: int) -> tuple[Overlaps, ResultMatches]:
    """Results and objects of images that differ: of each image, some objects are found, at higher scores than errors.

    Only what counts: no masks.
    """
    quality = rng.uniform(0.3, 1.0, images)
    objects = rng.integers(1, 12, images)
    right = rng.binomial(objects, quality)
    wrong = rng.poisson(4 * (1 - quality))
    image = np.repeat(np.arange(images), right + wrong)
    is_right = np.concatenate([np.arange(r + w) < r for r, w in zip(right, wrong, strict=True)])
    score = np.where(is_right, rng.beta(5, 2, len(image)), rng.beta(2, 4, len(image)))
    order = np.lexsort((-score, image))
    of_object = np.repeat(np.arange(images), objects)
    first = np.cumsum(objects) - objects
    place = np.concatenate([np.arange(r + w) for r, w in zip(right, wrong, strict=True)])
    object_of = np.where(is_right, first[image] + place, -1)[order]
    empty: NDArray[np.int64] = np.zeros(0, np.int64)
    overlaps = Overlaps(
        result_row=np.arange(len(image)),
        result_image=image,
        result_category=np.ones(len(image), np.int64),
        score=score[order],
        result_area=np.ones(len(image)),
        object_image=of_object,
        object_category=np.ones(len(of_object), np.int64),
        crowd=np.zeros(len(of_object), bool),
        area=np.ones(len(of_object)),
        pair_result=empty,
        pair_object=empty,
        pair_iou=np.zeros(0),
        left_out=0,
    )
    return overlaps, ResultMatches(
        0.5, object_of, np.where(object_of >= 0, 0.8, 0.0), np.zeros(len(image), bool), empty
    )


def test_choose_point__intervals_hold_as_often_as_they_say() -> None:
    """F1 of new images at the chosen threshold lies in the interval for about 95 % of the sets of 60 images."""
    rng = np.random.default_rng(0)
    whole = score_curve(*drawn_images(rng, 20_000))
    held = []
    for _ in range(150):
        choice = choose_point(*drawn_images(rng, 60), resamples=300)
        assert choice is not None
        low, high = choice.f1
        held.append(low <= whole.at(choice.point.threshold).f1 <= high)
        assert 0.01 < high - low < 0.2
    # Three standard deviations of a share of 150; the choice on the same images costs some of the 95 %.
    assert abs(np.mean(held) - LEVEL) < 3 * math.sqrt(LEVEL * (1 - LEVEL) / 150) + 0.02


def test_choose_point__few_images_are_not_stable_and_many_are() -> None:
    rng = np.random.default_rng(1)
    few, many = (choose_point(*drawn_images(rng, images)) for images in (5, 400))
    assert few is not None
    assert many is not None
    assert few.unstable == "5 images are too few to tell; 10 are the least"
    assert not many.unstable
    assert many.loss < few.loss
    target = choose_point(*drawn_images(rng, 12), Aim(target_precision=0.97))
    assert target is not None
    assert re.search(
        r"one chosen on other images like these may cost 0\.\d+ of precision, more than 0.02", target.unstable
    )


def test_choose_point__the_same_seed_gives_the_same_intervals() -> None:
    overlaps, matches = drawn_images(np.random.default_rng(2), 30)
    first, again, other = (choose_point(overlaps, matches, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.81, 0.95, 0.9), (0.8912, 0.8958, 0.893), (0.3, 0.3001, 0.30005), (0.0, 0.02, 0.01)]
)
def test_short_number_between__has_the_fewest_decimals(low: float, high: float, expected: float) -> None:
    assert short_number_between(low, high) == expected
    assert low < expected <= high


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target_precision": 0}, "target_precision: expected a fraction above 0, up to 1, got 0"),
        ({"target_recall": 1.5}, "target_recall: expected a fraction above 0, up to 1, got 1.5"),
        ({"target_recall": math.nan}, "target_recall: expected a fraction above 0, up to 1, got nan"),
        ({"cost_fp": 1}, "cost_fn: expected a number above 0, as cost_fp has one, got none"),
        ({"cost_fp": 1, "cost_fn": -1}, "cost_fn: expected a number above 0, got -1"),
    ],
)
def test_aim__refuses_values_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=f"^{re.escape(message)}$"):
        Aim(**values)


def test_aim__refuses_two_targets() -> None:
    with pytest.raises(ConfigError, match="expected one of target_precision, target_recall, and cost_fp with cost_fn"):
        Aim(target_precision=0.5, target_recall=0.5)
