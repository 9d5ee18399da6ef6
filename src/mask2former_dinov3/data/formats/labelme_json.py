"""Read labelme's files: one JSON file an image, with shapes.

Polygons, rectangles, circles and masks are objects; shapes of one label with one `group_id` are parts of one object.
Points and lines have no area and are left out, with their count. The image is the file that `imagePath` names, from the
JSON file's folder; copies in `imageData` are not looked at.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import DatasetError, mismatch
from ...json_files import describe, read_json_object
from ..faults import FaultReport, count_of, quote
from ..file_kinds import IMAGE_SUFFIXES
from ..images import name_errors
from ..numbers import number, whole_number
from ..segmentation import FARTHEST_VERTEX, Polygon
from ..stored_blocks import check_last_row
from .folders import files_under, look_into, split_folders
from .mask_codes import DrawnShape, join_shapes
from .source_content import ContentBuilder, Format, Part, polygon_fault, relative_name

_LINES = ("point", "points", "line", "linestrip")
_POLYGONS = ("polygon", "rotation", "oriented_rectangle", None)
_LEFT_OUT = ("__ignore__", "_background_")  # labelme's own names for what is no object
_LARGEST_PROBE = 64_000_000  # bytes of a JSON file that is looked into to recognise it


def find_labelme(root: Path) -> dict[str, Part]:
    """The splits that a folder (or a single file) of labelme JSON files holds."""
    if root.is_file():
        return {"train": Part(root, root.parent)} if _is_labelme(root) else {}
    parts = {
        name: Part(folder, folder)
        for name, folder in split_folders(root).items()
        if any(map(_is_labelme, _first_files(folder)))
    }
    return parts or ({"train": Part(root, root)} if any(map(_is_labelme, _first_files(root))) else {})


def read_labelme(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of one split; all faults of all files are reported."""
    builder = ContentBuilder(report)
    single = part.annotations.is_file()
    files = [part.annotations] if single else list(files_under(part.annotations, [".json"]))
    read = [(path, content) for path in files if (content := _read_file(path, part, builder)) is not None]
    for name in sorted({name for _, content in read for name in _labels(content)}):
        builder.category(name)
    counts = {"lines": 0, "left out": 0, "flags": 0}
    for path, content in read:
        _add_file(path, content, part, builder, counts)
    if counts["lines"]:
        reason = f"{count_of(counts['lines'], 'shape')} without an area (points and lines); left out"
        builder.add("warning", "shapes without an area", "", reason)
    if counts["left out"]:
        names = " or ".join(_LEFT_OUT)
        builder.add("note", "shapes to ignore", "", f"{count_of(counts['left out'], 'shape')} called {names}; left out")
    if counts["flags"]:
        reason = f"{count_of(counts['flags'], 'file')} with flags that are set, which are not read"
        builder.add("note", "flags", "", reason)
    return builder.content()


LABELME = Format("labelme", "JSON files with shapes and imagePath", find_labelme, read_labelme)


def _first_files(folder: Path) -> Iterator[Path]:
    """Some JSON files of a folder, not too deep: enough to see what they are."""
    files, folders = look_into(folder)
    for inside in (files, *(look_into(one)[0] for one in folders[:3])):
        yield from [path for path in inside if path.suffix.lower() == ".json"][:3]


def _is_labelme(path: Path) -> bool:
    if path.suffix.lower() != ".json" or not path.is_file() or path.stat().st_size > _LARGEST_PROBE:
        return False
    data = path.read_bytes().replace(b"\0", b"")  # also in UTF-16
    return b'"shapes"' in data and b'"imagePath"' in data


def _read_file(path: Path, part: Part, builder: ContentBuilder) -> dict[str, object] | None:
    """The object in a file; None, and a fault, for a file that is not labelme's."""
    try:
        content = read_json_object(path, "labelme's JSON (an object with shapes and imagePath)", raises=DatasetError)
    except DatasetError as error:
        reason = str(error).removeprefix(f"{path}: ")
        builder.add("error", "unreadable file", relative_name(path, part.images), reason)
        return None
    content.pop("imageData", None)
    name = relative_name(path, part.images)
    if "shapes" not in content and "imagePath" not in content:
        builder.add("warning", "not of labelme", name, "passed over: no shapes and no imagePath")
        return None
    if not isinstance(content.get("shapes"), list):
        got = describe(content["shapes"]) if "shapes" in content else "nothing"
        builder.add("error", "no list of shapes", name, f"shapes: {mismatch('a list', got)}")
        return None
    return content


def _labels(content: Mapping[str, object]) -> Iterator[str]:
    """The class names that a file uses."""
    shapes = content["shapes"]
    assert isinstance(shapes, list)
    for shape in shapes:
        if isinstance(shape, Mapping) and shape.get("shape_type") not in _LINES:
            label = shape.get("label")
            if isinstance(label, str) and label.strip() and label not in _LEFT_OUT:
                yield label.strip()


def _add_file(
    path: Path, content: Mapping[str, object], part: Part, builder: ContentBuilder, counts: dict[str, int]
) -> None:
    name = relative_name(path, part.images)
    added = _add_image(path, name, content, part, builder)
    flags = content.get("flags")
    counts["flags"] += isinstance(flags, Mapping) and any(flags.values())
    if added is None:
        return
    image_id, height, width = added
    objects: dict[tuple[str, object], tuple[str, list[DrawnShape]]] = {}
    shapes = content["shapes"]
    assert isinstance(shapes, list)
    for position, shape in enumerate(shapes):
        place = f"{name}: shapes[{position}]"
        label = shape.get("label") if isinstance(shape, Mapping) else None
        if not isinstance(shape, Mapping) or not isinstance(label, str) or not label.strip():
            builder.add("error", "shape without a label", place, f"label: {mismatch('a name', quote(label))}")
            continue
        if label in _LEFT_OUT or shape.get("shape_type") in _LINES:
            counts["left out" if label in _LEFT_OUT else "lines"] += 1
            continue
        try:
            parsed = _parse_shape(shape, height, width)
        except DatasetError as error:
            builder.add("error", "malformed shape", place, str(error))
            continue
        group = shape.get("group_id")
        key = (label.strip(), ("single", position) if group is None else quote(group))
        objects.setdefault(key, (place, []))[1].append(parsed)
    for (label, _), (place, parts) in objects.items():
        segmentation = join_shapes(parts, height, width)
        if segmentation is None:
            builder.add("warning", "empty mask", place, "left out: covers no pixel of the image")
        else:
            builder.add_annotation(image_id, builder.category(label), place, segmentation=segmentation)


def _add_image(
    path: Path, name: str, content: Mapping[str, object], part: Part, builder: ContentBuilder
) -> tuple[int, int, int] | None:
    """(id, height, width): the size that the file states, else that of the image."""
    image = _image_of(path, content)
    if image is None:
        expected = f"the image {quote(content.get('imagePath'))} that imagePath names"
        builder.add("error", "missing image", name, mismatch(expected, "no such file"))
        return None
    stated = content.get("imageHeight"), content.get("imageWidth")
    if stated == (None, None):
        return builder.add_image_file(image, part.images)
    height, width = map(whole_number, stated)
    if height is None or width is None or min(height, width) < 1:
        expected = "whole numbers of pixels above 0"
        got = f"{quote(stated[0])} and {quote(stated[1])}"
        builder.add("error", "malformed size", name, f"imageHeight and imageWidth: {mismatch(expected, got)}")
        return None
    image_id = builder.add_sized_image(image, part.images, (height, width), name)
    return None if image_id is None else (image_id, height, width)


def _image_of(path: Path, content: Mapping[str, object]) -> Path | None:
    """The file that imagePath names, else the image of the JSON file's own name beside it."""
    value = content.get("imagePath")
    if isinstance(value, str) and value:
        named = value.replace("\\", "/")
        for candidate in (path.parent / named, path.parent / named.rsplit("/", 1)[-1]):
            if candidate.is_file():
                return Path(candidate.parent.resolve() / candidate.name) if ".." in named else candidate
    beside = [one for one in sorted(path.parent.glob(f"{path.stem}.*")) if one.suffix.lower() in IMAGE_SUFFIXES]
    return beside[0] if len(beside) == 1 and not (isinstance(value, str) and value) else None


def _parse_shape(shape: Mapping[str, object], height: int, width: int) -> DrawnShape:
    """A shape with an area. Raises DatasetError."""
    kind = shape.get("shape_type", "polygon")
    points = _parse_points(shape.get("points"))
    if kind == "mask":
        return _parse_mask(shape.get("mask"), points, height, width)
    if kind == "circle":
        points = _circle(points)
    elif kind == "rectangle":
        points = _rectangle(points)
    elif kind not in _POLYGONS:
        raise DatasetError(f"shape_type: {mismatch('polygon, rectangle, circle or mask', quote(kind))}")
    reason = polygon_fault(points, height, width)
    if reason:
        raise DatasetError(f"points: {reason}")
    return DrawnShape(points)


def _parse_points(value: object) -> Polygon:
    """The points (P, 2) of a shape; not finite ones are found later. Raises DatasetError."""
    pairs = value if isinstance(value, list) else None
    numbers = [
        [number(side) for side in pair] if isinstance(pair, list) and len(pair) == 2 else [None] for pair in pairs or []
    ]
    if pairs is None or any(None in pair for pair in numbers):
        wrong = value if pairs is None else next(p for p, found in zip(pairs, numbers, strict=True) if None in found)
        raise DatasetError(f"points: {mismatch('a list of [x, y]', quote(wrong))}")
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def _rectangle(points: Polygon) -> Polygon:
    if len(points) == 4:
        return points
    if len(points) != 2:
        raise DatasetError(f"points: {mismatch('two opposite corners of a rectangle', count_of(len(points), 'point'))}")
    (x0, y0), (x1, y1) = points.tolist()
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _circle(points: Polygon) -> Polygon:
    """The polygon that labelme itself writes for a circle when it converts to COCO."""
    if len(points) != 2 or not np.isfinite(points).all():
        got = count_of(len(points), "point") if len(points) != 2 else "NaN or infinity"
        raise DatasetError(f"points: {mismatch('the centre of a circle and a point on it', got)}")
    (x, y), radius = points[0].tolist(), float(np.hypot(*(points[1] - points[0])))
    if not radius <= FARTHEST_VERTEX:
        raise DatasetError(
            f"points: {mismatch(f'a circle within {FARTHEST_VERTEX:.0f} pixels', f'a radius of {radius:g}')}"
        )
    corners = max(int(math.pi / math.acos(1 - 1 / radius)), 12) if radius > 0.5 else 12
    angles = 2 * math.pi / corners * np.arange(corners)
    return np.stack((x + radius * np.sin(angles), y + radius * np.cos(angles)), axis=1)


def _parse_mask(value: object, points: Polygon, height: int, width: int) -> DrawnShape:
    """The bitmap of a mask: a PNG in base64, between two points, the last pixel included. Raises DatasetError."""
    if not isinstance(value, str) or len(points) != 2 or not np.isfinite(points).all():
        got = describe(value) if not isinstance(value, str) else quote(points.tolist())
        raise DatasetError(f"mask: {mismatch('a PNG in base64 and two corners', got)}")
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError as error:
        raise DatasetError(f"mask: {mismatch('base64', f'other characters ({error})')}") from error
    with name_errors("mask", data), Image.open(stored := io.BytesIO(data)) as image:
        check_last_row(image, stored)
        pixels = np.asarray(image.convert("L") if image.mode not in ("1", "L", "I", "I;16") else image) != 0
    (left, top), (right, bottom) = np.rint(points).astype(int).tolist()
    size = bottom - top + 1, right - left + 1
    if pixels.shape != size:
        expected = f"{size[0]} x {size[1]} pixels (height x width) between its points"
        raise DatasetError(f"mask: {mismatch(expected, f'{pixels.shape[0]} x {pixels.shape[1]}')}")
    if left >= width or top >= height or right < 0 or bottom < 0:
        got = f"x {left} to {right}, y {top} to {bottom}"
        raise DatasetError(
            f"mask: {mismatch(f'points in an image of {width} x {height} pixels (width x height)', got)}"
        )
    return DrawnShape(None, pixels, left, top)
