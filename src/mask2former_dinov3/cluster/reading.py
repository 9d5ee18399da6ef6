"""Tasks of `batch-predict` that read images. They import neither torch nor transformers: Ray starts many of them.

A row of Ray Data is one batch of images and goes through three forms: `BatchRow`, `ReadRow`, `ResultRow`.
"""

from __future__ import annotations

import pickle
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..data.fitting import fit_image
from ..data.images import check_channel_count, decode_header, decode_image
from ..errors import DatasetError, UserError, mismatch
from ..inference.tiles.grid import Passes
from ..read_options import AS_STORED, ReadOptions
from .image_list import filesystem_of


class BatchRow(TypedDict):
    """A batch to read: its number, and the URIs of its images."""

    number: int
    images: list[str]


class ReadRow(TypedDict):
    """A batch that has been read. read: pickled list of `ReadImage`, in the order of its images."""

    number: int
    read: bytes


class ResultRow(TypedDict):
    """A batch that has been predicted. tables: pickled `ShardTables`. trouble: why the model failed, or empty."""

    number: int
    tables: bytes
    trouble: str


class FittedImage(NamedTuple):
    """An image resized to fit the canvas, (h, w, C) uint8, and its original (height, width)."""

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]


class ReadImage(NamedTuple):
    """URI of an image and its content: the bytes of its file if it is to be cut into tiles, a string if it failed."""

    image: str
    content: FittedImage | bytes | str


def read_batch(row: BatchRow, *, passes: Passes, options: ReadOptions = AS_STORED, channels: int = 3) -> ReadRow:
    """Read the images of a batch; an unreadable one does not raise.

    passes: how they are cut. options, channels: of the model.
    """
    read = [ReadImage(image, _read_content(image, passes, options, channels)) for image in row["images"]]
    return {"number": row["number"], "read": pickle.dumps(read)}


def _read_content(image: str, passes: Passes, options: ReadOptions, channels: int) -> FittedImage | bytes | str:
    try:
        filesystem, path = filesystem_of(image)
        data: bytes = filesystem.cat_file(path)
        if passes.tile is not None or (passes.may_cut and _is_cut(data, image, passes, options)):
            return data
        pixels = decode_image(data, image, options)
        check_channel_count(image, channels, pixels.shape[2])
        return FittedImage(fit_image(pixels, *passes.canvas, passes.factor), (pixels.shape[0], pixels.shape[1]))
    except UserError as error:
        return str(error)
    except FileNotFoundError:
        return f"{image}: {mismatch('an image file', 'no such file')}"
    except IsADirectoryError:
        return f"{image}: {mismatch('an image file', 'a folder')}"
    except Exception as error:  # clients of object stores raise errors of their own classes
        return f"{image}: {mismatch('an image file', f'an error ({error})')}"


def _is_cut(data: bytes, image: str, passes: Passes, options: ReadOptions) -> bool:
    """Whether an image is cut into tiles, or cannot be read without cutting it, which the predictor finds out."""
    try:
        header = decode_header(data, image, options)
    except DatasetError:
        return True
    return passes.grid(header.height, header.width).number_of_tiles > 1
