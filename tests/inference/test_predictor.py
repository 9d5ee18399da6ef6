"""Prediction: one image or many, memory or files, and what happens when something cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import CheckpointError
from mask2former_dinov3.inference.predictor import Predictor, load_model, usable_device
from mask2former_dinov3.instances import Instances


@pytest.fixture(scope="module")
def predictor(model_folder: Path) -> Predictor:
    return Predictor.from_pretrained(model_folder, "cpu")


def picture(seed: int = 0, height: int = 40, width: int = 60) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_same(one: Instances, other: Instances) -> None:
    """Sums in a batch and alone differ in the last bits, which may move a pixel on an edge."""
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    assert (one.masks != other.masks).mean() < 1e-3


def test_predictor__gives_instances_at_the_images_own_size(predictor: Predictor) -> None:
    found = predictor(picture(), threshold=0.0)
    assert isinstance(found, Instances)
    assert (found.height, found.width) == (40, 60)
    assert len(found) > 0
    assert found.categories == ((3, "disc"), (7, "bar"))
    assert (np.diff(found.scores) <= 0).all()
    assert len(predictor(picture(), threshold=0.0, max_detections=3)) <= 3
    assert (predictor(picture(), threshold=0.2).scores >= 0.2).all()


def test_predictor__takes_one_image_or_a_list_of_any_kind(predictor: Predictor, tmp_path: Path) -> None:
    rgb = picture()
    Image.fromarray(rgb).save(tmp_path / "a.png")
    alone = predictor(rgb, threshold=0.0)
    several = predictor(
        [rgb, tmp_path / "a.png", Image.fromarray(rgb), picture(1, 90, 30)], threshold=0.0, batch_size=3
    )
    assert [(one.height, one.width) for one in several] == [(40, 60)] * 3 + [(90, 30)]
    for one in several[:3]:
        assert_same(one, alone)
    (only,) = predictor([rgb], threshold=0.0)
    assert_same(only, alone)
    assert predictor([]) == []


def test_load_model__says_why_not(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json and no preprocessor_config\.json"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="expected a model folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="taken for a hub id"):
        load_model("nobody/nothing")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(CheckpointError, match=r"config\.json says 'swin'"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        load_model(tmp_path)


def test_load_model__refuses_weights_of_another_network(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in ("config.json", "preprocessor_config.json"):
        (tmp_path / file).write_text((model_folder / file).read_text())
    weights = load_file(model_folder / "model.safetensors")
    removed = next(key for key in weights if key.startswith("head"))
    save_file({key: value for key, value in weights.items() if key != removed}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=removed.replace(".", r"\.")):
        load_model(tmp_path)


@pytest.mark.parametrize("device", ["foo", "cuda:99"])
def test_usable_device__names_what_is_not_there(device: str) -> None:
    with pytest.raises(ValueError, match=f"device: {device} cannot be used here"):
        usable_device(device)


@pytest.mark.parametrize(("name", "content"), [("config.json", "[]"), ("preprocessor_config.json", "[1]")])
def test_load_model__explains_a_broken_folder(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mask2former_dinov3"}')
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        load_model(tmp_path, "cpu")


def test_predictor__finds_the_same_in_one_tile_as_without(predictor: Predictor) -> None:
    alone = predictor(picture(), threshold=0.0)
    tiled = predictor([picture(), picture()], threshold=0.0, tile=60)
    for one in tiled:
        assert one.rles == alone.rles
        assert one.scores.tolist() == alone.scores.tolist()
        assert one.categories == alone.categories
    larger = predictor(picture(0, 100, 130), threshold=0.0, tile=64, overlap=0.3, batch_size=4)
    assert (larger.height, larger.width) == (100, 130)
    assert len(larger) > 0
    with pytest.raises(ValueError, match="tile: expected at least 32 pixels, got 8"):
        predictor(picture(), tile=8)
