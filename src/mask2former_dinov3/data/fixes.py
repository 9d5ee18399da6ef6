"""Write corrected copies of a data set's annotation files, for `check-data --fix DIR`.

The copy is a data set in COCO's layout: DIR/annotations/instances_<split>.json, and DIR/images/<split>, a link to the
folder of the images. DIR/fixes.json lists every change. The original files are only read.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..atomic_files import write_folder
from ..errors import DatasetError, OptionError
from ..read_options import AS_STORED, ReadOptions
from .check import Report, check_data
from .coco import parse_coco
from .coco_json import read_coco_json
from .faults import count_of
from .fix_entries import FileFixer
from .fix_log import FixLog, LeftFault
from .layout import Split, find_splits
from .numbers import whole_number
from .read_rules import ReadRules

SUMMARY = "fixes.json"
_FOLDER_NAMES = {"train": "train", "valid": "val", "test": "test"}
_SHOWN = 20  # faults of the copy in the text; fixes.json has all


@dataclass(slots=True)
class FixSummary:
    """The result of `write_fixes`. logs: split -> its changes; left: the faults that the copy still has."""

    folder: Path
    logs: dict[str, FixLog] = field(default_factory=dict)
    left: list[LeftFault] = field(default_factory=list)

    def text(self) -> str:
        """The summary for people."""
        lines = [f"corrected copy: {self.folder}"]
        for name, log in self.logs.items():
            lines += [f"{name}: {self.folder / annotations_of(name)}", *log.lines()]
        counts = [count_of(sum(one.severity == kind for one in self.left), kind) for kind in ("error", "warning")]
        lines.append(f"{self.folder}, checked as training does when it starts: {', '.join(counts)}")
        serious = [one for one in self.left if one.severity != "note"]
        lines += [f"  {one.severity}: {one.split}: {one.text}" for one in serious[:_SHOWN]]
        if len(serious) > _SHOWN:
            lines.append(f"  … and {len(serious) - _SHOWN} more")
        return "\n".join([*lines, f"all changes with their ids: {self.folder / SUMMARY}"])

    def to_json(self) -> dict[str, object]:
        """The summary as a JSON object."""
        return {
            "splits": {name: log.to_json() for name, log in self.logs.items()},
            "left": [{"split": one.split, "severity": one.severity, "text": one.text} for one in self.left],
        }


def annotations_of(name: str) -> Path:
    """The path of a split's annotation file within the copy."""
    return Path("annotations") / f"instances_{_FOLDER_NAMES[name]}.json"


def prepare_folder_of_fixes(folder: Path) -> None:
    """Raise OptionError unless the copy can be written: nothing is overwritten."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        kind = "a folder with files in it" if folder.is_dir() else "a file"
        raise OptionError("fix", "a new or empty folder", f"{folder}, {kind}", "nothing is overwritten; choose another")


def write_fixes(
    report: Report,
    splits: Mapping[str, Split],
    folder: Path,
    valid_split: float = 0.1,
    options: ReadOptions = AS_STORED,
) -> FixSummary:
    """Write the corrected copy of a checked data set to `folder`, check it, and list what was changed and left.

    report: that of `check_data`, full. valid_split: as for `find_splits`. options: how images are read.
    Raises DatasetError for annotations that are no COCO file, OptionError where `folder` has content, CheckpointError
    where it cannot be written.
    """
    prepare_folder_of_fixes(folder)
    summary = FixSummary(folder)
    with write_folder(folder) as temporary:
        (temporary / "annotations").mkdir()
        (temporary / "images").mkdir()
        for name, split in splits.items():
            if name == "valid" and split.image_ids is not None:
                continue  # held out of the training file, which is corrected as a whole
            whole = replace(split, image_ids=None)
            suspects = _suspects(report, splits, split.annotations)
            summary.logs[name] = _fix_file(whole, suspects, temporary, options)
        _write_json(temporary / SUMMARY, summary.to_json())
    summary.left = _check_copy(folder, valid_split, next(iter(splits.values())).rules, options)
    _write_json(folder / SUMMARY, summary.to_json())
    return summary


def _suspects(report: Report, splits: Mapping[str, Split], annotations: Path) -> frozenset[int]:
    """The ids of the images of a file that have a fault as a whole."""
    faults = [
        fault for name in splits if splits[name].annotations == annotations for fault in report.splits[name].faults
    ]
    places = [place for fault in faults for place in fault.places]
    return frozenset(image for image, annotation in places if image is not None and annotation is None)


def _fix_file(split: Split, suspects: frozenset[int], folder: Path, options: ReadOptions) -> FixLog:
    """Write the corrected file of a split to `folder`, and the link to its images."""
    content = read_coco_json(split.annotations)
    paths = _image_paths(split, content)
    fixer = FileFixer(content, paths, suspects, options)
    fixed = fixer.fix()
    link = folder / "images" / _FOLDER_NAMES[split.name]
    try:
        link.symlink_to(split.images.resolve(), target_is_directory=True)
        linked = True
    except OSError:  # a file system or a Windows account without links
        linked = False
    images = fixed["images"]
    users = Counter(os.path.abspath(path) for path in paths.values())
    for entry in images if isinstance(images, list) else []:
        image_id, name = whole_number(entry.get("id")), entry.get("file_name")
        path = None if image_id is None else paths.get(image_id)
        if path is None or not isinstance(name, str) or not path.is_file():
            continue
        if linked and os.path.abspath(split.images / name) == os.path.abspath(path):
            continue  # found under the same name through the link
        if users[os.path.abspath(path)] > 1:
            fixer.log.leave("file_name leads to the file of another image", image_id)
            continue
        inside = linked and path.resolve().is_relative_to(split.images.resolve())
        entry["file_name"] = (
            path.resolve().relative_to(split.images.resolve()).as_posix() if inside else str(path.resolve())
        )
        fixer.log.change("file_name written as the path where the file was found", image_id)
    _write_json(folder / annotations_of(split.name), fixed, indent=None)
    return fixer.log


def _image_paths(split: Split, content: Mapping[str, object]) -> dict[int, Path]:
    """Image id -> path: where the parser finds it; of an image with a faulty entry, its name in the image folder."""
    paths: dict[int, Path] = {}
    images = content.get("images")
    for entry in images if isinstance(images, list) else []:
        image_id = whole_number(entry.get("id")) if isinstance(entry, Mapping) else None
        if image_id is not None and isinstance(entry.get("file_name"), str):
            paths.setdefault(image_id, split.images / entry["file_name"].replace("\\", "/"))
    data, _ = parse_coco(split)
    return paths | dict(zip(data.images.ids, data.images.paths, strict=True))


def _check_copy(folder: Path, valid_split: float, rules: ReadRules, options: ReadOptions) -> list[LeftFault]:
    """The faults of the corrected copy, from its annotations and the headers of its images."""
    try:
        splits, notes = find_splits(folder, valid_split=valid_split, rules=rules)
    except DatasetError as error:
        return [LeftFault("data set", "error", str(error))]
    report = check_data(splits, notes, num_queries=None, options=options, full=False)
    return [
        LeftFault(name, fault.severity, str(fault)) for name, split in report.splits.items() for fault in split.faults
    ]


def _write_json(path: Path, content: object, indent: int | None = 2) -> None:
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
