"""The annotation file: what real tools write is understood, and each fault is named with its image and annotation."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mask2former_dinov3.data.coco import CocoData, parse_coco, read_coco
from mask2former_dinov3.data.faults import Fault
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.errors import DatasetError

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
GOOD: dict[str, Any] = {
    "images": [
        {"id": 4, "file_name": "a.png", "height": 20, "width": 30},
        {"id": 9, "file_name": "b.png", "height": 10, "width": 10},
    ],
    "categories": [{"id": 17, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 17, "segmentation": [SQUARE], "area": 36, "bbox": [2, 2, 6, 6]},
        {"id": 2, "image_id": 4, "category_id": 2, "segmentation": [SQUARE, [10, 10, 14, 10, 14, 14]], "iscrowd": 0},
        {
            "id": 3,
            "image_id": 4,
            "category_id": 2,
            "segmentation": {"size": [20, 30], "counts": [500, 100]},
            "iscrowd": 1,
        },
    ],
}

Change = Callable[[dict[str, Any]], object]


def split_of(folder: Path, change: Change = lambda content: None, **kwargs: Any) -> Split:
    content = copy.deepcopy(GOOD)
    change(content)
    file = folder / "annotations.json"
    file.write_text(json.dumps(content))
    return Split("train", file, folder / "images", **kwargs)


def parse(folder: Path, change: Change = lambda content: None) -> tuple[CocoData, list[Fault]]:
    return parse_coco(split_of(folder, change))


def test_parse_coco__a_sound_file(tmp_path: Path) -> None:
    data, faults = parse(tmp_path)
    assert faults == []
    assert [(category.id, category.name) for category in data.categories] == [(2, "cat"), (17, "dog")]
    first, second = data.images
    assert (first.id, first.height, first.width, first.path) == (4, 20, 30, tmp_path / "images" / "a.png")
    assert second.annotations == []
    dog, cat, crowd = first.annotations
    assert (dog.label, dog.category_id) == (1, 17)  # labels follow the order of the ids, gaps or not
    assert (cat.label, cat.area, cat.bbox) == (0, 36 + 8, (2, 2, 12, 12))  # from the polygons, as the file has none
    assert isinstance(cat.segmentation, list)
    assert [part.shape for part in cat.segmentation] == [(4, 2), (3, 2)]
    assert [one.iscrowd for one in first.annotations] == [False, False, True]
    assert crowd.area == 100
    assert crowd.bbox == (25, 0, 5, 20)  # 500 = 25 columns of 20


def test_parse_coco__numbers_as_strings_and_floats(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][0] |= {"id": "4", "height": 20.0, "width": "30"}
        content["categories"][0]["id"] = "17"
        content["annotations"][0] |= {"id": "1", "image_id": "4", "category_id": 17.0, "area": "36", "iscrowd": "0"}
        content["annotations"][0] |= {"bbox": ["2", 2, 6.0, 6], "segmentation": [[str(value) for value in SQUARE]]}
        content["annotations"][2]["iscrowd"] = "1"

    plain, _ = parse(tmp_path)
    data, faults = parse(tmp_path, change)
    assert faults == []
    assert repr(data.images[0].annotations) == repr(plain.images[0].annotations)  # arrays have no == of one value


@pytest.mark.parametrize(
    ("file_name", "stored"),
    [
        ("a.png", "images/a.png"),
        ("deep/er/a.png", "images/deep/er/a.png"),
        ("deep\\a.png", "images/deep/a.png"),
        ("images/a.png", "images/a.png"),
        ("other/a.png", "other/a.png"),
        ("/home/someone/export/a.png", "images/a.png"),
        ("../../media/upload/1/a.png", "images/a.png"),
    ],
)
def test_parse_coco__images_are_found_under_the_names_tools_write(tmp_path: Path, file_name: str, stored: str) -> None:
    (tmp_path / stored).parent.mkdir(parents=True)
    (tmp_path / "images").mkdir(exist_ok=True)
    (tmp_path / stored).touch()
    data, _ = parse(tmp_path, lambda content: content["images"][0].update(file_name=file_name))
    assert data.images[0].path.samefile(tmp_path / stored)


def test_parse_coco__absolute_names(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.png").touch()
    data, _ = parse(tmp_path, lambda content: content["images"][0].update(file_name=str(tmp_path / "elsewhere.png")))
    assert data.images[0].path == tmp_path / "elsewhere.png"


def test_parse_coco__a_part_of_the_images(tmp_path: Path) -> None:
    """The other part's faults are left to the other part."""

    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["category_id"] = 99

    data, faults = parse_coco(split_of(tmp_path, change, image_ids=frozenset({9})))
    assert [image.id for image in data.images] == [9]
    assert faults == []
    data, faults = parse_coco(split_of(tmp_path, change, image_ids=frozenset({4})))
    assert len(data.images[0].annotations) == 2
    assert [fault.annotation_id for fault in faults] == [1]


def test_parse_coco__roboflows_placeholder_category(tmp_path: Path) -> None:
    """An unused category under the name of a real one is left out, with a note; one with a name of its own stays."""
    data, faults = parse(tmp_path, lambda content: content["categories"].insert(0, {"id": 0, "name": "dog"}))
    assert [category.id for category in data.categories] == [2, 17]
    assert [fault.severity for fault in faults] == ["note"]
    data, faults = parse(tmp_path, lambda content: content["categories"].insert(0, {"id": 0, "name": "animals"}))
    assert [category.id for category in data.categories] == [0, 2, 17]
    assert faults == []


def _image(**values: Any) -> Change:
    return lambda content: content["images"][1].update(values)


def _annotation(**values: Any) -> Change:
    return lambda content: content["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("change", "where", "reason"),
    [
        (lambda c: c.pop("images"), (None, None), "images: expected a list, got nothing"),
        (lambda c: c.update(annotations={}), (None, None), "annotations: expected a list, got an object"),
        (lambda c: c.update(categories=[]), (None, None), "categories: expected at least one entry, got an empty list"),
        (lambda c: c["categories"].append({"id": 5}), (None, None), "category 5: expected a name, got null"),
        (
            lambda c: c["categories"].append(7),
            (None, None),
            "categories[2]: expected an object with an id (a whole number), got 7",
        ),
        (
            lambda c: c["categories"].append({"id": 2, "name": "cow"}),
            (None, None),
            'categories[2]: expected an id of its own, got id 2 for "cat" and "cow"',
        ),
        (lambda c: c["categories"][0].update(name="cat"), (None, None), 'got 2 called "cat"; rename or merge them'),
        (lambda c: c["images"].append("a.png"), (None, None), "images[2]: expected an object with an id"),
        (_image(id=None), (None, None), "images[1]: expected an object with an id"),
        (_image(id=4.5), (None, None), "images[1]: expected an object with an id (a whole number), got the id 4.5"),
        (_image(id="1_7"), (None, None), 'images[1]: expected an object with an id (a whole number), got the id "1_7"'),
        (_image(id=4), (4, None), 'images[1]: expected an id of its own, got id 4 for "a.png" and "b.png"'),
        (_image(file_name=3), (9, None), "file_name: expected the name of a file, got 3"),
        (
            _image(height=None),
            (9, None),
            "b.png: height and width: expected whole numbers of pixels above 0, got null and 10",
        ),
        (_image(width=0), (9, None), "got 10 and 0"),
        (_image(width=True), (9, None), "got 10 and true"),
        (lambda c: c["annotations"].append(5), (None, None), "annotations[3]: expected an object, got 5"),
        (_annotation(id="x"), (4, None), 'annotations[0]: expected an id (a whole number), got "x"'),
        (_annotation(id=2), (4, 2), "annotations[1]: expected an id of its own, got that of another annotation"),
        (_annotation(image_id=5), (None, 1), "image_id: expected the id of one of the images, got 5"),
        (_annotation(image_id=None), (None, 1), "image_id: expected the id of one of the images, got null"),
        (_annotation(category_id=3), (4, 1), "category_id: expected the id of one of the categories, got 3"),
        (_annotation(category_id="dog"), (4, 1), 'category_id: expected the id of one of the categories, got "dog"'),
        (_annotation(iscrowd=2), (4, 1), "iscrowd: expected 0 or 1, got 2"),
        (_annotation(iscrowd="yes"), (4, 1), 'iscrowd: expected 0 or 1, got "yes"'),
        (_annotation(segmentation=[[1, 1, 5, 5]]), (4, 1), "polygon: expected at least 3 points, got 2"),
        (
            _annotation(segmentation={"size": [30, 20], "counts": [600]}),
            (4, 1),
            "RLE size: expected [height, width] of the image, [20, 30], got [30, 20]; swap them",
        ),
    ],
)
def test_parse_coco__each_error_is_named(
    tmp_path: Path, change: Change, where: tuple[int | None, int | None], reason: str
) -> None:
    _, faults = parse(tmp_path, change)
    first = faults[0]
    assert first.severity == "error"
    assert (first.image_id, first.annotation_id) == where
    assert reason in first.reason


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ([], "no segmentation"),
        (None, "no segmentation"),
        ("", "no segmentation"),
        ([[]], "no segmentation"),
        ([[5, 5]], "polygon of fewer than 3 points"),
        ([[40, 2, 45, 2, 45, 9]], "outside the image"),
        ([[2, 2, 5, 2, 3, 2]], "zero area"),
    ],
)
def test_parse_coco__empty_masks_are_left_out_with_a_warning(tmp_path: Path, segmentation: Any, reason: str) -> None:
    data, faults = parse(tmp_path, _annotation(segmentation=segmentation))
    assert [one.id for one in data.images[0].annotations] == [2, 3]
    assert [(fault.severity, fault.image_id, fault.annotation_id) for fault in faults] == [("warning", 4, 1)]
    assert reason in faults[0].reason
    end = "left out of training, where the object is background; incomplete_images drop leaves its image out"
    assert faults[0].reason.endswith(end)


def test_parse_coco__a_file_listed_twice_is_a_warning(tmp_path: Path) -> None:
    _, faults = parse(tmp_path, _image(file_name="a.png"))
    assert [str(fault) for fault in faults] == [
        "image 9: a.png: the same file as image 4; check whether its instances are split"
    ]
    assert faults[0].severity == "warning"


def test_read_coco__returns_what_is_sound(tmp_path: Path) -> None:
    data = read_coco(split_of(tmp_path, _annotation(segmentation=[])))
    assert len(data.images[0].annotations) == 2


def test_read_coco__all_errors_in_one_message(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1]["height"] = "tall"
        content["annotations"][0]["category_id"] = 3
        content["categories"] += [{"id": 100 + number} for number in range(30)]

    with pytest.raises(DatasetError) as caught:
        read_coco(split_of(tmp_path, change))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'annotations.json'}: 32 errors"
    assert lines[1] == "  category 100: expected a name, got null"
    assert lines[2] == "  category 101: expected a name, got null"
    assert lines[-1] == "  … and 12 more; run check-data to list all of them"
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file; check whether it was written"),
        (b"version https://git-lfs.github.com/spec/v1\n", "got a pointer of Git LFS, not the file; run `git lfs pull`"),
        (b'{"images": [', r"got invalid JSON \(line 1, column 13: .*check whether the file is complete"),
        (b"[1, 2]", r"expected COCO annotations \(a JSON object with images, annotations and categories\), got a list"),
        (b"\xff\xfe\xfa", "got bytes that are not text|got invalid JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_read_coco__a_file_that_is_no_coco_json(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "annotations.json"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_coco(Split("train", file, tmp_path))
    assert str(caught.value).startswith(str(file))


def test_read_coco__a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.json: expected COCO annotations .*, got no such file"):
        read_coco(Split("train", tmp_path / "none.json", tmp_path))


def test_read_coco__utf8_with_byte_order_mark(tmp_path: Path) -> None:
    split = split_of(tmp_path)
    split.annotations.write_bytes(b"\xef\xbb\xbf" + split.annotations.read_bytes())
    assert len(read_coco(split).images) == 2


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, str(2**64)])
@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_parse_coco__ids_beyond_64_bits_are_errors(tmp_path: Path, key: str, value: object) -> None:
    def change(content: dict[str, Any]) -> None:
        content[key][0]["id"] = value

    _, faults = parse(tmp_path, change)
    reasons = [fault.reason for fault in faults if fault.severity == "error"]
    assert reasons[0].startswith(f"{key}[0]: expected an ")
    assert "(a whole number below 2^63), got" in reasons[0]


def test_parse_coco__a_class_name_that_cannot_be_saved_is_an_error(tmp_path: Path) -> None:
    _, faults = parse(tmp_path, lambda content: content["categories"][0].update(name="\ud800x"))
    assert str(faults[0]) == 'category 17: expected a name, got "\\ud800x"'


def test_parse_coco__a_height_beyond_any_float_is_an_error(tmp_path: Path) -> None:
    _, faults = parse(tmp_path, lambda content: content["images"][0].update(height=10**400))
    assert "a.png: height and width: expected whole numbers of pixels above 0, got 1000" in str(faults[0])
