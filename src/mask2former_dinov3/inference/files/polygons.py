"""Instances as polygons, for programs that draw and label: COCO, GeoJSON (QuPath, GIS), YOLO's text files.

Polygons of COCO and GeoJSON follow the edges of pixels, so they cover exactly the pixels of the mask: (0, 0) is the
corner of the first pixel. Pixels that touch only at a corner belong to separate parts. GDAL traces them (rasterio, the
extra `large`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...atomic_files import write_file
from ...data.formats.outlines import outline_window
from ...data.formats.yolo_labels import yolo_line
from ...instances import Instances
from ...visualize import PALETTE

Ring: TypeAlias = NDArray[np.float64]
"""A closed line (P, 2) of x, y in pixels; the last point equals the first."""

Georeference: TypeAlias = tuple[tuple[float, ...], str]
"""An affine transform and the name of its coordinate system; see `tiles.image_reader.georeference`."""


def polygons_of(instances: Instances, index: int) -> list[list[Ring]]:
    """The parts of one mask, each an outer ring followed by the rings of its holes."""
    from rasterio.features import shapes

    pixels, top, left = instances.window(index)
    if not pixels.size:
        return []
    return [
        [np.array(ring) + np.array((left, top)) for ring in shape["coordinates"]]
        for shape, _ in shapes(pixels, mask=pixels.astype(bool), connectivity=4)
    ]


def coco_polygons(instances: Instances, index: int) -> list[list[int]]:
    """One mask as COCO's polygons x, y, x, y, …: one for each part, its holes joined to the outline by lines.

    Filled by the even-odd rule, as pycocotools and OpenCV do, they are the mask.
    """
    polygons = []
    for outer, *holes in polygons_of(instances, index):
        start = outer[:1]
        walk = np.concatenate([outer[:-1], *(np.concatenate([start, hole]) for hole in holes)])
        polygons.append(walk.astype(int).ravel().tolist())
    return polygons


def write_geojson(path: Path, instances: Instances, georeference: Georeference | None) -> None:
    """Write one FeatureCollection: a Polygon or MultiPolygon per instance, best first, with class and score.

    georeference: coordinates are then in its coordinate system, which the member `crs` names (as GDAL and QGIS write
    and read it); None: coordinates are pixels.
    """
    head: dict[str, object] = {"type": "FeatureCollection"}
    if georeference is not None:
        head["crs"] = {"type": "name", "properties": {"name": georeference[1]}}
    with write_file(path) as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for number, feature in enumerate(_features(instances, georeference)):
            file.write((",\n" if number else "\n") + json.dumps(feature, ensure_ascii=False))
        file.write("\n]}\n")


def _features(instances: Instances, georeference: Georeference | None) -> Iterator[dict[str, object]]:
    found = zip(instances.names, instances.labels, instances.category_ids, instances.short_scores, strict=True)
    for index, (name, label, category, score) in enumerate(found):
        parts = [
            [ring.astype(int).tolist() if georeference is None else _transform(ring, georeference[0]) for ring in part]
            for part in polygons_of(instances, index)
        ]
        geometry = (
            {"type": "Polygon", "coordinates": parts[0]}
            if len(parts) == 1
            else {"type": "MultiPolygon", "coordinates": parts}
        )
        colour = PALETTE[label % len(PALETTE)].tolist()
        yield {
            "type": "Feature",
            "id": index + 1,
            "geometry": geometry,
            "properties": {
                "objectType": "annotation",
                "classification": {"name": name, "color": colour},
                "measurements": {"score": score},  # QuPath reads this and the two above
                "category_id": category,
                "score": score,
            },
        }


def _transform(ring: Ring, affine: tuple[float, ...]) -> list[list[float]]:
    """A ring in the coordinates of the image's coordinate system."""
    a, b, c, d, e, f = affine
    x, y = ring.T
    points: list[list[float]] = np.stack((a * x + b * y + c, d * x + e * y + f), axis=1).tolist()
    return points


def write_yolo(path: Path, instances: Instances) -> None:
    """Write YOLO's segmentation labels: one line per instance, `class x1 y1 x2 y2 …`, in fractions of width and height.

    The format has one polygon per instance: through the centers of the outermost pixels, see `data.formats.outlines`.
    Classes are the model's labels 0..K-1; the format has no scores.
    """
    with write_file(path) as file:
        for index, label in enumerate(instances.labels.tolist()):
            window = instances.window(index)
            if window.pixels.size:
                file.write(yolo_line(label, outline_window(window), instances.height, instances.width))
