"""An exported file of five channels: checked on images of five channels, and predicts what the model predicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mask2former_dinov3.cli import main
from mask2former_dinov3.inference.predictor import Predictor
from support.channels import SIDE, bands_of, wide_model, write_bands


@pytest.mark.timeout(900)  # a trace is half a minute of CPU time
def test_export__makes_a_file_of_five_channels(tmp_path: Path) -> None:
    model, images = wide_model(tmp_path / "model", 5), tmp_path / "images"
    images.mkdir()
    path = write_bands(images / "a.tif", bands_of(np.ones(SIDE, bool), np.random.default_rng(0)))
    words = ["export", "--model", str(model), "--output", str(tmp_path / "m.onnx")]
    assert main(words) == 1  # the bundled images have three
    assert main([*words, "--images", str(images)]) == 0
    exported, own = Predictor.from_pretrained(tmp_path / "m.onnx", "cpu"), Predictor.from_pretrained(model, "cpu")
    assert exported.model.config.num_channels == 5
    assert exported.processor.to_dict() == own.processor.to_dict()
    found, expected = exported(path, threshold=0.0), own(path, threshold=0.0)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    assert (found.masks != expected.masks).mean() < 0.01
