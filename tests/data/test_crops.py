"""Images at their own scale in training: crops are parts of the image bit for bit, and objects in them its parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.crops import OBJECT_CROPS, crop_counts
from mask2former_dinov3.data.dataset import CocoInstanceDataset, Sample
from mask2former_dinov3.data.fitting import fit_matrix
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.records import CocoData
from mask2former_dinov3.data.transforms import Augmentation, rasterise
from mask2former_dinov3.read_options import ReadOptions
from support.coco import rle_of

CANVAS = (48, 64)
STILL = Augmentation(scale_min=1, scale_max=1, flip="none", color_jitter=0)


def positions(height: int, width: int) -> NDArray[np.uint8]:
    """An image in which red and green say the column (up to 255) and the row of each pixel."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([np.minimum(columns, 255), rows, rows // 2 + columns // 3], axis=2).astype(np.uint8)


def split_of(folder: Path, size: tuple[int, int], segmentations: list[Any]) -> CocoData:
    """A split of one image of `positions`, with an object for each segmentation."""
    Image.fromarray(positions(*size)).save(folder / "a.png")
    rest = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [{"id": n, "segmentation": one, **rest} for n, one in enumerate(segmentations, start=1)],
    }
    file = folder / "a.json"
    file.write_text(json.dumps(content))
    return read_coco(Split("train", file, folder))


def dataset(
    data: CocoData, scale: str | float = "native", augmentation: Augmentation | None = STILL
) -> CocoInstanceDataset:
    return CocoInstanceDataset(
        data,
        image_height=CANVAS[0],
        image_width=CANVAS[1],
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        augmentation=augmentation,
        options=ReadOptions(image_scale=scale),
    )


def pixels_of(sample: Sample) -> NDArray[np.uint8]:
    """The real pixels of a sample, (r, c, 3)."""
    rows, columns = (int(sample["pixel_mask"].any(axis).sum()) for axis in (1, 0))
    pixels: NDArray[np.uint8] = np.rint(
        sample["pixel_values"].numpy().transpose(1, 2, 0)[:rows, :columns] * 255
    ).astype(np.uint8)
    return pixels


def test_sample__is_a_part_of_the_image_with_the_same_part_of_each_mask(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = (150, 210)
    shapes: list[Any] = []
    for _ in range(40):  # coordinates with decimals, many of them at the halves that the rasteriser rounds
        y, x, reach = rng.integers(0, 150), rng.integers(0, 210), rng.integers(3, 40)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        points = np.stack([x + reach * np.cos(angles), y + reach * np.sin(angles)], 1).clip(0, (210, 150))
        shapes.append([np.round(points, 1).ravel().tolist()])
    disc = np.hypot(*(np.mgrid[:150, :210] - np.array([70, 100])[:, None, None])) < 45
    shapes.append(rle_of(disc))
    data = split_of(tmp_path, size, shapes)
    annotations = data.images[0].annotations
    whole = [rasterise(one.segmentation, size, fit_matrix(*size, *size), *size) for one in annotations]
    image, cut = positions(*size), 0
    for epoch in range(30):
        sample = dataset(data)[epoch, 0]
        crop = pixels_of(sample)
        left, top = crop[0, 0, :2].tolist()
        part = slice(top, top + CANVAS[0]), slice(left, left + CANVAS[1])
        np.testing.assert_array_equal(crop, image[part])
        shares = [(mask[part], mask[part].sum() / mask.sum()) for mask in whole]
        found = {mask[: CANVAS[0], : CANVAS[1]].tobytes() for mask in sample["mask_labels"].numpy()}
        # The limit of a tenth is one of the outline's area, which differs from that of the pixels.
        assert found >= {one.tobytes() for one, share in shares if one.sum() >= 256 or share > 0.12}
        assert found <= {one.tobytes() for one, share in shares if one.sum() >= 256 or share > 0.08}
        cut += sum(0 < share < 1 for _, share in shares)
    assert cut > 100


def test_sample__leaves_out_slivers_but_not_large_objects(tmp_path: Path) -> None:
    size = (48, 700)
    column = [[10, 4, 74, 4, 74, 44, 10, 44]]  # a crop from column 68 on shows 6 of its 64 columns: 240 pixels
    band = [[0, 44, 700, 44, 700, 48, 0, 48]]  # a canvas shows a tenth of it less a little: 256 pixels
    data = split_of(tmp_path, size, [column, band])
    seen = set()
    for epoch in range(60):
        sample = dataset(data)[epoch, 0]
        left = int(pixels_of(sample)[0, 0, 0])
        areas = sample["mask_labels"].flatten(1).sum(1).tolist()
        if 10 <= left < 74:
            visible = (74 - left) * 40
            seen.add(visible)
            assert (visible in areas) == (visible > 240), (left, areas)
        assert 4 * CANVAS[1] in areas
    assert min(seen) <= 240 < 256 <= max(seen)


def test_sample__shows_an_object_at_the_stated_rate(tmp_path: Path) -> None:
    data = split_of(tmp_path, (250, 250), [[[200, 200, 206, 200, 206, 206, 200, 206]]])
    shown = [len(dataset(data)[epoch, 0]["mask_labels"]) for epoch in range(100)]
    by_chance = 48 * 64 / 250**2  # about 5 % of the crops that are placed anywhere
    assert abs(np.mean(shown) - OBJECT_CROPS - (1 - OBJECT_CROPS) * by_chance) < 0.1
    assert shown[:5] == [len(dataset(data)[epoch, 0]["mask_labels"]) for epoch in range(5)]


def test_sample__keeps_its_scale_and_pads_what_is_smaller(tmp_path: Path) -> None:
    data = split_of(tmp_path, (20, 30), [[[3, 4, 13, 4, 13, 14, 3, 14]]])
    for scale, size in (("native", (20, 30)), (2.0, (40, 60)), (0.5, (10, 15)), ("fit", (43, 64))):
        for augmentation in (STILL, None):
            sample = dataset(data, scale, augmentation)[0, 0]
            assert pixels_of(sample).shape[:2] == size
            assert sample["pixel_values"].shape == (3, 64, 64)
            assert not sample["pixel_values"][:, size[0] :].any()
    np.testing.assert_array_equal(pixels_of(dataset(data)[0, 0]), positions(20, 30))
    assert int(dataset(data, 2.0)[0, 0]["mask_labels"].sum()) == 20 * 20


def test_sample__without_augmentation_is_the_middle(tmp_path: Path) -> None:
    data = split_of(tmp_path, (100, 200), [[[3, 4, 13, 4, 13, 14, 3, 14]]])
    np.testing.assert_array_equal(pixels_of(dataset(data, augmentation=None)[0, 0]), positions(100, 200)[26:74, 68:132])


def test_sample__jitter_multiplies_the_scale(tmp_path: Path) -> None:
    data = split_of(tmp_path, (40, 50), [[[3, 4, 13, 4, 13, 14, 3, 14]]])
    jitter = Augmentation(scale_min=0.5, scale_max=0.5, flip="none", color_jitter=0)
    assert pixels_of(dataset(data, 2.0, jitter)[0, 0]).shape[:2] == (40, 50)


def test_crop_counts__are_the_most_instances_that_a_canvas_shows(tmp_path: Path) -> None:
    """A hundred squares 20 pixels apart: a canvas of 48 x 64 meets 3 rows and 4 columns of them, twice it 5 and 7."""
    squares = [[[x, y, x + 8, y, x + 8, y + 8, x, y + 8]] for y in range(0, 200, 20) for x in range(0, 200, 20)]
    images = split_of(tmp_path, (200, 200), squares).images
    assert crop_counts(images, CANVAS, None).tolist() == [100]
    assert crop_counts(images, CANVAS, 1.0).tolist() == [3 * 4]
    assert crop_counts(images, CANVAS, 0.5).tolist() == [5 * 7]
    assert crop_counts(images, CANVAS, 1.0, scale=0.5).tolist() == [5 * 7]
    assert crop_counts(images, CANVAS, 0.1).tolist() == [100]
