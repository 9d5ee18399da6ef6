"""Read data sets of Hugging Face's `datasets`: on disk, as Parquet or image folders, or from the hub.

| columns | objects |
|---|---|
| image, objects (a list of objects, or an object of lists) | polygons, masks or run-length codes; classes |
| image, annotation: an image of several channels | red is the class, green the number of the object |
| image, annotation: an image of one channel | every value but 0 is one object |

The second is what the example of transformers takes (examples/pytorch/instance-segmentation).
Names of classes are those of a ClassLabel, of the texts themselves, or of the column `semantic_class_to_id`. In label
maps, pixels whose object is 0 belong to none (so `do_reduce_labels` changes nothing). Images that exist only inside the
data set are kept as files in the cache of `datasets`; nothing is written beside the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...atomic_files import write_bytes
from ...errors import DatasetError, mismatch
from ...extras import require
from ..faults import FaultReport, quote
from ..images import decode_image
from ..numbers import number, whole_number
from .folders import SPLIT_FOLDERS, split_folders
from .mask_codes import MaskCode, code_of_mask, codes_of_labels
from .source_content import ContentBuilder, Format, Part

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_MASK_KEYS = ("segmentation", "segmentations", "mask", "masks", "polygon", "polygons", "rle", "segmentation_mask")
_CLASS_KEYS = ("category", "category_id", "label", "class", "categories", "labels", "category_name", "class_name")
_MAP_COLUMNS = (
    "annotation",
    "annotations",
    "label_map",
    "instance_map",
    "instances",
    "mask",
    "masks",
    "label",
    "labels",
)
_OBJECT_COLUMNS = ("objects", "annotations", "instances", "annotation")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_ENDINGS = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"RIFF": ".webp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
    b"BM": ".bmp",
}


def find_datasets(root: Path) -> dict[str, Part]:
    """The splits of a data set saved by `save_to_disk`, of a folder of Parquet files or of images with metadata."""
    if not root.is_dir():
        return {}
    folders = [root, *split_folders(root).values()]
    saved = (root / "dataset_dict.json").is_file() or all(
        (root / name).is_file() for name in ("dataset_info.json", "state.json")
    )
    metadata = any((folder / name).is_file() for folder in folders for name in _METADATA)
    parquet = any(next(folder.glob("*.parquet"), None) for folder in (root, root / "data", *folders))
    return find_hub_dataset(root) if saved or metadata or parquet else {}


def find_hub_dataset(name: Path) -> dict[str, Part]:
    """The splits of a data set on disk or on the hub (USER/NAME). Raises DatasetError where it cannot be loaded."""
    found = _load(name)
    parts: dict[str, Part] = {}
    for split, names in SPLIT_FOLDERS.items():
        key = next((key for one in names for key in found if str(key).lower() == one), None)
        if key is not None:
            parts[split] = Part(name, _image_folder(name), str(key))
    if not parts:
        parts["train"] = Part(name, _image_folder(name), str(next(iter(found))))
    return parts


def read_datasets(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of one split; all faults of all rows are reported."""
    import datasets

    rows = _load(part.annotations)[part.subset]
    columns = _find_columns(part, rows)
    builder = ContentBuilder(report)
    names = _class_names(rows, columns)
    rows = rows.cast_column(columns.image, datasets.Image(decode=False))
    inside = 0
    for index, row in enumerate(rows):
        place = f"{part.subset}[{index}]"
        value = row[columns.image]
        path = _image_path(value, part, index, builder)
        if path is None:
            builder.add("error", "row without an image", place, mismatch("an image", "none"))
            continue
        inside += path.parent == part.images
        added = builder.add_image_file(path, part.images)
        if added is None:
            continue
        target = row[columns.objects or columns.label_map]
        if columns.objects:
            _add_objects(target, added, place, names, builder)
        else:
            _add_label_map(target, added, place, names, builder)
    if inside:
        builder.add(
            "note", "images kept as files", "", f"{inside} images of the data set are kept as files in {part.images}"
        )
    return _with_class_ids(builder, names)


DATASETS = Format(
    "datasets", "dataset_dict.json, Parquet files, or images with metadata.jsonl", find_datasets, read_datasets
)


class _Columns(NamedTuple):
    image: str
    objects: str
    label_map: str


class _Names:
    """Classes as the data have them: numbers, or texts. ids: number or text -> id of the category that is written."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self.known = dict(known)
        self.used: dict[int, str] = {}
        self.texts: dict[str, int] = {}

    def id_of(self, value: object) -> int:
        """The category of a class. Raises DatasetError for a number without a name where there are names."""
        if isinstance(value, str) and whole_number(value) is None:
            by_name = {name: key for key, name in self.known.items()}
            if value in by_name:
                return by_name[value]
            if self.known:
                raise DatasetError(f"class: {mismatch(f'one of {quote(sorted(by_name))}', quote(value))}")
            return self.texts.setdefault(value, len(self.texts))
        key = whole_number(value)
        if key is None or (self.known and key not in self.known):
            expected = f"one of the classes {quote(self.known)}" if self.known else "a class"
            raise DatasetError(f"class: {mismatch(expected, quote(value))}")
        self.used[key] = self.known.get(key, f"class {key}")
        return key


def _load(name: Path) -> DatasetDict:
    """The data set with its splits. Raises DatasetError where `datasets` cannot load it."""
    require("datasets", f"{name}, a data set of Hugging Face,", "datasets")
    import datasets

    saved = (name / "dataset_dict.json").is_file() or (name / "state.json").is_file()
    shown = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    try:
        found = datasets.load_from_disk(str(name)) if saved else datasets.load_dataset(str(name))
    except Exception as error:  # of Arrow, of fsspec, of the hub, of pandas …
        reason = " ".join(str(error).split())
        raise DatasetError(f"{name}: {mismatch('a data set that datasets loads', reason)}") from error
    finally:
        if shown:
            datasets.utils.logging.enable_progress_bar()
    return datasets.DatasetDict({"train": found}) if isinstance(found, datasets.Dataset) else found


def _image_folder(name: Path) -> Path:
    """The folder for images that exist only inside the data set; one for each data set."""
    import datasets

    key = hashlib.sha256(str(name.resolve() if name.exists() else name).encode()).hexdigest()[:16]
    return Path(datasets.config.HF_DATASETS_CACHE) / "mask2former_dinov3" / f"{name.name}-{key}"


def _find_columns(part: Part, rows: Dataset) -> _Columns:
    """The columns of images and objects. Raises DatasetError that names the columns where there are none."""
    import datasets

    images = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    image = "image" if "image" in images else next((name for name in images if name not in _MAP_COLUMNS), "")
    maps = [name for name in _MAP_COLUMNS if name in images and name != image]
    objects = [name for name in _OBJECT_COLUMNS if name in rows.features and name not in images]
    if not image or not (maps or objects):
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in rows.features.items())
        expected = "a column image, and one called objects, or one of label maps called annotation"
        raise DatasetError(f"{part.annotations}: {mismatch(expected, columns)}")
    return _Columns(image, objects[0] if objects else "", maps[0] if maps else "")


def _class_names(rows: Dataset, columns: _Columns) -> _Names:
    """The names of the classes, where the data set has them."""
    if "semantic_class_to_id" in rows.features and len(rows):
        value = rows[0]["semantic_class_to_id"]
        value = json.loads(value) if isinstance(value, str) else value
        return _Names({int(key): name for name, key in value.items() if key is not None})
    for feature in _class_features(rows.features.get(columns.objects)) if columns.objects else ():
        return _Names(dict(enumerate(feature)))
    return _Names({})


def _class_features(feature: object) -> Iterator[list[str]]:
    """The names of the ClassLabel of the objects, through lists and objects of lists."""
    inner = getattr(feature, "feature", feature)
    if isinstance(inner, list):
        inner = inner[0]
    for key in _CLASS_KEYS:
        one = inner.get(key) if isinstance(inner, dict) else None
        names = getattr(getattr(one, "feature", one), "names", None)
        if names:
            yield list(names)


def _image_path(value: object, part: Part, index: int, builder: ContentBuilder) -> Path | None:
    """The file of an image: its own, else a copy of its bytes in the image folder of the part."""
    if not isinstance(value, Mapping):
        return None
    path, data = value.get("path"), value.get("bytes")
    if data is None:
        return Path(path) if isinstance(path, str) else None
    digest = hashlib.sha256(data).hexdigest()[:16]
    ending = next((suffix for magic, suffix in _ENDINGS.items() if data.startswith(magic)), ".png")
    file = part.images / f"{part.subset}-{index:06d}-{digest}{ending}"
    if not file.is_file():
        try:
            decode_image(data, f"{part.subset}[{index}]")
        except DatasetError as error:
            builder.add("error", "unreadable image", "", str(error))
            return None
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, data)
    return file


def _add_objects(
    value: object, image: tuple[int, int, int], place: str, names: _Names, builder: ContentBuilder
) -> None:
    for position, entry in enumerate(_entries(value)):
        where = f"{place}.objects[{position}]"
        key = next((key for key in _CLASS_KEYS if entry.get(key) is not None), None)
        mask = next((entry[key] for key in _MASK_KEYS if entry.get(key) is not None), None)
        try:
            category = 0 if key is None and not names.known else names.id_of(None if key is None else entry[key])
            segmentation = None if mask is None else _parse_mask(mask, *image[1:])
        except DatasetError as error:
            builder.add("error", "malformed object", where, str(error))
            continue
        if key is None:
            names.used[0] = "object"
        extra = {name: entry[name] for name in ("bbox", "iscrowd") if entry.get(name) is not None}
        if mask is not None and segmentation is None:
            builder.add("warning", "empty mask", where, "left out: covers no pixel of the image")
        elif segmentation is None:
            builder.add_annotation(image[0], category, where, **extra)
        else:
            builder.add_annotation(image[0], category, where, segmentation=segmentation, **extra)


def _entries(value: object) -> Iterable[Mapping[str, object]]:
    """The objects of a row: a list of objects, or an object of lists."""
    if isinstance(value, Mapping):
        lists = {key: column for key, column in value.items() if isinstance(column, Sequence | np.ndarray)}
        for index in range(max((len(column) for column in lists.values()), default=0)):
            yield {key: column[index] for key, column in lists.items() if index < len(column)}
    elif isinstance(value, Sequence):
        yield from (entry for entry in value if isinstance(entry, Mapping))


def _parse_mask(value: object, height: int, width: int) -> list[list[float]] | MaskCode | Mapping[str, object] | None:
    """A mask as COCO writes it: of polygons, of a run-length code, of an image or an array. Raises DatasetError."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise DatasetError(f"mask: {mismatch('JSON', quote(value))}") from error
    if isinstance(value, Mapping):
        return value
    if isinstance(value, Image.Image):
        pixels = np.asarray(value)
        value = pixels if pixels.ndim == 2 else pixels[..., :3].max(axis=2)
    if (
        isinstance(value, Sequence)
        and len(value) == height
        and all(isinstance(r, Sequence) and len(r) == width for r in value)
    ):
        value = np.array(value)
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape == (height, width):
        return code_of_mask(value)
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] != 2:
        expected = f"{height} x {width} pixels (height x width) as the image"
        raise DatasetError(f"mask: {mismatch(expected, f'{value.shape[0]} x {value.shape[1]}')}")
    if not isinstance(value, Sequence | np.ndarray):
        raise DatasetError(f"mask: {mismatch('polygons, a run-length code or an image', quote(value))}")
    return _parse_polygons(value)


def _parse_polygons(value: Sequence[object] | npt.NDArray[np.generic]) -> list[list[float]]:
    """Polygon parts, of [x, y, x, y, …] or [[x, y], …], alone or in a list. What they cover is checked later."""
    plain: list[Any] = value.tolist() if isinstance(value, np.ndarray) else list(value)
    if all(number(one) is not None for one in plain):
        return [plain]
    lists = [one.tolist() if isinstance(one, np.ndarray) else one for one in plain]
    if all(isinstance(one, list) and len(one) == 2 and number(one[0]) is not None for one in lists):
        return [[side for point in lists for side in point]]
    parts: list[list[float]] = []
    for one in lists:
        if not isinstance(one, list):
            raise DatasetError(f"polygon: {mismatch('[x, y, x, y, …] or [[x, y], …]', quote(one))}")
        pairs = bool(one) and all(isinstance(point, list) for point in one)
        parts.append([side for point in one for side in point] if pairs else one)
    return parts


def _add_label_map(
    value: object, image: tuple[int, int, int], place: str, names: _Names, builder: ContentBuilder
) -> None:
    """Add the objects of an annotation image: red is the class, green the object; of one channel, the object alone."""
    if not isinstance(value, Image.Image):
        builder.add("error", "row without a label map", place, mismatch("an annotation image", "none"))
        return
    pixels = np.asarray(value)
    if pixels.shape[:2] != image[1:]:
        expected = f"{image[1]} x {image[2]} pixels (height x width) as the image"
        got = f"{pixels.shape[0]} x {pixels.shape[1]}"
        builder.add("error", "label map of another size", place, mismatch(expected, got))
        return
    if pixels.ndim == 2 or value.mode == "P":
        names.used[1] = "object"
        for object_number, code in codes_of_labels(pixels.astype(np.int64)):
            builder.add_annotation(image[0], 1, f"{place}: object {object_number}", segmentation=code)
        return
    kinds, objects = pixels[..., 0].astype(np.int64), pixels[..., 1].astype(np.int64)
    if (pixels[..., :1] == pixels[..., 1:3]).all() and kinds.any():
        advice = "save the objects' numbers in one channel, or the class in red and the object in green"
        builder.add("error", "three equal channels", place, mismatch("red: class, green: object", "grey", advice))
        return
    for both, code in codes_of_labels(np.where(objects == 0, 0, kinds * 65536 + objects)):
        where = f"{place}: object {both % 65536}"
        try:
            builder.add_annotation(image[0], names.id_of(both // 65536), where, segmentation=code)
        except DatasetError as error:
            builder.add("error", "unknown class", where, str(error))


def _with_class_ids(builder: ContentBuilder, names: _Names) -> dict[str, object]:
    """The content with the data's own class numbers as ids."""
    content = builder.content()
    found = {**names.used, **names.known, **{key: name for name, key in names.texts.items()}}
    content["categories"] = [{"id": key, "name": found[key]} for key in sorted(found)]
    return content
