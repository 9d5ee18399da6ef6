"""Pascal VOC's segmentations: objects, classes and void are those of the palettes, and malformed files are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError
from support.formats import find_split, masks_of, read_split, write_image


def write_palette(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8))
    image.putpalette([(value * 37) % 256 for value in range(768)])
    assert image.mode == "P"
    image.save(path)


def write(root: Path, name: str, objects: Any, classes: Any) -> None:
    write_image(root / "JPEGImages" / f"{name}.jpg", 12, 16, seed=len(name))
    write_palette(root / "SegmentationObject" / f"{name}.png", objects)
    write_palette(root / "SegmentationClass" / f"{name}.png", classes)


def write_list(root: Path, split: str, *names: str) -> None:
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def pair() -> tuple[Any, Any]:
    """Two objects, a person (15) and a dog (12), with a void border."""
    objects, classes = np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.uint8)
    objects[2:6, 2:7], classes[2:6, 2:7] = 1, 15
    objects[5:9, 7:12], classes[5:9, 7:12] = 2, 12
    objects[6, 2:7] = classes[6, 2:7] = 255
    return objects, classes


def test_read_voc__objects_have_their_class_and_void_is_crowd(tmp_path: Path) -> None:
    objects, classes = pair()
    root = tmp_path / "VOCdevkit" / "VOC2012"
    write(root, "a", objects, classes)
    write(root, "b", np.zeros((12, 16)), np.zeros((12, 16)))
    write(root, "unlisted", objects, classes)
    write_list(root, "train", "a")
    write_list(root, "val", "b")
    write_list(root, "trainval", "a", "b")
    splits, notes = find_splits(tmp_path)
    assert {name: split.format for name, split in splits.items()} == {"train": "voc", "valid": "voc"}
    assert notes == []
    data = read_split(tmp_path)
    assert (len(data.categories), data.categories[14].id, data.categories[14].name) == (20, 15, "person")
    (image,) = data.images
    assert [(one.category_id, one.iscrowd) for one in image.annotations] == [
        (15, False),
        (12, False),
        (12, True),
        (15, True),
    ]
    found = masks_of(data)["a.jpg"]
    for (_, mask), expected in zip(found, [objects == 1, objects == 2, objects == 255, objects == 255], strict=True):
        np.testing.assert_array_equal(mask, expected)
    assert read_split(tmp_path, "valid").images[0].annotations == []


def test_read_voc__colours_of_labelmap_txt(tmp_path: Path) -> None:
    """As CVAT and Datumaro write it: RGB images, and the colours of the classes in a text file."""
    objects, classes = pair()
    write(tmp_path, "a", objects, classes)
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192), 15: (10, 20, 30), 12: (200, 0, 9)}
    for folder, values in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        rgb = np.array([[colours[value] for value in row] for row in values.tolist()], dtype=np.uint8)
        Image.fromarray(rgb).save(tmp_path / folder / "a.png")
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:10,20,30::\nhole:200,0,9::\n"
    )
    data = read_split(tmp_path)
    assert [(one.id, one.name) for one in data.categories] == [(1, "crack"), (2, "hole")]
    found = masks_of(data)["a.jpg"]
    assert [name for name, _ in found] == ["crack", "hole", "crack", "hole"]
    by_class = {name: mask for name, mask in found[:2]}
    np.testing.assert_array_equal(by_class["crack"], objects == 1)
    np.testing.assert_array_equal(by_class["hole"], objects == 2)


def test_read_voc__every_fault_is_named(tmp_path: Path) -> None:
    objects, classes = pair()
    write(tmp_path, "nokind", objects, np.where(classes == 15, 0, classes))
    write(tmp_path, "newkind", objects, np.where(classes == 15, 77, classes))
    write(tmp_path, "mixed", objects, np.where(np.arange(16) == 3, 12, classes) * (objects > 0))
    write(tmp_path, "small", objects[:-1], classes[:-1])
    write(tmp_path, "cut", objects, classes)
    (tmp_path / "SegmentationClass" / "cut.png").write_bytes(b"cut")
    write(tmp_path, "noimage", objects, classes)
    (tmp_path / "JPEGImages" / "noimage.jpg").unlink()
    write_list(tmp_path, "train", "nokind", "newkind", "mixed", "small", "cut", "noimage", "nowhere", "mixed")
    data, faults = parse_coco(find_split(tmp_path))
    errors = [str(fault) for fault in faults if fault.severity == "error"]
    expected = [
        "SegmentationObject/nokind.png: object 1: expected a class in SegmentationClass at its pixels, got background",
        "SegmentationObject/newkind.png: object 1: expected a class in SegmentationClass at its pixels, "
        "got the value 77",
        "SegmentationObject/small.png: expected 12 x 16 pixels (height x width) as its image, got 11 x 16",
        "train.txt:6: expected one image noimage in JPEGImages, got none",
        "train.txt:7: expected SegmentationObject/nowhere.png, got no such file",
    ]
    assert sorted(text for text in errors if "cut.png" not in text) == sorted(expected)
    assert any("cut.png: expected an image file" in text for text in errors)
    texts = [str(fault) for fault in faults]
    assert "train.txt:8: mixed is named twice; read once" in texts
    assert any("mixed.png: object 1: pixels of 2 values in SegmentationClass" in text for text in texts)
    assert [image.file_name for image in data.images] == ["nokind.jpg", "newkind.jpg", "mixed.jpg", "small.jpg"]


def test_read_voc__malformed_labelmap(tmp_path: Path) -> None:
    write(tmp_path, "a", *pair())
    for data, message in (
        (b"crack:1,2::\n", r"labelmap.txt:1: expected name:red,green,blue:parts:actions"),
        (b"a:1,2,3::\nb:1,2,3::\n", r"labelmap.txt:2: expected a colour of its own, got that of line 1"),
        (b"\x81\x82", r"labelmap.txt: expected lines of text"),
    ):
        (tmp_path / "labelmap.txt").write_bytes(data)
        with pytest.raises(DatasetError, match=message):
            read_split(tmp_path)


def test_find_voc__two_folders_are_refused(tmp_path: Path) -> None:
    for year in ("VOC2007", "VOC2012"):
        write(tmp_path / "VOCdevkit" / year, "a", *pair())
    with pytest.raises(DatasetError, match=r"got VOCdevkit/VOC2007, VOCdevkit/VOC2012; give one of them"):
        find_splits(tmp_path)
    assert len(read_split(tmp_path / "VOCdevkit" / "VOC2007").images) == 1
