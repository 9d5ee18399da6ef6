"""Instances drawn into their image: fill, outline, class and score of each, colours that tell neighbours apart."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .instances import Instances

Picture = NDArray[np.uint8]

# Told apart on dark fluorescence and on white tissue alike: no colour near black, white or grey.
PALETTE = np.array(
    [
        (255, 66, 66),  # red
        (30, 160, 255),  # blue
        (255, 196, 0),  # amber
        (0, 200, 110),  # green
        (214, 78, 255),  # violet
        (255, 125, 20),  # orange
        (0, 214, 214),  # turquoise
        (255, 92, 170),  # pink
        (150, 215, 20),  # lime
        (110, 100, 255),  # indigo
        (255, 145, 125),  # salmon
        (140, 200, 255),  # sky
    ],
    dtype=np.uint8,
)

FILL = 0.38  # how much of the colour is in the fill: enough to group, little enough to see the object
LONG_SIDE = 1000  # pictures under it are enlarged for drawing, or labels of small objects could not be read
LONGEST_SIDE = 2600  # and no picture beyond it
MOST_ENLARGED = 8
SMALL = 28  # pixels: half of the instances being smaller asks for more enlargement, or outlines would hide them
CROWDED = 5000  # instances: among more, colours go round the palette
MOST_COVERED = 0.1  # of a label may lie on other instances; a label that hides more is left out


def enlargement(instances: Instances) -> int:
    """The whole factor by which a small picture, or one of small instances, is best enlarged for drawing."""
    side = max(instances.height, instances.width)
    scale = min(math.ceil(LONG_SIDE / side), MOST_ENLARGED) if side < LONG_SIDE * 0.75 else 1
    while _typical_side(instances.areas) * scale < SMALL and 2 * scale <= min(MOST_ENLARGED, LONGEST_SIDE / side):
        scale *= 2
    return scale


def _typical_side(areas: Iterable[int]) -> float:
    """Side in pixels of a square as large as the median instance; infinite without instances."""
    values = list(areas)
    return math.sqrt(float(np.median(values))) if values else math.inf


def draw_instances(image: Picture, instances: Instances, *, scale: int = 1, labels: bool = True) -> Picture:
    """A new picture (scale*H, scale*W, 3) of the image (H, W, 3) with its instances, both uint8 RGB.

    Small instances lie on large ones, so none is hidden. Labels (class and score, the best first) take the place where
    they cover least of other instances and no other label; where there is none, the score alone is tried, and then the
    label is left out, as it is for instances too small to point at. Raises ValueError if sizes differ.
    """
    if image.shape != (instances.height, instances.width, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image: expected {instances.height}x{instances.width} RGB of uint8 as the instances are, "
            f"got {image.dtype} {image.shape}"
        )
    shapes = [_Shape.of(instances, index, scale) for index in range(len(instances))]
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = image.copy()
    if scale > 1:
        picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    colours = _colours(shapes)
    order = sorted(range(len(shapes)), key=lambda index: -shapes[index].area)
    for index in order:
        _fill(picture, shapes[index], colours[index])
    line = max(1, round(max(size) / 700))
    for index in order:
        _outline(picture, shapes[index], colours[index], line)
    if labels and len(instances):
        texts = [
            (f"{name} {score:.2f}", f"{score:.2f}")
            for name, score in zip(instances.names, instances.scores, strict=True)
        ]
        picture = _label(picture, shapes, colours, texts, instances.scores)
    return picture


@dataclass(frozen=True)
class _Shape:
    """One mask at drawing scale, cut to its box: rows y0.. and columns x0.. of the picture."""

    x0: int
    y0: int
    mask: NDArray[np.uint8]  # (height, width) of the box, 0 or 1
    contours: Sequence[NDArray[Any]]  # in the picture's coordinates
    area: int

    @classmethod
    def of(cls, instances: Instances, index: int, scale: int) -> _Shape:
        """Cut instance `index` out and enlarge it with round edges rather than stairs."""
        box, top, left = instances.window(index)
        if scale > 1:
            box = _enlarged(box, scale)
        contours, _ = cv2.findContours(
            np.ascontiguousarray(box), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(left * scale, top * scale)
        )
        return cls(left * scale, top * scale, box, contours, int(box.sum()))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1."""
        return self.x0, self.y0, self.x0 + self.mask.shape[1], self.y0 + self.mask.shape[0]

    @property
    def largest_part(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of the largest connected part: a label there points at something, however scattered a mask."""
        if not len(self.contours):
            return self.box
        left, top, width, height = cv2.boundingRect(max(self.contours, key=cv2.contourArea))
        return left, top, left + width, top + height


def _enlarged(mask: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """A mask (h, w) of 0 and 1 at `scale`, its stairs of pixels rounded."""
    blocks: NDArray[np.uint8] = np.kron(mask, np.ones((scale, scale), np.uint8))
    room = 2 * scale  # nothing of the mask is beyond its box
    soft = cv2.GaussianBlur(np.pad(blocks, room).astype(np.float32), (0, 0), 0.7 * scale)[room:-room, room:-room]
    smooth = (soft > 0.5).astype(np.uint8)
    # One-pixel instances and thin lines would vanish.
    return smooth if smooth.sum() >= 0.7 * blocks.sum() else blocks


def _colours(shapes: list[_Shape]) -> NDArray[np.uint8]:
    """(N, 3): each shape gets the palette's colour that is farthest from those of its neighbours, rarest first."""
    if len(shapes) > CROWDED:  # each is compared with all, and as dots they need no such care
        return PALETTE[np.arange(len(shapes)) % len(PALETTE)]
    boxes = np.array([shape.box for shape in shapes], dtype=np.float64).reshape(-1, 4)
    lab = cv2.cvtColor(PALETTE[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]  # distances as the eye sees them
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)  # (P, P)
    chosen = np.full(len(shapes), -1)
    used = np.zeros(len(PALETTE))
    for index in sorted(range(len(shapes)), key=lambda index: -shapes[index].area):
        x0, y0, x1, y1 = boxes[index]
        reach = 0.5 * max(x1 - x0, y1 - y0) + 4
        near = (boxes[:, 0] < x1 + reach) & (boxes[:, 2] > x0 - reach) & (boxes[:, 1] < y1 + reach)
        near &= (boxes[:, 3] > y0 - reach) & (chosen >= 0)
        # Beyond 60 colours differ well enough, and an even use of the palette serves better.
        clear = distances[:, chosen[near]].min(axis=1).clip(max=60) if near.any() else np.full(len(PALETTE), 60.0)
        chosen[index] = int(np.lexsort((np.arange(len(PALETTE)), used, -clear))[0])
        used[chosen[index]] += 1
    return PALETTE[chosen] if len(shapes) else np.zeros((0, 3), np.uint8)


def _fill(picture: Picture, shape: _Shape, colour: NDArray[np.uint8]) -> None:
    x0, y0, x1, y1 = shape.box
    part = picture[y0:y1, x0:x1]
    inside = shape.mask.astype(bool)
    part[inside] = (part[inside] * (1 - FILL) + colour * FILL + 0.5).astype(np.uint8)


def _outline(picture: Picture, shape: _Shape, colour: NDArray[np.uint8], line: int) -> None:
    """A line in the instance's colour on a thin dark one, so that it is seen on any ground."""
    dark = tuple(int(value) for value in colour * 0.25)
    cv2.drawContours(picture, shape.contours, -1, dark, line + 2, cv2.LINE_AA)
    cv2.drawContours(picture, shape.contours, -1, tuple(int(value) for value in colour), line, cv2.LINE_AA)


def _label(
    picture: Picture,
    shapes: list[_Shape],
    colours: NDArray[np.uint8],
    texts: Sequence[tuple[str, ...]],
    scores: NDArray[np.float32],
) -> Picture:
    """The picture with a label for every instance that has room for one; texts: per instance, the longest first."""
    height, width = picture.shape[:2]
    typical = _typical_side(shape.area for shape in shapes)
    font = ImageFont.load_default(float(np.clip(min(max(height, width) / 62, 0.5 * typical), 13, 40)))
    ascent, descent = font.getmetrics() if isinstance(font, ImageFont.FreeTypeFont) else (11, 0)
    pad = max(2, round(ascent / 6))
    box_height = ascent + descent + pad
    count = np.zeros((height, width), dtype=np.int32)  # instances on each pixel
    for shape in shapes:
        x0, y0, x1, y1 = shape.box
        count[y0:y1, x0:x1] += shape.mask
    taken = np.zeros((height, width), dtype=bool)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas)
    for index in np.argsort(-scores, kind="stable"):
        shape = shapes[index]
        if shape.area < box_height**2:
            continue
        for text in texts[index]:
            size = (math.ceil(font.getlength(text)) + 2 * pad, box_height)
            # A label much wider than its instance would seem to belong to the neighbours.
            x0, _, x1, _ = shape.largest_part
            place = _free_place(shape, size, count, taken) if size[0] < 2.2 * (x1 - x0) else None
            if place is not None:
                x, y = place
                taken[y : y + size[1], x : x + size[0]] = True
                colour = tuple(int(value) for value in colours[index])
                draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=colour)
                draw.text((x + pad, y + pad // 2), text, font=font, fill=_ink(colours[index]))
                break
    return np.asarray(canvas).copy()


def _free_place(
    shape: _Shape, size: tuple[int, int], count: NDArray[np.int32], taken: NDArray[np.bool_]
) -> tuple[int, int] | None:
    """(x, y) of a label of `size` (width, height): by the shape, on no other label, covering least of the others."""
    height, width = count.shape
    best: tuple[float, tuple[int, int]] | None = None
    for rank, (x, y) in enumerate(_places(shape, size)):
        x, y = min(max(x, 0), width - size[0]), min(max(y, 0), height - size[1])
        if x < 0 or y < 0 or taken[y : y + size[1], x : x + size[0]].any():
            continue
        others = count[y : y + size[1], x : x + size[0]].copy()
        left, top, right, bottom = shape.box
        ax, ay, bx, by = max(left, x), max(top, y), min(right, x + size[0]), min(bottom, y + size[1])
        own = 0.0
        if ax < bx and ay < by:
            mine = shape.mask[ay - top : by - top, ax - left : bx - left]
            others[ay - y : by - y, ax - x : bx - x] -= mine
            own = float(mine.sum()) / shape.area
        covered = float((others > 0).mean())
        # Hiding a part of its own instance is bad as well, though less than hiding a neighbour.
        cost = covered + 0.5 * own + 0.01 * rank
        if covered <= MOST_COVERED and own <= 0.35 and (best is None or cost < best[0]):
            best = (cost, (x, y))
    return best[1] if best else None


def _places(shape: _Shape, size: tuple[int, int]) -> Iterable[tuple[int, int]]:
    """Where a label may go, the preferred first: on the upper edge, below, at the sides, inside."""
    x0, y0, x1, y1 = shape.largest_part
    width, height = size
    middle_x, middle_y = (x0 + x1 - width) // 2, (y0 + y1 - height) // 2
    yield from ((x0, y0 - height), (middle_x, y0 - height), (x1 - width, y0 - height))
    yield from ((x0, y1), (middle_x, y1), (x1 - width, y1))
    yield from ((x1, middle_y), (x0 - width, middle_y), (x1, y0), (x0 - width, y0))
    yield from ((middle_x, middle_y), (middle_x, y0), (middle_x, y1 - height))


def _ink(colour: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Black or white, whichever is read better on this colour (relative luminance, WCAG 2)."""
    linear = np.where(colour / 255 <= 0.04045, colour / 255 / 12.92, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
