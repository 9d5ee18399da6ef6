"""A trained model in use: one call for images in memory and files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers.utils.logging import disable_progress_bar

from ..errors import CheckpointError
from ..instances import Instances
from ..model import Mask2FormerDinov3ForInstanceSegmentation
from ..model_folder.contents import check_model_folder
from ..weights.loading import load_network_config, load_pretrained
from .image_processing import ImageLike, Mask2FormerDinov3ImageProcessor, Prepared, as_list, load_image
from .onnx_model import load_onnx
from .tiles.grid import Grid, check_tiles
from .tiles.image_reader import ImageReader, open_image
from .tiles.merging import merge_rows, rows_of_tiles


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
        self,
        images: ImageLike,
        *,
        threshold: float = ...,
        max_detections: int = ...,
        batch_size: int = ...,
        tile: int | None = ...,
        overlap: float = ...,
    ) -> Instances: ...

    @overload
    def __call__(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        max_detections: int = ...,
        batch_size: int = ...,
        tile: int | None = ...,
        overlap: float = ...,
    ) -> list[Instances]: ...

    def __call__(
        self,
        images: ImageLike | list[Any] | tuple[Any, ...],
        *,
        threshold: float = 0.5,
        max_detections: int = 100,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Instances | list[Instances]:
        """Instances with a score of at least `threshold`, best first: for one image one, for a list a list.

        An image is a path, a PIL image, or an RGB array (H, W, 3) of uint8. Masks may overlap.
        tile: predict images that are larger in tiles of so many pixels a side, which share the part `overlap` of it
        with their neighbours, and merge what is found; `max_detections` and `batch_size` then count in tiles.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        batch = as_list(images)
        if tile is not None:
            check_tiles(tile, overlap)
            found = [self._tiled(image, tile, overlap, threshold, max_detections, batch_size) for image in batch]
        else:
            found = []
            for start in range(0, len(batch), batch_size):
                prepared = [self.processor.prepare(image) for image in batch[start : start + batch_size]]
                found.extend(self.predict_prepared(prepared, threshold, max_detections))
        single = len(batch) == 1 and batch[0] is images
        return found[0] if single else found

    def _tiled(
        self, image: ImageLike, tile: int, overlap: float, threshold: float, max_detections: int, batch_size: int
    ) -> Instances:
        with (
            open_image(Path(image))
            if isinstance(image, str | PathLike)
            else nullcontext(ImageReader.of(load_image(image))) as reader
        ):
            grid = Grid.of(reader.height, reader.width, tile, overlap)
            rows = self.predict_rows(reader, grid, threshold, max_detections, batch_size)
            return merge_rows(rows, grid, self.categories)

    def predict_rows(
        self, image: ImageReader, grid: Grid, threshold: float, max_detections: int, batch_size: int, first: int = 0
    ) -> Iterator[list[Instances]]:
        """What is found in each tile, row by row of the grid from row `first` on; `merge_rows` makes one of it."""

        def predict(tiles: Sequence[NDArray[np.uint8]]) -> list[Instances]:
            return self.predict_prepared([self.processor.prepare(tile) for tile in tiles], threshold, max_detections)

        return rows_of_tiles(image, grid, predict, batch_size, first)

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
        raise CheckpointError(
            f"{name}: expected a model folder as training leaves it, or a hub id such as user/model; "
            f"{'it is a file' if folder.exists() else 'nothing is there'}"
        )
    disable_progress_bar()  # of transformers: a local file is read at once
    try:
        # Weights that are stored in half precision are computed with in full: `autocast` is the way to be faster.
        config = load_network_config(name)
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
