"""Geometry and colour in training, evaluation and prediction: one 2x3 matrix moves an image and its instances.

Coordinates are continuous, in pixels, with (0, 0) at the *corner* of the first pixel, as COCO's polygons have them.
A matrix maps source coordinates to canvas coordinates: a scale per axis, an optional flip and a shift of whole pixels
(no rotation). The image keeps its aspect, up to the rounding of its size to whole pixels, and lies at the top left of
the canvas; what is right of it and below is padding.

Legend: h, w source height and width; H, W canvas height and width; r, c height and width of the real pixels on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from .rle import runs_of_each
from .segmentation import Polygon, Segmentation, Window, check_runs, polygons_to_counts, runs_window, segmentation_box

Matrix = npt.NDArray[np.float64]
"""(2, 3): canvas (x, y) = matrix[:, :2] @ source (x, y) + matrix[:, 2]."""

PixelArray = npt.NDArray[np.uint8]
"""An image (h, w, 3) or a mask (h, w)."""

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes in training. Scales are relative to the fit of the whole image into the canvas.

    scale_min, scale_max: large-scale jitter (arXiv:2012.07177), uniform in between. flip: "horizontal" (left-right)
    or "both" (left-right and up-down independently), each with probability 1/2; "all" transposes as well, so that all
    eight orientations are equally likely; or "none". color_jitter: brightness, contrast and saturation each change by a
    factor within 1 +- color_jitter; 0 leaves colours unchanged. copy_paste: fraction of images onto which instances of
    another image are pasted (`copy_paste.paste`). Raises OptionError for a value outside its range.
    """

    scale_min: float = 0.1
    scale_max: float = 2.0
    flip: Literal["horizontal", "both", "all", "none"] = "horizontal"
    color_jitter: float = 0.2
    copy_paste: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.scale_min <= self.scale_max < float("inf"):
            got = f"{self.scale_min} and scale_max {self.scale_max}"
            raise OptionError("scale_min", "a number above 0 and not above scale_max", got)
        if self.flip not in ("horizontal", "both", "all", "none"):
            raise OptionError("flip", "horizontal, both, all or none", self.flip)
        if not 0 <= self.color_jitter < 1:
            raise OptionError("color_jitter", "a number from 0 to below 1", self.color_jitter)
        if not 0 <= self.copy_paste <= 1:
            raise OptionError("copy_paste", "a fraction from 0 to 1", self.copy_paste)


def fitted_size(height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """(r, c): the size in whole pixels of a height x width image fitted into the canvas, enlarged or reduced."""
    scale = min(canvas_height / height, canvas_width / width)
    rows, columns = _scaled_size(height, width, scale)
    return min(rows, canvas_height), min(columns, canvas_width)


def fit_matrix(height: int, width: int, canvas_height: int, canvas_width: int) -> Matrix:
    """The matrix (2, 3) that maps the source's extent exactly onto the `fitted_size` in the canvas' top left."""
    rows, columns = fitted_size(height, width, canvas_height, canvas_width)
    return np.array([[columns / width, 0.0, 0.0], [0.0, rows / height, 0.0]])


def fit_image(image: PixelArray, canvas_height: int, canvas_width: int) -> PixelArray:
    """Resize an image (H, W, 3) to its size on the canvas (r, c, 3), its aspect kept."""
    height, width = image.shape[:2]
    real = fitted_size(height, width, canvas_height, canvas_width)
    return warp_image(image, fit_matrix(height, width, canvas_height, canvas_width), *real)


def sample_matrix(
    rng: np.random.Generator,
    height: int,
    width: int,
    canvas_height: int,
    canvas_width: int,
    augmentation: Augmentation,
) -> Matrix:
    """A random matrix (2, 3): scale jitter, flip, and a random crop where the image is larger than the canvas.

    Its `size_on_canvas` is the part of the canvas that the image fills. With scales of 1 and no flip it equals
    `fit_matrix`. It never transposes: that is done to the finished sample, on a canvas with its sides exchanged.
    """
    fit = min(canvas_height / height, canvas_width / width)
    jitter = rng.uniform(augmentation.scale_min, augmentation.scale_max)
    rows, columns = _scaled_size(height, width, fit * jitter)
    if jitter <= 1:  # rounding must not push the image out of the canvas by a pixel
        rows, columns = min(rows, canvas_height), min(columns, canvas_width)
    flip_x, flip_y = rng.random(2) < 0.5
    flip_x &= augmentation.flip != "none"
    flip_y &= augmentation.flip in ("both", "all")
    crop_x = rng.integers(0, max(columns - canvas_width, 0), endpoint=True)
    crop_y = rng.integers(0, max(rows - canvas_height, 0), endpoint=True)
    scale_x, scale_y = columns / width, rows / height
    return np.array(
        [
            [-scale_x if flip_x else scale_x, 0.0, (columns if flip_x else 0.0) - crop_x],
            [0.0, -scale_y if flip_y else scale_y, (rows if flip_y else 0.0) - crop_y],
        ]
    )


def size_on_canvas(matrix: Matrix, height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """(r, c): number of rows and columns of the canvas, from its top left, with pixels of a height x width source."""
    _, _, right, bottom = _moved_box(matrix, 0, 0, width, height)
    rows, columns = int(np.floor(bottom + 0.5)), int(np.floor(right + 0.5))
    return min(max(rows, 0), canvas_height), min(max(columns, 0), canvas_width)


def warp_image(image: PixelArray, matrix: Matrix, height: int, width: int) -> PixelArray:
    """Move an image (h, w, 3) by `matrix` onto a canvas, (height, width, 3) uint8.

    Enlarged bilinearly; reduced by averaging over the area that a new pixel covers, against aliasing. At its border the
    image is continued by its own edge pixels, and canvas pixels outside it (`size_on_canvas`) are 0: padding is never
    mixed into a real pixel. An unmoved image is returned bit for bit.
    """
    rows, columns = size_on_canvas(matrix, image.shape[0], image.shape[1], height, width)
    if (rows, columns) == (height, width):
        return _resample(image, matrix, rows, columns, cv2.BORDER_REPLICATE)
    canvas = np.zeros((height, width, *image.shape[2:]), dtype=np.uint8)
    if rows and columns:
        canvas[:rows, :columns] = _resample(image, matrix, rows, columns, cv2.BORDER_REPLICATE)
    return canvas


def rasterise(segmentation: Segmentation, size: tuple[int, int], matrix: Matrix, height: int, width: int) -> PixelArray:
    """Move an instance by `matrix` and draw it as a mask (height, width) uint8 0/1; arguments as `rasterise_windows`.

    Under the identity matrix and the source's own size this is pycocotools' annToMask.
    """
    mask = np.zeros((height, width), dtype=np.uint8)
    (window,) = rasterise_windows([segmentation], size, matrix, height, width)
    if window is not None:
        mask[window.place] = window.pixels
    return mask


def rasterise_windows(
    segmentations: Sequence[Segmentation], size: tuple[int, int], matrix: Matrix, height: int, width: int
) -> list[Window | None]:
    """Move the instances of an image of `size` (h, w) by `matrix`: the mask pixels around each, None if none is left.

    Polygons: the vertices are moved, then COCO's rasteriser draws the union of the parts, nothing beyond the image's
    own extent. RLE: the pixels are moved like the image's; a new pixel belongs to the instance if half of it does.
    """
    rows, columns = size_on_canvas(matrix, size[0], size[1], height, width)
    if rows == 0 or columns == 0:
        return [None] * len(segmentations)
    codes = [
        one["counts"] if isinstance(one, dict) else _draw_polygons(one, matrix, rows, columns) for one in segmentations
    ]
    windows: list[Window | None] = []
    for segmentation, runs in zip(segmentations, runs_of_each(codes), strict=True):
        if isinstance(segmentation, list):
            windows.append(runs_window(runs, rows))
            continue
        check_runs(runs, *size)
        source = runs_window(runs, size[0])
        windows.append(None if source is None else _move_window(source, matrix, rows, columns))
    return windows


def _draw_polygons(parts: list[Polygon], matrix: Matrix, rows: int, columns: int) -> bytes:
    """Compressed runs of a rows x columns mask of polygon parts moved by `matrix`; b"" if they lie outside it."""
    moved = [part @ matrix[:, :2].T + matrix[:, 2] for part in parts]  # each (P, 2)
    # Most instances of an enlarged crop are outside it: they need no rasteriser.
    left, top, width, height = segmentation_box(moved)
    if left > columns or top > rows or left + width < 0 or top + height < 0:
        return b""
    return polygons_to_counts(moved, rows, columns)


def jitter_colors(image: PixelArray, rng: np.random.Generator, strength: float) -> None:
    """Change brightness, contrast and saturation of (h, w, 3) RGB in place, each by a factor within 1 +- strength.

    All three are linear in the colour, so one 3x4 colour matrix applies them in one pass.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))  # grey stays as it is
    mean_luma = float(_LUMA @ np.array(cv2.mean(image)[:3]))  # contrast scales around the image's own mean
    color = np.empty((3, 4))
    color[:, :3] = brightness * contrast * saturate
    color[:, 3] = brightness * (1 - contrast) * mean_luma
    image[:] = cv2.transform(image, color)


def to_pixel_values(
    image: PixelArray, height: int, width: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Normalise an image (r, c, 3) into the model's input of height x width: pixel_values, pixel_mask.

    pixel_values (3, height, width) float32 is (value / 255 - mean) / std per channel, exactly 0 in the padding right
    and below; pixel_mask (height, width) bool is True on real pixels.
    """
    rows, columns = image.shape[:2]
    values = np.zeros((3, height, width), dtype=np.float32)
    bytes_as_shares = np.arange(256) / 255
    for channel, pixels in enumerate(cv2.split(image)):
        table = (bytes_as_shares - mean[channel]) / std[channel]  # a byte has 256 values: look them up
        cv2.LUT(pixels, table.astype(np.float32), dst=values[channel, :rows, :columns])
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[:rows, :columns] = True
    return values, mask


def _scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(r, c): both sides times `scale`, rounded to whole pixels, at least 1."""
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def _moved_box(matrix: Matrix, left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    """(left, top, right, bottom) of a box moved by `matrix`. Raises ValueError for a matrix that rotates or shears."""
    if matrix[0, 1] or matrix[1, 0]:
        raise ValueError(f"expected only scale, flip and shift, got a matrix that rotates: {matrix.tolist()}")
    x = (matrix[0, 0] * left + matrix[0, 2], matrix[0, 0] * right + matrix[0, 2])
    y = (matrix[1, 1] * top + matrix[1, 2], matrix[1, 1] * bottom + matrix[1, 2])
    return float(min(x)), float(min(y)), float(max(x)), float(max(y))


def _shift_origins(matrix: Matrix, source: tuple[float, float], canvas: tuple[float, float]) -> Matrix:
    """The same matrix for coordinates that begin at (x, y) `source` and `canvas` instead of (0, 0)."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ source - canvas
    return moved


def _resample(pixels: PixelArray, matrix: Matrix, height: int, width: int, border: int) -> PixelArray:
    """Move pixels (h, w) or (h, w, 3) by `matrix` to (height, width[, 3]). border: OpenCV's mode outside the source."""
    scale_x, scale_y = abs(matrix[0, 0]), abs(matrix[1, 1])
    if scale_x >= 1 and scale_y >= 1:
        pixels, matrix = _needed_part(pixels, matrix, height, width)
    rows, columns = pixels.shape[:2]
    small_rows, small_columns = _shrunk_length(rows, scale_y), _shrunk_length(columns, scale_x)
    if (small_rows, small_columns) != (rows, columns):
        # The area average brings the image to its final scale; a flip and a shift of whole pixels remain.
        pixels = np.asarray(cv2.resize(pixels, (small_columns, small_rows), interpolation=cv2.INTER_AREA), np.uint8)
        matrix = matrix * np.array([columns / small_columns, rows / small_rows, 1.0])
    # warpAffine counts from pixel centres, we from corners: centre = corner - 1/2 on both sides.
    centred = _shift_origins(matrix, (0.5, 0.5), (0.5, 0.5))
    if np.array_equal(centred, np.eye(2, 3)) and pixels.shape[:2] == (height, width):
        return pixels.copy()
    moved = cv2.warpAffine(pixels, centred, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(moved, np.uint8)


def _shrunk_length(length: int, scale: float) -> int:
    """Length of a side after the area average; unchanged if the scale enlarges it."""
    return length if scale >= 1 else max(int(length * scale + 0.5), 1)


def _needed_part(pixels: PixelArray, matrix: Matrix, height: int, width: int) -> tuple[PixelArray, Matrix]:
    """The part of the source that a height x width canvas shows, and the matrix from there.

    The cost of an enlarged crop of a large image then depends on the crop, and its sides stay under the 32,767 pixels
    that warpAffine takes.
    """
    rows, columns = pixels.shape[:2]
    left, right = _visible_range(matrix[0, 0], matrix[0, 2], width, columns)
    top, bottom = _visible_range(matrix[1, 1], matrix[1, 2], height, rows)
    return pixels[top:bottom, left:right], _shift_origins(matrix, (left, top), (0.0, 0.0))


def _visible_range(scale: float, shift: float, length: int, limit: int) -> tuple[int, int]:
    """First and last (exclusive) of the `limit` source pixels along an axis that `length` canvas pixels show."""
    low, high = sorted((-shift / scale, (length - shift) / scale))
    # Two pixels of margin, so that interpolation reads the true neighbours, not a repeated edge.
    first = min(max(math.floor(low) - 2, 0), limit - 1)
    return first, min(max(math.ceil(high) + 2, first + 1), limit)


def _move_window(source: Window, matrix: Matrix, rows: int, columns: int) -> Window | None:
    """Move mask pixels of the source by `matrix` onto a canvas of rows x columns; None if no pixel is left."""
    height, width = source.pixels.shape
    box = _moved_box(matrix, source.left, source.top, source.left + width, source.top + height)
    left, top = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    right, bottom = min(int(np.ceil(box[2])), columns), min(int(np.ceil(box[3])), rows)
    if left >= right or top >= bottom:
        return None
    local = _shift_origins(matrix, (source.left, source.top), (left, top))
    opaque = np.multiply(source.pixels, np.uint8(255), order="C")
    shares = _resample(opaque, local, bottom - top, right - left, cv2.BORDER_CONSTANT)
    pixels = (shares >= 128).astype(np.uint8)
    return Window(pixels, top, left) if pixels.any() else None
