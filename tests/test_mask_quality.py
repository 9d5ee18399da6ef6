"""The experiment on ranking: its results are those of `predict`, and each ranking is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.bootstrap import weighted_metrics
from mask2former_dinov3.evaluation.evaluate import predict_split
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.inference.views import MIRRORED, Turn
from mask2former_dinov3.model import Mask2FormerDinov3Config
from mask2former_dinov3.model.criterion.loss import Mask2FormerCriterion


@pytest.fixture
def quality(script: Any) -> Any:
    return script("mask_quality")


def test_rank__has_the_results_of_predict(model_folder: Path, toy_dataset: Path, quality: Any) -> None:
    network, processor = load_network(model_folder, "cpu")
    data = read_coco(find_splits(toy_dataset)[0]["valid"])
    ranked = quality.rank(Predictor(network, processor), data, Turn())
    expected = predict_split(network, processor, data, max_detections=network.config.num_queries)
    assert sorted(ranked.overlaps.score) == pytest.approx(sorted(one["score"] for one in expected), abs=1e-6)
    assert ranked.probability * ranked.certainty == pytest.approx(ranked.overlaps.score)
    assert len(ranked.features) == len(expected)
    assert ranked.left_out == 0
    assert (ranked.found_iou <= ranked.best_iou + 1e-12).all()
    # A mirrored view has results on the image itself: about the same masks, at other scores.
    mirrored = quality.rank(Predictor(network, processor), data, MIRRORED)
    assert mirrored.overlaps.result_area.mean() == pytest.approx(ranked.overlaps.result_area.mean(), rel=0.3)

    same = quality.rescore(ranked.overlaps, ranked.overlaps.score)
    best = quality.rescore(ranked.overlaps, ranked.found_iou)
    ones = np.ones((1, len(ranked.images)), np.int32)
    values = [weighted_metrics(one, ranked.images, 2, ones)[0]["AP"][0] for one in (ranked.overlaps, same, best)]
    assert values[0] == values[1] <= values[2]
    assert sorted(best.pair_iou) == sorted(same.pair_iou)


def test_fit_quality__predicts_what_features_tell(quality: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(3000, 5, generator=rng)
    target = (features[:, 0] * 2).sigmoid()
    head = quality.fit_quality(features[:2000], target[:2000])
    found = quality.apply(head, features[2000:])
    assert np.abs(found - target[2000:].numpy()).mean() < 0.06


def test_iou_aware_criterion__is_the_published_one_where_masks_are_perfect(quality: Any) -> None:
    config = Mask2FormerDinov3Config.preset("tiny", num_labels=3, num_queries=5)
    torch.manual_seed(0)
    logits = torch.randn(2, 1, 5, 4)
    labels = [torch.tensor([2, 0])]
    matches = [[(torch.tensor([1, 3]), torch.tensor([0, 1]))]] * 2
    published = Mask2FormerCriterion(config).class_losses(logits, labels, matches)
    aware = quality.IouAwareCriterion(config)
    aware.quality = torch.ones(4)
    assert torch.allclose(aware.class_losses(logits, labels, matches), published)
    aware.quality = torch.tensor([0.25, 1.0, 1.0, 1.0])
    row = logits[0, 0, 1].log_softmax(-1)  # of the class 2, or no object
    expected = published + torch.stack([0.75 * (row[2] - row[3]), torch.tensor(0.0)])
    assert torch.allclose(aware.class_losses(logits, labels, matches), expected)


def test_pair_iou__by_hand(quality: Any) -> None:
    features = torch.ones(1, 4, 4)
    features[0, :, 2:] = -1  # the mask is the left half
    masks = torch.zeros(2, 8, 8, dtype=torch.uint8)
    masks[1, :4] = 1  # the upper half
    found = quality.pair_iou(torch.ones(3, 1), features, masks, torch.tensor([2]), torch.tensor([1]))
    assert found.tolist() == pytest.approx([4 / 12])


def test_main__tunes_a_model_and_leaves_a_row_for_each_ranking(
    model_folder: Path, toy_dataset: Path, tmp_path: Path, quality: Any
) -> None:
    rows, tuned = tmp_path / "rows.json", tmp_path / "tuned"
    sizes = {"image_height": 64, "image_width": 64, "per_device_train_batch_size": 2, "dataloader_num_workers": 0}
    (tmp_path / "recipe.json").write_text(json.dumps(sizes | {"backbone": "tiny", "freeze_backbone": False}))
    words = [str(model_folder), str(tuned), "--data", str(toy_dataset), "--images", "2", "--iou-aware"]
    quality.main(["tune", *words, "--config", str(tmp_path / "recipe.json"), "--set", "num_warmup_steps=0"])
    quality.main(["head", str(tuned), "--data", str(toy_dataset), "--views", "horizontal", "--output", str(rows)])
    content = json.loads(rows.read_text())
    assert len(content["rows"]) == 9
    own = content["rows"][0]
    assert (own["gain"], own["images"], own["fit_images"]) == (0, 4, 6)
    for row in content["rows"]:
        assert 0 <= row["AP"] <= row["AP50"] <= 1
        assert row["gain_low"] <= row["gain_high"]
    assert str(tmp_path) not in rows.read_text()
