"""Read Label Studio's export in its own JSON: a list of tasks, with brushes, polygons, rectangles and ellipses.

Each region is an object, exactly as it was drawn or left; Label Studio's COCO export loses holes, parts and ids. Where
a task's data has `image_id` and `categories`, as `predict --save label-studio` writes them, these ids are kept.
Of several annotations of a task the last is read. Tasks that nobody annotated are left out, with their count.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeGuard
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from ...errors import DatasetError, mismatch
from ...json_files import describe, read_json
from ..faults import FaultReport, count_of, quote
from ..file_kinds import IMAGE_SUFFIXES
from ..numbers import number, whole_number
from ..segmentation import Polygon
from .brushes import decode_brush
from .folders import image_files, look_into, split_folders
from .mask_codes import DrawnShape, join_shapes
from .source_content import ContentBuilder, Format, Part, polygon_fault

_FIRST, _PROBE = 64, 2**16  # bytes at the beginning of a file: those before a bracket, those in which its kind stands
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")  # what Label Studio puts before the name of a file that was uploaded
_ELLIPSE_CORNERS = 72
_FARTHEST = 10**9  # percent or degrees


def find_label_studio(root: Path) -> dict[str, Part]:
    """The splits of a folder with an export in JSON, or in folders of splits, or of a file."""
    if root.is_file():
        return {"train": _part(root)} if _is_label_studio(root) else {}
    parts: dict[str, Part] = {}
    for name, folder in [*split_folders(root).items(), ("train", root)]:
        found = [path for path in look_into(folder)[0] if _is_label_studio(path)]
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DatasetError(f"{folder}: {mismatch('one export of Label Studio', names, 'give the path of one')}")
        if found and not (parts and folder == root):
            parts[name] = _part(found[0])
    return parts


def read_label_studio(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of an export; all its faults are reported. Raises DatasetError for a file that is none."""
    tasks = read_json(part.annotations, "Label Studio's JSON (a list of tasks)", raises=DatasetError)
    if not isinstance(tasks, list):
        raise DatasetError(f"{part.annotations}: {mismatch('a list of tasks', describe(tasks))}")
    reading = _Reading(part, ContentBuilder(report), {} if not part.images.is_dir() else _files_below(part.images))
    reading.define_categories(tasks)
    for position, task in enumerate(tasks):
        reading.add_task(task, f"task {task.get('id', position) if isinstance(task, Mapping) else position}")
    return reading.content()


LABEL_STUDIO = Format(
    "label-studio", "a JSON export of Label Studio (a list of tasks)", find_label_studio, read_label_studio, True
)


def _part(file: Path) -> Part:
    folders = (file.parent / "images", file.parent / "data")
    return Part(file, next((folder for folder in folders if folder.is_dir()), file.parent))


def _is_label_studio(path: Path) -> bool:
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        head = file.read(_FIRST)
        if not head.lstrip(b"\0\xef\xbb\xbf\xff\xfe \t\r\n").startswith(b"["):  # a list, also in UTF-16
            return False
        head += file.read(_PROBE)
    return b'"annotations"' in head.replace(b"\0", b"")


def _files_below(folder: Path) -> dict[str, list[str]]:
    """Name of an image -> where it lies below the folder."""
    found: dict[str, list[str]] = {}
    for path in image_files(folder):
        found.setdefault(path.name, []).append(path.relative_to(folder).as_posix())
    return found


@dataclass
class _Reading:
    """One export while it is read. files, stems: the files of the image folder by name, and by name without ending."""

    part: Part
    builder: ContentBuilder
    files: Mapping[str, list[str]]
    stems: Mapping[str, list[str]] = field(init=False)
    image_ids: list[int | None] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    tasks: int = 0

    def __post_init__(self) -> None:
        self.stems = {}
        for name, places in self.files.items():
            self.stems.setdefault(PurePosixPath(name).stem, []).extend(places)

    def define_categories(self, tasks: Sequence[object]) -> None:
        """The classes whose ids the tasks state, then those of the regions, by name."""
        for task in tasks:
            data = task.get("data") if isinstance(task, Mapping) else None
            stated = data.get("categories") if isinstance(data, Mapping) else None
            for name, value in stated.items() if isinstance(stated, Mapping) else ():
                category = whole_number(value)
                known = self.builder.categories
                name = name.strip()  # as labels of regions are read
                if name not in known and category is not None and category not in known.values():
                    known[name] = category
                self.left_out["ids of classes that contradict those of an earlier task"] += known.get(name) != category
        self.builder.first_id = max(self.builder.categories.values(), default=0) + 1
        used = {label for task in tasks for one in _regions(task) if (label := _label(one)) is not None}
        for label in sorted(used):
            self.builder.category(label)

    def add_task(self, task: object, place: str) -> None:
        """Add the image of a task and its objects."""
        self.tasks += 1
        if reason := _fault_of(task):
            self.builder.add("error", "malformed task", place, reason)
            return
        assert isinstance(task, Mapping)
        done = _done(task)
        if not done:
            self.left_out["tasks without an annotation"] += 1
            return
        if len(done) > 1:
            self.left_out["further annotations of a task, of which the last is read"] += len(done) - 1
        regions = list(_regions(task))
        added = self._add_image(task["data"], regions, place)
        if added is None:
            return
        image_id, height, width = added
        labelled = {str(one.get("id")) for one in regions if _label(one) is not None}
        for one in regions:
            label = _label(one)
            if label is None:
                wanting = "regions without a class" if _has_shape(one) else "regions without an area"
                self.left_out[wanting] += (_has_shape(one) or _is_labelled(one)) and str(one.get("id")) not in labelled
                continue
            self.left_out["further classes of regions, of which the first is read"] += len(_labels(one)) - 1
            self._add_region(one, label, image_id, height, width, f"{place}, region {quote(one.get('id'))}")

    def _add_region(
        self, one: Mapping[str, object], label: str, image_id: int, height: int, width: int, place: str
    ) -> None:
        try:
            shape = _shape(one, height, width)
        except DatasetError as error:
            self.builder.add("error", "malformed region", place, str(error))
            return
        if shape is None:
            self.left_out["regions without an area"] += 1
            return
        segmentation = join_shapes([shape], height, width)
        if segmentation is None:
            self.builder.add("warning", "empty mask", place, "left out: covers no pixel of the image")
        else:
            self.builder.add_annotation(image_id, self.builder.category(label), place, segmentation=segmentation)

    def _add_image(
        self, data: Mapping[str, object], regions: Sequence[Mapping[str, object]], place: str
    ) -> tuple[int, int, int] | None:
        """(id, height, width): the size that the regions state, else that of the file."""
        name = self._file_of(data)
        if name is None:
            expected = f"the image of the task below {self.part.images}"
            self.builder.add("error", "missing image", place, mismatch(expected, self._why_no_file(data)))
            return None
        path = self.part.images / name
        sizes = {(whole_number(one.get("original_height")), whole_number(one.get("original_width"))) for one in regions}
        sizes -= {(None, None)}
        if any(one.get("image_rotation") for one in regions):
            reason = mismatch("an image as it is stored", "one that was turned in Label Studio")
            self.builder.add("error", "turned image", place, f"image_rotation: {reason}")
            return None
        added: tuple[int, int, int] | None
        if not sizes:
            added = self.builder.add_image_file(path, self.part.images)
        else:
            height, width = min(sizes, key=str)
            if len(sizes) > 1 or not height or not width or min(height, width) < 1:
                reason = mismatch("one size of the image in all regions", quote(sorted(map(str, sizes))))
                self.builder.add("error", "malformed size", place, f"original_height and original_width: {reason}")
                return None
            number_ = self.builder.add_sized_image(path, self.part.images, (height, width), place)
            added = None if number_ is None else (number_, height, width)
        if added is not None:
            self.image_ids.append(whole_number(data.get("image_id")))
        return added

    def _file_of(self, data: Mapping[str, object]) -> str | None:
        """The file below the image folder that the data's address ends with."""
        for address in _addresses(data):
            path = PurePosixPath(address)
            known = self.files if path.suffix.lower() in IMAGE_SUFFIXES else self.stems
            for name in (path.name, _UPLOAD.sub("", path.name)):
                found = known.get(name, [])
                ends = [one for one in found if f"/{address}".endswith(f"/{one}")]
                if ends or len(found) == 1:
                    return max(ends or found, key=len)
        return None

    def _why_no_file(self, data: Mapping[str, object]) -> str:
        given = next(_addresses(data), "")
        if PurePosixPath(given).suffix.lower() not in IMAGE_SUFFIXES:
            addresses = (one.partition("?")[0] for one in data.values() if _is_web(one))  # a query may hold a token
            if (address := next(addresses, None)) is None:
                return "no path of an image in data"
            advice = "give the file of each image the name at the end of its address, or put its path into data"
            return f"an address without the name of an image, {quote(address)}; {advice}"
        same = self.files.get(PurePosixPath(given).name, [])
        return f"none called {quote(given)}" + f", but {quote(sorted(same))}" * bool(same)

    def content(self) -> Mapping[str, object]:
        """The content with the ids of images that the tasks state, if all do and each has its own.

        Raises DatasetError where nothing is annotated.
        """
        counts = {reason: f"{count:,} {reason}" for reason, count in self.left_out.items() if count}
        for reason, text in counts.items():
            self.builder.add("note", reason, "", text + "; left out" * ("is read" not in reason))
        if not (self.builder.images and self.builder.categories) and not self.builder.has_errors:
            got = f"none in {count_of(self.tasks, 'task')}" + f" ({', '.join(counts.values())})" * bool(counts)
            raise DatasetError(f"{self.part.annotations}: {mismatch('a region with a class', got)}")
        stated = {place: one for place, one in enumerate(self.image_ids, start=1) if one is not None and one >= 0}
        kept = len(set(stated.values())) == len(self.image_ids) > 0
        if stated and not kept:
            reason = mismatch("one of its own for each task", "others", "images are numbered in their order")
            self.builder.add("note", "ids of images", "", f"image_id: {reason}")
        content = self.builder.content()
        if kept:
            for image in self.builder.images:
                image["id"] = stated[whole_number(image["id"]) or 0]
            for one in self.builder.annotations:
                one["image_id"] = stated[whole_number(one["image_id"]) or 0]
        return content


def _fault_of(task: object) -> str:
    """What is wrong with the kinds of the values in a task; empty where nothing is."""
    if not isinstance(task, Mapping):
        return mismatch("an object with data", describe(task))
    if not isinstance(task.get("data"), Mapping):
        return f"data: {mismatch('an object', describe(task.get('data')))}"
    done = _done(task)
    for key, found in (("annotations", task.get("annotations")), ("result", done[-1].get("result") if done else None)):
        wrong = [one for one in found if not isinstance(one, Mapping)] if isinstance(found, list) else []
        if wrong or not isinstance(found, list | None):
            got = f"{describe(wrong[0])} in it" if wrong else describe(found)
            return f"{key}: {mismatch('a list of objects', got)}"
    return ""


def _done(task: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The annotations of a task that were not skipped."""
    found = task.get("annotations")
    every = found if isinstance(found, list) else []
    return [one for one in every if isinstance(one, Mapping) and not one.get("was_cancelled")]


def _regions(task: object) -> Iterator[Mapping[str, object]]:
    """The results of the annotation of a task that is read."""
    done = _done(task) if isinstance(task, Mapping) else []
    result = done[-1].get("result") if done else None
    yield from (one for one in (result if isinstance(result, list) else []) if isinstance(one, Mapping))


def _value(region: Mapping[str, object]) -> Mapping[str, object]:
    value = region.get("value")
    return value if isinstance(value, Mapping) else {}


def _label(region: Mapping[str, object]) -> str | None:
    """The class of a region: the first of its labels."""
    labels = _labels(region)
    first = labels[0] if labels else None
    return first.strip() if isinstance(first, str) and first.strip() and _has_shape(region) else None


def _labels(region: Mapping[str, object]) -> list[object]:
    found = _value(region).get(str(region.get("type"))) if _is_labelled(region) else None
    return found if isinstance(found, list) else []


def _is_labelled(region: Mapping[str, object]) -> bool:
    """Whether this is what a control with labels gives; a choice or a text about a region repeats its shape."""
    return str(region.get("type")).endswith("labels")


def _has_shape(region: Mapping[str, object]) -> bool:
    return bool({"rle", "points", "x", "vertices"} & _value(region).keys())


def _addresses(data: Mapping[str, object]) -> Iterator[str]:
    """The paths in a task's data, the one called image first, and of each what has the ending of an image."""
    for _, text in sorted(data.items(), key=lambda item: item[0] != "image"):
        paths = [path.replace("\\", "/") for path in _paths(text)] if isinstance(text, str) else []  # of Windows, too
        named = [path for path in paths if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES]
        yield from named or ([] if not _is_web(text) else [path for path in paths if PurePosixPath(path).name])


def _is_web(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and value.lower().startswith(("http://", "https://"))


def _paths(text: str) -> list[str]:
    """What an address may mean: of files in folders that Label Studio serves, the path is in the query, and so it may
    be in any other address."""
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets without an IPv6 address
        return [text]
    query = parse_qs(parts.query)
    return [*query.pop("d", []), unquote(parts.path), *(one for found in query.values() for one in found)]


def _shape(region: Mapping[str, object], height: int, width: int) -> DrawnShape | None:
    """The shape of a region in pixels; None for one without an area. Raises DatasetError."""
    value = _value(region)
    if "rle" in value:
        code = value["rle"]
        numbers = [whole_number(one) for one in code] if isinstance(code, list) else []
        values = [one for one in numbers if one is not None]
        if not isinstance(code, list) or len(values) < len(code):
            raise DatasetError(f"rle: {mismatch('a list of bytes', describe(code))}")
        return DrawnShape(None, decode_brush(values, height, width))
    if "points" in value:
        points = value["points"]
        pairs = [one for one in points if isinstance(one, list) and len(one) == 2] if isinstance(points, list) else []
        vertices = np.array([[_real(side, "points") for side in pair] for pair in pairs]).reshape(-1, 2)
        if not isinstance(points, list) or len(pairs) != len(points):
            raise DatasetError(f"points: {mismatch('a list of [x, y]', describe(points))}")
    elif "radiusX" in value:
        vertices = _ellipse(value, height, width)
    elif "width" in value and "height" in value:
        vertices = _rectangle(value, height, width)
    else:
        return None
    pixels = vertices * (width / 100, height / 100)  # stated in percent
    if reason := polygon_fault(pixels, height, width):
        raise DatasetError(f"points: {reason}")
    return DrawnShape(pixels)


def _real(value: object, key: str) -> float:
    found = number(value)
    if found is None or not abs(found) < _FARTHEST:  # NaN, too
        raise DatasetError(f"{key}: {mismatch(f'numbers below {_FARTHEST:,}', quote(value))}")
    return found


def _rectangle(value: Mapping[str, object], height: int, width: int) -> Polygon:
    """The corners (4, 2) in percent; a rectangle turns about its first corner."""
    left, top, across, down = (_real(value.get(key), key) for key in ("x", "y", "width", "height"))
    corners = np.array([(0, 0), (across, 0), (across, down), (0, down)])
    return _turn(corners, (left, top), value, height, width)


def _ellipse(value: Mapping[str, object], height: int, width: int) -> Polygon:
    """The corners of an ellipse in percent; it turns about its centre."""
    x, y, across, down = (_real(value.get(key), key) for key in ("x", "y", "radiusX", "radiusY"))
    angles = 2 * math.pi / _ELLIPSE_CORNERS * np.arange(_ELLIPSE_CORNERS)
    corners = np.stack((across * np.cos(angles), down * np.sin(angles)), axis=1)
    return _turn(corners, (x, y), value, height, width)


def _turn(
    corners: Polygon, place: tuple[float, float], value: Mapping[str, object], height: int, width: int
) -> Polygon:
    """Corners around (0, 0), turned by `rotation` degrees clockwise and moved to a place; all in percent.

    The turn is one of the picture, whose sides differ, so it is made in pixels.
    """
    angle = math.radians(_real(value.get("rotation") or 0, "rotation"))
    x, y = (corners * (width, height)).T
    turned = np.stack((x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)), axis=1)
    return np.asarray(turned / (width, height) + place, dtype=np.float64)
