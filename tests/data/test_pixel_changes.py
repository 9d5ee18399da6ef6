"""Changes of pixel values: the right numbers, any number of channels, and the whole range."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest

from mask2former_dinov3.data.pixel_changes import add_noise, blur_image, change_gamma, change_pixels, compress_jpeg
from mask2former_dinov3.data.transforms import Augmentation

CHANNELS = pytest.mark.parametrize("channels", [1, 2, 3, 5])


def smooth(channels: int, size: int = 64) -> Any:
    """An image without edges, different in each channel."""
    y, x = np.indices((size, size)) / size
    return np.stack([255 * (x * (k + 1) + y) / (k + 2) for k in range(channels)], axis=2).astype(np.uint8)


@CHANNELS
def test_change_gamma__bends_the_values_between_black_and_white(channels: int) -> None:
    image = smooth(channels)
    image[0, 0], image[0, 1] = 0, 255
    np.testing.assert_array_equal(change_gamma(image, 2.0), np.rint(255 * (image / 255) ** 2))
    np.testing.assert_array_equal(change_gamma(image, 1.0), image)
    assert change_gamma(image, 0.4)[0, :2, 0].tolist() == [0, 255]


@CHANNELS
def test_blur_image__spreads_a_point_by_its_standard_deviation(channels: int) -> None:
    """Moments of a blurred point: its sum stays and its variance is that of the Gaussian, in every channel."""
    image = np.zeros((41, 41, channels), np.uint8)
    image[18:23, 18:23] = 250
    before, after = image.astype(float), blur_image(image, 2.0).astype(float)
    assert after.shape == image.shape
    along = np.arange(41) - 20
    for channel in range(channels):
        assert after[..., channel].sum() == pytest.approx(before[..., channel].sum(), rel=0.03)
        spread = [(one[..., channel].sum(0) @ along**2) / one[..., channel].sum() for one in (before, after)]
        assert spread[1] - spread[0] == pytest.approx(4.0, rel=0.1)
    np.testing.assert_array_equal(blur_image(image, 0.0), image)
    np.testing.assert_array_equal(blur_image(np.full_like(image, 200), 5.0), 200)  # nothing dark from outside


@CHANNELS
def test_add_noise__has_the_standard_deviation_asked_for(channels: int) -> None:
    image = np.full((64, 64, channels), 128, np.uint8)
    noisy = add_noise(image, np.random.default_rng(0), 0.1).astype(float)
    assert noisy.shape == image.shape
    assert noisy.mean() == pytest.approx(128, abs=2)
    assert noisy.std(axis=(0, 1)) == pytest.approx([25.5] * channels, rel=0.1)
    assert add_noise(np.full_like(image, 250), np.random.default_rng(0), 0.5).max() == 255  # clipped, not wrapped


def through_file(pixels: Any) -> Any:
    """One channel or BGR (h, w, c) as a JPEG file of quality 5, read again."""
    file: Any = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, 5])[1]
    return np.asarray(cv2.imdecode(file, cv2.IMREAD_UNCHANGED)).reshape(pixels.shape)


@CHANNELS
def test_compress_jpeg__is_near_at_high_quality_and_equals_the_file_of_opencv(channels: int) -> None:
    image = smooth(channels)
    found = compress_jpeg(image, 95)
    assert found.shape == image.shape
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert np.abs(found.astype(int) - image).max() <= 6
    coarse = compress_jpeg(image, 5)
    if channels == 3:
        expected = through_file(image[..., ::-1])[..., ::-1]
    else:
        expected = np.concatenate([through_file(image[..., [k]]) for k in range(channels)], axis=2)
    np.testing.assert_array_equal(coarse, expected)


def test_change_pixels__off_draws_nothing_and_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    image = smooth(3)
    assert change_pixels(image, rng, Augmentation()) is image
    assert rng.random() == np.random.default_rng(0).random()


def test_change_pixels__strengths_and_fractions_are_those_of_the_options() -> None:
    image = np.full((4, 4, 1), 51, np.uint8)  # 0.2
    rng = np.random.default_rng(1)
    inverted = [change_pixels(image, rng, Augmentation(invert=0.25))[0, 0, 0] for _ in range(400)]
    assert set(inverted) == {51, 204}
    assert inverted.count(204) / 400 == pytest.approx(0.25, abs=0.07)
    bent = [change_pixels(image, rng, Augmentation(gamma_jitter=1.0))[0, 0, 0] / 255 for _ in range(400)]
    exponents = np.log(np.maximum(bent, 1e-9)) / math.log(0.2)
    assert exponents.min() == pytest.approx(0.5, abs=0.05)
    assert exponents.max() == pytest.approx(2.0, abs=0.1)
    assert np.median(exponents) == pytest.approx(1.0, abs=0.1)  # as often darker as brighter
    board = (np.indices((16, 16)).sum(0)[..., None] % 2 * 200).astype(np.uint8)
    options: list[dict[str, Any]] = [{"noise": 0.2}, {"blur": 4.0}, {"jpeg_quality": 5}]
    for option in options:
        same = [np.array_equal(change_pixels(board, rng, Augmentation(**option)), board) for _ in range(100)]
        assert 30 < sum(same) < 70, option
