"""Check a data set: list everything that is wrong with it, and count what is in it.

Three severities (see `Fault`): an error would stop or spoil training, which refuses it with the same message; a warning
is left out of training or worth a look; a note is for information.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DatasetError, mismatch
from .achievable_ap import mask_ceilings
from .coco import CocoData, ImageRecord, parse_coco
from .faults import ADVICE, Fault, FaultReport, count_of, quote
from .images import IMAGE_SUFFIXES, check_image_size, decode_image, read_header
from .layout import Split
from .statistics import Statistics, statistics_of

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with the number of images that are checked, and the number of all."""

_SEVERITIES = ("error", "warning", "note")
_LEVELS = {"note": logging.INFO, "warning": logging.WARNING}
_LOGGED = 5  # faults of one severity and split, before an error
_LISTED = 100  # faults of one severity and split in the text; the JSON report has all


@dataclass(slots=True)
class SplitReport:
    """One split: its annotation file, its faults in the order of checking, its records and statistics (None: not read).

    ceilings: stride of the masks -> AP that masks of this stride can reach.
    """

    annotations: Path
    faults: list[Fault] = field(default_factory=list)
    data: CocoData | None = None
    statistics: Statistics | None = None
    ceilings: dict[int, float] = field(default_factory=dict)

    def of(self, severity: str) -> list[Fault]:
        """The faults of one severity."""
        return [fault for fault in self.faults if fault.severity == severity]

    def list_errors(self) -> str:
        """The errors for people; empty if there are none. The error of a file that cannot be read names it already."""
        if self.data is None:
            return "\n".join(map(str, self.of("error")))
        return FaultReport(str(self.annotations), self.faults).list_errors(ADVICE)


@dataclass(slots=True)
class Report:
    """The result of `check_data`: a report per split, and the notes on how the splits were found."""

    splits: dict[str, SplitReport]
    notes: list[str]

    @property
    def errors(self) -> list[Fault]:
        """All faults that would stop or spoil training."""
        return [fault for split in self.splits.values() for fault in split.of("error")]

    @property
    def data(self) -> dict[str, CocoData]:
        """The records of the splits that could be read; they need not be read again."""
        return {name: split.data for name, split in self.splits.items() if split.data is not None}

    def raise_errors(self) -> None:
        """Raise DatasetError with the errors of all files, if there are any; log the notes and warnings before it."""
        if not self.errors:
            return
        for note in self.notes:
            logger.info("note: %s", note)
        for split in self.splits.values():
            for severity in ("note", "warning"):
                for fault in split.of(severity)[:_LOGGED]:
                    logger.log(_LEVELS[severity], "%s: %s: %s", severity, split.annotations, fault)
        texts = [split.list_errors() for split in self.splits.values()]
        raise DatasetError("\n".join(text for text in texts if text))

    def text(self, limit: int | None = _LISTED) -> str:
        """The report for people: per split the statistics, then at most `limit` faults of each severity (None: all)."""
        lines = [f"note: {note}" for note in self.notes]
        for name, split in self.splits.items():
            lines.append(f"{name}: {split.annotations}")
            lines += [] if split.statistics is None else [f"  {line}" for line in split.statistics.lines()]
            if split.ceilings:
                reached = ", ".join(f"{value:.2f} at stride {stride}" for stride, value in split.ceilings.items())
                lines.append(f"  highest AP that masks can reach on the canvas, by mask_stride (usually 4): {reached}")
            for severity in _SEVERITIES:
                faults = split.of(severity)
                if faults:
                    lines.append(f"  {count_of(len(faults), severity)}:")
                    lines += [f"    {fault}" for fault in faults[:limit]]
                if limit is not None and len(faults) > limit:
                    lines.append(f"    … and {len(faults) - limit} more; check-data --json FILE lists all")
        counts: Counter[str] = Counter(fault.severity for split in self.splits.values() for fault in split.faults)
        total = ", ".join(count_of(counts[severity], severity) for severity in _SEVERITIES)
        return "\n".join([*lines, f"total: {total}"])

    def to_json(self) -> dict[str, object]:
        """The whole report as a JSON object."""
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
                            "kind": fault.kind,
                            "more": fault.more,
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
    progress: ProgressCallback | None = None,
) -> Report:
    """Check annotations and images of all splits. Faults of the data are in the report; none is raised.

    num_queries: more instances than this in an image are a warning; None: no limit. canvas: (height, width) of
    training, for `mask_ceilings`. full: decode every image, compare the splits' images by content, measure the
    ceilings; otherwise (at the start of training) only the headers of the image files are read.
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
        found = threads.map(lambda pair: _check_image(pair[1], full), images)
        for done, ((report, _), faults) in enumerate(zip(images, found, strict=True), start=1):
            report.faults += faults
            if progress is not None:
                progress(done, len(images))
    for name, report in reports.items():
        if report.data is not None:
            report.statistics = statistics_of(report.data)
            report.ceilings = mask_ceilings(report.data, canvas) if full else {}
            report.faults += _check_content(name, report.data, report.statistics, num_queries)
    _compare_classes(reports)
    _compare_images(reports, by_content=full)
    for name, unlisted in _find_unlisted_files(splits, reports).items():
        reports[name].faults += unlisted
    return Report(reports, list(notes))


def _drop_repeated(splits: Mapping[str, Split], reports: Mapping[str, SplitReport]) -> None:
    """Keep faults of a file that two splits share in the first of them only."""
    seen: dict[Path, set[Fault]] = defaultdict(set)
    for name, report in reports.items():
        earlier = seen[splits[name].annotations]
        report.faults = [fault for fault in report.faults if fault not in earlier]
        earlier.update(report.faults)


def _check_image(record: ImageRecord, full: bool) -> list[Fault]:
    """Faults of one image file: unreadable, of another size than the annotations state, rotated by EXIF."""
    try:
        header = read_header(record.path)
        if full:
            decode_image(record.path.read_bytes(), record.path)
    except (DatasetError, OSError) as error:
        return [Fault("error", record.id, None, str(error))]
    faults = []
    stated, stored = (record.height, record.width), (header.height, header.width)
    try:
        check_image_size(record.file_name, stated, stored)
    except DatasetError as error:
        rotated = stored == stated[::-1] and header.orientation > 4
        hint = " (they may have been made on the image as EXIF rotates it)" if rotated else ""
        faults.append(Fault("error", record.id, None, f"{error}{hint}"))
    if header.orientation != 1:
        reason = (
            f"{record.file_name}: EXIF orientation {header.orientation} is not applied; pixels are taken as stored, as "
            "COCO annotations count them"
        )
        faults.append(Fault("note", record.id, None, reason))
    return faults


def _check_content(name: str, data: CocoData, statistics: Statistics, num_queries: int | None) -> Iterable[Fault]:
    """Faults of a split as a whole: more instances than queries, classes without instances, nothing to train on."""
    for record in data.images:
        count = sum(not annotation.iscrowd for annotation in record.annotations)
        if num_queries is not None and count > num_queries:
            reason = f"{record.file_name}: {count} instances, more than num_queries ({num_queries})"
            yield Fault("warning", record.id, None, reason)
    if name == "train" and not statistics.instances:
        reason = mismatch("an instance with a mask to train on", "none (crowd regions do not count)")
        yield Fault("error", None, None, f"train: {reason}")
    elif statistics.instances:
        for category, count in statistics.per_class.items():
            if not count:
                yield Fault("note", None, None, f"class {quote(category)} has no instance")


def _compare_classes(reports: Mapping[str, SplitReport]) -> None:
    """Add an error where the classes are not those of train: they are matched by name in evaluation."""
    train = reports.get("train")
    if train is None or train.data is None:
        return
    expected = {category.name for category in train.data.categories}
    for report in reports.values():
        found = set() if report.data is None else {category.name for category in report.data.categories}
        if report.data is not None and found != expected:
            reason = mismatch(f"the classes of train, {quote(sorted(expected))}", quote(sorted(found)))
            report.faults.append(Fault("error", None, None, f"categories: {reason}"))


def _compare_images(reports: Mapping[str, SplitReport], *, by_content: bool) -> None:
    """Add a warning for each image that an earlier split has as well: the same file, or the same bytes."""
    earlier: dict[str, tuple[str, int]] = {}  # path or digest -> split, image id
    keys = _content_keys(reports) if by_content else {}
    for name, report in reports.items():
        own: dict[str, tuple[str, int]] = {}
        for record in report.data.images if report.data is not None else ():
            path = os.path.abspath(record.path)
            key = keys.get(path, path)
            if key in earlier:
                other, other_id = earlier[key]
                reason = f"{record.file_name}: the same image as image {other_id} of {other}; scores will be too high"
                report.faults.append(Fault("warning", record.id, None, reason))
            own.setdefault(key, (name, record.id))
        earlier = own | earlier


def _content_keys(reports: Mapping[str, SplitReport]) -> dict[str, str]:
    """Absolute path -> digest of the content, of the image files that have the same length as another."""
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
    """A digest of a file's content; the path of an unreadable file, which is reported elsewhere."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError:
        return path


def _find_unlisted_files(splits: Mapping[str, Split], reports: Mapping[str, SplitReport]) -> dict[str, list[Fault]]:
    """Split -> warnings of image files in its folder that no split lists; a shared folder is reported once."""
    listed = {
        os.path.abspath(record.path)
        for report in reports.values()
        for record in (report.data.images if report.data is not None else ())
    }
    faults: dict[str, list[Fault]] = {}
    seen: set[str] = set()
    for name, split in splits.items():
        if reports[name].data is None or split.format not in ("coco", "cvat"):
            continue  # unreadable annotations: every file would be unlisted; other formats list the files themselves
        files = []
        for folder, inside, names in os.walk(os.path.abspath(split.images)):
            inside[:] = sorted(entry for entry in inside if not entry.startswith("."))
            files += [os.path.join(folder, file) for file in sorted(names) if _is_image(file)]
        new = [file for file in files if file not in listed and file not in seen]
        seen.update(new)
        faults[name] = [
            Fault("warning", None, None, f"{file}: in the image folder, not in the annotations") for file in new
        ]
    return faults


def _is_image(file_name: str) -> bool:
    return os.path.splitext(file_name)[1].lower() in IMAGE_SUFFIXES and not file_name.startswith(".")
