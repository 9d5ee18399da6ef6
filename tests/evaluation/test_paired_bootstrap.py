"""Paired intervals tell a difference from noise; the precision curve is COCO's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.matches import Overlaps, overlaps_of
from mask2former_dinov3.evaluation.paired_bootstrap import (
    Difference,
    PairedDifferences,
    paired_bootstrap,
    precision_at_recalls,
)
from support.coco_reference import Scene, by_pycocotools, random_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def overlaps_in(scene: Scene, results: list[dict[str, Any]] | None = None) -> Overlaps:
    truth = read_ground_truth(scene.truth)
    return overlaps_of(truth, read_results(scene.results if results is None else results, truth), 100)


def compared(scene: Scene, before: Overlaps, after: Overlaps, seed: int = 0) -> PairedDifferences:
    truth = read_ground_truth(scene.truth)
    images = np.array(sorted(truth.sizes))
    return paired_bootstrap(before, after, images, len(truth.names), samples=200, seed=seed)


@pytest.mark.parametrize(("iou", "metric"), [(0.5, "AP50"), (0.75, "AP75")])
def test_precision_at_recalls__has_the_mean_of_pycocotools(iou: float, metric: str) -> None:
    for seed, levels in ((0, None), (3, 3)):
        scene = random_scene(seed, levels)
        curve = precision_at_recalls(overlaps_in(scene), np.arange(1, 5), 3, iou)
        expected = by_pycocotools(scene.truth, scene.results, "segm")
        assert curve.shape == (101,)
        assert curve.mean() == pytest.approx(expected[metric], abs=1e-9)
        assert (np.diff(curve) <= 1e-12).all()
    assert precision_at_recalls(overlaps_in(scene, []), np.arange(1, 5), 3, iou).tolist() == [0.0] * 101


def test_paired_bootstrap__is_undefined_without_objects() -> None:
    empty = Scene()
    empty.image(1)
    overlaps = overlaps_in(empty)
    overall = compared(empty, overlaps, overlaps).overall["AP"]
    assert math.isnan(overall.difference)
    assert not overall.worse
    assert not overall.better
    assert np.isnan(precision_at_recalls(overlaps, np.array([1]), 3, 0.5)).all()


def many_images(count: int, seed: int = 0) -> Scene:
    scene = Scene(seed, categories=(1, 7))
    for number in range(1, count + 1):
        scene.image(number, 60, 60)
        scene.crowd_of(number, 4, 9)
    return scene


def thinned(scene: Scene, share: float, seed: int) -> list[dict[str, Any]]:
    """The results, a share of them left out."""
    rng = np.random.default_rng(seed)
    return [one for one in scene.results if rng.random() >= share]


def test_paired_bootstrap__tells_a_difference_from_noise() -> None:
    scene = many_images(30)
    base, worse, other = (overlaps_in(scene, thinned(scene, *one)) for one in ((0.05, 1), (0.5, 2), (0.05, 3)))
    same = compared(scene, base, other).overall["AP"]
    assert not same.worse
    assert not same.better
    assert same.low < same.difference < same.high
    found = compared(scene, base, worse)
    assert all(found.overall[name].worse for name in ("AP", "AP50", "AP75"))
    assert len(found.per_class) == 2
    back = compared(scene, worse, base).overall["AP"]
    assert back.better
    assert [back.low, back.high] == pytest.approx([-found.overall["AP"].high, -found.overall["AP"].low])


def test_paired_bootstrap__is_the_same_for_the_same_seed_and_exact_for_equal_results() -> None:
    scene = many_images(10)
    base, other = overlaps_in(scene), overlaps_in(scene, thinned(scene, 0.3, 0))
    assert compared(scene, base, other).overall["AP"] == compared(scene, base, other).overall["AP"]
    assert compared(scene, base, other).overall["AP"] != compared(scene, base, other, seed=1).overall["AP"]
    own = compared(scene, base, base).overall["AP"]
    expected = by_pycocotools(scene.truth, scene.results, "segm")["AP"]
    assert own == Difference(own.before, own.before, 0.0, 0.0)
    assert own.before == pytest.approx(expected, abs=1e-9)


def test_paired_bootstrap__refuses_few_samples() -> None:
    scene = many_images(3)
    with pytest.raises(OptionError, match="at least 100 draws"):
        paired_bootstrap(overlaps_in(scene), overlaps_in(scene), np.arange(1, 4), 2, samples=99)
