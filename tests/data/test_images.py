"""One rule per kind of pixel, and a message of its own for each way an image file can be wrong."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.data import images
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.read_options import ReadOptions

COLORS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], dtype=np.uint8)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)  # type: ignore[arg-type]  # Pillow types no options of its formats
    return path


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_read_image__lossless_formats_give_the_stored_colours(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(COLORS), **options)
    pixels = images.read_image(path)
    np.testing.assert_array_equal(pixels, COLORS)
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous


def test_read_image__jpeg_is_near_the_stored_colours(tmp_path: Path) -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8)
    pixels = images.read_image(save(tmp_path / "a.jpg", Image.fromarray(flat), quality=95))
    assert np.abs(pixels.astype(int) - flat).max() <= 3


def test_read_image__alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    rgba = np.dstack([COLORS, np.array([[0, 128], [255, 0]], dtype=np.uint8)])
    np.testing.assert_array_equal(images.read_image(save(tmp_path / "a.png", Image.fromarray(rgba))), COLORS)
    grey_alpha = Image.merge("LA", (Image.new("L", (2, 2), 77), Image.new("L", (2, 2), 0)))
    np.testing.assert_array_equal(images.read_image(save(tmp_path / "b.png", grey_alpha)), np.full((2, 2, 3), 77))


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\x80\xff"])
def test_read_image__palette_gives_its_colours_whatever_the_transparency(
    tmp_path: Path, transparency: int | bytes | None
) -> None:
    picture = Image.new("P", (2, 2))
    picture.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30] + [0] * 756)
    picture.putdata([0, 1, 2, 3])
    options = {} if transparency is None else {"transparency": transparency}
    np.testing.assert_array_equal(images.read_image(save(tmp_path / "a.png", picture, **options)), COLORS)


def test_read_image__one_bit_and_grey_are_repeated(tmp_path: Path) -> None:
    bits = images.read_image(save(tmp_path / "a.png", Image.fromarray(np.array([[True, False]]))))
    np.testing.assert_array_equal(bits, [[[255] * 3, [0] * 3]])
    grey = images.read_image(save(tmp_path / "b.png", Image.new("L", (3, 2), 9)))
    np.testing.assert_array_equal(grey, np.full((2, 3, 3), 9))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_read_image__sixteen_bits_scale_by_the_range_of_the_type(tmp_path: Path, suffix: str) -> None:
    """0..65535 -> 0..255: 257 -> 1; 128 is 0.498 of a step and rounds down, 129 is 0.502 and rounds up."""
    values = np.array([[0, 65535, 257, 128, 129, 4095]], dtype=np.uint16)
    pixels = images.read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 255, 1, 0, 1, 16])
    np.testing.assert_array_equal(pixels, pixels[:, :, :1].repeat(3, axis=2))


def test_to_rgb__big_endian_and_wide_integers_follow_the_same_rule() -> None:
    values = np.array([[0, 65535, 32896]], dtype=np.int32)
    expected = [[0, 255, 128]]
    np.testing.assert_array_equal(images.to_rgb(Image.fromarray(values))[:, :, 0], expected)
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    np.testing.assert_array_equal(images.to_rgb(big)[:, :, 0], expected)


def test_to_rgb__cmyk_is_converted() -> None:
    np.testing.assert_array_equal(images.to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))), [[[255, 0, 0]]])


def test_to_rgb__integers_beyond_sixteen_bits_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"values in 0\.\.65535, got 0\.\.70000.*set value_range"):
        images.to_rgb(Image.fromarray(np.array([[0, 70000]], dtype=np.int32)))


def test_read_image__floating_point_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tiff", Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(
        DatasetError,
        match=r"a\.tiff: expected grey.*got floating point .*\(0\.\.0\).*set value_range.*save",
    ):
        images.read_image(path)


def test_read_image__exif_orientation_is_reported_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "a.jpg", Image.new("RGB", (4, 2)), exif=exif)
    assert images.read_image(path).shape == (2, 4, 3)
    assert images.read_header(path).orientation == 6
    header = images.read_header(path)
    assert (header.height, header.width) == (2, 4)


def test_exif_orientation__none_or_senseless_is_upright(tmp_path: Path) -> None:
    assert images.read_header(save(tmp_path / "a.png", Image.new("RGB", (4, 2)))).orientation == 1
    exif = Image.Exif()
    exif[0x0112] = 0
    assert images.read_header(save(tmp_path / "b.jpg", Image.new("RGB", (4, 2)), exif=exif)).orientation == 1


def test_decode_image__equals_reading_the_file(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLORS))
    np.testing.assert_array_equal(images.decode_image(path.read_bytes(), "a.png"), images.read_image(path))


def truncated(path: Path) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, path.suffix[1:].upper())
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.png", lambda path: None, "expected an image file, got no such file"),
        ("folder.png", Path.mkdir, "expected an image file, got a folder"),
        (
            "text.png",
            lambda path: path.write_text("not an image"),
            "expected an image file .*, got another kind of file",
        ),
        (
            "pointer.png",
            lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 12\n"),
            "got a pointer of Git LFS instead of the image; run `git lfs pull`",
        ),
        ("empty.png", lambda path: path.write_bytes(b""), "expected an image file .*, got an empty file; copy"),
        ("cut.png", truncated, "damaged or cut short"),
        ("cut.jpeg", truncated, "damaged or cut short"),
        ("cut.webp", truncated, "damaged or cut short|another kind of file"),
        ("cut.tiff", truncated, "damaged or cut short|another kind of file"),
    ],
)
def test_read_image__bad_files_are_named(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(DatasetError, match=message) as caught:
        images.read_image(path)
    assert str(caught.value).startswith(str(path))


def test_image_size__bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"none\.png: expected an image file, got no such file"):
        images.read_header(tmp_path / "none.png")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs file permissions that bind this user")
def test_read_image__without_permission(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLORS))
    path.chmod(0)
    with pytest.raises(DatasetError, match="expected a readable image file, got permission denied"):
        images.read_image(path)


def test_read_image__a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.png", Image.new("RGB", (30, 30)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"safe to decode, got one of over 200 pixels.*; cut it into tiles"):
        images.read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["exif", "xmp"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_read_image__takes_stored_pixels_whatever_the_orientation(
    suffix: str, place: str, orientation: int, tmp_path: Path
) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    xmp = f'<rdf:Description tiff:Orientation="{orientation}"/>'.encode()
    plain = save(tmp_path / f"plain.{suffix}", picture)
    turned = save(tmp_path / f"turned.{suffix}", picture, **({"exif": exif} if place == "exif" else {"xmp": xmp}))
    header = images.read_header(turned)
    assert (header.height, header.width) == (24, 40)
    np.testing.assert_array_equal(images.read_image(turned), images.read_image(plain))


def test_read_image__of_several_frames_takes_the_named_one(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), (value, 0, 0)) for value in (0, 90, 180)]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert [images.read_image(path, ReadOptions(page=page))[0, 0, 0] for page in (1, 2, 3)] == [0, 90, 180]
    assert images.read_header(path).unread == "3 frames, the first is read"
    with pytest.raises(DatasetError, match="expected a page 4, got a file with 3 pages"):
        images.read_image(path, ReadOptions(page=4))


def test_read_image__takes_named_channels_of_ordinary_files(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(COLORS))
    np.testing.assert_array_equal(images.read_image(path, ReadOptions(channels=(3, 2, 1))), COLORS[:, :, ::-1])
    expected = COLORS[:, :, 1:2].repeat(3, axis=2)
    np.testing.assert_array_equal(images.read_image(path, ReadOptions(channels=(2,))), expected)
    with pytest.raises(DatasetError, match="expected a channel 4, got an image with 3 channels"):
        images.read_image(path, ReadOptions(channels=(4,)))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_read_image__refuses_a_side_that_no_image_has(tmp_path: Path, suffix: str) -> None:
    """Work and memory grow with the sides as well: such a file has a few kilobytes."""
    path = save(tmp_path / f"a.{suffix}", Image.new("L", (1_000_001, 1)))
    for read in (images.read_image, images.read_header):
        with pytest.raises(
            DatasetError, match=r"at most 1,000,000 pixels a side, got 1 x 1,000,001 \(height x width\)"
        ):
            read(path)
    assert images.read_image(save(path, Image.new("L", (1_000_000, 1)))).shape == (1, 1_000_000, 3)
