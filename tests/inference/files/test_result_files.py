"""The files that hold the results of a run: a COCO data set, COCO's list, tables, tasks; other programs read each."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval.core import mask as rle_codec
from pycocotools.coco import COCO

from mask2former_dinov3.data.formats.brushes import decode_brush
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.inference.files.result_files import PredictedImage, to_store, write_results
from mask2former_dinov3.instances import Instances

CATEGORIES = ((3, "disc"), (7, "=bar"))


def disc_and_bars() -> list[Instances]:
    """Three instances in the first image, none in the second; the second instance has a hole."""
    masks = np.zeros((3, 40, 60), dtype=bool)
    masks[0, 5:15, 10:30] = masks[1, 20:35, 5:25] = masks[2, 1, 2] = True
    masks[1, 25:30, 10:20] = False
    first = Instances.from_masks(masks, [0, 1, 1], [0.9, 0.8, 0.25], CATEGORIES)
    return [first, Instances.from_masks(masks[:0], [], [], CATEGORIES)]


def write(output: Path, save: tuple[str, ...], segmentation: str = "rle") -> None:
    images = []
    for number, found in zip((2, 5), disc_and_bars(), strict=True):
        stored: list[Any] = [one for part in to_store(found, 99, save, segmentation) for one in part]
        entry: dict[str, object] = {"id": number, "file_name": f"{number}.png", "height": 40, "width": 60}
        images.append(PredictedImage(entry, partial(iter, stored)))
    write_results(output, images, CATEGORIES, save)


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_write_results__label_studio_opens_brushes_and_polygons(tmp_path: Path, segmentation: str) -> None:
    if segmentation == "polygons":
        pytest.importorskip("rasterio")
    write(tmp_path, ("label-studio",), segmentation)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["label_studio.json", "label_studio.xml"]
    tasks = json.loads((tmp_path / "label_studio.json").read_text())
    assert [task["data"] for task in tasks] == [
        {"image": f"/data/local-files/?d={number}.png", "image_id": number, "categories": {"disc": 3, "=bar": 7}}
        for number in (2, 5)
    ]
    regions = tasks[0]["predictions"][0]["result"]
    assert tasks[1]["predictions"][0]["result"] == []
    assert [(one["id"], one["score"]) for one in regions] == [("1", 0.9), ("2", 0.8), ("3", 0.25)]
    kinds = ["brushlabels"] * 3 if segmentation == "rle" else ["polygonlabels", "brushlabels", "polygonlabels"]
    assert [one["type"] for one in regions] == kinds  # the second has a hole
    assert [one["value"][kind] for one, kind in zip(regions, kinds, strict=True)] == [["disc"], ["=bar"], ["=bar"]]
    for one, mask in zip(regions, disc_and_bars()[0].masks, strict=True):
        assert (one["original_height"], one["original_width"]) == (40, 60)
        if one["type"] == "brushlabels":
            np.testing.assert_array_equal(decode_brush(one["value"]["rle"], 40, 60), mask)
    if segmentation == "polygons":
        corners = np.array(regions[0]["value"]["points"]) * (60, 40) / 100
        assert {tuple(corner) for corner in corners.round(9).tolist()} == {(10, 5), (30, 5), (30, 15), (10, 15)}
    controls = ElementTree.parse(tmp_path / "label_studio.xml").getroot()
    assert [(one.tag, one.get("name"), one.get("toName")) for one in controls] == [
        ("Image", "image", None),
        ("BrushLabels", "brush", "image"),
        ("PolygonLabels", "polygon", "image"),
    ]
    assert [(one.get("value"), one.get("category")) for one in controls[2]] == [("disc", "3"), ("=bar", "7")]
    assert [one.get("value") for one in controls[1]] == ["disc", "=bar"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("segmentation", ["rle", "polygons"])
def test_write_results__coco_is_a_data_set_that_pycocotools_reads(tmp_path: Path, segmentation: str) -> None:
    if segmentation == "polygons":
        pytest.importorskip("rasterio")
    write(tmp_path, ("coco",), segmentation)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.json"]
    read = COCO(tmp_path / "predictions.json")
    assert read.getImgIds() == [2, 5]
    assert [one["name"] for one in read.loadCats([3, 7])] == ["disc", "=bar"]
    found = read.loadAnns(read.getAnnIds())
    expected = disc_and_bars()[0]
    assert [one["id"] for one in found] == [1, 2, 3]
    assert [one["bbox"] for one in found] == [[10, 5, 20, 10], [5, 20, 20, 15], [2, 1, 1, 1]]
    assert [one["area"] for one in found] == [200, 250, 1]
    assert [(one["image_id"], one["category_id"], one["score"], one["iscrowd"]) for one in found] == [
        (2, 3, 0.9, 0),
        (2, 7, 0.8, 0),
        (2, 7, 0.25, 0),
    ]
    for one, mask in zip(found, expected.masks, strict=True):
        assert isinstance(one["segmentation"], dict if segmentation == "rle" else list)
        code = read.annToRLE(one)
        np.testing.assert_array_equal(rle_codec.decode(code), mask)


def test_write_results__coco_results_is_a_bare_list_that_scores_as_the_data_set_does(tmp_path: Path) -> None:
    write(tmp_path, ("coco", "coco-results"))
    results = json.loads((tmp_path / "coco_results.json").read_text())
    assert [set(one) for one in results] == [{"image_id", "category_id", "segmentation", "score"}] * 3
    names = json.loads((tmp_path / "images.json").read_text())
    assert [one["file_name"] for one in names["images"]] == ["2.png", "5.png"]
    whole = json.loads((tmp_path / "predictions.json").read_text())
    # Ground truth with other ids: the names say which image and class is meant.
    truth = {
        "images": [{**one, "id": one["id"] + 10} for one in whole["images"]],
        "categories": [{"id": 1, "name": "=bar"}, {"id": 2, "name": "disc"}],
        "annotations": [
            {**one, "image_id": one["image_id"] + 10, "category_id": {3: 2, 7: 1}[one["category_id"]]}
            for one in whole["annotations"]
        ],
    }
    assert COCO(tmp_path / "predictions.json").loadRes(str(tmp_path / "coco_results.json")).getAnnIds() == [1, 2, 3]
    scores = [
        evaluate_coco(truth, form) | {"seconds": 0, "notes": ()}
        for form in (tmp_path / "predictions.json", tmp_path / "coco_results.json", whole)
    ]
    assert scores[0]["AP"] == scores[0]["box_AP"] == 1
    assert scores[0] == scores[1] == scores[2]


def test_write_results__csv_has_counts_areas_diameters_and_scores(tmp_path: Path) -> None:
    write(tmp_path, ("csv",))
    counts = rows(tmp_path / "counts.csv")
    assert [(one["image"], one["class"], one["count"], one["area_total"]) for one in counts] == [
        ("2.png", "disc", "1", "200"),
        ("2.png", "'=bar", "2", "251"),  # a name that a spreadsheet would compute
        ("5.png", "disc", "0", "0"),
        ("5.png", "'=bar", "0", "0"),
    ]
    assert (counts[1]["area_mean"], counts[1]["area_median"]) == ("125.5", "125.5")
    assert float(counts[1]["diameter_mean"]) == pytest.approx((np.sqrt(250) + 1) / np.sqrt(np.pi), rel=1e-5)
    assert (counts[1]["score_mean"], counts[1]["score_min"], counts[2]["score_mean"]) == ("0.525", "0.25", "")
    instances = rows(tmp_path / "instances.csv")
    assert [(one["id"], one["class"], one["area"], one["score"]) for one in instances] == [
        ("1", "disc", "200", "0.9"),
        ("2", "'=bar", "250", "0.8"),
        ("3", "'=bar", "1", "0.25"),
    ]
    assert [instances[0][side] for side in ("left", "top", "width", "height")] == ["10", "5", "20", "10"]
