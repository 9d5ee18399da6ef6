"""The report in a real browser: layers, links, phone width, light and dark, no request but for itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from mask2former_dinov3.cli import main
from support.chromium import CHROMIUM, chromium
from support.shapes import make_shapes

pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Debian's chromium"),
    pytest.mark.xdist_group("report page"),  # one page and one browser for all of this file
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    _, results, _ = make_shapes(root / "shapes", 20, size=(120, 160))
    (root / "results.json").write_text(json.dumps(results))
    words = ["--predictions", str(root / "results.json"), "--images", str(root / "shapes"), "--report"]
    words += ["--annotations", str(root / "shapes" / "_annotations.coco.json"), "--output", str(root / "evaluation")]
    assert main(["evaluate", *words]) == 0
    return root / "evaluation" / "report.html"


@pytest.fixture(scope="module")
def opened(file: Path) -> Iterator[Page]:
    """The page, opened as by a double click; what it says to the console or asks for elsewhere fails the tests."""
    heard: list[str] = []
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: heard.append(message.text))
        page.on("request", lambda request: heard.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(file.as_uri())
        yield page
    assert heard == [file.as_uri()]


@pytest.fixture
def page(opened: Page) -> Page:
    """The page on a wide and light screen; a test leaves its layers as they were."""
    opened.set_viewport_size({"width": 1280, "height": 900})
    opened.emulate_media(media="screen", color_scheme="light")
    return opened


def test_layers__are_switched_by_mouse_and_keyboard(page: Page) -> None:
    figure = page.locator("figure.layered:has(input)").first
    expect(figure.locator("g.right path").first).to_be_visible()
    expect(figure.locator("g.truth path").first).to_be_hidden()
    figure.locator("label.right").click()
    expect(figure.locator("g.right path").first).to_be_hidden()
    figure.locator("input.truth").focus()
    page.keyboard.press("Space")
    expect(figure.locator("g.truth path").first).to_be_visible()
    second = page.locator("figure.layered:has(input)").nth(1)
    expect(second.locator("g.right path").first).to_be_visible()  # each picture has its own
    page.keyboard.press("Space")
    expect(figure.locator("g.truth path").first).to_be_hidden()
    figure.locator("label.right").click()
    expect(figure.locator("g.right path").first).to_be_visible()


def test_links__of_the_verdict_lead_to_their_evidence(page: Page) -> None:
    for link in page.locator(".verdict a").all():
        link.click()
        name = (link.get_attribute("href") or "").removeprefix("#")
        assert name
        expect(page.locator(f"#{name}")).to_be_in_viewport()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone__nothing_is_wider_than_the_screen(page: Page, scheme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 800})
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if scheme == "dark" else "rgb(255, 255, 255)")


def test_print__has_all_pictures_and_no_check_boxes(page: Page) -> None:
    page.emulate_media(media="print")
    expect(page.locator(".layered input").first).to_be_hidden()
    expect(page.locator("figure.layered g.right path").first).to_be_visible()
