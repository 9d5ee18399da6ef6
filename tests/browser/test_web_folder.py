"""The folder of `export --web`: its files, and its page in Chromium against the Predictor, also with tiles.

The bundled model may fit images into its canvas, or read them at their own scale; `tiled` does the latter in any case.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from faster_coco_eval.core import mask as rle_codec
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from playwright.sync_api import Page, expect

from mask2former_dinov3.browser.viewer_page import MIN_THRESHOLD, STATIC, start_threshold
from mask2former_dinov3.browser.web_folder import (
    WEB_FILES,
    check_reading,
    expected_numbers,
    export_web,
    fill_web_folder,
)
from mask2former_dinov3.browser.web_runtime import RUNTIME_FILES, find_runtime
from mask2former_dinov3.canvas import padded_size
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.export.onnx_check import Agreement
from mask2former_dinov3.export.onnx_export import Export
from mask2former_dinov3.export.parity import FileComparison, parity_file
from mask2former_dinov3.inference.image_processing import Mask2FormerDinov3ImageProcessor
from mask2former_dinov3.inference.onnx_model import OnnxModel
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import DEFAULTS
from mask2former_dinov3.sample_data import SAMPLE
from support.chromium import CHROMIUM, WITH_WEBGPU, chromium, file_server

IMAGES = [SAMPLE / "valid" / name for name in ("853a4c67900c411a.png", "6fc83b33896f58a4.png", "66236902b874b7e4.png")]
SLOW = 400_000  # milliseconds: of a machine that runs much else; 2 s otherwise
SHAPES = ".m2f-shapes path:not(.off)"
FACTOR = 4 / 3  # `image_scale` of `tiled`: 360 x 360 does not fit into its canvas; resizing without ties of rounding
MOST_TILES = 20  # of the page of `tiled`
in_browser = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sample_file: Path) -> Path:
    """The folder of the bundled model, without onnxruntime-web."""
    folder = tmp_path_factory.mktemp("web")
    shutil.copyfile(sample_file, folder / "model.onnx")
    fill_web_folder(folder, "<nuclei>")
    return folder


def write_page(folder: Path, sample_file: Path, image_scale: float | None = None) -> Export:
    """The export of the bundled model as a whole folder. image_scale: instead of the model's own."""
    try:
        find_runtime()
    except OptionError as error:
        pytest.skip(str(error))

    def make_file(file: Path, accept: Callable[[Mask2FormerDinov3ImageProcessor], None]) -> Export:
        accept(Mask2FormerDinov3ImageProcessor.from_pretrained(SAMPLE / "model"))
        model = onnx.load(sample_file)
        for entry in model.metadata_props:
            if entry.key == "image_scale" and image_scale is not None:
                entry.value = json.dumps(image_scale)
        onnx.save(model, file)
        parity_file(file).write_text("{}")  # as an export does
        agreement = Agreement("fp32", (), True, {}, {}, 0, 1.0, 0.0, 0.0, 1.0, "")
        comparison = FileComparison("export", "m", None, "onnxruntime", True, agreement)
        return Export(file, file.stat().st_size, comparison)

    return export_web(SAMPLE / "model", folder, make_file)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, sample_file: Path) -> Export:
    """The export of the bundled model as it is."""
    return write_page(tmp_path_factory.mktemp("web") / "page", sample_file)


@pytest.fixture(scope="module")
def address(done: Export) -> Iterator[str]:
    """Of a server of the whole folder."""
    with file_server(done.path.parent) as (address, _):
        yield address


@pytest.fixture(scope="module")
def opened(address: str) -> Iterator[tuple[Page, list[str]]]:
    """The page with its model loaded, and the addresses that it asks for."""
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(SLOW)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: asked.append(f"ERROR {error}"))
        page.goto(f"{address}/index.html?device=wasm")
        expect(page.locator("#m2f-where")).to_contain_text("on the CPU, with WebAssembly", timeout=SLOW)
        yield page, asked
    assert not [line for line in asked if line.startswith("ERROR")]


@pytest.fixture(scope="module")
def tiled(
    opened: tuple[Page, list[str]], tmp_path_factory: pytest.TempPathFactory, sample_file: Path
) -> Iterator[Page]:
    """The page of a model that reads images at their own scale; `texts` in it are those of its status."""
    folder = write_page(tmp_path_factory.mktemp("tiled") / "page", sample_file, FACTOR).path.parent
    file = folder / "model.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "max_tiles": MOST_TILES}))
    browser = opened[0].context.browser
    assert browser
    with file_server(folder) as (address, _):
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(SLOW)
        page.goto(f"{address}/index.html?device=wasm")
        expect(page.locator("#m2f-where")).to_contain_text("on the CPU, with WebAssembly", timeout=SLOW)
        page.evaluate(
            """() => {
                const status = document.querySelector(".m2f-status");
                window.texts = [];
                new MutationObserver(() => texts.push(status.textContent)).observe(status, { childList: true });
            }"""
        )
        yield page
        page.close()


def write_small_network(file: Path, sample_file: Path) -> None:
    """A network of one convolution with the inputs, outputs and metadata of the bundled one."""
    kernel = np.random.default_rng(0).normal(size=(250, 3, 4, 4)).astype(np.float32)
    classes = np.random.default_rng(1).normal(size=(1, 250, 2)).astype(np.float32)
    constants = [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(classes, "classes")]
    nodes = [
        helper.make_node("Conv", ["pixel_values", "kernel"], ["masks_queries_logits"], strides=[4, 4]),
        helper.make_node("ReduceMean", ["masks_queries_logits"], ["mean"], keepdims=1),
        helper.make_node("Squeeze", ["mean"], ["squeezed"]),
        helper.make_node("Cast", ["pixel_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMin", ["real"], ["least"], keepdims=0),
        helper.make_node("Mul", ["squeezed", "least"], ["shift"]),
        helper.make_node("Add", ["classes", "shift"], ["class_queries_logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 256, 256]),
        helper.make_tensor_value_info("pixel_mask", TensorProto.BOOL, ["batch", 256, 256]),
    ]
    outputs = [
        helper.make_tensor_value_info("class_queries_logits", TensorProto.FLOAT, ["batch", 250, 2]),
        helper.make_tensor_value_info("masks_queries_logits", TensorProto.FLOAT, ["batch", 250, 64, 64]),
    ]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model.metadata_props.extend(onnx.load(sample_file).metadata_props)
    onnx.save(model, file)


@in_browser
def test_page__uses_webgpu_only_if_it_gives_the_known_numbers(sample_file: Path, tmp_path: Path) -> None:
    """Chromium's WebGPU of software computes what onnxruntime does; with other numbers expected the page leaves it."""
    folder = write_page(tmp_path / "page", sample_file).path.parent
    write_small_network(folder / "model.onnx", sample_file)
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    known = expected_numbers(OnnxModel(folder / "model.onnx", "cpu"))
    assert {name: len(numbers) for name, numbers in known.items()} == {
        "class_queries_logits": 256,
        "masks_queries_logits": 256,
    }
    exchanged = {**known, "masks_queries_logits": [-number for number in known["masks_queries_logits"]]}
    with chromium(*WITH_WEBGPU) as browser, file_server(folder) as (address, _):
        page = browser.new_page()
        page.goto(f"{address}/sample.png")
        if not page.evaluate("async () => Boolean(await navigator.gpu?.requestAdapter())"):
            pytest.skip("needs a Chromium with WebGPU in software")
        for check, told in (
            (known, "in this browser with WebGPU."),
            (exchanged, "WebAssembly, in one thread (WebGPU failed: it gives other numbers than onnxruntime on a CPU)"),
        ):
            (folder / "model.json").write_text(json.dumps({**described, "check": check}))
            page = browser.new_page()
            page.goto(f"{address}/index.html?device=webgpu")
            expect(page.locator("#m2f-where")).to_contain_text("with Web", timeout=SLOW)
            expect(page.locator("#m2f-where")).to_contain_text(told)
            page.close()


def predict(page: Page, image: Path) -> None:
    """Give an image to the page and wait for its end."""
    page.set_input_files(".m2f-other input" if page.locator(".m2f-other").is_visible() else ".m2f-drop input", image)
    expect(page.locator(".m2f-status")).not_to_have_text("", timeout=SLOW)
    expect(page.locator(".m2f-status")).not_to_contain_text("Finding", timeout=SLOW)


def test_export_web__refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file"):
        with pytest.raises(OptionError, match=r"web: expected a new or empty folder, got .*, which holds files"):
            export_web(SAMPLE / "model", place, lambda *_, **__: pytest.fail("too late"))


def test_check_reading__refuses_models_that_read_images_otherwise() -> None:
    check_reading(Mask2FormerDinov3ImageProcessor(image_scale="native"))
    four = {"image_mean": [0.5] * 4, "image_std": [0.5] * 4}
    cases: list[tuple[dict[str, Any], str]] = [
        (four, "one of chosen channels"),
        ({"channels": [3, 2, 1]}, "one of chosen channels"),
        ({"page": 2, **four}, "one of chosen channels and of page 2"),
    ]
    for options, got in cases:
        with pytest.raises(OptionError) as caught:
            check_reading(Mask2FormerDinov3ImageProcessor(**options))
        expected = f"web: expected a model of RGB images, got {got}; predict and serve read them"
        assert str(caught.value).startswith(expected)


def test_fill_web_folder__writes_the_viewer_of_the_server_and_the_models_values(folder: Path) -> None:
    for name in WEB_FILES:
        assert (folder / name).read_bytes() == (STATIC / name).read_bytes()
    index = (folder / "index.html").read_text(encoding="utf-8")
    assert (STATIC / "viewer.html").read_text(encoding="utf-8") in index
    assert "<h1>&lt;nuclei&gt;</h1><span>finds nucleus</span>" in index
    assert (
        "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; connect-src 'self'" in index
    )
    assert "://" not in index  # no other machine is named
    model = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    network = OnnxModel(folder / "model.onnx", "cpu")
    metadata = network.metadata
    for key in ("classes", "category_ids", "mean", "std", "canvas", "value_range"):
        assert model[key] == getattr(metadata, key)
    assert model["padded"] == list(padded_size(*metadata.canvas))
    assert model["copy_overlap"] == DEFAULTS.for_model(network.config).copy_overlap
    assert model["settings"]["threshold"] == start_threshold(network.config)
    scale = metadata.image_scale
    assert (model["factor"], model["settings"]["whole"]) == ((None, None) if scale == "fit" else (1.0, metadata.canvas))
    assert model["check"] == expected_numbers(network)
    assert (folder / "CODE_LICENSE.txt").read_text(encoding="utf-8").startswith("MIT License")


def test_export_web__writes_a_folder_that_is_complete(done: Export) -> None:
    folder = done.path.parent
    assert done.path == folder / "model.onnx"
    assert done.path.stat().st_size == done.size
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    runtime = {f"runtime/{name}" for name in (*RUNTIME_FILES, "LICENSE", "ThirdPartyNotices.txt")}
    own = {"index.html", "model.json", "model.onnx", "sample.png", "CODE_LICENSE.txt", *WEB_FILES}
    assert names == own | runtime
    assert [path.name for path in folder.parent.iterdir()] == ["page"]  # no lock, nothing that was not finished


def compare(page: Page, image: Path, predictor: Predictor, folder: Path) -> None:
    """The page shows what the predictor finds in an image that was given to both."""
    threshold = start_threshold(predictor.model.config)
    # As the page does it: all pieces of objects are merged, and then those below its threshold are hidden.
    found = predictor(image, threshold=MIN_THRESHOLD).filter(min_score=threshold)
    wanted = found.to_coco_annotations(1)
    assert wanted
    expect(page.locator(SHAPES)).to_have_count(len(wanted))
    with page.expect_download() as download:
        page.locator("#m2f-coco").click()
    download.value.save_as(folder / "found.json")
    answer = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    annotations = answer["annotations"]
    size = {"height": found.height, "width": found.width}
    assert answer["images"] == [{"id": 1, "file_name": image.name, **size}]
    masks = ([one["segmentation"] for one in some] for some in (annotations, wanted))
    overlaps = np.array(rle_codec.iou(*masks, [0] * len(wanted)))
    partners = overlaps.argmax(1)
    assert sorted(partners) == list(range(len(wanted)))
    assert overlaps.max(1).min() >= 0.98
    for one, partner in zip(annotations, partners, strict=True):
        assert one["category_id"] == wanted[partner]["category_id"]
        assert one["score"] == pytest.approx(wanted[partner]["score"], abs=0.02)


@in_browser
@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.stem)
def test_page__finds_what_the_predictor_finds(opened: tuple[Page, list[str]], image: Path, tmp_path: Path) -> None:
    predict(opened[0], image)
    compare(opened[0], image, Predictor.from_pretrained(SAMPLE / "model", "cpu"), tmp_path)


@in_browser
def test_page__finds_in_tiles_what_the_predictor_finds(tiled: Page, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(SAMPLE / "model", "cpu", image_scale=FACTOR)
    tiles = predictor.passes(DEFAULTS).grid(360, 360).number_of_tiles
    assert tiles > 1
    predict(tiled, IMAGES[1])
    compare(tiled, IMAGES[1], predictor, tmp_path)
    said = tiled.evaluate("texts.filter((text) => text.includes('tile'))")
    assert said == [f"Finding instances: tile {number} of {tiles}" for number in range(1, tiles + 1)]


@in_browser
def test_page__stops_between_tiles(tiled: Page) -> None:
    tiled.evaluate("() => { texts = []; }")
    tiled.set_input_files(".m2f-other input", IMAGES[2])
    tiled.locator(".m2f-stop").click()
    expect(tiled.locator(".m2f-status")).to_have_text("Stopped")
    expect(tiled.locator(".m2f-stop")).to_be_hidden()
    expect(tiled.locator("#m2f-coco")).to_be_disabled()
    predict(tiled, IMAGES[0])  # 256 x 320, after the tile in work at most
    expect(tiled.locator(SHAPES).first).to_be_visible()
    results = {text for text in tiled.evaluate("texts") if "pixels" in text}
    assert results == {tiled.locator(".m2f-status").text_content()}  # no other image had one


@in_browser
def test_page__refuses_an_image_of_too_many_tiles(tiled: Page, tmp_path: Path) -> None:
    Image.new("RGB", (1500, 1200)).save(tmp_path / "large.png")
    tiled.set_input_files(".m2f-other input", tmp_path / "large.png")
    message = tiled.locator("#m2f-viewer .m2f-error")
    expect(message).to_contain_text(f"large.png: expected at most {MOST_TILES} tiles of ")
    expect(message).to_contain_text(" in 1500 x 1200; use predict for it")


@in_browser
def test_page__explains_a_bad_file_and_goes_on(opened: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, _ = opened
    Image.new("RGB", (8, 8)).save(tmp_path / "image.tif")
    page.set_input_files("input[type=file] >> nth=0", tmp_path / "image.tif")
    message = page.locator("#m2f-viewer .m2f-error")
    expect(message).to_contain_text("image.tif: expected an image that this browser can decode (JPEG, PNG, WebP,")
    expect(page.locator("#m2f-coco")).to_be_disabled()
    predict(page, IMAGES[2])
    expect(message).to_be_hidden()
    expect(page.locator(SHAPES).first).to_be_visible()


@in_browser
def test_page__can_reach_no_other_machine(opened: tuple[Page, list[str]], address: str, tmp_path: Path) -> None:
    """Its policy stops page and worker; before that, neither has asked for anything beyond the folder."""
    page, asked = opened
    assert {"model.onnx", "ort-wasm-simd-threaded.wasm"} <= {url.rpartition("/")[2] for url in asked}
    assert [url for url in asked if not url.startswith((f"{address}/", f"blob:{address}/", "blob:", "data:"))] == []
    with file_server(tmp_path) as (other, paths):
        for place in (page, page.workers[0]):
            error = place.evaluate(f"fetch('{other}/secret', {{ mode: 'no-cors' }}).then(() => '', String)")
            assert "Failed to fetch" in error
        assert paths == []
