"""Fit images into the canvas and make them the model's input: the same in training and in use.

Coordinates are continuous, in pixels, with (0, 0) at the *corner* of the first pixel, as COCO's polygons have them.
A matrix maps source coordinates to canvas coordinates: it scales, flips and shifts, and in training it may rotate.

h, w source height and width; H, W canvas height and width; r, c height and width of the real pixels on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
"""(2, 3): canvas (x, y) = matrix[:, :2] @ source (x, y) + matrix[:, 2]."""

PixelArray = npt.NDArray[np.uint8]
"""An image (h, w, C), RGB or of any number of channels, or a mask (h, w)."""


def fitted_size(
    height: int, width: int, canvas_height: int, canvas_width: int, factor: float | None = None
) -> tuple[int, int]:
    """(r, c): the size in whole pixels of a height x width image fitted into the canvas, enlarged or reduced.

    factor: the scale of an image that is not fitted (`ReadOptions.factor`), which may exceed the canvas.
    """
    if factor is not None:
        return scaled_size(height, width, factor)
    scale = min(canvas_height / height, canvas_width / width)
    rows, columns = scaled_size(height, width, scale)
    return min(rows, canvas_height), min(columns, canvas_width)


def fit_matrix(height: int, width: int, canvas_height: int, canvas_width: int, factor: float | None = None) -> Matrix:
    """The matrix (2, 3) that maps the source's extent exactly onto the `fitted_size`, from the canvas' top left on."""
    rows, columns = fitted_size(height, width, canvas_height, canvas_width, factor)
    return np.array([[columns / width, 0.0, 0.0], [0.0, rows / height, 0.0]])


def fit_image(image: PixelArray, canvas_height: int, canvas_width: int, factor: float | None = None) -> PixelArray:
    """Resize an image (H, W, C) to its `fitted_size` (r, c, C), its aspect kept."""
    height, width = image.shape[:2]
    real = fitted_size(height, width, canvas_height, canvas_width, factor)
    return warp_image(image, fit_matrix(height, width, canvas_height, canvas_width, factor), *real)


def size_on_canvas(matrix: Matrix, height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """(r, c): number of rows and columns of the canvas, from its top left, that a height x width source reaches."""
    _, _, right, bottom = moved_box(matrix, 0, 0, width, height)
    rows, columns = int(np.floor(bottom + 0.5)), int(np.floor(right + 0.5))
    return min(max(rows, 0), canvas_height), min(max(columns, 0), canvas_width)


def warp_image(image: PixelArray, matrix: Matrix, height: int, width: int) -> PixelArray:
    """Move an image (h, w, C) by `matrix` onto a canvas, (height, width, C) uint8.

    Enlarged bilinearly; reduced by averaging over the area that a new pixel covers, against aliasing. At its border the
    image is continued by its own edge pixels, and canvas pixels outside it (`size_on_canvas`) are 0: padding is never
    mixed into a real pixel. An unmoved image is returned bit for bit.
    """
    rows, columns = size_on_canvas(matrix, image.shape[0], image.shape[1], height, width)
    if (rows, columns) == (height, width):
        return resample(image, matrix, rows, columns, cv2.BORDER_REPLICATE)
    canvas = np.zeros((height, width, *image.shape[2:]), dtype=np.uint8)
    if rows and columns:
        canvas[:rows, :columns] = resample(image, matrix, rows, columns, cv2.BORDER_REPLICATE)
    return canvas


def to_pixel_values(
    image: PixelArray, height: int, width: int, mean: Sequence[float], std: Sequence[float]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Normalise an image (r, c, C) into the model's input of height x width: pixel_values, pixel_mask.

    mean, std: C numbers.
    pixel_values (C, height, width) float32 is (value / 255 - mean) / std per channel, exactly 0 in the padding right
    and below; pixel_mask (height, width) bool is True on real pixels.
    """
    rows, columns, channels = image.shape
    if channels != len(mean) or channels != len(std):
        raise ValueError(f"image: expected {len(mean)} channels, got {channels}")
    values = np.zeros((channels, height, width), dtype=np.float32)
    bytes_as_shares = np.arange(256) / 255
    for channel, pixels in enumerate(cv2.split(image)):
        table = (bytes_as_shares - mean[channel]) / std[channel]  # a byte has 256 values: look them up
        cv2.LUT(pixels, table.astype(np.float32), dst=values[channel, :rows, :columns])
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[:rows, :columns] = True
    return values, mask


def scaled_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """(r, c): both sides times `scale`, rounded to whole pixels, at least 1."""
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def moved_box(matrix: Matrix, left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    """(left, top, right, bottom) of a box moved by `matrix`; of a rotated box, of the upright box around it."""
    corners = [(x, y) for x in (left, right) for y in (top, bottom)]
    x = [matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2] for x, y in corners]
    y = [matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2] for x, y in corners]
    return float(min(x)), float(min(y)), float(max(x)), float(max(y))


def shift_origins(matrix: Matrix, source: tuple[float, float], canvas: tuple[float, float]) -> Matrix:
    """The same matrix for coordinates that begin at (x, y) `source` and `canvas` instead of (0, 0)."""
    moved = matrix.copy()
    moved[:, 2] += matrix[:, :2] @ source - canvas
    return moved


def resample(pixels: PixelArray, matrix: Matrix, height: int, width: int, border: int) -> PixelArray:
    """Move pixels (h, w) or (h, w, C) by `matrix` to (height, width[, C]). border: OpenCV's mode outside the source."""
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim == 2 or channels in (3, 4):
        return _resample_few(pixels, matrix, height, width, border)
    # OpenCV averages areas of up to four channels, and interpolates two or more than four less exactly.
    moved = np.empty((height, width, channels), np.uint8)
    threes = channels - channels % 3
    for first, end in pairwise([*range(0, threes, 3), *range(threes, channels + 1)]):
        some = np.ascontiguousarray(pixels[:, :, first:end])
        moved[:, :, first:end] = _resample_few(some, matrix, height, width, border).reshape(height, width, -1)
    return moved


def _resample_few(pixels: PixelArray, matrix: Matrix, height: int, width: int, border: int) -> PixelArray:
    """As `resample`, for what OpenCV does at once: (h, w), (h, w, 3) or (h, w, 4)."""
    scale_x, scale_y = np.hypot(matrix[0, 0], matrix[1, 0]), np.hypot(matrix[0, 1], matrix[1, 1])
    if scale_x >= 1 and scale_y >= 1:
        pixels, matrix = _needed_part(pixels, matrix, height, width)
    rows, columns = pixels.shape[:2]
    small_rows, small_columns = _shrunk_length(rows, scale_y), _shrunk_length(columns, scale_x)
    if (small_rows, small_columns) != (rows, columns):
        # The area average brings the image to its final scale; a flip and a shift of whole pixels remain.
        pixels = np.asarray(cv2.resize(pixels, (small_columns, small_rows), interpolation=cv2.INTER_AREA), np.uint8)
        matrix = matrix * np.array([columns / small_columns, rows / small_rows, 1.0])
    # warpAffine counts from pixel centres, we from corners: centre = corner - 1/2 on both sides.
    centred = shift_origins(matrix, (0.5, 0.5), (0.5, 0.5))
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
    if matrix[0, 1] or matrix[1, 0]:
        back = np.asarray(cv2.invertAffineTransform(matrix), np.float64)
        x0, y0, x1, y1 = moved_box(back, 0, 0, width, height)
    else:
        x0, x1 = sorted((-matrix[0, 2] / matrix[0, 0], (width - matrix[0, 2]) / matrix[0, 0]))
        y0, y1 = sorted((-matrix[1, 2] / matrix[1, 1], (height - matrix[1, 2]) / matrix[1, 1]))
    (left, right), (top, bottom) = _with_margin(x0, x1, columns), _with_margin(y0, y1, rows)
    return pixels[top:bottom, left:right], shift_origins(matrix, (left, top), (0.0, 0.0))


def _with_margin(low: float, high: float, limit: int) -> tuple[int, int]:
    """First and last (exclusive) of `limit` pixels for a range of them, with their neighbours.

    Two pixels of margin, so that interpolation reads the true neighbours, not a repeated edge.
    """
    first = min(max(math.floor(low) - 2, 0), limit - 1)
    return first, min(max(math.ceil(high) + 2, first + 1), limit)
