"""Geometry and colour in training, evaluation and prediction: one 2x3 matrix moves an image and its instances.

Coordinates are continuous, in pixels, with (0, 0) at the *corner* of the first pixel, as COCO's polygons have them.
A matrix maps source coordinates to canvas coordinates: a scale per axis, an optional flip and a shift of whole pixels;
then perhaps a rotation (`rotate_matrix`). The image keeps its aspect, up to the rounding of its size to whole pixels,
and lies at the top left of the canvas; what is right of it and below is padding.

Legend: h, w source height and width; H, W canvas height and width; r, c height and width of the real pixels on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import OptionError
from .fitting import Matrix, PixelArray, moved_box, resample, scaled_size, shift_origins, size_on_canvas
from .rle import Window, check_runs, runs_of_each, runs_window
from .segmentation import Polygon, Segmentation, polygons_to_counts, segmentation_box

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random changes in training. Scales are relative to the fit of the whole image into the canvas, or to `factor`.

    scale_min, scale_max: large-scale jitter (arXiv:2012.07177), uniform in between. flip: "horizontal" (left-right)
    or "both" (left-right and up-down independently), each with probability 1/2; "all" transposes as well, so that all
    eight orientations are equally likely; or "none". color_jitter: brightness, contrast and saturation each change by a
    factor within 1 +- color_jitter; 0 leaves colours unchanged (`jitter_colors`). copy_paste: fraction of images onto
    which instances of another image are pasted (`copy_paste.paste`).
    rotation: largest angle in degrees to either side (`rotate_matrix`); 0 to 180. gamma_jitter, invert, blur, noise,
    jpeg_quality: see `pixel_changes.change_pixels`. At their defaults these six draw no random number.
    Raises OptionError for a value outside its range.
    """

    scale_min: float = 0.1
    scale_max: float = 2.0
    flip: Literal["horizontal", "both", "all", "none"] = "horizontal"
    color_jitter: float = 0.2
    copy_paste: float = 0.0
    rotation: float = 0.0
    gamma_jitter: float = 0.0
    invert: float = 0.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg_quality: int | None = None

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
        for name, most in (("rotation", 180), ("invert", 1), ("blur", 100)):
            if not 0 <= getattr(self, name) <= most:
                raise OptionError(name, f"a number from 0 to {most}", getattr(self, name))
        if not 0 <= self.gamma_jitter < float("inf"):
            raise OptionError("gamma_jitter", "a number of 0 or more", self.gamma_jitter)
        if not 0 <= self.noise < 1:
            raise OptionError("noise", "a number from 0 to below 1", self.noise)
        if self.jpeg_quality is not None and not 1 <= self.jpeg_quality <= 100:
            raise OptionError("jpeg_quality", "a whole number from 1 to 100, or None", self.jpeg_quality)


AUGMENTATIONS: tuple[str, ...] = tuple(field.name for field in fields(Augmentation))
"""Options of training with the names of the fields."""


def sample_matrix(
    rng: np.random.Generator,
    height: int,
    width: int,
    canvas_height: int,
    canvas_width: int,
    augmentation: Augmentation,
    factor: float | None = None,
    focus: tuple[float, float, float, float] | None = None,
) -> Matrix:
    """A random matrix (2, 3): scale jitter, flip, and a random crop where the image is larger than the canvas.

    Its `size_on_canvas` is the part of the canvas that the image fills. With scales of 1 and no flip it equals
    `fit_matrix`. It never transposes: that is done to the finished sample, on a canvas with its sides exchanged.
    factor: the scale of an image that is not fitted into the canvas (`ReadOptions.factor`), before the jitter. focus:
    left, top, width, height of an object, in pixels of the image; the crop holds it, or lies inside a larger one.
    """
    scale = min(canvas_height / height, canvas_width / width) if factor is None else factor
    jitter = rng.uniform(augmentation.scale_min, augmentation.scale_max)
    rows, columns = scaled_size(height, width, scale * jitter)
    if jitter <= 1 and factor is None:  # rounding must not push the image out of the canvas by a pixel
        rows, columns = min(rows, canvas_height), min(columns, canvas_width)
    flip_x, flip_y = rng.random(2) < 0.5
    flip_x &= augmentation.flip != "none"
    flip_y &= augmentation.flip in ("both", "all")
    scale_x, scale_y = columns / width, rows / height
    matrix = np.array(
        [
            [-scale_x if flip_x else scale_x, 0.0, columns if flip_x else 0.0],
            [0.0, -scale_y if flip_y else scale_y, rows if flip_y else 0.0],
        ]
    )
    left, top, right, bottom = 0.0, 0.0, float(columns), float(rows)
    if focus is not None:
        left, top, right, bottom = moved_box(matrix, *focus[:2], focus[0] + focus[2], focus[1] + focus[3])
    matrix[0, 2] -= _draw_start(rng, left, right, columns, canvas_width)
    matrix[1, 2] -= _draw_start(rng, top, bottom, rows, canvas_height)
    return matrix


def _draw_start(rng: np.random.Generator, first: float, last: float, length: int, canvas: int) -> int:
    """The first pixel, of `length`, that the canvas shows; it shows `first` to `last`, or nothing beyond them."""
    low, high = sorted((last - canvas, first))
    most = max(length - canvas, 0)
    start = min(max(math.ceil(low), 0), most)
    return int(rng.integers(start, min(max(math.floor(high), start), most), endpoint=True))


def rotate_matrix(matrix: Matrix, extent: tuple[int, int], angle: float) -> Matrix:
    """`matrix`, then a rotation by `angle` degrees about the middle of `extent`, the (r, c) pixels that it fills.

    The extent stays: what leaves it is cut off, and an enlarged crop turns within the image.
    """
    turn = math.radians(angle)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    middle = np.array([extent[1] / 2, extent[0] / 2])
    rotated: Matrix = rotation @ matrix
    rotated[:, 2] += middle - rotation @ middle
    return rotated


def cut_corners(
    image: PixelArray, windows: Sequence[Window | None], size: tuple[int, int], matrix: Matrix, fill: Sequence[int]
) -> list[Window | None]:
    """Paint what lies outside a rotated source with `fill` (C bytes), in place, and take it from the masks.

    image (r, c, C) and windows were moved by `matrix` from a source of `size` (h, w). Without this, edge pixels would
    be continued into the corners, and polygons that reach beyond their image would be drawn there.
    """
    height, width = size
    frame = [np.array([[0.0, 0], [width, 0], [width, height], [0, height]])]
    inside = rasterise(frame, size, matrix, *image.shape[:2])
    image[inside == 0] = fill
    kept: list[Window | None] = []
    for window in windows:
        pixels = None if window is None else window.pixels & inside[window.place]
        kept.append(None if window is None or pixels is None or not pixels.any() else window._replace(pixels=pixels))
    return kept


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
    segmentations: Sequence[Segmentation],
    size: tuple[int, int],
    matrix: Matrix,
    height: int,
    width: int,
    *,
    exact: bool = False,
) -> list[Window | None]:
    """Move the instances of an image of `size` (h, w) by `matrix`: the mask pixels around each, None if none is left.

    Polygons: the vertices are moved, then COCO's rasteriser draws the union of the parts, nothing beyond the image's
    own extent. RLE: the pixels are moved like the image's; a new pixel belongs to the instance if half of it does.
    exact: a polygon that begins left of the canvas or above it is drawn from its beginning on and then cut, since the
    rasteriser rounds negative coordinates the other way: the mask then is the same part of the whole image's.
    """
    rows, columns = size_on_canvas(matrix, size[0], size[1], height, width)
    if rows == 0 or columns == 0:
        return [None] * len(segmentations)
    drawn = [
        _Drawn(one["counts"]) if isinstance(one, dict) else _draw_polygons(one, matrix, rows, columns, exact)
        for one in segmentations
    ]
    windows: list[Window | None] = []
    for segmentation, one, runs in zip(segmentations, drawn, runs_of_each([one.counts for one in drawn]), strict=True):
        if isinstance(segmentation, list):
            windows.append(_cut_window(runs, rows, one) if one.above or one.before else runs_window(runs, rows))
            continue
        check_runs(runs, *size)
        source = runs_window(runs, size[0])
        windows.append(None if source is None else _move_window(source, matrix, rows, columns))
    return windows


class _Drawn(NamedTuple):
    """Compressed runs of a mask, with as many rows above the canvas and columns before it."""

    counts: bytes
    above: int = 0
    before: int = 0


def _draw_polygons(parts: list[Polygon], matrix: Matrix, rows: int, columns: int, exact: bool) -> _Drawn:
    """A rows x columns mask of polygon parts moved by `matrix`; without counts if they lie outside it."""
    moved = [part @ matrix[:, :2].T + matrix[:, 2] for part in parts]  # each (P, 2)
    # Most instances of an enlarged crop are outside it: they need no rasteriser.
    left, top, width, height = segmentation_box(moved)
    if left > columns or top > rows or left + width < 0 or top + height < 0:
        return _Drawn(b"")
    if not exact:
        return _Drawn(polygons_to_counts(moved, rows, columns))
    above, before = max(-math.floor(top), 0), max(-math.floor(left), 0)
    # Rounded, since a sum such as 12.3 - 5 lies beside the number that the rasteriser would round.
    moved = [np.round(part + np.array([before, above]), 9) for part in moved]
    return _Drawn(polygons_to_counts(moved, rows + above, columns + before), above, before)


def _cut_window(runs: npt.NDArray[np.int64], rows: int, drawn: _Drawn) -> Window | None:
    """The part of a mask (`runs`, R of them) on a canvas of so many rows; None if it has no pixel."""
    height = rows + drawn.above
    ends = np.maximum(np.cumsum(runs) - drawn.before * height, 0)
    window = runs_window(np.diff(ends, prepend=0), height)
    if window is None:
        return None
    pixels = window.pixels[max(drawn.above - window.top, 0) :]
    return Window(pixels, max(window.top - drawn.above, 0), window.left) if pixels.any() else None


def jitter_colors(image: PixelArray, rng: np.random.Generator, strength: float) -> None:
    """Change brightness, contrast and saturation of (h, w, 3) RGB in place, each by a factor within 1 +- strength.

    All three are linear in the colour, so one 3x4 colour matrix applies them in one pass. Of (h, w, C) with other than
    three channels, brightness and contrast change, by the same factors in all channels; a saturation they have not.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    if image.shape[2] != 3:
        for channel in range(image.shape[2]):
            pixels = np.ascontiguousarray(image[:, :, channel])
            mean = float(cv2.mean(pixels)[0])  # contrast scales around the channel's own mean
            table = brightness * (contrast * np.arange(256) + (1 - contrast) * mean)
            image[:, :, channel] = cv2.LUT(pixels, np.clip(np.rint(table), 0, 255).astype(np.uint8))
        return
    saturate = saturation * np.eye(3) + (1 - saturation) * np.tile(_LUMA, (3, 1))  # grey stays as it is
    mean_luma = float(_LUMA @ np.array(cv2.mean(image)[:3]))  # contrast scales around the image's own mean
    color = np.empty((3, 4))
    color[:, :3] = brightness * contrast * saturate
    color[:, 3] = brightness * (1 - contrast) * mean_luma
    image[:] = cv2.transform(image, color)


def _move_window(source: Window, matrix: Matrix, rows: int, columns: int) -> Window | None:
    """Move mask pixels of the source by `matrix` onto a canvas of rows x columns; None if no pixel is left."""
    height, width = source.pixels.shape
    box = moved_box(matrix, source.left, source.top, source.left + width, source.top + height)
    left, top = max(int(np.floor(box[0])), 0), max(int(np.floor(box[1])), 0)
    right, bottom = min(int(np.ceil(box[2])), columns), min(int(np.ceil(box[3])), rows)
    if left >= right or top >= bottom:
        return None
    local = shift_origins(matrix, (source.left, source.top), (left, top))
    opaque = np.multiply(source.pixels, np.uint8(255), order="C")
    shares = resample(opaque, local, bottom - top, right - left, cv2.BORDER_CONSTANT)
    pixels = (shares >= 128).astype(np.uint8)
    return Window(pixels, top, left) if pixels.any() else None
