"""Images at their own scale in use: how they are cut, the same instances whole and in tiles, saved with the model."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from faster_coco_eval.core import mask as mask_api
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import CheckpointError, OptionError
from mask2former_dinov3.evaluation.evaluate import predict_split
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.onnx_model import OnnxConfig, OnnxModel
from mask2former_dinov3.inference.predictor import Predictor, load_model
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Passes
from mask2former_dinov3.read_options import ReadChanges, ReadOptions
from mask2former_dinov3.sample_data import SAMPLE

CANVAS = {"height": 96, "width": 128}


def processor(scale: str | float) -> Mask2FormerDinov3ImageProcessor:
    return Mask2FormerDinov3ImageProcessor(CANVAS, image_scale=scale)


@pytest.mark.parametrize(
    ("given", "kept"), [("fit", "fit"), ("native", "native"), (1, "native"), ("2.0", 2.0), (" Native", "native")]
)
def test_image_scale__is_a_word_or_a_factor(given: Any, kept: str | float) -> None:
    assert ReadOptions(image_scale=given).image_scale == kept
    assert ReadChanges(image_scale=given).apply(ReadOptions()).image_scale == kept


@pytest.mark.parametrize("given", ["", "auto", 0, -1, "nan", float("inf"), 17, True, [2.0]])
def test_image_scale__refuses_others(given: Any) -> None:
    message = 'image_scale: expected "fit", "native", or a factor above 0, at most 16, such as 2.0, got '
    for make in (ReadOptions, ReadChanges):
        with pytest.raises(OptionError, match=message):
            make(image_scale=given)


def sides(scale: str | float, height: int, width: int, tile: int | None = None, most: float = float("inf")) -> Any:
    """Number of tiles, and the (height, width) of each."""
    settings = InferenceSettings(tile=tile)
    grid = Passes.of(CANVAS, ReadOptions(image_scale=scale), settings, most).grid(height, width)
    return grid.number_of_tiles, (grid.tile_height, grid.tile_width)


def test_passes__cut_at_the_canvas_or_where_they_are_asked_to() -> None:
    assert sides("fit", 3000, 10) == (1, (3000, 10))
    assert sides("fit", 300, 10, tile=100) == (4, (100, 10))
    assert sides("native", 96, 128) == (1, (96, 128))
    assert sides("native", 97, 128) == (2, (96, 128))
    assert sides("native", 96, 500, tile=500) == (1, (96, 500))
    assert sides(2.0, 48, 64) == (1, (48, 64))
    assert sides(2.0, 48, 65) == (2, (48, 64))
    assert sides(0.5, 192, 257) == (2, (192, 256))
    assert sides("native", 96, 128, tile=96, most=1.0) == (2, (96, 96))
    with pytest.raises(OptionError, match=r"tile: expected at most 48 pixels, got 49; a pass has at most 1 canvases"):
        sides(2.0, 10, 10, tile=49, most=1.0)


@pytest.mark.parametrize(
    ("scale", "size", "tensor"),
    [
        ("native", (20, 30), (96, 128)),
        ("native", (100, 30), (128, 128)),
        (2.0, (60, 70), (128, 160)),
        ("fit", (60, 70), (96, 128)),
    ],
)
def test_processor__keeps_the_scale(scale: str | float, size: tuple[int, int], tensor: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    prepared = processor(scale).prepare(image)
    assert prepared.values.shape == (3, *tensor)
    assert prepared.original_size == size
    if scale == "native":
        real = processor(scale).prepare(image).values[:, : size[0], : size[1]]
        mean, std = (
            np.array(values)[:, None, None] for values in (processor(scale).image_mean, processor(scale).image_std)
        )
        np.testing.assert_allclose(real * std + mean, image.transpose(2, 0, 1) / 255, atol=1e-6)


def test_processor__pads_images_of_several_sizes_to_the_largest() -> None:
    batch = processor("native")([np.zeros((100, 30, 3), np.uint8), np.zeros((20, 200, 3), np.uint8)])
    assert batch["pixel_values"].shape == (2, 3, 128, 224)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [100 * 30, 20 * 200]


def with_scale(folder: Path, scale: object, file: str) -> None:
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, "image_scale": scale}))


def test_folder__keeps_the_scale_which_a_flag_replaces(model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    for file in ("config.json", "preprocessor_config.json"):
        with_scale(folder, 2.0, file)
    model, saved = load_model(folder, "cpu")
    assert (saved.image_scale, saved.read_options.factor, vars(model.config)["image_scale"]) == (2.0, 2.0, 2.0)
    saved.save_pretrained(tmp_path / "again")
    assert Mask2FormerDinov3ImageProcessor.from_pretrained(tmp_path / "again").image_scale == 2.0
    assert Predictor.from_pretrained(folder, "cpu", image_scale="native").processor.image_scale == "native"
    with_scale(folder, "fit", "config.json")
    with pytest.raises(
        CheckpointError, match=r"config\.json: expected image_scale 2\.0 as in preprocessor_config\.json, got 'fit'"
    ):
        load_model(folder, "cpu")
    with_scale(folder, "huge", "preprocessor_config.json")
    with pytest.raises(CheckpointError, match=r'preprocessor_config\.json: image_scale: expected "fit", "native"'):
        load_model(folder, "cpu")


def test_onnx__cuts_into_tiles_of_its_size(sample_file: Path) -> None:
    predictor = Predictor.from_pretrained(sample_file, "cpu", image_scale="native")
    assert isinstance(predictor.model, OnnxModel)
    side = predictor.model.metadata.canvas[0]
    assert predictor.model.metadata.image_scale == "native"
    assert replace(predictor.model.metadata, image_scale=2.0).processor().image_scale == 2.0
    image = np.random.default_rng(0).integers(0, 255, (side + 8, side, 3), dtype=np.uint8)
    found = predictor(image, threshold=0.0)
    tiles = [predictor.processor.prepare(image[at : at + side]) for at in (0, 8)]
    assert len(found) <= sum(map(len, predictor.predict_prepared(tiles, InferenceSettings(0.0))))
    assert (found.height, found.width) == (side + 8, side)
    with pytest.raises(OptionError, match=f"tile: expected at most {side} pixels, got {side + 1}"):
        predictor(image, tile=side + 1)


class BlobNetwork(nn.Module):
    """Finds the bright blobs of what it is shown, each with one query: the same in every part of an image."""

    device = torch.device("cpu")

    def __init__(self, queries: int = 60) -> None:
        super().__init__()
        self.config = OnnxConfig({0: "nucleus"}, [1], num_labels=1, num_queries=queries, mask_stride=1)
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor) -> SimpleNamespace:
        self.sizes.append(tuple(pixel_values.shape))
        classes = torch.full((len(pixel_values), self.config.num_queries, 2), -9.0)
        masks = torch.full((*classes.shape[:2], *pixel_values.shape[2:]), -9.0)
        for image, (values, real) in enumerate(zip(pixel_values, pixel_mask, strict=True)):
            bright = (values.mean(0) > -1.6) & real  # brighter than 22 of 255
            count, numbers = cv2.connectedComponents(bright.numpy().astype(np.uint8), connectivity=4)
            areas = np.bincount(numbers.ravel(), minlength=count)[1:]
            for query, number in enumerate(np.argsort(-areas, kind="stable")[: self.config.num_queries].tolist()):
                if areas[number] >= 20:
                    masks[image, query][torch.from_numpy(numbers == number + 1)] = 9.0
                    classes[image, query, 0] = 9.0
        return SimpleNamespace(class_queries_logits=classes, masks_queries_logits=masks)


def mosaic(rows: int, columns: int) -> NDArray[np.uint8]:
    """Corners of bundled images of bright nuclei on a dark ground, side by side."""
    pictures = [read_image(path)[:240, :240] for path in sorted((SAMPLE / "valid").glob("*.png"))]
    corners = [one for one in pictures if one.mean() < 50][: rows * columns]
    assert [one.shape for one in corners] == [(240, 240, 3)] * (rows * columns)
    return np.concatenate([np.concatenate(corners[row * columns :][:columns], axis=1) for row in range(rows)])


@pytest.mark.parametrize("scale", ["native", 0.5])
def test_predictor__finds_the_same_whole_and_in_tiles(scale: str | float) -> None:
    image = mosaic(2, 3)
    network = BlobNetwork()
    predictor = Predictor(network, Mask2FormerDinov3ImageProcessor({"height": 256, "width": 256}, image_scale=scale))
    tiled = predictor(image, threshold=0.5)
    assert set(network.sizes) == {(1, 3, 256, 256)}
    whole = Predictor(BlobNetwork(400), predictor.processor)(image, tile=720, threshold=0.5)
    assert len(whole) > 40
    for one, other in ((whole, tiled), (tiled, whole)):
        best = mask_api.iou(list(one.rles), list(other.rles), [0] * len(other)).max(1)
        assert (best >= 0.95).mean() >= 0.99, np.sort(best)[:5]


def test_predictor__runs_images_of_each_size_on_their_own() -> None:
    """What is found in an image depends on no other image of its batch: none is padded for another one."""
    images = [mosaic(1, 2)[:height, :width] for height, width in ((200, 240), (240, 400), (200, 230), (240, 440))]
    network = BlobNetwork()
    predictor = Predictor(network, Mask2FormerDinov3ImageProcessor({"height": 256, "width": 256}, image_scale="native"))
    alone = [predictor(image, threshold=0.3, tile=480) for image in images]
    network.sizes.clear()
    together = predictor(images, threshold=0.3, tile=480, batch_size=3)
    assert network.sizes == [(2, 3, 256, 256), (1, 3, 256, 416), (1, 3, 256, 448)]
    for one, other in zip(together, alone, strict=True):
        assert len(one) > 0
        assert one.rles == other.rles


def test_predict_split__uses_the_same_tiles_as_predict(trained: Predictor, tmp_path: Path) -> None:
    Image.fromarray(mosaic(1, 2)).save(tmp_path / "a.png")
    square = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], "iscrowd": 0}
    images = [{"id": 1, "file_name": "a.png", "height": 240, "width": 480}]
    content = {"images": images, "annotations": [square], "categories": [{"id": 1, "name": "nucleus"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read_coco(Split("valid", tmp_path / "a.json", tmp_path))
    results = predict_split(trained.model, trained.processor, data, max_detections=250)
    expected = trained(tmp_path / "a.png", threshold=0.0, copy_overlap=1.0).to_coco(1)
    assert len(results) == len(expected) > 60
    assert [one["segmentation"] for one in results] == [one["segmentation"] for one in expected]


@pytest.fixture(scope="module")
def trained() -> Predictor:
    """The bundled model, which knows nuclei of these images."""
    return Predictor.from_pretrained(SAMPLE / "model", "cpu", image_scale="native")
