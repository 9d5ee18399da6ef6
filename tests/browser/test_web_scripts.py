"""What the browser computes beside the network, in Chromium, against the code in Python: pixels and instances."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page
from torch import Tensor
from torch.nn.functional import interpolate

from mask2former_dinov3.browser.viewer_page import STATIC
from mask2former_dinov3.data.fitting import fit_image
from mask2former_dinov3.data.images import decode_image
from mask2former_dinov3.inference.postprocess import post_process
from mask2former_dinov3.inference.settings import InferenceSettings
from support.chromium import CHROMIUM, chromium, file_server

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
    pytest.mark.xdist_group("web"),
]

# viewer.js starts the viewer when it is loaded; this part of it only defines functions.
AS_STORED = (STATIC / "viewer.js").read_text(encoding="utf-8").partition("// ---- pixels as stored")[2]
AS_STORED = AS_STORED.partition("\n")[2].partition("// ---- ")[0]
READ = f"""async ([data, canvas, valueRange]) => {{
    const {{ fittedSize, openImage, resizeImage }} = await import("/pixels.js");
    {AS_STORED}
    const file = new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], "image");
    try {{
        const image = await openImage(await asStored(file), {{ max_pixels: 1e6, value_range: valueRange }});
        const real = fittedSize(...image.size, canvas);
        return [real, [...resizeImage(image.readRows, image.size, real)]];
    }} catch (error) {{
        return error.message;
    }}
}}"""

INSTANCES = """async ([classes, masks, dims, sizes, asked, names]) => {
    const { postProcess, toCoco } = await import("/instances.js");
    const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer);
    const [queries, columns, height, width] = dims;
    const found = postProcess(
        { data: floats(classes), dims: [1, queries, columns] },
        { data: floats(masks), dims: [1, queries, height, width] }, sizes, asked);
    const model = { classes: names, category_ids: names.map((_, label) => 10 + label), least: asked.least };
    return toCoco(found, "image", sizes.size, model);
}"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """A page of the scripts' own server; WebGL computes in software."""
    with file_server(STATIC) as (address, _), chromium("--enable-unsafe-swiftshader") as browser:
        page = browser.new_page()
        page.goto(f"{address}/page.css")
        yield page


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(page: Page, data: bytes, canvas: tuple[int, int], value_range: str = "full") -> NDArray[np.int64]:
    """What pixels.js makes of a file, (r, c, 3). Raises ValueError with its message."""
    found = page.evaluate(READ, [base64.b64encode(data).decode(), list(canvas), value_range])
    if isinstance(found, str):
        raise ValueError(found)
    (rows, columns), values = found
    return np.array(values).reshape(rows, columns, 3)


@pytest.mark.parametrize(
    ("size", "canvas"),
    [
        ((60, 60), (64, 64)),  # enlarged, by a ratio without ties
        ((64, 48), (64, 64)),  # as it is
        ((128, 128), (64, 64)),  # halved
        ((192, 100), (64, 64)),  # reduced to a third
        ((91, 117), (64, 96)),
        ((300, 7), (64, 64)),  # one side becomes two pixels
        ((600, 20), (64, 64)),  # in strips
    ],
)
def test_resize_image__equals_the_resizing_of_training(
    page: Page, size: tuple[int, int], canvas: tuple[int, int]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted = fit_image(pixels, *canvas).astype(np.int64)
    found = read(page, encoded(Image.fromarray(pixels)), canvas)
    assert found.shape == wanted.shape
    differ = np.abs(found - wanted)
    assert differ.max() <= 1
    assert (differ > 0).mean() <= 0.002


def test_open_image__reads_the_stored_pixels(page: Page) -> None:
    """Transparency does not change a colour, nothing is turned by EXIF, 16 bits become 8."""
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    rgba[:4] = 255  # the first rows are opaque
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth = Image.fromarray(rgba[:, :, :3]).resize((8, 6)).resize((32, 24))
    files = {
        "transparent": (encoded(Image.fromarray(rgba)), 0),
        "grey and alpha": (encoded(Image.fromarray(rgba).convert("LA")), 0),
        "palette": (encoded(Image.fromarray(rgba[:, :, :3]).quantize(16)), 0),
        "turned JPEG": (encoded(smooth, "JPEG", exif=turned, quality=95), 2),
        "turned PNG": (encoded(smooth, "PNG", exif=turned), 0),
        "turned WebP": (encoded(smooth, "WebP", exif=turned, lossless=True), 0),
        "16 bits": (encoded(Image.fromarray(rng.integers(0, 65536, (24, 32), dtype=np.uint16))), 1),
    }
    for name, (data, tolerance) in files.items():
        wanted = decode_image(data, name).astype(np.int64)
        found = read(page, data, (24, 32))
        assert found.shape == wanted.shape, name
        assert np.abs(found - wanted).max() <= tolerance, name


def test_open_image__says_what_it_cannot_read(page: Page) -> None:
    grey = Image.fromarray(np.zeros((20, 30), np.uint16))
    with pytest.raises(ValueError, match=r"expected a PNG of 8 bits, got one of 16.*value_range percentile"):
        read(page, encoded(grey), (32, 32), "percentile")
    with pytest.raises(ValueError, match=r"expected an image that this browser can decode.*not TIFF"):
        read(page, encoded(grey, "TIFF"), (32, 32))
    with pytest.raises(ValueError, match="expected at most 1,000,000 pixels, got 1001 x 1000"):
        read(page, encoded(Image.new("L", (1001, 1000))), (32, 32))


def logits_of_shapes(queries: int, classes: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Logits of classes (1, Q, K+1) and smooth ones of masks (1, Q, height, width); some masks are copies of others."""
    torch.manual_seed(0)
    coarse = torch.randn(1, queries, 5, 6) * 4 - 2
    coarse[0, queries // 2 :] = coarse[0, : queries - queries // 2] - 0.4
    coarse[0, 0] = -1  # an empty mask
    masks = interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return torch.randn(1, queries, classes + 1) * 2, masks


@pytest.mark.parametrize("size", [(90, 130), (33, 40)])  # larger and smaller than the canvas
@pytest.mark.parametrize(("least", "most", "copy_overlap"), [(0.05, 100, 1.0), (0.3, 9, 0.5), (0.99, 100, 1.0)])
def test_post_process__equals_the_one_in_python(
    page: Page, size: tuple[int, int], least: float, most: int, copy_overlap: float
) -> None:
    names = ["disc", "bar", "ring"]
    classes, masks = logits_of_shapes(16, len(names), 16, 24)
    canvas, real = (64, 96), (64, 92)
    pixel_mask = torch.zeros(1, *canvas, dtype=torch.bool)
    pixel_mask[:, : real[0], : real[1]] = True
    settings = InferenceSettings(least, most, copy_overlap=copy_overlap)
    categories = tuple((10 + label, name) for label, name in enumerate(names))
    (wanted,) = post_process(classes, masks, [size], pixel_mask, settings=settings, categories=categories)
    sizes = {"canvas": canvas, "real": real, "size": size}
    asked = {"least": least, "max_detections": most, "copy_overlap": copy_overlap}
    dims = [*classes.shape[1:], *masks.shape[2:]]
    tensors = [base64.b64encode(one.numpy().tobytes()).decode() for one in (classes, masks)]
    found = page.evaluate(INSTANCES, [*tensors, dims, sizes, asked, names])
    assert found["left_out"] == pytest.approx(asdict(wanted.left_out), abs=1e-5)
    assert found["categories"] == [{"id": id_, "name": name} for id_, name in categories]
    assert found["images"] == [{"id": 1, "file_name": "image", "height": size[0], "width": size[1]}]
    expected = wanted.to_coco_annotations(1)
    assert len(found["annotations"]) == len(expected)
    for one, other in zip(found["annotations"], expected, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert one == other
