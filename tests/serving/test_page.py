"""The page in a real browser: upload, masks, threshold, classes, tiles, downloads, faults; nothing else is asked."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.sample_data import SAMPLE
from support.chromium import CHROMIUM, chromium
from support.server import Server

WHOLE = ("--image-scale", "fit")  # no tiles
IMAGE = SAMPLE / "valid" / "853a4c67900c411a.png"
SHAPES = ".m2f-shapes path:not(.off)"

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
    pytest.mark.xdist_group("page"),  # one server and one browser for all of this file
]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(
        SAMPLE / "model", "--device", "cpu", *WHOLE, "--max-bytes", "3000000", "--max-pixels", "4000000"
    ) as server:
        yield server


@pytest.fixture(scope="module")
def found() -> Any:
    """What the Predictor finds in the image, nearly everything."""
    return Predictor.from_pretrained(SAMPLE / "model", "cpu", image_scale="fit")(
        IMAGE, threshold=0.05, max_detections=250
    )


@pytest.fixture(scope="module")
def opened(server: Server) -> Iterator[tuple[Page, list[str]]]:
    """The page with the image in it, and all that it and those after it have asked for."""
    asked: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        page.set_default_timeout(30_000)
        page.on("request", lambda request: asked.append(f"{request.method} {request.url}"))
        page.on("pageerror", lambda error: asked.append(f"ERROR {error}"))
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.set_input_files(".m2f-drop input", IMAGE)
        page.wait_for_selector(SHAPES)
        yield page, asked
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
    page.get_by_role("button", name="Dark / light").click()
    colours.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colours[0] != colours[1]
    page.get_by_role("button", name="Dark / light").click()
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert page.locator(".m2f-window").bounding_box()["width"] > 300  # type: ignore[index]
    page.set_viewport_size({"width": 1280, "height": 860})


def test_page__lists_instances_that_a_click_finds(opened: tuple[Page, list[str]], found: Any) -> None:
    page, _ = opened
    set_threshold(page, 0.5)
    rows = page.locator("#m2f-instances .m2f-rows button")
    expected = int((found.scores >= 0.5).sum())
    expect(rows).to_have_count(expected)
    values = {}
    for key in ("area", "score"):
        page.get_by_role("button", name=f"Sort by {key}").click()
        values[key] = rows.evaluate_all(f"rows => rows.map(row => row.shape.annotation.{key})")
        assert values[key] == sorted(values[key], reverse=True)
    assert values["score"][0] == pytest.approx(float(found.scores.max()), abs=1e-4)
    rows.nth(2).click()
    picked = page.locator(".m2f-shapes path.picked")
    expect(picked).to_have_count(1)
    assert picked.evaluate("path => path.shape.annotation.score") == values["score"][2]
    expect(page.locator(".m2f-tip")).to_contain_text(f"{values['score'][2]:.2f}")
    frame, shape = page.locator(".m2f-window").bounding_box(), picked.bounding_box()
    assert frame is not None
    assert shape is not None
    # Zoomed in, and the instance lies in the window as a whole.
    assert page.evaluate("document.querySelector('.m2f-window').classList.contains('zoomed')")
    assert frame["x"] - 2 <= shape["x"] <= shape["x"] + shape["width"] <= frame["x"] + frame["width"] + 2
    assert frame["y"] - 2 <= shape["y"] <= shape["y"] + shape["height"] <= frame["y"] + frame["height"] + 2
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.shape.annotation.score") == values["score"][3]
    assert page.locator("#m2f-instances .m2f-rows button[tabindex='0']").count() == 1
    page.keyboard.press("Escape")
    expect(picked).to_have_count(0)
    expect(page.locator(".m2f-tip")).to_be_hidden()
    for _ in range(4):
        page.get_by_label("Zoom out").click()


def test_page__shows_the_original_and_colours_by_class(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    shown = page.locator(SHAPES)
    expect(shown.first).to_be_visible()
    page.get_by_role("button", name="Show original").click()
    expect(shown.first).to_be_hidden()
    page.get_by_role("button", name="Show original").click()
    expect(shown.first).to_be_visible()
    colours = "paths => new Set(paths.map(path => path.style.color)).size"
    assert shown.evaluate_all(colours) > 3  # one class: by instance
    page.locator("#m2f-colours").get_by_text("class", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#m2f-classes i.mixed').length === 0")
    assert shown.evaluate_all(colours) == 1
    page.locator("#m2f-colours").get_by_text("instance", exact=True).click()
    page.wait_for_function("document.querySelectorAll('#m2f-classes i.mixed').length === 1")
    assert shown.evaluate_all(colours) > 3


def test_page__draws_a_histogram_of_all_scores(opened: tuple[Page, list[str]], found: Any) -> None:
    page, _ = opened
    set_threshold(page, 0.5)
    bars = page.locator("#m2f-histogram rect")
    expect(bars).to_have_count(19)
    heights = np.array(bars.evaluate_all("bars => bars.map(bar => +bar.getAttribute('height'))"))
    counts = np.histogram(found.scores, bins=19, range=(0.05, 1))[0]
    assert heights / heights.max() == pytest.approx(counts / counts.max(), abs=0.06)
    expect(page.locator("#m2f-histogram rect.off")).to_have_count(9)
    set_threshold(page, 0.9)
    expect(page.locator("#m2f-histogram rect.off")).to_have_count(17)
    set_threshold(page, 0.5)


def test_page__takes_several_images_and_asks_once_for_each(opened: tuple[Page, list[str]]) -> None:
    page, asked = opened
    others = [SAMPLE / "valid" / name for name in ("6fc83b33896f58a4.png", "66236902b874b7e4.png")]
    before = predictions(asked)
    page.set_input_files(".m2f-other input", [IMAGE, *others])
    buttons = page.locator(".m2f-strip button")
    expect(buttons).to_have_count(3)
    expect(buttons.nth(0)).to_have_attribute("aria-pressed", "true")
    page.wait_for_selector(".m2f-progress", state="hidden")
    for place in (1, 0, 1):
        buttons.nth(place).click()
        expect(buttons.nth(place)).to_have_attribute("aria-pressed", "true")
        page.wait_for_selector(".m2f-progress", state="hidden")
        page.wait_for_selector(SHAPES)
    assert predictions(asked) == before + 2
    page.set_input_files(".m2f-other input", IMAGE)
    page.wait_for_selector(".m2f-progress", state="hidden")
    expect(page.locator(".m2f-strip")).to_be_hidden()


def test_page__names_an_instance_on_touch_and_never_covers_the_zoom_buttons(
    opened: tuple[Page, list[str]], server: Server
) -> None:
    browser = opened[0].context.browser
    assert browser is not None
    page = browser.new_page(viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True)
    page.set_default_timeout(30_000)
    page.goto(f"http://127.0.0.1:{server.port}/")
    for kind in ("coco", "csv", "overlay"):  # before there is an image
        expect(page.locator(f"#m2f-{kind}")).to_be_disabled()
    expect(page.locator(".m2f-finds")).to_contain_text("This model finds nucleus.")
    page.get_by_role("button", name="Try the sample image").click()
    page.wait_for_selector(SHAPES)
    expect(page.locator("#m2f-coco")).to_be_enabled()
    tip, zoom = page.locator(".m2f-tip"), page.locator(".m2f-zoom").bounding_box()
    assert zoom is not None
    tapped = 0
    for place in page.locator(SHAPES).evaluate_all(
        "paths => paths.map(path => { const box = path.getBoundingClientRect();"
        " return [box.x + box.width / 2, box.y + box.height / 2]; })"
    ):
        if not page.evaluate("([x, y]) => Boolean(document.elementFromPoint(x, y)?.shape)", place):
            continue  # a zoom button or a hole
        page.touchscreen.tap(*place)
        if tip.is_hidden():  # a second tap on what lies on top of two
            continue
        tapped += 1
        box = tip.bounding_box()
        assert box is not None
        apart = box["x"] + box["width"] <= zoom["x"] or box["y"] + box["height"] <= zoom["y"]
        assert apart, (box, zoom)
        assert re.match(r"nucleus 0\.\d\d\d+ px", tip.inner_text().replace("\n", ""))
    assert tapped > 10
    page.close()


def axe() -> Path | None:
    """The script of axe-core, which the tests do not bring along: a path in AXE, such as package/axe.min.js of it."""
    path = os.environ.get("AXE")
    return Path(path) if path else None


@pytest.mark.skipif(axe() is None, reason="needs axe-core: set AXE to its axe.min.js")
def test_page__has_no_finding_of_axe(opened: tuple[Page, list[str]]) -> None:
    page, _ = opened
    script = axe()
    assert script is not None
    page.evaluate(script.read_text(encoding="utf-8"))
    for turn in ("light", "dark"):
        page.wait_for_function("document.getAnimations().every(one => one.playState !== 'running')")
        found = page.evaluate("axe.run()")["violations"]
        assert [(one["id"], one["impact"], one["nodes"][0]["html"]) for one in found] == [], turn
        page.get_by_role("button", name="Dark / light").click()


def test_page__asks_nothing_of_other_machines(opened: tuple[Page, list[str]], server: Server) -> None:
    _, asked = opened
    assert len(asked) > 20
    for line in asked:
        address = urlsplit(line.split(" ", 1)[1])
        assert address.scheme in ("blob", "data") or address.netloc == f"127.0.0.1:{server.port}", line
