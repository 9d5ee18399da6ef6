"""Read folders of label maps: images whose pixel values number the objects, or one bitmap for each object.

| layout | image | map |
|---|---|---|
| maps | images/a/1.jpg | masks/a/1.png: 0 is background, every other value one object |
| maps with classes | images/1.jpg | masks/CLASS/1.png: the objects of one class |
| beside the image | 1.png, or 1_img.png | 1_masks.png, 1_mask.png, 1_label.png, 1_cp_masks.png |
| one file an object | ID/images/1.png | ID/masks/*.png: every pixel that is not 0 |

The folder `masks` may also be called label_maps, instance_masks, labels, annotations and others (`_MASK_FOLDERS`). Each
layout may lie in folders train, valid and test, or (the first two) in images/train and masks/train. Without folders of
classes there is one class, `object`. Values are taken as stored: 8, 16 or 32 bits, or the indices of a palette.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import DatasetError, mismatch
from ..faults import FaultReport, count_of
from ..images import name_errors
from ..stored_blocks import check_last_row
from .folders import SPLIT_FOLDERS, by_stem, files_under, image_files, look_into, split_folders
from .mask_codes import codes_of_labels
from .source_content import ContentBuilder, Format, Part, relative_name

ONLY_CLASS = "object"
_MASK_FOLDERS = (
    *("masks", "mask", "label_maps", "labelmaps", "instance_maps", "instance_masks", "instances", "labels"),
    *("annotations", "gt", "ground_truth"),
)
_AROUND = 0.95  # of the border of a map, which a background covers
_PROBED = 20  # maps, and values of each, that are looked at for objects in pieces
_SUFFIXES = frozenset({".png", ".tif", ".tiff"})
_BESIDE = re.compile(r"(.+?)_(?:instance_|inst_|cp_)?(?:masks?|labels?|label_map|instances)$", re.IGNORECASE)
_INTEGER_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N"})


def find_label_maps(root: Path) -> dict[str, Part]:
    """The splits that a folder holds in one of the layouts at the top.

    Raises DatasetError for a split whose folder of maps is there, and empty, beside splits with maps.
    """
    if not root.is_dir():
        return {}
    folders = split_folders(root)
    parts = {name: part for name, folder in folders.items() if (part := _find_layout(folder)) is not None}
    for name in folders.keys() - parts.keys() if parts else ():
        for masks in (folders[name] / one for one in _MASK_FOLDERS):
            if (folders[name] / "images").is_dir() and masks.is_dir():
                advice = "write them, or remove the folder: then the images of this split have no annotations"
                raise DatasetError(f"{masks}: {mismatch('label maps (PNG or TIFF)', 'none', advice)}")
    if parts or (whole := _find_pair(root)) is None:
        return parts
    masks, images = whole.annotations, whole.images
    inside = {
        split: Part(masks / name, images / name, "maps")
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if (masks / name).is_dir() and (images / name).is_dir()
    }
    return inside or {"train": whole}


def read_label_maps(part: Part, report: FaultReport) -> Mapping[str, object]:
    """The content of one split. Raises DatasetError for a folder without images."""
    builder = ContentBuilder(report)
    pairs = {"objects": _pair_objects, "beside": _pair_beside, "maps": _pair_maps}[part.subset](part, builder)
    values: set[frozenset[int]] = set()
    empty = maps = 0
    frames: Counter[int] = Counter()
    pieces: list[int] = []
    for pair in pairs:
        added = builder.add_image_file(pair.image, part.images)
        for path, name in pair.maps:
            place = relative_name(path, part.annotations)
            try:
                labels = read_labels(path)
            except DatasetError as error:
                builder.add("error", "unreadable label map", place, str(error).removeprefix(f"{path}: "))
                continue
            if added is None:
                continue
            if labels.shape != added[1:]:
                expected = f"{added[1]} x {added[2]} pixels (height x width) as its image"
                got = f"{labels.shape[0]} x {labels.shape[1]}"
                builder.add("error", "label map of another size", place, mismatch(expected, got))
                continue
            found = _add_objects(labels, added[0], builder.category(name), place, part.subset == "objects", builder)
            pieces += _count_pieces(labels, found) if maps < _PROBED and part.subset != "objects" else []
            frames.update({value for value in (_frame_value(labels),) if value and part.subset != "objects"})
            maps += 1
            empty += not found
            values.add(found)
    _report_values(values - {frozenset()}, maps, empty, part.subset, builder)
    _report_frames(frames, maps, builder)
    if len(pieces) > 1 and sum(count > 1 for count in pieces) > len(pieces) / 2:
        reason = (
            f"most values of the first {min(maps, _PROBED)} label maps are in several pieces, {max(pieces)} at most: "
            "each value is read as one object; if values are classes, the maps say nothing about single objects"
        )
        builder.add("warning", "objects in pieces", "", reason)
    if not builder.images and not report.faults:
        raise DatasetError(f"{part.annotations}: {mismatch('images with label maps', 'none')}")
    return builder.content()


LABEL_MAPS = Format(
    "label-maps",
    "images/ and masks/ with PNG or TIFF files, or <id>/images and <id>/masks",
    find_label_maps,
    read_label_maps,
    True,
)


def read_labels(path: Path) -> npt.NDArray[np.integer]:
    """The values (H, W) of a label map as they are stored. Raises DatasetError for pixels that number nothing."""
    with name_errors(path), Image.open(path) as image:
        if image.format == "JPEG":
            raise DatasetError(mismatch("a label map without losses", "JPEG, which changes values", "save it as PNG"))
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise DatasetError(mismatch("a label map of one page", f"{frames} pages"))
        check_last_row(image, path)
        if image.mode in _INTEGER_MODES:
            labels = np.asarray(image)
            labels = labels.astype(np.uint8) if labels.dtype == bool else labels
        elif image.mode in ("RGB", "RGBA", "LA"):
            channels = np.asarray(image)[..., : 1 if image.mode == "LA" else 3]
            if (channels != channels[..., :1]).any():
                advice = "save it with one channel, whose values number the objects"
                raise DatasetError(mismatch("a label map of one channel", "colours", advice))
            labels = channels[..., 0]
        else:
            raise DatasetError(mismatch("a label map of whole numbers", f"Pillow mode {image.mode!r}"))
        if labels.dtype.kind == "i" and labels.min() < 0:
            raise DatasetError(mismatch("values of 0 and more", int(labels.min()), "0 is background"))
        return labels


class _Pair(NamedTuple):
    image: Path
    maps: list[tuple[Path, str]]  # file, class


def _find_layout(folder: Path) -> Part | None:
    if (folder / "images").is_dir():
        return _find_pair(folder)
    listed, folders = look_into(folder)
    if any((one / "images").is_dir() and (one / "masks").is_dir() for one in folders[:_PROBED]):
        return Part(folder, folder, "objects")
    files = [path for path in listed if path.suffix.lower() in _SUFFIXES]
    stems = {path.stem for path in listed}
    found = [match[1] for path in files if (match := _BESIDE.fullmatch(path.stem))]
    return Part(folder, folder, "beside") if any({name, f"{name}_img"} & stems for name in found) else None


def _find_pair(folder: Path) -> Part | None:
    """images/ and the folder of label maps beside it; none without a map that has the name of an image."""
    images = folder / "images"
    if not images.is_dir():
        return None
    for name in _MASK_FOLDERS:
        masks = folder / name
        if masks.is_dir() and next(files_under(masks, _SUFFIXES), None) is not None:
            return Part(masks, images, "maps")
    return None


def _pair_maps(part: Part, builder: ContentBuilder) -> Iterator[_Pair]:
    images = by_stem(image_files(part.images), part.images)
    maps = by_stem(files_under(part.annotations, _SUFFIXES), part.annotations)
    of_image: dict[str, list[tuple[Path, str]]] = {}
    for stem, paths in maps.items():
        target, name = _match(stem, images)
        if target is None:
            builder.add("error", "label map without an image", stem, mismatch(f"an image {stem} in images", "none"))
            continue
        of_image.setdefault(target, []).extend((path, name) for path in paths)
    yield from _pairs(images, of_image, builder)


def _match(stem: str, images: Mapping[str, list[Path]]) -> tuple[str | None, str]:
    """The image of a label map and its class: the same path, or the path below a folder of the class."""
    plain = match[1] if (match := _BESIDE.fullmatch(stem)) else stem
    for name in (stem, plain):
        if name in images:
            return name, ONLY_CLASS
    for name in (stem, plain):
        folder, _, rest = name.partition("/")
        if rest in images:
            return rest, folder
    return None, ""


def _pair_beside(part: Part, builder: ContentBuilder) -> Iterator[_Pair]:
    files = by_stem(image_files(part.images), part.images)
    maps = {stem: match[1] for stem in files if (match := _BESIDE.fullmatch(stem))}
    images = {stem.removesuffix("_img"): paths for stem, paths in files.items() if stem not in maps}
    of_image: dict[str, list[tuple[Path, str]]] = {}
    for stem, target in maps.items():
        if target in images:
            of_image.setdefault(target, []).extend((path, ONLY_CLASS) for path in files[stem])
        else:
            builder.add("error", "label map without an image", stem, mismatch(f"an image {target} beside it", "none"))
    yield from _pairs(images, of_image, builder)


def _pairs(
    images: Mapping[str, list[Path]], of_image: Mapping[str, list[tuple[Path, str]]], builder: ContentBuilder
) -> Iterator[_Pair]:
    """Images with their maps; classes are numbered by name."""
    for name in sorted({name for maps in of_image.values() for _, name in maps}):
        builder.category(name)
    for stem, paths in images.items():
        found = of_image.get(stem, [])
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            builder.add("error", "two images of one name", stem, mismatch("one image of this name", names))
        elif not found:
            builder.add("warning", "image without a label map", stem, "left out: no label map of this name")
        else:
            yield _Pair(paths[0], found)


def _pair_objects(part: Part, builder: ContentBuilder) -> Iterator[_Pair]:
    builder.category(ONLY_CLASS)
    for folder in sorted(path for path in part.annotations.iterdir() if path.is_dir()):
        if folder.name.startswith(".") or not (folder / "images").is_dir():
            continue
        images = list(image_files(folder / "images"))
        if len(images) != 1:
            expected = "one image in images"
            builder.add("error", "not one image", folder.name, mismatch(expected, count_of(len(images), "image")))
        elif not (folder / "masks").is_dir():
            builder.add("warning", "image without masks", folder.name, "left out: no folder masks")
        else:
            yield _Pair(images[0], [(path, ONLY_CLASS) for path in files_under(folder / "masks", _SUFFIXES)])


def _add_objects(
    labels: npt.NDArray[np.integer], image_id: int, category: int, place: str, whole: bool, builder: ContentBuilder
) -> frozenset[int]:
    """Add the objects of a map (whole: its one object); returns the values that it has."""
    values = frozenset(np.unique(labels).tolist()) - {0}
    if whole:
        labels = (labels != 0).astype(np.uint8)
        if not values:
            builder.add("warning", "empty mask", place, "left out: no pixel of an object")
    for value, code in codes_of_labels(labels):
        builder.add_annotation(image_id, category, place if whole else f"{place}: object {value}", segmentation=code)
    return values


def _frame_value(labels: npt.NDArray[np.integer]) -> int:
    """The value of nearly the whole border of a map that covers most of it; 0 where there is none but 0."""
    border = np.concatenate((labels[0], labels[-1], labels[:, 0], labels[:, -1]))
    values, counts = np.unique(border, return_counts=True)
    value = values[counts.argmax()]
    around = counts.max() >= _AROUND * border.size and (labels == value).mean() > 0.5
    return int(value) if around and (labels != value).any() else 0


def _report_frames(frames: Counter[int], maps: int, builder: ContentBuilder) -> None:
    """Say where a value other than 0 looks like the background: maps are read with 0 as the background."""
    value, count = frames.most_common(1)[0] if frames else (0, 0)
    if count > maps / 2:
        reason = (
            f"in {count} of {maps} label maps the value {value} covers the border and most of the picture, and is read "
            "as one object: 0 is background; if this value is, write it as 0"
        )
        builder.add("warning", "background that is not 0", "", reason)


def _count_pieces(labels: npt.NDArray[np.integer], values: frozenset[int]) -> list[int]:
    """The number of connected pieces of some of the values of a map."""
    chosen = sorted(values)[:_PROBED]
    return [cv2.connectedComponents((labels == value).astype(np.uint8))[0] - 1 for value in chosen]


def _report_values(values: set[frozenset[int]], maps: int, empty: int, subset: str, builder: ContentBuilder) -> None:
    """Say where maps look like something else: bitmaps of all objects, or objects with soft edges."""
    if subset == "objects":
        if any(len(one) > 1 for one in values):
            reason = "masks with more than one value besides 0: every pixel that is not 0 is part of the object"
            builder.add("note", "soft masks", "", reason)
        return
    if len(values) == 1 and len(only := next(iter(values))) == 1 and maps - empty > 1:
        value = next(iter(only))
        reason = (
            f"all {maps - empty} label maps have the one value {value}: each is read as one object; if they are "
            "bitmaps of all objects, number the objects 1, 2, 3, …"
        )
        builder.add("warning", "one value in all label maps", "", reason)
    if empty:
        builder.add("note", "empty label maps", "", f"{count_of(empty, 'label map')} without an object")
