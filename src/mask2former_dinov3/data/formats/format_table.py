"""The formats that are read, and the one function that reads any of them: `read_content`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import OptionError, mismatch
from ..coco_json import read_coco_json
from ..faults import FaultReport
from .class_map import map_classes
from .cvat_xml import CVAT
from .hub_datasets import DATASETS, find_hub_dataset
from .label_maps import LABEL_MAPS
from .label_studio_json import LABEL_STUDIO
from .labelme_json import LABELME
from .source_content import Format, Part
from .voc_palettes import VOC
from .yolo_labels import YOLO

if TYPE_CHECKING:
    from ..layout import Split

FORMATS: tuple[Format, ...] = (YOLO, LABEL_MAPS, LABELME, VOC, CVAT, LABEL_STUDIO, DATASETS)
"""All formats but COCO's own, whose layouts `layout` finds."""

FORMAT_NAMES = ("auto", "coco", *(one.name for one in FORMATS))


def format_of(name: str) -> Format:
    """The format of a name. Raises OptionError for another name."""
    for one in FORMATS:
        if one.name == name:
            return one
    raise OptionError("dataset_format", f"one of {', '.join(FORMAT_NAMES)}", name)


def find_named(name: str, root: Path, images: Path | None = None) -> dict[str, Part]:
    """The splits of a folder or file in a format that is named; with `datasets` also of a name on the hub.

    images: the folder of the images, where the user names it; label maps may then lie anywhere.
    """
    if name == LABEL_MAPS.name and images is not None:
        return {"train": Part(root, images, "maps")}
    if name == DATASETS.name:
        return find_hub_dataset(root)
    return format_of(name).find(root)


def find_formats(root: Path) -> dict[str, dict[str, Part]]:
    """Format -> split -> its part, of every format whose files lie in a folder (or that a file has)."""
    found = {one.name: one.find(root) for one in FORMATS}
    return {name: parts for name, parts in found.items() if parts}


def read_content(split: Split, report: FaultReport) -> Mapping[str, object]:
    """The content of a split as a COCO file has it: a mapping with images, annotations and categories.

    Every format goes on through the parser of COCO files. Faults of the source, with file and line, go to the report,
    which also gets the place of every annotation. Raises DatasetError where the source cannot be read at all.
    """
    content: Mapping[str, object]
    if split.reading is not None:
        content = split.reading.content
        report.faults.extend(split.reading.faults)
        report.places.update(split.reading.places)
    elif split.format == "coco":
        content = read_coco_json(split.annotations)
    else:
        content = format_of(split.format).read(Part(split.annotations, split.images, split.subset), report)
    return content if split.classes is None else map_classes(content, split.classes, split.name, report)


def expected_files() -> str:
    """The files by which the formats are recognised, for messages."""
    return "; ".join(f"{one.name}: {one.files}" for one in FORMATS)


def ambiguity(root: Path, names: list[str]) -> str:
    """The message for a folder that several formats fit."""
    choices = " or ".join(f"--format {name}" for name in names)
    return f"{root}: {mismatch('files of one format', ', '.join(names), f'choose with {choices}')}"
