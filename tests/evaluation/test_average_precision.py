"""AP from matches: that of the metrics for whole data sets, and that of copies of images for weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from mask2former_dinov3.evaluation.average_precision import (
    SIZES,
    average_precisions,
    mean_over_classes,
    precision_table,
    rank_all,
)
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.coco_files import GroundTruth, read_ground_truth, read_results
from mask2former_dinov3.evaluation.matches import Overlaps, overlaps_of
from support.coco_reference import Scene, random_scene


def read(scene: Scene) -> tuple[GroundTruth, Overlaps]:
    truth = read_ground_truth(scene.truth)
    return truth, overlaps_of(truth, read_results(scene.results, truth), 100)


@pytest.mark.parametrize(("seed", "levels"), [(0, None), (1, 3), (2, 1)])
def test_precision_table__equals_the_metrics(seed: int, levels: int | None) -> None:
    scene = random_scene(seed, levels)
    scene.crowd_of(15, 6, 60, levels)  # large ones
    truth, overlaps = read(scene)
    metrics = evaluate_coco(scene.truth, scene.results)
    once = np.ones((1, len(truth.images)), np.int32)
    for name, size in SIZES.items():
        table = precision_table(rank_all(overlaps, np.array(sorted(truth.sizes)), len(truth.names), size), once)
        key = {"all": "AP", "small": "APs", "medium": "APm", "large": "APl"}[name]
        assert mean_over_classes(table).mean() == pytest.approx(metrics[key], abs=1e-12)  # type: ignore[literal-required]
        if name == "all":
            assert mean_over_classes(table)[0, 0] == pytest.approx(metrics["AP50"], abs=1e-12)
            assert dict(zip(truth.names, table.mean(1)[0], strict=True)) == pytest.approx(metrics["per_class"])


def test_average_precisions__weights_are_copies_of_images() -> None:
    scene = random_scene(4)
    truth, overlaps = read(scene)
    weights = np.array([[2, 0, 3, 1]], np.int32)
    table = precision_table(rank_all(overlaps, np.arange(1, 5), 3), weights)
    numbers = {number: key for key, number in truth.images.items()}
    repeated = Scene()
    for place, weight in enumerate(weights[0].tolist()):
        for copied in range(weight):
            number = 1000 * place + copied + 1
            old = numbers[place + 1]
            repeated.image(number, *truth.sizes[place + 1])
            for one in scene.truth["annotations"]:
                if one["image_id"] == old:
                    copies = copy.deepcopy(one) | {"image_id": number, "id": len(repeated.truth["annotations"]) + 1}
                    repeated.truth["annotations"].append(copies)
            repeated.results += [one | {"image_id": number} for one in scene.results if one["image_id"] == old]
    assert mean_over_classes(table).mean() == pytest.approx(
        evaluate_coco(repeated.truth, repeated.results)["AP"], abs=1e-12
    )


def test_average_precisions__undefined_without_objects() -> None:
    scene = random_scene(4)
    _, overlaps = read(scene)
    ranked = rank_all(overlaps, np.arange(1, 5), 3)[0][0]
    alone = np.diag(ranked.objects == 0).astype(np.int32)
    values = average_precisions(ranked, alone)
    assert (values == -1).all()
