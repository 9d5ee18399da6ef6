"""What is there twice is counted: objects in a picture, pictures in a split, pictures and siblings in two splits."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data import duplicates
from mask2former_dinov3.data.check import Report, check_data
from mask2former_dinov3.data.duplicates import near_pairs
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from support.coco import rle_of

SQUARES = [(4, 4, 16), (30, 8, 20), (10, 36, 18)]  # left, top, side


def square(left: float, top: float, side: float) -> list[float]:
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def write(root: Path, splits: dict[str, list[str]], seed: int = 0) -> Path:
    """Pictures of noise, each of its own, with three squares each."""
    rng = np.random.default_rng(seed)
    for split, names in splits.items():
        folder = root / split
        folder.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for image_id, name in enumerate(names, start=1):
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / name, "PNG")
            images.append({"id": image_id, "file_name": name, "height": 64, "width": 64})
            for place in SQUARES:
                fields = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
                annotations.append({**fields, "segmentation": [square(*place)]})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
        (folder / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def edit(root: Path, split: str) -> tuple[Path, dict[str, Any]]:
    file = root / split / "_annotations.coco.json"
    return file, json.loads(file.read_text())


def check(root: Path, *, full: bool = True) -> Report:
    return check_data(*find_splits(root), full=full)


def texts(report: Report, split: str, severity: str = "warning") -> list[str]:
    return [str(fault) for fault in report.splits[split].of(severity)]


def mask_of(left: int, top: int, side: int) -> dict[str, Any]:
    mask = np.zeros((64, 64), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return rle_of(mask)


@pytest.mark.parametrize(
    ("segmentation", "same"),
    [
        ([square(30, 8, 20)], True),
        ([square(30, 8, 20)[::-1]], True),  # another order of x and y: another square, see below
        ([square(30, 8, 20)[2:] + square(30, 8, 20)[:2]], True),
        ([square(30.2, 8.2, 20)], True),
        (mask_of(30, 8, 20), True),
        ([square(31, 8, 20)], False),  # IoU 0.90
        ([square(30, 8, 19)], False),
        ([square(30, 8, 10), square(30, 18, 10), square(40, 18, 10)], False),  # the box alone is the same
    ],
    ids=["equal", "exchanged", "from another vertex", "moved a little", "RLE", "moved", "smaller", "three quarters"],
)
def test_check_data__counts_objects_that_are_there_twice(segmentation: Any, same: bool, tmp_path: Path) -> None:
    root = write(tmp_path, {"train": ["1.png", "2.png"], "valid": ["3.png"]})
    file, content = edit(root, "train")
    copy = {**content["annotations"][4], "id": 100, "segmentation": segmentation}
    if segmentation == [square(30, 8, 20)[::-1]]:
        copy["segmentation"] = [np.reshape(square(30, 8, 20), (-1, 2))[::-1].ravel().tolist()]  # the other way round
    content["annotations"].insert(0, copy)
    file.write_text(json.dumps(content))
    for full in (True, False):
        found = texts(check(root, full=full), "train")
        assert (
            found
            == [
                "image 2, annotation 5: 1 of 7 objects have the mask of an earlier one of the same picture and "
                "class (IoU of at least 0.95; annotation 5 that of 100); training counts both, and AP falls: remove one"
            ]
            * same
        )


def test_check_data__the_same_mask_in_two_classes_is_a_note(tmp_path: Path) -> None:
    root = write(tmp_path, {"train": ["1.png", "2.png"]})
    file, content = edit(root, "train")
    content["categories"].append({"id": 2, "name": "b"})
    content["annotations"] += [{**one, "id": one["id"] + 50, "category_id": 2} for one in content["annotations"]]
    file.write_text(json.dumps(content))
    report = check_data(*find_splits(root, valid_split=0))
    assert texts(report, "train") == []
    (note,) = report.splits["train"].of("note")
    assert note.reason.startswith(
        "6 of 12 objects have the mask of an earlier one of the same picture, in another class"
    )


def test_check_data__counts_pictures_under_several_names(tmp_path: Path) -> None:
    """Equal files, equal pixels in another file format; one of a single colour does not count."""
    root = write(tmp_path, {"train": [f"{number}.png" for number in range(1, 8)], "valid": ["v.png", "w.png"]})
    train = root / "train"
    (train / "2.png").write_bytes((train / "1.png").read_bytes())
    with Image.open(train / "1.png") as picture:
        picture.save(train / "3.png", "BMP")
        picture.save(root / "valid" / "w.png", "TIFF")
    for name in ("5.png", "6.png"):
        Image.new("RGB", (64, 64), (9, 9, 9)).save(train / name)
    report = check(root)
    assert texts(report, "train") == [
        "2 pictures are in this split under another name as well, such as 2.png: the same picture as image 1 (1.png); "
        "remove one of each (images 2, 3)"
    ]
    assert texts(report, "valid") == ["image 2: w.png: the same image as image 1 of train; scores will be too high"]
    assert texts(check(root, full=False), "train") == []


@pytest.mark.parametrize(
    ("train", "valid", "number"),
    [
        (["a_jpg.rf." + "0" * 32 + ".jpg", "b.jpg"], ["a_jpg.rf." + "1" * 32 + ".jpg", "c.jpg"], 1),
        (["s_x0_y0.png", "s_x0_y64.png", "t.png"], ["s_x64_y0.png", "s_x64_y64.png", "u.png"], 2),
        (["leaf.png", "b.png"], ["leaf_flip.png", "c.png"], 1),
        (["0001.png", "0001_flip.png"], ["0001.png", "0001_flip.png"], 0),  # both count from the start
        (["a.png", "b.png"], ["c.png", "d.png"], 0),
    ],
)
def test_check_data__counts_siblings_in_two_splits(
    train: list[str], valid: list[str], number: int, tmp_path: Path
) -> None:
    root = write(tmp_path, {"train": train, "valid": valid})
    found = check(root, full=False).splits["valid"].of("warning")
    assert [len(fault.places) for fault in found] == [number] * bool(number)
    if found:
        assert found[0].kind == "siblings in two splits"
        assert f"such as {valid[0]} here and {train[0]} there; scores will be too high" in found[0].reason


def test_check_data__a_divided_file_has_no_siblings_in_two_splits(tmp_path: Path) -> None:
    names = [f"scan{scan}_x{x}_y{y}.png" for scan in range(4) for x in (0, 64) for y in (0, 64)]
    report = check(write(tmp_path, {"train": names}))
    assert texts(report, "train") == texts(report, "valid") == []


def test_evaluate_coco__says_that_objects_are_annotated_twice(tmp_path: Path) -> None:
    root = write(tmp_path, {"train": ["1.png", "2.png"]})
    _, content = edit(root, "train")
    results = [{**one, "score": 0.9} for one in content["annotations"]]
    assert evaluate_coco(content, results)["notes"] == []
    content["annotations"] += [{**one, "id": one["id"] + 50} for one in content["annotations"][:5]]
    metrics = evaluate_coco(content, results)
    assert metrics["AP"] < 0.6
    assert metrics["notes"][0].startswith(
        "5 of 11 objects are annotated twice (same class, masks with an IoU of at least"
    )


def test_near_pairs__finds_every_pair_in_a_crowd() -> None:
    """300 boxes in each of 20 pictures, every tenth there again; against a comparison of all with all."""
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 900, (6000, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 60, (6000, 2))], axis=1)
    image_of = np.repeat(np.arange(20), 300)
    boxes[::10] = boxes[1::10] + rng.uniform(-0.5, 0.5, (600, 4))
    start = time.process_time()
    found = {tuple(pair) for pair in near_pairs(boxes, image_of).tolist()}
    assert time.process_time() - start < 1
    slack = 1 + 0.05 * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    expected = {
        (i, j)
        for picture in range(20)
        for i in range(300 * picture, 300 * picture + 300)
        for j in (
            np.flatnonzero((np.abs(boxes[i + 1 : 300 * picture + 300] - boxes[i]) <= 1).all(axis=1)) + i + 1
        ).tolist()
    }
    assert expected <= found
    assert {(10 * place, 10 * place + 1) for place in range(600)} <= found
    assert all((np.abs(boxes[i] - boxes[j]) <= np.maximum(slack[i], slack[j])).all() for i, j in found)


def test_near_pairs__piece_by_piece_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    low = rng.integers(0, 12, (400, 2)).astype(float)
    boxes, image_of = np.concatenate([low, low + 6], axis=1), rng.integers(0, 30, 400)
    whole = near_pairs(boxes, image_of)
    assert len(whole) > 100
    for at_once in (1, 7, 399):
        monkeypatch.setattr(duplicates, "MASKS_AT_ONCE", at_once)
        assert near_pairs(boxes, image_of).tolist() == whole.tolist()
    assert near_pairs(boxes[:0], image_of[:0]).shape == (0, 2)
