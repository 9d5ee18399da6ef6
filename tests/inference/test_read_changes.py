"""Flags of reading go before what is saved with a model: one function, for folders and ONNX files, in every verb."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.predictor import Predictor, load_model
from mask2former_dinov3.read_options import AS_SAVED, ReadChanges, ReadOptions


def test_read_changes__say_what_differs_in_one_line() -> None:
    saved = ReadOptions("0,4095", 2)
    changes = ReadChanges(value_range="percentile", page=2, channels="3,2,1")
    assert changes.apply(saved) == ReadOptions("percentile", 2, (3, 2, 1))
    assert changes.describe(saved) == (
        "images are read otherwise than saved with the model: value_range percentile instead of 0,4095, "
        "channels 3,2,1 instead of none"
    )
    assert AS_SAVED.describe(saved) == ""
    assert AS_SAVED.apply(saved) == saved
    for wrong in ({"value_range": "much"}, {"page": 0}, {"channels": "0"}):
        with pytest.raises(OptionError, match=next(iter(wrong))):
            ReadChanges(**wrong)


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """12 bits in a file of 16: a third of the model's images' brightness is lost unless the range is given."""
    grey = np.zeros((64, 96), np.float64)
    grey[20:40, 30:60] = 1
    path = tmp_path / "images" / "deep.tif"
    path.parent.mkdir()
    Image.fromarray(np.round(grey * 4095).astype(np.uint16)).save(path)
    return path


def test_from_pretrained__reads_as_asked(model_folder: Path, deep: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mask2former_dinov3"):
        given = Predictor.from_pretrained(model_folder, "cpu", value_range="0,4095")
    assert "value_range 0,4095 instead of full" in caplog.text
    expected = given(
        np.asarray(Image.open(deep)).astype(np.uint32).clip(0, 1)[:, :, None].repeat(3, 2).astype(np.uint8) * 255,
        threshold=0.0,
    )
    found = given(deep, threshold=0.0)
    np.testing.assert_array_equal(found.scores, expected.scores)
    as_saved = Predictor.from_pretrained(model_folder, "cpu")(deep, threshold=0.0)
    assert not np.array_equal(found.scores[: len(as_saved.scores)], as_saved.scores[: len(found.scores)])


def test_load_model__of_a_file_reads_as_asked(sample_file: Path) -> None:
    _, processor = load_model(sample_file, "cpu", ReadChanges(value_range="0,4095", page=3, channels=(2,)))
    assert processor.read_options == ReadOptions("0,4095", 3, (2,), image_scale="native")


def test_predict__takes_the_flags(
    model_folder: Path, deep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "flags"
    words = [
        "predict",
        str(deep),
        "--model",
        str(model_folder),
        "--threshold",
        "0",
        "--save",
        "coco",
        "--device",
        "cpu",
    ]
    assert main([*words, "--output", str(output), "--value-range", "0,4095"]) == 0
    folder = shutil.copytree(model_folder, tmp_path / "model")
    for name in ("config.json", "preprocessor_config.json"):
        stored = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stored | {"value_range": "0,4095"}))
    predict_files(folder, [deep], tmp_path / "saved", save=("coco",), device="cpu", settings=zero_threshold())
    assert (output / "predictions.json").read_text() == (tmp_path / "saved" / "predictions.json").read_text()
    assert main([*words, "--output", str(output), "--channels", "0"]) == 1
    assert "--channels: expected one channel" in capsys.readouterr().err


def zero_threshold() -> Any:
    from mask2former_dinov3.inference.settings import InferenceSettings

    return InferenceSettings(threshold=0.0)


def test_evaluate__checks_images_as_they_are_read(model_folder: Path, tmp_path: Path) -> None:
    """Floating point is refused without a range; the range of the flag holds in the check before, too."""
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    (tmp_path / "images").mkdir()
    Image.fromarray(values).save(tmp_path / "images" / "a.tif")
    truth = {
        "images": [{"id": 1, "file_name": "a.tif", "height": 64, "width": 64}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "segmentation": [[8, 8, 40, 8, 40, 40, 8, 40]], "iscrowd": 0}
            | {"area": 1024, "bbox": [8, 8, 32, 32]}
        ],
        "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "bar"}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    words = ["evaluate", "--model", str(model_folder), "--annotations", str(tmp_path / "truth.json"), "--device", "cpu"]
    words += ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    assert main(words) == 1
    assert main([*words, "--value-range", "0,1"]) == 0
    assert (tmp_path / "out" / "metrics.json").is_file()
