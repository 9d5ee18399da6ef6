"""The page at /: Gradio's layout and controls around `browser/static/viewer.js`, which calls /predict as any client.

No function of the page runs in Python, so the limits of /predict hold for the page too; Gradio's own API is closed.
Import this module only after `extras.require("serve", …)`.
"""

from __future__ import annotations

import asyncio
import html
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ..browser.viewer_page import (
    HISTOGRAM,
    INSTANCE_LIST,
    MIN_THRESHOLD,
    SAMPLE_IMAGE,
    STATIC,
    class_list,
    describe_classes,
    start_threshold,
    viewer_settings,
)
from ..inference.network import NetworkConfig
from ..inference.predictor import Predictor
from ..inference.settings import DEFAULTS, SMALLEST_TILE

GRADIO_STYLE = Path(__file__).parent / "static" / "gradio.css"
_FILES = ("/assets/", "/static/")
_SAMPLE = "/sample.png"
_PATHS = ("/", "/theme.css", "/config", "/favicon.ico", "/manifest.json", "/robots.txt", _SAMPLE)


class PageOrApi:
    """ASGI middleware: sends requests for files of the page to Gradio, all others to the API."""

    def __init__(self, app: ASGIApp, page: ASGIApp) -> None:
        self.app = app
        self.page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # neither side knows HEAD everywhere; the server sends no body for one
        is_page = (
            scope["type"] == "http"
            and scope["method"] == "GET"
            and (scope["path"] in _PATHS or scope["path"].startswith(_FILES))
        )
        await (self.page if is_page else self.app)(scope, receive, send)


def build_page(
    predictor: Predictor, name: str, licence: str, max_bytes: int, with_docs: bool
) -> tuple[FastAPI, Callable[[], AbstractAsyncContextManager[object]]]:
    """The page as an application, and its lifespan: a context manager to hold while the page is served.

    with_docs: with a link to /docs.
    """

    async def build() -> FastAPI:
        """Build it inside an event loop: without one Gradio would create one and leave it open."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.get(_SAMPLE)(lambda: FileResponse(SAMPLE_IMAGE, media_type="image/png"))  # before the page, which takes "/"
        gr.mount_gradio_app(
            app,
            _blocks(predictor, name, licence, max_bytes, with_docs),
            path="/",
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            enable_monitoring=False,
            theme=gr.themes.Base(
                primary_hue="blue",
                neutral_hue="gray",
                radius_size="lg",
                font=[gr.themes.Font("system-ui"), gr.themes.Font("sans-serif")],
                font_mono=[gr.themes.Font("ui-monospace"), gr.themes.Font("monospace")],
            ),
            css="".join(file.read_text(encoding="utf-8") for file in (STATIC / "viewer.css", GRADIO_STYLE)),
        )
        return app

    app = asyncio.run(build())
    return app, lambda: app.router.lifespan_context(app)


def _blocks(predictor: Predictor, name: str, licence: str, max_bytes: int, with_docs: bool) -> gr.Blocks:
    config = predictor.model.config
    accepted = f"JPEG, PNG, WebP, TIFF, BMP or GIF, up to {max_bytes / 1e6:.0f} MB"
    page = gr.Blocks(title=f"{name}: instance segmentation", analytics_enabled=False, fill_width=True)
    with page:
        dark = '<button type="button" onclick="m2f.dark()">Dark / light</button>'
        _html(
            f'<div id="m2f-head"><h1>{html.escape(name)}</h1><span>finds {describe_classes(config)}</span>{dark}</div>'
        )
        with gr.Row():
            with gr.Column(scale=7, min_width=320):
                _html(
                    (STATIC / "viewer.html").read_text(encoding="utf-8"),
                    js_on_load=(STATIC / "viewer.js").read_text(encoding="utf-8"),
                    settings=viewer_settings(config, accepted, predictor.passes(DEFAULTS).whole, max_bytes),
                    elem_id="m2f-viewer",
                )
            with gr.Column(scale=2, min_width=250, elem_id="m2f-side"):
                _controls(config)
        foot = html.escape(licence) + ' <a href="docs">API</a>' * with_docs
        _html(f'<div id="m2f-foot">{foot}</div>')
    return page


def _controls(config: NetworkConfig) -> None:
    """The column at the side; its controls call `window.m2f` in the browser and nothing in Python."""
    threshold = gr.Slider(
        MIN_THRESHOLD,
        1,
        value=start_threshold(config),
        step=0.01,
        label="Minimum score",
        buttons=[],
        elem_id="m2f-threshold",
    )
    _html(HISTOGRAM, elem_id="m2f-histogram")
    _html(class_list(config), elem_id="m2f-classes")
    _html(INSTANCE_LIST, elem_id="m2f-instances")
    colours = gr.Radio(
        [("class", "class"), ("instance", "instance")],
        value="class" if config.num_labels > 1 else "instance",
        label="Colours by",
        elem_id="m2f-colours",
    )
    opacity = gr.Slider(0, 0.8, value=0.35, step=0.05, label="Fill", buttons=[], elem_id="m2f-opacity")
    tiles = gr.Checkbox(False, label="Predict in tiles, for large images", elem_id="m2f-tiles")
    tile = gr.Number(512, label="Side of a tile, pixels", minimum=SMALLEST_TILE, precision=0, elem_id="m2f-tile")
    with gr.Column():
        _html('<p class="m2f-title">Download what is shown</p>')
        with gr.Row():
            for kind, label in (("coco", "COCO"), ("csv", "CSV"), ("overlay", "Picture")):
                button = gr.Button(label, size="sm", interactive=False, elem_id=f"m2f-{kind}", elem_classes="m2f-save")
                button.click(None, js=f"() => m2f.download('{kind}')", queue=False)
    threshold.change(None, threshold, js="(value) => m2f.threshold(value)", queue=False)
    opacity.change(None, opacity, js="(value) => m2f.opacity(value)", queue=False)
    colours.change(None, colours, js="(by) => m2f.colours(by === 'class')", queue=False)
    for control in (tiles, tile):
        control.change(None, [tiles, tile], js="(on, size) => m2f.tile(on, size)", queue=False)


def _html(text: str, **options: Any) -> None:
    """Add HTML to the page without Gradio's styles for texts. options: as `gr.HTML` takes them."""
    gr.HTML(text, apply_default_css=False, **options)
