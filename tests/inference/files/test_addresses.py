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
from mask2former_dinov3.inference.files.addresses import fetch_addresses
from mask2former_dinov3.inference.files.predict_files import predict_files
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a b.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_predict_files__takes_addresses_beside_files(address: str, model_folder: Path, tmp_path: Path) -> None:
    predictor, output = Predictor.from_pretrained(model_folder, "cpu"), tmp_path / "out"
    inputs: list[str | Path] = [f"{address}/a%20b.png?token=secret", f"{address}/missing.png", tmp_path / "served"]
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
