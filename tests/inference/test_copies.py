"""Copies: instances that lie in a better one of their class, found without bitmaps and dropped greedily."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mask2former_dinov3.data.rle import runs_of_each
from mask2former_dinov3.inference import copies
from mask2former_dinov3.inference.copies import parts_inside, suppress_copies
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Grid
from mask2former_dinov3.inference.tiles.merging import merge_rows
from mask2former_dinov3.instances import Instances, Unreported

NAMES = ((1, "disc"), (2, "bar"))


def boxes_in(height: int, width: int, corners: list[tuple[int, int, int, int]]) -> np.ndarray:
    """(N, height, width) bool of boxes x0 y0 x1 y1."""
    masks = np.zeros((len(corners), height, width), bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def found_in(corners: list[tuple[int, int, int, int]], labels: list[int], scores: list[float]) -> Instances:
    return Instances.from_masks(boxes_in(40, 60, corners), labels, scores, NAMES)


def random_masks(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 40, 60) bool: boxes with holes, of which many lie in each other."""
    corners = rng.integers(0, 30, (count, 2))
    sides = rng.integers(2, 25, (count, 2))
    masks = boxes_in(40, 60, [(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sides, strict=True)])
    solid: np.ndarray = (rng.random(masks.shape) < 0.9) | (np.arange(60) % 7 == 0)
    return np.asarray(masks & solid)


@pytest.mark.parametrize("seed", [0, 1])
def test_parts_inside__equals_counting_pixels(seed: int) -> None:
    masks = random_masks(np.random.default_rng(seed), 25)
    found = Instances.from_masks(masks, [0] * 25, np.linspace(1, 0, 25))
    earlier, later, part = parts_inside(found.rles, 40)
    got = dict(zip(zip(earlier.tolist(), later.tolist(), strict=True), part.tolist(), strict=True))
    expected = {
        (i, j): (masks[i] & masks[j]).sum() / masks[j].sum()
        for i, j in itertools.combinations(range(25), 2)
        if (masks[i] & masks[j]).any()
    }
    assert len(expected) > 50
    assert got == pytest.approx(expected)


@pytest.mark.parametrize("copy_overlap", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", [0, 3])
def test_suppress_copies__equals_a_greedy_search_on_bitmaps(seed: int, copy_overlap: float) -> None:
    rng = np.random.default_rng(seed)
    masks, labels, scores = random_masks(rng, 40), rng.integers(0, 2, 40), rng.permutation(40) / 40
    kept: list[int] = []
    for index in np.argsort(-scores).tolist():
        better = [one for one in kept if labels[one] == labels[index]]
        if all((masks[one] & masks[index]).sum() <= copy_overlap * masks[index].sum() for one in better):
            kept.append(index)
    found = Instances.from_masks(masks, labels, scores, NAMES)
    got = suppress_copies(found, copy_overlap)
    assert sorted(got.scores.tolist(), reverse=True) == [float(np.float32(scores[one])) for one in kept]
    assert got.left_out.copies == 40 - len(kept) > 0
    assert all(np.array_equal(got.mask(i), masks[sorted(kept)[i]]) for i in range(len(got)))  # in their order


def test_suppress_copies__a_better_small_one_leaves_the_large_one_around_it() -> None:
    found = found_in([(10, 10, 20, 20), (0, 0, 40, 40), (12, 12, 18, 18)], [0, 0, 0], [0.9, 0.8, 0.7])
    assert suppress_copies(found, 0.5).scores.tolist() == pytest.approx([0.9, 0.8])


def test_suppress_copies__leaves_other_classes_and_what_lies_in_a_copy_only() -> None:
    """A chain: the second lies in the first, the third only in the second, which is dropped."""
    found = found_in(
        [(0, 0, 20, 20), (8, 0, 24, 20), (18, 0, 26, 20), (0, 0, 20, 20)], [0, 0, 0, 1], [0.9, 0.8, 0.7, 1]
    )
    got = suppress_copies(found, 0.7)
    assert sorted(got.scores.tolist()) == pytest.approx([0.7, 0.9, 1])
    assert got.left_out == Unreported(copies=1)


@pytest.mark.parametrize("copy_overlap", [None, 1.0])
def test_suppress_copies__is_off_unless_asked(copy_overlap: float | None) -> None:
    found = found_in([(0, 0, 20, 20), (0, 0, 20, 20)], [0, 0], [0.9, 0.8])
    assert suppress_copies(found, copy_overlap) is found


def test_merge_rows__drops_copies_of_the_whole_image_and_sums_up_what_tiles_left_out() -> None:
    """One tile finds an object whole, and again a part of it: merging keeps pieces of one tile apart."""
    grid = Grid.of(40, 100, 60, 0.2)
    left, right = grid.row(0)
    shapes = [(5, 5, 25, 35), (8, 8, 20, 30)]
    first = Instances.from_masks(
        boxes_in(40, left.x1 - left.x0, shapes), [0, 0], [0.9, 0.6], NAMES, left_out=Unreported(limit=2, full=1)
    )
    empty = np.zeros((0, 40, right.x1 - right.x0), bool)
    second = Instances.from_masks(empty, [], [], NAMES, left_out=Unreported(limit=1, full=1, best_score=0.3))
    merged = merge_rows([[first, second]], grid, NAMES)
    assert len(merged) == 2
    assert merged.left_out == Unreported(limit=3, full=2)
    without = merge_rows([[first, second]], grid, NAMES, InferenceSettings(copy_overlap=0.8))
    assert without.scores.tolist() == pytest.approx([0.9])
    assert without.left_out == Unreported(limit=3, full=2, copies=1)
    nothing = merge_rows([[first[[]], second]], grid, NAMES, InferenceSettings(copy_overlap=0.8))
    assert nothing.left_out.best_score == 0.3


def test_suppress_copies__decodes_only_what_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 300 boxes that touch nothing, and two pairs: memory holds the runs of a pair at a time."""
    corners = [(4 * i, 0, 4 * i + 3, 5) for i in range(300)]
    masks = boxes_in(6, 1202, [*corners, (0, 0, 3, 4), (40, 0, 43, 4)])
    found = Instances.from_masks(masks, [0] * 302, np.linspace(1, 0.1, 302))
    sizes: list[int] = []

    def counting(counts: list[bytes]) -> list[np.ndarray]:
        sizes.append(len(counts))
        return [*runs_of_each(counts)]

    monkeypatch.setattr(copies, "runs_of_each", counting)
    assert len(suppress_copies(found, 0.5)) == 300
    assert sizes == [2, 2]
