"""Images of one picture are found by their names and contents, and stay on one side of a split."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import pytest

from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.siblings import equal_files, sibling_keys

FILLER = [f"picture{letter}.png" for letter in "abcdefghijklmnop"]  # so that a group is a small part of all


def groups_of(names: list[str]) -> list[list[str]]:
    """The groups of two and more names with equal keys."""
    found: dict[str, list[str]] = defaultdict(list)
    all_names = names + FILLER
    for name, key in zip(all_names, sibling_keys(all_names), strict=True):
        found[key].append(name)
    return [group for group in found.values() if len(group) > 1]


@pytest.mark.parametrize(
    "names",
    [
        ["IMG_1_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg", "IMG_1_jpg.rf.ffffffffffffffffffffffffffffffff.jpg"],
        ["IMG_1.jpg", "IMG_1_jpg.rf.0a1b2c3d4e5f60718293a4b5c6d7e8f9.jpg"],
        ["scan_x0_y0.png", "scan_x512_y0.png", "scan_x512_y512.png"],
        ["scan-r0-c0.png", "scan-r0-c1.png"],
        ["scan_row1_col1.tif", "scan_row1_col2.tif"],
        ["scan_0_0.png", "scan_0_1.png", "scan_1_0.png", "scan_1_1.png"],
        ["scan_0_512.png", "scan_0_0.png", "scan_512_0.png", "scan_512_512.png"],
        ["scan_0_0_512_512.png", "scan_410_0_922_512.png"],
        ["P0001__1__0___0.png", "P0001__1__824___0.png"],
        ["scan_tile_1.png", "scan_tile_2.png", "scan_tile_3.png"],
        ["leaf.jpg", "leaf_flip.jpg", "leaf_hflip.jpg", "leaf_rot90.jpg"],
        ["leaf_aug_0.jpg", "leaf_aug_1.jpg", "leaf.jpg"],
        ["leaf.jpg", "aug_1_leaf.jpg"],
        ["leaf.jpg", "leaf - Copy.jpg", "leaf - Copy (2).jpg"],
        ["sub/scan_x0_y0.png", "sub/scan_x64_y0.png"],
    ],
)
def test_sibling_keys__join_what_comes_from_one_picture(names: list[str]) -> None:
    assert groups_of(names) == [names]


@pytest.mark.parametrize(
    "names",
    [
        ["2007_000032.jpg", "2007_000033.jpg", "2008_000001.jpg"],
        ["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000025.jpg"],
        ["0001.png", "0002.png", "0003.png"],
        ["train/0001.png", "val/0001.png"],
        ["a.jpg", "a.png"],
        ["cat/001_flip.png", "dog/001.png"],
        ["IMG (1).jpg", "IMG (2).jpg"],
        ["aachen_000000_000019.png", "aachen_000007_000019.png", "aachen_000012_000019.png"],
        ["000001_10.png", "000001_11.png"],
        ["run_3_7.png", "run_9_12.png", "run_4_30.png"],
    ],
)
def test_sibling_keys__leave_pictures_with_numbers_alone(names: list[str]) -> None:
    assert groups_of(names) == []


def test_sibling_keys__do_not_take_a_name_that_most_images_share() -> None:
    names = [f"field_crop_{number}.png" for number in range(100)]
    assert sibling_keys(names) == names


def test_equal_files__compare_content_not_length(tmp_path: Path) -> None:
    contents = [b"a" * 20_000, b"a" * 20_000, b"a" * 9_000 + b"b" + b"a" * 10_999, b"short", b"other"]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert equal_files([*map(str, paths), str(tmp_path / "missing")]) == [[0, 1]]


def write(file: Path, names: list[str]) -> Path:
    images = [{"id": number, "file_name": name, "height": 8, "width": 8} for number, name in enumerate(names)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return file


def valid_names(file: Path, names: list[str], share: float) -> tuple[set[str], str]:
    splits, notes = find_splits(file, valid_split=share)
    assert splits["valid"].image_ids is not None
    assert splits["train"].image_ids == frozenset(range(len(names))) - splits["valid"].image_ids
    return {names[image_id] for image_id in splits["valid"].image_ids}, notes[0]


def test_find_splits__without_siblings_divides_by_the_hash_of_the_names(tmp_path: Path) -> None:
    names = [f"{number:06}.jpg" for number in range(50)]
    chosen, note = valid_names(write(tmp_path / "a.json", names), names, 0.2)
    assert chosen == set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:10])
    assert note.endswith("are held out as valid (valid_split=0.2)")


def test_find_splits__keeps_siblings_on_one_side(tmp_path: Path) -> None:
    names = [f"scan{scan}_x{x}_y{y}.png" for scan in range(20) for x in (0, 64) for y in (0, 64)]
    chosen, note = valid_names(write(tmp_path / "a.json", names), names, 0.2)
    scans = {name.split("_")[0] for name in chosen}
    assert len(chosen) == 16
    assert chosen == {name for name in names if name.split("_")[0] in scans}
    assert note.endswith(
        "; 80 images in 20 groups stay together: copies by an exporter or augmentation, tiles of one picture, or files "
        "of equal content (scan0_x0_y0.png and scan0_x0_y64.png)"
    )
    again, _ = valid_names(write(tmp_path / "b" / "c.json", names[::-1]), names[::-1], 0.2)
    assert again == chosen


def test_find_splits__keeps_files_of_equal_content_on_one_side(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(12)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"picture %d" % (number // 3))
    chosen, note = valid_names(write(tmp_path / "a.json", names), names, 0.25)
    assert len(chosen) == 3
    assert len({int(name.split(".")[0]) // 3 for name in chosen}) == 1
    assert "12 images in 4 groups stay together" in note


def test_find_splits__divides_the_tiles_of_a_single_picture_and_says_so(tmp_path: Path) -> None:
    names = ["scan_0_0.png", "scan_0_1.png", "scan_1_0.png", "scan_1_1.png"]
    chosen, note = valid_names(write(tmp_path / "a.json", names), names, 0.25)
    assert len(chosen) == 1
    assert "all of them come from one picture by their names or content (scan_0_0.png): expect too high scores" in note
