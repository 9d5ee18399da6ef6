"""Masks made in blocks: equal to the plain resizing of whole masks, whatever the sizes, the memory and the content."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mask2former_dinov3.inference import resize_masks as resize_masks_module
from mask2former_dinov3.inference.resize_masks import BLOCK, Masks, _weights, cut_axis, drop_pairs, resize_masks
from mask2former_dinov3.instances import encode_masks

Size = tuple[int, int]


def plain(mask_logits: Tensor, canvas: Size, real: Size, size: Size, level: float) -> Masks:
    """Whole masks by two interpolations."""
    resized = F.interpolate(mask_logits[None].float(), canvas, mode="bilinear", align_corners=False)
    resized = F.interpolate(resized[..., : real[0], : real[1]], size, mode="bilinear", align_corners=False)[0]
    inside = resized > level
    areas = inside.sum((1, 2))
    certainty = (resized.sigmoid() * inside).sum((1, 2)) / areas.clamp(min=1)
    return Masks(list(encode_masks(inside.numpy())), areas.numpy(), certainty.double().numpy())


def scene(queries: int, size: Size) -> Tensor:
    """Smooth blobs, one mask of noise, an empty one, a full one and a single pixel."""
    generator = torch.Generator().manual_seed(0)
    masks = F.interpolate(torch.randn(1, queries, 4, 5, generator=generator) * 4, size, mode="bicubic")[0]
    masks[0] = torch.randn(size, generator=generator)
    masks[1], masks[2], masks[3] = -5.0, 5.0, -5.0
    masks[3, -1, -1] = 8.0
    return masks


@pytest.mark.parametrize(
    ("canvas", "real", "size"),
    [
        ((64, 96), (64, 96), (64, 96)),
        ((64, 96), (64, 96), (BLOCK, 2 * BLOCK)),
        ((64, 96), (50, 96), (201, 333)),
        ((64, 96), (64, 37), (BLOCK + 1, BLOCK - 1)),
        ((64, 96), (3, 2), (90, 70)),
        ((64, 96), (1, 1), (1, 1)),
        ((16, 24), (16, 24), (7, 5)),
    ],
)
@pytest.mark.parametrize("probability", [0.5, 0.2, 0.9])
def test_resize_masks__equals_plain_resizing(canvas: Size, real: Size, size: Size, probability: float) -> None:
    mask_logits = scene(8, (16, 24))
    level = math.log(probability / (1 - probability))
    expected = plain(mask_logits, canvas, real, size, level)
    for memory_bytes in (1, 300_000, 10**9):
        found = resize_masks(mask_logits, torch.arange(8), canvas, real, size, level, memory_bytes)
        assert found.rles == expected.rles
        np.testing.assert_array_equal(found.areas, expected.areas)
        np.testing.assert_allclose(found.certainty, expected.certainty, rtol=1e-5)


def test_resize_masks__gives_the_queries_asked_for_in_their_order() -> None:
    mask_logits = scene(8, (16, 24))
    expected = plain(mask_logits, (64, 96), (64, 96), (50, 60), 0.0)
    found = resize_masks(mask_logits, torch.tensor([6, 1, 0]), (64, 96), (64, 96), (50, 60), 0.0, 10**9)
    assert found.rles == [expected.rles[query] for query in (6, 1, 0)]
    none = resize_masks(mask_logits, torch.zeros(0, dtype=torch.long), (64, 96), (64, 96), (50, 60), 0.0, 10**9)
    assert none.rles == []
    assert none.areas.shape == none.certainty.shape == (0,)


def test_cut_axis__every_place_of_the_image_is_weighed_to_one_and_nothing_beyond_it() -> None:
    axis = cut_axis(16, 64, 50, BLOCK + 3)
    sums = axis.weight.sum(2).flatten()
    torch.testing.assert_close(sums[: BLOCK + 3], torch.ones(BLOCK + 3))
    assert not sums[BLOCK + 3 :].any()
    assert axis.reads.min() >= 0
    assert axis.reads.max() < 16


def test_drop_pairs__sorts_and_leaves_out_pairs() -> None:
    assert drop_pairs(np.array([5, 1, 5, 0, 7, 1])).tolist() == [0, 7]
    assert drop_pairs(np.zeros(0, dtype=np.int64)).tolist() == []


@pytest.mark.parametrize("size", [(1, 40_000), (40_000, 1)])
def test_resize_masks__of_a_very_long_image_takes_weights_in_parts(size: Size, monkeypatch: pytest.MonkeyPatch) -> None:
    mask_logits = scene(4, (16, 24))
    real = (64, 1) if size[0] > 1 else (1, 96)
    expected = plain(mask_logits, (64, 96), real, size, 0.0)
    largest = 0

    def watched(units: Tensor, size: int, blocks: Tensor) -> Tensor:
        nonlocal largest
        made = _weights(units, size, blocks)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(resize_masks_module, "_weights", watched)
    monkeypatch.setattr(resize_masks_module, "WEIGHTS", 50_000)
    cut_axis.cache_clear()
    found = resize_masks(mask_logits, torch.arange(4), (64, 96), real, size, 0.0, 10**6)
    cut_axis.cache_clear()
    assert found.rles == expected.rles
    assert 0 < largest <= 50_000
