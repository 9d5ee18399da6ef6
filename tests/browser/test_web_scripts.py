"""What the browser computes beside the network, in Chromium, against the code in Python: pixels, instances, tiles."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import asdict, replace
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
from mask2former_dinov3.data.rle import run_lengths
from mask2former_dinov3.inference.postprocess import post_process
from mask2former_dinov3.inference.score_calibration import UNCHANGED, ScoreCalibration
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Grid, Region
from mask2former_dinov3.inference.tiles.merging import merge_rows
from mask2former_dinov3.inference.tiles.runs import Runs
from mask2former_dinov3.instances import Instances, Unreported
from support.chromium import CHROMIUM, chromium, file_server

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
    pytest.mark.xdist_group("web"),
]

# viewer.js starts the viewer when it is loaded; this part of it only defines functions.
AS_STORED = (STATIC / "viewer.js").read_text(encoding="utf-8").partition("// ---- pixels as stored")[2]
AS_STORED = AS_STORED.partition("\n")[2].partition("// ---- ")[0]
READ = f"""async ([data, canvas, valueRange, part, factor]) => {{
    const {{ fittedSize, openImage, resizeImage }} = await import("/pixels.js");
    {AS_STORED}
    const file = new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], "image");
    try {{
        const image = await openImage(await asStored(file), {{ max_pixels: 1e6, value_range: valueRange }});
        const [y0, x0, y1, x1] = part ?? [0, 0, ...image.size], size = [y1 - y0, x1 - x0];
        const real = fittedSize(...size, canvas, factor);
        return [real, [...resizeImage(image.rowsOf({{ y0, x0, y1, x1 }}), size, real)]];
    }} catch (error) {{
        return error.message;
    }}
}}"""

INSTANCES = """async ([classes, masks, dims, sizes, asked, names]) => {
    const { postProcess, toCoco } = await import("/instances.js");
    const { Merger, makeGrid } = await import("/tiles.js");
    const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (one) => one.charCodeAt(0)).buffer);
    const [queries, columns, height, width] = dims;
    const found = postProcess(
        { data: floats(classes), dims: [1, queries, columns] },
        { data: floats(masks), dims: [1, queries, height, width] }, sizes, asked);
    const merger = new Merger(makeGrid(sizes.size, sizes.size, 0.2), asked.copy_overlap); // an image of one tile
    merger.addRow([found]);
    const model = { classes: names, category_ids: names.map((_, label) => 10 + label), least: asked.least };
    return toCoco(merger.instances(), "image", sizes.size, model);
}"""

GRIDS = """async (cases) => {
    const { makeGrid } = await import("/tiles.js");
    const corners = ({ y0, x0, y1, x1 }) => [y0, x0, y1, x1];
    return cases.map(([size, tile, overlap]) => makeGrid(size, tile, overlap).rows.map((row) => row.map(corners)));
}"""

MERGE = """async ([size, tile, overlap, copyOverlap, calibration, least, rows, names]) => {
    const { toCoco } = await import("/instances.js");
    const { Merger, makeGrid } = await import("/tiles.js");
    const merger = new Merger(makeGrid(size, tile, overlap), copyOverlap, calibration);
    for (const row of rows) merger.addRow(row);
    return toCoco(merger.instances(least), "image", size, { classes: names, category_ids: [3, 7], least });
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


def read(
    page: Page,
    data: bytes,
    canvas: tuple[int, int],
    value_range: str = "full",
    part: Region | None = None,
    factor: float | None = None,
) -> NDArray[np.int64]:
    """What pixels.js makes of a file, or of a part, (r, c, 3). Raises ValueError with its message."""
    found = page.evaluate(READ, [base64.b64encode(data).decode(), canvas, value_range, part, factor])
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


@pytest.mark.parametrize("factor", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])  # read with a canvas, and with WebGL
def test_rows_of__reads_a_part_at_its_own_scale(page: Page, mode: str, factor: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (400, 90, len(mode)), dtype=np.uint8)
    part = Region(70, 13, 370, 60)  # in strips
    wanted = fit_image(pixels[70:370, 13:60, :3], 512, 512, factor).astype(np.int64)
    found = read(page, encoded(Image.fromarray(pixels)), (512, 512), part=part, factor=factor)
    assert found.shape == wanted.shape
    differ = np.abs(found - wanted)
    assert differ.max() <= (factor != 1)
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


def test_make_grid__equals_the_one_in_python(page: Page) -> None:
    rng = np.random.default_rng(0)
    sizes, tiles = rng.integers(1, 2500, (400, 2)).tolist(), rng.integers(1, 600, (400, 2)).tolist()
    sizes += [[side, 1000 + side] for side in range(250, 400)]  # places between two pixels are rounded to the even one
    tiles += [[256, 256]] * 150
    overlaps = [0.2, 0.0, 0.25, 0.49]
    cases = [(size, tile, overlaps[index % 4]) for index, (size, tile) in enumerate(zip(sizes, tiles, strict=True))]
    grids = [Grid.of_sides(size[0], size[1], (tile[0], tile[1]), overlap) for size, tile, overlap in cases]
    wanted = [[[list(tile) for tile in grid.row(row)] for row in range(len(grid.tops))] for grid in grids]
    assert page.evaluate(GRIDS, cases) == wanted


def shapes(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Masks (N, height, width): discs of many sizes, which may overlap, and what is larger than a tile."""
    rows, columns = np.mgrid[:height, :width]
    places = zip(rng.integers(0, height, 60), rng.integers(0, width, 60), rng.integers(3, 30, 60), strict=True)
    masks = [np.hypot(rows - y, columns - x) < radius for y, x, radius in places]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    ring = (distance < height / 2 - 4) & (distance > height / 2 - 20)
    horseshoe = ring & ((columns > width / 2) | (abs(rows - height / 2) > 12))
    bar, stripe, everything = (np.zeros((height, width), bool) for _ in range(3))
    bar[20:40, 3:-3], stripe[:, 50:70], everything[:] = True, True, True
    return np.array([*masks, ring, horseshoe, bar, stripe, everything])


def see(masks: NDArray[np.bool_], tile: Region, rng: np.random.Generator) -> Instances:
    """What a network of many faults finds in a tile: not all, moved by a pixel, in halves, with any score."""
    cut = masks[:, tile.y0 : tile.y1, tile.x0 : tile.x1]
    found, labels = [], []
    for index, mask in enumerate(cut):
        moved = np.roll(mask, rng.integers(-1, 2, 2), (0, 1))
        half = np.arange(mask.shape[1]) < mask.shape[1] // 2
        parts = [moved & half, moved & ~half] if rng.random() < 0.1 else [moved]
        kept = [part for part in parts if part.any() and rng.random() < 0.9]
        found += kept
        labels += [index % 2] * len(kept)
    limit, full = rng.integers(0, 3, 2).tolist()
    left_out = Unreported(limit, full, best_score=0.125)
    scores = rng.uniform(0.05, 1, len(found)).tolist()
    return replace(Instances.from_masks(np.array(found).reshape(-1, *cut.shape[1:]), labels, scores), left_out=left_out)


def in_script(found: Instances) -> dict[str, Any]:
    """Instances as `postProcess` of instances.js returns them."""
    lengths = [run_lengths(rle["counts"].encode()) for rle in found.rles]
    runs = [np.stack((one.start, one.end), axis=1).ravel().tolist() for one in map(Runs.of_counts, lengths)]
    columns = zip(found.labels.tolist(), found.scores.tolist(), runs, found.areas.tolist(), strict=True)
    names = ("label", "score", "runs", "area")
    return {"found": [dict(zip(names, one, strict=True)) for one in columns], "left_out": asdict(found.left_out)}


@pytest.mark.parametrize(
    ("tile", "overlap", "copy_overlap", "calibration"),
    [
        ((64, 64), 0.2, 1.0, UNCHANGED),
        ((48, 80), 0.4, 0.5, ScoreCalibration(1.5, -2.0)),
        ((90, 90), 0.3, 0.7, UNCHANGED),
        ((50, 400), 0.0, 1.0, ScoreCalibration(0.7, 1.0)),
        ((300, 400), 0.2, 0.5, UNCHANGED),
    ],
)
def test_merger__equals_the_one_in_python(
    page: Page, tile: tuple[int, int], overlap: float, copy_overlap: float, calibration: ScoreCalibration
) -> None:
    rng = np.random.default_rng(0)
    size = (160, 230)
    masks, grid = shapes(*size, rng), Grid.of_sides(*size, tile, overlap)
    rows = [[see(masks, one, rng) for one in grid.row(row)] for row in range(len(grid.tops))]
    least = 0.0 if calibration == UNCHANGED else 0.2
    settings = InferenceSettings(least, copy_overlap=copy_overlap, score_calibration=calibration)
    wanted = merge_rows(rows, grid, ((3, "disc"), (7, "bar")), settings)
    seen = [[in_script(found) for found in row] for row in rows]
    found = page.evaluate(MERGE, [size, tile, overlap, copy_overlap, calibration, least, seen, ["disc", "bar"]])
    assert found["left_out"] == asdict(wanted.left_out)
    expected = wanted.to_coco_annotations(1)
    assert len(found["annotations"]) == len(expected) > 15
    for one, other in zip(found["annotations"], expected, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-7)
        assert one == other


def test_merger__says_how_near_the_best_was_where_no_tile_has_an_instance(page: Page) -> None:
    left_out = {"limit": 0, "full": 0, "copies": 0}
    rows = [[{"found": [], "left_out": {**left_out, "best_score": score}} for score in (0.03, 0.01)]]
    for calibration in (UNCHANGED, ScoreCalibration(1.5, 1.0)):
        found = page.evaluate(MERGE, [(64, 100), (64, 64), 0.2, 1.0, calibration, 0, rows, ["disc", "bar"]])
        assert found["annotations"] == []
        assert found["left_out"]["best_score"] == pytest.approx(float(calibration.apply(0.03)))
