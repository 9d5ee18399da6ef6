"""Make the pictures of a page: crops with masks and boxes, as data URIs.

Source and picture are related by the matrices of `data/fitting.py`; masks are rasterised at the size of the picture, by
the code that training uses.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.fitting import Matrix, PixelArray, moved_box, warp_image
from ..data.rle import Window
from ..data.segmentation import Polygon, Segmentation
from ..data.transforms import rasterise_windows
from ..instances import Instances, encode_masks
from ..visualize import FILL, draw_instances, rgb_view

SIDE_OF_PICTURE = 320  # pixels: twice the width of a column of the page, for sharp screens
LARGEST_ENLARGEMENT = 12.0  # beyond it, single pixels of the image are larger than a letter
MOST_MASKS = 400  # drawn in one picture
QUALITY = 82  # of JPEG
FOCUS, OTHERS, BOX = (255, 125, 20), (90, 190, 255), (255, 255, 255)


class View(NamedTuple):
    """A part of an image as a picture. matrix: from source to picture; size: (height, width) of the source."""

    pixels: PixelArray  # (h, w, 3)
    matrix: Matrix  # (2, 3)
    size: tuple[int, int]


def view_of(image: PixelArray, box: Sequence[float] | None = None, side: int = SIDE_OF_PICTURE) -> View:
    """The part of an image (H, W, C) within a box (x0, y0, x1, y1), clipped to it, as RGB; None: the whole image.

    Its longer side becomes `side` pixels, or less where that would enlarge it more than `LARGEST_ENLARGEMENT`.
    """
    image = rgb_view(image)
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (0.0, 0.0, float(width), float(height)) if box is None else box
    x0, x1 = np.clip([np.floor(x0), np.ceil(x1)], 0, width)
    y0, y1 = np.clip([np.floor(y0), np.ceil(y1)], 0, height)
    if x1 <= x0 or y1 <= y0:
        x0, y0, x1, y1 = 0.0, 0.0, float(width), float(height)
    scale = min(side / max(x1 - x0, y1 - y0), LARGEST_ENLARGEMENT)
    matrix = np.array([[scale, 0.0, -x0 * scale], [0.0, scale, -y0 * scale]])
    size = max(round((y1 - y0) * scale), 1), max(round((x1 - x0) * scale), 1)
    return View(warp_image(image, matrix, *size), matrix, (height, width))


def surround(boxes: Sequence[Sequence[float]], size: tuple[int, ...]) -> tuple[float, float, float, float] | None:
    """A box (x0, y0, x1, y1) around boxes (left, top, width, height), with context; None if it is outside the image."""
    if not boxes:
        return None
    x0, y0 = min(box[0] for box in boxes), min(box[1] for box in boxes)
    x1, y1 = max(box[0] + box[2] for box in boxes), max(box[1] + box[3] for box in boxes)
    if x1 <= 0 or y1 <= 0 or x0 >= size[1] or y0 >= size[0]:
        return None
    room = max(0.5 * max(x1 - x0, y1 - y0), 16.0)
    return x0 - room, y0 - room, x1 + room, y1 + room


def square_around(boxes: Sequence[Sequence[float]], size: tuple[int, ...]) -> tuple[float, float, float, float] | None:
    """As `surround`, as a square that lies in the image (height, width) as far as that is large enough."""
    around = surround(boxes, size)
    if around is None:
        return None
    x0, y0, x1, y1 = around
    side = max(x1 - x0, y1 - y0)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2
    left = min(max(left, 0.0), max(size[1] - side, 0.0))
    top = min(max(top, 0.0), max(size[0] - side, 0.0))
    return left, top, left + side, top + side


def masks_in_view(view: View, segmentations: Sequence[Segmentation]) -> list[Window]:
    """The masks that the view shows, in pixels of the picture; at most `MOST_MASKS`.

    An RLE of another size than the image cannot be laid on it, and is left out.
    """
    height, width = view.pixels.shape[:2]
    fitting = [one for one in segmentations if isinstance(one, list) or tuple(one["size"]) == view.size]
    found = rasterise_windows(fitting, view.size, view.matrix, height, width)
    return [window for window in found if window is not None and window.pixels.any()][:MOST_MASKS]


def draw_all(
    view: View,
    segmentations: Sequence[Segmentation],
    labels: Sequence[int] | None = None,
    categories: tuple[tuple[int, str], ...] | None = None,
) -> PixelArray:
    """The picture with every mask in a colour of its own, or, with `labels` of several `categories`, of its class."""
    numbers = [0] * len(segmentations) if labels is None else labels
    pairs = list(zip(segmentations, numbers, strict=True))
    drawn = [
        (window, label)
        for label in sorted(set(numbers))
        for window in masks_in_view(view, [one for one, own in pairs if own == label])
    ][:MOST_MASKS]
    masks = np.zeros((len(drawn), *view.pixels.shape[:2]), np.bool_)
    for mask, (window, _) in zip(masks, drawn, strict=True):
        mask[window.place] = window.pixels
    return draw_masks(view.pixels, masks, [label for _, label in drawn], categories)


def draw_masks(
    pixels: PixelArray,
    masks: NDArray[np.bool_],
    labels: Sequence[int] | None = None,
    categories: tuple[tuple[int, str], ...] | None = None,
) -> PixelArray:
    """Pixels (h, w, 3) with masks (N, h, w), each in a colour of its own, or of its class as in `draw_all`."""
    count, height, width = masks.shape
    numbers = np.zeros(count, np.int64) if labels is None else np.array(labels, np.int64)
    found = Instances(height, width, encode_masks(masks), numbers, np.ones(count, np.float32), categories)
    return draw_instances(pixels, found, labels=False)


def draw_focus(view: View, focus: Sequence[Segmentation], others: Sequence[Segmentation]) -> PixelArray:
    """The picture with the masks in focus filled, and thin outlines around the others."""
    picture = view.pixels.copy()
    draw_layer(picture, view, others, OTHERS)
    draw_layer(picture, view, focus, FOCUS, filled=True, line=2)
    return picture


def draw_layer(
    picture: PixelArray,
    view: View,
    segmentations: Sequence[Segmentation],
    colour: tuple[int, int, int],
    *,
    filled: bool = False,
    line: int = 1,
) -> None:
    """Draw masks in one colour, in place: as outlines, or filled too. line: width of the outline in pixels."""
    for window in masks_in_view(view, segmentations):
        if filled:
            part = picture[window.place]
            inside = window.pixels.astype(bool)
            part[inside] = (part[inside] * (1 - FILL) + np.array(colour) * FILL + 0.5).astype(np.uint8)
        _outline(picture, window, colour, line)


def draw_lines(picture: PixelArray, view: View, parts: Sequence[Polygon]) -> None:
    """Draw polygon parts (P, 2) as closed lines, in place, also those that cover no pixel."""
    for part in parts:
        points = part @ view.matrix[:, :2].T + view.matrix[:, 2]
        whole = np.clip(points, -10_000, 10_000).round().astype(np.int32)[:, None]
        for colour, line in (((0, 0, 0), 4), (FOCUS, 2)):
            cv2.polylines(picture, [whole], True, colour, line, cv2.LINE_AA)
            for x, y in whole[:, 0].tolist():
                cv2.circle(picture, (x, y), line, colour, -1, cv2.LINE_AA)


def draw_box(picture: PixelArray, view: View, box: Sequence[float]) -> None:
    """Draw a box (left, top, width, height) of the source as a white line on a black one, in place."""
    left, top, wide, high = np.clip(box, -1e6, 1e6)
    corners = moved_box(view.matrix, left, top, left + wide, top + high)
    x0, y0, x1, y1 = (round(min(max(value, -10_000), 10_000)) for value in corners)
    for colour, line in (((0, 0, 0), 4), (BOX, 2)):
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), colour, line)


def encode_jpeg(picture: PixelArray) -> bytes:
    """A picture (h, w, 3) as a JPEG file."""
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    if not done:
        raise RuntimeError("OpenCV could not encode a picture")
    return data.tobytes()


def data_uri(picture: PixelArray) -> str:
    """A picture (h, w, 3) as a JPEG in a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(picture)).decode('ascii')}"


def _outline(picture: PixelArray, window: Window, colour: tuple[int, int, int], line: int) -> None:
    """A line around a mask, on a dark one."""
    pixels = np.ascontiguousarray(window.pixels)
    contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(window.left, window.top))
    dark = tuple(value // 4 for value in colour)
    cv2.drawContours(picture, contours, -1, dark, line + 2, cv2.LINE_AA)
    cv2.drawContours(picture, contours, -1, colour, line, cv2.LINE_AA)
