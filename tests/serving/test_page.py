"""The page in a real browser: upload, masks, threshold, classes, tiles, downloads, faults; nothing else is asked."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.sample_data import SAMPLE
from support.server import Server

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]
IMAGE = SAMPLE / "valid" / "a7f767ca9770b160.png"
SHAPES = ".m2f-shapes path:not(.off)"

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
    pytest.mark.xdist_group("page"),  # one server and one browser for all of this file
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(SAMPLE / "model", "--device", "cpu", "--max-bytes", "3000000", "--max-pixels", "4000000") as server:
        yield server


@pytest.fixture(scope="module")
def found() -> Any:
    """What the Predictor finds in the image, nearly everything."""
    return Predictor.from_pretrained(SAMPLE / "model", "cpu")(IMAGE, threshold=0.05, max_detections=150)


@pytest.fixture(scope="module")
def opened(server: Server) -> Iterator[tuple[Page, list[str]]]:
    """The page with the image in it, and all that it and those after it have asked for."""
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
        page.on("pageerror", lambda error: asked.append(f"ERROR {error}"))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.set_input_files(".m2f-drop input", IMAGE)
        page.wait_for_selector(SHAPES)
        yield page, asked
        browser.close()
    assert not [line for line in asked if line.startswith("ERROR")]


def predictions(asked: list[str]) -> int:
    return sum("/predict" in line for line in asked)


def set_threshold(page: Page, value: float) -> None:
    page.locator("#m2f-threshold input[type=number]").fill(str(value))
    page.locator("#m2f-threshold input[type=number]").press("Enter")


def test_page__shows_every_instance_and_filters_without_the_server(opened: tuple[Page, list[str]], found: Any) -> None:
    page, asked = opened
    before = predictions(asked)
    for threshold in (0.5, 0.9, 0.05, 0.5):
        set_threshold(page, threshold)
        expected = int((found.scores >= threshold).sum())
        expect(page.locator(SHAPES)).to_have_count(expected)
        expect(page.locator(".m2f-status")).to_contain_text(f"{expected} instance")
        expect(page.locator("#m2f-classes button b")).to_have_text(str(expected))
    assert predictions(asked) == before


def test_page__outlines_are_the_masks(opened: tuple[Page, list[str]], found: Any) -> None:
    """Each path, filled by the browser, covers what its mask covers, but for the smoothing of its edge."""
    page, _ = opened
    set_threshold(page, 0.05)
    expect(page.locator(SHAPES)).to_have_count(len(found))
    areas = page.evaluate(
        """([height, width]) => [...document.querySelectorAll(".m2f-shapes path")].map((path) => {
            const canvas = Object.assign(document.createElement("canvas"), { width, height });
            const pen = canvas.getContext("2d");
            pen.fill(new Path2D(path.getAttribute("d")), "evenodd");
            let area = 0;
            const alpha = pen.getImageData(0, 0, width, height).data;
            for (let i = 3; i < alpha.length; i += 4) area += alpha[i] / 255;
            return [path.shape.annotation.id, path.shape.annotation.area, area];
        })""",
        [found.height, found.width],
    )
    assert len(areas) == len(found)
    for _, area, drawn in areas:
        assert abs(drawn - area) <= 2 + 1.5 * area**0.5  # of a disc: half a pixel along its edge
    set_threshold(page, 0.5)


def test_page__names_what_is_pointed_at(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    best = page.locator(SHAPES).last  # the smallest one, which lies on top
    best.hover()
    score = best.evaluate("path => path.shape.annotation.score.toFixed(2)")
    area = best.evaluate("path => path.shape.annotation.area")
    expect(page.locator(".m2f-tip")).to_have_text(f"nucleus {score}{area} px")
    page.mouse.move(5, 5)
    expect(page.locator(".m2f-tip")).to_be_hidden()


def test_page__takes_classes_out_and_in(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    shown = page.locator(SHAPES).count()
    page.locator("#m2f-classes button").click()
    expect(page.locator(SHAPES)).to_have_count(0)
    expect(page.locator("#m2f-classes button")).to_have_attribute("aria-pressed", "false")
    page.locator("#m2f-classes button").click()
    expect(page.locator(SHAPES)).to_have_count(shown)


def test_page__downloads_what_is_shown(opened: tuple[Page, list[str]], server: Server, tmp_path: Path) -> None:
    page, _ = opened
    set_threshold(page, 0.6)
    files = {}
    for kind in ("coco", "csv", "overlay"):
        with page.expect_download() as download:
            page.locator(f"#m2f-{kind}").click()
        files[kind] = tmp_path / download.value.suggested_filename
        download.value.save_as(files[kind])
    _, answer = server.predict(IMAGE.read_bytes(), threshold=0.6, max_detections=150)
    coco = json.loads(files["coco"].read_text())
    assert coco["images"][0].pop("file_name") == IMAGE.name
    assert answer["images"][0].pop("file_name") == "image"
    assert coco == answer
    with files["csv"].open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    scores = [one["score"] for one in answer["annotations"]]
    assert [float(row["score"]) for row in rows] == pytest.approx(scores)
    with Image.open(files["overlay"]) as picture:
        assert picture.width % answer["images"][0]["width"] == 0
        assert len(set(picture.convert("RGB").get_flattened_data())) > 1000
    assert files["overlay"].name == f"{IMAGE.stem}.overlay.png"
    set_threshold(page, 0.5)


def test_page__predicts_in_tiles_when_asked(opened: tuple[Page, list[str]]) -> None:
    page, asked = opened
    for turn in ("check", "uncheck"):
        before = predictions(asked)
        with page.expect_response(lambda response: "/predict" in response.url):
            getattr(page.locator("#m2f-tiles input"), turn)()
        page.wait_for_selector(".m2f-progress", state="hidden")
        assert predictions(asked) == before + 1
        assert ("tile=512" in asked[-1]) == (turn == "check")


def test_page__explains_a_bad_file_and_goes_on(opened: tuple[Page, list[str]], tmp_path: Path) -> None:
    page, _ = opened
    files = {
        "text.png": (b"no image at all", "text.png: expected an image in one of the formats"),
        "cut.png": (IMAGE.read_bytes()[:2000], "cut.png: "),
        "large.png": (bytes(3_000_001), "large.png: the server takes files of at most 3 MB"),
    }
    place = ".m2f-other input"
    for name, (data, message) in files.items():
        (tmp_path / name).write_bytes(data)
        page.set_input_files(place, tmp_path / name)
        expect(page.locator(".m2f-error")).to_contain_text(message)
        expect(page.locator(SHAPES)).to_have_count(0)
        expect(page.locator("#m2f-coco")).to_be_disabled()
        expect(page.locator(".m2f-drop")).to_be_visible()
        place = ".m2f-drop input"
    page.set_input_files(".m2f-drop input", IMAGE)
    page.wait_for_selector(SHAPES)
    expect(page.locator(".m2f-error")).to_be_hidden()


def test_page__is_dark_or_light_and_fits_a_phone(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    colours = [page.evaluate("getComputedStyle(document.body).backgroundColor")]
    page.get_by_label("Dark or light").click()
    colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    page.get_by_label("Dark or light").click()
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator(".m2f-window").bounding_box()["width"] > 300  # type: ignore[index]
    page.set_viewport_size({"width": 1280, "height": 860})


def test_page__asks_nothing_of_other_machines(opened: tuple[Page, list[str]], server: Server) -> None:
    _, asked = opened
    assert len(asked) > 20
    for line in asked:
        address = urlsplit(line.split(" ", 1)[1])
        assert address.scheme in ("blob", "data") or address.netloc == f"127.0.0.1:{server.port}", line
