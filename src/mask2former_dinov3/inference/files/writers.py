"""What a prediction leaves of each image, below the output folder and nowhere else.

An image that is too large to be held (`ImageReader.large`) is drawn smaller, and its masks are cut to their boxes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from ...errors import DatasetError
from ...instances import Instances
from ...visualize import Picture, draw_instances, enlargement
from ..tiles.grid import Region
from ..tiles.image_reader import ImageReader, georeference
from .polygons import check_polygons, write_geojson, write_yolo, yolo_classes

OUTPUTS = ("overlays", "masks", "coco", "geojson", "yolo")
LONGEST_OVERLAY = 4096  # pixels, of an image too large to be held
MOST_LABELLED = 2000  # instances; among more of them labels could not be told apart
BAND_PIXELS = 2**24  # of a large image that is made smaller, at one time


def check_outputs(save: Collection[str]) -> None:
    """Raise ValueError for words that are not in OUTPUTS, UserError where one needs a package that is missing."""
    unknown = sorted(set(save) - set(OUTPUTS))
    if unknown or not save:
        raise ValueError(f"save: expected some of {', '.join(OUTPUTS)}, got {', '.join(unknown) or 'nothing'}")
    if {"geojson", "yolo"} & set(save):
        check_polygons()


def place(output: Path, *parts: str) -> Path:
    """A path for a new file below `output`, its folder made, what stood there gone.

    Raises DatasetError when a link on the way leads out of `output`.
    """
    path = output.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(output.resolve()):
        raise DatasetError(f"{path}: this leads out of the output folder (a link?), so nothing is written there")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # a link, also a hard one, is not written through
    return path


def overlay_name(name: str, path: Path) -> str:
    """JPEG for JPEG, otherwise PNG."""
    suffix = path.suffix.lower() if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
    return str(Path("overlays", name).with_suffix(suffix))


def save_image(
    output: Path, path: Path, name: str, image: ImageReader, instances: Instances, save: Collection[str]
) -> None:
    """All files of one image that `save` names; `name` is its name in the output, `path` the file it came from."""
    if "overlays" in save:
        picture = draw_overlay(image, instances)
        Image.fromarray(picture).save(place(output, overlay_name(name, path)), quality=92)  # PNG passes quality over
    if "masks" in save:
        _save_masks(output, name, image, instances)
    if "geojson" in save:
        target = place(output, str(Path("geojson", name).with_suffix(".geojson")))
        write_geojson(target, instances, georeference(path))
    if "yolo" in save:
        write_yolo(place(output, "yolo", str(Path("labels", name).with_suffix(".txt"))), instances)


def save_classes(output: Path, categories: tuple[tuple[int, str], ...], save: Collection[str]) -> None:
    """What the outputs of all images have in common."""
    if "yolo" in save:
        place(output, "yolo", "data.yaml").write_text(yolo_classes(categories), encoding="utf-8")


def draw_overlay(image: ImageReader, instances: Instances) -> Picture:
    """The image with its instances, enlarged if small, made smaller if it is too large to be held."""
    labels = len(instances) <= MOST_LABELLED
    if not image.large:
        whole = image.read(Region(0, 0, image.height, image.width))
        return draw_instances(whole, instances, scale=enlargement(instances), labels=labels)
    small = shrunk_image(image, math.ceil(max(image.height, image.width) / LONGEST_OVERLAY))
    return draw_instances(small, instances.shrink(*small.shape[:2]), labels=labels)


def shrunk_image(image: ImageReader, factor: int) -> Picture:
    """A picture 1 / `factor` as large, read and averaged in bands."""
    width = math.ceil(image.width / factor)
    rows = factor * max(1, BAND_PIXELS // (image.width * factor))
    bands = []
    for top in range(0, image.height, rows):
        band = image.read(Region(top, 0, min(top + rows, image.height), image.width))
        size = (width, math.ceil(len(band) / factor))
        bands.append(cv2.resize(band, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False))
    return np.concatenate(bands)


def _save_masks(output: Path, name: str, image: ImageReader, instances: Instances) -> None:
    """One 1-bit PNG per instance; of a large image the part around it, whose place is in the name."""
    folder = place(output, str(Path("masks", name).with_suffix("")), "mask").parent
    for old in folder.glob("[0-9]*_*.png"):  # of an earlier run, which may have found more
        old.unlink()
    for index, (class_name, score) in enumerate(zip(instances.names, instances.scores, strict=True)):
        safe = re.sub(r"[^\w.-]+", "-", class_name)[:60]  # characters of up to four bytes
        stem = f"{index + 1:03d}_{safe}_{score:.2f}"
        if image.large:
            pixels, top, left = instances.window(index)
            Image.fromarray(pixels.astype(bool)).save(folder / f"{stem}_x{left}_y{top}.png")
        else:
            Image.fromarray(instances.mask(index)).save(folder / f"{stem}.png")
