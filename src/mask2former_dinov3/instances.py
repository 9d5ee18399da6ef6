"""Instances found in one image: a mask in COCO's run-length encoding (RLE), a label and a score for each.

Masks are stored as RLE because a hundred masks of a 20-megapixel photograph take 2 GB as bitmaps, a few kilobytes as
RLE. N instances of one image, H x W its own size.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from faster_coco_eval.core import mask as rle_codec
from numpy.typing import ArrayLike, NDArray

from .data.coco_types import CocoRle
from .data.rle import Window, boxes, compress, run_lengths, runs_window
from .extras import require


def encode_masks(masks: NDArray[np.generic]) -> tuple[CocoRle, ...]:
    """Encode masks (N, H, W), non-zero inside, as N RLEs.

    An array stored in memory as (N, W, H) is encoded without a copy, since RLE runs down the columns.
    """
    count, height, width = masks.shape
    if count == 0 or height * width == 0:
        return tuple(CocoRle(size=[height, width], counts="") for _ in range(count))
    inside = masks if masks.dtype == bool else masks != 0
    columns = np.asfortranarray(inside.transpose(1, 2, 0).view(np.uint8))  # (H, W, N)
    return tuple(CocoRle(size=[height, width], counts=str(rle["counts"], "ascii")) for rle in rle_codec.encode(columns))


def mask_areas(rles: Sequence[CocoRle]) -> NDArray[np.int64]:
    """Area (N,) of each mask in pixels, counted without decoding."""
    if not rles or 0 in rles[0]["size"]:
        return np.zeros(len(rles), dtype=np.int64)
    return np.asarray(rle_codec.area([dict(rle) for rle in rles]), dtype=np.int64)


@dataclass(frozen=True)
class Unreported:
    """What was found in an image, or may be in it, and is not among its instances.

    limit: candidates with a score above the threshold beyond `max_detections`. full: images or tiles in which every
    query of the model is an instance, so that there may be more. copies: instances dropped because they lie in a better
    one. best_score: the highest score, where none is above the threshold; 0 otherwise.
    """

    limit: int = 0
    full: int = 0
    copies: int = 0
    best_score: float = 0.0

    def __add__(self, other: Unreported) -> Unreported:
        """The sum of two parts, such as tiles."""
        best = max(self.best_score, other.best_score)
        return Unreported(self.limit + other.limit, self.full + other.full, self.copies + other.copies, best)


@dataclass(frozen=True, eq=False)
class Instances:
    """N instances of one image of `height` x `width` pixels.

    rles: one mask per instance, of the image's size; masks may overlap. labels (N,) int64: 0..K-1, the model's own
    numbering. scores (N,) float32 in 0..1. categories: (category id, name) of the data set for every label 0..K-1, None
    if unknown. left_out: what is not among them. Labels and scores may be given as lists. Raises ValueError if lengths
    or sizes differ.
    """

    height: int
    width: int
    rles: tuple[CocoRle, ...]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    categories: tuple[tuple[int, str], ...] | None = None
    left_out: Unreported = Unreported()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rles", tuple(self.rles))
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64).reshape(-1))
        object.__setattr__(self, "scores", np.asarray(self.scores, dtype=np.float32).reshape(-1))
        if not len(self.rles) == len(self.labels) == len(self.scores):
            raise ValueError(
                f"Instances: expected one mask, label and score per instance, got {len(self.rles)} masks, "
                f"{len(self.labels)} labels and {len(self.scores)} scores"
            )
        for index, rle in enumerate(self.rles):
            if list(rle["size"]) != [self.height, self.width]:
                raise ValueError(
                    f"Instances: mask {index} is {rle['size'][0]}x{rle['size'][1]} pixels, "
                    f"the image {self.height}x{self.width} (height x width)"
                )
        if self.categories is not None and len(self) and not 0 <= self.labels.min() <= self.labels.max() < self.classes:
            raise ValueError(
                f"Instances: labels must be in 0..{self.classes - 1}, one per category, "
                f"got {self.labels.min()}..{self.labels.max()}"
            )

    @classmethod
    def from_masks(
        cls,
        masks: NDArray[np.generic],
        labels: ArrayLike,
        scores: ArrayLike,
        categories: tuple[tuple[int, str], ...] | None = None,
        left_out: Unreported = Unreported(),
    ) -> Instances:
        """Encode bitmaps (N, H, W), non-zero inside; N may be 0, since the shape still gives the size."""
        _, height, width = masks.shape
        return cls(height, width, encode_masks(masks), np.asarray(labels), np.asarray(scores), categories, left_out)

    @property
    def classes(self) -> int:
        """Number of categories; 0 if they are unknown."""
        return len(self.categories or ())

    @property
    def masks(self) -> NDArray[np.bool_]:
        """Masks (N, H, W) bool, decoded at every call: N*H*W bytes. `mask` decodes a single one."""
        masks = np.zeros((len(self), self.height, self.width), dtype=bool)
        for index in range(len(self)):
            masks[index] = self.mask(index)
        return masks

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Mask (H, W) bool of one instance."""
        rle = self.rles[index]
        if self.height * self.width == 0:
            return np.zeros((self.height, self.width), dtype=bool)
        decoded: NDArray[np.bool_] = rle_codec.decode(dict(rle)).astype(bool)
        return decoded

    def window(self, index: int) -> Window:
        """Decode one mask within its bounding box only, so that the cost does not depend on the image's size."""
        runs = run_lengths(self.rles[index]["counts"].encode())
        return runs_window(runs, self.height) or Window(np.zeros((0, 0), dtype=np.uint8), 0, 0)

    def shrink(self, height: int, width: int) -> Instances:
        """Resize to a smaller image by nearest neighbour; instances that keep no pixel are dropped."""
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(np.int64)
            for new, old in ((height, self.height), (width, self.width))
        )
        places = (columns[:, None] * self.height + rows).ravel()  # column by column, as RLE counts
        kept, runs = [], []
        for index, rle in enumerate(self.rles):
            ends = np.cumsum(run_lengths(rle["counts"].encode()))
            counted = np.diff(np.searchsorted(places, ends), prepend=0)
            if counted[1::2].any():
                kept.append(index)
                runs.append(counted)
        counts = compress(
            np.concatenate([*runs, np.zeros(0, np.int64)]), np.array([len(one) for one in runs], np.int64)
        )
        rles = tuple(CocoRle(size=[height, width], counts=str(one, "ascii")) for one in counts)
        return replace(self[kept], height=height, width=width, rles=rles)

    @property
    def boxes(self) -> NDArray[np.float32]:
        """Boxes (N, 4) float32 around the masks: x0 y0 x1 y1 in pixels; x1 and y1 are exclusive (width = x1 - x0)."""
        if self.height * self.width == 0:
            return np.zeros((len(self), 4), dtype=np.float32)
        return boxes([rle["counts"].encode() for rle in self.rles], self.height).astype(np.float32)

    @property
    def areas(self) -> NDArray[np.int64]:
        """Area (N,) of each mask in pixels, counted without decoding."""
        return mask_areas(self.rles)

    @property
    def names(self) -> list[str]:
        """Class name of each instance; "class 3" for label 3 if the names are unknown."""
        if self.categories is None:
            return [f"class {label}" for label in self.labels]
        return [self.categories[label][1] for label in self.labels]

    @property
    def category_ids(self) -> list[int]:
        """Category id of each instance in the data set; the label if the ids are unknown."""
        if self.categories is None:
            return [int(label) for label in self.labels]
        return [int(self.categories[label][0]) for label in self.labels]

    @property
    def short_scores(self) -> list[float]:
        """Scores as the shortest decimals that give the same float32 when read: 0.9, not 0.89999998."""
        return [float(str(score)) for score in self.scores]

    def __len__(self) -> int:
        return len(self.rles)

    def __getitem__(self, chosen: int | slice | Sequence[int] | NDArray[np.generic]) -> Instances:
        """Select instances: `found[0]`, `found[:5]`, `found[[2, 0]]`, `found[found.scores > 0.5]`.

        Raises IndexError for an index that does not exist, and for a mask of another length.
        """
        if not isinstance(chosen, slice):
            chosen = np.asarray(chosen) if np.size(chosen) else np.zeros(0, dtype=int)
        indices = np.atleast_1d(np.arange(len(self))[chosen])
        return Instances(
            self.height,
            self.width,
            tuple(self.rles[index] for index in indices),
            self.labels[indices],
            self.scores[indices],
            self.categories,
            self.left_out,
        )

    def filter(self, *, min_score: float = 0.0, classes: Collection[str | int] | None = None) -> Instances:
        """The instances with a score of at least `min_score`, of these classes (names or labels; None: of all).

        Raises ValueError for a class that there is not.
        """
        kept = self.scores >= np.float32(min_score)
        if classes is not None:
            known = [name for _, name in self.categories or ()]
            labels = [known.index(one) if one in known else one for one in classes]
            last = len(known) - 1 if self.categories is not None else np.inf
            for one in labels:
                if isinstance(one, str) or not 0 <= one <= last:
                    raise ValueError(f"classes: expected {', '.join(known) or 'labels'}, got {one!r}")
            kept &= np.isin(self.labels, np.array(labels, dtype=np.int64))
        return self[kept]

    @classmethod
    def concatenate(cls, parts: Sequence[Instances]) -> Instances:
        """The instances of all parts, found in one image, in their order; what is left out is added up.

        Raises ValueError for no part, and for parts of other sizes or categories.
        """
        if not parts:
            raise ValueError("Instances: expected at least one part to concatenate, got none")
        first = parts[0]
        for one in parts[1:]:
            if (one.height, one.width, one.categories) != (first.height, first.width, first.categories):
                raise ValueError(
                    f"Instances: expected parts of {first.height}x{first.width} pixels with categories "
                    f"{first.categories}, got {one.height}x{one.width} with {one.categories}"
                )
        return cls(
            first.height,
            first.width,
            tuple(rle for one in parts for rle in one.rles),
            np.concatenate([one.labels for one in parts]),
            np.concatenate([one.scores for one in parts]),
            first.categories,
            sum((one.left_out for one in parts[1:]), first.left_out),
        )

    def __iter__(self) -> Iterator[Instances]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        counts = {name: self.names.count(name) for name in sorted(set(self.names))}
        return f"Instances({len(self)} in {self.height}x{self.width}: {counts})"

    def to_coco(self, image_id: int | str) -> list[dict[str, object]]:
        """COCO results of this image, in this order, with the data set's category ids (labels if they are unknown).

        They have no "bbox": readers compute the box from the mask. Given a box, pycocotools would sort masks into
        small, medium and large by the area of their boxes.
        """
        return [
            {"image_id": image_id, "category_id": category, "segmentation": dict(rle), "score": score}
            for category, rle, score in zip(self.category_ids, self.rles, self.short_scores, strict=True)
        ]

    def to_coco_annotations(self, image_id: int | str, first_id: int = 1) -> list[dict[str, object]]:
        """The annotations of this image in a COCO data set: as `to_coco`, with id, bbox, area and iscrowd.

        Ids count from `first_id`. With `images` and `categories` beside them they are what labelling programs read.
        """
        found = zip(self.to_coco(image_id), self.boxes.tolist(), self.areas.tolist(), strict=True)
        return [
            {"id": number, **result, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "iscrowd": 0}
            for number, (result, (x0, y0, x1, y1), area) in enumerate(found, start=first_id)
        ]

    def to_dataframe(self) -> Any:
        """A `pandas.DataFrame` with a row for each instance: class, label, category_id, score, sizes, box.

        Columns of sizes: area and diameter; of the box: x0, y0, x1, y1.
        Lengths are in pixels, areas in square pixels; the diameter is that of a disc of the same area. Raises
        MissingExtraError without the package pandas.
        """
        require("pandas", "Instances.to_dataframe", "pandas")
        pandas = importlib.import_module("pandas")  # as in `to_supervision`
        areas = self.areas
        columns = {
            "class": np.array(self.names, dtype=object),
            "label": self.labels,
            "category_id": np.array(self.category_ids, dtype=np.int64),
            "score": self.scores,
            "area": areas,
            "diameter": 2 * np.sqrt(areas / np.pi),
            **dict(zip(("x0", "y0", "x1", "y1"), self.boxes.T, strict=True)),
        }
        return pandas.DataFrame(columns)

    def to_supervision(self) -> Any:
        """Convert to `supervision.Detections`: masks, boxes, scores, labels, and names as `data["class_name"]`.

        Raises MissingExtraError without the package supervision.
        """
        require("supervision", "Instances.to_supervision", "supervision")
        # Not an import statement: transformers would require the package for using bundled code.
        supervision = importlib.import_module("supervision")
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )
