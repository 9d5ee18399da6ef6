"""Images read in parts: the pixels of `read_image`, and what must not be read at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mask2former_dinov3.data.images import read_header, read_image
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.inference.tiles import image_reader as windows
from mask2former_dinov3.inference.tiles.grid import Grid
from mask2former_dinov3.inference.tiles.image_reader import georeference, image_size, is_large_image, open_image
from mask2former_dinov3.inference.tiles.part_reader import ImageReader
from mask2former_dinov3.read_options import AS_STORED, ReadOptions

rasterio: Any = pytest.importorskip("rasterio")

HEIGHT, WIDTH = 150, 170
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(RGB[..., 0].astype(np.int32) * 200)
    return Image.fromarray(RGB).convert(mode)


def put_together(path: Path, options: ReadOptions = AS_STORED) -> NDArray[np.uint8]:
    """The whole picture, tile by tile."""
    with open_image(path, options) as image:
        assert is_large_image(image)
        whole = np.zeros((image.height, image.width, 3), dtype=np.uint8)
        grid = Grid.of(image.height, image.width, 64, 0.2)
        for row in range(len(grid.tops)):
            for at in grid.row(row):
                part = image.read(at)
                assert part.dtype == np.uint8
                whole[at.y0 : at.y1, at.x0 : at.x1] = part
    return whole


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image counts as large."""
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)


CASES = [
    *((mode, ".png", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *((mode, ".tif", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I")),
    *((mode, ".tif", {"compression": "tiff_lzw"}) for mode in ("L", "RGB")),
    *((mode, ".tif", {"compression": "tiff_adobe_deflate", "big_tiff": True}) for mode in ("L", "RGB")),
    ("RGB", ".tif", {"compression": "jpeg"}),
    ("L", ".jpg", {"quality": 90}),
    *((mode, ".jp2", {}) for mode in ("L", "RGB", "RGBA")),
]


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(("mode", "suffix", "options"), CASES)
def test_open_image__gives_the_pixels_of_read_image(
    mode: str, suffix: str, options: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / f"image{suffix}"
    in_mode(mode).save(path, **options)
    assert image_size(path) == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(put_together(path), read_image(path))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(("subsampling", "mean", "highest"), [(0, 0.01, 1), (2, 0.5, 40)])
@pytest.mark.parametrize("progressive", [False, True])
def test_open_image__gives_nearly_the_pixels_of_a_jpeg(
    subsampling: int, mean: float, highest: int, progressive: bool, tmp_path: Path
) -> None:
    path = tmp_path / "image.jpg"
    smooth = cv2.GaussianBlur(RGB, (0, 0), 4)
    Image.fromarray(smooth).save(path, quality=92, subsampling=subsampling, progressive=progressive)
    difference = np.abs(put_together(path).astype(int) - read_image(path))
    assert difference.mean() < mean
    assert difference.max() <= highest


TYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64"]
STORED: list[dict[str, Any]] = [
    {},
    {"compress": "lzw", "predictor": 2},
    {"compress": "deflate", "tiled": True, "blockxsize": 64, "blockysize": 32},
    {"compress": "zstd"},
    {"compress": "lerc"},
]


def values_of_type(dtype: str, count: int) -> NDArray[Any]:
    """(count, h, w) values that "full" allows, and that fill the type's range, up to 65535."""
    top = min(float(np.iinfo(dtype).max), 65535) if np.dtype(dtype).kind != "f" else 1000
    return (np.random.default_rng(count).random((count, HEIGHT, WIDTH)) * top).astype(dtype)


def expected_rgb(values: NDArray[Any], bits: int, value_range: str) -> NDArray[np.uint8]:
    """The table of `data.images`, written again: (h, w, 3) of the first three of (c, h, w), or of the only one."""
    grey = len(values) < 3
    chosen = np.moveaxis(values[:1] if grey else values[:3], 0, -1).astype(np.float64)
    if value_range != "full" and (bits > 8 or values.dtype.kind != "u"):
        low, high = (float(one) for one in value_range.split(","))
        result = np.floor(np.clip((chosen - low) * (255 / (high - low)), 0, 255) + 0.5)
    elif bits == 8:
        result = chosen
    else:
        result = np.floor(chosen * 255 / 65535 + 0.5) if grey else np.floor(chosen / 256)
    return np.broadcast_to(result, (*result.shape[:2], 3)).astype(np.uint8)


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("dtype", TYPES)
def test_both_readers__follow_one_table(
    dtype: str, count: int, interleave: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    values = values_of_type(dtype, count)
    colours = {"photometric": "RGB"} if count > 1 else {}
    for number, stored in enumerate(STORED):
        if stored.get("compress") == "lerc" and dtype == "int8":
            continue
        path = tmp_path / f"{number}.tif"
        predictor = {"predictor": 1} if "predictor" in stored and np.dtype(dtype).kind == "f" else {}
        write_bands(path, values, interleave=interleave, **colours, **stored | predictor)
        for value_range in ["full", "10,90"] if np.dtype(dtype).kind != "f" else ["100,900"]:
            options = ReadOptions(value_range)
            whole = read_image(path, options)
            np.testing.assert_array_equal(whole, expected_rgb(values, bits, value_range), err_msg=f"{stored}")
            with monkeypatch.context() as patch:
                patch.setattr(windows, "WHOLE_PIXELS", 100)
                np.testing.assert_array_equal(put_together(path, options), whole, err_msg=f"{stored}")


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float32", "uint32"])
def test_both_readers__refuse_values_outside_the_range(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once int16 of -9999 became 218, in parts only."""
    low = {"int8": -99, "float32": 0.5, "uint32": 70000}.get(dtype, -9999)
    values = np.full((1, HEIGHT, WIDTH), low, dtype)
    path = tmp_path / "image.tif"
    write_bands(path, values)
    expected = rf"image\.tif: expected .*{low:g}.*; set value_range to"
    with pytest.raises(DatasetError, match=expected):
        read_image(path)
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    with pytest.raises(DatasetError, match=r"image\.tif: expected .*; set value_range to"):
        put_together(path)


@pytest.mark.parametrize("bits", [1, 2, 4, 12, 14])
def test_both_readers__scale_by_the_bits_that_are_stored(
    bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.arange(HEIGHT * WIDTH).reshape(1, HEIGHT, WIDTH) % 2**bits
    path = tmp_path / "image.tif"
    write_bands(path, values.astype(np.uint8 if bits <= 8 else np.uint16), NBITS=bits)
    expected = np.floor(values[0] * 255 / (2**bits - 1) + 0.5)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], expected)
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    np.testing.assert_array_equal(put_together(path)[:, :, 0], expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_both_readers__invert_where_zero_is_white(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_of_type(dtype, 1)
    path = tmp_path / "image.tif"
    write_bands(path, values, photometric="MINISWHITE")
    expected = 255 - expected_rgb(values, 8 * values.itemsize, "full")
    np.testing.assert_array_equal(read_image(path), expected)
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    np.testing.assert_array_equal(put_together(path), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
@pytest.mark.parametrize("count", [1, 3])
def test_both_readers__take_percentiles_of_the_whole_image(
    dtype: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of_type(dtype, count) // 8
    path = tmp_path / "image.tif"
    write_bands(path, values, **({"photometric": "RGB"} if count > 1 else {}))
    whole = read_image(path, ReadOptions("percentile"))
    if dtype == "uint8":
        np.testing.assert_array_equal(whole, read_image(path))  # 8 bits use their range
    else:
        ranked = np.sort(values, axis=None)
        low, high = ranked[int(np.ceil(len(ranked) * 0.001)) - 1], ranked[int(np.ceil(len(ranked) * 0.999)) - 1]
        np.testing.assert_array_equal(whole, expected_rgb(values, 16, f"{low},{high}"))
        assert (whole.min(), whole.max()) == (0, 255)
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    np.testing.assert_array_equal(put_together(path, ReadOptions("percentile")), whole)


def test_percentile_of_wide_values_in_parts__is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.tif"
    write_bands(path, values_of_type("float32", 1))
    assert read_image(path, ReadOptions("percentile")).max() == 255
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    with pytest.raises(DatasetError, match="percentiles of an image read in parts, got float32; set value_range to"):
        put_together(path, ReadOptions("percentile"))


@pytest.mark.parametrize("channels", [(2,), (4, 1, 3)])
@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_both_readers__take_the_named_channels(
    dtype: str, interleave: str, channels: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five samples without a colour: refused unless the option chooses."""
    values = values_of_type(dtype, 5)
    path = tmp_path / "image.tif"
    write_bands(path, values, photometric="MINISBLACK", interleave=interleave)
    chosen = values[[channel - 1 for channel in channels]]
    expected = expected_rgb(chosen, 8 * values.itemsize, "full")
    options = ReadOptions(channels=channels)
    np.testing.assert_array_equal(read_image(path, options), expected)
    with pytest.raises(DatasetError, match=r"got a TIFF with 5 samples of \d+ bits .*; set channels"):
        read_image(path)
    with pytest.raises(DatasetError, match="expected a channel 6, got a file with 5 channels"):
        read_image(path, ReadOptions(channels=(6,)))
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    np.testing.assert_array_equal(put_together(path, options), expected)
    with pytest.raises(DatasetError, match=r"got a TIFF with 5 samples of \d+ bits .*; set channels"):
        put_together(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_both_readers__take_the_named_page_and_channel_pages(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ImageJ: six pages are two positions with three channels each; the channel changes first."""
    stack = values_of_type(dtype, 6)
    path = tmp_path / "stack.tif"
    description = "ImageJ=1.53t\nimages=6\nchannels=3\nslices=2\nhyperstack=true\n"
    pages = [Image.fromarray(page) for page in stack]
    pages[0].save(path, save_all=True, append_images=pages[1:], tiffinfo={270: description})
    cases = {
        ReadOptions(): stack[[0]],
        ReadOptions(page=2): stack[[3]],
        ReadOptions(channels=(2,)): stack[[1]],
        ReadOptions(page=2, channels=(3, 1, 1)): stack[[5, 3, 3]],
    }
    for options, chosen in cases.items():
        expected = expected_rgb(chosen, 8 * stack.itemsize, "full")
        np.testing.assert_array_equal(read_image(path, options), expected)
        with monkeypatch.context() as patch:
            patch.setattr(windows, "WHOLE_PIXELS", 100)
            np.testing.assert_array_equal(put_together(path, options), expected)
    with pytest.raises(DatasetError, match="expected a page 3, got a file with 2 pages"):
        read_image(path, ReadOptions(page=3))


@pytest.mark.parametrize("kind", ["png-rgb", "png-rgba", "png-grey-alpha", "jp2-grey", "jp2-rgb"])
@pytest.mark.parametrize("value_range", ["full", "100,3000"])
def test_both_readers__take_deep_png_and_jpeg_2000(
    value_range: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow cuts colours of 16 bits, and scales the 12 bits of JPEG 2000 to 16."""
    suffix, _, colours = kind.partition("-")
    count = {"rgb": 3, "rgba": 4, "grey": 1, "grey-alpha": 2}[colours]
    bits = 16 if suffix == "png" else 12
    values = (values_of_type("uint16", count) >> (16 - bits)).astype(np.uint16)
    path = tmp_path / f"image.{suffix}"
    driver = {"driver": "PNG"} if suffix == "png" else {"driver": "JP2OpenJPEG", "QUALITY": 100, "REVERSIBLE": "YES"}
    write_bands(path, values, **driver, **({} if suffix == "png" else {"NBITS": bits}))
    if value_range == "full" and bits == 12:
        scaled = np.moveaxis(values.astype(np.float64), 0, -1)
        expected = np.floor(scaled / 16) if count == 3 else np.floor(scaled * 255 / 4095 + 0.5)
        expected = np.broadcast_to(expected, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    else:
        expected = expected_rgb(values, bits, value_range)
    options = ReadOptions(value_range)
    np.testing.assert_array_equal(read_image(path, options), expected)
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    np.testing.assert_array_equal(put_together(path, options), expected)


def test_read_image__without_rasterio_says_what_a_tiff_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bands(tmp_path / "a.tif", values_of_type("uint16", 3), photometric="MINISBLACK")
    write_bands(tmp_path / "b.tif", values_of_type("uint8", 3), photometric="RGB", compress="lerc")
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(
        DatasetError, match=r"a\.tif: .*, got a TIFF with 3 samples of 16 bits .*large.*save it as RGB of 8"
    ):
        read_image(tmp_path / "a.tif")
    with pytest.raises(DatasetError, match=r"b\.tif: .*, got a TIFF with 3 samples of 8 bits .*compression: LERC"):
        read_image(tmp_path / "b.tif")


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("kind", ["cut.png", "zeroed.jpg", "zeroed.tif"])
def test_open_image__refuses_damage_that_gdal_reads_over(kind: str, tmp_path: Path) -> None:
    """GDAL gives black pixels for the end of a PNG, and a wrong picture for JPEG data with zeros in them."""
    path = tmp_path / kind
    options: dict[str, dict[str, Any]] = {"zeroed.jpg": {"quality": 90}, "zeroed.tif": {"compression": "jpeg"}}
    Image.fromarray(RGB).save(path, **options.get(kind, {}))
    assert put_together(path).shape == RGB.shape
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if kind == "cut.png":
        del data[middle:]
    else:
        data[middle : middle + 60] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(DatasetError, match=rf"{kind}: expected a readable image file, got one that is damaged or cut"):
        put_together(path)
    with pytest.raises(DatasetError, match=rf"{kind}: expected a readable image file, got one that is damaged or cut"):
        read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", ["tag", "xmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16", "P"])
def test_both_readers__do_not_turn_a_tiff(
    mode: str, place: str, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, path = tmp_path / "plain.tif", tmp_path / "turned.tif"
    in_mode(mode).save(plain)
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
    in_mode(mode).save(path, tiffinfo={274: orientation} if place == "tag" else {700: xmp})
    header = read_header(path)
    assert (header.height, header.width, header.orientation) == (HEIGHT, WIDTH, orientation)
    np.testing.assert_array_equal(read_image(path), read_image(plain))
    monkeypatch.setattr(windows, "WHOLE_PIXELS", 100)
    np.testing.assert_array_equal(put_together(path), read_image(plain))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_open_image__takes_the_high_byte_of_16_bit_colours(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    values = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    cv2.imwrite(str(path), values)
    np.testing.assert_array_equal(put_together(path), read_image(path))


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(
    "options",
    [
        {"tiled": True, "blockxsize": 64, "blockysize": 32},
        {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "zstd", "BIGTIFF": "YES"},
        {
            "tiled": True,
            "blockxsize": 64,
            "blockysize": 64,
            "compress": "deflate",
            "predictor": 2,
            "interleave": "band",
        },
    ],
)
def test_open_image__reads_tiled_tiff(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "tiled.svs"
    write_tiff(path, RGB, **options)
    np.testing.assert_array_equal(put_together(path), RGB)


@pytest.mark.usefixtures("in_parts")
@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", ".tif"), ("CMYK", ".jpg"), ("LAB", ".tif"), ("RGB", ".webp"), ("RGB", ".bmp")]
)
def test_open_image__reads_whole_what_only_pillow_knows(mode: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image{suffix}"
    in_mode(mode).save(path)
    np.testing.assert_array_equal(put_together(path), read_image(path))


@pytest.mark.usefixtures("in_parts")
def test_open_image__refuses_floats_as_read_image_does(tmp_path: Path) -> None:
    path = tmp_path / "float.tif"
    Image.fromarray(RGB[..., 0].astype(np.float32)).save(path)
    with pytest.raises(DatasetError, match=r"float\.tif: expected grey.*got floating point values"), open_image(path):
        pass


def test_open_image__without_rasterio_reads_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    in_mode("RGB").save(path)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert image_size(path) == (HEIGHT, WIDTH)
    with open_image(path) as image:
        assert not is_large_image(image)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with (
        pytest.raises(
            DatasetError, match=r"image\.png: expected .* over 2,000 pixels.*--tile.*pip install .*\[large\]"
        ),
        open_image(path),
    ):
        pass


def test_image_reader__gives_parts_of_an_array() -> None:
    image = ImageReader.of(RGB)
    assert (image.height, image.width, is_large_image(image)) == (HEIGHT, WIDTH, False)
    for at in Grid.of(HEIGHT, WIDTH, 64, 0.2).row(1):
        np.testing.assert_array_equal(image.read(at), RGB[at.y0 : at.y1, at.x0 : at.x1])


def test_georeference__says_where_an_image_lies(tmp_path: Path) -> None:
    write_tiff(tmp_path / "geo.tif", RGB, crs="EPSG:32633", transform=rasterio.Affine(0.5, 0, 400000, 0, -0.5, 5000000))
    assert georeference(tmp_path / "geo.tif") == (
        (0.5, 0.0, 400000.0, 0.0, -0.5, 5000000.0),
        "urn:ogc:def:crs:EPSG::32633",
    )
    in_mode("RGB").save(tmp_path / "nowhere.tif")
    assert georeference(tmp_path / "nowhere.tif") is None
    in_mode("RGB").save(tmp_path / "nowhere.webp")
    assert georeference(tmp_path / "nowhere.webp") is None


def write_bands(path: Path, values: NDArray[Any], **options: Any) -> None:
    """Write (c, h, w) of any type by GDAL."""
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    count, height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        size = {"height": height, "width": width, "count": count}
        with rasterio.open(path, "w", **{"driver": "GTiff", "dtype": values.dtype} | size | options) as file:
            file.write(values)


def write_tiff(path: Path, rgb: NDArray[np.uint8], **options: Any) -> None:
    import warnings

    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=rgb.shape[0],
            width=rgb.shape[1],
            count=3,
            dtype="uint8",
            photometric="RGB",
            **options,
        ) as file:
            file.write(np.moveaxis(rgb, -1, 0))
