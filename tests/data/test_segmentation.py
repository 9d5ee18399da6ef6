"""Run-length codes and polygons against the COCO API, and the errors for malformed ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco_mask

from mask2former_dinov3.data.rle import check_runs, compress, decompress, run_lengths, whole_mask_areas
from mask2former_dinov3.data.segmentation import (
    CompressedRle,
    EmptyMaskError,
    compress_runs,
    count_stray_parts,
    longest_way,
    parse_segmentation,
    polygons_to_runs,
    rle_window,
    segmentation_area,
    segmentation_box,
)
from mask2former_dinov3.errors import DatasetError


def random_masks() -> list[npt.NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    masks = [
        (rng.random((h, w)) < p).astype(np.uint8) for h, w, p in [(7, 9, 0.5), (40, 3, 0.1), (1, 50, 0.9), (30, 30, 1)]
    ]
    big = np.zeros((900, 1400), dtype=np.uint8)
    big[100:800, 200:1300] = 1  # run lengths of several characters
    big[300:400, 500:600] = 0
    return [*masks, big, np.pad(np.ones((1, 1), np.uint8), 5)]


def encode(mask: npt.NDArray[np.uint8]) -> CompressedRle:
    rle = coco_mask.encode(np.asfortranarray(mask))
    return CompressedRle(size=[int(side) for side in rle["size"]], counts=rle["counts"])


@pytest.mark.parametrize("mask", random_masks(), ids=lambda mask: str(mask.shape))
def test_rle_window__equals_the_coco_api_for_any_mask(mask: npt.NDArray[np.uint8]) -> None:
    window = rle_window(encode(mask))
    assert window is not None
    restored = np.zeros_like(mask)
    rows, columns = window.pixels.shape
    restored[window.top : window.top + rows, window.left : window.left + columns] = window.pixels
    np.testing.assert_array_equal(restored, mask)
    left, top, width, height = segmentation_box(encode(mask))
    ys, xs = np.nonzero(mask)
    assert [left, top, width, height] == [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
    assert segmentation_area(encode(mask)) == mask.sum()


@pytest.mark.parametrize("mask", random_masks(), ids=lambda mask: str(mask.shape))
def test_compress_runs__is_the_inverse_of_run_lengths(mask: npt.NDArray[np.uint8]) -> None:
    rle = encode(mask)
    assert compress_runs(run_lengths(rle["counts"]), *mask.shape) == rle


def test_rle__many_masks_at_once_are_as_one_by_one() -> None:
    masks = [*random_masks(), np.zeros((3, 4), np.uint8), np.ones((5, 2), np.uint8)]
    counts = [encode(mask)["counts"] for mask in masks]
    runs, number = decompress(counts)
    one_by_one = [run_lengths(one) for one in counts]
    np.testing.assert_array_equal(runs, np.concatenate(one_by_one))
    np.testing.assert_array_equal(number, [len(one) for one in one_by_one])
    assert compress(runs, number) == counts
    np.testing.assert_array_equal(whole_mask_areas(counts, [mask.size for mask in masks]), [m.sum() for m in masks])
    assert whole_mask_areas([], []).shape == (0,)
    assert compress(*decompress([])) == []


@pytest.mark.parametrize("counts", [b"", b"5", b"1P", b"1\x00", b"XO0", b"10"])
def test_whole_mask_areas__one_bad_mask_among_good_ones_is_refused(counts: bytes) -> None:
    good = encode(np.eye(3, dtype=np.uint8))["counts"]
    with pytest.raises(ValueError, match="RLE counts"):
        whole_mask_areas([good, counts, good], [9, 9, 9])


def test_decompress__a_number_cannot_go_on_in_the_next_mask() -> None:
    with pytest.raises(ValueError, match="cut short"):
        decompress([b"1P", b"1"])


def test_rle_window__of_an_empty_mask_is_none() -> None:
    assert rle_window(encode(np.zeros((5, 4), np.uint8))) is None
    assert segmentation_box(encode(np.zeros((5, 4), np.uint8))) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (b"1\x00", "characters"),
        ("ü".encode(), "characters"),
        (b"1P", "cut short"),
        (b"P" * 20 + b"0", "at most 10 characters, got 21"),
    ],
)
def test_run_lengths__malformed_counts_are_refused(counts: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_lengths(counts)


def test_check_runs__wrong_totals_and_negative_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected runs that cover 2 x 3 = 6 pixels, got 5"):
        check_runs(np.array([2, 3]), 2, 3)
    with pytest.raises(ValueError, match="expected run lengths of 0 or more, got -2"):
        check_runs(np.array([8, -2]), 2, 3)


def test_polygons_to_runs__parts_are_united_not_added() -> None:
    square = np.array([[1.0, 1], [4, 1], [4, 4], [1, 4]])
    runs = polygons_to_runs([square, square + 1], 8, 8)
    reference = coco_mask.merge(coco_mask.frPyObjects([square.ravel().tolist(), (square + 1).ravel().tolist()], 8, 8))
    assert runs[1::2].sum() == coco_mask.area(reference) == 9 + 9 - 4


def test_parse_segmentation__all_three_forms() -> None:
    polygon = parse_segmentation([["1", 1.0, 4, 1, "4", 4, 1, 4], [5, 5, 7, 5, 7, 7]], 8, 8)
    assert isinstance(polygon, list)
    assert [part.shape for part in polygon] == [(4, 2), (3, 2)]
    assert segmentation_area(polygon) == 9 + 2
    assert segmentation_box(polygon) == (1, 1, 6, 6)
    plain = parse_segmentation({"size": ["2", 3.0], "counts": [1, "2", 3.0]}, 2, 3)
    compressed = parse_segmentation(
        {"size": [2, 3], "counts": encode(np.array([[0, 1, 0], [1, 0, 0]], np.uint8))["counts"].decode()}, 2, 3
    )
    assert plain == compressed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "expected a list of polygons or an RLE object, got a number"),
        ([1, 1, 4, 1, 4, 4], "got a list of numbers; put the polygon into a list"),
        ([[1, 1, 4, 1, 4]], r"expected an even count of numbers .*, got 5"),
        ([[1, 1, 4, 4]], "expected at least 3 points, got 2; COCO's API reads 4 numbers as a box"),
        ([[1, 1, 4, 4], [2, 2]], "expected at least 3 points, got 2; COCO's API reads 4 numbers as a box"),
        ([[1, 1], [4, 1], [4, 4]], r"got a list of points \[x, y\]; write x, y, x, y, … in one list"),
        ([[1, 1], [4, 1]], r"got a list of points \[x, y\]"),
        ([[1, 1, 4], [1, 1, 4, 1, 4, 4]], r"expected an even count of numbers .*, got 3"),
        ([[1, 1, 4, 1, 4, float("nan")]], "got NaN or infinity"),
        ([[1, 1, 4, 1, 4, None]], "flat list of numbers .*, got null"),
        ([[1, 1, 4, 1, 4, float("inf")]], "got NaN or infinity"),
        ([[1, 1, 4, 1, 4, 1e9]], r"expected coordinates within 100000 pixels, got 1e\+09"),
        ([[1, 1, 4, 1, 4, "x"]], "flat list of numbers"),
        ([[[1, 1], [4, 1], [4, 4]]], r"flat list of numbers .*, got a list of points \[x, y\]; write x, y, x, y, … wi"),
        ([[[1, 1], [4, 1], [4, 4]], [5, 5]], r"got a list of points \[x, y\]"),
        ([[1, [1], 4, 1, 4, 4]], "flat list of numbers"),
        ([[1, 1, 4, 1, 4, {}]], "flat list of numbers"),
        ([[1, 1, 5, 1, 5, 5], {"size": [6, 8]}], "got an RLE inside a list; take it out of the list"),
        ([{"size": [6, 8], "counts": [0, 48]}], "got an RLE inside a list; take it out of the list"),
        ({"size": [8, 6], "counts": "0"}, "swap them"),
        ({"size": [5, 6], "counts": "0"}, r"of the image, \[6, 8\], got \[5, 6\]"),
        ({"counts": "0"}, "RLE size: .*, got null"),
        ({"size": [6, 8]}, "RLE counts: expected a string or a list of whole numbers, got null"),
        ({"size": [6, 8], "counts": "ü"}, "characters"),
        ({"size": [6, 8], "counts": "5"}, "expected runs that cover 6 x 8 = 48 pixels, got 5"),
        ({"size": [6, 8], "counts": [50, -2]}, "expected run lengths of 0 or more, got -2"),
        ({"size": [6, 8], "counts": [1.5, 46.5]}, "whole numbers"),
        ({"size": [6, 8], "counts": ["a"]}, "whole numbers"),
    ],
)
def test_parse_segmentation__malformed_is_refused_with_the_reason(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_segmentation(value, 6, 8)
    assert not isinstance(caught.value, EmptyMaskError)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "^segmentation: expected a list of polygons or an RLE object, got null$"),
        ([], "^segmentation: expected a list of polygons or an RLE object, got an empty list$"),
        ("", '^segmentation: expected a list of polygons or an RLE object, got ""$'),
        ({}, "got {}$"),
        ([[]], r"got \[\[\]\]$"),
        ([[], []], r"got \[\[\], \[\]\]$"),
        ([None], r"got \[null\]$"),
        ([""], r"got \[\"\"\]$"),
        ([[3, 3]], "^polygon of fewer than 3 points$"),
        ([[3, 3], []], "^polygon of fewer than 3 points$"),
        ([[10, 1, 14, 1, 14, 4]], "outside the image: x 10 to 14, y 1 to 4; the image is 8 wide and 6 high"),
        ([[-4, 1, -1, 1, -1, 4]], "outside the image"),
        ([[1, 1, 4, 1, 2, 1]], "zero area"),
        ([[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], "covers no pixel"),
        ([[-20, -20, 40, -20, 40, 0.1, -20, 0.1]], "covers no pixel"),
        ({"size": [6, 8], "counts": [48]}, "without a foreground pixel"),
        ({"size": [6, 8], "counts": [48, 0]}, "without a foreground pixel"),
    ],
)
def test_parse_segmentation__masks_without_a_pixel_have_an_error_of_their_own(value: Any, message: str) -> None:
    with pytest.raises(EmptyMaskError, match=message):
        parse_segmentation(value, 6, 8)


def test_parse_segmentation__what_passes_covers_a_pixel() -> None:
    """The shortcut by area must never let an empty mask pass: thin random triangles, many of them empty."""
    rng = np.random.default_rng(1)
    passed = empty = 0
    for _ in range(3000):
        corner = rng.uniform(-3, 24, 2)
        part = corner + np.cumsum(rng.normal(0, rng.choice([0.1, 0.5, 4.0]), (3, 2)), axis=0)
        try:
            parse_segmentation([part.ravel().tolist()], 20, 20)
        except EmptyMaskError:
            empty += 1
            continue
        passed += 1
        assert coco_mask.area(coco_mask.frPyObjects([part.ravel().tolist()], 20, 20)[0]) > 0
    assert min(passed, empty) > 300


@pytest.mark.parametrize(
    ("value", "strays"),
    [
        ([[1, 1, 5, 1, 5, 4]], 0),
        ([[1, 1, 5, 1, 5, 4], [3, 3]], 1),
        ([[3, 3], [1, 1, 5, 1, 5, 4], [0.5, 0.5, 2, 2]], 2),
        ([[], [1, 1, 5, 1, 5, 4]], 1),
        ([[1, 1, 5, 1, 5, 4], None, ""], 2),
        ([["3", "3"], [1, 1, 5, 1, 5, 4]], 1),
    ],
)
def test_parse_segmentation__parts_of_one_or_two_points_are_passed_over_and_counted(value: Any, strays: int) -> None:
    shape = parse_segmentation(value, 6, 8)
    assert isinstance(shape, list)
    assert [part.tolist() for part in shape] == [[[1, 1], [5, 1], [5, 4]]]
    assert count_stray_parts(value, shape) == strays


@pytest.mark.parametrize(
    "outline",
    [
        [4, 4, 20, 20, 20, 4, 4, 20],  # an hourglass: its halves cancel
        [4, 4, 20, 4, 4, 20, 20, 20],
        [2, 2, 8, 8, 8, 2, 2, 8, 2, 2, 10, 10, 10, 2, 2, 10],
    ],
)
def test_parse_segmentation__outlines_that_cross_themselves_cover_pixels(outline: list[float]) -> None:
    """Also where the shoelace formula gives no area: what counts is COCO's rasteriser."""
    shape = parse_segmentation([outline], 24, 24)
    assert isinstance(shape, list)
    assert segmentation_area(shape) == pytest.approx(0)
    expected = coco_mask.area(coco_mask.frPyObjects([outline], 24, 24)[0])
    assert polygons_to_runs(shape, 24, 24)[1::2].sum() == expected > 20


@pytest.mark.parametrize(
    ("height", "width", "longest"), [(64, 64, 1_000_000), (600, 600, 1_440_000), (9000, 9000, 4_000_000)]
)
def test_longest_way__grows_with_the_image(height: int, width: int, longest: int) -> None:
    assert longest_way(height, width) == longest


def test_zigzag__of_a_small_file_is_refused_before_it_takes_gigabytes() -> None:
    """COCO's rasteriser walks along every edge, also outside the image."""
    zigzag = [side for row in range(200) for side in (-1e5 if row % 2 else 1e5, row / 4)]
    message = (
        "^polygon: expected an outline of at most 1,000,000 pixels in an image of 64 x 64, got 40,000,000; it may jump"
    )
    with pytest.raises(DatasetError, match=message):
        parse_segmentation([zigzag], 64, 64)
    halves = [zigzag[:10], zigzag[10:20]]  # each is short enough, together they are not
    with pytest.raises(DatasetError, match=r"got 1,600,00[0-9]"):
        parse_segmentation(halves, 64, 64)


def test_self_crossing_outlines__are_kept_exactly_where_they_cover_a_pixel() -> None:
    """The formula of the area may say 0 where the halves of an outline cancel; the raster decides."""
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(3000):
        outline = (rng.integers(0, 40, 8) * rng.choice([0.1, 1])).tolist()
        covered = coco_mask.area(coco_mask.frPyObjects([outline], 32, 32))[0] > 0
        try:
            parse_segmentation([outline], 32, 32)
        except EmptyMaskError:
            assert not covered, outline
            empty += 1
        else:
            assert covered, outline
    assert empty > 100
