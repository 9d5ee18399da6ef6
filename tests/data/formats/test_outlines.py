"""Outlines fill to the mask: in OpenCV for masks of one part, with holes; in this package for every mask."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from mask2former_dinov3.data.formats.mask_codes import code_of_mask, code_of_window
from mask2former_dinov3.data.formats.outlines import fill_outline, outline_fractions, outline_of, outline_pixels
from mask2former_dinov3.data.segmentation import CompressedRle

EIGHT = np.ones((3, 3))


def random_mask(seed: int) -> npt.NDArray[np.bool_]:
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 24, 2)) < rng.uniform(0.05, 0.98)
    mask[0, 0] = True
    return ndimage.binary_dilation(mask, iterations=1) if seed % 3 == 0 else mask


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_outline_of__fills_to_the_mask(first: int) -> None:
    in_opencv = 0
    for seed in range(first, first + 50):
        mask = random_mask(seed)
        height, width = mask.shape
        code = code_of_mask(mask)
        assert code is not None
        outline = outline_of(CompressedRle(size=[height, width], counts=code["counts"].encode()), height, width)
        assert outline.parts == ndimage.label(mask, EIGHT)[1]
        assert outline.holes == ndimage.label(np.pad(~mask, 1, constant_values=True))[1] - 1
        assert len(outline.vertices) >= 3
        assert code_of_window(fill_outline(outline.vertices), height, width) == code
        if outline.parts == 1:
            filled = np.zeros((height, width), dtype=np.uint8)
            cv2.fillPoly(filled, [outline.vertices.astype(np.int32)], [1])
            np.testing.assert_array_equal(filled, mask)
            in_opencv += 1
    assert in_opencv > 10


def test_outline_fractions__are_the_pixels_for_readers_that_round_and_for_those_that_cut_off() -> None:
    rng = np.random.default_rng(0)
    for height, width in ((1, 1), (7, 13), (1080, 1920), (40_000, 65_535)):
        vertices = np.stack((rng.integers(0, width, 200), rng.integers(0, height, 200)), axis=1)
        written = np.array([float(f"{value:.8g}") for value in outline_fractions(vertices, height, width)])
        assert written.min() >= 0
        assert written.max() < 1
        np.testing.assert_array_equal(np.round(written.reshape(-1, 2) * (width, height)), vertices)
        np.testing.assert_array_equal((written.reshape(-1, 2) * (width, height)).astype(int), vertices)
        np.testing.assert_array_equal(outline_pixels(written, height, width), vertices)


def test_outline_of__a_square_has_four_corners_inside_it() -> None:
    code = code_of_mask(np.pad(np.ones((2, 3), dtype=bool), 1))
    assert code is not None
    outline = outline_of(CompressedRle(size=[4, 5], counts=code["counts"].encode()), 4, 5)
    assert sorted(outline.vertices.tolist()) == [[1, 1], [1, 2], [3, 1], [3, 2]]


def test_code_of_window__joins_runs_of_full_columns() -> None:
    mask = np.ones((5, 7), dtype=bool)
    mask[2, 3] = False
    code = code_of_mask(mask)
    assert code is not None
    outline = outline_of(CompressedRle(size=[5, 7], counts=code["counts"].encode()), 5, 7)
    assert code_of_window(fill_outline(outline.vertices), 5, 7) == code
