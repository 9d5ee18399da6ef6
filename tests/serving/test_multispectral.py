"""A model of five channels behind the API: a TIFF that Pillow does not know is predicted, limited and shown."""

from __future__ import annotations

import base64
import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mask2former_dinov3.cluster.reading import BatchRow, FittedImage, read_batch
from mask2former_dinov3.data.fitting import fit_image
from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.errors import DatasetError
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.inference.tiles.grid import Passes
from mask2former_dinov3.read_options import ReadOptions
from mask2former_dinov3.serving.app import build_app
from mask2former_dinov3.serving.doors import Doors
from mask2former_dinov3.serving.limits import Limits, TooLarge, Wanted, check_header
from mask2former_dinov3.serving.middleware import ServerMetrics
from mask2former_dinov3.serving.queue import ModelQueue
from support.channels import SIDE, bands_of, wide_model, write_bands

OPTIONS = ReadOptions(channels="all")
PASSES = Passes((64, 64), factor=None, tile=None, overlap=0.2)
WANTED = Wanted(InferenceSettings())


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.from_pretrained(wide_model(tmp_path_factory.mktemp("wide") / "model", 5), "cpu")


@pytest.fixture(scope="module")
def bands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    mask = np.zeros(SIDE, bool)
    mask[10:30, 20:40] = True
    return write_bands(tmp_path_factory.mktemp("bands") / "a.tif", bands_of(mask, np.random.default_rng(0)))


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    metrics = ServerMetrics()
    queue = ModelQueue(predictor, Limits(max_wait=0), metrics)
    with TestClient(build_app(queue, metrics, "bands", "", Doors()), "http://localhost") as client:
        yield client


def test_predict__takes_a_tiff_of_five_channels(client: TestClient, predictor: Predictor, bands: Path) -> None:
    expected = predictor(bands, threshold=0.0, max_detections=20)
    assert len(expected)
    options = {"threshold": 0, "max_detections": 20, "preview": True, "overlay": True}
    response = client.post(
        "/predict", params=options, content=bands.read_bytes(), headers={"Content-Type": "image/tiff"}
    )
    assert response.status_code == 200, response.text
    answer = response.json()
    results = expected.to_coco(1)
    pairs = zip(answer["annotations"], results, strict=True)
    assert [{key: one[key] for key in result} for one, result in pairs] == results
    preview = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["preview"]))))
    np.testing.assert_array_equal(preview, read_image(bands, OPTIONS)[:, :, :3])
    assert Image.open(io.BytesIO(base64.b64decode(answer["overlay"]))).mode == "RGB"


def test_predict__says_that_rgb_is_not_enough(client: TestClient) -> None:
    data = io.BytesIO()
    Image.new("RGB", (40, 30)).save(data, "PNG")
    response = client.post("/predict", content=data.getvalue(), headers={"Content-Type": "image/png"})
    assert response.status_code == 422
    assert response.json()["error"].startswith("image: expected 5 channels, as the model takes, got 3; the options")


def test_check_header__counts_channels_as_pixels(bands: Path) -> None:
    pixels = SIDE[0] * SIDE[1]
    data = bands.read_bytes()
    check_header(data, "a.tif", pixels * 5 // 3 + 1, PASSES, OPTIONS, 5)
    with pytest.raises(TooLarge, match=r"a\.tif: expected an image of at most 3,071 pixels, got 48 x 64"):
        check_header(data, "a.tif", pixels * 5 // 3 - 1, PASSES, OPTIONS, 5)
    with pytest.raises(DatasetError, match=r"a\.tif: expected a complete image, got damaged"):
        check_header(data[:10], "a.tif", pixels, PASSES, OPTIONS, 5)


def test_read_batch__gives_workers_all_channels(bands: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    row = BatchRow(number=1, images=[str(bands), str(tmp_path / "a.png")])
    read = pickle.loads(read_batch(row, passes=PASSES, options=OPTIONS, channels=5)["read"])
    fitted, refused = read[0].content, read[1].content
    assert isinstance(fitted, FittedImage)
    np.testing.assert_array_equal(fitted.pixels, fit_image(read_image(bands, OPTIONS), 64, 64))
    assert refused.startswith(f"{tmp_path / 'a.png'}: expected 5 channels, as the model takes, got 3")
