"""Results as tasks of Label Studio: pre-annotations that open as brushes, or as polygons where one outline is a mask.

A task's data has, beside the image, `image_id` and `categories` (name -> id): Label Studio's export gives them back,
and `data.formats.label_studio_json` reads them. Its own COCO export takes the ids of categories from the configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from ...data.formats.brushes import encode_brush
from ...data.rle import run_lengths, runs_window
from ...version import __version__
from ...visualize import PALETTE

_ROOT = "/data/local-files/?d="  # Label Studio's address of files below its LOCAL_FILES_DOCUMENT_ROOT


def label_studio_task(
    entry: Mapping[str, Any], annotations: Iterable[Mapping[str, Any]], categories: Sequence[tuple[int, str]]
) -> dict[str, object]:
    """A task with one prediction. entry, annotations: of the image, as in predictions.json; polygons may be beside."""
    names = dict(categories)
    result = [_region(one, entry["height"], entry["width"], names[one["category_id"]]) for one in annotations]
    scores = [one["score"] for one in result]
    return {
        "data": {
            "image": _ROOT + quote(entry["file_name"]),
            "image_id": entry["id"],
            "categories": {name: category for category, name in categories},
        },
        "predictions": [
            {
                "model_version": f"mask2former-dinov3 {__version__}",
                **({"score": sum(scores) / len(scores)} if scores else {}),
                "result": result,
            }
        ],
    }


def _region(stored: Mapping[str, Any], height: int, width: int, name: str) -> dict[str, Any]:
    """One instance: a polygon if it was stored as one alone, which has no holes; otherwise a brush."""
    polygons = stored.get("polygons", ())
    vertices = list(zip(polygons[0][::2], polygons[0][1::2], strict=True)) if len(polygons) == 1 else []
    if vertices and vertices.count(vertices[0]) == 1:  # lines to holes begin at the first vertex
        shape: dict[str, object] = {
            "points": [[100 * x / width, 100 * y / height] for x, y in vertices],
            "closed": True,
        }
        kind = "polygon"
    else:
        window = runs_window(run_lengths(stored["segmentation"]["counts"].encode()), height)
        assert window is not None  # instances have pixels
        shape = {"format": "rle", "rle": encode_brush(window, height, width)}
        kind = "brush"
    return {
        "id": str(stored["id"]),
        "type": f"{kind}labels",
        "from_name": kind,
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": stored["score"],
        "value": {**shape, f"{kind}labels": [name]},
    }


def label_studio_config(categories: Sequence[tuple[int, str]]) -> str:
    """The labelling configuration (XML) of a project for these tasks: every class as a brush and as a polygon."""
    controls = []
    for tag, name in (("BrushLabels", "brush"), ("PolygonLabels", "polygon")):
        labels = []
        for label, (category, value) in enumerate(categories):
            # Label Studio's COCO export lists a class once for every control that gives its id.
            id_ = f' category="{category}"' if name == "polygon" else ""
            colour = bytes(PALETTE[label % len(PALETTE)].tolist()).hex()
            labels.append(f'    <Label value={quoteattr(value)}{id_} background="#{colour}"/>\n')
        controls.append(f'  <{tag} name="{name}" toName="image">\n{"".join(labels)}  </{tag}>\n')
    return f'<View>\n  <Image name="image" value="$image" zoom="true"/>\n{"".join(controls)}</View>\n'
