"""Write a data set of any format as COCO or as YOLO: the verb `convert-data`.

COCO: `annotations/instances_SPLIT.json`; ids, masks and further keys are those that were read, `bbox` and `area` are
added where they are missing. Images stay where they are, and file names lead to them from the folder, unless they are
copied. YOLO: data.yaml, labels and copies of the images (YOLO finds labels by the path of the image).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from ...atomic_files import write_folder
from ...errors import DatasetError, OptionError, mismatch
from ..coco import Annotation, CocoData, ImageRecord, parse_coco
from ..faults import FaultReport, count_of
from ..layout import Split
from ..numbers import whole_number
from .format_table import read_content
from .outlines import outline_of
from .source_content import Reading
from .yolo_labels import yolo_line, yolo_yaml

_LISTED = 20


@dataclass
class Conversion:
    """What was written, and sentences on what the new format does not hold, or the source lacked."""

    output: Path
    images: int = 0
    instances: int = 0
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """The report for people."""
        written = f"{self.output}: {count_of(self.images, 'image')}, {count_of(self.instances, 'instance')}"
        return "\n".join([written, *(f"note: {note}" for note in self.notes)])


def convert_data(
    splits: Mapping[str, Split], output: Path, *, to: Literal["coco", "yolo"] = "coco", copy_images: bool = False
) -> Conversion:
    """Write all splits into the new folder `output`, or nothing at all; of a divided file each part into its own.

    copy_images: also copy the images (YOLO's always are). Raises OptionError for a folder that is not empty,
    DatasetError with all errors of the source, CheckpointError where the folder cannot be written.
    """
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise OptionError("output", "a new or empty folder", f"{output}, which is not empty", "nothing is overwritten")
    done = Conversion(output)
    read = {name: _read(split, done) for name, split in splits.items()}
    with write_folder(output) as folder:
        if to == "coco":
            for name, (content, data) in read.items():
                _write_coco(name, content, data, folder, output if not copy_images else None)
        else:
            _write_yolo({name: data for name, (_, data) in read.items()}, folder, done)
    for _, data in read.values():
        done.images += len(data.images)
        done.instances += sum(len(image.annotations) for image in data.images)
    return done


def _read(split: Split, done: Conversion) -> tuple[Mapping[str, object], CocoData]:
    """The content of a split and its records. Raises DatasetError for errors in it, and for missing images."""
    report = FaultReport(str(split.annotations))
    content = _part_of(read_content(split, report), split.image_ids)
    known = replace(split, classes=None, reading=Reading(content, tuple(report.faults), report.places))
    data, faults = parse_coco(known)
    found = FaultReport(report.name, faults)
    for image in data.images:
        if not image.path.is_file():
            found.add_error(f"{image.file_name}: {mismatch('an image file', f'none at {image.path}')}", image.id)
    found.raise_errors("run check-data to list all of them")
    texts = [f"{split.name}: {fault}" for fault in faults]
    done.notes += texts[:_LISTED]
    if len(texts) > _LISTED:
        done.notes.append(f"{split.name}: … and {len(texts) - _LISTED} more; check-data lists all")
    return content, data


def _part_of(content: Mapping[str, object], image_ids: frozenset[int] | None) -> Mapping[str, object]:
    """What was read, with these images and their annotations alone; None: all of it."""
    if image_ids is None:
        return content
    sections = {"images": "id", "annotations": "image_id"}
    kept = {
        section: [one for one in found if isinstance(one, Mapping) and whole_number(one.get(key)) in image_ids]
        for section, key in sections.items()
        if isinstance(found := content.get(section), list)
    }
    return {**content, **kept}


def _write_coco(name: str, content: Mapping[str, object], data: CocoData, folder: Path, reference: Path | None) -> None:
    """Write one annotation file. reference: the final folder, from which file names lead to the images; None: copy."""
    names = _plan_names(data.images, by_stem=False)
    for image in data.images:
        if reference is None:
            _copy(image.path, folder / name / names[image.id])
        else:
            names[image.id] = Path(os.path.relpath(image.path, reference)).as_posix()
    parsed = {one.id: one for image in data.images for one in image.annotations}
    images, annotations = content["images"], content["annotations"]
    assert isinstance(images, list)
    assert isinstance(annotations, list)
    written = {
        **content,
        "images": [{**entry, "file_name": names[whole_number(entry["id"])]} for entry in images],
        "annotations": [_complete(entry, parsed) for entry in annotations],
    }
    path = folder / "annotations" / f"instances_{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(written, ensure_ascii=False), encoding="utf-8", errors="backslashreplace")


def _complete(entry: Mapping[str, object], parsed: Mapping[int, Annotation]) -> dict[str, object]:
    """An annotation with the keys that other programs expect."""
    known = parsed.get(whole_number(entry["id"]) or 0)
    found = dict(entry)
    if known is not None:
        for key, value in (("iscrowd", int(known.iscrowd)), ("bbox", list(known.bbox)), ("area", known.area)):
            if found.get(key) is None:
                found[key] = value
    return found


def _plan_names(images: Sequence[ImageRecord], *, by_stem: bool) -> dict[int | None, str]:
    """Image id -> a name of its own below the image folder; by_stem: its own without the ending too."""
    names: dict[int | None, str] = {}
    taken: set[str] = set()
    for image in images:
        path = PurePosixPath(image.file_name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            path = PurePosixPath(path.name)
        candidate, number = path, 1
        while _key(candidate, by_stem) in taken:
            number += 1
            candidate = path.with_name(f"{path.stem}_{number}{path.suffix}")
        taken.add(_key(candidate, by_stem))
        names[image.id] = str(candidate)
    return names


def _key(path: PurePosixPath, by_stem: bool) -> str:
    return str(path.with_suffix("") if by_stem else path).casefold()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


@dataclass
class _Counts:
    """What YOLO does not hold, or programs read otherwise than it is, counted."""

    crowds: int = 0
    several: int = 0


def _write_yolo(data: Mapping[str, CocoData], folder: Path, done: Conversion) -> None:
    """Write data.yaml, labels and images of all splits. Raises DatasetError where their classes differ."""
    first = next(iter(data.values()))
    classes = [category.name for category in first.categories]
    for one in data.values():
        names = [category.name for category in one.categories]
        if set(names) != set(classes):
            expected = f"the classes of {first.annotations}, {', '.join(classes)}"
            raise DatasetError(f"{one.annotations}: {mismatch(expected, ', '.join(names))}")
    counts = _Counts()
    for split, one in data.items():
        numbers = [classes.index(category.name) for category in one.categories]
        targets = _plan_names(one.images, by_stem=True)
        for image in one.images:
            name = targets[image.id]
            _copy(image.path, folder / "images" / split / name)
            label_file = (folder / "labels" / split / name).with_suffix(".txt")
            label_file.parent.mkdir(parents=True, exist_ok=True)
            label_file.write_text("".join(_lines(image, numbers, counts)), encoding="utf-8")
    keys = {"train": "train", "valid": "val", "test": "test"}
    folders = {keys[split]: f"images/{split}" for split in data}
    folders |= {"val": "images/train"} if "valid" not in data and "train" in data else {}
    (folder / "data.yaml").write_text(yolo_yaml(classes, folders), encoding="utf-8", errors="backslashreplace")
    done.notes += _yolo_notes(counts, "valid" not in data and "train" in data)


def _yolo_notes(counts: _Counts, without_valid: bool) -> Iterator[str]:
    yield "YOLO has no ids of images, objects and classes: classes are numbered from 0 in the order of their ids"
    yield (
        "polygons go through the centers of the outermost pixels, as OpenCV fills them; data.yaml says so for this "
        "program, which reads the same masks again"
    )
    if counts.crowds:
        yield f"{count_of(counts.crowds, 'crowd region')} left out: YOLO has none"
    if counts.several:
        yield f"{count_of(counts.several, 'mask')} of several parts: other programs fill the lines that join them"
    if without_valid:
        yield "no valid split: data.yaml names the training images as val, which Ultralytics requires"


def _lines(image: ImageRecord, numbers: list[int], counts: _Counts) -> Iterator[str]:
    """The line of every object of an image."""
    for one in image.annotations:
        if one.iscrowd:
            counts.crowds += 1
            continue
        outline = outline_of(one.segmentation, image.height, image.width)
        counts.several += outline.parts > 1
        yield yolo_line(numbers[one.label], outline, image.height, image.width)
