"""Write the output files of each image, below the output folder and nowhere else.

An image too large for memory (`is_large_image`) is drawn at a smaller size, and its masks are cut to their boxes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...atomic_files import flush, make_folder, write_text
from ...data.formats.yolo_labels import yolo_yaml
from ...errors import DatasetError, OptionError, mismatch
from ...extras import require
from ...instances import Instances
from ...visualize import Picture, draw_instances, enlargement, rgb_view
from ..tiles.grid import Region
from ..tiles.image_reader import georeference, is_large_image
from ..tiles.part_reader import ImageReader
from .polygons import write_geojson, write_yolo
from .result_files import SEGMENTATIONS, WHOLE_RUN

OUTPUTS = ("overlays", "masks", *WHOLE_RUN, "geojson", "yolo")
LONGEST_OVERLAY = 4096  # pixels: the longer side of the overlay of an image too large for memory
MOST_LABELLED = 2000  # instances; labels of more would hide each other
BAND_PIXELS = 2**24  # pixels of a large image that are read and reduced at one time


def check_outputs(save: Collection[str], segmentation: str = "rle") -> None:
    """Raise OptionError for words that are not in OUTPUTS, or segmentations without an output that has them.

    Raises MissingExtraError where one needs a missing package.
    """
    unknown = sorted(set(save) - set(OUTPUTS))
    if unknown or not save:
        raise OptionError("save", f"some of {', '.join(OUTPUTS)}", ", ".join(unknown) or "nothing")
    if segmentation not in SEGMENTATIONS:
        raise OptionError("segmentation", " or ".join(SEGMENTATIONS), segmentation)
    if segmentation == "polygons":
        if not {"coco", "label-studio"} & set(save):
            expected = "the output coco or label-studio, whose masks become polygons"
            raise OptionError("segmentation", expected, ", ".join(save))
        require("large", "polygons in the output coco or label-studio", "rasterio")
    if "geojson" in save:
        require("large", "the output geojson", "rasterio")


def place(output: Path, *parts: str) -> Path:
    """The path of a new file below `output`: makes its folder and deletes an older file.

    Raises DatasetError when a link on the path leads out of `output`.
    """
    path = output.joinpath(*parts)
    if not path.parent.resolve().is_relative_to(output.resolve()):
        got = f"a link to {path.parent.resolve()}"
        raise DatasetError(f"{path}: {mismatch('a place inside the output folder', got, 'remove the link')}")
    make_folder(path.parent)
    path.unlink(missing_ok=True)  # so that nothing is written through a link, also not a hard link
    return path


def overlay_name(name: str, path: Path) -> str:
    """The path of an overlay below the output folder: JPEG for a JPEG, otherwise PNG."""
    suffix = path.suffix.lower() if path.suffix.lower() in (".jpg", ".jpeg") else ".png"
    return str(Path("overlays", name).with_suffix(suffix))


def save_image(
    output: Path,
    path: Path,
    name: str,
    image: ImageReader,
    instances: Instances,
    save: Collection[str],
    colours: str = "auto",
) -> None:
    """Write all files of one image that `save` names. path: the image file; name: its unique name in the output.

    colours: of the overlay, see `draw_instances`.
    """
    if "overlays" in save:
        picture = draw_overlay(image, instances, colours)
        _save_picture(picture, place(output, overlay_name(name, path)))
        flush((output / overlay_name(name, path)).parent)
    if "masks" in save:
        _save_masks(output, name, image, instances)
    if "geojson" in save:
        target = place(output, str(Path("geojson", name).with_suffix(".geojson")))
        write_geojson(target, instances, georeference(path))
    if "yolo" in save:
        write_yolo(place(output, "yolo", str(Path("labels", name).with_suffix(".txt"))), instances)


def save_classes(output: Path, categories: tuple[tuple[int, str], ...], save: Collection[str]) -> None:
    """Write the files that the outputs of all images share."""
    if "yolo" in save:
        write_text(place(output, "yolo", "data.yaml"), yolo_yaml([name for _, name in categories], {}))


def draw_overlay(image: ImageReader, instances: Instances, colours: str = "auto") -> Picture:
    """The image (`rgb_view` of it) with its instances drawn in: enlarged if small, reduced if too large for memory."""
    labels = len(instances) <= MOST_LABELLED
    if not is_large_image(image):
        whole = rgb_view(image.read(Region(0, 0, image.height, image.width)))
        return draw_instances(whole, instances, scale=enlargement(instances), labels=labels, colours=colours)
    small = shrink_image(image, math.ceil(max(image.height, image.width) / LONGEST_OVERLAY))
    return draw_instances(small, instances.shrink(*small.shape[:2]), labels=labels, colours=colours)


def shrink_image(image: ImageReader, factor: int) -> Picture:
    """`rgb_view` of the image reduced by `factor` along each side, read and averaged band by band."""
    width = math.ceil(image.width / factor)
    rows = factor * max(1, BAND_PIXELS // (image.width * factor))
    bands = []
    for top in range(0, image.height, rows):
        band = rgb_view(image.read(Region(top, 0, min(top + rows, image.height), image.width)))
        size = (width, math.ceil(len(band) / factor))
        bands.append(cv2.resize(band, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False))
    return np.concatenate(bands)


def _save_masks(output: Path, name: str, image: ImageReader, instances: Instances) -> None:
    """Write one 1-bit PNG per instance; for a large image its box only, with the position in the file name."""
    folder = place(output, str(Path("masks", name).with_suffix("")), "mask").parent
    for old in folder.glob("[0-9]*_*.png"):  # of an earlier run, which may have found more instances
        old.unlink()
    for index, (class_name, score) in enumerate(zip(instances.names, instances.scores, strict=True)):
        safe = re.sub(r"[^\w.-]+", "-", class_name)[:60]  # characters of up to four bytes
        stem = f"{index + 1:03d}_{safe}_{score:.2f}"
        if is_large_image(image):
            pixels, top, left = instances.window(index)
            _save_picture(pixels.astype(bool), folder / f"{stem}_x{left}_y{top}.png")
        else:
            _save_picture(instances.mask(index), folder / f"{stem}.png")
    flush(folder)


def _save_picture(pixels: NDArray[np.uint8] | NDArray[np.bool_], path: Path) -> None:
    """Write an image file, of the format that its name says, and flush it."""
    Image.fromarray(pixels).save(path, quality=92)  # PNG ignores quality
    flush(path)
