"""`predict` takes images by address: fetched once into the output folder, and refused within limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.inference import image_inputs
from mask2former_dinov3.inference.files import addresses
from mask2former_dinov3.inference.files.addresses import fetch_addresses
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings

ANSWERS = {
    "/short.png": b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nabc",
    "/chunk.png": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nab",
    "/chat.png": b"hello,\r\nworld\r\n",
    "/many.png": b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    "/moved.png": b"HTTP/1.0 302 Found\r\nLocation: file:///etc/hostname\r\n\r\n",
    "/port.png": b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:x/\r\n\r\n",
}


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a log, and the answers of odd servers."""

    stopped = threading.Event()  # for the server that sends its head byte by byte

    def do_GET(self) -> None:
        if self.path in ANSWERS:
            self.wfile.write(ANSWERS[self.path])
        elif self.path.startswith("/drips.png"):
            self.wfile.write(b"HTTP/1.0 200 OK\r\nA: ")
            while not self.stopped.wait(0.01):
                self.wfile.write(b"b")
        else:
            super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a b.png")
    Handler.stopped.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_predict_files__takes_addresses_beside_files(address: str, model_folder: Path, tmp_path: Path) -> None:
    predictor, output = Predictor.from_pretrained(model_folder, "cpu"), tmp_path / "out"
    given = f"{address}/a b.png?token=secret"  # a space as people type it; the same address twice is one image
    inputs: list[str | Path] = [given, given, f"{address}/missing.png", tmp_path / "served"]
    summary = predict_files(predictor, inputs, output, settings=InferenceSettings(0.0, 3), save=("coco",))
    (kept,) = (output / "downloads").iterdir()
    assert kept.name.startswith("a-b-")
    assert kept.suffix == ".png"
    assert kept.read_bytes() == (tmp_path / "served" / "a b.png").read_bytes()
    assert (summary.images, summary.detections) == (2, 6)
    assert len(summary.failed) == 1
    assert f"{address}/missing.png: expected an address that gives an image, got HTTP Error 404" in summary.text()
    assert "secret" not in summary.text()
    with pytest.raises(
        OptionError, match=f"inputs: expected at least one image, got none:\n  {address}/no.png: expected"
    ):
        predict_files(predictor, [f"{address}/no.png"], output)


def test_fetch_addresses__keeps_what_a_stopped_run_fetched(address: str, tmp_path: Path) -> None:
    failed: list[tuple[str, str]] = []
    for keep in (False, True):
        (path,) = fetch_addresses([f"{address}/a%20b.png"], tmp_path / "out", failed, keep=keep)
        (tmp_path / "served" / "a b.png").unlink(missing_ok=True)
        assert isinstance(path, Path)
        assert path.is_file()
    assert fetch_addresses([f"{address}/a%20b.png"], tmp_path / "out", failed, keep=False) == []
    assert len(failed) == 1


def test_fetch_addresses__refuses_what_is_too_large(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_inputs, "MOST_BYTES", 1000)
    failed: list[tuple[str, str]] = []
    assert fetch_addresses([f"{address}/a%20b.png", "b.png"], tmp_path, failed, keep=False) == ["b.png"]
    assert failed[0][1].startswith(f"{address}/a%20b.png: expected at most 0 MiB, got more")
    assert not (tmp_path / "downloads").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{}/short.png", "a whole file, got one that is cut short"),
        ("{}/chunk.png", "a whole file, got one that is cut short"),
        ("{}/chat.png", "an address that gives an image, got hello,"),
        ("{}/many.png", "an address that gives an image, got more than 100 headers"),
        ("{}/moved.png", "got HTTP Error 302: Found - Redirection to url 'file:///etc/hostname' is not allowed"),
        ("{}/port.png", "an address that gives an image, got nonnumeric port: 'x'"),
        ("http://user:secret@[bad/a.png?secret", "an address that gives an image, got Invalid IPv6 URL"),
        ("http://user:secret@host/a.png", "got a user or a password in it, which is not sent"),
        ("http://\udc80/a.png", "an address that gives an image, got"),
    ],
)
def test_fetch_addresses__says_what_is_wrong(address: str, tmp_path: Path, given: str, told: str) -> None:
    failed: list[tuple[str, str]] = []
    assert fetch_addresses([given.format(address), "b.png"], tmp_path / "out", failed, keep=False) == ["b.png"]
    assert told in failed[0][1]
    assert "secret" not in failed[0][1]
    assert len(failed[0][1].splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_fetch_addresses__gives_up_on_a_server_that_sends_a_byte_at_a_time(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "_SECONDS", 0.3)
    failed: list[tuple[str, str]] = []
    try:
        assert fetch_addresses([f"{address}/drips.png?token=secret"], tmp_path / "out", failed, keep=False) == []
    finally:
        Handler.stopped.set()
    assert failed[0][1] == f"{address}/drips.png: expected an image within 0.3 seconds, got none"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"<!DOCTYPE html><title>Log in</title>", "got a web page; download the image itself"),
        (b"", "got an empty file"),
        (b"\x89PNG\r\n\x1a\nabc", "got another kind of file"),
    ],
)
def test_fetch_addresses__keeps_no_file_that_is_no_image(
    address: str, tmp_path: Path, content: bytes, told: str
) -> None:
    (tmp_path / "served" / "page.png").write_bytes(content)
    failed: list[tuple[str, str]] = []
    assert fetch_addresses([f"{address}/page.png"], tmp_path / "out", failed, keep=False) == []
    assert failed[0][1].startswith(f"{address}/page.png: expected a")
    assert told in failed[0][1]
    assert not (tmp_path / "out").exists()


def test_fetch_addresses__names_that_file_systems_take(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "served" / "deep"
    folder.mkdir()
    name = "\U00020000" * 60  # a letter of four bytes
    for file in (f"{name}.png", "index.html"):  # the second is what the server gives for the folder
        Image.new("RGB", (2, 2)).save(folder / file, "PNG")
    failed: list[tuple[str, str]] = []
    found = fetch_addresses([f"{address}/deep/{name}.png", f"{address}/deep/"], tmp_path / "out", failed, keep=False)
    assert [Path(path).is_file() for path in found] == [True, True]
    assert not failed
