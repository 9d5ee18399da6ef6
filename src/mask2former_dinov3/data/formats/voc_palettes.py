"""Read Pascal VOC's segmentations: palette images of the objects and of their classes.

`SegmentationObject/1.png` numbers the objects of `JPEGImages/1.jpg` (0 is background), `SegmentationClass/1.png` has
their classes, `ImageSets/Segmentation/train.txt` names the images of a split. The value 255 (void: the borders of
objects, and objects too difficult to outline) belongs to no object: it becomes a crowd region of each class that the
image has, so that detections there are not counted as wrong. Names of classes are those of `labelmap.txt` (as CVAT and
Datumaro write it), otherwise the twenty of VOC.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import DatasetError, mismatch
from ..faults import FaultReport, count_of, quote
from ..file_kinds import IMAGE_SUFFIXES
from ..images import name_errors
from ..stored_blocks import check_last_row
from .folders import SPLIT_FOLDERS, read_lines
from .label_maps import read_labels
from .mask_codes import code_of_mask, codes_of_labels
from .source_content import ContentBuilder, Format, Part, relative_name

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_VOID = 255


def find_voc(root: Path) -> dict[str, Part]:
    """The splits of a folder with SegmentationObject, or of the only such folder in it (VOCdevkit/VOC2012)."""
    bases = [folder.parent for pattern in ("", "*/", "*/*/") for folder in root.glob(f"{pattern}SegmentationObject")]
    if not root.is_dir() or not bases:
        return {}
    if len(bases) > 1:
        names = ", ".join(relative_name(base, root) for base in bases)
        raise DatasetError(f"{root}: {mismatch('one folder with SegmentationObject', names, 'give one of them')}")
    base = bases[0]
    images = base / "JPEGImages" if (base / "JPEGImages").is_dir() else base
    lists = {path.stem.lower(): path for path in sorted((base / "ImageSets" / "Segmentation").glob("*.txt"))}
    parts = {
        split: Part(lists[name], images)
        for split, names in SPLIT_FOLDERS.items()
        for name in reversed(names)
        if name in lists
    }
    if parts or not lists:
        return parts or {"train": Part(base, images)}
    return {"train": Part(lists.get("trainval") or lists.get("default") or next(iter(lists.values())), images)}


def read_voc(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of one split; all faults of all files are reported."""
    builder = ContentBuilder(report)
    base = part.annotations if part.annotations.is_dir() else part.annotations.parents[2]
    classes = _read_classes(base)
    for name in classes.names.values():
        builder.category(name)
    without = 0
    for place, name in _image_names(part, builder):
        objects = base / "SegmentationObject" / f"{name}.png"
        if not objects.is_file():
            without += 1
            builder.add("error", "missing segmentation", place, mismatch(relative_name(objects, base), "no such file"))
            continue
        images = [path for path in sorted(part.images.glob(f"{name}.*")) if path.suffix.lower() in IMAGE_SUFFIXES]
        if len(images) != 1:
            got = ", ".join(path.name for path in images) or "none"
            builder.add("error", "missing image", place, mismatch(f"one image {name} in {part.images.name}", got))
            continue
        _add_image(images[0], objects, part, classes, builder)
    return builder.content()


VOC = Format("voc", "SegmentationObject, SegmentationClass and ImageSets/Segmentation", find_voc, read_voc, True)


class _Classes(NamedTuple):
    """names: value in SegmentationClass -> class. colours: (r, g, b) -> value. stated: by labelmap.txt."""

    names: dict[int, str]
    colours: dict[tuple[int, ...], int]
    stated: bool


def voc_colour(value: int) -> tuple[int, int, int]:
    """The colour that VOC's palette has for a value: its bits, three at a time, become the highest of r, g and b."""
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (value & 1) << shift
        green |= (value >> 1 & 1) << shift
        blue |= (value >> 2 & 1) << shift
        value >>= 3
    return red, green, blue


def _read_classes(base: Path) -> _Classes:
    """The classes of `labelmap.txt` (name:r,g,b:parts:actions), else VOC's. Raises DatasetError.

    A line without a colour, as Datumaro writes it, has that of VOC's palette for its position.
    """
    file = base / "labelmap.txt"
    if not file.is_file():
        colours: dict[tuple[int, ...], int] = {voc_colour(value): value for value in range(256)}
        return _Classes(dict(enumerate(VOC_CLASSES, start=1)), colours, False)
    names: dict[int, str] = {}
    colours = {}
    lines = [line.strip() for line in read_lines(file)]
    entries = [(number, line) for number, line in enumerate(lines, start=1) if line and not line.startswith("#")]
    for value, (number, line) in enumerate(entries):
        name, _, rest = line.partition(":")
        words = [word.strip() for word in rest.partition(":")[0].split(",")]
        known = len(words) == 3 and all(word.isdecimal() and int(word) <= 255 for word in words)
        if not name or not (known or words == [""]):
            raise DatasetError(f"{file}:{number}: {mismatch('name:red,green,blue:parts:actions', quote(line))}")
        colour = tuple(map(int, words)) if known else voc_colour(value)
        if colour in colours:
            got = f"that of line {entries[colours[colour]][0]}"
            raise DatasetError(f"{file}:{number}: {mismatch('a colour of its own', got)}")
        colours[colour] = value
        if name.lower() != "background" and colour != (0, 0, 0):
            names[value] = name
    return _Classes(names, colours, True)


def _image_names(part: Part, builder: ContentBuilder) -> Iterator[tuple[str, str]]:
    """(place, name) of every image of a split, without the ending."""
    if part.annotations.is_dir():
        for path in sorted((part.annotations / "SegmentationObject").glob("*.png")):
            yield path.name, path.stem
        return
    seen: set[str] = set()
    for number, line in enumerate(read_lines(part.annotations), start=1):
        name, place = line.strip().strip('"'), f"{part.annotations.name}:{number}"
        if name in seen:
            builder.add("warning", "image twice", place, f"{name} is named twice; read once")
        elif name:
            seen.add(name)
            yield place, name


def _add_image(image: Path, objects: Path, part: Part, classes: _Classes, builder: ContentBuilder) -> None:
    base = objects.parents[1]
    kinds = base / "SegmentationClass" / objects.name
    place = relative_name(objects, base)
    try:
        labels, void = _read_objects(objects)
        values = _read_values(kinds, classes)
    except DatasetError as error:
        builder.add("error", "unreadable segmentation", place, str(error).removeprefix(f"{objects}: "))
        return
    added = builder.add_image_file(image, part.images)
    if added is None:
        return
    for name, found in ((place, labels), (relative_name(kinds, base), values)):
        if found.shape != added[1:]:
            expected = f"{added[1]} x {added[2]} pixels (height x width) as its image"
            got = f"{found.shape[0]} x {found.shape[1]}"
            builder.add("error", "segmentation of another size", name, mismatch(expected, got))
            return
    present: list[int] = []
    for value, code in codes_of_labels(np.where(void, 0, labels)):
        own = Counter(values[labels == value].tolist())
        kind = max(own, key=lambda one: own[one])
        where = f"{place}: object {value}"
        if kind not in classes.names:
            expected = "a class in SegmentationClass at its pixels"
            got = "background" if kind == 0 else "void" if kind == _VOID else f"the value {kind}"
            builder.add("error", "object without a class", where, mismatch(expected, got))
            continue
        if len(own) > 1:
            reason = f"pixels of {count_of(len(own), 'value')} in SegmentationClass; the most frequent one counts"
            builder.add("note", "object of several classes", where, reason)
        present.append(builder.category(classes.names[kind]))
        builder.add_annotation(added[0], present[-1], where, segmentation=code)
    region = code_of_mask(void)
    for category in sorted(set(present)) if region is not None else ():
        builder.add_annotation(added[0], category, f"{place}: void", segmentation=region, iscrowd=1)


def _read_objects(path: Path) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_]]:
    """The numbers of the objects (H, W), and where they are void (H, W): of a palette, or of VOC's colours."""
    with name_errors(path), Image.open(path) as image:
        if image.mode == "RGB":  # as CVAT and Datumaro write it: every object has the colour of its number
            check_last_row(image, path)
            colours = np.asarray(image).astype(np.int64) @ (1, 256, 65536)
            void = colours == 224 + 224 * 256 + 192 * 65536
            _, inverse = np.unique(np.where(colours == 0, -1, colours), return_inverse=True)
            return np.asarray(inverse.reshape(colours.shape) + (not (colours == 0).any())), void
    labels = read_labels(path)
    return labels, (labels == _VOID) & (labels.dtype == np.uint8)


def _read_values(path: Path, classes: _Classes) -> npt.NDArray[np.integer]:
    """The values of SegmentationClass (H, W): indices of VOC's palette, or those of the colours."""
    with name_errors(path), Image.open(path) as image:
        if classes.stated or image.mode == "RGB":
            check_last_row(image, path)
            colours = np.asarray(image.convert("RGB"))
            flat, inverse = np.unique(colours.reshape(-1, 3), axis=0, return_inverse=True)
            known = {**classes.colours, (224, 224, 192): _VOID}
            unknown = [colour for colour in flat.tolist() if tuple(colour) not in known]
            if unknown:
                raise DatasetError(mismatch("the colours of labelmap.txt, or VOC's", f"the colour {unknown[0]}"))
            table = np.array([known[tuple(colour)] for colour in flat.tolist()])
            return np.asarray(table[inverse.reshape(colours.shape[:2])])
    return read_labels(path)
