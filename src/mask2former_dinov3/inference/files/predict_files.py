"""Prediction on many files: read ahead, predict in batches or in tiles, save, remember what is done."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...atomic_files import check_writable, write_file, write_text
from ...data.images import read_image
from ...errors import DatasetError
from ...instances import Instances
from ...version import __version__
from ..image_processing import Prepared
from ..predictor import Predictor
from ..tiles.grid import Grid, check_tiles
from ..tiles.image_reader import ImageReader, image_size, open_image
from ..tiles.merging import merge_rows
from .find_images import find_images, shown
from .progress import Progress, fingerprint, key_of
from .writers import check_outputs, overlay_name, save_classes, save_image

PROGRESS = ".predict-progress.jsonl"
RESULTS_AT_ONCE = 1000  # that are written and read together: a large image may have hundreds of thousands


@dataclass
class PredictionSummary:
    """What `predict_files` did. `failed`: (input, reason); `without_detection`: images with nothing above threshold."""

    output: Path
    images: int = 0
    detections: int = 0
    without_detection: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    overlays: list[Path] = field(default_factory=list)

    def text(self) -> str:
        """For people: counts, then the names of what found nothing and of what failed."""
        lines = [f"{self.detections} instances in {self.images} images; results in {self.output}"]
        if self.without_detection:
            lines.append(f"no detection in {len(self.without_detection)} of them:")
            lines.extend(f"  {shown(path)}" for path in self.without_detection)
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines.extend(f"  {shown(reason)}" for _, reason in self.failed)
        return "\n".join(lines)


def predict_files(
    model: str | Path | Predictor,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    threshold: float = 0.5,
    save: Collection[str] = ("overlays", "coco"),
    device: str | None = None,
    batch_size: int = 1,
    max_detections: int = 100,
    tile: int | None = None,
    overlap: float = 0.2,
    progress: bool = False,
) -> PredictionSummary:
    """Predict on files, folders (searched through) and glob patterns; leave in `output` what `save` names.

    overlays: `overlays/NAME` with the instances drawn in, JPEG for JPEG, otherwise PNG. masks: `masks/NAME/`, one 1-bit
    PNG per instance (`003_fig_0.91.png`: rank, class, score), so that overlapping ones stay whole. coco:
    `predictions.json`, COCO results of all images, and `images.json` with the images and categories that its ids mean.
    geojson, yolo: see `polygons`. tile, overlap: as in `Predictor`; files are read in parts (`data.windows`).

    An input that cannot be read goes to `failed` and the others are done. A run that was stopped, however, leaves what
    is done in a hidden file, and the same call goes on from there.
    Raises DatasetError when nothing at all was found, ValueError for settings that cannot be.
    """
    check_outputs(save)
    _check_settings(threshold, batch_size, tile, overlap)
    check_writable(output)
    summary = PredictionSummary(output)
    files = find_images(inputs, output, summary.failed)
    if not files:
        raise DatasetError("predict: no image found\n" + "\n".join(f"  {shown(one)}" for _, one in summary.failed))
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model, device)
    settings = {
        "version": __version__,
        "model": fingerprint(predictor.model, None if isinstance(model, Predictor) else Path(model)),
        "threshold": threshold,
        "max_detections": max_detections,
        "tile": None if tile is None else [tile, overlap],
        "save": sorted(save),
    }
    with Progress(output / PROGRESS, settings) as done:
        images = [_File(number, *one, key_of(*one)) for number, one in enumerate(files, start=1)]
        options = predictor, tuple(save), threshold, max_detections, batch_size, tile, overlap, progress
        save_classes(output, predictor.categories, save)
        _Run(*options, done, summary).predict(images)
    (output / PROGRESS).unlink()
    return summary


def _check_settings(threshold: float, batch_size: int, tile: int | None, overlap: float) -> None:
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score between 0 and 1, got {threshold}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    if tile is not None:
        check_tiles(tile, overlap)


class _File(NamedTuple):
    """An image file to predict on: its number (COCO image id), path, name in the output, key in the progress."""

    number: int
    path: Path
    name: str
    key: str


class _Read(NamedTuple):
    """A file that has been read; without pixels one that is to be read in tiles."""

    file: _File
    rgb: NDArray[np.uint8] | None
    prepared: Prepared | None


@dataclass(frozen=True)
class _Run:
    """The settings of `predict_files`, and where its results go."""

    predictor: Predictor
    save: tuple[str, ...]
    threshold: float
    max_detections: int
    batch_size: int
    tile: int | None
    overlap: float
    show: bool
    done: Progress
    summary: PredictionSummary

    def predict(self, files: Sequence[_File]) -> None:
        """All files that are not done; whatever happens, the results of those that are done are written."""
        try:
            self._predict_left(files)
        except KeyboardInterrupt as stop:
            count = sum(file.key in self.done for file in files)
            words = f"stopped: {count} of {len(files)} images are done; the same command goes on from there"
            raise KeyboardInterrupt(words) from stop
        finally:
            self._collect(files)

    def _predict_left(self, files: Sequence[_File]) -> None:
        left = [file for file in files if file.key not in self.done]
        with tqdm(
            total=len(files), initial=len(files) - len(left), desc="predict", unit="image", disable=not self.show
        ) as bar:
            for batch in self._read_batches(left, bar):
                prepared = [one.prepared for one in batch if one.prepared is not None]
                if not prepared:
                    self._predict_in_tiles(batch[0].file)
                    continue
                found = self.predictor.predict_prepared(prepared, self.threshold, self.max_detections)
                for one, instances in zip(batch, found, strict=True):
                    assert one.rgb is not None
                    try:
                        self._finish(one.file, ImageReader.of(one.rgb), instances)
                    except DatasetError as error:
                        self._fail(one.file, error)

    def _collect(self, files: Sequence[_File]) -> None:
        """Sum up what is done; where wanted, `predictions.json` and `images.json` of it, an image at a time."""
        finished = [file for file in files if file.key in self.done]
        for file in finished:
            entry = self.done.entry(file.key)
            self.summary.images += 1
            self.summary.detections += entry["detections"]
            if not entry["detections"]:
                self.summary.without_detection.append(file.path)
            if "overlays" in self.save:
                self.summary.overlays.append(self.summary.output / overlay_name(file.name, file.path))
        if "coco" not in self.save:
            return
        images = []
        with write_file(self.summary.output / "predictions.json") as results:
            written = 0
            for file in finished:
                entry = self.done.entry(file.key)
                size = {"height": entry["height"], "width": entry["width"]}
                images.append({"id": file.number, "file_name": file.name, **size})
                for result in self.done.results(file.key):
                    results.write((", " if written else "[") + json.dumps(result | {"image_id": file.number}))
                    written += 1
            results.write("]\n" if written else "[]\n")
        names = [{"id": id_, "name": name} for id_, name in self.predictor.categories]
        write_text(
            self.summary.output / "images.json",
            json.dumps({"images": images, "categories": names}, indent=2, ensure_ascii=False) + "\n",
        )

    def _predict_in_tiles(self, file: _File) -> None:
        """A large image, row by row of its tiles; rows that are done already are not done again."""
        assert self.tile is not None
        categories = self.predictor.categories
        try:
            with open_image(file.path) as image:
                grid = Grid.of(image.height, image.width, self.tile, self.overlap)
                first = self.done.count_rows(file.key)
                rows = self.predictor.predict_rows(
                    image, grid, self.threshold, self.max_detections, self.batch_size, first
                )
                kept = chain(self.done.rows(file.key, categories), self.done.keep_rows(file.key, rows))
                bar = tqdm(kept, file.name, len(grid.tops), leave=False, unit="row of tiles", disable=not self.show)
                self._finish(file, image, merge_rows(bar, grid, categories))
        except DatasetError as error:
            self._fail(file, error)

    def _finish(self, file: _File, image: ImageReader, instances: Instances) -> None:
        save_image(self.summary.output, file.path, file.name, image, instances, self.save)
        entry: dict[str, Any] = {"height": image.height, "width": image.width, "detections": len(instances)}
        starts = range(0, len(instances) if "coco" in self.save else 0, RESULTS_AT_ONCE)
        parts = (instances[start : start + RESULTS_AT_ONCE].to_coco(file.number) for start in starts)
        self.done.finish(file.key, entry, parts)

    def _fail(self, file: _File, error: DatasetError) -> None:
        self.summary.failed.append((str(file.path), str(error)))

    def _read_batches(self, files: Sequence[_File], bar: Any) -> Iterator[list[_Read]]:
        """Batches of images that could be read, in order; at most two are held. An image for tiles is a batch alone."""

        def read(file: _File) -> _Read:
            if self.tile is not None and max(image_size(file.path)) > self.tile:
                return _Read(file, None, None)
            rgb = read_image(file.path)
            return _Read(file, rgb, self.predictor.processor.prepare(rgb))

        coming = iter(files)
        waiting: deque[tuple[_File, Future[_Read]]] = deque()
        batch: list[_Read] = []
        with ThreadPoolExecutor(max_workers=2) as pool:
            try:
                while True:
                    for _, file in zip(range(self.batch_size - len(waiting)), coming, strict=False):
                        waiting.append((file, pool.submit(read, file)))
                    if not waiting:
                        break
                    file, future = waiting.popleft()
                    try:
                        one = future.result()
                    except DatasetError as error:
                        self._fail(file, error)
                    else:
                        if one.prepared is None:
                            yield [one]
                        else:
                            batch.append(one)
                    bar.update()
                    if len(batch) == self.batch_size:
                        yield batch
                        batch = []
                if batch:
                    yield batch
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
