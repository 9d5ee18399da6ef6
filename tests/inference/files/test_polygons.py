"""Polygons: they cover exactly the pixels of their mask, in the forms that other programs read."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from mask2former_dinov3.data.formats.mask_codes import mask_of_runs
from mask2former_dinov3.data.formats.yolo_labels import yolo_yaml
from mask2former_dinov3.data.segmentation import polygons_to_runs
from mask2former_dinov3.errors import MissingExtraError, OptionError
from mask2former_dinov3.inference.files.polygons import coco_polygons, polygons_of, write_geojson, write_yolo
from mask2former_dinov3.inference.files.writers import check_outputs
from mask2former_dinov3.instances import Instances

pytest.importorskip("rasterio")

CATEGORIES = ((3, "disc"), (7, 'bar "1"'))


def masks() -> NDArray[np.bool_]:
    """A block, a ring with an island, two parts, pixels that touch at a corner, noise."""
    found = np.zeros((5, 60, 80), dtype=bool)
    found[0, 5:25, 10:40] = True
    found[1, 10:50, 20:70] = True
    found[1, 15:45, 25:65] = False
    found[1, 25:35, 40:50] = True
    found[2, 0:10, 0:10] = found[2, 50:60, 70:80] = True
    found[3, 20, 20] = found[3, 21, 21] = found[3, 20, 22] = True
    found[4] = np.random.default_rng(0).random((60, 80)) < 0.5
    return found


@pytest.fixture
def instances() -> Instances:
    return Instances.from_masks(masks(), [0, 1, 0, 1, 0], [0.9, 0.8, 0.7, 0.6, 0.5], CATEGORIES)


def filled(rings: list[NDArray[np.float64]], height: int = 60, width: int = 80) -> NDArray[np.bool_]:
    """Pixels whose centre is inside an odd number of rings."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    crossings = np.zeros((height, width), dtype=int)
    for ring in rings:
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            if y0 != y1:  # what a ray to the left crosses
                at = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
                crossings += (columns > at) & (rows > min(y0, y1)) & (rows < max(y0, y1))
    return np.asarray(crossings % 2 == 1)


def test_polygons_of__cover_their_mask(instances: Instances) -> None:
    for index, mask in enumerate(masks()):
        parts = polygons_of(instances, index)
        np.testing.assert_array_equal(filled([ring for part in parts for ring in part]), mask)
        for part in parts:
            for ring in part:
                assert (ring[0] == ring[-1]).all()
                assert ((ring[1:] != ring[:-1]).sum(axis=1) == 1).all()
    assert [[len(part) for part in polygons_of(instances, index)] for index in (0, 2)] == [[1], [1, 1]]
    assert sorted(len(part) for part in polygons_of(instances, 1)) == [1, 2]
    assert len(polygons_of(instances, 3)) == 3


def test_write_geojson__is_a_feature_collection_in_pixels(instances: Instances, tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", instances, None)
    found = json.loads((tmp_path / "a.geojson").read_text())
    assert (found["type"], len(found["features"]), "crs" in found) == ("FeatureCollection", 5, False)
    first, ring = found["features"][:2]
    assert first["geometry"]["type"] == "Polygon"
    corners = {tuple(point) for point in first["geometry"]["coordinates"][0]}
    assert corners == {(10, 5), (40, 5), (40, 25), (10, 25)}
    assert first["properties"] == {
        "objectType": "annotation",
        "classification": {"name": "disc", "color": [255, 66, 66]},
        "measurements": {"score": 0.9},
        "category_id": 3,
        "score": 0.9,
    }
    assert (ring["geometry"]["type"], ring["properties"]["category_id"]) == ("MultiPolygon", 7)


def test_write_geojson__places_a_georeferenced_image(instances: Instances, tmp_path: Path) -> None:
    affine = (0.5, 0.0, 400000.0, 0.0, -0.5, 5000000.0)
    write_geojson(tmp_path / "a.geojson", instances[:1], (affine, "urn:ogc:def:crs:EPSG::32633"))
    found = json.loads((tmp_path / "a.geojson").read_text())
    assert found["crs"] == {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}}
    corners = {tuple(point) for point in found["features"][0]["geometry"]["coordinates"][0]}
    assert corners == {(400005, 4999997.5), (400020, 4999997.5), (400020, 4999987.5), (400005, 4999987.5)}


def test_write_geojson__of_nothing_is_an_empty_collection(instances: Instances, tmp_path: Path) -> None:
    write_geojson(tmp_path / "a.geojson", instances[[]], None)
    assert json.loads((tmp_path / "a.geojson").read_text()) == {"type": "FeatureCollection", "features": []}


@pytest.mark.parametrize("whole", [np.round, np.floor])
def test_write_yolo__opencv_fills_a_line_to_the_mask(instances: Instances, tmp_path: Path, whole: Any) -> None:
    write_yolo(tmp_path / "a.txt", instances)
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "0", "1", "0"]
    expected = masks()
    expected[1, 25:35, 40:50] = False  # the ring alone: of one part
    write_yolo(tmp_path / "b.txt", Instances.from_masks(expected, [0, 1, 0, 1, 0], [0.5] * 5))
    for line, mask in list(zip((tmp_path / "b.txt").read_text().splitlines(), expected, strict=True))[:2]:
        points = whole(np.array(line.split()[1:], dtype=float).reshape(-1, 2) * (80, 60)).astype(np.int32)
        canvas = np.zeros((60, 80), dtype=np.uint8)
        cv2.fillPoly(canvas, [points], [1])
        np.testing.assert_array_equal(canvas, mask)


def test_coco_polygons__are_the_mask_in_coco(instances: Instances) -> None:
    for index, mask in enumerate(masks()):
        polygons = [np.array(one, dtype=np.float64).reshape(-1, 2) for one in coco_polygons(instances, index)]
        assert len(polygons) == len(polygons_of(instances, index))
        np.testing.assert_array_equal(mask_of_runs(polygons_to_runs(polygons, 60, 80), 60, 80), mask)


def test_yolo_yaml__quotes_names() -> None:
    import yaml

    read: Any = yaml.safe_load(yolo_yaml([name for _, name in CATEGORIES], {"train": "images/train"}))
    assert read["names"] == {0: "disc", 1: 'bar "1"'}
    assert read["train"] == "images/train"


def test_check_outputs__says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rasterio", None)
    monkeypatch.setitem(sys.modules, "rasterio.features", None)
    check_outputs(["overlays", "coco", "masks", "yolo", "csv", "coco-results", "label-studio"])
    with pytest.raises(MissingExtraError, match=r"the output geojson needs rasterio, .* 'mask2former-dinov3\[large\]'"):
        check_outputs(["geojson"])
    with pytest.raises(MissingExtraError, match="polygons in the output coco or label-studio needs"):
        check_outputs(["coco"], "polygons")


def test_check_outputs__polygons_belong_to_coco() -> None:
    with pytest.raises(OptionError, match="segmentation: expected the output coco or label-studio, whose masks become"):
        check_outputs(["coco-results"], "polygons")
    with pytest.raises(OptionError, match="segmentation: expected rle or polygons, got bitmaps"):
        check_outputs(["coco"], "bitmaps")
