"""One matrix for pixels and instances: where things go, what the pixels are, and that the two stay together."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask2former_dinov3.data.coco import read_coco
from mask2former_dinov3.data.fitting import fit_matrix, fitted_size, size_on_canvas, to_pixel_values, warp_image
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.segmentation import CompressedRle, polygons_to_runs
from mask2former_dinov3.data.transforms import (
    Augmentation,
    cut_corners,
    jitter_colors,
    rasterise,
    rasterise_windows,
    rotate_matrix,
    sample_matrix,
)
from mask2former_dinov3.errors import OptionError
from support.paths import SHARED

IDENTITY = np.eye(2, 3)

# pycocotools is built against the first NumPy 2; only its decode says so.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def star(center: tuple[float, float], radius: float, points: int = 15) -> npt.NDArray[np.float64]:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    radii = radius * (1 + 0.25 * np.cos(3 * angles))
    return np.column_stack([center[0] + radii * np.cos(angles), center[1] + radii * np.sin(angles)])


def as_rle(part: npt.NDArray[np.float64], height: int, width: int) -> CompressedRle:
    code = coco_mask.frPyObjects([part.ravel().tolist()], height, width)[0]
    return CompressedRle(size=[height, width], counts=code["counts"])


@pytest.mark.parametrize(("dataset", "split"), [("nuclei", "valid"), ("nuclei", "train"), ("fruits", "valid")])
def test_rasterise__unmoved_equals_pycocotools_on_real_data(
    dataset: str, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if not (SHARED / dataset).is_dir():
        pytest.skip(f"the real data set {dataset} is not on this machine")
    splits, _ = find_splits(SHARED / dataset)
    reference = COCO(str(splits[split].annotations))
    capsys.readouterr()  # pycocotools prints
    data = read_coco(splits[split])
    images = data.images if split == "valid" else data.images[:30]
    for image in images:
        for annotation in image.annotations:
            size = (image.height, image.width)
            mask = rasterise(annotation.segmentation, size, IDENTITY, *size)
            np.testing.assert_array_equal(mask, reference.annToMask(reference.anns[annotation.id]))


def test_rasterise__unmoved_equals_pycocotools_on_awkward_polygons() -> None:
    """Several parts that overlap, vertices outside the picture on all sides, self-crossing lines."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        parts = [rng.uniform(-15, 60, (rng.integers(3, 9), 2)) for _ in range(rng.integers(1, 4))]
        codes = coco_mask.frPyObjects([part.ravel().tolist() for part in parts], 37, 45)
        expected = coco_mask.decode(coco_mask.merge(codes))
        np.testing.assert_array_equal(rasterise(parts, (37, 45), IDENTITY, 37, 45), expected)


def test_rasterise__polygon_and_rle_of_one_shape_move_alike() -> None:
    """The centre and area of both follow the matrix: within a tenth of a pixel, and 2 % where enlarged."""
    rng = np.random.default_rng(3)
    part = star((52.3, 40.7), 22.0)
    rle = as_rle(part, 90, 110)
    augmentation = Augmentation(scale_min=0.6, scale_max=1.0, flip="both")
    for _ in range(40):
        matrix = sample_matrix(rng, 90, 110, 256, 256, augmentation)  # up to 2.3 times, nothing cropped
        masks = [rasterise([part], (90, 110), matrix, 256, 256), rasterise(rle, (90, 110), matrix, 256, 256)]
        both = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert both > 0.96
        source = coco_mask.decode(rle)
        center = np.mean(np.argwhere(source), axis=0)[::-1] + 0.5  # corner-origin (x, y)
        for mask in masks:
            moved = np.mean(np.argwhere(mask), axis=0)[::-1] + 0.5
            np.testing.assert_allclose(moved, matrix[:, :2] @ center + matrix[:, 2], atol=0.35)
            assert mask.sum() == pytest.approx(source.sum() * abs(matrix[0, 0] * matrix[1, 1]), rel=0.03)


def test_rasterise__masks_lie_on_the_picture_they_belong_to() -> None:
    """A picture that is bright exactly on the instance: after any move the mask is where it is bright."""
    rng = np.random.default_rng(5)
    part = star((70.0, 45.0), 30.0)
    source = coco_mask.decode(as_rle(part, 100, 140))
    picture = np.repeat(source[:, :, None] * np.uint8(255), 3, axis=2)
    for _ in range(30):
        matrix = sample_matrix(rng, 100, 140, 128, 160, Augmentation(scale_min=0.4, scale_max=2.5, flip="both"))
        bright = warp_image(picture, matrix, 128, 160)[:, :, 0] >= 128
        if bright.sum() < 500:
            continue
        for segmentation in ([part], as_rle(part, 100, 140)):
            mask = rasterise(segmentation, (100, 140), matrix, 128, 160).astype(bool)
            assert (bright & mask).sum() / (bright | mask).sum() > 0.95


def test_rasterise__nothing_is_drawn_beyond_the_picture() -> None:
    """A polygon that runs out of its picture must not run into the padding."""
    part = np.array([[5.0, 5], [90, 5], [90, 90], [5, 90]])
    matrix = fit_matrix(20, 30, 64, 64)  # the picture covers 43 x 64
    mask = rasterise([part], (20, 30), matrix, 64, 64)
    assert mask[42, 40] == 1
    assert not mask[43:].any()


def test_rasterise__what_left_the_picture_is_empty() -> None:
    away = np.array([[1.0, 0, -50], [0, 1, 0]])
    part = star((20.0, 20.0), 6.0)
    assert not rasterise([part], (40, 60), away, 40, 40).any()
    assert not rasterise(as_rle(part, 40, 60), (40, 60), away, 40, 40).any()


def test_rasterise__a_crop_by_whole_pixels_is_the_crop_of_the_mask() -> None:
    part = star((30.0, 25.0), 12.0)
    shift = np.array([[1.0, 0, -10], [0, 1, -7]])
    full = rasterise([part], (50, 60), IDENTITY, 50, 60)
    np.testing.assert_array_equal(rasterise([part], (50, 60), shift, 43, 50), full[7:, 10:])
    np.testing.assert_array_equal(rasterise(as_rle(part, 50, 60), (50, 60), shift, 43, 50), full[7:, 10:])


def test_warp_image__moves_by_whole_pixels_are_exact() -> None:
    image = noise(37, 53)
    np.testing.assert_array_equal(warp_image(image, IDENTITY, 37, 53), image)
    np.testing.assert_array_equal(warp_image(image, np.array([[-1.0, 0, 53], [0, 1, 0]]), 37, 53), image[:, ::-1])
    crop = np.array([[1.0, 0, -10], [0, -1, 37 - 5]])
    np.testing.assert_array_equal(warp_image(image, crop, 20, 30), image[::-1][5:25, 10:40])


@pytest.mark.parametrize(("canvas", "method", "tolerance"), [(128, cv2.INTER_LINEAR, 1), (16, cv2.INTER_AREA, 0)])
def test_warp_image__fitting_equals_a_plain_resize(canvas: int, method: int, tolerance: int) -> None:
    """Half-pixel centres, up bilinear and down by area, as cv2.resize does to the fitted size; then zeros."""
    image = noise(37, 53)
    rows, columns = fitted_size(37, 53, canvas, canvas)
    warped = warp_image(image, fit_matrix(37, 53, canvas, canvas), canvas, canvas).astype(int)
    resized = cv2.resize(image, (columns, rows), interpolation=method)
    assert np.abs(warped[:rows, :columns] - resized).max() <= tolerance
    assert not warped[rows:].any()
    assert not warped[:, columns:].any()


@pytest.mark.parametrize("size", [(37, 53), (100, 99), (3, 200), (640, 480), (1, 1)])
def test_warp_image__a_flat_picture_stays_flat_to_its_last_pixel(size: tuple[int, int]) -> None:
    """Edge pixels are continued, never blended with the padding."""
    rng = np.random.default_rng(0)
    image = np.full((*size, 3), 200, dtype=np.uint8)
    for _ in range(10):
        matrix = sample_matrix(rng, *size, 96, 64, Augmentation(0.2, 2.0, "both"))
        rows, columns = size_on_canvas(matrix, *size, 96, 64)
        warped = warp_image(image, matrix, 96, 64)
        assert (warped[:rows, :columns] == 200).all()
        assert not warped[rows:].any()
        assert not warped[:, columns:].any()


def test_warp_image__strong_reduction_does_not_alias() -> None:
    """A chessboard of single pixels, eight times smaller, is even grey; point sampling would show stripes."""
    board = ((np.indices((256, 256)).sum(0) % 2) * 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    small = warp_image(board, fit_matrix(256, 256, 32, 32), 32, 32)
    assert np.abs(small.astype(int) - 128).max() <= 1


def test_warp_image__a_zoomed_crop_of_a_huge_picture() -> None:
    """cv2.warpAffine refuses sides beyond 32,767 pixels; the crop is taken first."""
    image = np.zeros((4, 40_000, 3), dtype=np.uint8)
    image[:, 39_000:] = 255
    matrix = np.array([[2.0, 0, -2 * 38_980], [0, 2.0, 0]])
    warped = warp_image(image, matrix, 8, 64)
    assert not warped[:, :39].any()
    assert (warped[:, 42:] == 255).all()


def drawn(kind: str) -> npt.NDArray[np.float64]:
    """The outline of a disc or a bar in an image of 140 x 180."""
    if kind == "bar":
        return np.array([[40.0, 60], [150, 50], [152, 68], [42, 78]])
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    return np.column_stack([95 + 30 * np.cos(angles), 66 + 30 * np.sin(angles)])


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.8])
@pytest.mark.parametrize("kind", ["disc", "bar"])
def test_rotate_matrix__image_and_masks_turn_alike(kind: str, scale: float) -> None:
    """An image that is bright on the object: after any rotation polygon and RLE lie where it is bright.

    For the polygon the image is drawn 16 times as large and averaged, so that its edge is as exact as the polygon.
    """
    size, part = (140, 180), drawn(kind)
    large = np.zeros((16 * size[0], 16 * size[1]), np.uint8)
    cv2.fillPoly(large, [np.round((part * 16 - 0.5) * 16).astype(np.int32)], (255,), shift=4)
    exact = cv2.resize(large, size[::-1], interpolation=cv2.INTER_AREA)
    rle = as_rle(part, *size)
    extent = round(140 * scale), round(180 * scale)
    placed = np.array([[scale, 0, 0], [0, scale, 0]])
    for angle in (-180, -77, -45, -10, 0, 3, 30, 90, 135):
        matrix = rotate_matrix(placed, extent, angle)
        for segmentation, source in (([part], exact), (rle, 255 * rasterise(rle, size, IDENTITY, *size))):
            picture = np.repeat(np.asarray(source, np.uint8)[:, :, None], 3, axis=2)
            bright = warp_image(picture, matrix, *extent)[:, :, 0] >= 128
            mask = rasterise(segmentation, size, matrix, *extent).astype(bool)
            assert (bright & mask).sum() / (bright | mask).sum() >= (0.97 if scale >= 1 else 0.95)


def test_rotate_matrix__turns_about_the_middle_of_what_is_shown() -> None:
    crop = np.array([[2.0, 0, -30], [0, 2.0, -10]])
    rotated = rotate_matrix(crop, (40, 60), 90)
    np.testing.assert_allclose(rotated[:, :2] @ [30, 15] + rotated[:, 2], [30, 20])  # the middle of 40 x 60 stays
    np.testing.assert_allclose(rotated[:, :2] @ [35, 15] + rotated[:, 2], [30, 30])  # x becomes y
    np.testing.assert_allclose(rotate_matrix(crop, (40, 60), 0), crop)


def test_rotate_matrix__by_quarter_and_half_turns_is_numpys() -> None:
    image = noise(40, 40)
    for quarters in range(4):
        turned = warp_image(image, rotate_matrix(IDENTITY, (40, 40), -90 * quarters), 40, 40)
        np.testing.assert_array_equal(turned, np.rot90(image, quarters))


def test_warp_image__a_rotated_crop_of_a_huge_picture() -> None:
    """The part that is shown is taken first, as without rotation."""
    image = np.zeros((60, 40_000, 3), dtype=np.uint8)
    image[:, 39_000:] = 255
    matrix = rotate_matrix(np.array([[1.0, 0, -38_970], [0, 1.0, 0]]), (60, 60), 180)
    turned = warp_image(image, matrix, 60, 60)
    assert (turned[:, :29] == 255).all()
    assert not turned[:, 31:].any()


def test_cut_corners__paints_outside_the_image_and_takes_it_from_the_masks() -> None:
    """A frame that reaches beyond the image on all sides, as polygons may: after 45 degrees it is the image itself."""
    size = (80, 80)
    image = np.full((*size, 2), 200, np.uint8)
    matrix = rotate_matrix(IDENTITY, size, 45)
    frame = [np.array([[-50.0, -50], [130, -50], [130, 130], [-50, 130]])]
    away = [np.array([[-30.0, -30], [-20, -30], [-20, -20]])]
    turned = warp_image(image, matrix, *size)
    windows = rasterise_windows([frame, away], size, matrix, *size)
    kept, gone = cut_corners(turned, windows, size, matrix, (7, 9))
    assert kept is not None
    assert gone is None
    inside = np.zeros(size, bool)
    inside[kept.place] = kept.pixels
    y, x = np.indices(size) + 0.5
    diamond = abs(x - 40) + abs(y - 40)
    assert inside[diamond < 55.5].all()
    assert not inside[diamond > 57.6].any()  # 40 times the square root of 2 is 56.6
    assert (turned[inside] == 200).all()
    assert (turned[~inside] == (7, 9)).all()


@pytest.mark.parametrize("size", [(600, 800), (37, 53), (1, 5000), (5000, 1), (512, 512), (1040, 1388), (255, 257)])
def test_fit_matrix__maps_the_extent_onto_whole_pixels(size: tuple[int, int]) -> None:
    rows, columns = fitted_size(*size, 512, 640)
    assert 1 <= rows <= 512
    assert 1 <= columns <= 640
    assert rows == 512 or columns == 640
    matrix = fit_matrix(*size, 512, 640)
    corner = matrix[:, :2] @ [size[1], size[0]] + matrix[:, 2]
    np.testing.assert_allclose(corner, [columns, rows])
    assert size_on_canvas(matrix, *size, 512, 640) == (rows, columns)


def test_sample_matrix__without_randomness_is_the_fit() -> None:
    rng = np.random.default_rng(0)
    still = Augmentation(scale_min=1.0, scale_max=1.0, flip="none")
    for size in [(600, 800), (37, 53), (513, 129), (7, 999)]:
        np.testing.assert_array_equal(sample_matrix(rng, *size, 256, 320, still), fit_matrix(*size, 256, 320))


def test_sample_matrix__covers_the_canvas_or_the_whole_picture() -> None:
    """Per axis: a picture larger than the canvas fills it, a smaller one is there whole, from the top left."""
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(300):
        matrix = sample_matrix(rng, 60, 90, 64, 64, Augmentation(0.5, 2.0, "both"))
        scale = np.abs([matrix[0, 0], matrix[1, 1]])
        length = np.round(scale * [90, 60])
        low = np.minimum(matrix[:, 2], matrix[:, :2] @ [90, 60] + matrix[:, 2])
        np.testing.assert_allclose(low, np.round(low), atol=1e-9)
        assert (low <= 1e-9).all()
        assert (low + length >= np.minimum(length, 64) - 1e-9).all()
        seen.add((matrix[0, 0] < 0, matrix[1, 1] < 0, bool(length[0] > 64)))
    assert len(seen) == 8


def test_augmentation__senseless_values_are_refused() -> None:
    expected = "^scale_min: expected a number above 0 and not above scale_max, got 2 and scale_max 1$"
    with pytest.raises(OptionError, match=expected):
        Augmentation(scale_min=2, scale_max=1)
    with pytest.raises(OptionError, match=r"^scale_min"):
        Augmentation(scale_min=0)
    with pytest.raises(OptionError, match=r"^flip: expected horizontal, both, all or none, got diagonal$"):
        Augmentation(flip="diagonal")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match=r"^color_jitter: expected a number from 0 to below 1, got 1\.0$"):
        Augmentation(color_jitter=1.0)
    cases: list[tuple[str, Any, str]] = [
        ("rotation", 181, "a number from 0 to 180"),
        ("invert", 2, "a number from 0 to 1"),
        ("blur", -1, "a number from 0 to 100"),
        ("gamma_jitter", float("nan"), "a number of 0 or more"),
        ("noise", 1, "a number from 0 to below 1"),
        ("jpeg_quality", 0, "a whole number from 1 to 100, or None"),
    ]
    for option, value, expected in cases:
        with pytest.raises(OptionError, match=f"^{option}: expected {expected}, got {value}$"):
            Augmentation(**{option: value})


def test_jitter_colors__brightness_contrast_saturation_in_place() -> None:
    """Worked by hand for the factors drawn: saturate around the luma, contrast around the mean luma, then scale."""
    image = noise(20, 30)
    changed = image.copy()
    jitter_colors(changed, np.random.default_rng(4), 0.2)
    brightness, contrast, saturation = np.random.default_rng(4).uniform(0.8, 1.2, 3)
    luma = image @ [0.299, 0.587, 0.114]
    expected = saturation * image + (1 - saturation) * luma[:, :, None]
    expected = brightness * (contrast * expected + (1 - contrast) * luma.mean())
    np.testing.assert_allclose(changed, expected.clip(0, 255), atol=1)  # cv2 works in fixed point
    assert (changed != image).any()


def test_jitter_colors__strength_zero_changes_nothing() -> None:
    image = noise(20, 30)
    changed = image.copy()
    jitter_colors(changed, np.random.default_rng(0), 0.0)
    np.testing.assert_array_equal(changed, image)


def test_to_pixel_values__normalises_real_pixels_and_pads_with_zero() -> None:
    image = noise(5, 7)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    values, mask = to_pixel_values(image, 32, 64, mean, std)
    assert values.shape == (3, 32, 64)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:, :5, :7].transpose(1, 2, 0), (image / 255 - mean) / std, atol=1e-5)
    assert not values[:, 5:].any()
    assert not values[:, :, 7:].any()
    assert mask[:5, :7].all()
    assert mask.sum() == 35


def test_polygons_to_runs__a_square_of_two_by_two() -> None:
    """Columns 1 and 2, rows 1 and 2 of a 4 x 4 mask: 5 background, 2, 2 background, 2, 5 background."""
    runs = polygons_to_runs([np.array([[1.0, 1], [3, 1], [3, 3], [1, 3]])], 4, 4)
    assert runs.tolist() == [5, 2, 2, 2, 5]


def test_rasterise_windows__an_rle_that_does_not_fill_its_picture_is_refused() -> None:
    rle = as_rle(np.array([[1.0, 1], [9, 1], [9, 9]]), 12, 10)
    with pytest.raises(ValueError, match="expected runs that cover 12 x 11 = 132 pixels, got 120"):
        rasterise_windows([rle, rle], (12, 11), IDENTITY, 12, 11)
