"""Read YOLO's segmentation data sets: data.yaml, folders of images, and one text file of polygons for each image.

A line is `class x1 y1 x2 y2 …` in fractions of the image's width and height. The text file of `…/images/a/1.png` is
`…/labels/a/1.txt`; without a folder `images` in the path it lies beside the image. An image without one has no objects.
A line of four numbers is a box: it trains no mask, and is counted. Classes are the numbers of `names`, from 0.

A polygon is what it is in COCO: (0, 0) is the corner of the first pixel, and pixels whose centre is inside belong to
the object. Where data.yaml says `vertices: pixel centers`, as this package writes it, vertices are the outermost pixels
themselves (see `outlines`), and the mask is the one that was written, pixel for pixel.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from ...errors import DatasetError, mismatch
from ..faults import FaultReport, count_of, quote
from ..numbers import number
from .folders import image_files, read_lines
from .mask_codes import code_of_window
from .outlines import Outline, fill_outline, outline_fractions, outline_pixels
from .source_content import ContentBuilder, Format, Part, flat, polygon_fault, relative_name

_KEYS = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}
_VERTICES, _PIXEL_CENTERS = "vertices", "pixel centers"
_OUTSIDE = 0.01  # of the image's size; Ultralytics cuts off as much


def find_yolo(root: Path) -> dict[str, Part]:
    """The splits that a data.yaml (`root` itself, or the only one in it) names; those of missing test folders not."""
    file = _find_yaml(root)
    if file is None:
        return {}
    content = _read_yaml(file)
    parts: dict[str, Part] = {}
    for split, keys in _KEYS.items():
        key = next((key for key in keys if content.get(key)), None)
        if key is not None and (split != "test" or _images_of(file, content, key)[1]):
            parts[split] = Part(file, _images_of(file, content, key)[0], key)
    if not parts and (file.parent / "images").is_dir():
        parts["train"] = Part(file, file.parent / "images")
    return parts


def read_yolo(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of one split. Raises DatasetError where data.yaml names no classes or no images."""
    content = _read_yaml(part.annotations)
    builder = ContentBuilder(report, first_id=0)
    for name in _class_names(part.annotations, content):
        builder.category(name)
    if part.subset:
        _, images = _images_of(part.annotations, content, part.subset)
    else:
        images = list(image_files(part.images))
    if not images:
        expected = f"image files for {part.subset or 'images'}"
        raise DatasetError(f"{part.annotations}: {mismatch(expected, f'none in {part.images}')}")
    if part.subset == "train" and content.get("test") and not _images_of(part.annotations, content, "test")[1]:
        builder.add(
            "note", "no test images", "", f"test: {quote(content['test'])} has no images; there is no test split"
        )
    _read_labels(images, part, builder, _has_pixel_centers(part.annotations, content))
    return builder.content()


def yolo_yaml(names: Sequence[str], folders: Mapping[str, str]) -> str:
    """The text of a data.yaml for labels that `outlines` made. folders: key (train, val, test) -> image folder."""
    numbered = "".join(f"  {number}: {json.dumps(name, ensure_ascii=False)}\n" for number, name in enumerate(names))
    keys = "".join(f"{key}: {folder}\n" for key, folder in folders.items())
    return f"path: .\n{keys}{_VERTICES}: {_PIXEL_CENTERS}\nnames:\n{numbered}"


def yolo_line(number: int, outline: Outline, height: int, width: int) -> str:
    """The line of an object of class `number` in a label file."""
    fractions = outline_fractions(outline.vertices, height, width)
    return f"{number} {' '.join(f'{fraction:.8g}' for fraction in fractions)}\n"


def _has_pixel_centers(path: Path, content: Mapping[str, object]) -> bool:
    """Whether the vertices of the polygons are pixels. Raises DatasetError for another word than ours."""
    value = content.get(_VERTICES)
    if value not in (None, _PIXEL_CENTERS):
        expected = f"{_PIXEL_CENTERS!r}, or nothing for vertices as in COCO"
        raise DatasetError(f"{path}: {_VERTICES}: {mismatch(expected, quote(value))}")
    return value is not None


YOLO = Format("yolo", "data.yaml with names and train", find_yolo, read_yolo)


def _find_yaml(root: Path) -> Path | None:
    """The YAML file with names, if there is one. Raises DatasetError for several."""
    if root.is_file():
        return root if root.suffix.lower() in (".yaml", ".yml") else None
    found = [path for path in sorted(root.glob("*.y*ml")) if _has_names(path)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DatasetError(f"{root}: {mismatch('one data.yaml', names, 'give the path of one of them')}")
    return found[0] if found else None


def _has_names(path: Path) -> bool:
    """Whether a YAML file is meant as YOLO's: it has a key `names` (also if the rest is malformed)."""
    return re.search(rb"(?m)^[\"']?names[\"']?\s*:", path.read_bytes()) is not None


def _read_yaml(path: Path) -> dict[str, object]:
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: {mismatch('a YAML file', ' '.join(str(error).split()))}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: {mismatch('names, train and val', quote(content))}")
    return content


def _class_names(path: Path, content: Mapping[str, object]) -> list[str]:
    """Names of the classes 0..K-1. Raises DatasetError unless `names` is a list, or has the keys 0..K-1."""
    names = content.get("names")
    if isinstance(names, dict):
        by_number = {int(key): name for key, name in names.items() if str(key).isdecimal()}
        if sorted(by_number) != list(range(len(names))):
            expected = f"the numbers 0 to {len(names) - 1} as keys"
            raise DatasetError(f"{path}: names: {mismatch(expected, quote(list(names)))}")
        names = [by_number[key] for key in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DatasetError(f"{path}: names: {mismatch('a list of class names', quote(names))}")
    texts = [str(name).strip() for name in names]
    if len(set(texts)) < len(texts) or "" in texts:
        raise DatasetError(f"{path}: names: {mismatch('a different name for each class', quote(texts))}")
    count = content.get("nc", len(texts))
    if count != len(texts):
        raise DatasetError(f"{path}: nc: {mismatch(f'{len(texts)}, the number of names', quote(count))}")
    return texts


def _images_of(file: Path, content: Mapping[str, object], key: str) -> tuple[Path, list[Path]]:
    """The image folder of a key of data.yaml, and its images: it names a folder, a list of files, or several of them.

    Paths count from `path`, which counts from the file; where `path` is one of another machine, from the file. Roboflow
    writes `../train/images` for a folder beside the file.
    """
    values = content[key] if isinstance(content[key], list) else [content[key]]
    folders: list[Path] = []
    images: list[Path] = []
    assert isinstance(values, list)
    for value in values:
        found = _resolve(file, str(content.get("path") or "."), str(value))
        if found.is_file():
            lines = (line.strip() for line in read_lines(found))
            images += [_resolve(file, str(content.get("path") or "."), line) for line in lines if line]
            folders.append(file.parent)
        else:
            images += image_files(found)
            folders.append(found)
    return folders[0] if len(folders) == 1 else file.parent, images


def _resolve(file: Path, base: str, value: str) -> Path:
    """The path that exists, of those that a value in data.yaml can mean; else the first of them."""
    bases = [file.parent / base, file.parent]
    values = [value, value.removeprefix("../"), value.removeprefix("./")]
    found = [folder / one for folder in bases for one in values]
    return next((path for path in found if path.exists()), found[0])


def _label_file(image: Path) -> Path:
    """Where YOLO looks for the labels of an image."""
    parts = list(image.parts)
    at = max((position for position, name in enumerate(parts[:-1]) if name == "images"), default=None)
    if at is not None:
        parts[at] = "labels"
    return Path(*parts).with_suffix(".txt")


def _read_labels(images: list[Path], part: Part, builder: ContentBuilder, centers: bool) -> None:
    """Add the images and their objects. centers: the vertices of polygons are pixels."""
    root = part.annotations.parent
    without = 0
    files: dict[Path, Path] = {}
    counts = {"boxes": 0, "joined": 0}
    for image in images:
        label_file = _label_file(image)
        if label_file in files:
            both = f"{relative_name(files[label_file], root)} and {relative_name(image, root)}"
            place = relative_name(label_file, root)
            builder.add("error", "labels of two images", place, mismatch("the labels of one image", both))
        files[label_file] = image
        added = builder.add_image_file(image, part.images)
        if not label_file.is_file():
            without += 1
        elif added is not None:
            for line in _parse_file(label_file, relative_name(label_file, root), builder):
                _add_line(line, added, builder, counts, centers)
    _report_counts(files, without, counts, root, builder)


class _Line(NamedTuple):
    place: str
    category: int
    values: npt.NDArray[np.float64]  # (2 P,) fractions; of a box 4


def _parse_file(path: Path, name: str, builder: ContentBuilder) -> Iterator[_Line]:
    """The lines of a label file; a fault for every one that is malformed."""
    try:
        lines = read_lines(path)
    except DatasetError as error:
        builder.add("error", "label file is no text", name, str(error).removeprefix(f"{path}: "))
        return
    for position, line in enumerate(lines, start=1):
        words = line.split()
        if not words:
            continue
        place = f"{name}:{position}"
        values = [number(word) for word in words]
        wrong = next((word for word, value in zip(words, values, strict=True) if value is None), None)
        if wrong is not None:
            builder.add("error", "not a number", place, mismatch("class x y x y …, all numbers", quote(wrong)))
            continue
        numbers = np.array(values, dtype=np.float64)
        reason = _line_fault(numbers, len(builder.categories))
        if reason:
            builder.add("error", reason[0], place, reason[1])
            continue
        yield _Line(place, int(numbers[0]), numbers[1:])


def _line_fault(numbers: npt.NDArray[np.float64], classes: int) -> tuple[str, str] | None:
    """(kind, reason) of a line of numbers that is no polygon and no box."""
    first = numbers[0]
    if not (float(first).is_integer() and 0 <= first < classes):
        expected = f"a number from 0 to {classes - 1}, the classes that data.yaml names"
        return "unknown class", f"class: {mismatch(expected, f'{first:g}')}"
    if len(numbers) < 5:
        return "too few numbers", mismatch("a polygon of at least 3 points, or a box of 4 numbers", len(numbers) - 1)
    if len(numbers) % 2 == 0:
        advice = "the last one may be the score of a prediction"
        return "odd count of coordinates", mismatch(
            "an even count of numbers after the class", len(numbers) - 1, advice
        )
    low, high = numbers[1:].min(), numbers[1:].max()
    if not (low >= -_OUTSIDE and high <= 1 + _OUTSIDE):
        advice = "divide pixels by the image's width and height" if high > 2 else ""
        return "coordinates outside the image", mismatch("fractions from 0 to 1", f"{low:g} to {high:g}", advice)
    return None


def _add_line(
    line: _Line, image: tuple[int, int, int], builder: ContentBuilder, counts: dict[str, int], centers: bool
) -> None:
    image_id, height, width = image
    if line.values.size == 4:
        x, y, box_width, box_height = (line.values * (width, height, width, height)).tolist()
        counts["boxes"] += 1
        box = [x - box_width / 2, y - box_height / 2, box_width, box_height]
        builder.add_annotation(image_id, line.category, line.place, bbox=box)
        return
    if centers:
        code = code_of_window(fill_outline(outline_pixels(line.values, height, width)), height, width)
        builder.add_annotation(image_id, line.category, line.place, segmentation=code)
        return
    points = line.values.reshape(-1, 2) * (width, height)
    reason = polygon_fault(points, height, width)
    if reason:
        builder.add("error", "malformed polygon", line.place, f"polygon: {reason}")
        return
    inner = points[:-1] if (points[0] == points[-1]).all() else points
    counts["joined"] += len(np.unique(inner, axis=0)) < len(inner)
    builder.add_annotation(image_id, line.category, line.place, segmentation=[flat(points)])


def _report_counts(
    files: Mapping[Path, Path], without: int, counts: Mapping[str, int], root: Path, builder: ContentBuilder
) -> None:
    """Count what is left out, or read otherwise than it looks."""
    if without == len(files):
        first = next(iter(files))
        expected = f"label files such as {relative_name(first, root)}"
        builder.add("error", "no label file", "", mismatch(expected, f"none for {count_of(without, 'image')}"))
    elif without:
        builder.add(
            "note", "no label file", "", f"{count_of(without, 'image')} without a label file: no objects in them"
        )
    if counts["boxes"]:
        reason = f"{count_of(counts['boxes'], 'line')} of four numbers: boxes, which train no mask"
        builder.add("note", "boxes in labels", "", reason)
    if counts["joined"]:
        reason = (
            f"{count_of(counts['joined'], 'polygon')} that pass a point twice: parts of an object, or holes, joined by "
            "a line; filled by the even-odd rule"
        )
        builder.add("note", "joined parts", "", reason)
    folders = {path.parent for path in files}
    stray = [path for folder in sorted(folders) for path in sorted(folder.glob("*.txt")) if path not in files]
    for path in stray:
        if path.name not in ("classes.txt", "README.txt", "README.dataset.txt", "README.roboflow.txt"):
            name = relative_name(path, root)
            builder.add("warning", "labels without an image", name, mismatch("an image of the same name", "none"))
