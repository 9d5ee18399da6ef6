"""Write the results of all images of a run: a COCO data set, COCO's list of results, tables, Label Studio's tasks.

coco          predictions.json, a COCO data set: images, categories, and annotations with id, bbox, area and score
coco-results  coco_results.json, the bare list that scorers read, and images.json, which says what its ids mean
csv           counts.csv, a row for every image and class, and instances.csv, a row for every instance
label-studio  label_studio.json, tasks with pre-annotations, and label_studio.xml, the configuration of their project

Results are written image by image, so that memory does not grow with their number.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from ...atomic_files import write_file, write_json, write_text
from ...data.faults import plain_cell
from ...instances import Instances
from .label_studio_tasks import label_studio_config, label_studio_task
from .polygons import coco_polygons

WHOLE_RUN = ("coco", "coco-results", "csv", "label-studio")
SEGMENTATIONS = ("rle", "polygons")
DATA_SET, RESULTS, IMAGES, COUNTS, INSTANCES, TASKS, LABELS = (
    "predictions.json",
    "coco_results.json",
    "images.json",
    "counts.csv",
    "instances.csv",
    "label_studio.json",
    "label_studio.xml",
)
_AT_ONCE = 1000  # instances that are stored and read together: a large image may have hundreds of thousands
_MEASURES = ("area_total", "area_mean", "area_median", "diameter_mean", "diameter_median", "score_mean", "score_min")
_COUNT_COLUMNS = ("image", "class", "count", *_MEASURES)
_INSTANCE_COLUMNS = ("image", "id", "class", "score", "area", "diameter", "left", "top", "width", "height")


class PredictedImage(NamedTuple):
    """A finished image. entry: as under `images` of a COCO file. annotations: gives what `to_store` stored of it."""

    entry: dict[str, object]
    annotations: Callable[[], Iterator[dict[str, Any]]]


def to_store(
    instances: Instances, image_id: int, save: Collection[str], segmentation: str
) -> Iterator[list[dict[str, object]]]:
    """The annotations of an image in parts, for the files that `save` names; with polygons beside the RLE if asked."""
    if not set(WHOLE_RUN) & set(save):
        return
    for start in range(0, len(instances), _AT_ONCE):
        some = instances[start : start + _AT_ONCE]
        stored = some.to_coco_annotations(image_id)
        if segmentation == "polygons":
            stored = [{**one, "polygons": coco_polygons(some, index)} for index, one in enumerate(stored)]
        yield stored


def write_results(
    output: Path, images: Sequence[PredictedImage], categories: Sequence[tuple[int, str]], save: Collection[str]
) -> None:
    """Write the files that `save` names into `output`, each atomically."""
    names = [{"id": id_, "name": name} for id_, name in categories]
    described = {"images": [image.entry for image in images], "categories": names}
    if "coco" in save:
        with write_file(output / DATA_SET) as file:
            file.write(json.dumps(described, ensure_ascii=False)[:-1] + ', "annotations": ')
            _write_list(file, map(_as_annotation, _numbered(images)))
            file.write("}\n")
    if "coco-results" in save:
        with write_file(output / RESULTS) as file:
            _write_list(file, map(_as_result, _numbered(images)))
            file.write("\n")
        write_json(output / IMAGES, described)
    if "csv" in save:
        _write_tables(output, images, dict(categories))
    if "label-studio" in save:
        with write_file(output / TASKS) as file:
            _write_list(file, (label_studio_task(*one, categories) for one in _by_image(images)))
            file.write("\n")
        write_text(output / LABELS, label_studio_config(categories))


def _numbered(images: Iterable[PredictedImage]) -> Iterator[dict[str, Any]]:
    """The annotations of all images, numbered from 1. An image may have another number than when it was stored."""
    return (one for _, annotations in _by_image(images) for one in annotations)


def _by_image(
    images: Iterable[PredictedImage],
) -> Iterator[tuple[Mapping[str, object], Iterator[dict[str, Any]]]]:
    """The entry of every image, with its annotations as `_numbered` gives them, which are taken before the next."""
    numbers = count(1)

    def number(image: PredictedImage) -> Iterator[dict[str, Any]]:
        for stored in image.annotations():
            yield stored | {"id": next(numbers), "image_id": image.entry["id"]}

    return ((image.entry, number(image)) for image in images)


def _as_annotation(stored: Mapping[str, Any]) -> dict[str, object]:
    annotation = dict(stored)
    polygons = annotation.pop("polygons", None)
    return annotation if polygons is None else annotation | {"segmentation": polygons}


def _as_result(stored: Mapping[str, Any]) -> dict[str, object]:
    """Without "bbox": given one, pycocotools sorts masks into small, medium and large by the area of their boxes."""
    return {key: stored[key] for key in ("image_id", "category_id", "segmentation", "score")}


def _write_list(file: TextIO, entries: Iterable[Mapping[str, object]]) -> None:
    """Write a JSON list, entry by entry."""
    file.write("[")
    for position, entry in enumerate(entries):
        file.write((", " if position else "") + json.dumps(entry, ensure_ascii=False))
    file.write("]")


def _write_tables(output: Path, images: Sequence[PredictedImage], names: Mapping[int, str]) -> None:
    """Write counts.csv and instances.csv: lengths in pixels, areas in square pixels; ids as in predictions.json.

    The diameter is that of the disc with the same area. Classes that an image lacks are counted as 0.
    """
    with write_file(output / COUNTS) as counts_file, write_file(output / INSTANCES) as instances_file:
        counts, instances = (csv.writer(file, lineterminator="\n") for file in (counts_file, instances_file))
        counts.writerow(_COUNT_COLUMNS)
        instances.writerow(_INSTANCE_COLUMNS)
        number = 0
        for image in images:
            name = plain_cell(image.entry["file_name"])
            of_class: dict[int, list[tuple[int, float]]] = {category: [] for category in names}
            for one in image.annotations():
                number += 1
                category, area, score = one["category_id"], one["area"], one["score"]
                of_class[category].append((area, score))
                box = [f"{side:.15g}" for side in one["bbox"]]
                row = (number, plain_cell(names[category]), score, area, f"{_diameter(area):.6g}")
                instances.writerow([name, *row, *box])
            for category, found in of_class.items():
                counts.writerow([name, plain_cell(names[category]), *_summary(found)])


def _summary(found: Sequence[tuple[int, float]]) -> list[object]:
    """The numbers of a row of counts.csv, from areas and scores; means of nothing are empty."""
    if not found:
        return [0, 0, *[""] * (len(_MEASURES) - 1)]
    areas, scores = (np.array(values, dtype=np.float64) for values in zip(*found, strict=True))
    diameters = np.array([_diameter(area) for area in areas])
    measured = [f(values) for values in (areas, diameters) for f in (np.mean, np.median)]
    numbers = [f"{value:.6g}" for value in (*measured, scores.mean(), scores.min())]
    return [len(found), int(areas.sum()), *numbers]


def _diameter(area: float) -> float:
    """The diameter of a disc of this area."""
    return 2 * math.sqrt(area / math.pi)
