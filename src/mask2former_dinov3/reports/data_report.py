"""Write the page on a data set, for `check-data --report DIR`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..atomic_files import check_writable
from ..data.check import Report
from ..data.faults import count_of
from ..data.layout import Split
from ..errors import OptionError
from ..read_options import AS_STORED, ReadOptions
from .data_sections import (
    SEVERITIES,
    TrainingView,
    faults_section,
    images_section,
    numbers_section,
    summary_rows,
    training_section,
)
from .fault_views import FaultViews
from .html_page import Html, badge, element, join, page, paragraph, section, table, write_page

PAGE = "report.html"


def prepare_folder_of_report(folder: Path, splits: Mapping[str, Split], root: Path | None) -> None:
    """Make the folder of a page, before the work. root: the folder of the data set.

    Raises OptionError where it is in the data: nothing is written there. Raises CheckpointError where it cannot be
    written.
    """
    own = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise OptionError("report", "a folder", f"{folder}, a file")
    data = [root] if root is not None and root.is_dir() else []
    data += [split.images for split in splits.values()]
    inside = [place for place in data if own.is_relative_to(place.resolve())]
    inside += [split.annotations.parent for split in splits.values() if own == split.annotations.parent.resolve()]
    if inside:
        raise OptionError("report", "a folder outside the data set", f"{folder}, in {inside[0]}", "choose another")
    check_writable(folder)


def write_data_report(
    report: Report,
    splits: Mapping[str, Split],
    folder: Path,
    view: TrainingView | None,
    title: str,
    seed: int = 0,
    options: ReadOptions = AS_STORED,
) -> Path:
    """Write the page of a checked data set to `folder`; returns its path.

    view: training's data set, None where there is nothing to train on. title: what to call the data set. seed: of the
    images that are shown. options: how images are read.

    The number of pictures is bounded, whatever the size of the data set. Raises CheckpointError when it cannot be
    written.
    """
    parts = [_overview(report)]
    for name, split in report.splits.items():
        parts.append(faults_section(name, split, FaultViews(splits[name], split.data, options)))
    for name, data in report.data.items():
        if data.images:
            parts.append(images_section(name, data, seed, options))
    train = report.data.get("train")
    if train is not None and train.images and view is not None:
        parts += [training_section(train, view), numbers_section(train, report.splits["train"], view)]
    path = folder / PAGE
    write_page(path, page(f"Data report: {title}", _verdict(report), parts))
    return path


def _verdict(report: Report) -> Html:
    """One sentence on the whole, with the counts."""
    counts = {severity: sum(len(split.of(severity)) for split in report.splits.values()) for severity in SEVERITIES}
    badges = [badge(count_of(count, severity), severity) for severity, count in counts.items() if count]
    text = (
        "Training refuses this data: correct the errors first."
        if counts["error"]
        else "Training can start; look at the warnings first."
        if counts["warning"]
        else "No fault was found that stops or spoils training."
    )
    return paragraph(join(badges or [badge("no faults", "good")], " "), f" {text}")


def _overview(report: Report) -> Html:
    """The splits with their counts, the notes on how they were found, and the ceilings of the masks."""
    head = ["split", "images", "objects", "errors", "warnings", "notes", "classes", "crowd regions"]
    lines = [element("li", note) for note in report.notes]
    for name, split in report.splits.items():
        lines.append(element("li", f"{name}: {split.annotations}"))
        if split.ceilings:
            reached = ", ".join(f"{value:.2f} at stride {stride}" for stride, value in split.ceilings.items())
            lines.append(
                element("li", f"{name}: highest AP that masks can reach on the canvas, by mask_stride: {reached}")
            )
    return section("Overview", table(head, summary_rows(report)), element("ul", *lines))
