"""Intervals of AP, confusion, calibration and breakdown, against numbers by hand and by COCO's evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mask2former_dinov3.evaluation.bootstrap import (
    ApInterval,
    bootstrap_intervals,
    draw_resamples,
    interval_of,
    number_of_resamples,
)
from mask2former_dinov3.evaluation.breakdown import breakdown_of, group_bounds
from mask2former_dinov3.evaluation.calibration import calibration_of
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.coco_files import GroundTruth, read_ground_truth, read_results
from mask2former_dinov3.evaluation.confusion import confusion_matrix
from mask2former_dinov3.evaluation.copy_choice import drop_copies
from mask2former_dinov3.evaluation.matches import Overlaps, match_overlaps, overlaps_of
from support.coco_reference import Scene, random_scene


def numbers_of(truth: GroundTruth) -> np.ndarray:
    return np.array(sorted(truth.sizes))


def read(scene: Scene) -> tuple[GroundTruth, Overlaps]:
    truth = read_ground_truth(scene.truth)
    return truth, overlaps_of(truth, read_results(scene.results, truth), 100)


def assert_near(got: float, expected: float) -> None:
    assert got == pytest.approx(expected, abs=1e-12)


def square(column: int, side: int = 20) -> np.ndarray:
    mask = np.zeros((90, 120), bool)
    mask[10 : 10 + side, 5 + 30 * column : 5 + 30 * column + side] = True
    return mask


def test_bootstrap_intervals__hold_the_metrics_and_repeat_with_the_seed() -> None:
    scene = random_scene(0)
    truth, overlaps = read(scene)
    metrics = evaluate_coco(scene.truth, scene.results)
    found = bootstrap_intervals(overlaps, numbers_of(truth), truth.names, seed=3)
    assert found.resamples == 1000
    for name in ("AP", "AP50", "AP75", "APs", "APm"):
        one = found.metrics[name]
        assert one.value == pytest.approx(metrics[name], abs=1e-12)
        assert 0 <= one.low <= one.value <= one.high <= 1
        assert one.low < one.high
    assert {name: one.value for name, one in found.per_class.items()} == pytest.approx(metrics["per_class"])
    assert found == bootstrap_intervals(overlaps, numbers_of(truth), truth.names, seed=3)
    assert found != bootstrap_intervals(overlaps, numbers_of(truth), truth.names, seed=4)


def test_bootstrap_intervals__undefined_without_objects() -> None:
    scene = Scene()
    scene.image(1)
    truth, overlaps = read(scene)
    found = bootstrap_intervals(overlaps, numbers_of(truth), truth.names)
    assert found.metrics["AP"].value == found.metrics["AP"].low == -1


@pytest.mark.parametrize(
    ("images", "edge"),
    [(1_000_000, 0.025), (30, stats.norm.cdf(-2.045230 * (30 / 29) ** 0.5)), (6, stats.norm.cdf(-2.570582 * 1.2**0.5))],
)
def test_interval_of__quantiles_of_defined_resamples_lie_further_out_for_few_images(images: int, edge: float) -> None:
    values = np.array([0.5, *np.linspace(0, 1, 1001), -1, -1])  # Student's 97.5 % of 29 and of 5: 2.045230, 2.570582
    found = interval_of(values, images)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, edge, 1 - edge), abs=1e-6)


def test_interval_of__one_image_gives_all_that_was_drawn() -> None:
    assert interval_of(np.array([0.5, 0.5, 0.5]), 1) == ApInterval(0.5, 0.5, 0.5)


def test_draw_resamples__draws_as_many_images_as_there_are() -> None:
    drawn = draw_resamples(50, 200, seed=1)
    assert (drawn.sum(1) == 50).all()
    assert drawn.mean(0) == pytest.approx(1, abs=0.35)
    assert number_of_resamples(500_000) == 400
    assert number_of_resamples(50_000_000) == 200


def test_confusion_matrix__by_hand() -> None:
    """Class 1 has four objects: one found, one found as class 7, one missed because its result is below the threshold,
    one twice: as class 1, and as class 90 too, which is invented then. Class 90 has a result where nothing is."""
    scene = Scene()
    scene.image(1)
    scene.image(2)
    for column in range(3):
        scene.annotate(1, 1, square(column))
    scene.annotate(2, 1, square(0))
    scene.detect(1, 1, square(0), 0.9)
    scene.detect(1, 7, square(1), 0.8)
    scene.detect(1, 1, square(2), 0.3)
    scene.detect(1, 90, square(3), 0.8)
    scene.detect(2, 1, square(0), 0.7)
    scene.detect(2, 90, square(0), 0.9)
    _, overlaps = read(scene)
    expected = [[2, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]
    assert confusion_matrix(overlaps, np.full(3, 0.5)).tolist() == expected
    everything = confusion_matrix(overlaps, np.zeros(3))
    assert everything.tolist() == [[3, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 2, 0]]


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.8])
def test_confusion_matrix__counts_every_object_and_result_once(threshold: float) -> None:
    _, overlaps = read(random_scene(2))
    matrix = confusion_matrix(overlaps, np.full(3, threshold))
    matches = match_overlaps(overlaps, 0.5)
    shown = overlaps.score >= threshold
    assert matrix[:3].sum() == (~overlaps.crowd).sum()
    assert matrix[:, :3].sum() == (shown & ~matches.ignored).sum()
    assert np.trace(matrix) == (shown & matches.right).sum()


def test_calibration_of__by_hand() -> None:
    """Two results at 0.9, one right: precision 0.5, distance 0.4; one at 0.25, wrong: distance 0.25."""
    scene = Scene()
    scene.image(1)
    scene.annotate(1, 1, square(0))
    scene.detect(1, 1, square(0), 0.9)
    scene.detect(1, 1, square(1), 0.9)
    scene.detect(1, 1, square(2), 0.25)
    _, overlaps = read(scene)
    found = calibration_of(overlaps, match_overlaps(overlaps, 0.5))
    assert found.error == pytest.approx((2 * 0.4 + 0.25) / 3)
    assert [(one.count, one.score, one.precision) for one in found.bins] == [
        (1, 0.25, 0.0),
        (2, pytest.approx(0.9), 0.5),
    ]


def test_calibration_of__undefined_without_results() -> None:
    scene = Scene()
    scene.image(1)
    _, overlaps = read(scene)
    assert calibration_of(overlaps, match_overlaps(overlaps, 0.5)).error == -1


def test_breakdown_of__groups_are_those_of_coco() -> None:
    scene = random_scene(1)
    truth, overlaps = read(scene)
    found = breakdown_of(overlaps, truth)
    assert sum(group.objects for group in found.by_size) == (~overlaps.crowd).sum()
    assert sum(group.images for group in found.by_crowding) == len(truth.images)
    most = found.by_crowding[-1]
    ids = [image for image, number in truth.images.items() if (overlaps.object_image == number).sum() >= most.low]
    alone = evaluate_coco(scene.truth, scene.results, image_ids=ids)
    assert_near(most.AP, alone["AP"])
    assert_near(most.AP50, alone["AP50"])


def test_breakdown_of__holds_the_objects_at_its_bounds() -> None:
    """3 is not the square of its root in floats."""
    scene = Scene(categories=(1,))
    for image in (1, 2):
        scene.image(image)
        mask = np.zeros((90, 120), bool)
        mask[4, 4:7] = True
        scene.annotate(image, 1, mask)
        scene.detect(image, 1, mask, 0.9)
    truth, overlaps = read(scene)
    (group,) = breakdown_of(overlaps, truth).by_size
    assert (group.objects, group.images, group.AP, group.AP50) == (2, 2, 1.0, 1.0)
    assert group.low == group.high == pytest.approx(3**0.5)


def test_bootstrap_intervals__of_some_of_the_images() -> None:
    """Images left out keep their numbers, so numbers have gaps."""
    scene = random_scene(0)
    ids = [3, 200]
    truth = read_ground_truth(scene.truth, ids)
    results = read_results(scene.results, truth)
    found = bootstrap_intervals(overlaps_of(truth, results, 100), numbers_of(truth), truth.names)
    assert_near(found.metrics["AP"].value, evaluate_coco(scene.truth, scene.results, image_ids=ids)["AP"])
    assert sum(group.images for group in breakdown_of(overlaps_of(truth, results, 100), truth).by_crowding) == 2


def test_group_bounds__equal_values_share_a_group() -> None:
    assert group_bounds(np.array([1.0, 1, 1, 1, 1, 1, 1, 9, 9])) == [(1, 1), (9, 9)]
    assert group_bounds(np.arange(10.0)) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert group_bounds(np.zeros(0)) == []


def test_drop_copies__leaves_whole_overlaps() -> None:
    """A copy of a result lies in it; without it every array is shorter by one, and AP of sizes can still be counted."""
    scene = Scene()
    scene.image(1)
    scene.annotate(1, 1, square(0))
    scene.detect(1, 1, square(0), 0.9)
    scene.detect(1, 1, square(0, 18), 0.8)
    truth = read_ground_truth(scene.truth)
    results = read_results(scene.results, truth)
    every = overlaps_of(truth, results, 100)
    assert drop_copies(every, results, None, 0.0) is every
    kept = drop_copies(every, results, 0.5, 0.0)
    assert kept.score.tolist() == [0.9]
    assert kept.result_area.tolist() == [400.0]
    assert pytest.approx(1) == breakdown_of(kept, truth).by_size[0].AP
