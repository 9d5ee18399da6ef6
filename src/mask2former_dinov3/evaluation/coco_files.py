"""Read what is scored: a COCO annotation file as it is, and COCO results for it from any program.

Both are read by the same parser as training data, and all faults of a file are reported together. Ids become numbers
from 1 on. Renumbering annotations matters: COCO's matching takes annotation id 0 for "not matched", so pycocotools
counts the detection of the object with id 0 (the first of every Roboflow export) as wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as rle_codec

from ..data.coco_json import (
    Box,
    list_entries,
    parse_annotations,
    parse_area,
    parse_box,
    parse_entries,
    parse_size,
    read_coco_json,
)
from ..data.faults import FaultReport, quote
from ..data.formats.format_table import read_content
from ..data.layout import Split
from ..data.numbers import number, whole_number
from ..data.rle import whole_mask_areas
from ..data.segmentation import CompressedRle, NoMaskError, check_rle, parse_shape, polygons_to_counts
from ..errors import DatasetError, mismatch
from ..json_files import describe, read_json

Source: TypeAlias = str | PathLike[str]


class ScoredMask(TypedDict):
    """An annotation, or a result (which has a score), as COCO's evaluation takes it.

    image_id, category_id: our numbers, from 1. bbox: [left, top, width, height] in pixels; area in square pixels.
    """

    id: int
    image_id: int
    category_id: int
    segmentation: CompressedRle
    area: float
    bbox: list[float]
    iscrowd: int
    score: NotRequired[float]


@dataclass(frozen=True)
class GroundTruth:
    """Annotations ready to be scored against.

    name: what messages call the file. images, categories: id in the file -> our number, counted from 1 in the order of
    the ids. skipped: ids of images in the file that `image_ids` left out. sizes: our image number -> (height, width).
    names: category names in the order of our numbers. annotations: with our numbers. notes: what the reader of the
    score should know.
    """

    name: str
    images: dict[int, int]
    skipped: frozenset[int]
    sizes: dict[int, tuple[int, int]]
    categories: dict[int, int]
    names: list[str]
    annotations: list[ScoredMask]
    notes: list[str]

    def recall_limit(self, limit: int) -> dict[int, float]:
        """Category number -> highest recall with `limit` detections of it in an image; crowds do not count."""
        counts = Counter((a["image_id"], a["category_id"]) for a in self.annotations if not a["iscrowd"])
        total: Counter[int] = Counter()
        reachable: Counter[int] = Counter()
        for (_, category), count in counts.items():
            total[category] += count
            reachable[category] += min(count, limit)
        return {category: reachable[category] / count for category, count in total.items()}


def read_ground_truth(
    annotations: Source | Mapping[str, object] | Split, image_ids: Collection[int] | None = None
) -> GroundTruth:
    """A COCO annotation file, or its content, or a split of any format; with `image_ids` only these images of it.

    Areas and boxes are the file's own where it has them (COCO bins by the annotated area), else the mask's. Annotations
    without a mask are left out, with a note. Raises DatasetError listing every annotation that cannot be scored.
    """
    if isinstance(annotations, Split):
        name = str(annotations.annotations)
        faults = FaultReport(name)
        content = read_content(annotations, faults)
    else:
        name = "annotations" if isinstance(annotations, Mapping) else str(annotations)
        faults = FaultReport(name)
        content = annotations if isinstance(annotations, Mapping) else read_coco_json(Path(annotations))
    lists = {key: list_entries(content, key, faults) for key in ("images", "categories", "annotations")}
    entries = dict(parse_entries(lists["images"], "images", faults))
    wanted = frozenset(entries if image_ids is None else image_ids)
    for unknown in sorted(wanted - entries.keys()):
        faults.add_error(f"image_ids: {mismatch('ids of images in the file', unknown)}")
    size_of: dict[int, tuple[int, int]] = {}
    for image_id, entry in entries.items():
        try:
            size_of[image_id] = parse_size(entry)
        except DatasetError as error:
            faults.add_error(str(error), image_id)
    images = _number_ids(size_of)
    names = {
        key: str(entry.get("name", key)) for key, entry in parse_entries(lists["categories"], "categories", faults)
    }
    categories = _number_ids(names)
    found: list[_Candidate] = []
    without_mask = 0
    for one in parse_annotations(lists["annotations"], images, categories, wanted, faults):
        try:
            mask = _parse_mask(one.segmentation, size_of[one.image_id])
        except NoMaskError:
            without_mask += 1
        except DatasetError as error:
            faults.add_error(str(error), one.image_id, one.id)
        else:
            where = images[one.image_id], categories[one.category_id]
            found.append(_Candidate((one.image_id, one.id, ""), *where, mask, one.area, one.box, one.iscrowd))
    kept = _measure(found, faults)
    return GroundTruth(
        name=name,
        images={key: number for key, number in images.items() if key in wanted},
        skipped=frozenset(images) - wanted,
        sizes={images[key]: size for key, size in size_of.items() if key in wanted},
        categories=categories,
        names=_make_names_unique(names, categories, {entry["category_id"] for entry in kept}),
        annotations=kept,
        notes=[f"{without_mask} annotations of {name} have no mask and are not scored"] if without_mask else [],
    )


def read_results(predictions: Source | Iterable[Mapping[str, object]], truth: GroundTruth) -> list[ScoredMask]:
    """COCO results (a file or a list) with the numbers of `truth`, in their order.

    Needed keys: image_id, category_id, segmentation (polygons or either kind of RLE), score. Boxes are taken from the
    masks; as in pycocotools, a file whose first entry has a "bbox" is binned into small, medium and large by the
    boxes' area, others by the masks'. Results for images that `truth` leaves out are ignored. Raises DatasetError
    listing every entry that cannot be scored.
    """
    if isinstance(predictions, str | PathLike):
        path = Path(predictions)
        content, name = read_json(path, "COCO results (a JSON list of objects)", raises=DatasetError), str(path)
    else:
        content, name = predictions, "predictions"
    if isinstance(content, Mapping | str) or not isinstance(content, Iterable):
        raise DatasetError(f"{name}: {mismatch('COCO results (a list of objects)', describe(content))}")
    entries: list[object] = list(content)
    faults = FaultReport(name)
    with_boxes = bool(entries) and isinstance(entries[0], Mapping) and _has_box(entries[0])
    found: list[_Candidate] = []
    for index, entry in enumerate(entries):
        try:
            candidate = _parse_result(entry, f"entry {index}: ", truth, with_boxes)
        except DatasetError as error:
            faults.add_error(f"entry {index}: {error}")
        else:
            found += [] if candidate is None else [candidate]
    return _measure(found, faults)


class _Candidate(NamedTuple):
    """A parsed annotation or result whose mask is not yet measured.

    where: image id, annotation id, and the beginning of the reason, for faults. area, box: None for those of the mask.
    """

    where: tuple[int | None, int | None, str]
    image: int
    category: int
    mask: CompressedRle
    area: float | None
    box: Box | None
    iscrowd: bool
    score: float | None = None


def _parse_result(entry: object, where: str, truth: GroundTruth, with_boxes: bool) -> _Candidate | None:
    """An entry of a results file; None for a result of an image that is left out. Raises DatasetError."""
    if not isinstance(entry, Mapping):
        raise DatasetError(mismatch("an object", quote(entry)))
    missing = [key for key in ("image_id", "category_id", "segmentation", "score") if key not in entry]
    if missing:
        advice = "only masks can be scored, not boxes alone" if missing == ["segmentation"] else ""
        raise DatasetError(
            mismatch("image_id, category_id, segmentation and score", f"no {', '.join(missing)}", advice)
        )
    image_id, category_id = whole_number(entry["image_id"]), whole_number(entry["category_id"])
    if image_id in truth.skipped:
        return None
    if image_id is None or image_id not in truth.images:
        raise DatasetError(f"image_id: {mismatch(f'the id of an image in {truth.name}', quote(entry['image_id']))}")
    if category_id is None or category_id not in truth.categories:
        got = quote(entry["category_id"])
        raise DatasetError(f"category_id: {mismatch(f'the id of a category in {truth.name}', got)}")
    score = number(entry["score"])
    if score is None or not math.isfinite(score):
        raise DatasetError(f"score: {mismatch('a finite number', quote(entry['score']))}")
    image, category = truth.images[image_id], truth.categories[category_id]
    mask = _parse_mask(entry["segmentation"], truth.sizes[image])
    box = parse_box(entry) if with_boxes else None
    area = None if box is None else box[2] * box[3]
    if with_boxes and entry.keys() >= {"area", "id", "iscrowd"}:
        area = parse_area(entry)  # pycocotools' loadRes was here: it adds the masks' areas and boxes to such a list
    return _Candidate((None, None, where), image, category, mask, area, box, False, score)


def _has_box(entry: Mapping[str, object]) -> bool:
    """Whether a result has a box; a malformed one is reported when the entry is parsed."""
    try:
        return parse_box(entry) is not None
    except DatasetError:
        return True


def _parse_mask(value: object, size: tuple[int, int]) -> CompressedRle:
    """A segmentation as compressed RLE of `size` (height, width); compressed counts are not looked into."""
    shape = parse_shape(value, *size)
    if isinstance(shape, list):
        return CompressedRle(size=list(size), counts=polygons_to_counts(shape, *size))
    return shape


def _measure(candidates: Sequence[_Candidate], faults: FaultReport) -> list[ScoredMask]:
    """The candidates with ids from 1, area, box and crowd flag. Raises DatasetError with all faults of the file."""
    areas = _measure_areas(candidates, faults)
    faults.raise_errors()
    masks = [one.mask for one in candidates]
    boxes = np.asarray(rle_codec.toBbox(masks) if masks else []).reshape(-1, 4).tolist()  # (N, 4)
    measured: list[ScoredMask] = []
    for position, (one, area, box) in enumerate(zip(candidates, areas.tolist(), boxes, strict=True), start=1):
        scored = ScoredMask(
            id=position,
            image_id=one.image,
            category_id=one.category,
            segmentation=one.mask,
            area=float(area) if one.area is None else one.area,
            bbox=box if one.box is None else list(one.box),
            iscrowd=int(one.iscrowd),
        )
        if one.score is not None:
            scored["score"] = one.score
        measured.append(scored)
    return measured


def _measure_areas(candidates: Sequence[_Candidate], faults: FaultReport) -> npt.NDArray[np.int64]:
    """Pixels of every mask, (N,); RLEs that do not cover their image are added to the faults."""
    try:
        return whole_mask_areas(
            [one.mask["counts"] for one in candidates], [math.prod(one.mask["size"]) for one in candidates]
        )
    except DatasetError:
        for one in candidates:  # one by one, to report which and why
            try:
                check_rle(one.mask)
            except DatasetError as error:
                image_id, annotation_id, where = one.where
                faults.add_error(f"{where}{error}", image_id, annotation_id)
        assert faults.faults
        return np.zeros(len(candidates), dtype=np.int64)


def _number_ids(ids: Iterable[int]) -> dict[int, int]:
    """Id -> number from 1, in the order of the ids: pycocotools breaks ties of score by the order of image ids."""
    return {key: number for number, key in enumerate(sorted(ids), start=1)}


def _make_names_unique(names: dict[int, str], categories: dict[int, int], used: set[int]) -> list[str]:
    """Category names in the order of our numbers, different from each other: they become keys.

    A shared name stays with the only class that has instances (Roboflow writes its project as category 0, sometimes
    under the name of the real class); the others get their id behind it.
    """
    shared = Counter(names.values())
    shared_and_used = Counter(names[key] for key, number in categories.items() if number in used)
    return [
        name if shared[name] == 1 or (number in used and shared_and_used[name] == 1) else f"{name} (id {key})"
        for key, number in categories.items()
        for name in [names[key]]
    ]
