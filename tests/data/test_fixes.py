"""`check-data --fix`: what is certain is corrected in a copy, what is sound stays as it is, all of it is listed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.cli import main
from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.fix_masks import clean_segmentation, explain_box
from mask2former_dinov3.data.fixes import FixSummary, write_fixes
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.errors import DatasetError, OptionError

Edit = Callable[[dict[str, Any]], object]
SQUARE = [[4, 4, 20, 4, 20, 20, 4, 20]]


def write_data(root: Path, change: Edit, bright: bool = True) -> Path:
    """Two images of 64 x 80 (height x width) with two bright squares each; the first annotation has a bbox and area."""
    (root / "train").mkdir(parents=True)
    annotations: list[dict[str, Any]] = []
    for image in (1, 2):
        pixels = np.full((64, 80, 3), 20, np.uint8)
        for number, (x, y, side) in enumerate([(4, 4, 16), (40, 10, 20)]):
            if bright:
                pixels[y : y + side, x : x + side] = 200
            segmentation = [[x, y, x + side, y, x + side, y + side, x, y + side]]
            annotations.append(
                {"id": 2 * image + number, "image_id": image, "category_id": 1, "segmentation": segmentation}
                | {"iscrowd": 0, "bbox": [x, y, side, side], "area": side * side, "note": 0.1 + 0.2}
            )
        Image.fromarray(pixels).save(root / "train" / f"{image}.png")
    images = [{"id": image, "file_name": f"{image}.png", "height": 64, "width": 80} for image in (1, 2)]
    content = {"info": {"by": "a tool"}, "images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "square"}]
    change(content)
    (root / "train" / "_annotations.coco.json").write_text(json.dumps(content))
    return root


def fix(root: Path, valid_split: float = 0) -> tuple[FixSummary, dict[str, Any]]:
    """The summary, and the corrected content of train."""
    splits, notes = find_splits(root, valid_split=valid_split)
    output = root.parent / "fixed"
    summary = write_fixes(check_data(splits, notes), splits, output, valid_split)
    content: dict[str, Any] = json.loads((output / "annotations" / "instances_train.json").read_text())
    return summary, content


def by_id(content: dict[str, Any], annotation_id: int) -> dict[str, Any]:
    (found,) = [one for one in content["annotations"] if one["id"] == annotation_id]
    return dict(found)


def test_write_fixes__sound_data_is_copied_as_it_is(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", lambda _: None)
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    summary, content = fix(root)
    assert content == json.loads((root / "train" / "_annotations.coco.json").read_text())
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    assert "  nothing to change" in summary.text().splitlines()
    assert summary.left == []


EDITS: dict[str, tuple[Edit, str, str]] = {
    # what is done to the data, what is listed, and the JSON of annotation 2 afterwards ("" where it is gone)
    "an RLE in a list": (
        lambda data: data["annotations"][0].update(
            segmentation=[{"size": [64, 80], "counts": [0, 64, 64 * 79]}], bbox=[0, 0, 1, 64], area=64
        ),
        "RLE taken out of its list",
        '"segmentation": {"size": [64, 80], "counts": [0, 64, 5056]}',
    ),
    "a bare polygon": (
        lambda data: data["annotations"][0].update(segmentation=SQUARE[0]),
        "polygon put into a list",
        f'"segmentation": {SQUARE}',
    ),
    "pairs": (
        lambda data: data["annotations"][0].update(segmentation=[[[4, 4], [20, 4], [20, 20], [4, 20]]]),
        "polygon of [x, y] pairs written as a flat list",
        f'"segmentation": {SQUARE}',
    ),
    "a stray part": (
        lambda data: data["annotations"][0]["segmentation"].append([30, 30]),
        "parts of fewer than 3 points removed beside sound ones",
        f'"segmentation": {SQUARE}',
    ),
    "no mask": (
        lambda data: data["annotations"][0].update(segmentation=[]),
        "annotation without a mask removed",
        "",
    ),
    "a mask outside the image": (
        lambda data: data["annotations"][0].update(segmentation=[[90, 4, 99, 4, 99, 20]]),
        "annotation whose mask covers no pixel removed",
        "",
    ),
    "an odd polygon": (
        lambda data: data["annotations"][0].update(segmentation=[[4, 4, 20, 4, 20, 20, 4]]),
        "annotation with a malformed mask removed",
        "",
    ),
    "no such image": (
        lambda data: data["annotations"][0].update(image_id=77),
        "annotation of no image removed",
        "",
    ),
    "no such category": (
        lambda data: data["annotations"][0].update(category_id=77),
        "annotation of no category removed",
        "",
    ),
    "corners": (
        lambda data: (
            data["annotations"][1].update(bbox=[40, 10, 60, 30]) or data["annotations"][0].update(bbox=[1, 1, 1, 1])
        ),
        "box computed from the mask",
        '"bbox": [4.0, 4.0, 16.0, 16.0]',
    ),
    "a box that is no box": (
        lambda data: data["annotations"][0].update(bbox=[1, 2, 3, "x"]),
        "box computed from the mask",
        '"bbox": [4.0, 4.0, 16.0, 16.0]',
    ),
    "an area of nothing": (
        lambda data: data["annotations"][0].update(area=3),
        "area computed from the mask",
        '"area": 256.0',
    ),
    "an id of another": (
        lambda data: data["annotations"][1].update(id=2),
        "annotation without an id of its own gets a new one",
        '"area": 256',
    ),
    "an object twice": (
        lambda data: data["annotations"].append(
            data["annotations"][0] | {"id": 50, "segmentation": [[20, 4, 20, 20, 4, 20, 4, 4]]}
        ),
        "annotation that repeats another of its image removed",
        f'"segmentation": {SQUARE}',
    ),
    "an image that is missing": (
        lambda data: data["images"].append({"id": 3, "file_name": "gone.png", "height": 64, "width": 80}),
        "image removed with its annotations, its file is missing",
        f'"segmentation": {SQUARE}',
    ),
    "sizes of nothing": (
        lambda data: data["images"][0].update(height=0, width=None),
        "height and width taken from the image file",
        f'"segmentation": {SQUARE}',
    ),
    "a size that the masks contradict": (
        lambda data: data["images"][0].update(width=50),
        "height and width taken from the image file",
        f'"segmentation": {SQUARE}',
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_write_fixes__each_fault_is_corrected_listed_and_gone(name: str, tmp_path: Path) -> None:
    change, kind, expected = EDITS[name]
    root = write_data(tmp_path / "data", change)
    original = json.loads((root / "train" / "_annotations.coco.json").read_text())
    summary, content = fix(root)
    assert list(summary.logs["train"].changed) == [kind]
    assert summary.left == []
    listed = json.loads((summary.folder / "fixes.json").read_text())["splits"]["train"]
    assert [one["kind"] for one in listed["changed"]] == [kind]
    assert listed["not_changed"] == []
    ids = [one["id"] for one in content["annotations"]]
    if expected:
        assert expected in json.dumps(by_id(content, 2))
        assert sorted(ids) == ([2, 4, 5, 6] if name == "an id of another" else [2, 3, 4, 5])
    else:
        assert sorted(ids) == [3, 4, 5]
    untouched = [one for one in original["annotations"] if one["id"] in (4, 5)]
    assert [by_id(content, 4), by_id(content, 5)] == untouched
    assert content["info"] == {"by": "a tool"}


def turn_boxes(data: dict[str, Any]) -> None:
    """Boxes whose y counts from below."""
    for one in data["annotations"]:
        left, top, width, height = one["bbox"]
        one["bbox"] = [left, 64 - top - height, width, height]


def test_write_fixes__boxes_of_mirrored_masks_follow_the_edges_of_the_image(tmp_path: Path) -> None:
    summary, content = fix(write_data(tmp_path / "data", turn_boxes))
    assert summary.logs["train"].changed == {"box computed from the mask": [(1, 2), (1, 3), (2, 4), (2, 5)]}
    assert by_id(content, 3)["bbox"] == [40.0, 10.0, 20.0, 20.0]


def test_write_fixes__boxes_stay_where_the_image_does_not_say_which_is_right(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", turn_boxes, bright=False)
    summary, content = fix(root)
    assert summary.logs["train"].changed == {}
    kind = "box fits the mask mirrored top-bottom, and the image does not show which of the two is right"
    assert summary.logs["train"].left == {kind: [(1, 2), (1, 3), (2, 4), (2, 5)]}
    assert content == json.loads((root / "train" / "_annotations.coco.json").read_text())


def test_write_fixes__boxes_of_whole_objects_stay(tmp_path: Path) -> None:
    summary, content = fix(
        write_data(tmp_path / "data", lambda data: data["annotations"][0].update(bbox=[2, 2, 22, 23]))
    )
    kind = "box holds its mask and is larger, it may be of a whole object that is partly hidden"
    assert summary.logs["train"].left == {kind: [(1, 2)]}
    assert by_id(content, 2)["bbox"] == [2, 2, 22, 23]


@pytest.mark.parametrize(("far", "kept"), [(0.3, 4), (2.0, 5)], ids=["IoU 0.96", "IoU 0.78"])
def test_write_fixes__an_object_that_is_nearly_another_repeats_it(far: float, kept: int, tmp_path: Path) -> None:
    """A copy of a square of 16 x 16 pixels, `far` pixels further right."""

    def change(data: dict[str, Any]) -> None:
        moved = [[4 + far, 4, 20 + far, 4, 20 + far, 20, 4 + far, 20]]
        data["annotations"].append({"id": 9, "image_id": 1, "category_id": 1, "segmentation": moved})
        data["annotations"][-1]["iscrowd"] = 0

    _, content = fix(write_data(tmp_path / "data", change))
    assert len(content["annotations"]) == kept


@pytest.mark.parametrize("change", [{"width": 60}, {"width": 64, "height": 80}, {"width": 160, "height": 128}])
def test_write_fixes__sizes_stay_where_the_masks_do_not_say_which_is_right(
    change: dict[str, int], tmp_path: Path
) -> None:
    """60 columns hold every polygon as well as the file's 80; exchanged sides may be a turned image."""
    summary, content = fix(write_data(tmp_path / "data", lambda data: data["images"][0].update(change)))
    assert list(summary.logs["train"].left) == [
        "size of the image differs from its file's, and the masks do not say which is right"
    ]
    assert content["images"][0] == {"id": 1, "file_name": "1.png", "height": 64, "width": 80} | change
    assert [one.severity for one in summary.left] == ["error"]


def test_write_fixes__all_images_missing_is_no_reason_to_remove_them(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", lambda _: None)
    for path in (root / "train").glob("*.png"):
        path.unlink()
    summary, content = fix(root)
    assert len(content["images"]) == 2
    assert "every image is missing" in summary.text()


def test_write_fixes__images_held_out_for_validation_are_corrected_with_the_others(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", lambda data: [one.update(area=1) for one in data["annotations"]])
    (root / "train" / "_annotations.coco.json").rename(root / "_annotations.coco.json")
    (root / "train").rename(root / "images")
    summary, content = fix(root, valid_split=0.5)
    assert list(summary.logs) == ["train"]
    assert [one["area"] for one in content["annotations"]] == [256, 400, 256, 400]
    before, after = (find_splits(path, valid_split=0.5)[0]["valid"].image_ids for path in (root, summary.folder))
    assert before == after


def test_write_fixes__names_follow_images_that_were_found_elsewhere(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["images"][0]["file_name"] = "C:\\photos\\1.png"

    summary, content = fix(write_data(tmp_path / "data", change))
    assert content["images"][0]["file_name"] == "1.png"
    assert summary.left == []


def test_write_fixes__overwrites_nothing_and_takes_coco_files_only(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", lambda _: None)
    splits, notes = find_splits(root, valid_split=0)
    report = check_data(splits, notes)
    with pytest.raises(
        OptionError, match=r"fix: expected a new or empty folder, got .*data, a folder with files in it"
    ):
        write_fixes(report, splits, root)
    (root / "train" / "_annotations.coco.json").write_text("[]")
    with pytest.raises(DatasetError, match="expected COCO annotations"):
        write_fixes(report, splits, tmp_path / "fixed")
    assert not (tmp_path / "fixed").exists()


def test_run_check_data__fixed_copy_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_data(tmp_path / "data", EDITS["no such image"][0])
    assert main(["check-data", str(root), "--valid-split", "0", "--fix", str(tmp_path / "fixed")]) == 1
    assert "  changed: annotation of no image removed: 1 annotation (ids 2)\n" in capsys.readouterr().out
    assert main(["check-data", str(tmp_path / "fixed"), "--valid-split", "0"]) == 0
    assert main(["check-data", str(root), "--fix", str(tmp_path / "fixed")]) == 1
    assert "--fix: expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value", [SQUARE, [], "", None, [[4, 4, 20, 4, 20, 20], "x"], [[1, 2], [3, 4]], {"counts": ""}]
)
def test_clean_segmentation__leaves_what_is_sound_or_not_certain(value: object) -> None:
    cleaned, changes = clean_segmentation(value)
    assert cleaned is value
    assert changes == []


@pytest.mark.parametrize(
    ("box", "name"),
    [
        ([10, 20, 40, 60], "box as corners x0, y0, x1, y1"),
        ([0.05, 0.2, 0.15, 0.4], "box as fractions of the image"),
        ([5, 20, 15, 40], "box in percent of the image"),
        ([20, 10, 40, 30], "x and y exchanged"),
        ([160, 20, 30, 40], "mirrored left-right"),
        ([10, 40, 30, 40], "mirrored top-bottom"),
        ([160, 40, 30, 40], "turned by 180 degrees"),
        ([5, 10, 15, 20], "scaled"),
        ([90, 50, 30, 40], "moved"),
        ([90, 50, 10, 40], "another box"),
    ],
)
def test_explain_box__names_the_relation(box: list[float], name: str) -> None:
    """The mask's box is 10, 20, 30, 40 in an image of 100 x 200 (height x width)."""
    found = explain_box((box[0], box[1], box[2], box[3]), (10, 20, 30, 40), (100, 200))
    assert found.name == name
