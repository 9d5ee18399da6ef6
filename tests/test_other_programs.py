"""Results go into other people's programs: each test runs where the program is installed (docs/formats.md has a table).

None of the programs is a dependency. FiftyOne is not among them: it needs a MongoDB server.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mask2former_dinov3.data.formats.yolo_labels import yolo_yaml
from mask2former_dinov3.inference.files.polygons import write_geojson, write_yolo
from mask2former_dinov3.inference.files.result_files import PredictedImage, to_store, write_results
from mask2former_dinov3.instances import Instances

pytest.importorskip("rasterio")
CATEGORIES = ((3, "disc"), (7, "ring"))
HEIGHT, WIDTH = 50, 70


def masks() -> npt.NDArray[np.bool_]:
    """A disc, and a ring that has a hole."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    disc = (x - 18) ** 2 + (y - 20) ** 2 < 150
    distance = (x - 48) ** 2 + (y - 28) ** 2
    return np.stack([disc, (distance < 300) & (distance > 60)])


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """What `predict` leaves for two images: rle/, polygons/, yolo/, geojson/, and the images."""
    found = Instances.from_masks(masks(), [0, 1], [0.9, 0.6], CATEGORIES)
    for folder in ("rle", "polygons", "images", "yolo/labels", "geojson"):
        (tmp_path / folder).mkdir(parents=True)
    save = ("coco", "coco-results", "csv")
    for kind in ("rle", "polygons"):
        images = []
        for number in (1, 2):
            stored: list[Any] = [one for part in to_store(found, number, save, kind) for one in part]
            entry: dict[str, object] = {
                "id": number, "file_name": f"{number}.png", "path": f"/x/{number}.png", "height": HEIGHT, "width": WIDTH
            }  # fmt: skip
            images.append(PredictedImage(entry, partial(iter, stored)))
        write_results(tmp_path / kind, images, CATEGORIES, save)
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT), (40, 80, 10 * number)).save(tmp_path / "images" / f"{number}.png")
        write_yolo(tmp_path / "yolo" / "labels" / f"{number}.txt", found)
        write_geojson(tmp_path / "geojson" / f"{number}.geojson", found, ((1, 0, 500, 0, -1, 900), "EPSG:32633"))
    (tmp_path / "yolo" / "data.yaml").write_text(yolo_yaml([name for _, name in CATEGORIES], {}))
    return tmp_path


def test_supervision__reads_the_data_set_and_yolo_labels_pixel_for_pixel(output: Path) -> None:
    supervision = pytest.importorskip("supervision")
    images = str(output / "images")
    coco = supervision.DetectionDataset.from_coco(images, str(output / "rle" / "predictions.json"), force_masks=True)
    yolo = supervision.DetectionDataset.from_yolo(
        images, str(output / "yolo" / "labels"), str(output / "yolo" / "data.yaml"), force_masks=True
    )
    assert coco.classes == yolo.classes == ["disc", "ring"]
    for data in (coco, yolo):
        assert len(data) == 2
        for _, _, detections in data:
            np.testing.assert_array_equal(np.asarray(detections.mask), masks())


def test_sahi__reads_polygons(output: Path) -> None:
    coco = pytest.importorskip("sahi.utils.coco")
    read = coco.Coco.from_coco_dict_or_path(str(output / "polygons" / "predictions.json"))
    assert [len(image.annotations) for image in read.images] == [2, 2]


@pytest.mark.parametrize("kind", ["rle", "polygons"])
def test_datumaro__reads_the_data_set(output: Path, kind: str) -> None:
    dataset = pytest.importorskip("datumaro.components.dataset")
    root = output / "datumaro"
    (root / "annotations").mkdir(parents=True)
    (output / "images").rename(root / "default")
    (root / "images").mkdir()
    (root / "default").rename(root / "images" / "default")
    (output / kind / "predictions.json").rename(root / "annotations" / "instances_default.json")
    read = dataset.Dataset.import_from(str(root), "coco_instances")
    wanted = {"rle": "mask", "polygons": "polygon"}[kind]
    found = [one for item in read for one in item.annotations if one.type.name == wanted]
    assert [one.attributes["score"] for one in found] == [0.9, 0.6] * 2
    if kind == "rle":
        for one, mask in zip(found, [*masks(), *masks()], strict=True):
            np.testing.assert_array_equal(one.image, mask)


def test_label_studio__takes_polygons_as_predictions(output: Path) -> None:
    converter = pytest.importorskip("label_studio_converter.imports.coco")
    converter.convert_coco_to_ls(
        input_file=str(output / "polygons" / "predictions.json"),
        out_file=str(output / "tasks.json"),
        out_type="predictions",
    )
    tasks = json.loads((output / "tasks.json").read_text())
    shapes = [one for task in tasks for one in task["predictions"][0]["result"] if one["type"] == "polygonlabels"]
    assert [one["value"]["polygonlabels"] for one in shapes] == [["disc"], ["ring"]] * 2


def test_geopandas__reads_valid_polygons_with_their_coordinate_system(output: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    frame = geopandas.read_file(output / "geojson" / "1.geojson")
    assert frame.is_valid.all()
    assert frame.crs.to_epsg() == 32633
    assert frame.area.tolist() == masks().sum((1, 2)).tolist()
    assert [len(one.interiors) for one in frame.geometry] == [0, 1]


def test_duckdb_and_pandas__read_the_tables(output: Path) -> None:
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    areas = masks().sum((1, 2))
    counts = duckdb.sql(
        f"select class, sum(count), sum(area_total) from '{output}/rle/counts.csv' group by class order by class"
    )
    assert counts.fetchall() == [("disc", 2, 2 * areas[0]), ("ring", 2, 2 * areas[1])]
    assert pandas.read_csv(output / "rle" / "instances.csv")["area"].tolist() == [*areas, *areas]
