"""Instances as polygons, for programs that draw and label: GeoJSON (QuPath, GIS) and YOLO's text files.

Polygons go along the edges of pixels, so that they cover exactly those of the mask: (0, 0) is the corner of the first
pixel. Pixels that touch at a corner alone are parts of their own. Traced by GDAL (rasterio, the extra `large`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...atomic_files import write_file
from ...errors import UserError
from ...instances import Instances
from ...visualize import PALETTE

Ring: TypeAlias = NDArray[np.float64]
"""A closed line (P, 2) of x, y in pixels; the last point is the first."""


def check_polygons() -> None:
    """Raise UserError with the way out when polygons cannot be traced here."""
    try:
        import rasterio.features  # noqa: F401 (whether it can be)
    except ImportError as error:
        raise UserError(
            "geojson and yolo need the package rasterio: pip install 'mask2former-dinov3[large]'"
        ) from error


def polygons_of(instances: Instances, index: int) -> list[list[Ring]]:
    """The parts of one mask, each an outer ring and the rings of its holes."""
    from rasterio.features import shapes

    pixels, top, left = instances.window(index)
    if not pixels.size:
        return []
    return [
        [np.array(ring) + np.array((left, top)) for ring in shape["coordinates"]]
        for shape, _ in shapes(pixels, mask=pixels.astype(bool), connectivity=4)
    ]


def write_geojson(path: Path, instances: Instances, georeference: tuple[tuple[float, ...], str] | None) -> None:
    """One FeatureCollection: a Polygon or MultiPolygon per instance, best first, its class and score as properties.

    georeference: see `data.windows.georeference`; with it coordinates are those of its coordinate system, which the
    member `crs` names (as GDAL and QGIS write and read it), otherwise pixels.
    """
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if georeference is not None:
        head["crs"] = {"type": "name", "properties": {"name": georeference[1]}}
    with write_file(path) as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for number, feature in enumerate(_features(instances, georeference)):
            file.write((",\n" if number else "\n") + json.dumps(feature, ensure_ascii=False))
        file.write("\n]}\n")


def _features(instances: Instances, georeference: tuple[tuple[float, ...], str] | None) -> Iterator[dict[str, Any]]:
    found = zip(instances.names, instances.labels, instances.category_ids, instances.short_scores, strict=True)
    for index, (name, label, category, score) in enumerate(found):
        parts = [
            [ring.astype(int).tolist() if georeference is None else _placed(ring, georeference[0]) for ring in part]
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
                "measurements": {"score": score},  # with the two above: what QuPath reads
                "category_id": category,
                "score": score,
            },
        }


def _placed(ring: Ring, affine: tuple[float, ...]) -> list[list[float]]:
    """A ring in the coordinates of the image's own system."""
    a, b, c, d, e, f = affine
    x, y = ring.T
    placed: list[list[float]] = np.stack((a * x + b * y + c, d * x + e * y + f), axis=1).tolist()
    return placed


def write_yolo(path: Path, instances: Instances) -> None:
    """YOLO's segmentation labels: a line per instance, `class x1 y1 x2 y2 …`, as parts of the width and height.

    The format has one polygon per instance. Further parts and holes are visited on the way: from the first point to
    theirs, around them, and back the same way, which encloses nothing; filled by the even-odd rule (OpenCV's fillPoly)
    the result is the mask. Classes are the model's labels 0..K-1; scores have no place in it.
    """
    size = np.array([instances.width, instances.height])
    with write_file(path) as file:
        for index, label in enumerate(instances.labels):
            rings = [ring for part in polygons_of(instances, index) for ring in part]
            if not rings:
                continue
            home = rings[0][:1]
            line = np.concatenate([rings[0][:-1], *(np.concatenate([home, ring]) for ring in rings[1:])])
            numbers = (line / size).round(7).ravel().tolist()
            file.write(f"{label} {' '.join(f'{number:.7g}' for number in numbers)}\n")


def yolo_classes(categories: tuple[tuple[int, str], ...]) -> str:
    """YOLO's data.yaml: the names of the classes."""
    names = "".join(
        f"  {label}: {json.dumps(name, ensure_ascii=False)}\n" for label, (_, name) in enumerate(categories)
    )
    return f"path: .\nnames:\n{names}"
