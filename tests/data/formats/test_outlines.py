"""The polygon of a mask covers the pixels of the mask, whatever its parts and holes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from mask2former_dinov3.data.formats.mask_codes import code_of_mask, mask_of_runs
from mask2former_dinov3.data.formats.outlines import outline_of, trace_rings
from mask2former_dinov3.data.segmentation import CompressedRle, polygons_to_runs


@pytest.mark.parametrize("seed", range(40))
def test_outline_of__is_the_mask_again(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(2, 20, 2))
    mask = rng.random((height, width)) < rng.uniform(0.1, 0.95)
    mask[0, 0] = True
    code = code_of_mask(mask)
    assert code is not None
    outline = outline_of(CompressedRle(size=[height, width], counts=code["counts"].encode()), height, width)
    back = mask_of_runs(polygons_to_runs([outline.polygon], height, width), height, width)
    np.testing.assert_array_equal(back, mask)
    assert outline.parts == ndimage.label(mask)[1]
    background = np.pad(~mask, 1, constant_values=True)
    assert outline.holes == ndimage.label(background, np.ones((3, 3)))[1] - 1


def test_trace_rings__a_square_has_four_corners() -> None:
    mask = np.zeros((4, 5), dtype=bool)
    mask[1:3, 1:4] = True
    (ring,) = trace_rings(mask)
    assert ring.tolist() == [[1, 1], [4, 1], [4, 3], [1, 3]]
