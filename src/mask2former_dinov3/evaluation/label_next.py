"""Which unlabelled images to label next: those on which the model contradicts itself, and those unlike the others.

Rarity is k-centre greedy (Sener and Savarese, Active Learning for Convolutional Neural Networks: A Core-Set Approach,
arXiv:1708.00489, algorithm 1): the next image is the one farthest from the nearest image that is chosen already, in the
features of the model's backbone. Disagreement is that of `flip_agreement`.

N images, D features.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..atomic_files import check_writable, write_json, write_text
from ..data.faults import plain_cell
from ..data.fitting import fit_image
from ..data.image_folders import PassedOver
from ..data.images import check_channel_count, read_image
from ..errors import CheckpointError, DatasetError, OptionError, mismatch
from ..inference.files.find_images import FoundImage, escape_unprintable, find_images
from ..inference.image_processing import Prepared
from ..inference.predictor import Predictor, check_extra_images
from ..inference.prefetch import prefetch
from ..inference.settings import InferenceSettings
from ..inference.tiles.part_reader import ImageReader
from ..inference.views import MIRRORED, undo_turn
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model.backbone import tapped_maps
from ..progress_bar import ProgressBar
from .flip_agreement import FlipAgreement, flip_agreement

Features = NDArray[np.float32]
RANKING_JSON, RANKING_CSV = "ranking.json", "ranking.csv"


@dataclass(frozen=True)
class RankingSettings:
    """How images are ranked.

    number: of images that are chosen. rarity_weight: 0 (disagreement alone) to 1 (rarity alone). threshold: minimum
    score of the instances that are compared. batch_size: images per forward pass. Raises OptionError for a value out of
    range.
    """

    number: int = 100
    rarity_weight: float = 0.5
    threshold: float = 0.3
    batch_size: int = 1

    def __post_init__(self) -> None:
        if self.number < 1:
            raise OptionError("number", "a whole number above 0", self.number)
        if not 0 <= self.rarity_weight <= 1:
            raise OptionError("rarity_weight", "a number from 0 to 1", self.rarity_weight)
        InferenceSettings(threshold=self.threshold, batch_size=self.batch_size)


class RankedImage(NamedTuple):
    """A chosen image. distance: to the nearest image chosen before it, or labelled, None for the first of all.

    nearest: that image. value: what it was chosen by, 0 to 1.
    """

    rank: int
    file: str
    value: float
    agreement: FlipAgreement
    distance: float | None
    nearest: str | None
    reason: str


@dataclass
class ImageRanking:
    """The chosen images, best first. images: number that was looked at; failed: (input, reason)."""

    chosen: list[RankedImage] = field(default_factory=list)
    images: int = 0
    labelled: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)

    def text(self, shown: int = 10) -> str:
        """The first of the list, and the counts, for people."""
        lines = [escape_unprintable(f"{one.rank:4}  {one.file}: {one.reason}") for one in self.chosen[:shown]]
        if len(self.chosen) > shown:
            lines.append(f"      and {len(self.chosen) - shown} more")
        lines.append(f"{len(self.chosen)} of {self.images} images chosen")
        if passed_over := self.passed_over.text():
            lines.append(escape_unprintable(passed_over))
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines.extend(f"  {escape_unprintable(reason)}" for _, reason in self.failed)
        return "\n".join(lines)


def rank_images(
    model: str | Path,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    labelled: Sequence[str | Path] = (),
    settings: RankingSettings | None = None,
    device: str | None = None,
    progress: bool = False,
) -> ImageRanking:
    """Rank the images of files, folders and patterns, and write ranking.json and ranking.csv to `output`.

    labelled: images that have labels already; what is like them is not rare. The same images and model on the same
    machine give the same list. Memory: two batches of images, and D numbers for every image.
    An image that cannot be read is listed in `failed`. Raises OptionError when no image is found, CheckpointError for
    an .onnx file, which has no backbone of its own.
    """
    settings = RankingSettings() if settings is None else settings
    check_writable(output)
    ranking = ImageRanking()
    files = _find(inputs, "inputs", output, ranking)
    known = _find(labelled, "labelled", output, ranking) if labelled else []
    predictor = Predictor.from_pretrained(model, device)
    if not isinstance(predictor.model, Mask2FormerDinov3ForInstanceSegmentation):
        raise CheckpointError(f"{model}: {mismatch('a model folder or hub id', 'an .onnx file')}")
    check_extra_images(predictor.processor)
    reader = _Reader(predictor, predictor.model, settings, ranking, progress)
    seen = list(reader.read(known, "labelled", mirror=False))
    found = list(reader.read(files, "rank", mirror=True))
    ranking.images, ranking.labelled = len(found), len(seen)
    if found:
        ranking.chosen = _choose(found, seen, settings)
    _write(output, ranking, settings, model)
    return ranking


def choose_centres(
    features: Features, disagreement: NDArray[np.float64], number: int, weight: float, labelled: Features
) -> Iterator[tuple[int, float, float, int]]:
    """Choose images one after the other: (index, value, distance, nearest).

    features (N, D), labelled (M, D): unit vectors. disagreement (N,), 0 to 1. Each step takes the image with the
    largest `weight * rarity + (1 - weight) * disagreement`, of equal ones the first. Rarity is the distance to the
    nearest image that is labelled or chosen, divided by the largest such distance of the first step that has one.
    nearest: index of that image, those of `labelled` from N on; -1 and an infinite distance for a first image without
    labelled ones.
    """
    count = len(features)
    distance = np.full(count, np.inf)
    nearest = np.full(count, -1)
    for place, centre in enumerate(labelled):
        _move_nearer(features, centre, count + place, distance, nearest)
    unit = float(distance.max(initial=0.0)) if len(labelled) else 0.0
    free = np.ones(count, dtype=bool)
    for _ in range(min(number, count)):
        rarity = np.ones(count) if np.isinf(distance).all() else distance / (unit or 1.0)
        value = weight * np.minimum(rarity, 1.0) + (1 - weight) * disagreement
        best = int(np.argmax(np.where(free, value, -1.0)))
        yield best, float(value[best]), float(distance[best]), int(nearest[best])
        free[best] = False
        _move_nearer(features, features[best], best, distance, nearest)
        unit = unit or float(distance.max())


def _move_nearer(
    features: Features, centre: Features, index: int, distance: NDArray[np.float64], nearest: NDArray[np.int64]
) -> None:
    """Shorten the distances to the nearest centre by a new one, in place."""
    own = np.linalg.norm(features - centre, axis=1)
    nearer = own < distance
    distance[nearer] = own[nearer]
    nearest[nearer] = index


class _Seen(NamedTuple):
    """What is kept of an image. features (D,): a unit vector."""

    name: str
    features: Features
    agreement: FlipAgreement


class _Loaded(NamedTuple):
    """An image and its mirrored copy, as `Predictor.ready` gives them, or the error of a file that cannot be read.

    view: the whole image on the canvas, for its features; fitted into it where the image is cut into tiles.
    """

    file: FoundImage
    sides: tuple[Prepared | ImageReader, ...] = ()
    view: Prepared | None = None
    error: DatasetError | None = None


@dataclass(frozen=True)
class _Reader:
    """Reads images and runs the model on them."""

    predictor: Predictor
    model: Mask2FormerDinov3ForInstanceSegmentation
    settings: RankingSettings
    ranking: ImageRanking
    show: bool

    def read(self, files: Sequence[FoundImage], title: str, *, mirror: bool) -> Iterator[_Seen]:
        """What is kept of every image that can be read, in order. mirror: compare it with its mirrored copy, too."""
        processor = self.predictor.processor
        limits = InferenceSettings(batch_size=self.settings.batch_size)

        def load(file: FoundImage) -> _Loaded:
            try:
                image = read_image(file.path, processor.read_options)
                check_channel_count(str(file.path), processor.num_channels, image.shape[2])
            except DatasetError as error:
                return _Loaded(file, error=error)
            sides = [image, np.ascontiguousarray(image[:, ::-1])] if mirror else [image]
            ready = tuple(self.predictor.ready(ImageReader.of(side), limits) for side in sides)
            if isinstance(ready[0], Prepared):
                return _Loaded(file, ready, ready[0])
            fitted = fit_image(image, processor.size["height"], processor.size["width"])
            return _Loaded(file, ready, processor.on_canvas(fitted, (image.shape[0], image.shape[1])))

        with (
            ProgressBar(total=len(files), desc=title, unit="image", disable=not self.show, leave=False) as bar,
            closing(prefetch(files, load, ahead=self.settings.batch_size)) as loaded,
        ):
            while batch := list(islice(loaded, self.settings.batch_size)):
                bar.update(len(batch))
                for one in batch:
                    if one.error is not None:
                        self.ranking.failed.append((str(one.file.path), str(one.error)))
                usable = [one for one in batch if one.error is None]
                if usable:
                    yield from self._look_at(usable, mirror)

    @torch.no_grad()
    def _look_at(self, batch: Sequence[_Loaded], mirror: bool) -> Iterator[_Seen]:
        features = self._features([one.view for one in batch if one.view is not None])
        agreements = [FlipAgreement(0, 0, 0, 0.0)] * len(batch)
        if mirror:
            settings = InferenceSettings(self.settings.threshold, batch_size=self.settings.batch_size)
            found, mirrored = (
                [found for _, found in self.predictor.predict_each(((0, one.sides[side]) for one in batch), settings)]
                for side in (0, 1)
            )
            agreements = [
                flip_agreement(one, undo_turn(other, MIRRORED)) for one, other in zip(found, mirrored, strict=True)
            ]
        for one, vector, agreement in zip(batch, features, agreements, strict=True):
            yield _Seen(one.file.file_name, vector, agreement)

    def _features(self, images: Sequence[Prepared]) -> Features:
        """Unit vectors (B, D): the backbone's last tapped map, averaged over the real pixels."""
        inputs = self.predictor.processor.collate(images).to(self.model.device)
        last = tapped_maps(self.model.backbone, self.model.config, inputs["pixel_values"])[-1].float()
        height, width = last.shape[-2:]
        share: Tensor = functional.adaptive_avg_pool2d(inputs["pixel_mask"][:, None].float(), (height, width))
        pooled = (last * share).sum((2, 3)) / share.sum((2, 3)).clamp(min=1e-6)
        vectors: Features = functional.normalize(pooled, dim=1).cpu().numpy()
        return vectors


def _find(inputs: Sequence[str | Path], option: str, output: Path, ranking: ImageRanking) -> list[FoundImage]:
    """The images of inputs. Raises OptionError where there is none."""
    files = find_images(inputs, output, ranking.failed, ranking.passed_over)
    if not files:
        raise OptionError(option, "at least one image", "none:" + "".join(f"\n  {why}" for _, why in ranking.failed))
    return files


def _choose(found: Sequence[_Seen], labelled: Sequence[_Seen], settings: RankingSettings) -> list[RankedImage]:
    """The chosen images with the reason of each."""
    features = np.stack([one.features for one in found])
    known = np.stack([one.features for one in labelled]) if labelled else np.zeros((0, features.shape[1]), np.float32)
    disagreement = np.array([one.agreement.disagreement for one in found])
    names = [*(one.name for one in found), *(one.name for one in labelled)]
    chosen = []
    steps = choose_centres(features, disagreement, settings.number, settings.rarity_weight, known)
    for rank, (index, value, distance, nearest) in enumerate(steps, start=1):
        one = found[index]
        near = None if nearest < 0 else names[nearest]
        far = None if nearest < 0 else round(distance, 4)
        chosen.append(RankedImage(rank, one.name, round(value, 4), one.agreement, far, near, _reason(one, far, near)))
    return chosen


def _reason(one: _Seen, distance: float | None, nearest: str | None) -> str:
    """Why an image was chosen, in words."""
    own = one.agreement
    flips = (
        f"disagreement {own.disagreement:.2f} ({own.found} instances, {own.mirrored} in the mirrored image, "
        f"{own.matched} match)"
        if own.found or own.mirrored
        else "nothing found in it or its mirrored copy"
    )
    rarity = "the first" if distance is None else f"distance {distance:.3f} to the nearest, {nearest}"
    return f"{flips}; {rarity}"


def _write(output: Path, ranking: ImageRanking, settings: RankingSettings, model: str | Path) -> None:
    """Write ranking.csv and ranking.json."""
    rows = [
        {
            "rank": one.rank,
            "file_name": one.file,
            "value": one.value,
            "disagreement": round(one.agreement.disagreement, 4),
            "instances": one.agreement.found,
            "instances_mirrored": one.agreement.mirrored,
            "matched": one.agreement.matched,
            "distance": one.distance,
            "nearest": one.nearest,
            "reason": one.reason,
        }
        for one in ranking.chosen
    ]
    text = io.StringIO()
    names = ["rank", "file_name", "value", "disagreement", "instances", "instances_mirrored", "matched", "distance"]
    table = csv.DictWriter(text, [*names, "nearest", "reason"])
    table.writeheader()
    table.writerows({key: plain_cell(value) for key, value in row.items()} for row in rows)
    write_text(output / RANKING_CSV, text.getvalue())
    content = {
        "model": str(model),
        "images": ranking.images,
        "labelled": ranking.labelled,
        "rarity_weight": settings.rarity_weight,
        "threshold": settings.threshold,
        "ranking": rows,
        "failed": [{"input": name, "reason": reason} for name, reason in ranking.failed],
    }
    write_json(output / RANKING_JSON, content)
