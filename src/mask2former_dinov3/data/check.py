"""Check a data set: list everything that is wrong with it, and count what is in it.

Three severities (see `Fault`): an error would stop or spoil training, which refuses it with the same message; a warning
is left out of training or worth a look; a note is for information.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import DatasetError, mismatch
from ..read_options import AS_STORED, ReadOptions
from .achievable_ap import mask_ceilings
from .array_types import Ints
from .coco import CocoData, ImageRecord, parse_splits
from .coco_json import ENTRY_FAULTS
from .crops import crop_counts
from .duplicates import compare_pictures, find_repeated_objects, find_split_siblings
from .faults import ADVICE, Fault, FaultReport, count_of, quote
from .image_faults import (
    ImageFindings,
    channels_of_plain,
    check_image,
    different_channels,
    group_findings,
    sample_numbers,
)
from .image_folders import PassedOver, image_names_in
from .layout import Split
from .locate import absolute_path
from .mask_arrays import collect_masks
from .mask_checks import compare_masks, find_filled_holes
from .object_sizes import advise_scale, check_smallest_scale
from .records import ImageTable
from .statistics import Statistics, statistics_of

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with the number of images that are checked, and the number of all."""

_NAMED = 10  # files in one line
UNLISTED = "file not in the annotations"
_SEVERITIES = ("error", "warning", "note")
_LEVELS = {"note": logging.INFO, "warning": logging.WARNING}
_AT_ONCE, _PARTS = 50, 8  # image files that a thread checks before it reports, and such parts that are waited for
_SAMPLED = 16  # images that are decoded at the start of training, to see the range of their values
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
        self.log_faults()
        texts = [split.list_errors() for split in self.splits.values()]
        raise DatasetError("\n".join(text for text in texts if text))

    def log_faults(self, skip: str = "") -> None:
        """Log the notes, and the first 5 notes and warnings of each split but for those of the kind `skip`."""
        for note in self.notes:
            logger.info("note: %s", note)
        for split in self.splits.values():
            for severity in ("note", "warning"):
                faults = [fault for fault in split.of(severity) if not skip or fault.kind != skip]
                for fault in faults[:_LOGGED]:
                    logger.log(_LEVELS[severity], "%s: %s: %s", severity, split.annotations, fault)

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
    options: ReadOptions = AS_STORED,
    scale_min: float | None = None,
    full: bool = True,
    progress: ProgressCallback | None = None,
) -> Report:
    """Check annotations and images of all splits. Faults of the data are in the report; none is raised.

    num_queries: more instances than this in an image are a warning; None: no limit. canvas: (height, width) of
    training, for `mask_ceilings`. options: how images are read. scale_min: smallest random scale of training, at which
    objects vanish with a warning; None: neither this is checked nor whether objects are small. full: decode every
    image, compare images by their pixels, look for filled holes, measure the ceilings; otherwise (at the start of
    training) the headers of the image files are read, and 16 images decoded.
    """
    reports = {name: SplitReport(split.annotations) for name, split in splits.items()}
    for name, (data, faults) in parse_splits(splits).items():
        reports[name].data, reports[name].faults = data, faults
    digests = _check_images(reports, options, full, progress)
    for name, report in reports.items():
        if report.data is not None:
            report.statistics = statistics_of(report.data)
            factor = options.factor
            report.ceilings = mask_ceilings(report.data, canvas, factor=factor) if full else {}
            has_errors = bool(report.of("error"))
            counts = crop_counts(report.data.images, canvas, factor)
            report.faults += _check_content(name, report.data, report.statistics, num_queries, has_errors, counts)
            masks = collect_masks(report.data)
            report.faults += [*compare_masks(masks), *find_repeated_objects(masks)]
            report.faults += find_filled_holes(masks) if full else []
            if name == "train" and scale_min is not None:
                report.faults += check_smallest_scale(masks, canvas, scale_min, factor)
                report.faults += advise_scale(masks, canvas, factor)
    _compare_classes(reports)
    records = {name: report.data for name, report in reports.items()}
    for faults_of_split in (compare_pictures(records, digests), find_split_siblings(records)):
        for name, faults in faults_of_split.items():
            reports[name].faults += faults
    for name, unlisted in _find_unlisted_files(splits, reports).items():
        reports[name].faults += unlisted
    for report in reports.values():
        FaultReport(str(report.annotations), report.faults).group_alike()
    return Report(reports, list(notes))


def _check_images(
    reports: Mapping[str, SplitReport], options: ReadOptions, full: bool, progress: ProgressCallback | None
) -> dict[str, str]:
    """Add the faults of the image files to the reports; returns absolute path -> digest of the pixels, if full."""
    splits = [(report, report.data.images) for report in reports.values() if report.data is not None]
    total = sum(len(images) for _, images in splits)
    decoded = range(total) if full else sample_numbers(total, _SAMPLED)
    digests: dict[str, str] = {}
    checked = 0
    first: tuple[ImageTable, int, int] | None = None  # table, place, channels: all images must have as many
    for report, images in splits:
        findings: list[ImageFindings] = []
        others: dict[int, list[ImageRecord]] = {}  # another number of channels -> the images that have it
        before = checked
        decode = [before + place in decoded for place in range(len(images))]
        for place, one in enumerate(_check_in_threads(images, options, decode)):
            checked += 1
            channels = one if isinstance(one, int) else one.channels
            first = first or ((images, place, channels) if channels else None)
            if first is not None and channels not in (0, first[2]):
                others.setdefault(channels, []).append(images[place])
            if not isinstance(one, int):
                if one.has_content:
                    findings.append(one)
                if full and one.examined is not None and one.examined.digest:
                    digests[absolute_path(str(one.record.path))] = one.examined.digest
            if progress is not None:
                progress(checked, total)
        report.faults += group_findings(findings, options)
        if first is not None:
            named = first[0][first[1]].file_name
            report.faults += [different_channels(some, n, first[2], named) for n, some in others.items()]
    return digests


def _check_in_threads(
    images: ImageTable, options: ReadOptions, decode: Sequence[bool]
) -> Iterator[ImageFindings | int]:
    """What is found in each image, in their order; the channels of one in which there is nothing to find.

    decode: whether to decode it, too.
    """

    def check_one(place: int) -> ImageFindings | int:
        plain = 0 if decode[place] else channels_of_plain(images, place, options)
        return plain or check_image(images[place], options, decode[place])

    def check_part(start: int) -> list[ImageFindings | int]:
        return [check_one(place) for place in range(start, min(start + _AT_ONCE, len(images)))]

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        starts = iter(range(0, len(images), _AT_ONCE))
        while some := list(islice(starts, _PARTS)):  # all at once would take memory for 100,000 images
            for found in threads.map(check_part, some):
                yield from found


def _check_content(
    name: str, data: CocoData, statistics: Statistics, num_queries: int | None, has_errors: bool, counts: Ints
) -> Iterable[Fault]:
    """Faults of a split as a whole: more instances than queries, classes without instances, nothing to train on.

    has_errors: the split has errors, which are then the reason why there is nothing. counts: the most instances that
    the network sees at once, of each image.
    """
    crowded = [] if num_queries is None else np.flatnonzero(counts > num_queries).tolist()
    if crowded:
        where = "" if (counts == data.images.instance_counts()).all() else " in a crop"
        reason = (
            f"{count_of(len(crowded), 'image')} with more instances{where} than num_queries ({num_queries}), up to "
            f"{counts.max()}: the model cannot find them all; raise num_queries, or set it to auto"
        )
        first, *more = [(image_id, None) for image_id in data.images.take(crowded).ids]
        yield Fault("warning", *first, reason, "more instances than queries", tuple(more))
    if not statistics.instances:
        if not has_errors:
            yield _nothing_to_use(name, statistics)
    elif not has_errors:
        for category, count in statistics.per_class.items():
            if not count:
                yield Fault("note", None, None, f"class {quote(category)} has no instance")


def _nothing_to_use(name: str, statistics: Statistics) -> Fault:
    """The fault of a split without an instance: an error in train, a warning where AP is then undefined.

    Without an image it is an error everywhere.
    """
    if not statistics.images:
        return Fault("error", None, None, f"{name}: {mismatch('an image', 'none: all are left out')}", "no image")
    crowds, advice = "none", ""
    if statistics.crowd_regions:
        crowds = f"none but {count_of(statistics.crowd_regions, 'crowd region')}, which do not count"
        advice = "if they are single objects, set crowd to instances"
    if name == "train":
        reason = mismatch("an instance with a mask to train on", crowds, advice)
        return Fault("error", None, None, f"train: {reason}", "nothing to train on")
    reason = mismatch("an instance with a mask to score", f"{crowds}: AP is undefined", advice)
    return Fault("warning", None, None, f"{name}: {reason}", "nothing to score")


def _compare_classes(reports: Mapping[str, SplitReport]) -> None:
    """Add an error for classes that train lacks, a note for classes that only train has; they are matched by name."""
    train = reports.get("train")
    if train is None or train.data is None:
        return
    expected = {category.name for category in train.data.categories}
    for report in reports.values():
        found = set() if report.data is None else {category.name for category in report.data.categories}
        if found - expected:
            reason = mismatch(f"the classes of train, {quote(sorted(expected))}", quote(sorted(found)))
            report.faults.append(Fault("error", None, None, f"categories: {reason}", "other classes"))
        elif found and expected - found:
            missing = quote(sorted(expected - found))
            reason = f"categories: {len(found)} of the {len(expected)} classes of train; {missing} are not scored here"
            report.faults.append(Fault("note", None, None, reason, "fewer classes"))


def _find_unlisted_files(splits: Mapping[str, Split], reports: Mapping[str, SplitReport]) -> dict[str, list[Fault]]:
    """Split -> warnings of image files in its folder that no split lists; a shared folder is reported once."""
    listed = {
        absolute_path(path)
        for report in reports.values()
        if report.data is not None
        for path in (*report.data.images.path_texts, *map(str, report.data.elsewhere))
    }
    faults: dict[str, list[Fault]] = {}
    listings: dict[str, PassedOver] = {}  # of the folders so far
    seen: set[str] = set()
    for name, split in splits.items():
        if reports[name].data is None or any(fault.kind in ENTRY_FAULTS for fault in reports[name].of("error")):
            continue  # its annotations, or some images in them, are unreadable: their files would be unlisted
        if split.format not in ("coco", "cvat", "label-studio"):
            continue  # other formats list the files themselves
        folder = os.path.abspath(split.images)
        new: list[str] = []
        if folder not in listings:  # else all its files are listed or seen
            listings[folder] = PassedOver()
            files = (os.path.join(folder, image) for image in image_names_in(split.images, listings[folder]))
            new = [file for file in files if file not in listed and file not in seen]
            seen.update(new)
        passed_over = listings[folder]
        faults[name] = []
        if new:
            names = [os.path.relpath(file, split.images) for file in new[:_NAMED]] + ["…"] * (len(new) > _NAMED)
            where = new[0] if len(new) == 1 else f"{len(new)} files of {split.images}, {', '.join(names)}"
            reason = f"{where}: in the image folder, not in the annotations"
            faults[name].append(Fault("warning", None, None, reason, UNLISTED))
        passed_over.endings.pop(".json", None)  # annotations
        if passed_over.endings:
            faults[name].append(Fault("note", None, None, f"{split.images}: {passed_over.text()}", "files passed over"))
    return faults
