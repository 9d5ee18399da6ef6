"""Make training samples: tensors with instance masks, from a record and a random number generator.

B batch, C channels (3 for RGB), N instances of one image, H and W the tensor's sides (the canvas, padded to multiples
of 32).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from ..canvas import check_canvas, padded_size
from ..errors import DatasetError
from ..read_options import AS_STORED, ReadOptions
from .coco import CocoData, ImageRecord
from .copy_paste import PlacedImage, paste
from .crops import choose_focus, is_sliver, middle_matrix
from .fitting import Matrix, size_on_canvas, to_pixel_values, warp_image
from .images import check_channel_count, check_image_size, read_image
from .pixel_changes import change_pixels
from .sampler import SampleKey
from .transforms import (
    Augmentation,
    cut_corners,
    jitter_colors,
    rasterise_windows,
    rotate_matrix,
    sample_matrix,
)

MOST_SKIPPED = 10  # images in a row; more are a disk that is gone


class Sample(TypedDict):
    """One image ready for the model, in Hugging Face's names."""

    pixel_values: Tensor  # (C, H, W) float32, normalised, 0 in the padding
    pixel_mask: Tensor  # (H, W) bool, True on real pixels
    mask_labels: Tensor  # (N, H, W) uint8 0/1; instances may overlap
    class_labels: Tensor  # (N,) int64, 0..K-1
    image_id: int
    unreadable: dict[int, str]  # images in whose place this one came: id -> reason


class Batch(TypedDict):
    """Samples of one size, stacked; what differs in N stays a list."""

    pixel_values: Tensor  # (B, C, H, W) float32
    pixel_mask: Tensor  # (B, H, W) bool
    mask_labels: list[Tensor]  # B times (N, H, W) uint8
    class_labels: list[Tensor]  # B times (N,) int64
    image_ids: list[int]
    unreadable: dict[int, str]  # images that could not be read: id -> reason


class CocoInstanceDataset(Dataset[Sample]):
    """Images with their instances, transformed; indexed by a key (epoch, index) (`SampleKey`), or by index alone.

    With the index alone, the epoch is that of `set_epoch`, which accelerate and transformers' Trainer call. The
    randomness of a sample depends on the seed and the key only: not on the worker, the process, or earlier samples.
    Crowd regions are never targets. Workers share the records (see `records.py`).
    """

    def __init__(
        self,
        data: CocoData,
        *,
        image_height: int,
        image_width: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        augmentation: Augmentation | None = None,
        options: ReadOptions = AS_STORED,
        seed: int = 0,
        skip_unreadable: bool = False,
    ) -> None:
        """image_height, image_width: the canvas. augmentation None: nothing random; of an image that keeps its own
        scale and is larger than the canvas, the middle (`crops`). image_mean, image_std: C numbers. options: how image
        files are read, with C channels, and their scale. skip_unreadable: the next image takes the place of one that
        cannot be read.

        Raises OptionError, with the nearest valid sizes, unless both sides of the canvas are multiples of 16.
        """
        check_canvas(image_height, image_width)
        self.canvas = (image_height, image_width)
        self.tensor_size = padded_size(image_height, image_width)
        self.image_mean, self.image_std = tuple(image_mean), tuple(image_std)
        self.augmentation = augmentation
        self.options = options
        self.seed = seed
        self.skip_unreadable = skip_unreadable
        self.epoch = 0
        self.images = data.images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleKey | int) -> Sample:
        """The sample of a key. Raises DatasetError for an image that is unreadable or of another size.

        With `skip_unreadable`, only when those after it are unreadable, too.
        """
        epoch, index, *copy = key if isinstance(key, tuple) else (self.epoch, key)
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of a data set of {len(self)} images")
        if get_worker_info() is not None:
            cv2.setNumThreads(0)  # workers run in parallel already; more threads would compete for the same cores
        unreadable: dict[int, str] = {}
        for tried in range(min(MOST_SKIPPED, len(self))):
            place = (index + tried) % len(self)
            try:
                return self._make((epoch, place, *copy), unreadable)
            except DatasetError as error:
                if not self.skip_unreadable:
                    raise
                unreadable[self.images[place].id] = str(error)
        raise DatasetError("; ".join(unreadable.values()))

    def _make(self, key: SampleKey, unreadable: dict[int, str]) -> Sample:
        """The sample of a key. unreadable: images that it stands for; one that cannot be pasted is added."""
        rng = np.random.default_rng((self.seed, *key))
        record = self.images[key[1]]
        placed = self._place(record, rng)
        change = self.augmentation
        if change is not None and change.copy_paste > 0 and rng.random() < change.copy_paste:
            other = self.images[int(rng.integers(len(self)))]
            try:
                placed = paste(placed, self._place(other, rng), rng)
            except DatasetError as error:
                if not self.skip_unreadable:
                    raise
                unreadable[other.id] = str(error)
        if change is not None and change.color_jitter > 0:
            jitter_colors(placed.image, rng, change.color_jitter)
        image = placed.image if change is None else change_pixels(placed.image, rng, change)
        pixel_values, pixel_mask = to_pixel_values(image, *self.tensor_size, self.image_mean, self.image_std)
        masks = torch.zeros((len(placed.windows), *self.tensor_size), dtype=torch.uint8)
        for mask, window in zip(masks.numpy(), placed.windows, strict=True):
            mask[window.place] = window.pixels
        return Sample(
            pixel_values=torch.from_numpy(pixel_values),
            pixel_mask=torch.from_numpy(pixel_mask),
            mask_labels=masks,
            class_labels=torch.tensor(placed.labels, dtype=torch.int64),
            image_id=record.id,
            unreadable=unreadable,
        )

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of samples that are asked for by their index alone."""
        self.epoch = epoch

    def _place(self, record: ImageRecord, rng: np.random.Generator) -> PlacedImage:
        """An image placed on the canvas, with the instances that the canvas still shows."""
        image = read_image(record.path, self.options)
        where = f"image {record.id}, {record.path}"
        check_image_size(where, (record.height, record.width), image.shape[:2])
        check_channel_count(where, len(self.image_mean), image.shape[2])
        # A transposed image is placed on a canvas with its sides exchanged, then the result is transposed.
        transposed = self.augmentation is not None and self.augmentation.flip == "all" and rng.random() < 0.5
        canvas = self.canvas[::-1] if transposed else self.canvas
        matrix = self._matrix(rng, record, canvas)
        size, is_crop = (record.height, record.width), self.options.factor is not None
        real = size_on_canvas(matrix, *size, *canvas)
        rotation = 0.0 if self.augmentation is None else self.augmentation.rotation
        if rotation > 0:
            matrix = rotate_matrix(matrix, real, rng.uniform(-rotation, rotation))
        image = warp_image(image, matrix, *real)  # (r, c, C)
        targets = [one for one in record.annotations if not one.iscrowd]
        windows = rasterise_windows([one.segmentation for one in targets], size, matrix, *real, exact=is_crop)
        if rotation > 0:
            windows = cut_corners(image, windows, size, matrix, [round(255 * mean) for mean in self.image_mean])
        shown = [
            (one.label, window)
            for one, window in zip(targets, windows, strict=True)
            if window is not None and not (is_crop and is_sliver(window, one.segmentation, matrix, real))
        ]
        if transposed:
            image = np.ascontiguousarray(image.swapaxes(0, 1))  # (c, r, C)
            shown = [(label, window.transpose()) for label, window in shown]
        return PlacedImage(image, [label for label, _ in shown], [window for _, window in shown])

    def _matrix(self, rng: np.random.Generator, record: ImageRecord, canvas: tuple[int, int]) -> Matrix:
        """The matrix (2, 3) that places an image on the canvas."""
        factor = self.options.factor
        if self.augmentation is None:
            return middle_matrix(record.height, record.width, *canvas, factor)
        focus = None if factor is None else choose_focus(rng, record)
        return sample_matrix(rng, record.height, record.width, *canvas, self.augmentation, factor, focus)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples to a batch; masks and labels stay lists (an image may have none)."""
    return Batch(
        pixel_values=torch.stack([sample["pixel_values"] for sample in samples]),
        pixel_mask=torch.stack([sample["pixel_mask"] for sample in samples]),
        mask_labels=[sample["mask_labels"] for sample in samples],
        class_labels=[sample["class_labels"] for sample in samples],
        image_ids=[sample["image_id"] for sample in samples],
        unreadable={key: text for sample in samples for key, text in sample["unreadable"].items()},
    )
