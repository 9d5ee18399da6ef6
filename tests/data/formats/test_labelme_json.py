"""labelme's files: every kind of shape gives its pixels, groups are joined, and malformed shapes are named."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError
from support.formats import find_split, masks_of, png_bytes, read_split, write_image

SQUARE = [[8, 6], [24, 6], [24, 18], [8, 18]]


def shape(label: object, points: object, kind: object = "polygon", **rest: object) -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}, **rest}


def write(path: Path, shapes: object, **rest: object) -> Path:
    write_image(path.with_suffix(".png"), seed=len(path.name))
    content = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": path.with_suffix(".png").name}
    size = {"imageHeight": 24, "imageWidth": 32}
    path.write_text(json.dumps({**content, "imageData": "AAAA", **size, **rest}))
    return path


def square() -> Any:
    mask = np.zeros((24, 32), dtype=bool)
    mask[6:18, 8:24] = True
    return mask


def test_read_labelme__polygons_rectangles_circles_and_masks(tmp_path: Path) -> None:
    bitmap = np.random.default_rng(0).random((5, 7)) < 0.5
    shapes = [
        shape("polygon", SQUARE),
        shape("rectangle", [[24, 18], [8, 6]], "rectangle"),
        shape("circle", [[16, 12], [16, 20]], "circle"),
        shape("mask", [[3, 2], [9, 6]], "mask", mask=base64.b64encode(png_bytes(bitmap)).decode()),
    ]
    write(tmp_path / "a.json", shapes)
    found = dict(masks_of(read_split(tmp_path))["a.png"])
    assert list(found) == ["polygon", "rectangle", "circle", "mask"]
    np.testing.assert_array_equal(found["polygon"], square())
    np.testing.assert_array_equal(found["rectangle"], square())
    whole = np.zeros((24, 32), dtype=bool)
    whole[2:7, 3:10] = bitmap
    np.testing.assert_array_equal(found["mask"], whole)
    rows, columns = np.mgrid[:24, :32] + 0.5
    distance = np.hypot(rows - 12, columns - 16)
    assert found["circle"][distance < 7].all()
    assert not found["circle"][distance > 8.8].any()


def test_read_labelme__a_group_is_one_object(tmp_path: Path) -> None:
    bitmap = np.ones((2, 3), dtype=bool)
    mask = {"mask": base64.b64encode(png_bytes(bitmap)).decode()}
    shapes = [
        shape("crack", SQUARE, group_id=1),
        shape("crack", [[0, 0], [4, 0], [4, 4], [0, 4]], group_id=1),
        shape("hole", [[0, 0], [2, 1]], "mask", group_id=1, **mask),
        shape("hole", [[8, 6], [24, 18]], "rectangle", group_id=1),
        shape("crack", SQUARE),
    ]
    write(tmp_path / "a.json", shapes)
    found = masks_of(read_split(tmp_path))["a.png"]
    assert [name for name, _ in found] == ["crack", "hole", "crack"]
    expected = square()
    expected[:4, :4] = True
    np.testing.assert_array_equal(found[0][1], expected)
    expected = square()
    expected[:2, :3] = True
    np.testing.assert_array_equal(found[1][1], expected)
    np.testing.assert_array_equal(found[2][1], square())


def test_find_labelme__splits_and_image_paths(tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "x.png")
    for split in ("train", "val"):
        write(tmp_path / split / "a.json", [shape("crack", SQUARE)], imagePath="..\\pictures\\x.png", imageData=None)
    splits, _ = find_splits(tmp_path)
    assert {name: split.format for name, split in splits.items()} == {"train": "labelme", "valid": "labelme"}
    assert read_split(tmp_path, "valid").images[0].path.resolve() == (tmp_path / "pictures" / "x.png").resolve()
    single, _ = find_splits(tmp_path / "train" / "a.json", valid_split=0)
    assert single["train"].format == "labelme"


def test_read_labelme__counts_what_is_left_out(tmp_path: Path) -> None:
    shapes = [
        shape("crack", SQUARE),
        shape("seed", [[1, 1]], "point"),
        shape("edge", [[1, 1], [5, 5]], "line"),
        shape("__ignore__", SQUARE),
    ]
    write(tmp_path / "a.json", shapes, flags={"blurred": True}, imageHeight=None, imageWidth=None)
    (tmp_path / "settings.json").write_text("{}")
    data, faults = parse_coco(find_split(tmp_path))
    assert [category.name for category in data.categories] == ["crack"]
    assert len(data.images[0].annotations) == 1
    texts = [(fault.severity, str(fault)) for fault in faults]
    assert ("warning", "2 shapes without an area (points and lines); left out") in texts
    assert ("note", "1 shape called __ignore__ or _background_; left out") in texts
    assert ("note", "1 file with flags that are set, which are not read") in texts
    assert ("warning", "settings.json: passed over: no shapes and no imagePath") in texts


def test_read_labelme__every_malformed_shape_is_named(tmp_path: Path) -> None:
    png = base64.b64encode(png_bytes(np.ones((2, 3), dtype=bool))).decode()
    wrong = {
        "a list of [x, y]": shape("a", [[1, 2], "x"]),
        "finite coordinates, got NaN": shape("a", [[0, 0], [float("nan"), 1], [2, 2]]),
        "at least 3 points, got 2": shape("a", [[0, 0], [1, 1]]),
        "coordinates in an image of 32 x 24": shape("a", [[0, 0], [900, 1], [2, 2]]),
        "a name, got null": shape(None, SQUARE),
        'polygon, rectangle, circle or mask, got "blob"': shape("a", SQUARE, "blob"),
        "2 x 4 pixels (height x width) between its points, got 2 x 3": shape("a", [[0, 0], [3, 1]], "mask", mask=png),
        "a PNG in base64 and two corners, got null": shape("a", [[0, 0], [3, 1]], "mask", mask=None),
        "base64, got other characters": shape("a", [[0, 0], [3, 1]], "mask", mask="%%"),
        "two opposite corners of a rectangle, got 3 points": shape("a", SQUARE[:3], "rectangle"),
        "the centre of a circle and a point on it, got 1 point": shape("a", [[1, 1]], "circle"),
    }
    write(tmp_path / "a.json", list(wrong.values()))
    write(tmp_path / "b.json", [shape("a", SQUARE)], imagePath="nowhere.png")
    write(tmp_path / "c.json", {"a": 1})
    (tmp_path / "d.json").write_text('{"shapes": [')
    write(tmp_path / "e.json", [], imageHeight="tall")
    _, faults = parse_coco(find_split(tmp_path))
    texts = "\n".join(str(fault) for fault in faults if fault.severity == "error")
    for number, (reason, _) in enumerate(wrong.items()):
        assert f"a.json: shapes[{number}]" in texts, number
        assert reason in texts
    assert 'b.json: expected the image "nowhere.png" that imagePath names, got no such file' in texts
    assert "c.json: shapes: expected a list, got an object" in texts
    assert "d.json: expected labelme's JSON" in texts
    assert "e.json: imageHeight and imageWidth: expected whole numbers of pixels above 0" in texts


def test_read_labelme__another_size_than_the_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [shape("a", SQUARE)], imageHeight=32, imageWidth=24)
    with pytest.raises(DatasetError, match=r"a.json: a.png: expected 32 x 24 pixels .* got 24 x 32"):
        read_split(tmp_path)


def test_read_labelme__a_folder_of_malformed_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", [shape("a", SQUARE)], imagePath="nowhere.png")
    with pytest.raises(DatasetError, match="that imagePath names, got no such file"):
        read_split(tmp_path)
