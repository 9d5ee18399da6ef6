"""Random changes of pixel values in training that leave every object where it is: gamma, inversion, blur, noise, JPEG.

Images are bytes (h, w, C) with any number of channels; values of 16 bits were scaled to bytes when the file was read
(`value_range`). Every change maps 0..255 into 0..255; what noise pushes out of it is clipped.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .fitting import PixelArray
from .transforms import Augmentation


def change_pixels(image: PixelArray, rng: np.random.Generator, augmentation: Augmentation) -> PixelArray:
    """Apply the changes that are on, in the order in which a camera would: values, optics, sensor, file.

    gamma_jitter: the exponent is log-uniform between 1 / (1 + gamma_jitter) and its inverse. invert: fraction of the
    images. blur, noise, jpeg_quality: half of the images each, with a strength that is uniform up to the option's. The
    result may be `image` itself.
    """
    if augmentation.gamma_jitter > 0:
        limit = math.log1p(augmentation.gamma_jitter)
        image = change_gamma(image, math.exp(rng.uniform(-limit, limit)))
    if augmentation.invert > 0 and rng.random() < augmentation.invert:
        image = np.bitwise_not(image)
    if augmentation.blur > 0 and rng.random() < 0.5:
        image = blur_image(image, rng.uniform(0, augmentation.blur))
    if augmentation.noise > 0 and rng.random() < 0.5:
        image = add_noise(image, rng, rng.uniform(0, augmentation.noise))
    if augmentation.jpeg_quality is not None and rng.random() < 0.5:
        image = compress_jpeg(image, int(rng.integers(augmentation.jpeg_quality, 100, endpoint=True)))
    return image


def change_gamma(image: PixelArray, gamma: float) -> PixelArray:
    """Values v in 0..1 become v ** gamma; black and white stay."""
    table = np.rint(255 * (np.arange(256) / 255) ** gamma).astype(np.uint8)
    return table[image]


def blur_image(image: PixelArray, sigma: float) -> PixelArray:
    """Gaussian blur with a standard deviation of `sigma` pixels; the edge pixels are continued."""
    if sigma == 0:
        return image
    blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.uint8).reshape(image.shape)


def add_noise(image: PixelArray, rng: np.random.Generator, sigma: float) -> PixelArray:
    """Gaussian noise, independent for every pixel and channel. sigma: standard deviation as a fraction of 255."""
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image + 255 * np.float32(sigma) * noise), 0, 255).astype(np.uint8)


def compress_jpeg(image: PixelArray, quality: int) -> PixelArray:
    """What JPEG of a quality (1..100) leaves of an image; RGB as a colour image, other channels one by one."""
    if image.shape[2] == 3:
        return np.ascontiguousarray(_through_jpeg(image[:, :, ::-1], quality, cv2.IMREAD_COLOR)[:, :, ::-1])
    channels = [_through_jpeg(one, quality, cv2.IMREAD_GRAYSCALE) for one in np.moveaxis(image, 2, 0)]
    return np.stack(channels, axis=2)


def _through_jpeg(pixels: PixelArray, quality: int, mode: int) -> PixelArray:
    """Encode and decode. mode: OpenCV's, for one channel or BGR."""
    done, data = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError("OpenCV could not encode an image as JPEG")
    return np.asarray(cv2.imdecode(data, mode), np.uint8)
