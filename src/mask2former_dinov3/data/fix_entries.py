"""Correct the entries of one COCO file: images, categories, annotations. The content that was read is not changed.

Only what is certain is changed; the rest goes to the log. An entry without a fault is taken over as it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import DatasetError
from ..read_options import AS_STORED, ReadOptions
from .coco_json import Box, parse_area, parse_box, parse_iscrowd, parse_size
from .fix_log import FixLog
from .fix_masks import (
    Relation,
    SeenMasks,
    area_fits,
    clean_segmentation,
    clipped_box,
    explain_box,
    outlines_favour_mask,
    pixel_area,
    same_box,
)
from .images import decode_image, read_image
from .numbers import number, whole_number
from .segmentation import (
    EmptyMaskError,
    NoMaskError,
    Segmentation,
    parse_segmentation,
    segmentation_box,
)

_Entry = dict[str, object]
_FAVOURED = 0.9  # share of the looked-at masks whose outlines must lie on edges of the image
_LOOKED_AT = 40  # masks per relation
MISSING, UNREADABLE = "missing", "unreadable"


class _Box(NamedTuple):
    """A box that could be that of the mask moved: decided for all of a relation together."""

    entry: _Entry
    image_id: int
    relation: Relation
    segmentation: Segmentation


@dataclass
class FileFixer:
    """Corrects one file. paths: image id -> path; suspects: ids of the images to look at, the others are sound.

    options: how images are read.
    """

    content: Mapping[str, object]
    paths: Mapping[int, Path]
    suspects: frozenset[int]
    options: ReadOptions = AS_STORED
    log: FixLog = field(default_factory=FixLog)
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)  # (height, width) of the sound images
    gone: set[int] = field(default_factory=set)  # ids of the images that are dropped
    _listed: set[int] = field(default_factory=set)  # ids of all images of the file, also of faulty ones
    _boxes: dict[str, list[_Box]] = field(default_factory=lambda: defaultdict(list))
    _of_image: dict[int, list[_Entry]] = field(default_factory=lambda: defaultdict(list))

    def fix(self) -> dict[str, object]:
        """The corrected content; what was changed and left is in `log`."""
        lists = {name: self.content.get(name) for name in ("images", "categories", "annotations")}
        entries = {name: value if isinstance(value, list) else [] for name, value in lists.items()}
        for one in entries["annotations"]:
            image_id = whole_number(one.get("image_id")) if isinstance(one, dict) else None
            if image_id is not None:
                self._of_image[image_id].append(one)
        ids = [whole_number(one.get("id")) for one in entries["images"] if isinstance(one, dict)]
        self._listed = {one for one in ids if one is not None}
        images = self._fix_images(entries["images"])
        categories = self._fix_categories(entries["categories"], entries["annotations"])
        annotations = self._fix_annotations(entries["annotations"], {whole_number(one.get("id")) for one in categories})
        self._decide_boxes()
        return {**self.content, "images": images, "categories": categories, "annotations": annotations}

    def _fix_images(self, entries: Sequence[object]) -> list[_Entry]:
        kept: list[_Entry] = []
        first: dict[int, _Entry] = {}
        found = {image_id: _look_at(self.paths.get(image_id), self.options) for image_id in sorted(self.suspects)}
        if found and all(state == MISSING for state in found.values()) and len(found) == len(entries) > 1:
            self.log.left["every image is missing: the image folder is probably another one"] = [(None, None)]
            found = {}
        for entry in entries:
            image_id = whole_number(entry.get("id")) if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or image_id is None:
                self.log.leave("an entry of images without an id", image_id)
                kept += [entry] if isinstance(entry, dict) else []
                continue
            if image_id in first:
                if entry == first[image_id]:
                    self.log.change("image entry that repeats another removed", image_id)
                else:
                    self.log.leave("one id for two images", image_id)
                    kept.append(entry)
                continue
            first[image_id] = entry
            fixed = self._fix_image(entry, image_id, found.get(image_id))
            if fixed is None:
                self.gone.add(image_id)
            else:
                kept.append(dict(fixed))
        return kept

    def _fix_image(self, entry: _Entry, image_id: int, found: tuple[int, int] | str | None) -> _Entry | None:
        """The image's entry with the size of its file; None where there is no file to train on."""
        if isinstance(found, str):
            self.log.change(f"image removed with its annotations, its file is {found}", image_id)
            return None
        try:
            stated = parse_size(entry)
        except DatasetError:
            stated = None
        if found is None or stated == found:
            if stated is not None:
                self.sizes[image_id] = stated
            return entry
        if not self._masks_agree(image_id, stated, found):
            self.log.leave(
                "size of the image differs from its file's, and the masks do not say which is right", image_id
            )
            if stated is not None:
                self.sizes[image_id] = stated
            return entry
        self.log.change("height and width taken from the image file", image_id)
        self.sizes[image_id] = found
        return {**entry, "height": found[0], "width": found[1]}

    def _masks_agree(self, image_id: int, stated: tuple[int, int] | None, stored: tuple[int, int]) -> bool:
        """Whether the masks of an image were made at the size of its file, rather than at the stated one.

        All must fit into the file's size. Where a size is stated, one must also contradict it: an RLE of the file's
        size, or a vertex beyond the stated size. A stated size with height and width exchanged is never certain.
        """
        if stated is not None and stated == stored[::-1]:
            return False
        speaks = stated is None or not self._of_image.get(image_id)
        for entry in self._of_image.get(image_id, []):
            value, _ = clean_segmentation(entry.get("segmentation"))
            if isinstance(value, Mapping):
                size = value.get("size")
                sides = [whole_number(side) for side in size] if isinstance(size, list) else []
                if sides != list(stored):
                    return False
                speaks = True
            elif isinstance(value, list):
                flat = [number(side) for part in value if isinstance(part, list) for side in part]
                xs, ys = ([one for one in flat[start::2] if one is not None] for start in (0, 1))
                if xs and ys and (max(xs) > stored[1] + 1 or max(ys) > stored[0] + 1):
                    return False
                beyond = stated is not None and bool(xs and ys) and (max(xs) > stated[1] + 1 or max(ys) > stated[0] + 1)
                speaks = speaks or beyond
        return speaks

    def _fix_categories(self, entries: Sequence[object], annotations: Sequence[object]) -> list[_Entry]:
        used = {whole_number(one.get("category_id")) for one in annotations if isinstance(one, dict)}
        kept: list[_Entry] = []
        for entry in entries:
            category_id = whole_number(entry.get("id")) if isinstance(entry, dict) else None
            if not isinstance(entry, dict) or category_id is None:
                self.log.change("category that is not an object with an id removed", None)
            elif entry in kept:
                self.log.change("category that repeats another removed", None)
            elif category_id not in used and entry.get("name") in (None, ""):
                self.log.change("category without a name and without instances removed", None)
            else:
                kept.append(entry)
        return kept

    def _fix_annotations(self, entries: Sequence[object], categories: set[int | None]) -> list[_Entry]:
        kept: list[_Entry] = []
        ids = [whole_number(one.get("id")) for one in entries if isinstance(one, dict)]
        next_id = max((one for one in ids if one is not None), default=0) + 1
        seen: set[int] = set()
        masks = SeenMasks()
        for position, entry in enumerate(entries):
            if not isinstance(entry, dict):
                self.log.change("annotation that is not an object removed", None)
                continue
            image_id, annotation_id = whole_number(entry.get("image_id")), whole_number(entry.get("id"))
            place = image_id, annotation_id
            reason = self._why_useless(entry, image_id, categories)
            fixed = None if reason else self._fix_annotation(entry, image_id, annotation_id, masks)
            if reason:
                self.log.change(reason, *place)
            if fixed is None:
                continue
            if annotation_id is None or annotation_id in seen:
                kind = "annotation without an id of its own gets a new one"
                self.log.change(kind, *place)
                self.log.new_ids[position] = place, next_id
                fixed["id"] = next_id
                next_id += 1
            else:
                seen.add(annotation_id)
            kept.append(fixed)
        return kept

    def _why_useless(self, entry: _Entry, image_id: int | None, categories: set[int | None]) -> str | None:
        """Why an annotation cannot be kept, for its references and its crowd flag; None if it can."""
        if image_id in self.gone:
            return "annotation of a removed image removed"
        if image_id is None or image_id not in self._listed:
            return "annotation of no image removed"
        category_id = whole_number(entry.get("category_id"))
        if category_id is None or category_id not in categories:
            return "annotation of no category removed"
        try:
            parse_iscrowd(entry)
        except DatasetError:
            return "annotation whose iscrowd is neither 0 nor 1 removed"
        return None

    def _fix_annotation(
        self,
        entry: _Entry,
        image_id: int | None,
        annotation_id: int | None,
        masks: SeenMasks,
    ) -> _Entry | None:
        """The annotation with its mask, box and area corrected; None where it has no usable mask or repeats another."""
        size = self.sizes.get(image_id) if image_id is not None else None
        if size is None or image_id is None:
            return dict(entry)  # of an image that is left as it is
        value, changes = clean_segmentation(entry.get("segmentation"))
        try:
            segmentation = parse_segmentation(value, *size)
        except NoMaskError:
            self.log.change("annotation without a mask removed", image_id, annotation_id)
            return None
        except EmptyMaskError:
            self.log.change("annotation whose mask covers no pixel removed", image_id, annotation_id)
            return None
        except DatasetError:
            self.log.change("annotation with a malformed mask removed", image_id, annotation_id)
            return None
        own = clipped_box(segmentation, size)
        key = image_id, whole_number(entry.get("category_id")), parse_iscrowd(entry)
        if masks.repeats(key, segmentation, own, size):
            self.log.change("annotation that repeats another of its image removed", image_id, annotation_id)
            return None
        for kind in changes:
            self.log.change(kind, image_id, annotation_id)
        fixed = {**entry, "segmentation": value} if changes else dict(entry)
        self._fix_box(fixed, image_id, annotation_id, segmentation, own)
        return fixed

    def _fix_box(
        self, entry: _Entry, image_id: int, annotation_id: int | None, segmentation: Segmentation, own: Box
    ) -> None:
        """Correct area and box of an entry in place; a box that the moved mask would have is decided later."""
        size = self.sizes[image_id]
        try:
            box = parse_box(entry)
        except DatasetError:
            box = (0.0, 0.0, 0.0, 0.0)
        if box is not None and not (same_box(box, own) or same_box(box, segmentation_box(segmentation))):
            relation = explain_box(box, own, size)
            if relation.matrix is not None:
                self._boxes[relation.name].append(_Box(entry, image_id, relation, segmentation))
                return
            if relation.loose:
                kind = "box holds its mask and is larger, it may be of a whole object that is partly hidden"
                self.log.leave(kind, image_id, annotation_id)
            else:
                entry["bbox"] = list(own)
                self.log.change("box computed from the mask", image_id, annotation_id)
        self._fix_area(entry, image_id, annotation_id, segmentation)

    def _fix_area(self, entry: _Entry, image_id: int, annotation_id: int | None, segmentation: Segmentation) -> None:
        size = self.sizes[image_id]
        try:
            area = parse_area(entry)
        except DatasetError:
            area = -1.0
        if area is not None and not area_fits(area, segmentation, size):
            entry["area"] = pixel_area(segmentation, size)
            self.log.change("area computed from the mask", image_id, annotation_id)

    def _decide_boxes(self) -> None:
        """Correct the boxes of a relation where the outlines of their masks lie on edges of the image."""
        for name, boxes in self._boxes.items():
            step = -(-len(boxes) // _LOOKED_AT)
            votes: list[bool] = []
            for one in boxes[::step]:
                matrix, path = one.relation.matrix, self.paths.get(one.image_id)
                if matrix is None or path is None:
                    continue
                try:
                    image = read_image(path, self.options.of_image)
                except DatasetError:
                    continue
                if image.shape[:2] == self.sizes[one.image_id]:
                    votes += outlines_favour_mask(image, [(one.segmentation, matrix)])
            certain = bool(votes) and sum(votes) >= _FAVOURED * len(votes)
            for one in boxes:
                annotation_id = whole_number(one.entry.get("id"))
                if certain:
                    one.entry["bbox"] = list(clipped_box(one.segmentation, self.sizes[one.image_id]))
                    self.log.change("box computed from the mask", one.image_id, annotation_id)
                    self._fix_area(one.entry, one.image_id, annotation_id, one.segmentation)
                else:
                    kind = f"box fits the mask {name}, and the image does not show which of the two is right"
                    self.log.leave(kind, one.image_id, annotation_id)


def _look_at(path: Path | None, options: ReadOptions) -> tuple[int, int] | str:
    """(height, width) of an image file as decoded; MISSING or UNREADABLE otherwise."""
    if path is None or not path.is_file():
        return MISSING
    try:
        image = decode_image(path.read_bytes(), path, options.of_image)
    except (DatasetError, OSError):
        return UNREADABLE
    return image.shape[0], image.shape[1]
