"""Pages: every text is escaped, nothing is loaded from elsewhere, charts say their numbers in words too."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from mask2former_dinov3.reports.html_page import Html, badge, element, figure, join, page, section, table, write_page
from mask2former_dinov3.reports.svg_charts import bar_chart, histogram

NASTY = """<script>alert("1 & 2")</script>' \x00\ud800"""


class Elements(HTMLParser):
    """Counts start and end tags, and collects attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.started: list[str] = []
        self.ended: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.started.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        self.ended.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_element__escapes_text_and_attributes_but_no_html() -> None:
    made = element("p", NASTY, element("b", "x"), title=NASTY, class_="a", aria_label="y")
    found = Elements(made)
    assert found.started == ["p", "b"]
    assert found.text == NASTY.replace("\x00", "\ufffd") + "x"
    assert found.attributes == [
        ("p", "title", NASTY.replace("\x00", "\ufffd")),
        ("p", "class", "a"),
        ("p", "aria-label", "y"),
    ]
    assert join(["<", Html("<br>"), ">"], " ") == "&lt; <br> &gt;"


def test_page__is_whole_and_loads_nothing(tmp_path: Path) -> None:
    parts = [
        section(NASTY, badge(NASTY, "error"), table([NASTY, "n"], [(NASTY, 1234), ("b", NASTY)])),
        section("pictures", figure("data:image/jpeg;base64,", NASTY, NASTY, (3, 4))),
        section(
            "charts", histogram(NASTY, ["0", "1", "2"], [3, 1], NASTY, NASTY), bar_chart(NASTY, [(NASTY, 2)], "x", "")
        ),
    ]
    write_page(tmp_path / "page.html", page(NASTY, NASTY, parts))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    found = Elements(text)
    void = [tag for tag in found.started if tag in ("img", "meta", "br")]
    assert sorted(found.ended) == sorted(set_without(found.started, void))
    assert "script" not in found.started
    assert "a" not in found.started
    assert not {name for _, name, _ in found.attributes} & {"href", "onclick", "onerror", "srcset"}
    assert [value for _, name, value in found.attributes if name == "src"] == ["data:image/jpeg;base64,"]
    assert "default-src 'none'" in [
        value.split(";")[0] for _, name, value in found.attributes if name == "content" and value
    ]
    assert "url(" not in text
    assert "1,234" in found.text


def set_without(names: list[str], others: list[str]) -> list[str]:
    rest = list(names)
    for name in others:
        rest.remove(name)
    return rest


def test_histogram__bars_have_the_height_of_their_counts() -> None:
    made = Elements(histogram("sizes", ["0", "1", "2", "4"], [10, 5, 0], "pixels", "Most are small.", (1.5, "here")))
    heights = [float(value or 0) for tag, name, value in made.attributes if (tag, name) == ("rect", "height")]
    assert heights[1] == heights[0] / 2 > 0
    assert heights[2] == 0
    lines = [float(value or 0) for tag, name, value in made.attributes if (tag, name) == ("line", "x1")]
    assert lines[1] == 8 + 1.5 * (360 - 16) / 3
    assert ("svg", "aria-label", "sizes. Most are small.") in made.attributes
    assert "0 to 1" in made.text
    assert "1 to 2 pixels: 5" in made.text


def test_bar_chart__shows_the_first_and_lists_all() -> None:
    made = Elements(bar_chart("classes", [(f"class {number}", 40 - number) for number in range(40)], "class", "Forty."))
    assert made.started.count("rect") == 25
    assert "and 15 more in the table" in made.text
    assert made.text.count("class 39") == 1
