"""Files that labelme, supervision and Datumaro wrote are taken unchanged (tests/assets/formats/README.md)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.read_rules import ReadRules
from support.formats import find_split, masks_of, read_split, write_image
from support.paths import ROOT

ASSETS = ROOT / "tests" / "assets" / "formats"


def expected() -> tuple[Any, list[str]]:
    """The masks (N, 160, 160) that the tools were given, and the classes."""
    with np.load(ASSETS / "masks.npz") as file:
        return file["masks"], file["names"].tolist()


def traced(mask: Any) -> Any:
    """A mask as tools see it that store its contour through the centres of its outermost pixels."""
    contour = max(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=len)
    return cv2.fillPoly(np.zeros(mask.shape, np.uint8), [contour], [1]).astype(bool)


@pytest.mark.parametrize(
    ("folder", "kind", "splits"),
    [
        ("labelme", "labelme", ["train"]),
        ("supervision-yolo", "yolo", ["train"]),
        ("datumaro-cvat", "cvat", ["train", "valid"]),
        ("datumaro-cvat-polygons", "cvat", ["train", "valid"]),
        ("datumaro-voc", "voc", ["train", "valid"]),
    ],
)
def test_find_splits__recognises_files_of_tools(folder: str, kind: str, splits: list[str]) -> None:
    found, _ = find_splits(ASSETS / folder, valid_split=0)
    assert list(found) == splits
    assert {split.format for split in found.values()} == {kind}
    report = check_data(found, full=False)
    assert report.errors == []
    assert {name: len(data.images) for name, data in report.data.items()} == dict.fromkeys(splits, 1)


@pytest.mark.parametrize("folder", ["datumaro-cvat", "datumaro-voc"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_read_split__masks_of_tools_are_the_pixels(folder: str, split: str) -> None:
    masks, names = expected()
    (found,) = masks_of(read_split(ASSETS / folder, split)).values()
    order = sorted(range(len(names)), key=lambda index: str(masks[index].tobytes()))
    again = sorted(range(len(found)), key=lambda index: str(found[index][1].tobytes()))
    assert [found[index][0] for index in again] == [names[index] for index in order]
    for one, other in zip(again, order, strict=True):
        np.testing.assert_array_equal(found[one][1], masks[other])


@pytest.mark.parametrize("folder", ["labelme", "supervision-yolo", "datumaro-cvat-polygons"])
def test_read_split__polygons_of_tools_lie_on_the_objects(folder: str) -> None:
    """The contours run through the centres of pixels: COCO's rasteriser loses up to half a pixel at two sides."""
    masks, names = expected()
    (found,) = masks_of(read_split(ASSETS / folder)).values()
    assert [name for name, _ in found] == names
    for number, ((_, mask), whole) in enumerate(zip(found, masks, strict=True)):
        if folder == "labelme" and number % 2 == 0:  # a shape of the kind `mask`
            np.testing.assert_array_equal(mask, whole)
        overlap = (mask & traced(whole)).sum() / (mask | traced(whole)).sum()
        assert overlap > 0.85, (number, overlap)


def test_assets__are_described() -> None:
    text = Path(ASSETS / "README.md").read_text(encoding="utf-8")
    for folder in (path.name for path in ASSETS.iterdir() if path.is_dir()):
        assert f"`{folder}`" in text


@pytest.mark.parametrize(
    ("folder", "images", "splits", "objects"),
    [
        ("datumaro-coco", "images/train", ["train"], 4),
        ("labelme2coco", ".", ["train", "valid"], 4),
        ("sahi", ".", ["train"], 6),  # the rectangle lies in two tiles
        ("supervision-coco", "images", ["train"], 4),
        ("fiftyone", "data", ["train"], 4),
    ],
)
def test_find_splits__coco_files_of_programs_go_in_unchanged(
    tmp_path: Path, folder: str, images: str, splits: list[str], objects: int
) -> None:
    shutil.copytree(ASSETS / folder, tmp_path / folder)
    for file in (tmp_path / folder).rglob("*.json"):
        for number, one in enumerate(json.loads(file.read_text(encoding="utf-8"))["images"]):
            path = tmp_path / folder / images / one["file_name"]
            write_image(path, one["height"], one["width"], seed=len(path.name) + number)
    found, _ = find_splits(tmp_path / folder, valid_split=0)
    assert list(found) == splits
    report = check_data(found, full=False)
    assert report.errors == []
    names = [[category.name for category in data.categories] for data in report.data.values()]
    assert names == [["cell", "debris"]] * len(splits)
    annotations = [one for data in report.data.values() for image in data.images for one in image.annotations]
    assert len(annotations) == objects
    rectangles = sum(one.area for one in annotations if one.label == 0)
    assert rectangles == pytest.approx(2 * 99 + 2 * 27 * (folder == "sahi"), rel=0.2)


def edited(content: dict[str, Any]) -> dict[str, list[tuple[str, Any]]]:
    """The objects of the predictions after the edit: in 1.png the first is deleted, the second of the other class, and
    a square is new."""
    names = {one["id"]: one["name"] for one in content["categories"]}
    found: dict[str, list[tuple[str, Any]]] = {}
    for image in content["images"]:
        own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
        objects = [(names[one["category_id"]], rle_codec.decode(one["segmentation"]).astype(bool)) for one in own]
        if image["file_name"] == "1.png":
            square = np.zeros((image["height"], image["width"]), dtype=bool)
            square[30:40, 2:12] = True
            second = "small" if objects[1][0] == "large" else "large"
            objects = [(second, objects[1][1]), *objects[2:], ("small", square)]
        found[image["file_name"]] = objects
    return found


@pytest.mark.parametrize(
    ("program", "images", "classes", "image_ids", "overlap"),
    [
        ("label-studio", "images", [(3, "small"), (7, "large")], [11, 12], 1.0),
        ("datumaro-cvat", "images", [(1, "small"), (2, "large")], [1, 2], 1.0),  # CVAT's file has no such ids
        ("datumaro-coco", "images/default", [(1, "small"), (2, "large")], [11, 12], 1.0),
        ("labelme", ".", [(1, "large"), (2, "small")], [1, 2], 1.0),  # neither has labelme's
        ("fiftyone", "data", [(3, "small"), (7, "large")], [1, 2], 0.7),  # polygons near the centres of pixels
        (
            "supervision",
            "images",
            [(1, "small"), (2, "large")],
            [1, 2],
            0.4,
        ),  # polygons through them: half a pixel lost
    ],
)
def test_read_split__predictions_come_back_from_programs(
    tmp_path: Path, program: str, images: str, classes: list[tuple[int, str]], image_ids: list[int], overlap: float
) -> None:
    source = ASSETS / "edited"
    shutil.copytree(source / program, tmp_path, dirs_exist_ok=True)
    shutil.copytree(source / "images", tmp_path / images, dirs_exist_ok=True)
    every = ReadRules(crowd="instances")  # Datumaro marks all masks as crowds
    data = read_coco(replace(find_split(tmp_path), rules=every))
    assert not any(one.iscrowd for image in data.images for one in image.annotations)
    assert [(one.id, one.name) for one in data.categories] == classes
    assert sorted(image.id for image in data.images) == image_ids
    expected = edited(json.loads((source / "predictions.json").read_text(encoding="utf-8")))
    found = masks_of(data)
    assert sorted(found) == sorted(expected)
    for name, objects in expected.items():
        left = list(found[name])
        for label, mask in objects:
            overlaps = [(mask & other).sum() / (mask | other).sum() for _, other in left]
            best = int(np.argmax(overlaps))
            assert left[best][0] == label
            assert overlaps[best] >= overlap
            del left[best]
        assert not left
