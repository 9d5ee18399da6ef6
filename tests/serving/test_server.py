"""A real server in a process of its own: batches, a full house, slow and lost clients, and how it ends."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from mask2former_dinov3.errors import CheckpointError, ConfigError, MissingExtraError, OptionError
from mask2former_dinov3.inference.predictor import Predictor
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.serving.limits import Limits
from mask2former_dinov3.serving.server import licence_line, serve
from support.paths import DOCS
from support.server import Server, answer_on

pytestmark = pytest.mark.xdist_group("server")  # its servers are started once

MODEL = SAMPLE / "model"
WHOLE = ("--image-scale", "fit")  # no tiles
FILES = sorted((SAMPLE / "valid").glob("*.png"))[:6]
IMAGE = FILES[0].read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--max-wait", "300", "--batch-size", "4", "--timeout", "120", "--max-bytes", "1000000")
    with Server(MODEL, "--device", "cpu", *WHOLE, *flags) as server:
        yield server
        assert server.stop(signal.SIGINT) == 0


def test_serve__predicts_in_batches_what_the_predictor_finds(server: Server) -> None:
    predictor = Predictor.from_pretrained(MODEL, "cpu", image_scale="fit")
    with ThreadPoolExecutor(len(FILES)) as clients:
        answers = list(clients.map(lambda file: server.predict(file.read_bytes()), FILES))
    for file, (status, answer) in zip(FILES, answers, strict=True):
        assert status == 200
        expected = predictor(file)
        scores = [one["score"] for one in answer["annotations"]]
        # Sums of a batch come in another order, and two of nearly one score may change places.
        assert scores == pytest.approx(expected.scores.tolist(), abs=5e-3)
        areas = sorted(one["area"] for one in answer["annotations"])
        assert areas == pytest.approx(sorted(expected.areas.tolist()), rel=0.05, abs=5)
    images, batches = server.metric("images_total"), server.metric("batch_size_count")
    assert images == len(FILES)
    assert batches < images


def test_serve__answers_head_as_get_without_a_body(server: Server) -> None:
    for path in ("/", "/sample.png", "/theme.css", "/healthz", "/docs", "/openapi.json"):
        answers = []
        for method in ("HEAD", "GET"):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request(method, path)
            answer = connection.getresponse()
            answers.append((answer.status, answer.headers["content-type"], answer.read()))
            connection.close()
        (status, kind, body), whole = answers
        assert (status, kind, body) == (200, whole[1], b"")
        assert whole[2]


def test_serve__takes_an_exported_model_and_finishes_its_requests_when_told_to_end(sample_file: Path) -> None:
    expected = Predictor.from_pretrained(sample_file, "cpu")(FILES[0])
    with Server(sample_file, "--device", "cpu") as server:
        status, answer = server.predict(IMAGE)
        assert status == 200
        assert [one["score"] for one in answer["annotations"]] == pytest.approx(expected.scores.tolist(), abs=1e-4)
        with server.half_sent(IMAGE) as connection:
            server.process.send_signal(signal.SIGTERM)
            deadline = time.monotonic() + 120
            while server.process.poll() is None and time.monotonic() < deadline:
                try:
                    socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
                except OSError:  # it accepts no connection any more
                    break
                time.sleep(0.02)
            connection.sendall(IMAGE[len(IMAGE) // 2 :])
            status, body = answer_on(connection)
        assert status == 200
        assert len(json.loads(body)["annotations"]) == len(answer["annotations"]) > 5
        log = server.rest_of_log()
        assert server.process.returncode == 0
        assert "stopped" in log
        assert "Traceback" not in log


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_serve__answers_the_commands_of_its_documentation(server: Server, tmp_path: Path) -> None:
    text = (DOCS / "serving.md").read_text(encoding="utf-8")
    commands = re.findall(r"^curl .*$", text, re.MULTILINE)
    assert len(commands) == 4
    Image.open(FILES[0]).convert("RGB").save(tmp_path / "photo.jpg")
    Image.open(FILES[0]).convert("RGB").save(tmp_path / "slide.tif")
    for command in commands:
        here = command.replace(":8000", f":{server.port}").replace("classes=cat&classes=dog", "classes=nucleus")
        words = shlex.split(here.split(" | ")[0])
        done = subprocess.run(words, capture_output=True, cwd=tmp_path)
        answer = json.loads(done.stdout or (tmp_path / "slide.coco.json").read_bytes())
        assert len(answer["annotations"]) > 5, command
        if "overlay" in command:
            assert Image.open(io.BytesIO(base64.b64decode(answer["overlay"]))).size[0] > 300


def test_serve__refuses_a_body_that_is_too_long_while_it_comes(server: Server) -> None:
    """Without a Content-Length nothing says in advance how long it will be."""
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head)
        for _ in range(11):  # the twelfth never comes: the answer must come without it
            connection.sendall(b"%x\r\n" % 100_000 + bytes(100_000) + b"\r\n")
        status, body = answer_on(connection)
    assert status == 413
    assert json.loads(body)["error"] == "expected a request of at most 1,000,000 bytes, got more; send a smaller image"
    status, answer = server.predict(bytes(2_000_000))
    assert (status, answer["error"]) == (413, json.loads(body)["error"])


def test_serve__drops_the_work_of_a_client_that_hangs_up(server: Server) -> None:
    before = server.metric('rejected_total{reason="gone"}'), server.metric("images_total")
    with server.half_sent(IMAGE):
        pass
    with server.half_sent(IMAGE) as connection:
        connection.sendall(IMAGE[len(IMAGE) // 2 :])  # whole, but nobody waits for the answer
    deadline = time.monotonic() + 120
    while server.metric('rejected_total{reason="gone"}') < before[0] + 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert server.metric("images_total") == before[1]
    assert server.metric("queue_length") == 0


def test_serve__sends_away_whom_it_has_no_room_for_and_stops_at_once_when_told_twice(model_folder: Path) -> None:
    """Of a tiny model, whose prediction is there in time on a machine with much else to do."""
    with Server(model_folder, *WHOLE, "--max-queue", "1", "--timeout", "5") as server:
        log = "".join(server.log)
        assert log.index("loading model") < log.index("model loaded on") < log.index("listening on http://127.0.0.1:")
        with server.half_sent(IMAGE) as connection:
            status, headers, body = server.ask("POST", "/predict", IMAGE, {"Content-Type": "image/png"})
            assert status == 503
            assert int(headers["retry-after"]) >= 1
            assert json.loads(body)["error"] == "1 requests are waiting already; try again later"
            status, late = answer_on(connection)  # it never sends the rest
            assert status == 408
            assert json.loads(late)["error"] == "the image did not arrive within 5 seconds"
        assert server.predict(IMAGE)[0] == 200  # there is room again
        assert server.metric('rejected_total{reason="busy"}') == 1
        with server.half_sent(IMAGE):
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_line("finishing the requests")
            assert server.stop() == 128 + signal.SIGTERM  # it would end with 0 once the image's time is up


def test_serve__explains_what_it_cannot_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a model folder"):
        serve(tmp_path / "nothing", port=0, limits=Limits())
    message = (
        r"expected a free address of this machine, got one that cannot be used \(.+\); choose another host or port"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"host 127\.0\.0\.1, port {port}: {message}"):
            serve(MODEL, port=port, limits=Limits())
    with pytest.raises(ConfigError, match=rf"host no\.such\.host\.invalid, port 0: {message}"):
        serve(MODEL, host="no.such.host.invalid", port=0, limits=Limits())
    with pytest.raises(OptionError, match="port: expected a number from 0 to 65535, got 70000"):
        serve(tmp_path / "nothing", port=70_000, limits=Limits())  # told before the model is loaded
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtraError, match=r"^serve needs uvicorn, .*pip install 'mask2former-dinov3\[serve\]'"):
        serve(MODEL, port=0, limits=Limits())


def test_licence_line__names_the_licence_that_travels_with_a_model(model_folder: Path, tmp_path: Path) -> None:
    predictor = Predictor.from_pretrained(model_folder, "cpu")
    assert licence_line(predictor, model_folder) == ""
    (tmp_path / "DINOV3_LICENSE.md").write_text("text")
    assert "DINOv3 License" in licence_line(predictor, tmp_path)
