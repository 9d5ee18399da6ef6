"""convert-data: every format as COCO and as YOLO, with the same pixels, the same ids, and nothing overwritten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.coco import CocoData, read_coco
from mask2former_dinov3.data.formats.conversion import Conversion, convert_data
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError, OptionError
from support.coco import rle_of
from support.formats import masks_of, read_split, write_image, write_map

SIZE = (24, 32)


def ring() -> Any:
    mask = np.zeros(SIZE, dtype=bool)
    mask[3:12, 4:15] = True
    mask[6:9, 7:11] = False
    mask[15:18, 20:30] = True
    return mask


def write_coco(root: Path) -> Path:
    """Two images; masks as polygons of one and several parts, RLE with a hole, a crowd region, and a box alone."""
    write_image(root / "train" / "day1" / "1.png")
    write_image(root / "train" / "day2" / "1.jpg", seed=1)
    tilted = [3.3, 4.7, 20.123456789, 6.1, 15.7, 20.9, 5.05, 18.2]
    overlapping = [[1, 1, 10, 1, 10, 10, 1, 10], [5, 5, 15, 5, 15, 15, 5, 15]]
    annotations: list[dict[str, Any]] = [
        {"id": 0, "image_id": 7, "category_id": 3, "segmentation": [tilted], "iscrowd": 0, "score": 0.5},
        {"id": 12, "image_id": 7, "category_id": 9, "segmentation": overlapping, "area": 1.5, "bbox": [1, 1, 14, 14]},
        {"id": 13, "image_id": 8, "category_id": 3, "segmentation": rle_of(ring()), "iscrowd": 0},
        {"id": 14, "image_id": 8, "category_id": 3, "segmentation": rle_of(ring()), "iscrowd": 1},
        {"id": 15, "image_id": 8, "category_id": 9, "segmentation": [[-5, -5, 12, 1, 8, 30]], "iscrowd": 0},
        {"id": 16, "image_id": 8, "category_id": 9, "bbox": [1, 2, 3, 4]},
    ]
    content = {
        "info": {"year": 2026},
        "images": [
            {"id": 7, "file_name": "day1/1.png", "height": 24, "width": 32, "license": 1},
            {"id": 8, "file_name": "day2/1.jpg", "height": 24, "width": 32},
        ],
        "categories": [{"id": 9, "name": "hole"}, {"id": 3, "name": "crack", "supercategory": "damage"}],
        "annotations": annotations,
    }
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def convert(source: Path, output: Path, **options: Any) -> Conversion:
    return convert_data(find_splits(source, valid_split=0)[0], output, **options)


def assert_same_masks(one: CocoData, other: CocoData) -> None:
    for mine, theirs in zip(masks_of(one).values(), masks_of(other).values(), strict=True):
        assert [name for name, _ in mine] == [name for name, _ in theirs]
        for (_, expected), (_, found) in zip(mine, theirs, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("copy_images", [False, True])
def test_convert_data__coco_keeps_ids_masks_and_keys(tmp_path: Path, copy_images: bool) -> None:
    source, output = write_coco(tmp_path / "in"), tmp_path / "out"
    convert(source, output, copy_images=copy_images)
    before = json.loads((source / "train" / "_annotations.coco.json").read_text())
    after = json.loads((output / "annotations" / "instances_train.json").read_text())
    assert [one["segmentation"] for one in after["annotations"][:5]] == [
        one["segmentation"] for one in before["annotations"][:5]
    ]
    assert [one["id"] for one in after["annotations"]] == [0, 12, 13, 14, 15, 16]
    assert after["annotations"][0]["score"] == 0.5
    assert (after["annotations"][1]["area"], after["annotations"][1]["iscrowd"]) == (1.5, 0)
    assert after["annotations"][2]["area"] == ring().sum()
    assert after["annotations"][2]["bbox"] == [4, 3, 26, 15]
    assert after["categories"] == before["categories"]
    assert after["info"] == {"year": 2026}
    assert after["images"][0]["license"] == 1
    copies = sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*g"))
    assert copies == (["train/day1/1.png", "train/day2/1.jpg"] if copy_images else [])
    data = read_split(output)
    assert_same_masks(read_split(source), data)
    report = check_data(*find_splits(output, valid_split=0))
    assert report.errors == []
    assert [record.path.read_bytes() for record in data.images] == [
        record.path.read_bytes() for record in read_split(source).images
    ]


def test_convert_data__yolo_has_the_same_pixels_and_says_what_it_cannot_hold(tmp_path: Path) -> None:
    source, output = write_coco(tmp_path / "in"), tmp_path / "out"
    done = convert(source, output, to="yolo")
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        "data.yaml",
        "images/train/day1/1.png",
        "images/train/day2/1.jpg",
        "labels/train/day1/1.txt",
        "labels/train/day2/1.txt",
    ]
    before, after = read_split(source), read_split(output)
    assert [(one.id, one.name) for one in after.categories] == [(0, "crack"), (1, "hole")]
    first, second = (masks_of(data) for data in (before, after))
    for name, path in (("day1/1.png", "day1/1.png"), ("day2/1.jpg", "day2/1.jpg")):
        expected = [one for one, entry in zip(first[name], entries(before, name), strict=True) if not entry.iscrowd]
        assert [label for label, _ in second[path]] == [label for label, _ in expected]
        for (_, mask), (_, found) in zip(expected, second[path], strict=True):
            np.testing.assert_array_equal(found, mask)
    text = done.text()
    assert "1 crowd region left out: YOLO has none" in text
    assert "polygons go through the centers of the outermost pixels, as OpenCV fills them" in text
    assert "1 mask of several parts: other programs fill the lines that join them" in text
    assert "no valid split: data.yaml names the training images as val" in text
    # What another program fills, which cuts coordinates to whole pixels and knows nothing of our key.
    lines = (output / "labels/train/day1/1.txt").read_text().splitlines()
    for line, (_, mask) in zip(lines, first["day1/1.png"], strict=True):
        points = (np.array(line.split()[1:], dtype=float).reshape(-1, 2) * (32, 24)).astype(np.int32)
        canvas = np.zeros(SIZE, dtype=np.uint8)
        cv2.fillPoly(canvas, [points], [1])
        np.testing.assert_array_equal(canvas, mask)


def entries(data: CocoData, name: str) -> list[Any]:
    return next(list(image.annotations) for image in data.images if image.file_name == name)


def test_convert_data__label_maps_to_yolo_and_back_bit_for_bit(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for number in range(3):
            labels = np.random.default_rng(number).integers(0, 6, SIZE).astype(np.uint16) * 1000
            write_image(tmp_path / "in" / split / "images" / f"{number}.png", seed=number)
            write_map(tmp_path / "in" / split / "masks" / f"{number}.tif", labels)
    convert(tmp_path / "in", tmp_path / "yolo", to="yolo")
    convert(tmp_path / "yolo", tmp_path / "coco", copy_images=True)
    for split in ("train", "valid"):
        assert_same_masks(read_split(tmp_path / "in", split), read_split(tmp_path / "coco", split))
        assert [one.name for one in read_split(tmp_path / "coco", split).categories] == ["object"]


def test_convert_data__names_that_collide_get_a_number(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 1)):
        write_image(tmp_path / folder / "1.png", seed=seed)
    write_image(tmp_path / "in" / "1.jpg", seed=2)
    images = [
        {"id": number, "file_name": name, "height": 24, "width": 32}
        for number, name in enumerate([str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png"), "1.jpg"])
    ]
    square = {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    content = {"images": images, "annotations": [square], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "in" / "_annotations.coco.json").write_text(json.dumps(content))
    convert(tmp_path / "in", tmp_path / "yolo", to="yolo")
    assert sorted(path.name for path in (tmp_path / "yolo" / "images" / "train").iterdir()) == [
        "1.png",
        "1_2.png",
        "1_3.jpg",
    ]
    assert sorted(path.name for path in (tmp_path / "yolo" / "labels" / "train").iterdir()) == [
        "1.txt",
        "1_2.txt",
        "1_3.txt",
    ]
    convert(tmp_path / "in", tmp_path / "coco", copy_images=True)
    copied = read_split(tmp_path / "coco").images
    assert [one.path.read_bytes() for one in copied] == [
        one.path.read_bytes() for one in read_split(tmp_path / "in").images
    ]


def test_convert_data__never_overwrites_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_coco(tmp_path / "in"), tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match="expected a new or empty folder"):
        convert(source, output)
    assert [path.name for path in output.iterdir()] == ["mine.txt"]
    monkeypatch.setattr("mask2former_dinov3.data.formats.conversion._copy", fail)
    with pytest.raises(RuntimeError, match="disk on fire"):
        convert(source, tmp_path / "new", to="yolo")
    (source / "train" / "day1" / "1.png").unlink()
    with pytest.raises(DatasetError, match=r"day1/1.png: expected an image file, got none at"):
        convert(source, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def fail(*_: object) -> None:
    raise RuntimeError("disk on fire")


def test_convert_data__applies_classes(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "in")
    splits, _ = find_splits(source, valid_split=0, classes={"hole": None, "crack": "defect"})
    convert_data(splits, tmp_path / "out")
    data = read_coco(find_splits(tmp_path / "out", valid_split=0)[0]["train"])
    assert [(one.id, one.name) for one in data.categories] == [(3, "defect")]
    assert [one.id for image in data.images for one in image.annotations] == [0, 13, 14]
