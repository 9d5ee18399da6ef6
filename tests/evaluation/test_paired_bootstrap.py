"""AP of weighted images equals COCO's of repeated ones; paired intervals tell a difference from noise."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.paired_bootstrap import Difference, RankedMatches, paired_bootstrap, rank_matches
from support.coco_reference import Scene, by_pycocotools, random_scene

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def ranked(scene: Scene, results: list[dict[str, Any]] | None = None, limit: int = 100) -> RankedMatches:
    truth = read_ground_truth(scene.truth)
    return rank_matches(truth, read_results(scene.results if results is None else results, truth), limit)


@pytest.mark.parametrize(("seed", "levels", "limit"), [(0, None, 100), (3, 3, 100), (5, None, 2)])
def test_average_precision__equals_pycocotools(seed: int, levels: int | None, limit: int) -> None:
    scene = random_scene(seed, levels)
    found = ranked(scene, limit=limit)
    expected = by_pycocotools(scene.truth, scene.results, "segm", limit)
    table = found.average_precision()
    assert np.nanmean(table) == pytest.approx(expected["AP"], abs=1e-9)
    assert np.nanmean(table[:, 0]) == pytest.approx(expected["AP50"], abs=1e-9)
    per_class = [expected[f"class {number}"] for number in (1, 7, 90)]
    assert table.mean(axis=1) == pytest.approx(per_class, abs=1e-9)
    assert found.precision_curve(0.5).mean() == pytest.approx(expected["AP50"], abs=1e-9)


def test_average_precision__of_weights_is_that_of_repeated_images() -> None:
    scene = random_scene(4)
    weights = [2, 0, 1, 3]  # of the images in the order of their ids: 1, 3, 15, 200
    ids = sorted(one["id"] for one in scene.truth["images"])
    repeated = Scene()
    repeated.truth["categories"] = scene.truth["categories"]
    for own, count in zip(ids, weights, strict=True):
        for turn in range(count):
            new = own * 10 + turn
            entry = next(one for one in scene.truth["images"] if one["id"] == own)
            repeated.truth["images"].append({**entry, "id": new})
            for source, target in (
                (scene.truth["annotations"], repeated.truth["annotations"]),
                (scene.results, repeated.results),
            ):
                target.extend({**copy.deepcopy(one), "image_id": new} for one in source if one["image_id"] == own)
    for number, one in enumerate(repeated.truth["annotations"], start=1):
        one["id"] = number
    table = ranked(scene).average_precision(np.array(weights, dtype=np.float64))
    expected = by_pycocotools(repeated.truth, repeated.results, "segm")
    assert np.nanmean(table) == pytest.approx(expected["AP"], abs=1e-9)


def test_average_precision__is_undefined_without_objects_and_0_without_results() -> None:
    scene = random_scene(0)
    assert np.all(ranked(scene, []).average_precision() == 0)
    nothing = np.zeros(4)
    assert np.isnan(ranked(scene).average_precision(nothing)).all()
    empty = Scene()
    empty.image(1)
    assert np.isnan(ranked(empty).precision_curve(0.5)).all()
    overall = paired_bootstrap(ranked(empty), ranked(empty), samples=100).overall["AP"]
    assert math.isnan(overall.difference)
    assert not overall.worse
    assert not overall.better


def many_images(count: int, seed: int = 0) -> Scene:
    scene = Scene(seed, categories=(1, 7))
    for number in range(1, count + 1):
        scene.image(number, 60, 60)
        scene.crowd_of(number, 4, 9)
    return scene


def shifted(scene: Scene, share: float, seed: int) -> list[dict[str, Any]]:
    """The results, a share of them left out."""
    rng = np.random.default_rng(seed)
    return [one for one in scene.results if rng.random() >= share]


def test_paired_bootstrap__tells_a_difference_from_noise() -> None:
    scene = many_images(30)
    base, worse = ranked(scene, shifted(scene, 0.05, 1)), ranked(scene, shifted(scene, 0.5, 2))
    other = ranked(scene, shifted(scene, 0.05, 3))
    same = paired_bootstrap(base, other, samples=300).overall["AP"]
    assert not same.worse
    assert not same.better
    assert same.low < same.difference < same.high
    found = paired_bootstrap(base, worse, samples=300)
    assert all(one.worse for one in found.overall.values())
    assert len(found.per_class) == 2
    back = paired_bootstrap(worse, base, samples=300).overall["AP"]
    assert back.better
    assert [back.low, back.high] == pytest.approx([-found.overall["AP"].high, -found.overall["AP"].low])


def test_paired_bootstrap__is_the_same_for_the_same_seed_and_exact_for_equal_results() -> None:
    scene = many_images(10)
    base, other = ranked(scene), ranked(scene, shifted(scene, 0.3, 0))
    assert paired_bootstrap(base, other, samples=100) == paired_bootstrap(base, other, samples=100)
    assert paired_bootstrap(base, other, samples=100) != paired_bootstrap(base, other, samples=100, seed=1)
    own = paired_bootstrap(base, base, samples=100).overall["AP"]
    assert own == Difference(own.before, own.before, 0.0, 0.0)


def test_paired_bootstrap__refuses_few_samples_and_other_ground_truths() -> None:
    base = ranked(many_images(3))
    with pytest.raises(OptionError, match="at least 100 draws"):
        paired_bootstrap(base, base, samples=99)
    with pytest.raises(ValueError, match="same ground truth"):
        paired_bootstrap(base, ranked(many_images(4)))
