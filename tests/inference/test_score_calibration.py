"""Calibrated scores: the map and its inverse, and that it changes scores and thresholds but no instance."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.inference.predictor import Predictor, load_network
from mask2former_dinov3.inference.score_calibration import UNCHANGED, ScoreCalibration
from mask2former_dinov3.inference.settings import InferenceSettings, Tta
from mask2former_dinov3.sample_data import SAMPLE

MAP = ScoreCalibration(1.5, -2.5)
IMAGE = sorted((SAMPLE / "valid").glob("*.png"))[0]


def test_score_calibration__rises_and_has_an_inverse() -> None:
    scores = np.linspace(0, 1, 1001)
    mapped = MAP.apply(scores)
    assert (mapped[0], mapped[-1]) == (0.0, 1.0)
    assert bool((np.diff(mapped) > 0).all())
    assert MAP.apply(0.9) == pytest.approx(1 / (1 + np.exp(-(1.5 * np.log(9) - 2.5))))
    np.testing.assert_allclose(MAP.undo(mapped), scores, atol=1e-12)
    np.testing.assert_allclose(
        MAP.then(ScoreCalibration(0.5, 1.0)).apply(0.3), ScoreCalibration(0.5, 1.0).apply(MAP.apply(0.3))
    )
    assert UNCHANGED.apply(scores) is scores
    assert MAP.then(UNCHANGED) == MAP == UNCHANGED.then(MAP)


def test_network_threshold__is_the_threshold_of_scores_before_the_map() -> None:
    assert InferenceSettings(0.3).network_threshold == 0.3
    least = InferenceSettings((0.3, 0.7), score_calibration=MAP).network_threshold
    np.testing.assert_allclose(MAP.apply(least), (0.3, 0.7), rtol=1e-5)
    assert bool((MAP.apply(least) < (0.3, 0.7)).all())  # no rounding leaves out what is at the threshold
    parts = InferenceSettings(0.3, score_calibration=MAP, copy_overlap=0.5).for_parts()
    assert (parts.score_calibration, parts.copy_overlap) == (UNCHANGED, 1.0)
    with pytest.raises(OptionError, match="in the order of the labels"):
        _ = InferenceSettings({"a": 0.5}).network_threshold


@pytest.mark.parametrize(("tile", "tta"), [(None, "none"), (96, "none"), (None, "horizontal"), (96, "horizontal")])
def test_predictor__calibrated_scores_are_those_of_the_network_after_the_map(tile: int | None, tta: Tta) -> None:
    network, processor = load_network(SAMPLE / "model", "cpu")
    predictor = Predictor(network, processor)
    image = np.array(Image.open(IMAGE).convert("RGB"))[:128, :160]
    found = predictor(image, threshold=0.02, tile=tile, tta=tta)
    network.config.score_calibration = list(MAP)
    least = float(MAP.apply(found.scores[len(found) // 2]).astype(np.float32))  # exactly the score of an instance
    mapped = predictor(image, threshold=least, tile=tile, tta=tta)
    assert len(mapped) == int((MAP.apply(found.scores).astype(np.float32) >= least).sum()) > 3
    np.testing.assert_array_equal(mapped.scores, MAP.apply(found.scores).astype(np.float32)[: len(mapped)])
    assert mapped.rles == found.rles[: len(mapped)]
    assert predictor(image, threshold=0.9999999, tile=tile, tta=tta).left_out.best_score == float(mapped.scores[0])
