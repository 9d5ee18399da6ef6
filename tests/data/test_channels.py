"""Images of other channels than grey and RGB: read whole and in parts, with second files, moved, jittered, measured."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from mask2former_dinov3.data import images
from mask2former_dinov3.data.channel_statistics import MEASURED, measure_channels
from mask2former_dinov3.data.check import check_data
from mask2former_dinov3.data.fitting import fit_image, fit_matrix, resample, to_pixel_values
from mask2former_dinov3.data.gdal_files import open_parts
from mask2former_dinov3.data.image_faults import sample_numbers
from mask2former_dinov3.data.layout import find_splits
from mask2former_dinov3.data.transforms import jitter_colors
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.inference.tiles import image_reader
from mask2former_dinov3.inference.tiles.grid import Region
from mask2former_dinov3.read_options import ReadOptions
from support.channels import SIDE, write_bands, write_multispectral, write_rgb_and_depth

RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 65_536, (*SIDE, 5)).astype(np.uint16)
ALL = ReadOptions(channels="all")


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.floor(np.clip((values.astype(np.float64) - low) / (high - low), 0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
def test_read_image__gives_all_channels_by_the_rule_of_grey(tmp_path: Path, interleave: str) -> None:
    path = write_bands(tmp_path / "a.tif", FIVE, interleave=interleave)
    pixels = images.read_image(path, ALL)
    np.testing.assert_array_equal(pixels, scaled(FIVE, 0, 65_535))
    assert pixels.flags.writeable
    some = images.read_image(path, ReadOptions(channels=(4, 2)))
    np.testing.assert_array_equal(some, pixels[:, :, [3, 1]])
    grey = images.read_image(path, ReadOptions(channels=(4,)))
    np.testing.assert_array_equal(grey, pixels[:, :, 3:4].repeat(3, axis=2))
    for options, count in ((ALL, 5), (ReadOptions(channels=(4, 2)), 2), (ReadOptions(channels=(4,)), 3)):
        assert images.read_header(path, options).channels == count


def test_read_image__names_the_way_to_more_channels(tmp_path: Path) -> None:
    path = write_bands(tmp_path / "a.tif", FIVE)
    with pytest.raises(
        DatasetError, match=r"expected a grey or an RGB image, got a TIFF with 5 samples .*, or all for"
    ):
        images.read_image(path)
    with pytest.raises(DatasetError, match="expected a channel 6, got a file with 5 channels"):
        images.read_image(path, ReadOptions(channels=(1, 6)))


@pytest.mark.parametrize("value_range", ["percentile", "1000,60000"])
def test_read_image__scales_each_channel_for_itself(tmp_path: Path, value_range: str) -> None:
    """A bright channel does not darken the others; in parts as well as whole."""
    shifts: npt.NDArray[np.uint16] = np.arange(5, dtype=np.uint16)
    values: npt.NDArray[np.uint16] = FIVE >> shifts
    path = write_bands(tmp_path / "a.tif", values)
    options = ReadOptions(value_range, channels="all")
    pixels = images.read_image(path, options)
    for channel in range(5):
        one = values[:, :, channel]
        low, high = (1000, 60_000) if "," in value_range else np.percentile(one, (0.1, 99.9), method="inverted_cdf")
        np.testing.assert_array_equal(pixels[:, :, channel], scaled(one, low, high))
    with open_parts(path, "GTiff", options) as opened:
        assert opened is not None
        np.testing.assert_array_equal(opened.read(((5, 40), (3, 60))), pixels[5:40, 3:60])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_read_image__takes_bytes_and_floating_point(tmp_path: Path, dtype: type) -> None:
    values: npt.NDArray[np.generic] = (FIVE // 256).astype(dtype)
    path = write_bands(tmp_path / "a.tif", values)
    if dtype is np.float32:
        with pytest.raises(DatasetError, match="floating point"):
            images.read_image(path, ALL)
    expected = values.astype(np.uint8)
    np.testing.assert_array_equal(images.read_image(path, ReadOptions("0,255", channels="all")), expected)


def test_read_image__all_is_without_alpha_unless_it_is_named(tmp_path: Path) -> None:
    rgba = RNG.integers(0, 256, (6, 7, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    Image.fromarray(rgba).save(tmp_path / "a.tif")
    for name in ("a.png", "a.tif"):
        path = tmp_path / name
        np.testing.assert_array_equal(images.read_image(path, ALL), rgba[:, :, :3])
        np.testing.assert_array_equal(images.read_image(path), rgba[:, :, :3])
        np.testing.assert_array_equal(images.read_image(path, ReadOptions(channels=(1, 2, 3, 4))), rgba)
        assert images.read_header(path, ALL).channels == 3
    assert images.read_header(tmp_path / "a.tif", ALL).unread.startswith("4 channels, alpha is not read")


@pytest.mark.parametrize("where", ["folder", "pattern"])
def test_read_image__puts_the_second_file_behind_the_first(tmp_path: Path, where: str) -> None:
    root = write_rgb_and_depth(tmp_path / "data", 1, 1)
    path, depth = root / "train" / "train0.png", root / "depth" / "train0.png"
    extra = str(root / "depth") if where == "folder" else "{folder}/../depth/{stem}.png"
    options = ReadOptions(extra_images=extra)
    pixels = images.read_image(path, options)
    np.testing.assert_array_equal(pixels[:, :, :3], images.read_image(path))
    stored = np.asarray(Image.open(depth))
    np.testing.assert_array_equal(pixels[:, :, 3], scaled(stored, 0, 65_535))
    header = images.read_header(path, options)
    assert (header.channels, header.extra_channels) == (4, 1)
    with image_reader.open_image(path, options) as opened:
        np.testing.assert_array_equal(opened.read(Region(3, 4, 20, 30)), pixels[3:20, 4:30])


def test_open_image__reads_parts_of_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that count as large: what rasterio reads of them is what they hold as a whole."""
    path = write_bands(tmp_path / "a.tif", FIVE)
    (tmp_path / "depth").mkdir()
    write_bands(tmp_path / "depth" / "a.tif", FIVE[:, :, :1])
    options = ReadOptions("percentile", channels=(1, 2, 3, 5), extra_images=str(tmp_path / "depth"))
    whole = images.read_image(path, options)
    assert whole.shape == (*SIDE, 5)
    monkeypatch.setattr(image_reader, "WHOLE_PIXELS", 100)
    with image_reader.open_image(path, options) as opened:
        np.testing.assert_array_equal(opened.read(Region(3, 4, 20, 30)), whole[3:20, 4:30])


def test_read_image__says_what_is_wrong_with_a_second_file(tmp_path: Path) -> None:
    root = write_rgb_and_depth(tmp_path / "data", 2, 1)
    path, depth = root / "train" / "train0.png", root / "depth" / "train0.png"
    options = ReadOptions(extra_images=str(root / "depth"))
    Image.new("L", (9, 8)).save(depth)
    expected = r"train0\.png: expected a second file of 48 x 64 pixels .* got .*depth/train0\.png of 8 x 9"
    for read in (images.read_image, images.read_header):
        with pytest.raises(DatasetError, match=expected):
            read(path, options)
    Image.new("L", (64, 48)).save(depth.with_suffix(".tif"))
    with pytest.raises(DatasetError, match=r"got 2 images of the name train0 in the folder"):
        images.read_image(path, options)
    depth.unlink()
    depth.with_suffix(".tif").unlink()
    with pytest.raises(
        DatasetError, match=r"train0\.png: expected a second file of the image, got no images of the name"
    ):
        images.read_image(path, options)
    for nowhere in (str(tmp_path / "nowhere"), "{folder}/none/{name}"):
        with pytest.raises(DatasetError, match=r"expected a second file of the image, got no (folder|file) "):
            images.read_image(path, ReadOptions(extra_images=nowhere))


def test_check_data__has_one_line_for_each_cause(tmp_path: Path) -> None:
    root = write_multispectral(tmp_path / "bands", 5, 2)
    write_bands(root / "train" / "train3.tif", FIVE[:, :, :4])
    write_bands(root / "train" / "train4.tif", FIVE[:, :, :4])
    report = check_data(find_splits(root)[0], options=ALL, canvas=(64, 64), full=False)
    reason = "2 images: expected 5 channels as train0.tif has, got 4; set channels to those that all files have"
    assert [fault.reason.startswith(reason) for fault in report.errors] == [True]
    assert [image for image, _ in report.errors[0].places] == [4, 5]
    depth = write_rgb_and_depth(tmp_path / "depth", 5, 2)
    for number in (1, 2):
        (depth / "depth" / f"train{number}.png").unlink()
    Image.new("L", (9, 8)).save(depth / "depth" / "train3.png")
    options = ReadOptions(extra_images=str(depth / "depth"))
    report = check_data(find_splits(depth)[0], options=options, canvas=(64, 64), full=False)
    assert [len(fault.places) for fault in report.errors] == [2, 1]


def test_check_data__warns_of_second_files_that_come_out_black(tmp_path: Path) -> None:
    root = write_rgb_and_depth(tmp_path, 2, 1)
    for path in (root / "depth").iterdir():
        stored = np.asarray(Image.open(path))
        Image.fromarray(stored // 30).save(path)
    report = check_data(
        find_splits(root)[0], options=ReadOptions(extra_images=str(root / "depth")), canvas=(64, 64), full=False
    )
    warnings = [fault.reason for fault in report.splits["train"].of("warning")]
    assert any("second file, values 666..2000 become 3..8 of 255 with value_range full" in one for one in warnings)


@pytest.mark.parametrize("count", [2, 4, 5, 7, 9])
@pytest.mark.parametrize("canvas", [(96, 96), (20, 30)])
def test_resample__moves_each_channel_as_it_moves_a_mask(count: int, canvas: tuple[int, int]) -> None:
    """OpenCV itself refuses to average more than four channels, and interpolates 2, 5, 7 and 9 less exactly."""
    pixels = RNG.integers(0, 256, (40, 50, count), dtype=np.uint8)
    matrix = fit_matrix(40, 50, *canvas) + np.array([[0, 0, 3.0], [0, 0, -2.0]])
    moved = resample(pixels, matrix, *canvas, cv2.BORDER_REPLICATE)
    assert moved.shape == (*canvas, count)
    for channel in range(count):
        one = resample(np.ascontiguousarray(pixels[:, :, channel]), matrix, *canvas, cv2.BORDER_REPLICATE)
        np.testing.assert_array_equal(moved[:, :, channel], one)
    assert fit_image(pixels, *canvas).shape[2] == count


def test_to_pixel_values__normalises_each_channel() -> None:
    pixels = RNG.integers(0, 256, (4, 6, 5), dtype=np.uint8)
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    values, mask = to_pixel_values(pixels, 32, 32, mean, std)
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(values[:, :4, :6], expected, rtol=1e-5, atol=1e-5)
    assert values.shape == (5, 32, 32)
    assert not values[:, ~mask].any()
    with pytest.raises(ValueError, match="expected 3 channels, got 5"):
        to_pixel_values(pixels, 32, 32, mean[:3], std[:3])


def test_jitter_colors__changes_all_channels_by_the_same_factors() -> None:
    pixels = RNG.integers(60, 120, (8, 8, 5), dtype=np.uint8)
    before = pixels.copy()
    jitter_colors(pixels, np.random.default_rng(3), 0.3)
    brightness, contrast, _ = np.random.default_rng(3).uniform(0.7, 1.3, 3)
    means = before.reshape(-1, 5).mean(0)
    expected = brightness * (contrast * before.astype(float) + (1 - contrast) * means)
    assert np.abs(pixels - np.clip(expected, 0, 255)).max() <= 0.51
    assert not np.array_equal(pixels, before)


def test_measure_channels__equals_numpys(tmp_path: Path) -> None:
    root = write_multispectral(tmp_path, 3, 1)
    table = check_data(find_splits(root)[0], options=ALL, canvas=(64, 64), full=False).data["train"].images
    stack = np.stack([images.read_image(record.path, ALL) for record in table]).reshape(-1, 5) / 255
    found = measure_channels(table, ALL)
    np.testing.assert_allclose(found.mean, stack.mean(0))
    np.testing.assert_allclose(found.std, stack.std(0))
    assert (found.images, found.constant) == (3, [])
    for record in table:
        values = FIVE.copy()
        values[:, :, 1] = 7
        write_bands(record.path, values)
    found = measure_channels(table, ALL)
    assert found.constant == [2]
    assert found.std[1] == 1


@pytest.mark.parametrize(("count", "wanted"), [(0, 5), (3, 16), (16, 16), (100, 16), (1000, MEASURED)])
def test_sample_numbers__takes_all_or_as_many_as_wanted(count: int, wanted: int) -> None:
    numbers = sample_numbers(count, wanted)
    assert len(numbers) == min(count, wanted)
    assert all(0 <= number < count for number in numbers)
