"""The data doctor: everything that is wrong with a data set, at once, and what is in it.

Three severities (see `Fault`): an error would stop or spoil training, which refuses it with the same words; a warning
is left out of training or worth a look; a note is for information.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from .achievable_ap import mask_ceilings
from .coco import CocoData, Fault, ImageRecord, parse_coco
from .images import IMAGE_SUFFIXES, decode_image, read_header
from .layout import Split
from .statistics import Statistics, statistics_of

Progress = Callable[[int, int], None]
"""Told how many images are done, and of how many."""

_SEVERITIES = ("error", "warning", "note")
_LISTED = 100  # faults of one severity and split in the text; the JSON report has all


@dataclass(slots=True)
class SplitReport:
    """One split: its annotation file, its faults in the order of checking, its records and statistics (when read)."""

    annotations: Path
    faults: list[Fault] = field(default_factory=list)
    data: CocoData | None = None
    statistics: Statistics | None = None
    ceilings: dict[int, float] = field(default_factory=dict)  # stride of masks -> AP that they can reach

    def of(self, severity: str) -> list[Fault]:
        """The faults of one severity."""
        return [fault for fault in self.faults if fault.severity == severity]


@dataclass(slots=True)
class Report:
    """What `check_data` found: a report per split, and the notes on how the splits were found."""

    splits: dict[str, SplitReport]
    notes: list[str]

    @property
    def errors(self) -> list[Fault]:
        """All faults that would stop or spoil training."""
        return [fault for split in self.splits.values() for fault in split.of("error")]

    @property
    def data(self) -> dict[str, CocoData]:
        """The records of the splits that could be read, so that nobody reads them twice."""
        return {name: split.data for name, split in self.splits.items() if split.data is not None}

    def raise_errors(self) -> None:
        """Raise DatasetError with the text of the report when there is an error."""
        if self.errors:
            raise DatasetError(self.text())

    def text(self, limit: int | None = _LISTED) -> str:
        """The report for people: per split the statistics, then at most `limit` faults of each severity (None: all)."""
        lines = [f"note: {note}" for note in self.notes]
        for name, split in self.splits.items():
            lines.append(f"{name}: {split.annotations}")
            lines += [] if split.statistics is None else [f"  {line}" for line in split.statistics.lines()]
            if split.ceilings:
                reached = ", ".join(f"{value:.2f} at stride {stride}" for stride, value in split.ceilings.items())
                lines.append(f"  AP that masks can reach on the canvas (mask_stride; 4 is usual): {reached}")
            for severity in _SEVERITIES:
                faults = split.of(severity)
                if faults:
                    lines.append(f"  {_count(len(faults), severity)}:")
                    lines += [f"    {fault}" for fault in faults[:limit]]
                if limit is not None and len(faults) > limit:
                    lines.append(f"    … and {len(faults) - limit} more; check-data --json FILE lists all")
        counts: Counter[str] = Counter(fault.severity for split in self.splits.values() for fault in split.faults)
        total = ", ".join(_count(counts[severity], severity) for severity in _SEVERITIES)
        return "\n".join([*lines, f"in all: {total}"])

    def to_json(self) -> dict[str, Any]:
        """The whole report in values that `json.dump` takes."""
        return {
            "notes": self.notes,
            "errors": len(self.errors),
            "splits": {
                name: {
                    "annotations": str(split.annotations),
                    "statistics": None if split.statistics is None else split.statistics.to_json(),
                    "mask_ceilings": split.ceilings,
                    "faults": [
                        {
                            "severity": fault.severity,
                            "image_id": fault.image_id,
                            "annotation_id": fault.annotation_id,
                            "reason": fault.reason,
                        }
                        for fault in split.faults
                    ],
                }
                for name, split in self.splits.items()
            },
        }


def check_data(
    splits: Mapping[str, Split],
    notes: Sequence[str] = (),
    *,
    num_queries: int | None = 100,
    canvas: tuple[int, int] = (1024, 1024),
    full: bool = True,
    progress: Progress | None = None,
) -> Report:
    """Check annotations and images of all splits; never raises for a fault of the data, they are in the report.

    num_queries: more instances than this in an image are a warning; None: as many as needed. canvas: (height, width) of
    training, for `mask_ceilings`. full: decode every image, compare the splits' pictures, measure the ceilings;
    otherwise (at the start of training) only the headers of the image files are read.
    """
    reports = {name: SplitReport(split.annotations) for name, split in splits.items()}
    for name, split in splits.items():
        report = reports[name]
        try:
            report.data, report.faults = parse_coco(split)
        except DatasetError as error:
            report.faults.append(Fault("error", None, None, str(error)))
    _drop_repeated(splits, reports)
    images = [(report, record) for report in reports.values() if report.data for record in report.data.images]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        found = threads.map(lambda pair: _image_faults(pair[1], full), images)
        for done, ((report, _), faults) in enumerate(zip(images, found, strict=True), start=1):
            report.faults += faults
            if progress is not None:
                progress(done, len(images))
    for name, report in reports.items():
        if report.data is not None:
            report.statistics = statistics_of(report.data)
            report.ceilings = mask_ceilings(report.data, canvas) if full else {}
            report.faults += _content_faults(name, report.data, report.statistics, num_queries)
    _compare_classes(reports)
    _compare_pictures(reports, by_content=full)
    for name, unlisted in _unlisted_files(splits, reports).items():
        reports[name].faults += unlisted
    return Report(reports, list(notes))


def _drop_repeated(splits: Mapping[str, Split], reports: Mapping[str, SplitReport]) -> None:
    """Of two splits of one file, let only the first report what is wrong with the file as a whole."""
    seen: dict[Path, set[Fault]] = defaultdict(set)
    for name, report in reports.items():
        earlier = seen[splits[name].annotations]
        report.faults = [fault for fault in report.faults if fault not in earlier]
        earlier.update(report.faults)


def _image_faults(record: ImageRecord, full: bool) -> list[Fault]:
    """What is wrong with one image file: unreadable, of another size than the annotations say, turned by EXIF."""
    try:
        header = read_header(record.path)
        if full:
            decode_image(record.path.read_bytes(), record.path)
    except (DatasetError, OSError) as error:
        return [Fault("error", record.id, None, str(error))]
    faults = []
    if (header.height, header.width) != (record.height, record.width):
        turned = (header.width, header.height) == (record.height, record.width)
        hint = "; were they made on the picture as EXIF turns it?" if turned and header.orientation > 4 else ""
        reason = (
            f"{record.file_name}: the annotations say {record.height} x {record.width} pixels (height x width), "
            f"the file has {header.height} x {header.width}{hint}"
        )
        faults.append(Fault("error", record.id, None, reason))
    if header.orientation != 1:
        reason = (
            f"{record.file_name}: carries EXIF orientation {header.orientation}, which is not applied: pixels are "
            "taken as stored, as COCO annotations count them"
        )
        faults.append(Fault("note", record.id, None, reason))
    return faults


def _content_faults(name: str, data: CocoData, statistics: Statistics, num_queries: int | None) -> Iterable[Fault]:
    """Faults of a split as a whole: more instances than queries, classes without any, nothing to train on."""
    for record in data.images:
        count = sum(not annotation.iscrowd for annotation in record.annotations)
        if num_queries is not None and count > num_queries:
            reason = f"{record.file_name}: {count} instances, more than the {num_queries} queries (num_queries)"
            yield Fault("warning", record.id, None, reason)
    if name == "train" and not statistics.instances:
        reason = "nothing to train on: no image has an instance with a mask (crowd regions do not count)"
        yield Fault("error", None, None, reason)
    elif statistics.instances:
        for category, count in statistics.per_class.items():
            if not count:
                yield Fault("note", None, None, f"class {category!r} has no instance")


def _compare_classes(reports: Mapping[str, SplitReport]) -> None:
    """Classes are matched by name: a split with others than train's cannot be evaluated."""
    train = reports.get("train")
    if train is None or train.data is None:
        return
    expected = {category.name for category in train.data.categories}
    for name, report in reports.items():
        found = set() if report.data is None else {category.name for category in report.data.categories}
        if report.data is not None and found != expected:
            reason = f"classes differ from train's: {name} has {sorted(found)}, train has {sorted(expected)}"
            report.faults.append(Fault("error", None, None, reason))


def _compare_pictures(reports: Mapping[str, SplitReport], *, by_content: bool) -> None:
    """Warn of pictures of one split that an earlier split has as well: the same file, or the same bytes."""
    earlier: dict[str, tuple[str, int]] = {}  # path or digest -> split, image id
    keys = _content_keys(reports) if by_content else {}
    for name, report in reports.items():
        own: dict[str, tuple[str, int]] = {}
        for record in report.data.images if report.data is not None else ():
            path = os.path.abspath(record.path)
            key = keys.get(path, path)
            if key in earlier:
                other, other_id = earlier[key]
                reason = f"{record.file_name}: the same picture as image {other_id} of {other}, scores will flatter"
                report.faults.append(Fault("warning", record.id, None, reason))
            own.setdefault(key, (name, record.id))
        earlier = own | earlier


def _content_keys(reports: Mapping[str, SplitReport]) -> dict[str, str]:
    """A digest of the bytes of every image file whose length another file has too, by absolute path."""
    by_length: dict[int, set[str]] = defaultdict(set)
    for report in reports.values():
        for record in report.data.images if report.data is not None else ():
            path = os.path.abspath(record.path)
            if os.path.isfile(path):
                by_length[os.path.getsize(path)].add(path)
    alike = [path for paths in by_length.values() if len(paths) > 1 for path in sorted(paths)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        return dict(zip(alike, threads.map(_digest, alike), strict=True))


def _digest(path: str) -> str:
    """A digest of a file's bytes; of an unreadable one, which is reported elsewhere, its path."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return path


def _unlisted_files(splits: Mapping[str, Split], reports: Mapping[str, SplitReport]) -> dict[str, list[Fault]]:
    """Warnings, by split, of image files in its folder that no split names; a shared folder is listed once."""
    listed = {
        os.path.abspath(record.path)
        for report in reports.values()
        for record in (report.data.images if report.data is not None else ())
    }
    faults: dict[str, list[Fault]] = {}
    seen: set[str] = set()
    for name, split in splits.items():
        if reports[name].data is None:
            continue  # nothing was read, so everything would be unlisted
        files = []
        for folder, inside, names in os.walk(os.path.abspath(split.images)):
            inside[:] = sorted(entry for entry in inside if not entry.startswith("."))
            files += [os.path.join(folder, file) for file in sorted(names) if _is_image(file)]
        new = [file for file in files if file not in listed and file not in seen]
        seen.update(new)
        faults[name] = [Fault("warning", None, None, f"{file}: in the folder, not in the annotations") for file in new]
    return faults


def _is_image(file_name: str) -> bool:
    return os.path.splitext(file_name)[1].lower() in IMAGE_SUFFIXES and not file_name.startswith(".")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
