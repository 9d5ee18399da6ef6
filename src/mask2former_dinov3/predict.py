"""A trained model in use: one call for images in memory, one function for files and folders."""

from __future__ import annotations

import glob
import json
import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from .data.images import IMAGE_SUFFIXES, read_image
from .errors import CheckpointError, DatasetError
from .image_processing import ImageLike, Mask2FormerDinov3ImageProcessor, Prepared, as_list
from .instances import Instances
from .model import Mask2FormerDinov3ForInstanceSegmentation
from .model.safe_loading import load_config, load_pretrained
from .model_folder import check_model_folder
from .onnx_model import load_onnx
from .visualize import draw_instances, enlargement
from .writing import check_writable, write_text

OUTPUTS = ("overlays", "masks", "coco")


class Predictor:
    """A model with its processor: image in, `Instances` at the image's own size out.

    categories: (category id of the training data, name) for every label.
    """

    def __init__(self, model: Any, processor: Mask2FormerDinov3ImageProcessor) -> None:
        self.model = model.eval()
        self.processor = processor
        names = model.config.id2label
        self.categories = tuple((int(id_), str(names[label])) for label, id_ in enumerate(model.config.category_ids))

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | torch.device | None = None) -> Predictor:
        """A folder saved by training, a hub id, or an exported .onnx file. device: None for a GPU if there is one.

        Raises CheckpointError when there is no such model, or it is another one than ours.
        """
        return cls(*load_model(model, device))

    @overload
    def __call__(
        self, images: ImageLike, *, threshold: float = ..., max_detections: int = ..., batch_size: int = ...
    ) -> Instances: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        max_detections: int = ...,
        batch_size: int = ...,
    ) -> list[Instances]: ...

    def __call__(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: float = 0.5,
        max_detections: int = 100,
        batch_size: int = 1,
    ) -> Instances | list[Instances]:
        """Instances with a score of at least `threshold`, best first: for one image one, for a list a list.

        An image is a path, a PIL image, or an RGB array (H, W, 3) of uint8. Masks may overlap.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        batch = as_list(images)
        found: list[Instances] = []
        for start in range(0, len(batch), batch_size):
            prepared = [self.processor.prepare(image) for image in batch[start : start + batch_size]]
            found.extend(self.predict_prepared(prepared, threshold, max_detections))
        single = len(batch) == 1 and batch[0] is images
        return found[0] if single else found

    @torch.no_grad()
    def predict_prepared(self, prepared: Sequence[Prepared], threshold: float, max_detections: int) -> list[Instances]:
        """Instances of images that `processor.prepare` has put on the canvas, as one batch."""
        inputs = self.processor.collate(prepared).to(self.model.device)
        outputs = self.model(pixel_values=inputs["pixel_values"], pixel_mask=inputs["pixel_mask"])
        return self.processor.post_process(
            outputs,
            [one.original_size for one in prepared],
            inputs["pixel_mask"],
            threshold=threshold,
            max_detections=max_detections,
            categories=self.categories,
        )


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
            lines.extend(f"  {path}" for path in self.without_detection)
        if self.failed:
            lines.append(f"{len(self.failed)} could not be read:")
            lines.extend(f"  {reason}" for _, reason in self.failed)
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
    progress: bool = False,
) -> PredictionSummary:
    """Predict on files, folders (searched through) and glob patterns; leave in `output` what `save` names.

    overlays: `overlays/NAME` with the instances drawn in, JPEG for JPEG, otherwise PNG. masks: `masks/NAME/`, one 1-bit
    PNG per instance (`003_fig_0.91.png`: rank, class, score), so that overlapping ones stay whole. coco:
    `predictions.json`, COCO results of all images, and `images.json` with the images and categories that its ids mean.
    An input that cannot be read goes to `failed` and the others are done; an interruption keeps what is done.
    Raises DatasetError when nothing at all was found, ValueError for an unknown word in `save`.
    """
    unknown = sorted(set(save) - set(OUTPUTS))
    if unknown or not save:
        raise ValueError(f"save: expected some of {', '.join(OUTPUTS)}, got {', '.join(unknown) or 'nothing'}")
    summary = PredictionSummary(output)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score between 0 and 1, got {threshold}")
    check_writable(output)
    files = find_images(inputs, output, summary.failed)
    if not files:
        raise DatasetError("predict: no image found\n" + "\n".join(f"  {reason}" for _, reason in summary.failed))
    predictor = model if isinstance(model, Predictor) else Predictor.from_pretrained(model, device)
    images: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    try:
        with tqdm(total=len(files), desc="predict", unit="image", disable=not progress) as bar:
            for batch in _read_batches(files, predictor.processor, batch_size, summary.failed, bar):
                found = predictor.predict_prepared([one.prepared for one in batch], threshold, max_detections)
                for one, instances in zip(batch, found, strict=True):
                    _save_pictures(one, instances, summary, save)
                    height, width = one.prepared.original_size
                    images.append({"id": one.number, "file_name": one.name, "height": height, "width": width})
                    results.extend(instances.to_coco(one.number))
                    summary.images += 1
                    summary.detections += len(instances)
                    if not len(instances):
                        summary.without_detection.append(one.path)
    finally:
        if "coco" in save:
            names = [{"id": id_, "name": name} for id_, name in predictor.categories]
            write_text(output / "predictions.json", json.dumps(results) + "\n")
            write_text(
                output / "images.json",
                json.dumps({"images": images, "categories": names}, indent=2, ensure_ascii=False) + "\n",
            )
    return summary


def find_images(inputs: Sequence[str | Path], output: Path, failed: list[tuple[str, str]]) -> list[tuple[Path, str]]:
    """Image files of files, folders and patterns: (path, name), sorted by name, each file once.

    The name is the path below the folder given, the file's name otherwise; equal names get a number. A folder is
    searched through, except below `output`, where earlier overlays lie. Inputs that match nothing are added to `failed`
    as (input, reason).
    """
    found: dict[Path, str] = {}
    for given in map(str, inputs):
        matches = [Path(given)] if Path(given).exists() else [Path(match) for match in glob.glob(given, recursive=True)]
        images: dict[Path, str] = {}
        for match in matches:
            if match.is_dir():
                images.update((path, str(path.relative_to(match))) for path in _images_below(match, output))
            else:
                images[match] = match.name
        if not images:
            reason = "no image in it" if any(match.is_dir() for match in matches) else "no such file, folder or pattern"
            failed.append((given, f"{given}: {reason}"))
        for path, name in images.items():
            found.setdefault(path.resolve(), name)
    files: list[tuple[Path, str]] = []
    taken: set[str] = set()
    for path, name in sorted(found.items(), key=lambda item: (item[1], item[0])):
        unique, number = name, 2
        # Overlays of a.bmp and a.png would both be a.png: names differ before their suffix.
        while str(Path(unique).with_suffix("")) in taken:
            unique, number = str(Path(name).with_stem(f"{Path(name).stem}-{number}")), number + 1
        taken.add(str(Path(unique).with_suffix("")))
        files.append((path, unique))
    return files


def load_model(
    model: str | Path, device: str | torch.device | None = None
) -> tuple[Any, Mask2FormerDinov3ImageProcessor]:
    """What can be used as a model, with its processor: see `load_network`, or an exported .onnx file (`OnnxModel`)."""
    path = Path(model)
    return load_onnx(path, device) if path.suffix == ".onnx" and not path.is_dir() else load_network(model, device)


def load_network(
    model: str | Path, device: str | torch.device | None = None
) -> tuple[Mask2FormerDinov3ForInstanceSegmentation, Mask2FormerDinov3ImageProcessor]:
    """A model folder (or hub id) on a device and in evaluation mode, with its processor; every weight must be there.

    device: None for a GPU if there is one. Raises CheckpointError saying what is missing.
    """
    name = str(model)
    folder = Path(model)
    target = usable_device(device)
    if folder.is_dir():
        check_model_folder(folder)
    elif folder.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise CheckpointError(f"{name}: expected a model folder as training leaves it, or a hub id such as user/model")
    disable_progress_bar()  # of transformers: a local file is read at once
    try:
        # Weights that are stored in half precision are computed with in full: `autocast` is the way to be faster.
        config = load_config(name)
        network = load_pretrained(Mask2FormerDinov3ForInstanceSegmentation, name, config, whole=True)
        processor = Mask2FormerDinov3ImageProcessor.from_pretrained(name)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines()
        hint = "" if folder.is_dir() else " (no such folder, so it was taken for a hub id)"
        raise CheckpointError(f"{name}: the model cannot be loaded{hint}: {reason[0] if reason else error}") from error
    return network.to(target).eval(), processor


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device by its name, or the GPU if there is one. Raises ValueError for one that this machine does not have."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {device} cannot be used here ({str(error).splitlines()[0]}); try cpu") from error
    return found


@dataclass(frozen=True)
class _Read:
    """An image that has been read: its number (COCO image id), path, name in the output, pixels, canvas."""

    number: int
    path: Path
    name: str
    rgb: NDArray[np.uint8]
    prepared: Prepared


def _images_below(folder: Path, output: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and output.resolve() not in path.resolve().parents:
            yield path


def _read_batches(
    files: list[tuple[Path, str]],
    processor: Mask2FormerDinov3ImageProcessor,
    batch_size: int,
    failed: list[tuple[str, str]],
    bar: Any,
) -> Iterator[list[_Read]]:
    """Batches of images that could be read, in order; at most two batches are held. Others go to `failed`."""
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")

    def read(number: int, path: Path, name: str) -> _Read:
        rgb = read_image(path)
        return _Read(number, path, name, rgb, processor.prepare(rgb))

    coming = iter(enumerate(files, start=1))
    waiting: deque[tuple[Path, Future[_Read]]] = deque()
    batch: list[_Read] = []
    with ThreadPoolExecutor(max_workers=2) as pool:
        try:
            while True:
                for _, (number, (path, name)) in zip(range(batch_size - len(waiting)), coming, strict=False):
                    waiting.append((path, pool.submit(read, number, path, name)))
                if not waiting:
                    break
                path, future = waiting.popleft()
                try:
                    batch.append(future.result())
                except DatasetError as error:
                    failed.append((str(path), str(error)))
                bar.update()
                if len(batch) == batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _save_pictures(one: _Read, instances: Instances, summary: PredictionSummary, save: Collection[str]) -> None:
    """The overlay and the masks of one image, where wanted."""
    if "overlays" in save:
        suffix = one.path.suffix.lower() if one.path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        path = summary.output / "overlays" / Path(one.name).with_suffix(suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = draw_instances(one.rgb, instances, scale=enlargement(instances))
        Image.fromarray(picture).save(path, quality=92)  # PNG has no quality and passes it over
        summary.overlays.append(path)
    if "masks" in save:
        folder = (summary.output / "masks" / one.name).with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("[0-9]*_*.png"):  # of an earlier run, which may have found more
            old.unlink()
        for index, (name, score) in enumerate(zip(instances.names, instances.scores, strict=True)):
            safe = re.sub(r"[^\w.-]+", "-", name)
            Image.fromarray(instances.mask(index)).save(folder / f"{index + 1:03d}_{safe}_{score:.2f}.png")
