"""JPEG data are decoded strictly: what libjpeg repairs by guessing is refused, and good files are not."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data.images import decode_image
from mask2former_dinov3.data.jpeg_data import check_jpeg, find_lost_bytes
from mask2former_dinov3.errors import DatasetError
from support.paths import SHARED

NOISE = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
OPTIONS: list[dict[str, Any]] = [
    {"quality": 75},
    {"quality": 95, "subsampling": 0},
    {"quality": 75, "optimize": True},
    {"quality": 75, "progressive": True},
    {"quality": 75, "restart_marker_blocks": 4},
]


def jpeg(pixels: np.ndarray[Any, Any] = NOISE, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def start_of_data(data: bytes) -> int:
    return data.rindex(b"\xff\xda") + 14


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_good_data__give_the_pixels_of_pillow(mode: str, options: dict[str, Any]) -> None:
    data = jpeg(mode=mode, **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(image.convert("RGB"))
    np.testing.assert_array_equal(decode_image(data, "a.jpg"), expected)
    np.testing.assert_array_equal(decode_image(data + b"trailer" * 9, "a.jpg"), expected)


@pytest.mark.parametrize("options", OPTIONS[:3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_zeroed_bytes__are_refused_wherever_they_are(mode: str, options: dict[str, Any]) -> None:
    """Huffman codes fall into step again by themselves, so that libjpeg has nothing to warn about."""
    data = jpeg(mode=mode, **options)
    for place in range(start_of_data(data), len(data) - 70, 500):
        damaged = data[:place] + bytes(60) + data[place + 60 :]
        with pytest.raises(DatasetError, match=r"a\.jpg: expected a readable image file, got one that is damaged"):
            decode_image(damaged, "a.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kept", [0.3, 0.8, -2])
def test_missing_data__are_refused(mode: str, kept: float) -> None:
    """-2: the marker of the end is missing."""
    data = jpeg(mode=mode)
    with pytest.raises(DatasetError, match="damaged or cut short"):
        decode_image(data[: int(kept if kept < 0 else len(data) * kept)], "a.jpg")


def test_bytes_before_a_marker__are_refused() -> None:
    data = jpeg()
    with pytest.raises(DatasetError, match=r"damaged or cut short \(.*extraneous bytes before marker"):
        decode_image(data[:-2] + b"\x12\x34\x56" * 9 + data[-2:], "a.jpg")


def test_flat_picture__has_runs_of_zeros_and_is_read() -> None:
    """With tables of its own, the codes of an empty block are zeros."""
    flat = np.full((1600, 1600, 3), (90, 120, 30), np.uint8)
    data = jpeg(flat, optimize=True)
    assert bytes(64) in data[start_of_data(data) :]
    assert find_lost_bytes(data) is None
    assert np.ptp(decode_image(data, "a.jpg"), axis=(0, 1)).max() == 0


def test_zeros_outside_of_the_picture__are_no_damage() -> None:
    data = jpeg(comment=bytes(200), icc_profile=bytes(300))
    assert bytes(200) in data
    check_jpeg(data)
    check_jpeg(data + bytes(4096))


def test_senseless_fields_of_a_camera__are_no_damage() -> None:
    """Sequential data ignore them; libjpeg warns: Invalid SOS parameters for sequential JPEG."""
    data = bytearray(jpeg())
    place = start_of_data(bytes(data))
    assert data[place - 3 : place] == bytes([0, 63, 0])
    expected = decode_image(bytes(data), "a.jpg")
    data[place - 2] = 0
    np.testing.assert_array_equal(decode_image(bytes(data), "a.jpg"), expected)


@pytest.mark.skipif(not (SHARED / "fruits").is_dir(), reason="needs the photographs beside the checkout")
def test_photographs__raise_no_false_alarm() -> None:
    files = sorted((SHARED / "fruits").rglob("*.jp*g"))
    assert files
    for file in files:
        check_jpeg(file.read_bytes())


def many_scans(scans: int) -> bytes:
    """A progressive JPEG whose last scan is there `scans` times: each is valid, and refines nothing."""
    data = jpeg(progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def test_many_scans__are_refused_before_they_are_decoded() -> None:
    """Each scan is as much work as a picture: two files of 2 MB kept a server busy for good."""
    message = "^a.jpg: expected a JPEG of at most 100 scans, got 20,009, each as much work as a picture; save it again$"
    with pytest.raises(DatasetError, match=message):
        decode_image(many_scans(20_000), "a.jpg")


def test_many_scans__behind_the_picture_are_no_scans_of_it() -> None:
    """Phones append a film, whose bytes may be any."""
    film = b"\xff\xda" * 1000
    expected = decode_image(jpeg(progressive=True), "a.jpg")
    np.testing.assert_array_equal(decode_image(jpeg(progressive=True) + film, "a.jpg"), expected)


def test_scans__that_were_cut_off_are_missed() -> None:
    """A file that is cut after a scan and closed is a coarse picture, of which libjpeg warns nothing."""
    data = jpeg(progressive=True)
    starts = [place for place in range(len(data)) if data.startswith(b"\xff\xda", place)]
    assert len(starts) > 5
    decode_image(data, "a.jpg")
    for start in starts[1:]:
        before = data.rfind(b"\xff\xc4", 0, start)  # the tables of the scan
        for end in {start, before} if before > starts[starts.index(start) - 1] else {start}:
            with pytest.raises(DatasetError, match=r"damaged or cut short \(its last scans are missing\)"):
                decode_image(data[:end] + b"\xff\xd9", "a.jpg")
