"""Merging without a model: tiles get the true masks, cut at the tile's edges, and merging must restore them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mask2former_dinov3.data.coco import Annotation, read_coco
from mask2former_dinov3.data.layout import Split
from mask2former_dinov3.data.rle import run_lengths
from mask2former_dinov3.data.segmentation import polygons_to_runs
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.evaluation.coco_ap import evaluate_coco
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Grid, Region
from mask2former_dinov3.inference.tiles.merging import Merger
from mask2former_dinov3.inference.tiles.runs import Runs, join_runs
from mask2former_dinov3.instances import Instances
from mask2former_dinov3.sample_data import SAMPLE

Masks = NDArray[np.bool_]
CATEGORIES = ((3, "disc"), (7, "bar"))


def merged(
    masks: Masks, grid: Grid, labels: list[int] | None = None, seen: Callable[[Masks], Masks] = lambda cut: cut
) -> Instances:
    """What comes out when every tile finds exactly the parts of `masks` (N, H, W) that it shows, changed by `seen`."""
    labels = labels or [0] * len(masks)
    merger = Merger(grid, CATEGORIES)
    for row in range(len(grid.tops)):
        found = []
        for tile in grid.row(row):
            cut = seen(masks[:, tile.y0 : tile.y1, tile.x0 : tile.x1])
            shown = [index for index in range(len(masks)) if cut[index].any()]
            scores = [0.9 - 0.001 * index for index in shown]
            found.append(Instances.from_masks(cut[shown], [labels[index] for index in shown], scores, CATEGORIES))
        merger.add_row(row, found)
    return merger.instances()


def assert_are(found: Instances, masks: Masks) -> None:
    """The same masks, in any order."""
    assert len(found) == len(masks)
    assert {mask.tobytes() for mask in found.masks} == {mask.tobytes() for mask in masks}


def blank(height: int, width: int) -> Masks:
    return np.zeros((height, width), dtype=bool)


def discs(height: int, width: int, count: int, seed: int, radius: tuple[int, int] = (4, 12)) -> Masks:
    """Discs that do not overlap but may touch."""
    rng = np.random.default_rng(seed)
    taken, masks = blank(height, width), []
    rows, columns = np.mgrid[:height, :width]
    for _ in range(count):
        y, x, r = rng.integers(0, height), rng.integers(0, width), rng.integers(*radius)
        mask = (np.hypot(rows - y, columns - x) < r) & ~taken
        if mask.sum() > 20 and mask.sum() > 0.8 * np.pi * r * r:
            masks.append(mask)
            taken |= mask
    return np.array(masks)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.4), (96, 0.3), (100, 0.25), (64, 0.45)])
def test_merger__gives_back_small_objects_pixel_by_pixel(tile: int, overlap: float, seed: int) -> None:
    masks = discs(230, 310, 150, seed)
    assert len(masks) > 60
    assert_are(merged(masks, Grid.of(230, 310, tile, overlap)), masks)


@pytest.mark.parametrize("overlap", [0.1, 0.2, 0.4])
def test_merger__gives_back_objects_larger_than_a_tile(overlap: float) -> None:
    height, width = 300, 400
    masks = np.stack([blank(height, width) for _ in range(5)])
    masks[0, 5:295, 5:60] = True  # higher than tiles
    masks[1, 5:60, 70:395] = True  # wider
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - 180, columns - 230)
    masks[2] = (distance < 110) & (distance > 85)  # a ring around
    masks[3] = distance < 60  # a disc
    masks[4, 100:295, 350:354] = True  # a thread
    assert_are(merged(masks, Grid.of(height, width, 64, overlap)), masks)


def test_merger__joins_all_of_an_object_that_fills_the_image() -> None:
    whole = np.ones((1, 200, 170), dtype=bool)
    found = merged(whole, Grid.of(200, 170, 64, 0.2))
    assert_are(found, whole)
    assert found.rles == Instances.from_masks(whole, [0], [0.9]).rles
    assert found.scores[0] == np.float32(0.9)


def test_merger__keeps_touching_objects_apart() -> None:
    masks = np.stack([blank(128, 200) for _ in range(8)])
    for index in range(8):
        masks[index, :, 25 * index : 25 * (index + 1)] = True  # stripes from top to bottom
    assert_are(merged(masks, Grid.of(128, 200, 64, 0.25)), masks)
    turned = masks.transpose(0, 2, 1)
    assert_are(merged(turned, Grid.of(200, 128, 64, 0.25)), turned)


def test_merger__joins_arms_whose_bend_only_one_tile_sees() -> None:
    """A horseshoe: the right tile sees two arms and takes them for two objects."""
    shoe = blank(64, 112)
    shoe[10:20, 10:100] = shoe[44:54, 10:100] = shoe[10:54, 10:20] = True
    merger = Merger(Grid.of(64, 112, 64, 0.2), None)
    left, right = shoe[:, :64], shoe[:, 48:]
    arms = np.stack([right, right])
    arms[0, 32:] = arms[1, :32] = False
    merger.add_row(0, [Instances.from_masks(left[None], [0], [0.8]), Instances.from_masks(arms, [0, 0], [0.9, 0.7])])
    assert_are(merger.instances(), shoe[None])


def test_merger__keeps_overlapping_instances_and_classes() -> None:
    masks = np.stack([blank(150, 150) for _ in range(3)])
    masks[0, 20:120, 20:120] = True
    masks[1, 50:90, 50:90] = True  # lies on the first
    masks[2] = masks[1]  # the same pixels as another class
    found = merged(masks, Grid.of(150, 150, 64, 0.3), labels=[0, 0, 1])
    assert sorted(zip(found.labels.tolist(), found.areas.tolist(), strict=True)) == [(0, 1600), (0, 10000), (1, 1600)]


def test_merger__does_not_merge_within_a_tile() -> None:
    """As without tiles, where a query may repeat what another has found."""
    mask = blank(64, 64)
    mask[10:30, 10:30] = True
    merger = Merger(Grid.of(64, 64, 64, 0.2), None)
    given = Instances.from_masks(np.stack([mask, mask]), [0, 0], [0.9, 0.8])
    merger.add_row(0, [given])
    found = merger.instances()
    assert found.rles == given.rles
    assert found.scores.tolist() == given.scores.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_merger__bears_masks_that_differ_between_tiles(seed: int) -> None:
    """Every tile loses pixels at edges at random and stops one short of its own border: still each object once."""
    import cv2

    rng = np.random.default_rng(seed)

    def seen(cut: Masks) -> Masks:
        kernel = np.ones((3, 3), np.uint8)
        worn = [cv2.erode(np.pad(one.astype(np.uint8), 1), kernel)[1:-1, 1:-1] for one in cut]
        return np.array(
            [one & (eroded.astype(bool) | (rng.random(one.shape) < 0.5)) for one, eroded in zip(cut, worn, strict=True)]
        )

    masks = discs(230, 310, 150, seed, radius=(8, 25))
    found = merged(masks, Grid.of(230, 310, 96, 0.25), seen=seen)
    assert len(found) == len(masks)
    best = (found.masks[:, None] & masks[None]).sum((2, 3)) / (found.masks[:, None] | masks[None]).sum((2, 3))
    assert best.max(0).min() > 0.8


def test_merger__finishes_what_no_further_row_meets() -> None:
    masks = discs(600, 64, 100, 0)
    grid = Grid.of(600, 64, 64, 0.25)
    merger = Merger(grid, None)
    held = []
    for row in range(len(grid.tops)):
        (tile,) = grid.row(row)
        cut = masks[:, tile.y0 : tile.y1]
        shown = cut[[one.any() for one in cut]]
        merger.add_row(row, [Instances.from_masks(shown, [0] * len(shown), [0.9] * len(shown))])
        held.append(len(merger.tiles))
    assert set(held[:-1]) == {1}
    assert len(merger.finished) == len(masks)


def test_runs__count_and_join_as_bitmaps_do() -> None:
    rng = np.random.default_rng(0)

    def runs_of(mask: Masks) -> Runs:
        padded = np.pad(mask.T.astype(np.int8), ((0, 0), (1, 1)))
        step = np.diff(padded, axis=1)
        column, start = np.nonzero(step == 1)
        _, end = np.nonzero(step == -1)
        return Runs(column * mask.shape[0] + start, column * mask.shape[0] + end)

    for _ in range(50):
        one, two = (rng.random((2, 13, 17)) < rng.random((2, 1, 1))).astype(bool)
        first, second = runs_of(one), runs_of(two)
        assert first.area == one.sum()
        assert first.shared(second) == second.shared(first) == (one & two).sum()
        region = Region(3, 2, 11, 15)
        assert first.within(region, 13).area == one[3:11, 2:15].sum()
        if (one | two).any():
            both = join_runs([first, second])
            assert both.area == (one | two).sum()
            assert (both.start[1:] > both.end[:-1]).all()


@pytest.mark.parametrize("length", [64, 65, 100, 115, 116, 1000, 12345])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.0), (64, 0.2), (64, 0.49), (2000, 0.2)])
def test_grid__covers_with_full_tiles_that_overlap_enough(length: int, tile: int, overlap: float) -> None:
    grid = Grid.of(length, 50, tile, overlap)
    side = min(tile, length)
    assert (grid.tile_height, grid.tile_width, grid.lefts) == (side, min(tile, 50), (0,))
    assert (grid.tops[0], grid.tops[-1]) == (0, length - side)
    steps = np.diff(grid.tops)
    assert (steps <= side - int(np.ceil(side * overlap))).all()
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (31, 0.2, "tile: expected a whole number of pixels, at least 32, got 31"),
        (64.5, 0.2, "tile: expected a whole number of pixels, at least 32, got 64.5"),
        (64, 0.5, "overlap: expected a fraction from 0 to below 0.5, got 0.5"),
        (64, -0.1, "overlap: expected a fraction from 0 to below 0.5, got -0.1"),
        (64, float("nan"), "overlap: expected a fraction from 0 to below 0.5, got nan"),
    ],
)
def test_inference_settings__refuse_tiles_that_cannot_be(tile: Any, overlap: float, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        InferenceSettings(tile=tile, overlap=overlap)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_grid__batches_hold_every_tile_of_a_row_once(size: int) -> None:
    grid = Grid.of(200, 300, 64, 0.2)
    batches = list(grid.batches(1, size))
    assert [tile for batch in batches for tile in batch] == list(grid.row(1))
    assert {len(batch) for batch in batches[:-1]} <= {size}


@pytest.mark.parametrize("overlap", [0.2, 0.4])
def test_merger__of_true_nuclei_loses_nothing(overlap: float) -> None:
    """The annotated masks of four images side by side, cut by 120-pixel tiles whose seams run through dozens of them:
    the AP that is lost is what merging loses."""
    sample = read_coco(Split("valid", SAMPLE / "valid" / "_annotations.coco.json", SAMPLE / "valid"))
    images = [image for image in sample.images if (image.height, image.width) == (360, 360)][:4]
    side = 720
    masks = []
    for place, image in enumerate(images):
        top, left = 360 * (place // 2), 360 * (place % 2)
        for annotation in image.annotations:
            mask = blank(side, side)
            mask[top : top + 360, left : left + 360] = mask_of(annotation, 360, 360)
            masks.append(mask)
    truth = Instances.from_masks(np.array(masks), [0] * len(masks), [1] * len(masks), CATEGORIES)
    annotations = [
        {**one, "id": index, "iscrowd": 0, "area": int(area)}
        for index, (one, area) in enumerate(zip(truth.to_coco(1), truth.areas, strict=True), start=1)
    ]
    coco = {
        "images": [{"id": 1, "height": side, "width": side}],
        "annotations": annotations,
        "categories": [{"id": 3, "name": "disc"}, {"id": 7, "name": "bar"}],
    }
    grid = Grid.of(side, side, 120, overlap)
    cut = sum(any(mask[:, x].sum() > 0 for x in grid.lefts[1:]) for mask in masks)
    assert cut > 30, cut  # seams are on objects
    found = merged(np.array(masks), grid)
    scores = evaluate_coco(coco, found.to_coco(1), max_detections=1000)
    assert scores["AP"] > 0.99
    assert abs(len(found) - len(masks)) <= 0.01 * len(masks)
    naive = evaluate_coco(coco, merged(np.array(masks), Grid.of(side, side, 120, 0.0)).to_coco(1), max_detections=1000)
    assert naive["AP"] < 0.8


def mask_of(annotation: Annotation, height: int, width: int) -> Masks:
    shape = annotation.segmentation
    runs = polygons_to_runs(shape, height, width) if isinstance(shape, list) else run_lengths(shape["counts"])
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((height, width), order="F")
