"""Debian's Chromium, driven by playwright, and a server of files for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync")
WITH_WEBGPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")  # computed on the CPU
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]


@contextmanager
def chromium(*flags: str) -> Iterator[Browser]:
    """A running browser. flags: beside the usual ones; with WITH_WEBGPU pages have a GPU of software."""
    usual = [flag for flag in FLAGS if flag != "--disable-gpu" or "--enable-unsafe-webgpu" not in flags]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*usual, *flags])
        yield browser
        browser.close()


class QuietHandler(SimpleHTTPRequestHandler):
    """`python -m http.server` without its log; `asked` of the server has the paths."""

    def log_message(self, format: str, *args: object) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


@contextmanager
def file_server(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of the files of a folder, and the paths that it has been asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    asked: list[str] = []
    vars(server)["asked"] = asked
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()
