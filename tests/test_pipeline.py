"""Both tasks of transformers' `pipeline`: ours with every instance whole, and the stock one with one segment map."""

from __future__ import annotations

import base64
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForUniversalSegmentation, pipeline
from transformers.utils import logging as transformers_logging

from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.model import Mask2FormerDinov3Config, Mask2FormerDinov3ForInstanceSegmentation
from mask2former_dinov3.pipeline import InstanceSegmentationPipeline
from mask2former_dinov3.sample_data import SAMPLE

CROWDED = str(SAMPLE / "valid" / "777f7c4269279951.png")  # nuclei that touch and lie over each other


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled trained model for whole images, as the stock pipeline takes them, on a canvas with padding."""
    folder = tmp_path_factory.mktemp("fitted") / "model"
    shutil.copytree(SAMPLE / "model", folder)
    for name, changes in (
        ("config.json", {"image_scale": "fit", "copy_overlap": None}),
        ("preprocessor_config.json", {"image_scale": "fit", "size": {"height": 384, "width": 512}}),
    ):
        stored = json.loads((folder / name).read_text(encoding="utf-8"))
        assert changes.keys() <= stored.keys()
        (folder / name).write_text(json.dumps(stored | changes), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def nuclei(fitted: Path) -> InstanceSegmentationPipeline:
    found: InstanceSegmentationPipeline = pipeline("instance-segmentation", model=fitted, device="cpu")
    return found


@pytest.fixture(scope="module")
def predictor(fitted: Path) -> Predictor:
    return Predictor.from_pretrained(fitted, "cpu")


def masks_of(found: list[dict[str, Any]]) -> NDArray[np.bool_]:
    return np.stack([np.asarray(one["mask"]) == 255 for one in found])


def assert_equal(found: list[dict[str, Any]], expected: Instances) -> None:
    assert len(found) == len(expected) > 0
    assert [one["score"] for one in found] == expected.scores.tolist()
    assert [one["label"] for one in found] == expected.names
    assert [list(one["box"].values()) for one in found] == expected.boxes.tolist()
    assert set(found[0]["box"]) == {"xmin", "ymin", "xmax", "ymax"}
    assert all(one["mask"].mode == "L" for one in found)
    assert np.array_equal(masks_of(found), expected.masks)


def test_auto_classes__read_a_folder_that_training_left(model_folder: Path) -> None:
    assert type(AutoConfig.from_pretrained(model_folder)) is Mask2FormerDinov3Config
    assert type(AutoImageProcessor.from_pretrained(model_folder)) is Mask2FormerDinov3ImageProcessor
    model = AutoModelForUniversalSegmentation.from_pretrained(model_folder)
    assert type(model) is Mask2FormerDinov3ForInstanceSegmentation


def test_pipeline__keeps_overlaps_that_one_segment_map_loses(
    nuclei: InstanceSegmentationPipeline, predictor: Predictor
) -> None:
    assert isinstance(nuclei, InstanceSegmentationPipeline)
    every = nuclei.model.config.num_queries  # the stock pipeline has no limit
    expected = predictor(CROWDED, threshold=0.3, max_detections=every)
    found = nuclei(CROWDED, threshold=0.3, max_detections=every)
    assert_equal(found, expected)
    covered = masks_of(found).sum(0)
    assert (covered > 1).sum() > 100  # pixels of more than one nucleus

    stock = pipeline("image-segmentation", model=nuclei.model, image_processor=nuclei.image_processor, device="cpu")
    one_map = stock(CROWDED, subtask="instance", threshold=0.3, overlap_mask_area_threshold=0.0)
    assert masks_of(one_map).sum(0).max() == 1
    assert np.array_equal(masks_of(one_map).any(0), covered > 0)  # the same pixels, each given to one nucleus alone
    assert sum(mask.sum() for mask in masks_of(one_map)) < expected.areas.sum()


def test_stock_pipeline__loads_the_folder_and_leaves_out_the_padding(
    fitted: Path, predictor: Predictor, caplog: pytest.LogCaptureFixture
) -> None:
    transformers_logging.enable_propagation()
    stock = pipeline("image-segmentation", model=str(fitted), subtask="instance", device="cpu")
    transformers_logging.disable_propagation()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert type(stock.model) is Mask2FormerDinov3ForInstanceSegmentation
    with Image.open(CROWDED) as image:
        found = stock(image, threshold=0.5, overlap_mask_area_threshold=0.0)
    expected = predictor(CROWDED, threshold=0.5, max_detections=stock.model.config.num_queries)
    assert {one["label"] for one in found} == {"nucleus"}
    assert found[0]["mask"].size == (expected.width, expected.height)
    assert np.array_equal(masks_of(found)[0], expected.mask(0))  # nothing lies over the best one
    assert len(found) > 20
    assert {one["score"] for one in found} <= {round(float(score), 6) for score in expected.scores}
    batch = stock([CROWDED, CROWDED, CROWDED], threshold=0.5, batch_size=2)
    assert len(batch) == 3
    assert masks_of(batch[2]).shape[1:] == (expected.height, expected.width)


def test_pipeline__takes_paths_pil_images_arrays_and_batches(model_folder: Path, toy_dataset: Path) -> None:
    tiny = pipeline("instance-segmentation", model=str(model_folder), device="cpu", threshold=0.0, max_detections=9)
    paths = sorted((toy_dataset / "train").glob("*.png"))[:3]
    predictor = Predictor.from_pretrained(model_folder, "cpu")
    expected = predictor(paths, threshold=0.0, max_detections=9, batch_size=2)
    assert {(one.height, one.width) for one in expected} == {(72, 64), (64, 80)}
    images: list[Image.Image] = [Image.open(path) for path in paths]
    arrays = [np.asarray(image.convert("RGB")) for image in images]
    mixed = [str(paths[0]), images[1], arrays[2]]
    for given in (paths, images, arrays, mixed, (path for path in paths)):
        for found, instances in zip(tiny(given, batch_size=2), expected, strict=True):
            assert_equal(found, instances)
    for single in (paths[0], str(paths[0]), images[0], arrays[0]):
        assert_equal(tiny(single), predictor(paths[0], threshold=0.0, max_detections=9))
    for image in images:
        image.close()


def test_pipeline__takes_images_as_text(model_folder: Path, toy_dataset: Path) -> None:
    tiny = pipeline("instance-segmentation", model=str(model_folder), device="cpu", threshold=0.0, max_detections=3)
    path = min((toy_dataset / "train").glob("*.png"))
    expected = [one["score"] for one in tiny(str(path))]
    text = base64.b64encode(path.read_bytes()).decode()
    for given in (text, f"data:image/png;base64,{text}", path.read_bytes()):
        assert [one["score"] for one in tiny(given)] == expected
    # Port 9 of this machine: nobody listens there.
    with pytest.raises(DatasetError, match=r"http://127\.0\.0\.1:9/a\.png: expected an"):
        tiny("http://127.0.0.1:9/a.png", timeout=5)


def test_stock_pipeline__takes_half_precision_and_a_mask_threshold_of_0(model_folder: Path, toy_dataset: Path) -> None:
    """As transformers' own pipeline tests call it."""
    stock = pipeline("image-segmentation", model=str(model_folder), device="cpu", dtype=torch.bfloat16)
    found = stock(str(min((toy_dataset / "train").glob("*.png"))), subtask="instance", threshold=0.0, mask_threshold=0)
    assert len(found) == 1  # the best covers every pixel


def test_pipeline__arguments_at_construction_hold_for_every_call(model_folder: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    found = pipeline("instance-segmentation", model=str(model_folder), device="cpu", threshold=0.0, max_detections=3)
    assert_equal(found(rgb), Predictor.from_pretrained(model_folder, "cpu")(rgb, threshold=0.0, max_detections=3))
    assert len(found(rgb, max_detections=1)) == 1
    assert found(rgb, threshold=1.0) == []


def test_pipeline__says_what_it_cannot_take(nuclei: InstanceSegmentationPipeline, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected threshold, max_detections, copy_overlap, timeout, got subtask"):
        nuclei(CROWDED, subtask="instance")
    for settings, told in (
        ({"threshold": 5}, "threshold: expected a score from 0 to 1, got 5"),
        ({"threshold": float("nan")}, "threshold: expected a score from 0 to 1, got nan"),
        ({"max_detections": 0}, "max_detections: expected a whole number above 0, got 0"),
    ):
        with pytest.raises(OptionError, match=f"^{told}$"):
            nuclei(CROWDED, **settings)
    with pytest.raises(OptionError, match="image: expected values of uint8, uint16 or floating point, got int64"):
        nuclei(np.zeros((4, 4, 3), np.int64))
    with pytest.raises(OptionError, match="timeout: expected a number of seconds above 0, got 0"):
        nuclei(CROWDED, timeout=0)
    with pytest.raises(ValueError, match="got tuple"):
        nuclei((CROWDED, CROWDED))
    with pytest.raises(DatasetError, match="no such file"):
        nuclei(str(tmp_path / "none.png"))


def test_pipeline__saves_a_folder_that_loads_again(nuclei: InstanceSegmentationPipeline, tmp_path: Path) -> None:
    nuclei.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    again = pipeline("instance-segmentation", model=str(tmp_path), device="cpu")
    first, second = (one(CROWDED) for one in (nuclei, again))
    assert [one["score"] for one in first] == [one["score"] for one in second]
