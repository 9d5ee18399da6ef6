"""Errors by kind: equal to tidecv's, on scenes that hold every kind, crowd regions and empty images."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest

from mask2former_dinov3.evaluation import average_precision
from mask2former_dinov3.evaluation.average_precision import mean_over_classes
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.error_kinds import ERROR_KINDS, ErrorCost, classify_errors, error_costs
from mask2former_dinov3.evaluation.matches import match_overlaps, overlaps_of
from support.coco_reference import Scene, moved
from support.tide_reference import PINNED, SEEDS, by_tidecv, scene_with_errors

NAMES = {  # tidecv's -> ours
    "Cls": "class",
    "Loc": "localisation",
    "Both": "both",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
    "FalsePos": "false positives",
    "FalseNeg": "false negatives",
}
pinned = json.loads(PINNED.read_text(encoding="utf-8"))


def errors_of(scene: Scene, iou: float) -> tuple[float, dict[str, ErrorCost], dict[str, int]]:
    """AP at the IoU, the costs by kind, and the number of errors as tidecv counts them: with those in crowd regions."""
    truth = read_ground_truth(scene.truth)
    overlaps = overlaps_of(truth, read_results(scene.results, truth), 100)
    matches = match_overlaps(overlaps, iou)
    errors = classify_errors(overlaps, matches)
    aps, costs = error_costs(overlaps, matches, errors, len(truth.names))
    counts = {name: int((errors.kind == number).sum()) for number, name in enumerate(ERROR_KINDS)}
    counts["missed"] = int(errors.missed.sum())
    return float(mean_over_classes(aps)), {one.kind: one for one in costs}, counts


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", SEEDS)
def test_error_costs__equal_tidecv(seed: int, iou: float, monkeypatch: pytest.MonkeyPatch) -> None:
    # tidecv reads AP at k/100; COCO's recalls differ from these in the last bit.
    monkeypatch.setattr(average_precision, "RECALLS", np.array([k / 100 for k in range(101)]))
    expected = pinned[f"{seed} {iou}"]
    ap, costs, counts = errors_of(scene_with_errors(seed), iou)
    assert ap == pytest.approx(expected["AP"], abs=1e-12)
    assert {name: costs[NAMES[name]].cost for name in NAMES} == pytest.approx(expected["costs"], abs=1e-12)
    assert {name: counts[NAMES[name]] for name in expected["counts"]} == expected["counts"]
    assert all(expected["counts"].values()) or iou == 0.75


@pytest.mark.skipif(importlib.util.find_spec("tidecv") is None, reason="tidecv is not installed")
def test_pinned_numbers__are_those_of_tidecv() -> None:
    assert by_tidecv(scene_with_errors(0), 0.5) == pinned["0 0.5"]


def test_error_costs__start_from_the_ap50_of_the_metrics() -> None:
    scene = scene_with_errors(5)
    assert errors_of(scene, 0.5)[0] == pytest.approx(evaluate_coco(scene.truth, scene.results)["AP50"], abs=1e-12)


def test_error_costs__one_of_each_by_hand() -> None:
    """Two objects of class 1, one of class 7. Class 1: found at 0.9; at 0.8 a result on background. Class 7: its object
    is found as class 1 at 0.7. Class 1 has precision 1 up to recall 0.5, read at 51 of 101 recalls: AP 51/101; class 7
    has AP 0; class 90 has no object. Moved to class 7, the result at 0.7 gives it AP 1: the kind costs 1/2 of AP50. An
    object of class 1 is missed: without it, AP of class 1 is 1, a gain of 50/101, halved by the mean."""
    scene = Scene()
    scene.image(1)
    masks = [np.zeros((90, 120), bool) for _ in range(4)]
    for index, mask in enumerate(masks):
        mask[5:25, 5 + 28 * index : 25 + 28 * index] = True
    scene.annotate(1, 1, masks[0])
    scene.annotate(1, 1, masks[1])
    scene.annotate(1, 7, masks[2])
    scene.detect(1, 1, masks[0], 0.9)
    scene.detect(1, 1, masks[3], 0.8)
    scene.detect(1, 1, moved(masks[2], 1, 0), 0.7)
    ap, costs, counts = errors_of(scene, 0.5)
    assert ap == pytest.approx(51 / 101 / 2)
    assert counts == {"class": 1, "localisation": 0, "both": 0, "duplicate": 0, "background": 1, "missed": 1}
    assert costs["class"].cost == pytest.approx(0.5)
    assert costs["class"].per_class == pytest.approx({0: 0.0, 1: 1.0})
    assert costs["missed"].cost == pytest.approx(50 / 101 / 2)
    assert costs["background"].cost == 0.0


def test_error_costs__without_results_or_objects() -> None:
    scene = Scene()
    scene.image(1)
    assert errors_of(scene, 0.5)[0] == -1.0
    scene.annotate(1, 1, np.ones((90, 120), bool))
    ap, costs, counts = errors_of(scene, 0.5)
    assert ap == 0.0
    assert counts["missed"] == 1
    assert costs["missed"].cost == 0.0
