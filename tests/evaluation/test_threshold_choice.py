"""The operating point of an evaluation: what metrics.json says, what a model stores, what a person reads."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
import pytest

from mask2former_dinov3.data.coco_types import OperatingBlock
from mask2former_dinov3.evaluation.calibration_fit import calibrate_results, calibration_in
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.evaluation.coco_files import read_ground_truth, read_results
from mask2former_dinov3.evaluation.copy_choice import choose_copy_overlap
from mask2former_dinov3.evaluation.matches import match_overlaps, overlaps_of
from mask2former_dinov3.evaluation.operating_point import BEST_F1, Aim, best_point
from mask2former_dinov3.evaluation.score_curves import score_curve
from mask2former_dinov3.evaluation.threshold_choice import (
    NOT_STORED,
    choose_again,
    operating_block,
    operating_lines,
    stored_threshold,
    without_curves,
)
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.score_calibration import ScoreCalibration
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.sample_data import SAMPLE
from support.coco_reference import Scene, blob, moved


def scene_with_classes(copies: int = 0) -> Scene:
    """20 images; class 1 has many objects, class 7 few, class 90 none. copies: results that repeat others."""
    scene = Scene(0)
    for image in range(1, 21):
        scene.image(image)
        for category, count in ((1, 4), (7, 1 if image < 11 else 0)):
            for _ in range(count):
                mask = blob(scene.rng, 90, 120, 12)
                if not mask.any():
                    continue
                scene.annotate(image, category, mask)
                if scene.rng.random() < 0.8:
                    scene.detect(image, category, moved(mask, 1, 0), float(scene.rng.beta(5, 2)))
                for _ in range(copies):
                    scene.detect(image, category, mask & moved(mask, 4, 0), float(scene.rng.beta(5, 2)))
                wrong = blob(scene.rng, 90, 120, 9)
                if wrong.any():
                    scene.detect(image, category, wrong, float(scene.rng.beta(2, 4)))
    return scene


def block_of(scene: Scene, aim: Aim = BEST_F1) -> OperatingBlock:
    truth = read_ground_truth(scene.truth)
    return operating_block(truth, read_results(scene.results, truth), aim)


def test_operating_block__holds_the_counts_at_its_thresholds() -> None:
    scene = scene_with_classes()
    block = block_of(scene)
    truth = read_ground_truth(scene.truth)
    overlaps = overlaps_of(truth, read_results(scene.results, truth), 10_000)
    threshold = block["threshold"]
    assert threshold is not None
    for name, iou in (("0.50", 0.5), ("0.75", 0.75)):
        curve = score_curve(overlaps, match_overlaps(overlaps, iou))
        assert block["points"][name] == curve.at(threshold).to_json()
        assert block["default"][name] == curve.at(0.5).to_json()
        thin = block["curves"][name]
        assert len(thin["thresholds"]) <= 100
        for value, right, wrong in zip(*thin.values(), strict=True):
            assert (curve.at(value).right, curve.at(value).wrong) == (right, wrong)
    for low, high in block["intervals"].values():
        assert low <= high
    assert json.loads(json.dumps(block)) == block


def test_operating_block__a_class_with_few_objects_takes_the_threshold_of_all() -> None:
    block = block_of(scene_with_classes())
    many, few, none = (block["per_class"][name] for name in ("class 1", "class 7", "class 90"))
    assert many["own"]
    assert (few["own"], few["threshold"]) == (False, block["threshold"])
    assert few["why"] == f"{few['objects']} objects, fewer than 20"
    assert (none["own"], none["threshold"], none["objects"]) == (False, block["threshold"], 0)
    stored = stored_threshold(block)
    calibration = calibration_in(block["calibration"])
    assert block["calibration"]["helps"]
    assert not block["calibration"]["applied"]
    assert stored["score_threshold"] == {
        "class 1": float(calibration.apply(many["threshold"])),
        "class 7": float(calibration.apply(few["threshold"])),
        "class 90": float(calibration.apply(few["threshold"])),
    }
    assert stored["score_calibration"] == list(calibration)
    unknown = stored_threshold(block, None)  # nothing may follow a calibration that is not known
    assert unknown["score_calibration"] is None
    assert unknown["score_threshold"] == {name: one["threshold"] for name, one in block["per_class"].items()}
    earlier = stored_threshold(block, ScoreCalibration(2.0, 0.5))
    assert earlier["score_threshold"] == stored["score_threshold"]
    assert earlier["score_calibration"] == pytest.approx(ScoreCalibration(2.0, 0.5).then(calibration), abs=1e-6)
    assert stored["copy_overlap"] is None
    source = stored["score_threshold_source"]
    assert source is not None
    assert {**source, "date": ""} == {"metric": "best F1", "iou": 0.5, "data": "annotations", "images": 20, "date": ""}
    text = "\n".join(operating_lines(block))
    assert f"score threshold {block['threshold']:g}, best F1 at IoU 0.5: precision " in text
    assert f"by class: class 1 {many['threshold']:g}" in text
    assert f"with the threshold of all: class 7 ({few['why']}), class 90 (0 objects, fewer than 20)" in text


def test_operating_block__with_calibrated_scores_the_thresholds_are_theirs() -> None:
    plain = block_of(scene_with_classes())
    scene = scene_with_classes()
    truth = read_ground_truth(scene.truth)
    block = operating_block(truth, read_results(scene.results, truth), calibrate=True)
    calibration = calibration_in(block["calibration"])
    assert block["calibration"] == {**plain["calibration"], "applied": True}
    assert block["points"] == plain["points"]
    assert block["threshold"] == pytest.approx(float(calibration.apply(plain["threshold"] or 0)), abs=0.01)  # rounded
    stored = stored_threshold(block)
    assert isinstance(stored["score_threshold"], dict)
    assert stored["score_threshold"]["class 7"] == block["threshold"]
    assert stored["score_calibration"] == list(calibration)
    assert "scores are calibrated, and so are the thresholds" in "\n".join(operating_lines(block))
    assert "calibrated scores would be better" in "\n".join(operating_lines(plain))
    results: Any = scene.results
    scene.results = cast("list[dict[str, Any]]", calibrate_results(results, block["calibration"]))
    again = block_of(scene)
    assert (again["points"], again["default"]) == (block["points"], block["default"])
    assert not again["calibration"]["helps"]  # there is nothing left to do


def test_operating_block__without_a_right_result_there_is_no_threshold() -> None:
    scene = scene_with_classes()
    scene.results.clear()
    block = block_of(scene)
    assert block["threshold"] is None
    assert stored_threshold(block) == NOT_STORED
    assert operating_lines(block) == ["operating point: none, no result finds an object"]
    assert choose_again(block, Aim(target_recall=0.5))["threshold"] is None


def test_operating_block__a_target_out_of_reach_is_said() -> None:
    block = block_of(scene_with_classes(), Aim(target_recall=0.999))
    assert not block["reached"]
    best = block["points"]["0.50"]["recall"]
    assert f"recall {best:.3f}" in operating_lines(block)[0]
    assert "note: a recall of at least 0.999 is not reached at any threshold; the nearest is shown" in operating_lines(
        block
    )


@pytest.mark.parametrize("aim", [Aim(target_precision=0.9), Aim(target_recall=0.6), Aim(cost_fp=1, cost_fn=5)])
def test_choose_again__is_near_the_choice_on_all_scores(aim: Aim) -> None:
    scene = scene_with_classes()
    again, first = choose_again(block_of(scene), aim), block_of(scene, aim)
    assert again["aim"] == first["aim"] == aim.text
    assert again["reached"] == first["reached"]
    for name in ("precision", "recall"):
        mine, other = (dict(one["points"]["0.50"]) for one in (again, first))
        assert mine[name] == pytest.approx(other[name], abs=0.05)
    assert again["per_class"].keys() == first["per_class"].keys()
    assert again["per_class"]["class 7"]["threshold"] == again["threshold"]


def test_choose_copy_overlap__is_off_without_copies_and_on_with_many() -> None:
    plain, doubled = scene_with_classes(), scene_with_classes(copies=1)
    assert block_of(plain)["copies"]["overlap"] is None
    block = block_of(doubled)
    assert block["copies"]["overlap"] is not None
    assert block["copies"]["gain_interval"][0] > 0
    assert block["copies"]["dropped"] > 10
    truth = read_ground_truth(doubled.truth)
    results = read_results(doubled.results, truth)
    overlaps = overlaps_of(truth, results, 10_000)
    choice = choose_copy_overlap(overlaps, results)
    before, after = (best_point(score_curve(one, match_overlaps(one, 0.5))) for one in (overlaps, choice.overlaps))
    assert before is not None
    assert after is not None
    assert after.f1 - before.f1 == pytest.approx(choice.gain)
    threshold = block["threshold"]
    assert threshold is not None
    assert (
        block["points"]["0.50"]
        == score_curve(choice.overlaps, match_overlaps(choice.overlaps, 0.5)).at(threshold).to_json()
    )
    assert any("copies: dropped where more than" in line for line in operating_lines(block))


def test_evaluate_coco__counts_results_beyond_the_limit_of_coco_for_the_operating_point() -> None:
    scene = scene_with_classes()
    few, many = (evaluate_coco(scene.truth, scene.results, max_detections=limit) for limit in (1, 100))
    assert few["AP"] < many["AP"]
    assert few["operating_point"] == many["operating_point"]
    short = without_curves(few["operating_point"])
    assert short["curves"] == short["per_class"]["class 1"]["curves"] == {}
    assert few["operating_point"]["curves"]


def test_operating_block__a_threshold_holds_on_images_that_were_held_back() -> None:
    """The bundled model on its sample: chosen on every other image, F1 on the others is higher than at 0.5."""
    file = SAMPLE / "valid" / "_annotations.coco.json"
    content: dict[str, Any] = json.loads(file.read_text())
    predictor = Predictor.from_pretrained(SAMPLE / "model", "cpu")
    results: list[dict[str, Any]] = []
    for image in content["images"]:
        found = predictor(file.parent / image["file_name"], threshold=0.02)
        ids = {name["name"]: name["id"] for name in content["categories"]}
        results += [
            {**one, "category_id": ids[name]} for one, name in zip(found.to_coco(image["id"]), found.names, strict=True)
        ]
    images = sorted(image["id"] for image in content["images"])
    chosen, held_back = (
        evaluate_coco(content, [one for one in results if one["image_id"] in half], image_ids=half)["operating_point"]
        for half in (images[::2], images[1::2])
    )
    assert chosen["threshold"] is not None
    assert chosen["images"] == len(images[::2])
    thresholds = held_back["curves"]["0.50"]
    place = int(np.searchsorted(-np.array(thresholds["thresholds"]), -chosen["threshold"]))
    right, wrong = thresholds["right"][place], thresholds["wrong"][place]
    f1 = 2 * right / (right + wrong + held_back["objects"])
    assert f1 > held_back["default"]["0.50"]["f1"] + 0.01
    assert InferenceSettings(chosen["threshold"]).for_model(predictor.model.config).threshold == chosen["threshold"]
