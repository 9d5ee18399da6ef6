"""Copy-paste: what is laid over a picture, and what is left of the instances below."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.copy_paste import PlacedImage, paste
from mask2former_dinov3.data.dataset import CocoInstanceDataset
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.rle import Window
from mask2former_dinov3.data.transforms import Augmentation
from mask2former_dinov3.errors import OptionError


def picture(height: int, width: int, value: int, boxes: dict[int, tuple[int, int, int, int]]) -> PlacedImage:
    """One colour, with boxes (top, left, rows, columns) as instances, by label."""
    windows = [Window(np.ones(box[2:], np.uint8), *box[:2]) for box in boxes.values()]
    return PlacedImage(np.full((height, width, 3), value, np.uint8), list(boxes), windows)


def masks_of(shown: PlacedImage) -> dict[int, npt.NDArray[np.bool_]]:
    masks = {label: np.zeros(shown.image.shape[:2], np.bool_) for label in shown.labels}
    for label, window in zip(shown.labels, shown.windows, strict=True):
        masks[label][window.place] = window.pixels
    return masks


def test_paste__pixels_follow_the_pasted_masks_and_what_they_hide_is_cut() -> None:
    counts = set()
    for seed in range(20):
        below = picture(20, 30, 10, {0: (0, 0, 10, 10), 1: (2, 2, 3, 3)})
        above = picture(25, 20, 200, {2: (0, 5, 8, 8), 3: (18, 15, 6, 5), 4: (22, 0, 3, 3)})  # 4 lies wholly beyond
        before = masks_of(below)
        pasted = paste(below, above, np.random.default_rng(seed))
        masks, over = masks_of(pasted), pasted.image[..., 0] == 200
        new = {label for label in masks if label >= 2}
        assert np.array_equal(np.logical_or.reduce([masks[label] for label in new] or [over & False]), over)
        assert new <= {2, 3}
        for label in (0, 1):
            assert np.array_equal(masks[label], before[label] & ~over)
        counts.add(len(new))
    assert counts == {0, 1, 2}


def test_paste__an_instance_that_is_hidden_altogether_is_gone() -> None:
    below = picture(8, 8, 0, {1: (2, 2, 2, 2)})
    above = picture(8, 8, 9, {0: (0, 0, 8, 8)})
    found = {tuple(paste(below, above, np.random.default_rng(seed)).labels) for seed in range(9)}
    assert found == {(0,), (1,)}  # laid over it, or left out
    assert below.image.min() == 9


@pytest.fixture
def two_colours(tmp_path: Path) -> Path:
    """Two images of one colour each, a box of the other colour's complement in each."""
    images, annotations = [], []
    for number, (left, value) in enumerate([(4, 60), (36, 180)], start=1):
        pixels = np.full((64, 64, 3), value, np.uint8)
        pixels[8:24, left : left + 16] = value + 40
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        box = [left, 8, left + 16, 8, left + 16, 24, left, 24]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": [box], "bbox": [left, 8, 16, 16]}
            | {"area": 256, "iscrowd": 0}
        )
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (tmp_path / "a.json").write_text(json.dumps(coco))
    return tmp_path


def test_dataset__copy_paste_is_reproducible_and_masks_fit_the_pixels(two_colours: Path) -> None:
    data = read_coco(Split("train", two_colours / "a.json", two_colours))
    change = Augmentation(scale_min=1.0, scale_max=1.0, flip="none", color_jitter=0.0, copy_paste=0.9)
    dataset = CocoInstanceDataset(
        data,
        image_height=64,
        image_width=64,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        augmentation=change,
    )
    found = set()
    for epoch in range(12):
        for index, bright in enumerate((100, 220)):
            sample, again = dataset[epoch, index], dataset[epoch, index]
            assert all(np.array_equal(sample[name], again[name]) for name in ("pixel_values", "mask_labels"))
            values = (sample["pixel_values"][0].numpy() * 255).round()
            objects = (values == 100) | (values == 220)
            assert np.array_equal(sample["mask_labels"].amax(0).bool().numpy(), objects)
            assert (values == bright).any()
            assert len(sample["class_labels"]) == len(sample["mask_labels"])
            found.add(len(sample["mask_labels"]))
    assert found == {1, 2}
    with pytest.raises(OptionError, match=r"^copy_paste: expected a fraction from 0 to 1, got 2$"):
        Augmentation(copy_paste=2)
