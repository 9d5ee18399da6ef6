"""The images on which an exported file is compared with its model, and those that measure ranges for int8."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..canvas import PADDING, padded_size
from ..errors import DatasetError, OptionError
from ..inference.files.find_images import find_images
from ..inference.image_processing import Mask2FormerDinov3ImageProcessor, Prepared
from ..inference.load_images import load_image
from ..inference.onnx_model import INPUTS
from ..inference.predictor import check_extra_images
from ..inference.tiles.grid import Passes
from ..read_options import ReadChanges
from ..sample_data import SAMPLE
from .precision import Feed

SAMPLE_IMAGES = SAMPLE / "valid"  # part of every installation
CHECKED_IMAGES = 4
MIN_HEIGHT = 64  # pixels, of the second canvas on which a dynamic file is checked

CheckBatches = list[tuple[Mask2FormerDinov3ImageProcessor, Sequence[Prepared]]]
"""Prepared images with the processor that made them, for `check_agreement`."""


def prepare_reading(processor: Mask2FormerDinov3ImageProcessor, images: Path | None, extra_images: str | None) -> None:
    """Set where second files are. Raises OptionError unless there are images for the check of the model's channels."""
    if images is None and processor.num_channels != 3:
        expected = f"a folder of images of {processor.num_channels} channels, to compare the file on"
        raise OptionError("images", expected, "none", "the bundled images have three")
    processor.read_options = ReadChanges(extra_images=extra_images).apply(processor.read_options)
    check_extra_images(processor)


def read_images(folder: Path, processor: Mask2FormerDinov3ImageProcessor, count: int) -> list[Prepared]:
    """The first `count` images below a folder, prepared for the canvas. Raises DatasetError if there is none.

    Of an image that keeps its own scale and is larger than the canvas, the first tile.
    """
    failed: list[tuple[str, str]] = []
    files = find_images([folder], None, failed)
    if not files:
        raise DatasetError(failed[0][1])
    passes = Passes.of(processor.size, processor.read_options, most=1.0)
    prepared = []
    for file in islice(files, count):
        pixels = load_image(file.path, processor.read_options, processor.num_channels)
        first = next(passes.grid(pixels.shape[0], pixels.shape[1]).row(0))
        prepared.append(processor.prepare(pixels[first.y0 : first.y1, first.x0 : first.x1]))
    return prepared


def change_canvas(
    processor: Mask2FormerDinov3ImageProcessor, height: int, width: int
) -> Mask2FormerDinov3ImageProcessor:
    """A copy of an image processor for another canvas."""
    size = {"height": height, "width": width}
    changed = copy.deepcopy(processor)
    changed.size = size
    return changed


def feed_of(processor: Mask2FormerDinov3ImageProcessor, prepared: Prepared) -> Feed:
    """The inputs of one image, as onnxruntime takes them."""
    inputs = processor.collate([prepared])
    return {name: inputs[name].numpy() for name in INPUTS}


def make_batches(
    images: Path | None, processor: Mask2FormerDinov3ImageProcessor, dynamic: bool, count: int = CHECKED_IMAGES
) -> CheckBatches:
    """The batches of a comparison: the first of `count` images of a folder, then all others together.

    If there are not two others, the second batch has the first image twice. images: None for the bundled ones.
    dynamic: a third batch has one image of the folder on another canvas, lower and wider.
    """
    folder = images or SAMPLE_IMAGES
    prepared = read_images(folder, processor, count)
    others = prepared[1:] if len(prepared) > 2 else prepared[:1] * 2
    batches: CheckBatches = [(processor, prepared[:1]), (processor, others)]
    if dynamic:
        height, width = padded_size(processor.size["height"] * 3 // 4, processor.size["width"] + PADDING)
        other = change_canvas(processor, max(height, MIN_HEIGHT), width)
        batches.append((other, read_images(folder, other, 1)))
    return batches
