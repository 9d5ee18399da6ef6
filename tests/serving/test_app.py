"""The HTTP interface in this process: answers equal the Predictor's, every mistake gets its status and its sentence."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from pycocotools.coco import COCO

from mask2former_dinov3.data.images import read_image
from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.inference.settings import InferenceSettings
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.serving.app import build_app
from mask2former_dinov3.serving.doors import Doors
from mask2former_dinov3.serving.limits import Limits
from mask2former_dinov3.serving.middleware import ServerMetrics
from mask2former_dinov3.serving.queue import ModelQueue
from mask2former_dinov3.serving.schema import EXPECTED, Options
from mask2former_dinov3.visualize import draw_instances, enlargement
from support.server import form

IMAGE = SAMPLE / "valid" / "853a4c67900c411a.png"
LIMITS = Limits(max_bytes=300_000, max_pixels=700_000, max_wait=0)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_pretrained(SAMPLE / "model", "cpu", image_scale="fit")


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[TestClient]:
    metrics = ServerMetrics()
    queue = ModelQueue(predictor, LIMITS, metrics)
    with TestClient(build_app(queue, metrics, "nuclei", "", Doors()), "http://localhost") as client:
        client.app_state["queue"] = queue
        yield client


def post(client: TestClient, data: bytes, kind: str = "image/png", **options: Any) -> tuple[int, dict[str, Any]]:
    response = client.post("/predict", params=options, content=data, headers={"Content-Type": kind})
    answer: dict[str, Any] = response.json()
    if response.status_code != 200:
        assert set(answer) == {"error", "request_id"}
        assert answer["request_id"] == response.headers["x-request-id"]
    return response.status_code, answer


def test_predict__answers_what_the_predictor_finds(client: TestClient, predictor: Predictor) -> None:
    expected = predictor(IMAGE, threshold=0.4, max_detections=60)
    body, kind = form(IMAGE.read_bytes(), "some/where\\a b.png")
    status, answer = post(client, body, kind, threshold=0.4, max_detections=60)
    assert status == 200
    assert set(answer) == {"images", "categories", "annotations", "thresholds", "left_out", "notes"}
    height, width = expected.height, expected.width
    assert answer["images"] == [{"id": 1, "file_name": "a b.png", "height": height, "width": width}]
    assert answer["categories"] == [{"id": 1, "name": "nucleus"}]
    assert answer["thresholds"] == [0.4]
    assert answer["left_out"]["limit"] == expected.left_out.limit
    assert len(answer["annotations"]) == len(expected) > 10
    for number, (one, result) in enumerate(zip(answer["annotations"], expected.to_coco(1), strict=True)):
        assert one["id"] == number + 1
        assert {key: one[key] for key in result} == result
        x, y, box_width, box_height = one["bbox"]
        np.testing.assert_array_equal([x, y, x + box_width, y + box_height], expected.boxes[number])
        assert one["area"] == expected.areas[number]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")  # pycocotools
def test_predict__is_a_coco_file(client: TestClient, tmp_path: Path) -> None:
    _, answer = post(client, IMAGE.read_bytes())
    file = tmp_path / "a.json"
    file.write_text(json.dumps(answer))
    coco = COCO(str(file))
    for one in coco.loadAnns(coco.getAnnIds()):
        assert coco.annToMask(one).sum() == one["area"]


def test_predict__says_what_its_limits_leave_out(client: TestClient) -> None:
    _, every = post(client, IMAGE.read_bytes())
    assert every["thresholds"] == [0.5]  # the bundled model stores none
    count = len(every["annotations"])
    _, few = post(client, IMAGE.read_bytes(), max_detections=2)
    assert len(few["annotations"]) == 2
    assert few["left_out"]["limit"] >= count - 2 > 0
    (note,) = few["notes"]
    assert re.fullmatch(r"max_detections: \d+ instances above the threshold left out in 1 image, beyond 2 .*", note)
    _, none = post(client, IMAGE.read_bytes(), threshold=1)
    assert none["annotations"] == []
    assert 0.5 < none["left_out"]["best_score"] < 1


def test_predict__takes_a_body_as_it_takes_a_form(client: TestClient) -> None:
    expected = post(client, *form(IMAGE.read_bytes(), "image"))
    assert expected[0] == 200
    assert post(client, IMAGE.read_bytes()) == expected
    assert post(client, IMAGE.read_bytes(), "application/octet-stream; v=1") == expected


def test_predict__draws_where_asked(client: TestClient, predictor: Predictor) -> None:
    status, answer = post(client, IMAGE.read_bytes(), overlay=True, threshold=0.6)
    assert status == 200
    found = predictor(IMAGE, threshold=0.6)
    expected = draw_instances(read_image(IMAGE), found, scale=enlargement(found))
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["overlay"]))))
    np.testing.assert_array_equal(picture, expected)


def test_predict__cuts_into_tiles_as_the_predictor_does(client: TestClient, predictor: Predictor) -> None:
    expected = predictor(IMAGE, threshold=0.5, tile=200, overlap=0.3, batch_size=8)  # two rows of two tiles
    status, answer = post(client, IMAGE.read_bytes(), tile=200, overlap=0.3)
    assert status == 200
    found = answer["annotations"]
    assert len(found) == len(expected) > 10
    # Batches of other tiles add up in another order.
    assert [one["score"] for one in found] == pytest.approx(expected.scores.tolist(), abs=5e-3)
    assert sum(one["area"] for one in found) == pytest.approx(expected.areas.sum(), rel=0.01)


def test_predict__filters_by_class(client: TestClient) -> None:
    assert post(client, IMAGE.read_bytes(), classes=["nucleus"]) == post(client, IMAGE.read_bytes())
    status, answer = post(client, IMAGE.read_bytes(), classes=["nucleus", "cat"])
    assert (status, answer["error"]) == (422, "classes: expected some of nucleus, got cat")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 5}, "threshold: expected a score from 0 to 1, got 5"),
        ({"threshold": "nan"}, "threshold: expected a score from 0 to 1, got nan"),
        ({"threshold": ""}, "threshold: expected a score from 0 to 1, got an empty value"),
        ({"threshold": [7, 0.5]}, "threshold: expected one value, got 7, 0.5; give it once"),
        ({"threshold": "high"}, "threshold: expected a score from 0 to 1, got high"),
        ({"max_detections": 0}, "max_detections: expected a whole number from 1 to 10000, got 0"),
        ({"tile": 5}, "tile: expected a whole number of pixels from 32 to 8192, got 5"),
        ({"overlap": 0.5}, "overlap: expected a fraction from 0 to below 0.5, got 0.5"),
        ({"overlay": "perhaps"}, "overlay: expected true or false, got perhaps"),
        (
            {"score": 0.5},
            "score: expected one of the options threshold, max_detections, tile, overlap, classes, overlay, preview, "
            "got an unknown one",
        ),
        (
            {"threshold": -1, "overlap": "nan"},
            "threshold: expected a score from 0 to 1, got -1; overlap: expected a fraction from 0 to below 0.5, "
            "got nan",
        ),
    ],
)
def test_predict__refuses_wrong_options(client: TestClient, options: dict[str, Any], message: str) -> None:
    status, answer = post(client, IMAGE.read_bytes(), **options)
    assert (status, answer["error"]) == (422, message)


@pytest.mark.parametrize(("option", "value"), [("threshold", 1.5), ("overlap", 0.75)])
def test_predict__refuses_options_in_the_words_of_the_library(client: TestClient, option: str, value: float) -> None:
    with pytest.raises(OptionError) as error:
        InferenceSettings(**{option: value})  # type: ignore[arg-type]
    assert post(client, IMAGE.read_bytes(), "image/png", **{option: value})[1]["error"] == str(error.value)


def test_predict__reports_unknown_classes_together_with_other_faults(client: TestClient) -> None:
    answer = post(client, IMAGE.read_bytes(), "image/png", threshold="x", classes="zz")[1]["error"]
    assert answer.startswith("threshold: expected a score from 0 to 1, got x; classes: expected some of ")
    assert answer.endswith(", got zz")


def test_predict__refuses_a_form_with_two_files_and_a_length_that_is_no_number(client: TestClient) -> None:
    files = [("image", ("a.png", IMAGE.read_bytes())), ("image", ("b.png", IMAGE.read_bytes()))]
    answer = client.post("/predict", files=files)
    assert answer.status_code == 422
    message = "form: expected one file in the field image, got several files; send one image a request"
    assert answer.json()["error"] == message
    answer = client.post("/predict", content=b"x", headers={"content-length": "abc", "content-type": "image/png"})
    assert answer.status_code == 400
    assert answer.json()["error"] == "content length: expected a whole number of bytes, got abc"


def test_options__every_one_has_its_words() -> None:
    assert list(EXPECTED) == list(Options.model_fields)


def png(height: int, width: int) -> bytes:
    data = io.BytesIO()
    Image.new("L", (width, height)).save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "status", "message"),
    [
        (b"no image", "image/png", 422, "image: expected an image in one of the formats BMP, GIF, JPEG, "),
        (IMAGE.read_bytes()[:900], "image/png", 422, "damaged or cut short"),
        (b"", "image/png", 422, "image: expected an image in one of the formats"),
        (png(1000, 701), "image/png", 413, "image: expected an image of at most 700,000 pixels, got 1000 x 701"),
        (bytes(300_001), "image/png", 413, "expected a request of at most 300,000 bytes"),
        (
            b"{}",
            "application/json",
            415,
            "content type: expected a form (multipart/form-data), image/* or application/octet-stream, got application",
        ),
        (b"threshold=1", "application/x-www-form-urlencoded", 415, "got application/x-www-form-urlencoded"),
        (
            b"nothing",
            "multipart/form-data",
            400,
            "form: expected a complete form (multipart/form-data), got none of its",
        ),
        (
            *form(IMAGE.read_bytes(), field="file"),
            422,
            "form: expected one file in the field image, got file; put options into the query",
        ),
        (*form(b"no image", "../../etc/passwd"), 422, "passwd: expected an image in one of the formats"),
    ],
    ids=["text", "cut", "empty", "pixels", "bytes", "json", "urlencoded", "boundary", "field", "name"],
)
def test_predict__refuses_wrong_bodies(client: TestClient, data: bytes, kind: str, status: int, message: str) -> None:
    got, answer = post(client, data, kind)
    assert got == status
    assert message in answer["error"]
    assert str(SAMPLE) not in answer["error"]
    assert "etc" not in answer["error"]


@pytest.mark.parametrize("kind", ["image/x-png", "image/pjpeg", "IMAGE/tif; q=1", "application/octet-stream"])
def test_predict__takes_any_name_of_an_image_type(client: TestClient, kind: str) -> None:
    status, answer = post(client, png(8, 9), kind)
    assert (status, answer["images"][0]["height"], answer["images"][0]["width"]) == (200, 8, 9)


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=b"])
def test_predict__refuses_a_compressed_body(client: TestClient, kind: str) -> None:
    headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
    response = client.post("/predict", content=gzip.compress(png(8, 9)), headers=headers)
    message = "content encoding: expected none, got gzip; send the bytes of the file as they are"
    assert (response.status_code, response.json()["error"]) == (415, message)


def test_predict__takes_images_of_any_shape(client: TestClient) -> None:
    for size, tile in (((1, 1), 32), ((1, 5000), 2500), ((5000, 1), None)):
        options: dict[str, Any] = {"overlay": True} if tile is None else {"overlay": True, "tile": tile}
        status, answer = post(client, png(*size), "image/png", **options)
        assert status == 200
        assert (answer["images"][0]["height"], answer["images"][0]["width"]) == size


def test_predict__gives_up_what_takes_too_long(predictor: Predictor) -> None:
    metrics = ServerMetrics()
    limits = Limits(timeout=0.3, batch_size=2)
    queue = ModelQueue(predictor, limits, metrics)
    with TestClient(build_app(queue, metrics, "nuclei", "", Doors()), "http://localhost") as client:
        # Dozens of tiles, which take seconds.
        response = client.post("/predict?tile=32", content=IMAGE.read_bytes(), headers={"Content-Type": "image/png"})
        assert response.status_code == 504
        assert response.json()["error"].startswith("no answer in time")
        assert int(response.headers["retry-after"]) >= 1
        while queue.working:  # the batch that the model was at
            time.sleep(0.02)
        time.sleep(0.2)  # until it is counted
        assert 'rejected_total{reason="timeout"} 1' in client.get("/metrics").text
        done = client.get("/metrics").text.split("mask2former_images_total ")[1].split()[0]
        time.sleep(0.5)
        assert client.get("/metrics").text.split("mask2former_images_total ")[1].split()[0] == done  # no tile more
        assert queue.inside == 0


def test_healthz__says_what_is_served_and_when_no_more(client: TestClient, predictor: Predictor) -> None:
    response = client.get("/healthz")
    assert response.status_code == 200
    assert response.json() == {"status": "ready", "model": "nuclei", "device": "cpu", "version": "0.1.0"}
    for path in ("/healthz", "/metrics"):  # as load balancers ask
        head = client.head(path)
        assert (head.status_code, head.content) == (200, b"")
    queue = client.app_state["queue"]
    queue.closing = True
    try:
        assert client.get("/healthz").status_code == 503
        status, answer = post(client, IMAGE.read_bytes())
        assert (status, answer["error"][:27]) == (503, "the server is shutting down")
    finally:
        queue.closing = False


def test_watch__takes_a_good_request_id_and_makes_one_for_others(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-ID": "job-7.a_B"}).headers["x-request-id"] == "job-7.a_B"
    for bad in ("two words", "x" * 65, "<script>", ""):
        made = client.get("/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert len(made) == 32
        assert made != bad


def test_watch__logs_one_line_a_request(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mask2former_dinov3"):
        status, answer = post(client, IMAGE.read_bytes())
        post(client, b"no image")
        client.get("/healthz")
    good, bad = (json.loads(record.message) for record in caplog.records)
    assert good["status"] == status == 200
    assert good["instances"] == len(answer["annotations"])
    assert good["bytes"] == IMAGE.stat().st_size
    assert good["ms"] > 0
    assert bad["status"] == 422
    assert bad["error"].startswith("image: expected an image in one of the formats")


def test_metrics__count_requests_images_and_refusals(client: TestClient) -> None:
    def number(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"mask2former_{name} ")), 0.0)

    names = ('requests_total{route="/predict",status="200"}', "images_total", 'rejected_total{reason="image"}')
    before = [number(name) for name in names]
    post(client, IMAGE.read_bytes())
    post(client, b"no image")
    assert [number(name) for name in names] == [value + 1 for value in before]
    assert number("queue_length") == 0
    assert number('request_seconds_count{route="/predict"}') >= 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("DELETE", "/", 404),
        ("GET", "/nowhere", 404),
        ("POST", "/gradio_api/upload", 404),
        ("POST", "/gradio_api/queue/join", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("GET", "/gradio_api/proxy=http://example.org", 404),
        ("GET", "/monitoring", 404),
        ("GET", "/assets/../../../../etc/passwd", 404),
    ],
)
def test_app__is_closed_but_for_the_page_and_the_api(client: TestClient, method: str, path: str, status: int) -> None:
    response = client.request(method, path)
    assert response.status_code == status
    assert "root:" not in response.text


def test_docs__need_no_other_server(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "swagger-ui-bundle.js" in page
    assert "https://" not in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_openapi__describes_every_answer(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    # Generated clients name their classes after these.
    assert set(document["components"]["schemas"]) == {
        *("Annotation", "Category", "Failure", "Health", "ImageInfo", "Prediction", "Segmentation"),
    }
    paths = document["paths"]
    assert set(paths) == {"/predict", "/healthz", "/metrics"}
    answers = paths["/predict"]["post"]["responses"]
    assert set(answers) == {"200", "400", "408", "413", "415", "422", "500", "503", "504"}
    assert "Retry-After" in answers["503"]["headers"]
    assert "Retry-After" in answers["504"]["headers"]
    for status in answers.keys() - {"200"}:
        assert answers[status]["content"]["application/json"]["schema"]["$ref"].endswith("/Failure")
