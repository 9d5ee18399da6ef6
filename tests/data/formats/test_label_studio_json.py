"""Label Studio's export in its own JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.faults import FaultReport
from mask2former_dinov3.data.formats.brushes import encode_brush
from mask2former_dinov3.data.formats.label_studio_json import read_label_studio
from mask2former_dinov3.data.formats.source_content import Part
from mask2former_dinov3.data.rle import Window
from mask2former_dinov3.errors import DatasetError
from support.formats import find_split, masks_of, read_split, write_image

SIZE = {"original_width": 32, "original_height": 24, "image_rotation": 0}


def region(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{name}-{kind}", "type": kind, "value": {**value, kind: [name]}, **SIZE}


def brush(name: str, **rest: Any) -> dict[str, Any]:
    """A square of 4 x 4 pixels with a hole of one."""
    pixels = np.ones((4, 4), dtype=np.uint8)
    pixels[1, 1] = 0
    code = encode_brush(Window(pixels, 3, 5), 24, 32)
    return region(name, "brushlabels", {"format": "rle", "rle": code}) | rest


def task(number: int, result: list[dict[str, Any]] | None, **data: Any) -> dict[str, Any]:
    data = {"image": f"/data/local-files/?d=photos/{number}.png"} | data
    return {"id": number, "data": data, "annotations": [] if result is None else [{"id": 1, "result": result}]}


def write(root: Path, *tasks: dict[str, Any]) -> Path:
    root.mkdir(exist_ok=True)
    for one in tasks:
        write_image(root / "images" / f"{one['id']}.png", seed=one["id"])
    (root / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    return root


def test_read_split__brushes_polygons_rectangles_and_ellipses(tmp_path: Path) -> None:
    polygon = region("cell", "polygonlabels", {"points": [[25, 25], [50, 25], [50, 75], [25, 75]]})
    turned = region("disc", "rectanglelabels", {"x": 50, "y": 25, "width": 25, "height": 25, "rotation": 90})
    ellipse = region("disc", "ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0})
    root = write(tmp_path, task(1, [brush("cell"), polygon, turned]), task(2, [ellipse]), task(3, []))
    data = read_split(root)
    assert [(one.id, one.name) for one in data.categories] == [(1, "cell"), (2, "disc")]
    found = masks_of(data)
    assert {name: [label for label, _ in masks] for name, masks in found.items()} == {
        "1.png": ["cell", "cell", "disc"],
        "2.png": ["disc"],
        "3.png": [],
    }
    square = np.zeros((24, 32), dtype=bool)
    square[3:7, 5:9], square[4, 6] = True, False
    np.testing.assert_array_equal(found["1.png"][0][1], square)
    box = np.zeros((24, 32), dtype=bool)
    box[6:18, 8:16] = True
    np.testing.assert_array_equal(found["1.png"][1][1], box)
    right = np.zeros((24, 32), dtype=bool)  # 8 x 6 pixels from (16, 6), turned clockwise about that corner
    right[6:14, 10:16] = True
    np.testing.assert_array_equal(found["1.png"][2][1], right)
    disc = found["2.png"][0][1]
    assert abs(int(disc.sum()) - np.pi * 8 * 6) < 4


def test_read_split__keeps_the_ids_that_predict_wrote(tmp_path: Path) -> None:
    ids = {"categories": {"large ": 7, "small": 3}}
    root = write(
        tmp_path, task(1, [brush("small"), brush("new")], image_id=11, **ids), task(2, [brush("large")], image_id=40)
    )
    data = read_split(root)
    assert [(one.id, one.name) for one in data.categories] == [(3, "small"), (7, "large"), (10, "new")]
    assert [image.id for image in data.images] == [11, 40]
    assert not check_data({"train": find_split(root)}).errors


def test_find_splits__takes_no_other_list_and_no_broken_link(tmp_path: Path) -> None:
    root = write(tmp_path, task(1, [brush("cell")]))
    (root / "results.json").write_text('[{"image_id": 1, "segmentation": {}}]')
    (root / "gone.json").symlink_to(root / "nowhere")
    assert find_split(root).annotations == root / "export.json"
    (root / "second.json").write_bytes((root / "export.json").read_text().encode("utf-16"))
    with pytest.raises(DatasetError, match=r"expected one export of Label Studio, got export\.json, second\.json"):
        find_split(root)


def test_read_split__counts_what_is_left_out(tmp_path: Path) -> None:
    point = region("cell", "keypointlabels", {"x": 5, "y": 5})
    parallel = [brush("cell"), {**brush("cell"), "type": "brush"}, {**brush("x"), "id": "alone", "type": "brush"}]
    double = task(2, [brush("cell")])
    double["annotations"] = [{"result": []}, {"result": [brush("cell")]}, {"result": [], "was_cancelled": True}]
    choice = {**brush("cell"), "type": "choices", "value": {"x": 5, "y": 5, "choices": ["good"]}}
    shapeless = region("cell", "bitmasklabels", {"imageDataURL": "data:image/png;base64,"})
    two = brush("cell")
    two["value"]["brushlabels"] = ["cell", "round"]
    first = task(1, [point, *parallel, choice, shapeless, two], image_id=5, categories={"cell": 4})
    root = write(tmp_path, first, double | {"data": double["data"] | {"categories": {"cell": 5}}}, task(3, None))
    data = read_split(root)
    assert [(one.id, one.name) for one in data.categories] == [(4, "cell")]
    assert {name: len(masks) for name, masks in masks_of(data).items()} == {"1.png": 2, "2.png": 1}
    notes = str(check_data({"train": find_split(root)}).text())
    for told in (
        "1 tasks without an annotation; left out",
        "2 regions without an area; left out",
        "1 regions without a class; left out",
        "1 further classes of regions, of which the first is read",
        "1 ids of classes that contradict those of an earlier task; left out",
        "image_id: expected one of its own for each task, got others; images are numbered in their order",
        "1 further annotations of a task, of which the last is read",
    ):
        assert told in notes


@pytest.mark.parametrize(
    ("tasks", "told"),
    [
        ([task(1, None), task(2, None)], r"none in 2 tasks \(2 tasks without an annotation\)"),
        ([task(1, []), task(2, None)], r"none in 2 tasks \(1 tasks without an annotation\)"),
        ([task(1, [{**brush("x"), "type": "brush"}])], r"none in 1 task \(1 regions without a class\)"),
        ([task(1, [])], "none in 1 task"),
        ([], "none in 0 tasks"),
    ],
)
def test_read_label_studio__says_what_was_left_out_where_nothing_is_annotated(
    tmp_path: Path, tasks: list[dict[str, Any]], told: str
) -> None:
    part = Part(write(tmp_path, *tasks) / "export.json", tmp_path / "images")
    with pytest.raises(DatasetError, match=rf"export\.json: expected a region with a class, got {told}$"):
        read_label_studio(part, FaultReport("export.json"))


def test_read_split__finds_images_by_their_address(tmp_path: Path) -> None:
    images = tmp_path / "images"
    for name in ("1.png", "a/1.png", "b/1.png", "2 b.png", "c.png", "d.png", "e.png", "f.png", "g.png", "h.png"):
        write_image(images / name)
    addresses = [
        "/data/local-files/?d=x%2Fimages/b/1.png",
        "/data/upload/3/0f1e2d3c-2%20b.png",
        "s3://bucket/a/1.png",
        r"/data/local-files/?d=images%5Cc.png",
        "https://bucket/d.png?d=5",
        "http://[bucket/e.png",
        "https://host/files/0f1e2d3c-f/",
        "https://host/get?token=x&key=photos%2Fg.png",
        "https://host/get?id=h",
    ]
    tasks = [task(number, [brush("cell")], image=address) for number, address in enumerate(addresses)]
    (tmp_path / "export.json").write_text(json.dumps(tasks), encoding="utf-8")
    assert [image.file_name for image in read_split(tmp_path).images] == [
        "b/1.png",
        "2 b.png",
        "a/1.png",
        "c.png",
        "d.png",
        "e.png",
        "f.png",
        "g.png",
        "h.png",
    ]
    (images / "1.png").unlink()
    for address, told in (
        ("c/1.png", r'called "c/1\.png", but \["a/1\.png", "b/1\.png"\]'),
        ("x", "no path of an image"),
        ("https://host/?token=", r'without the name of an image, "https://host/"; give the file of each'),
        ("https://host/get?id=7", r'without the name of an image, "https://host/get"'),
    ):
        (tmp_path / "export.json").write_text(json.dumps([task(1, [brush("cell")], image=address)]), encoding="utf-8")
        with pytest.raises(DatasetError, match=told):
            read_split(tmp_path)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"image_rotation": 90}, "task 1: image_rotation: expected an image as it is stored"),
        ({"original_width": 31}, "1.png: .*31"),
        (
            {"value": {"rle": [1, 2], "brushlabels": ["cell"]}},
            'task 1, region "cell-brushlabels": rle: expected a list',
        ),
        ({"value": {"rle": "a", "brushlabels": ["cell"]}}, "rle: expected a list of bytes"),
        (
            {"id": [1], "type": "polygonlabels", "value": {"points": [[1]], "polygonlabels": ["cell"]}},
            "points: expected a list of",
        ),
        ({"type": "polygonlabels", "value": {"points": [[1, 1]], "polygonlabels": ["cell"]}}, "at least 3 points"),
        (
            {
                "type": "rectanglelabels",
                "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 1e400, "rectanglelabels": ["cell"]},
            },
            "rotation: expected numbers below 1,000,000,000, got Infinity",
        ),
    ],
)
def test_read_split__says_what_is_wrong(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    root = write(tmp_path, task(1, [brush("cell", **changed)]))
    with pytest.raises(DatasetError, match=told):
        read_split(root)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"data": "1.png"}, "task 1: data: expected an object, got a string"),
        ({"annotations": {"result": []}}, "task 1: annotations: expected a list of objects, got an object"),
        ({"annotations": [{"result": "none"}]}, "task 1: result: expected a list of objects, got a string"),
        ({"annotations": [{"result": [7]}]}, "task 1: result: expected a list of objects, got a number in it"),
    ],
)
def test_read_split__says_which_values_of_a_task_are_wrong(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    root = write(tmp_path, task(1, [brush("cell")]) | changed, task(2, [brush("cell")]))
    with pytest.raises(DatasetError, match=told):
        read_split(root)


def test_read_split__says_which_image_is_missing(tmp_path: Path) -> None:
    root = write(tmp_path, task(1, [brush("cell")]))
    (root / "images" / "1.png").rename(root / "images" / "other.png")
    with pytest.raises(
        DatasetError, match=r'task 1: expected the image of the task below .*, got none called "photos/1'
    ):
        read_split(root)
