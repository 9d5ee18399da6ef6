"""Pictures with masks as layers that the reader switches on and off, without a script.

The masks are outlines in an SVG over the picture, so they stay sharp at any size, and each says what it is when the
pointer rests on it. A check box before the picture shows or hides a layer by a rule of the style sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from ..data.fitting import PixelArray
from ..data.segmentation import Segmentation
from .html_page import Html, element, join
from .pictures import View, masks_in_view

_TOLERANCE = 0.6  # pixels of the picture that an outline may be off
MOST_OUTLINES = 400  # in one layer


class Outlined(NamedTuple):
    """A mask with what is said about it. box: (left, top, width, height) in pixels of the source."""

    segmentation: Segmentation
    box: Sequence[float]
    text: str


class Layer(NamedTuple):
    """Masks that are shown and hidden together. key: of the style sheet; name: of its check box; shown: at first."""

    key: str
    name: str
    shown: bool
    masks: Sequence[Outlined]


LAYER_COLOURS = {  # by the key of the layer
    "right": (47, 209, 107),
    "wrong": (255, 77, 77),
    "missed": (255, 176, 0),
    "truth": (255, 255, 255),
    "found": (58, 160, 255),
    "subject": (255, 176, 0),
    "claim": (255, 92, 208),
}
LAYER_STYLE = """
.layered { background: var(--card); border-radius: .5rem; overflow: hidden; min-width: 0; margin: 0; }
.layered .view { position: relative; clear: both; }
.layered .view img { display: block; width: 100%; height: auto; }
.layered .view svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.layered path { fill-rule: evenodd; stroke-width: 2; vector-effect: non-scaling-stroke; fill-opacity: .12;
  stroke-linejoin: round; }
.layered path.missed { fill-opacity: .35; } .layered path.truth { fill: none; stroke-dasharray: 5 3; }
.layered path.found { fill: none; }
.layered path:hover { fill-opacity: .5; }
.layered input { accent-color: var(--bar); margin: .55rem .25rem .45rem .6rem; vertical-align: -.1em; }
.layered label { font-size: .85rem; white-space: nowrap; cursor: pointer; }
.layered label::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: .15em;
  margin-right: .3em; background: var(--swatch, transparent); border: 1px solid var(--soft); }
""" + "\n".join(
    f".layered input.{key}:not(:checked) ~ .view g.{key} {{ display: none; }} "
    f".layered label.{key} {{ --swatch: rgb{colour}; }} "
    f".layered g.{key} {{ stroke: rgb{colour}; fill: rgb{colour}; }}"
    for key, colour in LAYER_COLOURS.items()
)


def layered_figure(
    view: View,
    layers: Sequence[Layer],
    caption: str | Html,
    alt: str,
    key: str,
    store: Callable[[PixelArray], str],
    *,
    switches: bool = True,
) -> Html:
    """A picture with its layers and check boxes. key: different for every figure of the page. store: see
    `PictureStore.add`. switches: whether it has check boxes; without them the layers shown at first stay."""
    height, width = view.pixels.shape[:2]
    layers = [layer for layer in layers if switches or layer.shown]
    boxes: list[Html] = []
    for layer in layers if switches else []:
        name = f"{key}-{layer.key}"
        checked = {"checked": "checked"} if layer.shown else {}
        boxes.append(element("input", type="checkbox", id=name, class_=layer.key, **checked))
        text = f"{layer.name} ({len(layer.masks)})"
        boxes.append(element("label", text, for_=name, class_=layer.key))
    groups = [element("g", *_outlines(view, layer), class_=layer.key) for layer in layers]
    picture = element(
        "img", src=store(view.pixels), alt=alt, height=height, width=width, loading="lazy", decoding="async"
    )
    overlay = element("svg", join(groups), viewBox=f"0 0 {width} {height}", aria_hidden="true")
    shown = element("div", picture, overlay, class_="view")
    return element("figure", *boxes, shown, element("figcaption", caption), class_="layered")


def _outlines(view: View, layer: Layer) -> list[Html]:
    """The masks of a layer that the view shows, as paths."""
    paths = []
    for one in layer.masks[:MOST_OUTLINES]:
        if not _meets(view, one.box):
            continue
        for window in masks_in_view(view, [one.segmentation]):
            pixels = np.ascontiguousarray(window.pixels)
            contours, _ = cv2.findContours(pixels, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            parts = []
            for contour in contours:
                points = cv2.approxPolyDP(contour, _TOLERANCE, True)[:, 0] + (window.left + 0.5, window.top + 0.5)
                parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points.tolist()) + "Z")
            paths.append(element("path", element("title", one.text), d="".join(parts), class_=layer.key))
    return paths


def _meets(view: View, box: Sequence[float]) -> bool:
    """Whether a box of the source lies partly in the view."""
    height, width = view.pixels.shape[:2]
    scale, left, top = view.matrix[0, 0], view.matrix[0, 2], view.matrix[1, 2]
    x, y, wide, high = box
    return bool(
        x * scale + left < width
        and y * scale + top < height
        and (x + wide) * scale + left > 0
        and (y + high) * scale + top > 0
    )
