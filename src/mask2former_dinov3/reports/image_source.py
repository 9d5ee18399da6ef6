"""The pictures behind a report: images read once, at the size of the annotations, or grey where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.faults import FaultReport
from ..data.fitting import PixelArray
from ..data.images import check_image_size, read_image
from ..data.layout import Split
from ..data.locate import locate_images
from ..errors import DatasetError
from ..evaluation.coco_files import GroundTruth
from ..evaluation.stored_evaluation import names_of_images
from ..read_options import AS_STORED, ReadOptions
from ..visualize import rgb_view

_GREY = 96


class ImageSource:
    """Reads images by their number; keeps the newest, which several pictures show. paths: by image number."""

    def __init__(
        self, paths: Mapping[int, Path], sizes: Mapping[int, tuple[int, int]], options: ReadOptions = AS_STORED
    ) -> None:
        self._paths, self._sizes, self._options = paths, sizes, options
        self._newest: tuple[int, PixelArray, str] | None = None

    def read(self, image: int) -> tuple[PixelArray, str]:
        """The image (H, W, 3), RGB of more channels (`rgb_view`), and why it is grey instead, "" if it is not."""
        if self._newest is None or self._newest[0] != image:
            self._newest = image, *self._read(image)
        return self._newest[1:]

    def _read(self, image: int) -> tuple[PixelArray, str]:
        path, size = self._paths.get(image), self._sizes[image]
        if path is None:
            reason = "the image is not known"
        else:
            try:
                pixels = read_image(path, self._options)
                check_image_size(str(path), size, pixels.shape[:2])
            except (DatasetError, OSError) as error:
                reason = f"the image cannot be shown: {error}"
            else:
                return rgb_view(pixels), ""
        return np.full((*size, 3), _GREY, np.uint8), reason


def paths_of_images(truth: GroundTruth, split: Split) -> dict[int, Path]:
    """Number of an image -> its file, of those that have a name; the file may not exist."""
    found, unsure = locate_images(names_of_images(truth), split, FaultReport(truth.name))
    return {number: Path(path) for number, path in found.items() if number not in unsure}
