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

from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.inference.tiles import image_reader as windows
from mask2former_dinov3.inference.tiles.grid import Grid
from mask2former_dinov3.inference.tiles.image_reader import ImageReader, georeference, image_size, open_image

rasterio: Any = pytest.importorskip("rasterio")

HEIGHT, WIDTH = 150, 170
RGB = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def in_mode(mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(RGB[..., 0].astype(np.int32) * 200)
    return Image.fromarray(RGB).convert(mode)


def put_together(path: Path) -> NDArray[np.uint8]:
    """The whole picture, tile by tile."""
    with open_image(path) as image:
        assert image.large
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
    with pytest.raises(DatasetError, match=r"float\.tif: expected grey, RGB.*got Pillow mode 'F'"), open_image(path):
        pass


def test_open_image__without_rasterio_reads_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image.png"
    in_mode("RGB").save(path)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert image_size(path) == (HEIGHT, WIDTH)
    with open_image(path) as image:
        assert not image.large
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
    assert (image.height, image.width, image.large) == (HEIGHT, WIDTH, False)
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
