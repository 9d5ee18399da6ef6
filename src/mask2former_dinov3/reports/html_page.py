"""Build a page: elements, figures, tables, and the frame around them. Every text is escaped where it enters.

The page holds its styles and pictures, and forbids its reader's browser to load anything else (its content security
policy has no source but `data:`), so what a data set calls its classes and files cannot become script.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ..atomic_files import write_text
from ..version import __version__

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # not allowed in HTML
_EMPTY = frozenset({"img", "meta", "br", "input"})  # elements of HTML that take no end tag


class Html(str):
    """A string that is HTML already. Any other string is text, and is escaped."""

    __slots__ = ()


def element(name: str, /, *children: str | Html, **attributes: object) -> Html:
    """An element with its children; strings that are not `Html` are escaped, attributes always.

    A trailing underscore of an attribute's name is dropped, others become dashes: class_="wide", aria_label="…".
    """
    words = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        words.append(f'{key}="{escape(_clean(str(value)), quote=True)}"')
    start = f"<{' '.join(words)}>"
    return Html(start if name in _EMPTY else f"{start}{join(children)}</{name}>")


def join(parts: Iterable[str | Html], between: str = "") -> Html:
    """Parts one after the other; those that are not `Html` are escaped. between: HTML."""
    return Html(between.join(part if isinstance(part, Html) else escape(_clean(part)) for part in parts))


def _clean(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def paragraph(*children: str | Html) -> Html:
    """A paragraph."""
    return element("p", *children)


def section(title: str, *children: str | Html, anchor: str = "") -> Html:
    """A part of the page with a heading of the second level. anchor: its name, for links to it."""
    return element("section", element("h2", title), *children, **({"id": anchor} if anchor else {}))


def end_of_path(path: Path | str) -> str:
    """The last three parts of a path: of one of this computer they are enough."""
    return "/".join(Path(path).parts[-3:])


def figure(uri: str, alt: str, caption: str | Html, size: tuple[int, ...]) -> Html:
    """A picture with its caption. uri: its data; alt: what it shows, in words; size: (height, width) in pixels."""
    picture = element("img", src=uri, alt=alt, height=size[0], width=size[1], loading="lazy", decoding="async")
    return element("figure", picture, element("figcaption", caption))


def no_figure(reason: str, caption: str | Html) -> Html:
    """The place of a picture that cannot be shown, with the reason."""
    return element("figure", element("p", reason, class_="missing"), element("figcaption", caption))


def grid(figures: Sequence[Html]) -> Html:
    """Figures side by side, as many as the width takes."""
    return element("div", *figures, class_="grid")


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> Html:
    """A table; numbers are aligned right. A table wider than the screen scrolls by itself, also by keyboard."""
    titles = element("tr", *(element("th", title, scope="col") for title in head))
    lines = []
    for first, *others in rows:
        cells = [element("th", str(first), scope="row")]
        cells += [
            element("td", _number(one), class_="number" if isinstance(one, int | float) else "") for one in others
        ]
        lines.append(element("tr", *cells))
    content = [element("thead", titles), element("tbody", *lines)]
    above = [element("caption", caption)] if caption else []
    name = caption or ", ".join(head)
    return element("div", element("table", *above, *content), class_="wide", tabindex=0, role="region", aria_label=name)


def _number(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def folded(summary: str, *children: str | Html) -> Html:
    """Details that the reader opens; without script."""
    return element("details", element("summary", summary), *children)


def badge(text: str, kind: str) -> Html:
    """A short word in a colour. kind: error, warning, note or good."""
    return element("span", text, class_=f"badge {kind}")


def page(title: str, lead: str | Html, parts: Iterable[Html], style: str = "", *, files_beside: bool = False) -> Html:
    """The whole document. lead: what stands below the title. style: rules beside those of all pages.

    files_beside: whether its pictures may be files in a folder beside the page.
    """
    sources = "data: 'self' file:" if files_beside else "data:"
    policy = f"default-src 'none'; img-src {sources}; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"mask2former-dinov3 {__version__}"),
        element("title", title),
        element("style", Html(_STYLE + style)),
    )
    body = element("body", element("main", element("h1", title), element("div", lead, class_="lead"), *parts))
    return Html(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def write_page(path: Path, content: Html) -> None:
    """Write a page atomically. Raises CheckpointError when it cannot be written."""
    write_text(path, content)


_STYLE = """
:root { --ground: #ffffff; --card: #f4f5f7; --ink: #1c1f24; --soft: #555c66; --line: #d5d9df; --bar: #2563a8;
  --error: #b3261e; --warning: #8a5300; --note: #2c5d8f; --good: #1b6e35; --mark: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171b; --card: #1f242a; --ink: #e8eaed; --soft: #a9b1bc;
  --line: #3a414b; --bar: #6fb0f2; --error: #ff9a90; --warning: #f2b661; --note: #93c3f5; --good: #7fd99a;
  --mark: #ff9a90; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .5rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p, ul { margin: .4rem 0; max-width: 48rem; }
ul { padding-left: 1.2rem; }
.lead { color: var(--soft); }
.grid { display: grid; gap: .75rem; margin: .75rem 0; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); }
.charts { display: grid; gap: 1rem 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.chart { background: var(--card); border-radius: .5rem; padding: .75rem; min-width: 0; }
.chart h3 { margin-top: 0; }
.chart svg { display: block; width: 100%; max-width: 34rem; height: auto; }
.chart text { fill: var(--ink); font-size: 11px; }
.chart .soft { fill: var(--soft); }
.chart rect { fill: var(--bar); }
.chart line { stroke: var(--line); }
.chart .mark { stroke: var(--mark); stroke-dasharray: 4 3; }
.chart text.marked { fill: var(--mark); }
figure { margin: 0; background: var(--card); border-radius: .5rem; overflow: hidden; min-width: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { padding: .4rem .6rem .5rem; font-size: .85rem; line-height: 1.35; color: var(--soft); }
.missing { margin: 0; padding: 2rem .75rem; text-align: center; color: var(--soft); font-size: .85rem; }
.badge { display: inline-block; border: 1px solid currentColor; border-radius: 1rem; padding: 0 .55rem;
  font-size: .8rem; font-weight: 600; line-height: 1.5; vertical-align: .08em; white-space: nowrap; }
.error { color: var(--error); } .warning { color: var(--warning); }
.note { color: var(--note); } .good { color: var(--good); }
.wide { overflow-x: auto; margin: .5rem 0; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 400; min-width: 6rem; } td { white-space: nowrap; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; padding: .2rem 0; }
code { font: .9em ui-monospace, Menlo, Consolas, monospace; }
@media print { body { font-size: 12px; } figure, .chart { break-inside: avoid; } }
"""
