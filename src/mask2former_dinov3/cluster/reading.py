"""The tasks of `batch-predict` that read images. They load neither torch nor transformers: Ray starts many of them.

Rows of Ray Data are batches of images: their `number` and, in turn, `images` (URIs), `read` (pickled) and `found`
(pickled). A batch keeps its images from the list to the results.
"""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data.images import decode_image
from ..data.transforms import fit_image
from ..errors import UserError
from .image_list import filesystem_of

Row = dict[str, Any]


class Fitted(NamedTuple):
    """An image at its size on the canvas, (h, w, 3) uint8, and its original (height, width)."""

    pixels: NDArray[np.uint8]
    original_size: tuple[int, int]


class Read(NamedTuple):
    """An image and what was read: the bytes of its file where it is to be cut into tiles; a text: why it was not."""

    image: str
    content: Fitted | bytes | str


def read_batch(row: Row, *, canvas: tuple[int, int] | None) -> Row:
    """`images` to `read`. canvas: (height, width), None for tiles. An image that cannot be read stops nothing."""
    read = [Read(image, _content_of(image, canvas)) for image in row["images"]]
    return {"number": row["number"], "read": pickle.dumps(read)}


def _content_of(image: str, canvas: tuple[int, int] | None) -> Fitted | bytes | str:
    try:
        filesystem, path = filesystem_of(image)
        data: bytes = filesystem.cat_file(path)
        if canvas is None:
            return data
        rgb = decode_image(data, image)
        return Fitted(fit_image(rgb, *canvas), (rgb.shape[0], rgb.shape[1]))
    except UserError as error:
        return str(error)
    except FileNotFoundError:
        return f"{image}: no such file"
    except Exception as error:  # file systems of object stores raise what their clients raise
        return f"{image}: cannot be read ({type(error).__name__}: {error})"
