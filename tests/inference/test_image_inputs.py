"""What people hold as images: each kind becomes the same pixels, and what has two meanings is refused."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mask2former_dinov3.errors import DatasetError, OptionError
from mask2former_dinov3.inference import image_inputs
from mask2former_dinov3.inference.image_inputs import each_image, is_one_image, to_image
from mask2former_dinov3.inference.load_images import load_image
from mask2former_dinov3.read_options import AS_STORED, ReadOptions

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def pixels_of(image: Any, channels: int = 3, bgr: bool = False, options: ReadOptions = AS_STORED) -> Any:
    return load_image(to_image(image, options, channels, bgr=bgr, timeout=5), options, channels)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def test_to_image__every_form_of_a_colour_image_is_the_same_pixels(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(RGB))
    padded = np.zeros((40, 60, 3), dtype=np.uint8)
    padded[::2, ::2] = RGB
    forms = [
        RGB,
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        png(RGB),
        bytearray(png(RGB)),
        memoryview(png(RGB)),
        io.BytesIO(png(RGB)),
        Image.fromarray(RGB),
        Image.fromarray(np.dstack([RGB, GREY])),
        np.dstack([RGB, GREY]),  # alpha
        RGB.transpose(2, 0, 1),
        padded[::2, ::2],  # not contiguous
        np.asfortranarray(RGB),
        torch.from_numpy(RGB),
        torch.from_numpy(RGB).permute(2, 0, 1),
        RGB / 255,
        (RGB / 255).astype(np.float32).transpose(2, 0, 1),
        torch.from_numpy(RGB / 255).requires_grad_(),
        (torch.from_numpy(RGB) / 255).to(torch.float16),
    ]
    for form in forms:
        found = pixels_of(form)
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, RGB)
    with (tmp_path / "a.png").open("rb") as file:
        np.testing.assert_array_equal(pixels_of(file), RGB)
    np.testing.assert_array_equal(pixels_of(RGB[:, ::-1, ::-1], bgr=True), RGB[:, ::-1])
    np.testing.assert_array_equal(pixels_of(np.dstack([RGB[:, :, ::-1], GREY]), bgr=True), RGB)


def test_to_image__grey_is_every_channel(tmp_path: Path) -> None:
    expected = np.repeat(GREY[:, :, None], 3, axis=2)
    sixteen = GREY.astype(np.uint16) * 257
    (tmp_path / "a.png").write_bytes(png(sixteen))
    forms = [GREY, GREY[:, :, None], GREY[None], Image.fromarray(GREY), sixteen, tmp_path / "a.png", GREY / 255]
    for form in forms:
        np.testing.assert_array_equal(pixels_of(form), expected)


def test_to_image__follows_the_models_value_range_and_channels() -> None:
    options = ReadOptions(value_range="0,1000")
    values = np.linspace(0, 1000, 600).reshape(20, 30)
    expected = np.repeat(np.round(values / 1000 * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(pixels_of(values, options=options), expected)
    five = np.random.default_rng(1).integers(0, 256, (20, 30, 5), dtype=np.uint8)
    for form in (five, five.transpose(2, 0, 1), torch.from_numpy(five)):
        np.testing.assert_array_equal(pixels_of(form, channels=5), five)
    with pytest.raises(OptionError, match=r"expected 5 channels, first or last, got an array of shape \(20, 30, 3\)"):
        pixels_of(RGB, channels=5)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "expected a path, .* got NoneType.*cv2.imread gives None for a file that it cannot read"),
        (7, "got int"),
        (np.zeros((3, 30, 3), np.uint8), r"shape \(3, 30, 3\).*both ends could be the channels"),
        (np.zeros((20, 30, 2), np.uint8), r"expected grey .* got an array of shape \(20, 30, 2\)"),
        (np.zeros((20, 0, 3), np.uint8), "at least one pixel"),
        (np.zeros(30, np.uint8), r"shape \(30,\)"),
        (RGB.astype(np.int64), "values of uint8, uint16 or floating point, got int64"),
        (RGB > 3, "got bool"),
        (RGB.astype(np.float32), "floating point values in 0..1, got float32 from 0 to 255.*undo a normalisation"),
        (np.full((20, 30), np.nan), "got float64 from nan to nan"),
        (np.array([["a"]]), "image: expected"),
    ],
)
def test_to_image__refuses_what_has_no_meaning_or_two(image: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pixels_of(image)


def test_to_image__refuses_an_order_of_colours_for_files() -> None:
    with pytest.raises(OptionError, match=r"bgr: expected arrays or tensors, .* got Image"):
        pixels_of(Image.fromarray(RGB), bgr=True)
    with pytest.raises(OptionError, match=r"bgr: expected an array of 3 or 4 channels, got shape \(20, 30\)"):
        pixels_of(GREY, bgr=True)
    with pytest.raises(DatasetError, match="image: "):
        pixels_of(b"no image")


def test_each_image__knows_one_image_from_several() -> None:
    for one in ("a.png", b"x", io.BytesIO(), Path("a"), Image.fromarray(RGB), RGB, torch.from_numpy(RGB), None):
        assert is_one_image(one)
        assert len(list(each_image(one))) == 1  # type: ignore[arg-type]
    assert len(list(each_image(np.stack([RGB, RGB])))) == 2
    assert len(list(each_image(torch.zeros(4, 3, 8, 9)))) == 4
    taken: list[int] = []

    def make() -> Iterator[Any]:
        for number in range(5):
            taken.append(number)
            yield RGB

    images = each_image(make())
    next(images)
    assert taken == [0]  # a generator's images are not all held
    with pytest.raises(OptionError, match="images: expected an image, or a list of images, got a dict"):
        list(each_image({"a": RGB}))


class Files(BaseHTTPRequestHandler):
    """Serves one image, a page, an endless file, and an answer that never comes."""

    stopped = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/missing.png":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path.startswith("/a.png"):
            self.wfile.write(png(RGB))
        elif self.path == "/page":
            self.wfile.write(b"<html>")
        elif self.path == "/slow":
            self.stopped.wait(10)
        else:
            self.wfile.write(bytes(3 * 2**20))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Files.stopped.clear()
    server = HTTPServer(("127.0.0.1", 0), Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Files.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_to_image__reads_addresses_within_limits(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(pixels_of(f"{address}/a.png"), RGB)
    with pytest.raises(DatasetError, match=r"a\.png: expected an address that gives an image, got") as refused:
        pixels_of("http://user:secret@127.0.0.1:1/a.png?token=secret")
    assert "secret" not in str(refused.value)
    with pytest.raises(DatasetError, match=r"missing\.png: .*Not Found"):
        pixels_of(f"{address}/missing.png")
    with pytest.raises(DatasetError, match="page: "):
        pixels_of(f"{address}/page")
    with pytest.raises(DatasetError, match=r"image: expected an image file .*, got a web page; download the image it"):
        pixels_of(b"<html>no image</html>")
    with pytest.raises(DatasetError, match=r"slow: expected an image within 0\.2 seconds, got none"):
        to_image(f"{address}/slow", AS_STORED, 3, bgr=False, timeout=0.2)
    Files.stopped.set()
    monkeypatch.setattr(image_inputs, "MOST_BYTES", 2**20)
    with pytest.raises(DatasetError, match="endless: expected at most 1 MiB, got more"):
        pixels_of(f"{address}/endless")
