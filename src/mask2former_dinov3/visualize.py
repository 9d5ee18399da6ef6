"""Draw instances into their image: fill, outline, class and score.

Colours are those of the classes where a model has several; otherwise neighbouring instances get distinct colours. The
page of `serve` has the same rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .errors import OptionError
from .instances import Instances

Picture = NDArray[np.uint8]

# Visible on dark fluorescence images and on white tissue: no colour is close to black, white or grey.
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

COLOURS = ("auto", "class", "instance")
FILL = 0.38  # opacity of the fill: the instance is seen as one, and the object shows through
LONG_SIDE = 1000  # pixels; smaller pictures are enlarged before drawing, so that labels of small objects are readable
LONGEST_SIDE = 2600  # pixels; no picture is enlarged beyond it
MAX_ENLARGEMENT = 8
SMALL = 28  # pixels; if the median instance is smaller, the picture is enlarged further: outlines would hide it
CROWDED = 5000  # instances; with more, colours are assigned in turn
MAX_COVERED = 0.1  # fraction of a label that may lie on other instances; a label that hides more is left out


def enlargement(instances: Instances) -> int:
    """Integer factor by which a small picture, or one of small instances, should be enlarged for drawing."""
    side = max(instances.height, instances.width)
    scale = min(math.ceil(LONG_SIDE / side), MAX_ENLARGEMENT) if side < LONG_SIDE * 0.75 else 1
    while _typical_side(instances.areas) * scale < SMALL and 2 * scale <= min(MAX_ENLARGEMENT, LONGEST_SIDE / side):
        scale *= 2
    return scale


def _typical_side(areas: Iterable[int]) -> float:
    """Side in pixels of a square with the median instance's area; infinite without instances."""
    values = list(areas)
    return math.sqrt(float(np.median(values))) if values else math.inf


def rgb_view(image: Picture) -> Picture:
    """An image (H, W, C) as a picture (H, W, 3): RGB as it is, of more channels the first three, of two the first."""
    count = image.shape[2]
    return image if count == 3 else np.ascontiguousarray(image[:, :, :3] if count > 3 else image[:, :, [0, 0, 0]])


def check_colours(colours: str) -> None:
    """Raise OptionError for a word that is not in COLOURS."""
    if colours not in COLOURS:
        raise OptionError("colours", f"one of {', '.join(COLOURS)}", colours)


def draw_instances(
    image: Picture, instances: Instances, *, scale: int = 1, labels: bool = True, colours: str = "auto"
) -> Picture:
    """Draw instances onto a copy of the image (H, W, 3), enlarged to (scale*H, scale*W, 3); both uint8 RGB.

    Small instances are drawn over large ones, so that none is hidden. Each label (class and score; highest score first)
    is placed where it covers no other label and least of other instances. Where it fits nowhere the score alone is
    tried, then the label is left out, as it is for instances too small to label. colours: "class" (one for each class),
    "instance" (other than its neighbours'), or "auto": by class where the instances know several classes.
    Raises ValueError if sizes differ, OptionError for other colours.
    """
    check_colours(colours)
    if image.shape != (instances.height, instances.width, 3) or image.dtype != np.uint8:
        raise ValueError(
            f"image: expected RGB of uint8 with {instances.height}x{instances.width} pixels, as the instances, "
            f"got {image.dtype} {image.shape}"
        )
    shapes = [_Shape.of(instances, index, scale) for index in range(len(instances))]
    size = (image.shape[1] * scale, image.shape[0] * scale)
    picture = image.copy()
    if scale > 1:
        picture = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
    by_class = colours == "class" or (colours == "auto" and instances.classes > 1)
    chosen = PALETTE[instances.labels % len(PALETTE)] if by_class else _choose_colours(shapes)
    order = sorted(range(len(shapes)), key=lambda index: -shapes[index].area)
    for index in order:
        _fill(picture, shapes[index], chosen[index])
    line = max(1, round(max(size) / 700))
    for index in order:
        _outline(picture, shapes[index], chosen[index], line)
    if labels and len(instances):
        texts = [
            (f"{name} {score:.2f}", f"{score:.2f}")
            for name, score in zip(instances.names, instances.scores, strict=True)
        ]
        picture = _draw_labels(picture, shapes, chosen, texts, instances.scores)
    return picture


@dataclass(frozen=True)
class _Shape:
    """One mask at drawing scale, cropped to its bounding box, which begins at row y0 and column x0 of the picture."""

    x0: int
    y0: int
    mask: NDArray[np.uint8]  # (height, width) of the box, 0 or 1
    contours: Sequence[NDArray[np.integer | np.floating]]  # in the picture's coordinates
    area: int

    @classmethod
    def of(cls, instances: Instances, index: int, scale: int) -> _Shape:
        """Crop instance `index` and enlarge it with smooth edges."""
        box, top, left = instances.window(index)
        if scale > 1:
            box = _enlarge(box, scale)
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
        """x0, y0, x1, y1 of the largest connected part: the label of a scattered mask is placed there."""
        if not len(self.contours):
            return self.box
        left, top, width, height = cv2.boundingRect(max(self.contours, key=cv2.contourArea))
        return left, top, left + width, top + height


def _enlarge(mask: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """Enlarge a mask (h, w) of 0 and 1 by `scale` and smooth the steps along its edge."""
    blocks: NDArray[np.uint8] = np.kron(mask, np.ones((scale, scale), np.uint8))
    room = 2 * scale  # the mask ends at its box
    soft = cv2.GaussianBlur(np.pad(blocks, room).astype(np.float32), (0, 0), 0.7 * scale)[room:-room, room:-room]
    smooth = (soft > 0.5).astype(np.uint8)
    # One-pixel instances and thin lines would vanish.
    return smooth if smooth.sum() >= 0.7 * blocks.sum() else blocks


def _choose_colours(shapes: list[_Shape]) -> NDArray[np.uint8]:
    """Choose a colour of the palette for each shape, (N, 3): most different from its neighbours', then least used."""
    if len(shapes) > CROWDED:  # comparing each with all would take too long, and they are dots
        return PALETTE[np.arange(len(shapes)) % len(PALETTE)]
    boxes = np.array([shape.box for shape in shapes], dtype=np.float64).reshape(-1, 4)
    # In Lab space distances between colours follow perception.
    lab = cv2.cvtColor(PALETTE[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)  # (P, P)
    chosen = np.full(len(shapes), -1)
    used = np.zeros(len(PALETTE))
    for index in sorted(range(len(shapes)), key=lambda index: -shapes[index].area):
        x0, y0, x1, y1 = boxes[index]
        reach = 0.5 * max(x1 - x0, y1 - y0) + 4
        near = (boxes[:, 0] < x1 + reach) & (boxes[:, 2] > x0 - reach) & (boxes[:, 1] < y1 + reach)
        near &= (boxes[:, 3] > y0 - reach) & (chosen >= 0)
        # Beyond a distance of 60 colours differ enough: then prefer the least used one.
        clear = distances[:, chosen[near]].min(axis=1).clip(max=60) if near.any() else np.full(len(PALETTE), 60.0)
        chosen[index] = int(np.lexsort((np.arange(len(PALETTE)), used, -clear))[0])
        used[chosen[index]] += 1
    return PALETTE[chosen] if len(shapes) else np.zeros((0, 3), np.uint8)


def _fill(picture: Picture, shape: _Shape, colour: NDArray[np.uint8]) -> None:
    x0, y0, x1, y1 = shape.box
    part = picture[y0:y1, x0:x1]
    table = (np.arange(256)[:, None] * (1 - FILL) + colour * FILL + 0.5).astype(np.uint8)  # of each byte and channel
    cv2.copyTo(cv2.LUT(part, table[None]), shape.mask, part)


def _outline(picture: Picture, shape: _Shape, colour: NDArray[np.uint8], line: int) -> None:
    """Draw a line in the instance's colour on a wider dark one, so that it is visible on any background."""
    dark = tuple(int(value) for value in colour * 0.25)
    cv2.drawContours(picture, shape.contours, -1, dark, line + 2, cv2.LINE_AA)
    cv2.drawContours(picture, shape.contours, -1, tuple(int(value) for value in colour), line, cv2.LINE_AA)


def _draw_labels(
    picture: Picture,
    shapes: list[_Shape],
    colours: NDArray[np.uint8],
    texts: Sequence[tuple[str, ...]],
    scores: NDArray[np.float32],
) -> Picture:
    """Draw a label for every instance that has room for one; texts: alternatives per instance, the longest first."""
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
            # A label much wider than its instance would seem to belong to its neighbours.
            x0, _, x1, _ = shape.largest_part
            place = _find_place(shape, size, count, taken) if size[0] < 2.2 * (x1 - x0) else None
            if place is not None:
                x, y = place
                taken[y : y + size[1], x : x + size[0]] = True
                colour = tuple(int(value) for value in colours[index])
                draw.rectangle((x, y, x + size[0] - 1, y + size[1] - 1), fill=colour)
                draw.text((x + pad, y + pad // 2), text, font=font, fill=_ink(colours[index]))
                break
    return np.asarray(canvas).copy()


def _find_place(
    shape: _Shape, size: tuple[int, int], count: NDArray[np.int32], taken: NDArray[np.bool_]
) -> tuple[int, int] | None:
    """Find (x, y) for a label of `size` (width, height): near the shape, on no other label, hiding little else."""
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
        # Hiding a part of the own instance counts half as much as hiding a neighbour.
        cost = covered + 0.5 * own + 0.01 * rank
        if covered <= MAX_COVERED and own <= 0.35 and (best is None or cost < best[0]):
            best = (cost, (x, y))
    return best[1] if best else None


def _places(shape: _Shape, size: tuple[int, int]) -> Iterable[tuple[int, int]]:
    """Candidate places of a label, preferred ones first: on the upper edge, below, at the sides, inside."""
    x0, y0, x1, y1 = shape.largest_part
    width, height = size
    middle_x, middle_y = (x0 + x1 - width) // 2, (y0 + y1 - height) // 2
    yield from ((x0, y0 - height), (middle_x, y0 - height), (x1 - width, y0 - height))
    yield from ((x0, y1), (middle_x, y1), (x1 - width, y1))
    yield from ((x1, middle_y), (x0 - width, middle_y), (x1, y0), (x0 - width, y0))
    yield from ((middle_x, middle_y), (middle_x, y0), (middle_x, y1 - height))


def _ink(colour: NDArray[np.uint8]) -> tuple[int, int, int]:
    """Black or white, whichever contrasts more with this colour (relative luminance, WCAG 2)."""
    linear = np.where(colour / 255 <= 0.04045, colour / 255 / 12.92, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ np.array([0.2126, 0.7152, 0.0722]))
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)
