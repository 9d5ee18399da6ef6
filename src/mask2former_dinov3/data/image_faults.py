"""Faults of image files: unreadable, of another size than the annotations state, read in part, nearly black."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..errors import DatasetError, mismatch
from ..read_options import ReadOptions
from .coco import ImageRecord
from .extra_files import find_extra
from .faults import Fault, FaultReport, Place, Severity
from .images import ExaminedImage, check_image_size, count_channels, examine_image, read_header
from .jpeg_header import read_plain_jpeg
from .records import ImageTable

QUARTER, SIXTEENTH = 64, 16
"""RGB values. Images of a split that all stay in a quarter of the range come out nearly black, or nearly white; of
others, an image that stays in a sixteenth does (12 bits of 16): an image without objects may be dark by itself."""


@dataclass(slots=True)
class ImageFindings:
    """What was found in one image file. errors: its own lines; the rest is grouped over all images of a split."""

    record: ImageRecord
    errors: list[Fault] = field(default_factory=list)
    orientation: int = 1
    unread: str = ""
    channels: int = 0  # 0: not known
    examined: ExaminedImage | None = None
    extra: ExaminedImage | None = None  # its second file

    @property
    def has_content(self) -> bool:
        """Whether anything is to be reported or measured."""
        return bool(self.errors or self.orientation != 1 or self.unread or self.examined)


def channels_of_plain(images: ImageTable, place: int, options: ReadOptions) -> int:
    """The channels that are read of an image whose file is a plain JPEG of the stated size; 0 for any other file.

    `check_image` finds nothing in such a file without decoding it, and takes several times as long.
    """
    if options.page != 1 or options.extra_images is not None:
        return 0
    path, height, width = images.location(place)
    found = read_plain_jpeg(path)
    if found is None or (found.height, found.width) != (height, width):
        return 0
    return count_channels(found.components == 1, options)


def check_image(record: ImageRecord, options: ReadOptions, decode: bool) -> ImageFindings:
    """Check one image file. decode: also decode it, compare the decoded size, and measure its values."""
    found = ImageFindings(record)
    stated = (record.height, record.width)
    try:
        header = read_header(record.path, options)
        found.orientation, found.unread, found.channels = header.orientation, header.unread, header.channels
        sizes = [(header.height, header.width)]
        if decode:
            found.examined = examine_image(record.path, options)
            sizes.append(found.examined.size)
            if options.extra_images is not None:
                found.extra = examine_image(find_extra(record.path, options.extra_images), options.of_extra)
    except (DatasetError, OSError) as error:
        found.errors.append(Fault("error", record.id, None, str(error), "image cannot be read"))
        return found
    for size in dict.fromkeys(sizes):
        try:
            check_image_size(record.file_name, stated, size, header.orientation)
        except DatasetError as error:
            found.errors.append(Fault("error", record.id, None, str(error), "image has another size"))
            break
    return found


def sample_numbers(count: int, wanted: int) -> frozenset[int]:
    """At most `wanted` numbers below `count`, evenly spaced."""
    taken = min(wanted, count)
    return frozenset(number * count // taken for number in range(taken))


def group_findings(findings: Iterable[ImageFindings], options: ReadOptions) -> list[Fault]:
    """The faults of the images of a split: errors one by one, notes and warnings one line per cause."""
    report = FaultReport("")
    turned: dict[int, list[ImageRecord]] = {}
    unread: dict[str, list[ImageRecord]] = {}
    measured: list[tuple[ImageRecord, ExaminedImage]] = []
    extras: list[tuple[ImageRecord, ExaminedImage]] = []
    for found in findings:
        report.faults.extend(found.errors)
        if found.orientation != 1:
            turned.setdefault(found.orientation, []).append(found.record)
        if found.unread:
            unread.setdefault(found.unread, []).append(found.record)
        if found.examined is not None:
            measured.append((found.record, found.examined))
        if found.extra is not None:
            extras.append((found.record, found.extra))
    for orientation, records in turned.items():
        reason = (
            f"EXIF orientation {orientation} is not applied; pixels are taken as stored, as COCO annotations count them"
        )
        _add(report, "note", "orientation not applied", records, reason)
    for text, records in unread.items():
        advice = "the options page and channels choose others"
        _add(report, "note", "read in part", records, f"{text}; {advice}")
    _add_ranges(report, measured, options)
    _add_ranges(report, extras, options, "second file, ")
    return report.faults


def different_channels(records: Sequence[ImageRecord], count: int, expected: int, first: str) -> Fault:
    """The error of images that are read with another number of channels than the first, whose file name is `first`."""
    report = FaultReport("")
    wanted = f"{expected} channels as {first} has"
    reason = mismatch(wanted, count, "set channels to those that all files have, or leave these images out")
    _add(report, "error", "other channels", records, reason)
    return report.faults[0]


def _add_ranges(
    report: FaultReport,
    measured: Sequence[tuple[ImageRecord, ExaminedImage]],
    options: ReadOptions,
    where: str = "",
) -> None:
    """Warn about images of more than 8 bits that come out nearly black or nearly white. where: begins the reason."""
    varied = [(record, one) for record, one in measured if one.has_range and one.low < one.high]
    limit = QUARTER if all(one.brightest < QUARTER for _, one in varied) else SIXTEENTH
    black = [pair for pair in varied if pair[1].brightest < limit]
    limit = QUARTER if all(one.darkest >= 256 - QUARTER for _, one in varied) else SIXTEENTH
    white = [pair for pair in varied if pair[1].darkest >= 256 - limit]
    for what, chosen in (("black", black), ("white", white)):
        if not chosen:
            continue
        low, high = min(one.low for _, one in chosen), max(one.high for _, one in chosen)
        first, last = min(one.darkest for _, one in chosen), max(one.brightest for _, one in chosen)
        reason = (
            f"{where}values {low:g}..{high:g} become {first}..{last} of 255 with value_range {options.value_range}: "
            f'nearly {what}; set value_range to "{_suggest_limits(low, high)}" or "percentile"'
        )
        _add(report, "warning", f"nearly {what}", [record for record, _ in chosen], reason)


def _suggest_limits(low: float, high: float) -> str:
    """LOW,HIGH for these values: from 0 to the highest number of as many bits, if they are such numbers."""
    if low >= 0 and high >= 2 and float(high).is_integer():
        return f"0,{2 ** max(math.ceil(math.log2(high + 1)), 8) - 1}"
    return f"{low:g},{high:g}"


def _add(report: FaultReport, severity: Severity, kind: str, records: Sequence[ImageRecord], reason: str) -> None:
    """Add one line: of one image by its name, of several by their number."""
    places: list[Place] = [(record.id, None) for record in records]
    where = records[0].file_name if len(records) == 1 else f"{len(records)} images"
    report.add_group(severity, kind, places, f"{where}: {reason}")
