"""Read what is scored: a COCO annotation file as it is, and COCO results for it from any program.

Both are read by the same parser as training data, and all faults of a file are reported together. Ids become numbers
from 1 on. Renumbering annotations matters: COCO's matching takes annotation id 0 for "not matched", so pycocotools
counts the detection of the object with id 0 (the first of every Roboflow export) as wrong.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as rle_codec

from ..data.coco_json import (
    AnnotationEntry,
    Box,
    BrokenIds,
    ImageEntry,
    list_sections,
    parse_annotations,
    parse_area,
    parse_box,
    parse_categories,
    parse_images,
    read_coco_json,
)
from ..data.faults import FaultReport, Place, count_of, quote
from ..data.formats.format_table import read_content
from ..data.layout import Split, name_of_data
from ..data.numbers import number, whole_number
from ..data.placeholders import drop_placeholders, project_category, used_categories
from ..data.read_rules import ReadRules, note_dropped
from ..data.rle import whole_mask_areas
from ..data.segmentation import (
    MALFORMED_MASK,
    CompressedRle,
    EmptyMaskError,
    Segmentation,
    StrayParts,
    check_rle,
    parse_shape,
    polygons_to_counts,
)
from ..errors import DatasetError, mismatch
from ..json_files import describe
from .result_ids import describe_wrong_ids

Source: TypeAlias = str | PathLike[str]
_WRONG_IDS_LISTED = 5  # results with ids that the annotations do not have; more of them are one error


class ScoredMask(TypedDict):
    """An annotation, or a result (which has a score), as COCO's evaluation takes it.

    image_id, category_id: our numbers, from 1. bbox: [left, top, width, height] in pixels; area in square pixels.
    source_id: of an annotation, its id in the file.
    """

    id: int
    image_id: int
    category_id: int
    segmentation: CompressedRle
    area: float
    bbox: list[float]
    iscrowd: int
    score: NotRequired[float]
    source_id: NotRequired[int]


@dataclass(frozen=True)
class GroundTruth:
    """Annotations ready to be scored against.

    name: what messages call the file; data: what cards and config.json call it. images, categories: id in the file ->
    our number, counted from 1 in the order of the ids. skipped: ids of images in the file that are left out, by
    `image_ids` or by `rules`. skipped_categories: ids of unused categories under another's name. sizes: our image
    number -> (height, width). names: category names in the order of our numbers. annotations: with our numbers. listed:
    the file's entries under `images` and `categories`. notes: what the reader of the score should know.
    """

    name: str
    data: str
    images: dict[int, int]
    skipped: frozenset[int]
    skipped_categories: frozenset[int]
    sizes: dict[int, tuple[int, int]]
    categories: dict[int, int]
    names: list[str]
    annotations: list[ScoredMask]
    listed: dict[str, Sequence[object]]
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
    annotations: Source | Mapping[str, object] | Split,
    image_ids: Collection[int] | None = None,
    rules: ReadRules | None = None,
) -> GroundTruth:
    """A COCO annotation file, its content, or a split of any format, read as for training.

    image_ids: only these images of it; None: those of the split, or all. rules: what crowd flags and incomplete images
    mean; None: as for the split, or as in COCO. Areas and boxes are the file's own where it has them (COCO bins by the
    annotated area), else the mask's. Annotations without a mask are left out, with a note; those whose mask covers no
    pixel are objects that nothing can match, as in pycocotools. Raises DatasetError listing all that cannot be scored.
    """
    if isinstance(annotations, Split):
        rules = rules or annotations.rules
        image_ids = annotations.image_ids if image_ids is None else image_ids
    rules, name = rules or ReadRules(), _name_of(annotations)
    faults, broken = FaultReport(name), BrokenIds()
    content = _content_of(annotations, faults)
    sections = list_sections(content, faults)
    names = parse_categories(sections["categories"], faults, broken)
    drop_placeholders(names, used_categories(sections["annotations"]), faults, project_category(sections["categories"]))
    entries = parse_images(sections["images"], faults, broken, named=not isinstance(annotations, Mapping))
    wanted = frozenset(entries if image_ids is None else image_ids)
    for unknown in sorted(wanted - entries.keys()):
        faults.add_error(f"image_ids: {mismatch('ids of images in the file', unknown)}")
    images, categories = _number_ids(entries), _number_ids(names)
    parsed = parse_annotations(sections["annotations"], images, categories, wanted, faults, broken, rules.crowd)
    found: list[_Candidate] = []
    without_mask: list[Place] = []
    for one, mask in _parse_masks(parsed, entries, faults):
        if mask is None:
            without_mask.append((one.image_id, one.id))
            continue
        where = images[one.image_id], categories[one.category_id]
        found.append(_Candidate((one.image_id, one.id, ""), *where, mask, one.area, one.box, one.iscrowd))
    areas = _measure_areas(found, faults)
    faults.group_alike()
    faults.raise_errors()
    empty = [one.where[:2] for one, area in zip(found, areas.tolist(), strict=True) if not area]
    dropped: set[int | None] = set()
    if rules.incomplete_images == "drop":
        dropped = {image_id for image_id, _ in (*without_mask, *empty)}
        note_dropped([image_id for image_id in entries if image_id in dropped], faults)
    kept = [row for row, one in enumerate(found) if one.where[0] not in dropped]
    scored = wanted - dropped
    truth = GroundTruth(
        name=name,
        data=_data_of(annotations, whole=scored >= images.keys()),
        images={key: number for key, number in images.items() if key in scored},
        skipped=frozenset(images) - scored,
        sizes={images[key]: (height, width) for key, (_, height, width) in entries.items() if key in scored},
        categories=categories,
        skipped_categories=_ids_of(sections["categories"]) - categories.keys(),
        names=[names[key] for key in categories],
        annotations=_measure([found[row] for row in kept], areas[kept]),
        listed={key: sections[key] for key in ("images", "categories")},
        notes=[],
    )
    truth.notes.extend(_describe_reading(truth, faults, () if dropped else without_mask, () if dropped else empty))
    return truth


def _content_of(annotations: Source | Mapping[str, object] | Split, faults: FaultReport) -> Mapping[str, object]:
    """The content of what is scored against, in COCO's form. Raises DatasetError if it cannot be read at all."""
    if isinstance(annotations, Mapping):
        return annotations
    return read_content(annotations, faults) if isinstance(annotations, Split) else read_coco_json(Path(annotations))


def _name_of(annotations: Source | Mapping[str, object] | Split) -> str:
    """What messages call it."""
    if isinstance(annotations, Mapping):
        return "annotations"
    return str(annotations.annotations if isinstance(annotations, Split) else annotations)


def _data_of(annotations: Source | Mapping[str, object] | Split, *, whole: bool) -> str:
    """What cards and config.json call it. whole: all images of it count."""
    subset = annotations.subset if isinstance(annotations, Split) else ""
    named = not isinstance(annotations, Mapping)
    name = name_of_data(Path(_name_of(annotations)), subset) if named else "annotations"
    return name if whole else f"part of {name}"


def _parse_masks(
    entries: Iterable[AnnotationEntry], images: Mapping[int, ImageEntry], faults: FaultReport
) -> Iterator[tuple[AnnotationEntry, CompressedRle | None]]:
    """The annotations with their masks, None for one without; a malformed mask is an error in `faults`."""
    strays = StrayParts()
    for one in entries:
        _, height, width = images[one.image_id]
        try:
            shape = parse_shape(one.segmentation, height, width)
        except EmptyMaskError:
            yield one, None
        except DatasetError as error:
            faults.add_error(str(error), one.image_id, one.id, MALFORMED_MASK)
        else:
            strays.count(shape, one.segmentation, (one.image_id, one.id))
            yield one, _compress_shape(shape, height, width)
    strays.report(faults)


def _describe_reading(
    truth: GroundTruth, faults: FaultReport, without_mask: Sequence[Place], empty: Sequence[Place]
) -> Iterator[str]:
    """What was read otherwise than written, as notes on the score."""
    yield from (str(fault) for fault in faults.faults)
    if without_mask:
        yield f"{count_of(len(without_mask), 'annotation')} of {truth.name} without a mask, not scored"
    if empty:
        yield f"{count_of(len(empty), 'mask')} of {truth.name} without a pixel, scored as objects that nothing matches"
    if all(annotation["iscrowd"] for annotation in truth.annotations):
        crowds = count_of(len(truth.annotations), "crowd region")
        yield f"{truth.name}: nothing to score, no object with a mask ({crowds}): AP is undefined"


def _ids_of(entries: Sequence[object]) -> frozenset[int]:
    """The ids of entries that have one."""
    ids = (whole_number(entry.get("id")) for entry in entries if isinstance(entry, Mapping))
    return frozenset(one for one in ids if one is not None)


def read_results(content: Iterable[Mapping[str, object]], truth: GroundTruth, name: str = "") -> list[ScoredMask]:
    """COCO results with the numbers of `truth`, in their order. name: of their file, for messages.

    Needed keys: image_id, category_id, segmentation (polygons or either kind of RLE), score. Boxes are taken from the
    masks; as in pycocotools, results whose first entry has a "bbox" are binned into small, medium and large by the
    boxes' area, others by the masks'. Results for images that `truth` leaves out are ignored. Parts of polygons with
    fewer than 3 points are passed over, with a note in `truth.notes`. Raises DatasetError listing every entry that
    cannot be scored.
    """
    name = name or "predictions"
    if isinstance(content, Mapping | str) or not isinstance(content, Iterable):
        raise DatasetError(f"{name}: {mismatch('COCO results (a list of objects)', describe(content))}")
    entries: list[object] = list(content)
    if entries and not any(isinstance(entry, Mapping) and "score" in entry for entry in entries):
        got = f"{count_of(len(entries), 'entry', 'entries')} without one"
        advice = "are these annotations? Results are what a model predicts"
        raise DatasetError(f"{name}: {mismatch('COCO results with a score', got, advice)}")
    faults, strays = FaultReport(name), StrayParts()
    with_boxes = bool(entries) and isinstance(entries[0], Mapping) and _has_box(entries[0])
    found: list[_Candidate] = []
    wrong = list(_wrong_image_ids(entries, truth))
    if len(wrong) > _WRONG_IDS_LISTED:
        faults.add_error(describe_wrong_ids(wrong, len(entries), truth.images, truth.name))
        faults.raise_errors()
    for index, entry in enumerate(entries):
        try:
            candidate = _parse_result(entry, f"entry {index}: ", truth, with_boxes, strays)
        except DatasetError as error:
            faults.add_error(f"entry {index}: {error}")
        else:
            found += [] if candidate is None else [candidate]
    areas = _measure_areas(found, faults)
    faults.raise_errors()
    strays.report(faults)
    truth.notes.extend(f"{name}: {fault}" for fault in faults.faults)
    return _measure(found, areas)


def _wrong_image_ids(entries: Iterable[object], truth: GroundTruth) -> Iterator[object]:
    """The image ids in results that the annotation file does not have."""
    for entry in entries:
        if isinstance(entry, Mapping) and "image_id" in entry:
            image_id = whole_number(entry["image_id"])
            if image_id not in truth.images and image_id not in truth.skipped:
                yield entry["image_id"]


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


def _parse_result(
    entry: object, where: str, truth: GroundTruth, with_boxes: bool, strays: StrayParts
) -> _Candidate | None:
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
    if image_id in truth.skipped or category_id in truth.skipped_categories:
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
    shape = parse_shape(entry["segmentation"], *truth.sizes[image])
    strays.count(shape, entry["segmentation"], (image_id, None))
    mask = _compress_shape(shape, *truth.sizes[image])
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


def _compress_shape(shape: Segmentation, height: int, width: int) -> CompressedRle:
    """A parsed segmentation as compressed RLE of height x width pixels; compressed counts are not looked into."""
    if isinstance(shape, list):
        return CompressedRle(size=[height, width], counts=polygons_to_counts(shape, height, width))
    return shape


def _measure(candidates: Sequence[_Candidate], areas: npt.NDArray[np.int64]) -> list[ScoredMask]:
    """The candidates with ids from 1, area, box and crowd flag. areas (N,): the pixels of their masks."""
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
        if (source_id := one.where[1]) is not None:
            scored["source_id"] = source_id
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
                faults.add_error(f"{where}{error}", image_id, annotation_id, "" if where else MALFORMED_MASK)
        assert faults.faults
        return np.zeros(len(candidates), dtype=np.int64)


def _number_ids(ids: Iterable[int]) -> dict[int, int]:
    """Id -> number from 1, in the order of the ids: pycocotools breaks ties of score by the order of image ids."""
    return {key: number for number, key in enumerate(sorted(ids), start=1)}
