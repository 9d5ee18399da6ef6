"""Predict on many image files: load ahead, predict in batches or tiles, write the results, remember what is done."""

from __future__ import annotations

import errno
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...atomic_files import check_writable
from ...data.image_folders import PassedOver
from ...data.images import check_channel_count, read_header, read_image
from ...errors import DatasetError, OptionError, mismatch, system_reason
from ...folder_lock import hold_folder
from ...instances import Instances
from ...progress_bar import ProgressBar
from ...read_options import AS_SAVED, ReadChanges
from ...version import __version__
from ...visualize import check_colours
from ..image_processing import Prepared
from ..limit_notes import LimitNotes
from ..predictor import Predictor, check_extra_images, load_model
from ..prefetch import prefetch
from ..settings import DEFAULTS, InferenceSettings, describe_threshold
from ..tiles.image_reader import image_size, open_image
from ..tiles.merging import merge_rows
from ..tiles.part_reader import ImageReader
from .addresses import fetch_addresses
from .find_images import escape_unprintable, find_images
from .progress import FinishedImage, Progress, fingerprint, key_of, restore_left_out, store_left_out
from .result_files import PredictedImage, to_store, write_results
from .writers import check_outputs, overlay_name, save_classes, save_image

PROGRESS_FILE = ".predict-progress.jsonl"
_DECIDING = ("threshold", "max_detections", "copy_overlap", "score_calibration", "tta")  # settings of the results
_OF_THE_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@dataclass
class PredictionSummary:
    """What `predict_files` did.

    failed: (input, reason). without_detection: images with nothing above the threshold. passed_over: the files of
    folders that are no images. unread: what of a file was not read, such as "5 pages, the first is read" -> the files,
    among those that this call read. threshold: one line on the threshold in use. best_scores: of the images without
    detection. limits: what is not among the instances; max_detections, tiles: as used.
    """

    output: Path
    images: int = 0
    detections: int = 0
    without_detection: list[Path] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    overlays: list[Path] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)
    unread: dict[str, list[Path]] = field(default_factory=dict)
    threshold: str = ""
    best_scores: list[float] = field(default_factory=list)
    limits: LimitNotes = field(default_factory=LimitNotes)
    max_detections: int = 0
    tiles: bool = False

    def text(self) -> str:
        """The summary for people: counts, then the images without a detection and the inputs that failed."""
        lines = [f"{self.detections} instances in {self.images} images; results in {self.output}", self.threshold]
        if self.without_detection:
            lines.append(f"no detection in {len(self.without_detection)} of them:")
            lines.extend(
                f"  {escape_unprintable(path)} (best score {best:.2g})"
                for path, best in zip(self.without_detection, self.best_scores, strict=True)
            )
        lines.extend(f"note: {line}" for line in self.limits.lines(self.max_detections, tiles=self.tiles))
        if passed_over := self.passed_over.text():
            lines.append(escape_unprintable(passed_over))
        for text, files in self.unread.items():
            where = escape_unprintable(files[0]) if len(files) == 1 else f"{len(files)} images"
            lines.append(f"note: {where}: {text}")
        if self.failed:
            lines.append(f"{len(self.failed)} failed:")
            lines.extend(f"  {escape_unprintable(reason)}" for _, reason in self.failed)
        return "\n".join(lines)


def predict_files(
    model: str | Path | Predictor,
    inputs: Sequence[str | Path],
    output: Path,
    *,
    settings: InferenceSettings = DEFAULTS,
    save: Collection[str] = ("overlays", "coco"),
    segmentation: str = "rle",
    colours: str = "auto",
    device: str | None = None,
    reading: ReadChanges = AS_SAVED,
    compile_model: bool = False,
    progress: bool = False,
) -> PredictionSummary:
    """Predict on files, folders (with subfolders), patterns and addresses; write what `save` names into `output`.

    overlays: `overlays/NAME` with the instances drawn in, JPEG for a JPEG, otherwise PNG. masks: `masks/NAME/`, one
    1-bit PNG per instance (`003_fig_0.91.png`: rank, class, score), so that overlapping masks stay complete. coco,
    coco-results, csv, label-studio: see `result_files`; an image has its name below the folder (`file_name`), its
    `path`, and its name in the output where that is another. segmentation: "rle", or "polygons" for programs that read
    no RLE. geojson, yolo: see `polygons`. colours: of the overlays, see `draw_instances`. settings: with `tile`, larger
    files are read in parts (`tiles.image_reader`). reading: how image files are read, where that is not as saved with
    the model (which is then no `Predictor`, as for compile_model). progress: show bars.

    An input that cannot be read, or whose outputs cannot be written, is added to `failed`, and the others are still
    predicted. A stopped run leaves its finished images in a hidden file, and the same call continues from there.
    Raises OptionError when no image is found, for an unknown word in `save` or `colours`, and when another command is
    writing to the output folder.
    """
    check_outputs(save, segmentation)
    check_colours(colours)
    check_writable(output)
    summary = PredictionSummary(output)
    inputs = fetch_addresses(inputs, output, summary.failed, keep=(output / PROGRESS_FILE).exists())
    files = find_images(inputs, output, summary.failed, summary.passed_over)
    if not files:
        reasons = "".join(f"\n  {escape_unprintable(reason)}" for _, reason in summary.failed)
        raise OptionError("inputs", "at least one image", f"none:{reasons}")
    file = None if isinstance(model, Predictor) else Path(model)
    load = partial(load_model, device=device, reading=reading, compile_model=compile_model)
    predictor = model if isinstance(model, Predictor) else Predictor(*load(model))
    check_extra_images(predictor.processor)
    summary.threshold = describe_threshold(settings, predictor.model.config)
    settings = predictor.fill(settings)
    summary.max_detections, summary.tiles = settings.max_detections or 0, predictor.passes(settings).may_cut
    decides = {  # what a stopped run and the one that continues it must have in common
        "version": __version__,
        "model": fingerprint(predictor.model, file),
        **{name: getattr(settings, name) for name in _DECIDING},
        "read": asdict(predictor.processor.read_options),
        "tile": [settings.tile, settings.overlap] if summary.tiles else None,
        **{"save": sorted(save), "segmentation": segmentation, "colours": colours},
    }
    with hold_folder(output, "output", "predict"):
        with Progress(output / PROGRESS_FILE, decides) as done:
            images = [_File(number, *one, key_of(one.path, one.name)) for number, one in enumerate(files, start=1)]
            save_classes(output, predictor.categories, save)
            _Run(predictor, settings, tuple(save), segmentation, colours, progress, done, summary).predict(images)
        (output / PROGRESS_FILE).unlink()
    return summary


class _File(NamedTuple):
    """An image file to predict on: its number (COCO image id), what `FoundImage` has, key in the progress file."""

    number: int
    path: Path
    name: str
    file_name: str
    key: str


@contextmanager
def _name_saving_errors(file: _File) -> Iterator[None]:
    """Turn what goes wrong with the outputs of one file into a DatasetError that names it.

    A full or failing disk is no fault of the file: its error ends the run.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _OF_THE_DISK:
            raise
        got = f"an error ({system_reason(error)})"
        raise DatasetError(f"{file.path}: {mismatch('outputs that can be written', got)}") from error
    except (ValueError, KeyError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{file.path}: {mismatch('outputs that can be written', f'an error ({error})')}") from error


class _Loaded(NamedTuple):
    """A file that has been read and prepared. unread: what of it was not read."""

    file: _File
    unread: str
    pixels: NDArray[np.uint8]  # (H, W, C)
    prepared: Prepared


class _Large(NamedTuple):
    """A file that is cut into tiles; it is read in parts. unread: what of it is not read."""

    file: _File
    unread: str


class _Failed(NamedTuple):
    """A file that cannot be read."""

    file: _File
    error: DatasetError


@dataclass(frozen=True)
class _Run:
    """What one call of `predict_files` works with, and where its results go."""

    predictor: Predictor
    settings: InferenceSettings
    save: tuple[str, ...]
    segmentation: str
    colours: str
    show: bool
    done: Progress
    summary: PredictionSummary

    def predict(self, files: Sequence[_File]) -> None:
        """Predict on all unfinished files. The results of finished files are written even if the run is stopped."""
        try:
            self._predict_unfinished(files)
        except KeyboardInterrupt as stop:
            count = sum(file.key in self.done for file in files)
            message = f"stopped: {count} of {len(files)} images are finished; the same command continues from there"
            raise KeyboardInterrupt(message) from stop
        finally:
            self._write_results(files)

    def _predict_unfinished(self, files: Sequence[_File]) -> None:
        unfinished = [file for file in files if file.key not in self.done]
        with (
            ProgressBar(
                total=len(files),
                initial=len(files) - len(unfinished),
                desc="predict",
                unit="image",
                disable=not self.show,
            ) as bar,
            closing(self._batches(unfinished, bar)) as batches,
        ):
            for batch in batches:
                if isinstance(batch, _Large):
                    self._predict_in_tiles(batch.file)
                else:
                    self._predict_batch(batch)

    def _batches(self, files: Sequence[_File], bar: ProgressBar) -> Generator[list[_Loaded] | _Large, None, None]:
        """Batches of loaded images, and large images one by one, in order; at most two batches are in memory."""
        batch: list[_Loaded] = []
        with closing(prefetch(files, self._load, ahead=self.settings.batch_size)) as loaded:
            for one in loaded:
                if not isinstance(one, _Failed) and one.unread:
                    self.summary.unread.setdefault(one.unread, []).append(one.file.path)
                if isinstance(one, _Failed):
                    self._fail(one.file, one.error)
                elif isinstance(one, _Large):
                    yield one
                else:
                    batch.append(one)
                bar.update()
                if len(batch) == self.settings.batch_size:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _load(self, file: _File) -> _Loaded | _Large | _Failed:
        """Read and prepare one file; called in threads."""
        processor, passes = self.predictor.processor, self.predictor.passes(self.settings)
        options = processor.read_options
        try:
            is_large = passes.may_cut and passes.grid(*image_size(file.path, options)).number_of_tiles > 1
            pixels = None if is_large else read_image(file.path, options)
            header = read_header(file.path, options)
            count = header.channels if pixels is None else pixels.shape[2]
            check_channel_count(str(file.path), processor.num_channels, count)
            if pixels is None:
                return _Large(file, header.unread)
            return _Loaded(file, header.unread, pixels, processor.prepare(pixels))
        except DatasetError as error:
            return _Failed(file, error)

    def _predict_batch(self, batch: Sequence[_Loaded]) -> None:
        found = self.predictor.predict_prepared([one.prepared for one in batch], self.settings)
        for one, instances in zip(batch, found, strict=True):
            try:
                self._finish(one.file, ImageReader.of(one.pixels), instances)
            except DatasetError as error:
                self._fail(one.file, error)

    def _predict_in_tiles(self, file: _File) -> None:
        """Predict on a large image row by row of its tiles, from the first unfinished row on."""
        categories = self.predictor.categories
        try:
            with open_image(file.path, self.predictor.processor.read_options) as image:
                grid = self.predictor.passes(self.settings).grid(image.height, image.width)
                rows = self.predictor.predict_rows(image, grid, self.settings, self.done.count_rows(file.key))
                kept = chain(self.done.rows(file.key, categories), self.done.keep_rows(file.key, rows))
                bar = ProgressBar(kept, file.name, len(grid.tops), leave=False, unit="tile row", disable=not self.show)
                self._finish(file, image, merge_rows(bar, grid, categories, self.settings))
        except DatasetError as error:
            self._fail(file, error)

    def _finish(self, file: _File, image: ImageReader, instances: Instances) -> None:
        with _name_saving_errors(file):
            save_image(self.summary.output, file.path, file.name, image, instances, self.save, self.colours)
        left_out = store_left_out(instances.left_out)
        entry = FinishedImage(height=image.height, width=image.width, detections=len(instances), left_out=left_out)
        self.done.finish(file.key, entry, to_store(instances, file.number, self.save, self.segmentation))

    def _fail(self, file: _File, error: DatasetError) -> None:
        self.summary.failed.append((str(file.path), str(error)))

    def _write_results(self, files: Sequence[_File]) -> None:
        """Sum up the finished images, and write the files that hold the results of all of them."""
        images: list[PredictedImage] = []
        for file in files:
            if file.key not in self.done:
                continue
            entry = self.done.entry(file.key)
            self.summary.images += 1
            self.summary.detections += entry["detections"]
            left_out = restore_left_out(entry["left_out"])
            self.summary.limits.add(left_out)
            if not entry["detections"]:
                self.summary.without_detection.append(file.path)
                self.summary.best_scores.append(left_out.best_score)
            if "overlays" in self.save:
                self.summary.overlays.append(self.summary.output / overlay_name(file.name, file.path))
            other_name = {} if file.name == file.file_name else {"name_in_output": file.name}
            size = {"height": entry["height"], "width": entry["width"]}
            described = {"id": file.number, "file_name": file.file_name, "path": str(file.path), **other_name, **size}
            images.append(PredictedImage(described, partial(self.done.results, file.key)))
        write_results(self.summary.output, images, self.predictor.categories, self.save)
