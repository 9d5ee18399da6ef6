"""Find what a data set holds twice: objects in a picture, pictures in a split, pictures and their siblings in two.

Duplicates within a split count twice in training and lower AP in evaluation; between splits they raise it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import faster_coco_eval.core.mask as mask_api
import numpy as np
import numpy.typing as npt

from .array_types import Floats
from .coco import CocoData
from .faults import Fault, FaultReport, Place, Severity
from .locate import absolute_path
from .mask_arrays import MASKS_AT_ONCE, MaskArrays
from .segmentation import CompressedRle, Segmentation, polygons_to_counts
from .siblings import sibling_keys

OBJECT_TWICE = "object twice"
TWO_CLASSES = "mask of two classes"
PICTURE_TWICE = "picture twice"
PICTURE_IN_TWO_SPLITS = "picture in two splits"
SIBLING_IN_TWO_SPLITS = "siblings in two splits"

SAME_MASK = 0.95
"""IoU from which two masks of a picture are the same object: objects beside or upon each other overlap less."""

_NEIGHBOURS = 64  # masks of a picture compared with each: those whose left edges are nearest
_MEASURED = 20_000  # pairs whose masks are compared in pixels; of further ones, box and area

Pairs = npt.NDArray[np.intp]
"""(M, 2) positions of two masks of the same picture, the earlier first."""


def near_pairs(boxes: Floats, image_of: npt.NDArray[np.int64]) -> Pairs:
    """Pairs whose boxes (N, 4; left, top, right, bottom) are nearly equal: those that may be the same mask."""
    order = np.lexsort((boxes[:, 0], image_of))
    image = image_of[order]
    starts = np.unique(np.searchsorted(image, image[::MASKS_AT_ONCE]))  # of whole pictures, for little memory
    pieces = [_near_in_order(boxes, image_of, some) for some in np.split(order, starts[1:])]
    pairs = np.sort(np.concatenate(pieces), axis=1)
    return np.asarray(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))])


def _near_in_order(boxes: Floats, image_of: npt.NDArray[np.int64], order: npt.NDArray[np.intp]) -> Pairs:
    """As `near_pairs`, of the masks at `order` (n,), which is sorted by picture and left edge; in any order."""
    ordered, image = boxes[order], image_of[order]
    slack = 1 + (1 - SAME_MASK) * (ordered[:, 2:] - ordered[:, :2])[:, [0, 1, 0, 1]]  # (n, 4) at each edge
    found = []
    first = np.arange(len(order))
    for offset in range(1, _NEIGHBOURS + 1):
        first = first[first + offset < len(order)]
        # The left edges ascend: who is too far from this neighbour is too far from the next ones.
        near = ordered[first + offset, 0] - ordered[first, 0] <= slack[first, 0]
        first = first[near & (image[first + offset] == image[first])]
        if not len(first):
            break
        close = first[(np.abs(ordered[first + offset] - ordered[first]) <= slack[first]).all(axis=1)]
        found.append(np.stack([order[close], order[close + offset]], axis=1))
    return np.concatenate(found) if found else np.zeros((0, 2), dtype=np.intp)


def same_masks(
    pairs: Pairs, areas: Floats, mask_of: Callable[[int], Segmentation], size_of: Callable[[int], tuple[int, int]]
) -> Pairs:
    """The pairs whose masks have an IoU of at least SAME_MASK. mask_of, size_of (height, width): by position."""
    areas_of = areas[pairs]
    pairs = pairs[areas_of.min(axis=1) >= (SAME_MASK - 0.1) * areas_of.max(axis=1) - 4]
    measured = 0
    kept = np.ones(len(pairs), dtype=bool)
    for place, (one, other) in enumerate(pairs.tolist()):
        first, second = mask_of(one), mask_of(other)
        if not _are_equal(first, second) and measured < _MEASURED:
            measured += 1
            codes = [_as_rle(mask, *size_of(one)) for mask in (first, second)]
            kept[place] = float(mask_api.iou(codes[:1], codes[1:], [0])[0, 0]) >= SAME_MASK
    return np.asarray(pairs[kept])


def _are_equal(one: Segmentation, other: Segmentation) -> bool:
    """Whether two segmentations are the same numbers."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(np.array_equal, one, other))
    return not isinstance(one, list) and one == other


def _as_rle(mask: Segmentation, height: int, width: int) -> CompressedRle:
    if not isinstance(mask, list):
        return mask
    return CompressedRle(size=[height, width], counts=polygons_to_counts(mask, height, width))


def find_repeated_objects(masks: MaskArrays) -> list[Fault]:
    """A warning with all masks of an earlier object of the same picture and class; a note where the classes differ."""
    report = FaultReport("")
    whole = np.flatnonzero(masks.labels >= 0)  # not what was left out
    pairs = near_pairs(masks.boxes[whole], masks.image_of[whole])
    pairs = same_masks(
        whole[pairs],
        masks.areas,
        masks.segmentation_at,
        lambda index: (int(masks.sizes[index, 0]), int(masks.sizes[index, 1])),
    )
    same_class = masks.labels[pairs[:, 0]] == masks.labels[pairs[:, 1]]
    cases: tuple[tuple[Severity, str, npt.NDArray[np.bool_], str, str], ...] = (
        ("warning", OBJECT_TWICE, same_class, "picture and class", "training counts both, and AP falls: remove one"),
        ("note", TWO_CLASSES, ~same_class, "picture, in another class", "check that both classes are meant"),
    )
    for severity, kind, chosen, where, advice in cases:
        later, first = np.unique(pairs[chosen][:, 1], return_index=True)
        if len(later):
            example = masks.ids[pairs[chosen][first[0]]].tolist()
            reason = (
                f"{len(later)} of {len(whole)} objects have the mask of an earlier one of the same {where} (IoU of at "
                f"least {SAME_MASK}; annotation {example[1]} that of {example[0]}); {advice}"
            )
            report.add_group(severity, kind, masks.places_of(later), reason)
    return report.faults


def compare_pictures(splits: Mapping[str, CocoData | None], keys: Mapping[str, str]) -> dict[str, list[Fault]]:
    """Split -> warnings of pictures that it or an earlier split has as well. keys: absolute path -> digest, if known.

    Two records of the same path within a split are reported where the file is read, not here.
    """
    faults: dict[str, list[Fault]] = {}
    earlier: dict[str, tuple[str, int, str]] = {}  # path or digest -> split, image id, file name
    for name, data in splits.items():
        own: dict[str, tuple[str, int, str]] = {}
        paths: set[str] = set()
        twice: list[tuple[Place, str]] = []
        leaked: dict[str, list[tuple[Place, str]]] = defaultdict(list)
        for image_id, file_name, path_text in _images_of(data):
            path = absolute_path(path_text)
            key = keys.get(path, path)
            if key in earlier:
                other, other_id, _ = earlier[key]
                text = f"{file_name}: the same image as image {other_id} of {other}"
                leaked[other].append(((image_id, None), text))
            elif key in own and path not in paths:
                text = f"{file_name}: the same picture as image {own[key][1]} ({own[key][2]})"
                twice.append(((image_id, None), text))
            own.setdefault(key, (name, image_id, file_name))
            paths.add(path)
        report = FaultReport(name)
        _add(
            report, PICTURE_TWICE, twice, "pictures are in this split under another name as well", "remove one of each"
        )
        for other, found in leaked.items():
            _add(
                report,
                PICTURE_IN_TWO_SPLITS,
                found,
                f"images are the same as images of {other}",
                "scores will be too high",
            )
        faults[name] = report.faults
        earlier = own | earlier
    return faults


def _images_of(data: CocoData | None) -> Iterator[tuple[int, str, str]]:
    """(id, file name, path) of the images of a split."""
    if data is not None:
        yield from zip(data.images.ids, data.images.file_names, data.images.path_texts, strict=True)


def _add(report: FaultReport, kind: str, found: Sequence[tuple[Place, str]], what: str, advice: str) -> None:
    """Add a warning: the text of the only place, or the number of places and the text of the first."""
    if found:
        text = found[0][1] if len(found) == 1 else f"{len(found)} {what}, such as {found[0][1]}"
        report.add_group("warning", kind, [place for place, _ in found], f"{text}; {advice}")


def find_split_siblings(splits: Mapping[str, CocoData | None]) -> dict[str, list[Fault]]:
    """Split -> warnings of images that come from the same picture as images of an earlier split, by their names."""
    images = [(name, image_id, file) for name, data in splits.items() for image_id, file, _ in _images_of(data)]
    files = [file for _, _, file in images]
    groups: dict[str, list[int]] = defaultdict(list)
    for index, (key, file) in enumerate(zip(sibling_keys(files), files, strict=True)):
        if key != file:
            groups[key].append(index)
    found: dict[tuple[str, str], list[tuple[Place, str]]] = defaultdict(list)
    for members in groups.values():
        first_of: dict[str, int] = {}
        if len({files[index] for index in members}) < len(members):
            continue  # both splits number their pictures from the start: equal names mean nothing
        for index in members:
            name, image_id, file = images[index]
            first_of.setdefault(name, index)
            other = next(iter(first_of))
            if other != name:
                text = f"{file} here and {files[first_of[other]]} there"
                found[name, other].append(((image_id, None), text))
    faults: dict[str, list[Fault]] = defaultdict(list)
    for (name, other), places in found.items():
        reason = (
            f"{len(places)} images come, by their names, from the same pictures as images of {other} (copies by an "
            f"exporter or augmentation, or tiles of one picture), such as {places[0][1]}; scores will be too high"
        )
        report = FaultReport(name)
        report.add_group("warning", SIBLING_IN_TWO_SPLITS, [place for place, _ in places], reason)
        faults[name] += report.faults
    return faults
