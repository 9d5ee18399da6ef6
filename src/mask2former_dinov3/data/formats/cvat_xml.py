"""Read CVAT's own files, "CVAT for images 1.1": polygons, boxes, ellipses and masks in one XML file.

Shapes of one image with one `group_id` (not 0) and one label are parts of one object; a box that only goes around the
others is no part. Shapes that mark no area (points, polylines, skeletons, tags) are left out, with their count.
Tracks ("CVAT for video 1.1") are refused: their frames lie in a video.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.parsers import expat

import numpy as np

from ...errors import DatasetError, mismatch
from ..faults import FaultReport, count_of, quote
from ..numbers import number, whole_number
from ..segmentation import Polygon
from .folders import SPLIT_FOLDERS, split_folders
from .mask_codes import DrawnShape, join_shapes
from .source_content import ContentBuilder, Format, Part, polygon_fault

_SHAPES = ("polygon", "box", "mask", "ellipse")
_WITHOUT_AREA = ("polyline", "points", "skeleton", "cuboid", "tag")
_OWN_BOXES = "boxes around the other shapes of their group"
_ELLIPSE_CORNERS = 72
_PROBE = 400  # bytes at the beginning of a file, in which its kind stands


def find_cvat(root: Path) -> dict[str, Part]:
    """The splits of a folder with annotations.xml (or train.xml, val.xml, or another one of CVAT), or of a file."""
    if root.is_file():
        return {"train": _part(root)} if _is_cvat(root) else {}
    parts: dict[str, Part] = {}
    for name, folder in [*split_folders(root).items(), ("train", root)]:
        found = [path for path in sorted(folder.glob("*.xml")) if _is_cvat(path)]
        if found and folder == root and (by_name := _by_split(found)):
            return by_name
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DatasetError(f"{folder}: {mismatch('one XML file of CVAT', names, 'give the path of one of them')}")
        if found and not (parts and folder == root):
            parts[name] = _part(found[0])
    return parts


def read_cvat(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of a file; all its faults are reported. Raises DatasetError for a malformed file, and for tracks."""
    builder = ContentBuilder(report)
    lines = _Lines(part.annotations)
    root = lines.root
    if root.tag != "annotations":
        raise DatasetError(f"{part.annotations}: {mismatch('the element annotations', quote(root.tag))}")
    if root.find("track") is not None:
        advice = 'export the task as "CVAT for images 1.1", or as COCO'
        got = f"{count_of(len(root.findall('track')), 'track')} of a video"
        raise DatasetError(f"{part.annotations}: {mismatch('annotated images', got, advice)}")
    for label in root.iterfind("meta//labels/label"):
        if label.findtext("type") not in ("skeleton", "tag") and (name := (label.findtext("name") or "").strip()):
            builder.category(name)
    images = root.findall("image")
    if not images:
        raise DatasetError(f"{part.annotations}: {mismatch('elements image', 'none')}")
    defined = bool(builder.categories)
    counts = dict.fromkeys((*_WITHOUT_AREA, _OWN_BOXES), 0)
    for image in images:
        _add_image(image, part, lines, defined, builder, counts)
    if own := counts.pop(_OWN_BOXES):
        builder.add("note", "boxes of shapes", "", f"{_OWN_BOXES} are left out: {own}")
    left_out = {name: count for name, count in counts.items() if count}
    if left_out:
        names = ", ".join(f"{count} {name}" for name, count in left_out.items())
        builder.add("warning", "shapes without an area", "", f"shapes without an area are left out: {names}")
    return builder.content()


CVAT = Format("cvat", 'annotations.xml ("CVAT for images 1.1")', find_cvat, read_cvat, True)


class _Lines:
    """The tree of a file, and the line on which each element begins. Raises DatasetError for malformed XML."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._of: dict[ElementTree.Element, int] = {}
        tree: ElementTree.TreeBuilder = ElementTree.TreeBuilder()
        parser = expat.ParserCreate()
        parser.buffer_text = True

        def start(tag: str, attributes: dict[str, str]) -> None:
            self._of[tree.start(tag, attributes)] = parser.CurrentLineNumber

        def refuse(*_: object) -> None:  # entities can be made to fill the memory
            raise DatasetError(f"{path}:{parser.CurrentLineNumber}: {mismatch('XML without entities', 'an entity')}")

        parser.StartElementHandler, parser.EndElementHandler = start, tree.end
        parser.CharacterDataHandler, parser.EntityDeclHandler = tree.data, refuse
        try:
            with path.open("rb") as file:
                parser.ParseFile(file)
        except expat.ExpatError as error:
            raise DatasetError(f"{path}: {mismatch('an XML file of CVAT', str(error))}") from error
        self.root = tree.close()

    def place(self, element: ElementTree.Element) -> str:
        """Where an element begins, such as `annotations.xml:17`."""
        return f"{self.name}:{self._of[element]}"


def _is_cvat(path: Path) -> bool:
    if path.suffix.lower() != ".xml":
        return False
    with path.open("rb") as file:
        return b"<annotations" in file.read(_PROBE)


def _by_split(files: Sequence[Path]) -> dict[str, Part]:
    """The splits of files called train.xml, val.xml and so on, as Datumaro writes them; none for other names."""
    names = {path.stem.lower(): path for path in files}
    found = {
        split: _part(names[name]) for split, words in SPLIT_FOLDERS.items() for name in reversed(words) if name in names
    }
    return found if len(found) == len(files) else {}


def _part(file: Path) -> Part:
    images = file.parent / "images"
    return Part(file, images if images.is_dir() else file.parent)


def _add_image(
    image: ElementTree.Element,
    part: Part,
    lines: _Lines,
    defined: bool,
    builder: ContentBuilder,
    counts: dict[str, int],
) -> None:
    """Add an image and its objects. defined: the file lists its labels; others are then faults."""
    place = lines.place(image)
    name = image.get("name", "").replace("\\", "/")
    height, width = whole_number(image.get("height")), whole_number(image.get("width"))
    if not name or height is None or width is None or min(height, width) < 1:
        got = quote({key: image.get(key) for key in ("name", "width", "height")})
        builder.add("error", "malformed image", place, mismatch("an image with name, width and height", got))
        return
    subset = image.get("subset")
    if not (part.images / name).is_file() and subset and (part.images / subset / name).is_file():
        name = f"{subset}/{name}"
    if not (part.images / name).is_file():
        builder.add("error", "missing image", place, mismatch(f"the image {quote(name)}", f"none in {part.images}"))
        return
    image_id = builder.add_sized_image(part.images / name, part.images, (height, width), place)
    if image_id is None:
        return
    objects: dict[tuple[int, object], list[tuple[str, DrawnShape]]] = {}
    places: dict[tuple[int, object], tuple[str, ElementTree.Element]] = {}
    for position, element in enumerate(image):
        where = lines.place(element)
        if element.tag in _WITHOUT_AREA:
            counts[element.tag] += 1
            continue
        if element.tag not in _SHAPES:
            builder.add("warning", "unknown element", where, f"{quote(element.tag)} is left out: no known shape")
            continue
        label = element.get("label", "").strip()
        category = builder.known_category(label, where) if defined or not label else builder.category(label)
        try:
            shape = _parse_shape(element, height, width)
        except DatasetError as error:
            builder.add("error", f"malformed {element.tag}", where, str(error))
            continue
        if category is not None:
            group = whole_number(element.get("group_id"))
            key: tuple[int, object] = (category, group or ("single", position))
            objects.setdefault(key, []).append((element.tag, shape))
            places.setdefault(key, (where, element))
    for key, found in objects.items():
        where, element = places[key]
        shapes = _without_own_boxes(found)
        counts[_OWN_BOXES] += len(found) - len(shapes)
        segmentation = join_shapes(shapes, height, width)
        if segmentation is None:
            builder.add("warning", "empty mask", where, "left out: covers no pixel of the image")
        else:
            builder.add_annotation(image_id, key[0], where, segmentation=segmentation, **_attributes(element))


def _without_own_boxes(found: Sequence[tuple[str, DrawnShape]]) -> list[DrawnShape]:
    """The shapes of an object without boxes that only go around the others, as Datumaro writes one for every mask."""
    drawn = [shape for tag, shape in found if tag != "box"]
    if not drawn or len(drawn) == len(found):
        return [shape for _, shape in found]
    limits = np.array([_limits(shape) for shape in drawn if shape.mask is None or shape.mask.any()])
    if not limits.size:  # nothing that a box could go around
        return [shape for _, shape in found]
    around = np.concatenate((limits[:, :2].min(0), limits[:, 2:].max(0)))
    return [shape for tag, shape in found if tag != "box" or (np.abs(_limits(shape) - around) > 1).any()]


def _limits(shape: DrawnShape) -> Polygon:
    """(4,) the smallest x and y, the largest x and y of a shape that covers a pixel, in pixels."""
    if shape.polygon is not None:
        return np.concatenate((shape.polygon.min(0), shape.polygon.max(0)))
    assert shape.mask is not None
    rows, columns = np.nonzero(shape.mask)
    first = np.array([columns.min() + shape.left, rows.min() + shape.top], dtype=np.float64)
    return np.concatenate((first, (columns.max() + shape.left + 1, rows.max() + shape.top + 1)))


def _attributes(element: ElementTree.Element) -> dict[str, object]:
    """What the shape says besides its outline, as CVAT's COCO export has it."""
    found = {one.get("name", ""): one.text or "" for one in element.iterfind("attribute")}
    extra = {"occluded": element.get("occluded") == "1", **found}
    return {"attributes": extra, "z_order": whole_number(element.get("z_order")) or 0}


def _parse_shape(element: ElementTree.Element, height: int, width: int) -> DrawnShape:
    """The outline or mask of an element. Raises DatasetError."""
    if element.tag == "mask":
        return _parse_mask(element, height, width)
    if element.tag == "box":
        points = _box(element)
    elif element.tag == "ellipse":
        points = _ellipse(element)
    else:
        points = _points(element.get("points", ""))
    reason = polygon_fault(points, height, width)
    if reason:
        raise DatasetError(f"points: {reason}" if element.tag == "polygon" else reason)
    return DrawnShape(points)


def _points(text: str) -> Polygon:
    pairs = [pair.split(",") for pair in text.split(";") if pair.strip()]
    values = [[number(side.strip()) for side in pair] for pair in pairs]
    for pair, sides in zip(pairs, values, strict=True):
        if len(sides) != 2 or None in sides:
            raise DatasetError(f"points: {mismatch('x,y;x,y;…', quote(','.join(pair)))}")
    return np.array(values, dtype=np.float64).reshape(-1, 2)


def _values(element: ElementTree.Element, names: Sequence[str]) -> list[float]:
    """The numbers in attributes of an element. Raises DatasetError."""
    values = [number(element.get(name)) for name in names]
    found = [value for value in values if value is not None and math.isfinite(value)]
    if len(found) < len(names):
        got = quote({name: element.get(name) for name in names})
        raise DatasetError(mismatch(f"numbers in {', '.join(names)}", got))
    return found


def _box(element: ElementTree.Element) -> Polygon:
    x0, y0, x1, y1 = _values(element, ("xtl", "ytl", "xbr", "ybr"))
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return _turn(corners, element, (x0 + x1) / 2, (y0 + y1) / 2)


def _ellipse(element: ElementTree.Element) -> Polygon:
    x, y, rx, ry = _values(element, ("cx", "cy", "rx", "ry"))
    angles = 2 * math.pi / _ELLIPSE_CORNERS * np.arange(_ELLIPSE_CORNERS)
    return _turn(np.stack((x + rx * np.cos(angles), y + ry * np.sin(angles)), axis=1), element, x, y)


def _turn(points: Polygon, element: ElementTree.Element, x: float, y: float) -> Polygon:
    """Turn points around (x, y) by the `rotation` of the element, in degrees, clockwise in the image."""
    if element.get("rotation") is None:
        return points
    angle = math.radians(_values(element, ("rotation",))[0])
    cos, sin = math.cos(angle), math.sin(angle)
    return np.asarray((points - (x, y)) @ np.array([(cos, sin), (-sin, cos)]) + (x, y))


def _parse_mask(element: ElementTree.Element, height: int, width: int) -> DrawnShape:
    """A mask: runs along the rows of a rectangle, the first one of background. Raises DatasetError."""
    left, top, columns, rows = (whole_number(element.get(name)) for name in ("left", "top", "width", "height"))
    if left is None or top is None or columns is None or rows is None or min(columns, rows) < 1:
        got = quote({name: element.get(name) for name in ("left", "top", "width", "height")})
        raise DatasetError(mismatch("whole numbers in left, top, width and height", got))
    if left < 0 or top < 0 or left + columns > width or top + rows > height:
        got = f"x {left} to {left + columns}, y {top} to {top + rows}"
        raise DatasetError(mismatch(f"a rectangle in an image of {width} x {height} pixels (width x height)", got))
    words = element.get("rle", "").split(",")
    runs = [whole_number(word.strip()) for word in words]
    if None in runs or any(run is not None and run < 0 for run in runs):
        raise DatasetError(f"rle: {mismatch('whole numbers of 0 and more', quote(element.get('rle')))}")
    total = sum(run for run in runs if run is not None)
    if total != columns * rows:
        expected = f"runs that cover {rows} x {columns} = {rows * columns} pixels"
        raise DatasetError(f"rle: {mismatch(expected, total)}")
    lengths = np.array(runs, dtype=np.int64)
    inside = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    return DrawnShape(None, inside.reshape(rows, columns), left, top)
