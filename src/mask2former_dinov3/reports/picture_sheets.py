"""Sheets of pictures: training samples as the network gets them, and what a model finds in the same few images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ..data.dataset import CocoInstanceDataset, Sample
from ..data.fitting import PixelArray
from ..data.segmentation import Segmentation
from ..visualize import rgb_view
from .pictures import MOST_MASKS, draw_all, draw_masks, view_of

CELL_SIDE = 256  # pixels of the longer side of a picture in a sheet
_STRIP, _GAP = 18, 6  # pixels: below a picture for its words, and between pictures
_PAPER, _INK = 255, (60, 60, 60)


def draw_sample(sample: Sample, dataset: CocoInstanceDataset, side: int) -> PixelArray:
    """A training sample without its normalisation and reduced to `side` pixels, with its targets; padding is grey."""
    values = sample["pixel_values"].numpy().transpose(1, 2, 0)  # (H, W, C)
    plain = (values * np.array(dataset.image_std) + np.array(dataset.image_mean)) * 255
    pixels = rgb_view(np.clip(np.round(plain), 0, 255).astype(np.uint8))
    pixels[~sample["pixel_mask"].numpy()] = 128
    masks = sample["mask_labels"].numpy()  # (N, H, W)
    scale = min(side / max(pixels.shape[:2]), 1.0)
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
    shrunk = [cv2.resize(mask, size, interpolation=cv2.INTER_AREA) for mask in masks[:MOST_MASKS]]
    return draw_masks(pixels, np.array(shrunk, np.bool_).reshape(-1, *size[::-1]))


def draw_pair(
    image: PixelArray,
    truth: Sequence[tuple[Segmentation, int]],
    found: Sequence[tuple[Segmentation, int]],
    categories: tuple[tuple[int, str], ...],
) -> PixelArray:
    """An image (H, W, C) twice, side by side and reduced: with what is annotated, and with what was found.

    truth, found: masks with their labels, positions in `categories`.
    """
    view = view_of(image, side=CELL_SIDE)
    sides = [
        draw_all(view, [mask for mask, _ in masks], [label for _, label in masks], categories)
        for masks in (truth, found)
    ]
    return np.concatenate(sides, 1)


def make_sheet(pictures: Sequence[tuple[PixelArray, str]], columns: int) -> PixelArray:
    """Pictures (h, w, 3) with a line of words below each, row by row on white paper."""
    height = max(picture.shape[0] for picture, _ in pictures) + _STRIP
    width = max(picture.shape[1] for picture, _ in pictures)
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    sheet: NDArray[np.uint8] = np.full(
        (rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), _PAPER, np.uint8
    )
    for place, (picture, words) in enumerate(pictures):
        row, column = divmod(place, columns)
        top, left = _GAP + row * (height + _GAP), _GAP + column * (width + _GAP)
        bottom = top + picture.shape[0]
        sheet[top:bottom, left : left + picture.shape[1]] = picture
        cell = sheet[bottom : bottom + _STRIP, left : left + width]
        text = words.encode("ascii", "replace").decode()  # OpenCV's letters
        cv2.putText(cell, text, (1, _STRIP - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.38, _INK, 1, cv2.LINE_AA)
    return sheet
