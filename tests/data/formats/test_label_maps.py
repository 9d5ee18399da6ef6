"""Folders of label maps: every layout and kind of pixels gives the pixels of the map, and malformed maps are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mask2former_dinov3.data.coco import parse_coco
from mask2former_dinov3.data.formats.label_maps import find_label_maps
from mask2former_dinov3.data.formats.mask_codes import codes_of_labels
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.rle import run_lengths
from mask2former_dinov3.errors import DatasetError
from support.formats import find_split, masks_of, read_split, write_image, write_map


def labels(seed: int = 0, count: int = 5) -> NDArray[np.uint8]:
    """A map of scattered objects, which touch each other and the edges."""
    return np.random.default_rng(seed).integers(0, count + 1, (24, 32)).astype(np.uint8)


def assert_same(root: Path, name: str, expected: NDArray[np.generic], split: str = "train") -> None:
    found = masks_of(read_split(root, split))[name]
    values = [value for value in np.unique(expected) if value]
    assert len(found) == len(values)
    for (_, mask), value in zip(found, values, strict=True):
        np.testing.assert_array_equal(mask, expected == value)


@pytest.mark.parametrize("seed", range(4))
def test_codes_of_labels__cover_the_pixels_of_each_value(seed: int) -> None:
    values = np.random.default_rng(seed).integers(-1, 4, (7, 5))
    found = dict(codes_of_labels(values))
    assert list(found) == [-1, 1, 2, 3]
    for value, code in found.items():
        runs = run_lengths(code["counts"].encode())
        assert (runs[1:] > 0).all()
        flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
        np.testing.assert_array_equal(flat.reshape(5, 7).T, values == value)


def test_codes_of_labels__nothing_and_everything() -> None:
    assert list(codes_of_labels(np.zeros((3, 4), np.uint8))) == []
    ((value, code),) = codes_of_labels(np.full((3, 4), 7, np.uint8))
    assert (value, run_lengths(code["counts"].encode()).tolist()) == (7, [0, 12])


@pytest.mark.parametrize(
    "kind", ["uint8.png", "uint16.png", "uint8.tif", "uint16.tif", "int32.tif", "palette.png", "grey_rgb.png"]
)
def test_read_label_maps__every_kind_of_pixels(tmp_path: Path, kind: str) -> None:
    name, suffix = kind.split(".")
    expected: NDArray[np.generic] = labels()
    if name in ("uint16", "int32"):
        expected = (labels().astype(name)) * (300 if name == "uint16" else 70_000)
    write_image(tmp_path / "images" / "a.jpg")
    path = tmp_path / "masks" / f"a.{suffix}"
    path.parent.mkdir()
    if name == "palette":
        image = Image.fromarray(expected, mode=None).convert("P") if False else Image.fromarray(expected)
        image = image.convert("L")
        image.putpalette([0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 255, 0, 9, 9, 9, 0, 0, 255])
        image.save(path)
    elif name == "grey_rgb":
        Image.fromarray(np.repeat(labels()[..., None], 3, axis=2)).save(path)
    else:
        write_map(path, expected)
    assert_same(tmp_path, "a.jpg", expected)


def test_find_label_maps__every_layout(tmp_path: Path) -> None:
    for layout, image, mask in (
        ("a", "images/day1/1.png", "label_maps/day1/1.png"),
        ("b", "train/images/1.png", "train/masks/1.png"),
        ("c", "images/train/1.png", "labels/train/1.png"),
        ("d", "1_img.png", "1_masks.png"),
        ("e", "1.jpg", "1_mask.tif"),
        ("f", "images/1.jpg", "masks/1_mask.png"),
        ("g", "1.png", "1_cp_masks.tif"),
    ):
        root = tmp_path / layout
        write_image(root / image)
        write_map(root / mask, labels())
        assert list(find_label_maps(root)) == ["train"], layout
        data = read_split(root)
        assert_same(root, data.images[0].file_name, labels())
        assert data.images[0].path == root / image
        assert [category.name for category in data.categories] == ["object"]


def test_read_label_maps__folders_of_classes(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.png")
    write_map(tmp_path / "masks" / "scratch" / "1.png", (labels() == 1).astype(np.uint8))
    write_map(tmp_path / "masks" / "crack" / "1.png", (labels() == 2).astype(np.uint8) * 9)
    data = read_split(tmp_path)
    assert [(one.id, one.name) for one in data.categories] == [(1, "crack"), (2, "scratch")]
    found = dict(masks_of(data)["1.png"])
    np.testing.assert_array_equal(found["crack"], labels() == 2)
    np.testing.assert_array_equal(found["scratch"], labels() == 1)


def test_read_label_maps__one_file_an_object(tmp_path: Path) -> None:
    root = tmp_path / "stage1_train"
    rng = np.random.default_rng(0)
    masks = [rng.random((24, 32)) < 0.2 for _ in range(3)]  # they overlap
    write_image(root / "abc" / "images" / "abc.png")
    for number, mask in enumerate(masks):
        write_map(root / "abc" / "masks" / f"{number}.png", mask.astype(np.uint8) * 255)
    write_image(root / "empty" / "images" / "empty.png", seed=1)
    (root / "empty" / "masks").mkdir()
    for folder in (root, tmp_path):
        data = read_split(folder)
        assert [len(image.annotations) for image in data.images] == [3, 0]
        found = masks_of(data)[data.images[0].file_name]
        for (_, mask), expected in zip(found, masks, strict=True):
            np.testing.assert_array_equal(mask, expected)


def test_read_label_maps__every_malformed_map_is_named(tmp_path: Path) -> None:
    for number in range(6):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    masks = tmp_path / "masks"
    write_map(masks / "0.png", labels())
    write_map(masks / "1.png", labels()[:-1])
    colours = np.zeros((24, 32, 3), np.uint8)
    colours[2, 2] = (255, 0, 0)
    write_map(masks / "2.png", colours)
    write_map(masks / "3.tif", labels().astype(np.float32))
    (masks / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    write_map(masks / "lost.png", labels())
    write_map(masks / "5.tif", labels().astype(np.int32) - 1)
    with pytest.raises(DatasetError, match="6 errors") as caught:
        read_split(tmp_path)
    text = str(caught.value)
    assert "1.png: expected 24 x 32 pixels (height x width) as its image, got 23 x 32" in text
    assert "2.png: expected a label map of one channel, got colours; save it with one channel" in text
    assert "3.tif: expected a label map of whole numbers, got Pillow mode 'F'" in text
    assert "4.png: expected" in text
    assert "5.tif: expected values of 0 and more, got -1" in text
    assert "lost: expected an image lost in images, got none" in text


def test_read_label_maps__warns_of_bitmaps_and_images_without_a_map(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / "images" / f"{number}.png", seed=number)
    for number in range(2):
        write_map(tmp_path / "masks" / f"{number}.png", (labels(number) > 2).astype(np.uint8) * 255)
    data, faults = parse_coco(find_split(tmp_path))
    texts = [str(fault) for fault in faults]
    assert any(text.startswith("all 2 label maps have the one value 255: each is read as one object") for text in texts)
    assert "2: left out: no label map of this name" in texts
    assert len(data.images) == 2


def test_read_label_maps__warns_of_maps_of_classes(tmp_path: Path) -> None:
    """Values that lie in many pieces look like classes; whole objects do not."""
    whole = np.zeros((24, 32), dtype=np.uint8)
    whole[2:6, 2:6], whole[10:20, 10:20] = 1, 2
    for folder, values in (("scattered", labels()), ("whole", whole)):
        write_image(tmp_path / folder / "images" / "1.png")
        write_map(tmp_path / folder / "masks" / "1.png", values)
        _, faults = parse_coco(find_split(tmp_path / folder))
        said = [str(fault) for fault in faults if "are in several pieces" in str(fault)]
        assert len(said) == (folder == "scattered")


def test_find_splits__images_of_label_maps_may_lie_anywhere(tmp_path: Path) -> None:
    write_image(tmp_path / "pictures" / "1.jpg")
    write_map(tmp_path / "elsewhere" / "1.png", labels())
    maps, images = tmp_path / "elsewhere", tmp_path / "pictures"
    splits, _ = find_splits(
        None, valid_annotations=maps, valid_images=images, dataset_format="label-maps", valid_split=0
    )
    data, faults = parse_coco(splits["valid"])
    assert not [fault for fault in faults if fault.severity == "error"]
    assert data.images[0].path == tmp_path / "pictures" / "1.jpg"
    assert len(data.images[0].annotations) == 5


def test_find_splits__several_formats_are_refused_by_name(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.png")
    write_map(tmp_path / "masks" / "1.png", labels())
    (tmp_path / "data.yaml").write_text("names: [a]\n")
    (tmp_path / "_annotations.coco.json").write_text("{}")
    with pytest.raises(DatasetError, match="got coco, yolo, label-maps; choose with --format coco or --format yolo"):
        find_splits(tmp_path)
    assert find_splits(tmp_path, valid_split=0, dataset_format="label-maps")[0]["train"].format == "label-maps"


def test_find_label_maps__names_a_split_whose_folder_of_maps_is_empty(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_image(tmp_path / split / "images" / "a.png")
        (tmp_path / split / "masks").mkdir()
    write_map(tmp_path / "train/masks/a.png", labels())
    with pytest.raises(DatasetError, match=r"valid/masks: expected label maps \(PNG or TIFF\), got none; write them"):
        find_label_maps(tmp_path)
    (tmp_path / "valid/masks").rmdir()
    assert set(find_label_maps(tmp_path)) == {"train"}


@pytest.mark.parametrize("background", [0, 255])
def test_read_label_maps__warns_of_a_background_that_is_not_0(tmp_path: Path, background: int) -> None:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "images" / f"{name}.png", seed=ord(name))
        values = np.full((24, 32), background, np.uint8)
        values[4:12, 5:20], values[10:20, 15:25] = 1, 2
        write_map(tmp_path / "masks" / f"{name}.png", values)
    _, faults = parse_coco(find_split(tmp_path))
    told = [fault.reason for fault in faults if fault.kind == "background that is not 0"]
    reason = (
        "in 3 of 3 label maps the value 255 covers the border and most of the picture, and is read as one object: 0 is "
        "background; if this value is, write it as 0"
    )
    assert told == ([reason] if background else [])
