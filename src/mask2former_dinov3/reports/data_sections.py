"""The parts of the page on a data set: faults by kind, images at random, what training will see, sizes and counts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data.array_types import Floats
from ..data.check import Report, SplitReport
from ..data.coco import CocoData
from ..data.dataset import CocoInstanceDataset, Sample
from ..data.faults import Fault, Place, count_of
from ..data.images import read_image
from ..data.object_sizes import SIDE, ObjectSizes, keeping_scale, measure_objects
from ..data.sampler import EpochPlan
from ..data.transforms import Augmentation
from ..errors import DatasetError
from ..read_options import AS_STORED, ReadOptions
from .fault_views import FaultViews
from .html_page import Html, badge, element, figure, grid, join, no_figure, paragraph, section
from .picture_sheets import draw_sample
from .pictures import SIDE_OF_PICTURE, data_uri, draw_all, view_of
from .svg_charts import bar_chart, charts, histogram

PICTURES_OF_A_KIND = 6
KINDS_WITH_PICTURES = 40  # of one split
SENTENCES_OF_A_KIND = 5
RANDOM_IMAGES = 12  # of each split
TRAINING_SAMPLES = 24
MEASURED_IMAGES = 20_000  # of which objects are measured for the charts, evenly spread
SEVERITIES = ("error", "warning", "note")


class TrainingView(NamedTuple):
    """How training sees the images: its data set, and where its options are from, such as "the defaults of train".

    repeat_factors: how often each image is shown, None: once.
    """

    dataset: CocoInstanceDataset
    source: str
    repeat_factors: Floats | None = None

    @property
    def scale_min(self) -> float:
        """The smallest random scale."""
        return 1.0 if self.dataset.augmentation is None else self.dataset.augmentation.scale_min


def group_faults(faults: Sequence[Fault]) -> dict[tuple[str, str], list[Fault]]:
    """Faults by (severity, kind), errors first. A fault without a kind belongs to those whose reason has its words."""
    groups: dict[tuple[str, str], list[Fault]] = {}
    for severity in SEVERITIES:
        for fault in faults:
            if fault.severity == severity:
                groups.setdefault((severity, fault.kind or kind_of_reason(fault.reason)), []).append(fault)
    return groups


def kind_of_reason(reason: str) -> str:
    """The words of a reason without names of files, numbers and quoted values, as the name of its kind."""
    text = re.sub(r'"[^"]*"', "…", reason.partition(", got ")[0].partition("; ")[0])
    text = re.sub(r"^\S*[./\\]\S*: ", "", text)  # the file that it begins with
    text = re.sub(r"\S*[/\\]\S+", "…", text)
    return re.sub(r"\d[\d,.]*", "N", text).strip()[:80] or "other"


def faults_section(name: str, report: SplitReport, views: FaultViews) -> Html:
    """Every kind of fault of a split with its sentences, its number, and pictures of its first places."""
    groups = group_faults(report.faults)
    if not groups:
        return section(f"Faults of {name}", paragraph("None."))
    parts = []
    for number, ((severity, kind), faults) in enumerate(groups.items()):
        places = [(place, fault) for fault in faults for place in fault.places]
        title = element("h3", badge(severity, severity), f" {kind[:1].upper()}{kind[1:]} ")
        sentences = [element("li", str(fault)) for fault in faults[:SENTENCES_OF_A_KIND]]
        if len(faults) > SENTENCES_OF_A_KIND:
            rest = len(faults) - SENTENCES_OF_A_KIND
            sentences.append(element("li", f"… and {rest:,} more; check-data --json FILE lists all"))
        shown = [pair for pair in places if pair[0] != (None, None)] if number < KINDS_WITH_PICTURES else []
        parts.append(element("article", title, element("ul", *sentences), *_pictures(shown, views)))
    note = (
        f"{count_of(len(groups), 'kind')}. Of each kind the first {PICTURES_OF_A_KIND} places are shown. Orange: the "
        "object of the fault; thin blue lines: other objects; white: the box of the file, where the fault is about it. "
        "Without one object at fault, every object has a colour of its own."
    )
    return section(f"Faults of {name}", paragraph(note), *parts)


def _pictures(places: Sequence[tuple[Place, Fault]], views: FaultViews) -> list[Html]:
    """The figures of the first places, and how many there are."""
    if not places:
        return []
    chosen = places[:PICTURES_OF_A_KIND]
    figures = [views.draw(place, fault) for place, fault in chosen]
    text = f"{len(chosen)} of {len(places):,} places shown." if len(chosen) < len(places) else ""
    return [grid(figures), *([element("p", text, class_="lead")] if text else [])]


def images_section(name: str, data: CocoData, seed: int, options: ReadOptions = AS_STORED) -> Html:
    """Images of a split chosen at random, with their masks."""
    count = min(RANDOM_IMAGES, len(data.images))
    chosen = sorted(np.random.default_rng(seed).choice(len(data.images), count, replace=False).tolist())
    figures = []
    for index in chosen:
        record = data.images[index]
        objects = [one for one in record.annotations if not one.iscrowd]
        regions = len(record.annotations) - len(objects)
        text = count_of(len(objects), "object") + (f", {count_of(regions, 'crowd region')}" if regions else "")
        caption = join([record.file_name, text], "<br>")
        try:
            view = view_of(read_image(record.path, options))
        except (DatasetError, OSError):
            figures.append(no_figure("the image cannot be read", caption))
            continue
        picture = draw_all(view, [one.segmentation for one in record.annotations])
        alt = f"{record.file_name}: {text}, each in a colour of its own"
        figures.append(figure(data_uri(picture), alt, caption, picture.shape[:2]))
    note = (
        f"{count:,} of {len(data.images):,} images, chosen at random (seed {seed}), each mask in a colour of its own."
    )
    return section(f"Images of {name}", paragraph(note), grid(figures))


def training_section(data: CocoData, view: TrainingView) -> Html:
    """The first samples of training, made by the code that makes training's batches, with their targets."""
    dataset = view.dataset
    plan = EpochPlan(len(dataset), dataset.seed, view.repeat_factors)
    figures = []
    for position in range(TRAINING_SAMPLES):
        key = plan.key_at(position)
        name = data.images[key[1]].file_name
        try:
            sample = dataset[key]
        except (DatasetError, OSError) as error:
            figures.append(no_figure(f"training refuses it: {error}"[:200], name))
            continue
        figures.append(_sample_figure(sample, name, dataset))
    height, width = dataset.canvas
    change = dataset.augmentation
    factor = dataset.options.factor
    scale = "the fit" if factor is None else f"image_scale {factor:g}"
    random = (
        ""
        if change is None
        else (
            f"random scales from {change.scale_min:g} to {change.scale_max:g} times {scale}, flip {change.flip}, "
            f"color_jitter {change.color_jitter:g}, copy_paste {change.copy_paste:g}, {_changes_on(change)}"
            f"seed {dataset.seed} "
        )
    )
    note = (
        f"The first {TRAINING_SAMPLES} samples of training with their targets, as the network gets them: the canvas of "
        f"{height} x {width} pixels, {random}({view.source}). Plain grey is padding. Pictures are reduced, so the "
        "smallest targets may not be visible."
    )
    return section("What training will see", paragraph(note), grid(figures))


def _changes_on(change: Augmentation) -> str:
    """The changes that are off by default and on here, each with its value and a comma."""
    names = ("rotation", "gamma_jitter", "invert", "blur", "noise", "jpeg_quality")
    return "".join(f"{name} {getattr(change, name):g}, " for name in names if getattr(change, name))


def _sample_figure(sample: Sample, name: str, dataset: CocoInstanceDataset) -> Html:
    """One sample, denormalised, with its targets."""
    picture = draw_sample(sample, dataset, SIDE_OF_PICTURE)
    areas = [int(np.count_nonzero(mask)) for mask in sample["mask_labels"].numpy()]
    text = count_of(len(areas), "target")
    if areas:
        text += f", the smallest of {count_of(min(areas), 'pixel')}"
    caption = join([name, text], "<br>")
    return figure(data_uri(picture), f"training sample of {name}: {text}", caption, picture.shape[:2])


def numbers_section(data: CocoData, report: SplitReport, view: TrainingView) -> Html:
    """Charts of the training split: sizes of objects, objects per image, classes, sizes of images."""
    sizes = measure_objects(data, view.dataset.canvas, MEASURED_IMAGES, view.dataset.options.factor)
    step = -(-len(data.images) // MEASURED_IMAGES) or 1
    parts = [_size_chart(sizes, view.scale_min)] if len(sizes.areas) else []
    counts = data.images.instance_counts().tolist()
    parts.append(_count_chart(counts))
    if report.statistics is not None:
        classes = sorted(report.statistics.per_class.items(), key=lambda pair: -pair[1])
        absent = sum(count == 0 for _, count in classes)
        text = f"{count_of(len(classes), 'class', 'classes')}, {absent} of them without an object."
        parts.append(bar_chart("Objects by class", classes, "class", text))
        images = list(report.statistics.image_sizes.items())
        text = f"{count_of(len(images), 'size')} of {count_of(len(data.images), 'image')}; the canvas is "
        text += "{} x {}.".format(*view.dataset.canvas)
        parts.append(bar_chart("Images by size (height x width)", images[:200], "size", text, shown=12))
    measured = f"Objects are measured in every {step}th image. " if step > 1 else ""
    return section("Sizes and counts of train", paragraph(f"{measured}Crowd regions are not counted."), charts(parts))


def _size_chart(sizes: ObjectSizes, scale_min: float) -> Html:
    """The sides of objects on the canvas, in bins that double, with the side below which the smallest scale erases."""
    sides = sizes.sides
    low, high = int(np.floor(np.log2(sides.min()))), int(np.floor(np.log2(sides.max()))) + 1
    borders = 2.0 ** np.arange(low, high + 1)
    found, _ = np.histogram(sides, borders)
    limit = SIDE / scale_min
    lost = int((sides < limit).sum())
    smallest = float(sides.min())
    text = (
        f"The side of a square with the object's area: smallest {smallest:.1f}, median {np.median(sides):.1f}, largest "
        f"{sides.max():.0f} pixels at scale 1. At scale_min {scale_min:g} the smallest has {smallest * scale_min:.2f} "
        f"pixels, and {lost:,} of {len(sides):,} objects cover less than one. "
    )
    kept = keeping_scale(sides)
    text += "No scale up to 1 keeps all." if kept > 1 else f"scale_min {kept:g} keeps all." if lost else ""
    place = float(np.log2(limit)) - low
    mark = (place, f"dashed: {limit:.3g}, one pixel at scale_min") if lost else None
    return histogram("Object sizes on the canvas", [f"{x:g}" for x in borders], found.tolist(), "pixels", text, mark)


def _count_chart(counts: Sequence[int]) -> Html:
    """Objects per image, in at most 20 bins of equal width."""
    most = max(counts)
    width = -(-(most + 1) // 20)
    borders = list(range(0, most + width + 1, width))
    found, _ = np.histogram(counts, borders)
    empty = Counter(counts)[0]
    text = f"Median {np.median(counts):g}, maximum {most:,}; {count_of(empty, 'image')} without objects."
    return histogram("Objects per image", [str(x) for x in borders], found.tolist(), "objects", text)


def summary_rows(report: Report) -> list[tuple[object, ...]]:
    """Per split: images, objects, errors, warnings, notes, classes with objects, crowd regions."""
    rows: list[tuple[object, ...]] = []
    for name, split in report.splits.items():
        counts = [len(split.of(severity)) for severity in SEVERITIES]
        found = split.statistics
        if found is None:
            rows.append((name, "not read", "", *counts, "", ""))
        else:
            used = sum(count > 0 for count in found.per_class.values())
            classes = f"{used} of {len(found.per_class)}"
            rows.append((name, found.images, found.instances, *counts, classes, found.crowd_regions))
    return rows
