"""What a score is made from: a COCO annotation file as it is, and anybody's COCO results for it.

Both are read whole, every fault is listed, and ids of any kind become numbers from 1 on. Renumbering annotations
matters: COCO's matching takes annotation id 0 for "not matched", so that pycocotools counts the detection of the object
with id 0 (the first of every Roboflow export) as wrong.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as rle_codec

from ..data.rle import whole_mask_areas
from ..data.segmentation import FARTHEST_VERTEX, compressed_rle, parse_rle
from ..errors import DatasetError

FAULTS_SHOWN = 20

Id: TypeAlias = int | str
Source: TypeAlias = str | PathLike[str]


@dataclass(frozen=True)
class GroundTruth:
    """Annotations ready to be scored against.

    name: what messages call the file. images, categories: the file's id -> our number, counted from 1 in the order of
    the ids. skipped: ids of images in the file that were left out by `image_ids`. sizes: our image number -> (height,
    width). names: category names in the order of our numbers. annotations: COCO dicts with our numbers and compressed
    RLE. notes: what the reader of the score should know.
    """

    name: str
    images: dict[Id, int]
    skipped: frozenset[Id]
    sizes: dict[int, tuple[int, int]]
    categories: dict[Id, int]
    names: list[str]
    annotations: list[dict[str, Any]]
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


_LISTS = ("images", "categories", "annotations")


def read_ground_truth(annotations: Source | Mapping[str, Any], image_ids: Collection[Id] | None = None) -> GroundTruth:
    """A COCO annotation file, or what it holds, as it is; with `image_ids` only these images of it.

    Areas and boxes are the file's own where it has them (COCO bins by the annotated area), else the mask's. Annotations
    without a mask are left out, with a note. Raises DatasetError listing every annotation that cannot be scored.
    """
    data, name = _load(annotations, "annotations")
    if not isinstance(data, Mapping) or any(not isinstance(data.get(key), list) for key in _LISTS):
        raise DatasetError(f"{name}: expected a COCO annotation file, an object with the lists {', '.join(_LISTS)}")
    faults = _Faults(name)
    images = _numbered(data["images"], "image", faults)
    categories = _numbered(data["categories"], "category", faults)
    wanted = set(images) if image_ids is None else {_as_id(value) for value in image_ids}
    for unknown in sorted(map(str, wanted - set(images))):
        faults.add(f"image {unknown}: to be scored, but not in the file")
    sizes = {}
    for image in data["images"]:
        size = (_number(image, "height"), _number(image, "width"))
        if size[0] is None or size[1] is None or min(size[0], size[1]) < 1:
            faults.add(f"image {image.get('id')}: height and width are needed, got {size}")
        elif _as_id(image.get("id")) in wanted:
            sizes[images[_as_id(image["id"])]] = (int(size[0]), int(size[1]))
    faults.raise_if_any()
    found: list[_Entry] = []
    without_mask = 0
    for annotation in data["annotations"]:
        if not isinstance(annotation, Mapping):
            faults.add(f"annotations: expected objects, got {annotation!r}")
            continue
        image_id, category_id = _as_id(annotation.get("image_id")), _as_id(annotation.get("category_id"))
        if image_id not in images or category_id not in categories:
            what = f"image {image_id}" if image_id not in images else f"category {category_id}"
            faults.add(f"annotation {annotation.get('id')}: {what} is not in the file")
        elif image_id in wanted:
            if not annotation.get("segmentation"):
                without_mask += 1
                continue
            number, category = images[image_id], categories[category_id]
            fields = {"image_id": number, "category_id": category}
            found.append(_Entry(f"annotation {annotation.get('id')}", annotation, fields, sizes[number]))
    kept = _scored(found, faults)
    return GroundTruth(
        name=name,
        images={key: number for key, number in images.items() if key in wanted},
        skipped=frozenset(images) - frozenset(wanted),
        sizes=sizes,
        categories=categories,
        names=_unique_names(data["categories"], categories, {entry["category_id"] for entry in kept}),
        annotations=kept,
        notes=[f"{without_mask} annotations of {name} have no mask and are not scored"] if without_mask else [],
    )


def read_results(predictions: Source | Iterable[Mapping[str, Any]], truth: GroundTruth) -> list[dict[str, Any]]:
    """COCO results (a file or a list) as COCO dicts with the numbers of `truth`, in their order.

    Needed keys: image_id, category_id, segmentation (either kind of RLE, or polygons), score. Boxes are taken from the
    masks; as in pycocotools, a file whose first entry has a "bbox" is binned into small, medium and large by the
    boxes' area, others by the masks'. Results for images left out of `truth` are passed over. Raises DatasetError
    listing every entry that cannot be scored.
    """
    data, name = _load(predictions, "predictions")
    if isinstance(data, Mapping) or not isinstance(data, Iterable):
        raise DatasetError(f"{name}: expected COCO results, a list of objects, got {type(data).__name__}")
    data = list(data)
    faults = _Faults(name)
    with_boxes = bool(data) and isinstance(data[0], Mapping) and _is_box(data[0].get("bbox"))
    found: list[_Entry] = []
    for index, entry in enumerate(data):
        where = f"entry {index}"
        missing = _missing_keys(entry)
        if missing:
            faults.add(f"{where}: {missing}")
            continue
        image_id, category_id = _as_id(entry["image_id"]), _as_id(entry["category_id"])
        if image_id in truth.skipped:
            continue
        if image_id not in truth.images or category_id not in truth.categories:
            what = f"image {image_id}" if image_id not in truth.images else f"category {category_id}"
            faults.add(f"{where}: {what} is not in {truth.name}")
            continue
        score = _number(entry, "score")
        if score is None:
            faults.add(f"{where}: expected a number as score, got {entry['score']!r}")
            continue
        number = truth.images[image_id]
        given = dict(entry) if with_boxes else {"segmentation": entry["segmentation"]}
        # A list that has been through pycocotools' loadRes carries what that worked out from a list without boxes.
        if not {"area", "id", "iscrowd"} <= set(entry):
            given.pop("area", None)
            if with_boxes and _is_box(entry.get("bbox")):
                given["area"] = float(entry["bbox"][2]) * float(entry["bbox"][3])
        given["iscrowd"] = 0
        fields = {"image_id": number, "category_id": truth.categories[category_id], "score": score}
        found.append(_Entry(where, given, fields, truth.sizes[number]))
    return _scored(found, faults)


class _Faults:
    """All faults of one file, for one error."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reasons: list[str] = []

    def add(self, reason: str) -> None:
        self.reasons.append(reason)

    def raise_if_any(self) -> None:
        if self.reasons:
            shown = [f"  {reason}" for reason in self.reasons[:FAULTS_SHOWN]]
            if len(self.reasons) > FAULTS_SHOWN:
                shown.append(f"  and {len(self.reasons) - FAULTS_SHOWN} more")
            count = f"{len(self.reasons)} {'fault' if len(self.reasons) == 1 else 'faults'}"
            raise DatasetError("\n".join([f"{self.name}: {count}, nothing was scored", *shown]))


def _load(source: Any, what: str) -> tuple[Any, str]:
    """A JSON file's content and path, or the thing itself under the name `what`."""
    if not isinstance(source, str | PathLike):
        return source, what
    path = Path(source)
    try:
        return json.loads(path.read_text(encoding="utf-8-sig")), str(path)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file; expected COCO {what} (JSON)") from error
    except IsADirectoryError as error:
        raise DatasetError(f"{path}: is a folder; expected a file with COCO {what} (JSON)") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DatasetError(f"{path}: expected COCO {what}, but the file is not valid JSON: {error}") from error


def _as_id(value: Any) -> Id:
    """Ids as tools write them: 7, 7.0 and "7" are the same id; other text stays text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return int(str(value))
    except ValueError:
        return str(value)


def _number(entry: Mapping[str, Any], key: str) -> float | None:
    """A finite number, also one written as text; None where there is none."""
    try:
        value = float(entry[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _numbered(entries: list[Any], what: str, faults: _Faults) -> dict[Id, int]:
    """Id -> number from 1 on, in the order of the ids: pycocotools breaks ties of score by the order of image ids."""
    if any(not isinstance(entry, Mapping) or "id" not in entry for entry in entries):
        faults.add(f"every {what} needs an id")
        faults.raise_if_any()
    counts = Counter(_as_id(entry["id"]) for entry in entries)
    for key, count in counts.items():
        if count > 1:
            faults.add(f"{what} {key}: {count} entries have this id")
    ordered = sorted(counts, key=lambda key: (isinstance(key, str), key))
    return {key: number for number, key in enumerate(ordered, start=1)}


def _unique_names(entries: list[dict[str, Any]], categories: dict[Id, int], used: set[int]) -> list[str]:
    """Names in the order of our numbers; they are keys later, so a shared one goes to the only class with instances
    (Roboflow writes its project as category 0, sometimes under the name of the real class), others get their id."""
    names = {categories[_as_id(entry["id"])]: str(entry.get("name", entry["id"])) for entry in entries}
    shared = Counter(names.values())
    shared_and_used = Counter(names[number] for number in used)
    return [
        name if shared[name] == 1 or (number in used and shared_and_used[name] == 1) else f"{name} (id {key})"
        for key, number in categories.items()
        for name in [names[number]]
    ]


def _missing_keys(entry: Any) -> str | None:
    if not isinstance(entry, Mapping):
        return f"expected an object, got {type(entry).__name__}"
    missing = [key for key in ("image_id", "category_id", "segmentation", "score") if key not in entry]
    if missing == ["segmentation"]:
        return "has no segmentation; only masks can be scored here, not boxes"
    return f"has no {', '.join(missing)}" if missing else None


def _is_box(box: Any) -> bool:
    try:
        return len(box) == 4 and all(math.isfinite(float(value)) for value in box)
    except (TypeError, ValueError):
        return False


@dataclass(frozen=True)
class _Entry:
    """An annotation or a result on its way: where it is found, what is to be scored, our fields for it, its image."""

    where: str
    given: Mapping[str, Any]
    fields: dict[str, Any]
    size: tuple[int, int]


def _scored(entries: list[_Entry], faults: _Faults) -> list[dict[str, Any]]:
    """The fields of every entry with id, segmentation (compressed RLE), area, bbox and iscrowd. Raises every fault."""
    readable: list[tuple[_Entry, Any]] = []
    for entry in entries:
        try:
            readable.append((entry, _as_rle(entry.given["segmentation"], entry.size)))
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            faults.add(_unreadable(entry, error))
    areas = _areas(readable, faults)
    faults.raise_if_any()
    boxes = np.asarray(rle_codec.toBbox([rle for _, rle in readable]) if readable else []).reshape(-1, 4)
    scored: list[dict[str, Any]] = []
    for (entry, rle), mask_area, mask_box in zip(readable, areas.tolist(), boxes.tolist(), strict=True):
        area = _number(entry.given, "area")
        measures = {
            "area": float(mask_area) if area is None else area,
            "bbox": [float(value) for value in entry.given["bbox"]] if _is_box(entry.given.get("bbox")) else mask_box,
            "iscrowd": int(bool(_number(entry.given, "iscrowd"))),
        }
        scored.append({"id": len(scored) + 1, **entry.fields, "segmentation": rle, **measures})
    return scored


def _areas(readable: list[tuple[_Entry, Any]], faults: _Faults) -> npt.NDArray[np.int64]:
    """Pixels of every mask, (N,); RLEs that do not cover their image are added to the faults."""
    try:
        pixels = [math.prod(entry.size) for entry, _ in readable]
        return whole_mask_areas([rle["counts"] for _, rle in readable], pixels)
    except ValueError:
        for entry, rle in readable:  # one by one, to say which and why
            try:
                parse_rle(rle, *entry.size)
            except ValueError as error:
                faults.add(_unreadable(entry, error))
        assert faults.reasons
        return np.zeros(len(readable), dtype=np.int64)


def _unreadable(entry: _Entry, error: Exception) -> str:
    return f"{entry.where}: the segmentation cannot be read ({error})"


def _as_rle(segmentation: Any, size: tuple[int, int]) -> dict[str, Any]:
    """Polygons (parts united) or either kind of RLE as compressed RLE of `size`, by COCO's own code."""
    height, width = size
    if isinstance(segmentation, Mapping):
        return dict(compressed_rle(segmentation, height, width))
    if not isinstance(segmentation, list | tuple) or isinstance(segmentation[0], str | bytes):
        raise ValueError(f"expected polygons or RLE, got {type(segmentation).__name__}")
    parts = [segmentation] if not hasattr(segmentation[0], "__len__") else segmentation
    polygons = [[float(value) for value in part] for part in parts]
    # COCO's code would fill the memory with the edge of such a polygon.
    if any(not abs(value) <= FARTHEST_VERTEX for polygon in polygons for value in polygon):
        raise ValueError(f"a polygon with a coordinate that is not a number, or beyond {FARTHEST_VERTEX:.0f} pixels")
    # Under three points there is no area, and COCO's code would take four numbers for a box.
    polygons = [polygon for polygon in polygons if len(polygon) >= 6]
    if not polygons:
        raise ValueError("no polygon with three points or more")
    return dict(rle_codec.merge(rle_codec.frPyObjects(polygons, height, width)))
