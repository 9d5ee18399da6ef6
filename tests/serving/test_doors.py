"""Who is answered, how many at once, and what happens while a decoder hangs."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from mask2former_dinov3.errors import OptionError
from mask2former_dinov3.sample_data import SAMPLE
from mask2former_dinov3.serving.connections import RESERVED, most_connections
from mask2former_dinov3.serving.doors import Doors
from support.server import Server

pytestmark = pytest.mark.xdist_group("server")

IMAGE = next((SAMPLE / "valid").glob("*.png")).read_bytes()
HANG = """
import sys, time
from mask2former_dinov3.cli import main
from mask2former_dinov3.serving import queue
decode = queue.decode_image
def hang(data, *rest):
    if data.endswith(b"hang"):
        time.sleep(10_000)
    return decode(data, *rest)
queue.decode_image = hang
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
FLAGS = ("--device", "cpu", "--timeout", "3", "--max-connections", "8", "--no-metrics", "--no-docs")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Server]:
    """Of a tiny model: what it predicts must be there within the time of FLAGS, whatever else the machine does."""
    script = tmp_path_factory.mktemp("server") / "hang.py"
    script.write_text(HANG, encoding="utf-8")
    with Server(model_folder, *FLAGS, "--allowed-host", "models.example", script=script) as server:
        yield server
        assert server.process.returncode == 0  # the last test has ended it


def asked(doors: Doors, **headers: str) -> str | None:
    return doors.refusal(Headers(headers))


def test_doors__of_one_address_open_to_its_names() -> None:
    doors = Doors.at("127.0.0.1", ["Models.example"])
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000", "models.example", "models.example:443"):
        assert asked(doors, host=host) is None, host
    for host in (
        "evil.example",
        "evil.example:8000",
        "192.168.1.5",
        "localhost.evil.example",
        "x@localhost",
        "a b",
        "",
    ):
        assert str(asked(doors, host=host)).startswith("Host: expected a name of this server, got "), host
    assert asked(doors) is None  # HTTP/1.0: no browser sends it
    assert doors.describe() == "127.0.0.1, ::1, localhost, models.example"


def test_doors__at_all_addresses_open_to_any_address_but_no_other_name() -> None:
    """A page whose name leads here has that name in `Host`, never an address."""
    doors = Doors.at("0.0.0.0")  # nothing listens
    for host in ("192.168.1.5:8000", "[fe80::1]", "localhost", socket.gethostname()):
        assert asked(doors, host=host) is None, host
    assert asked(doors, host="evil.example") is not None
    assert asked(Doors.at("::"), host="10.0.0.1") is None
    assert asked(Doors.at("::", ["*"]), host="evil.example", origin="http://other.example") is None
    assert Doors.at("::", ["*"]).describe() == "any host name"


def test_doors__refuse_scripts_of_other_sites() -> None:
    doors = Doors.at("127.0.0.1", ["models.example"])
    for origin in ("http://localhost:8000", "https://models.example"):  # of the page; of a proxy that changes `Host`
        assert asked(doors, host="localhost:8000", origin=origin) is None
    for origin in ("http://evil.example", "http://localhost:3000", "null", "file://", "http://[", "localhost:8000"):
        message = "Origin: expected the page of this server, got "
        assert str(asked(doors, host="localhost:8000", origin=origin)).startswith(message), origin


def test_doors__take_names_without_a_port() -> None:
    assert asked(Doors.at("127.0.0.1", ["[2001:db8::1]"]), host="[2001:db8::1]:80") is None
    for name in ("models.example:8000", "http://models.example", "", "a/b"):
        with pytest.raises(OptionError, match="allowed_host: expected a host name or address without a port"):
            Doors.at("127.0.0.1", [name])


def test_serve__refuses_foreign_names_and_sends_no_cors(server: Server) -> None:
    for headers, expected in (
        ({"Host": "evil.example"}, "Host: expected a name of this server, got evil.example"),
        ({"Origin": "http://evil.example"}, "Origin: expected the page of this server, got http://evil.example"),
        ({"Origin": "http://localhost:1"}, "Origin: expected the page of this server, got http://localhost:1"),
    ):
        for method, path in (("GET", "/"), ("GET", "/config"), ("GET", "/healthz"), ("POST", "/predict")):
            status, sent, body = server.ask(method, path, IMAGE if method == "POST" else None, headers)
            answer = json.loads(body)
            assert status == 403, (path, headers)
            assert answer["error"].startswith(expected)
            assert answer["request_id"] == sent["x-request-id"]
            assert not [name for name in sent if name.startswith("access-control-")]
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    for path in ("/", "/config", "/healthz"):
        status, sent, _ = server.ask("GET", path, headers=own)
        assert status == 200
        assert not [name for name in sent if name.startswith("access-control-")], path
    assert server.ask("GET", "/healthz", headers={"Host": "models.example"})[0] == 200


def test_serve__without_metrics_and_docs_has_neither(server: Server) -> None:
    for path in ("/metrics", "/docs", "/openapi.json", "/redoc", "/static-offline-docs/swagger-ui.css"):
        assert server.ask("GET", path)[0] == 404, path
    page = server.ask("GET", "/")[2].decode()
    assert 'href=\\"docs\\"' not in page
    assert "m2f-viewer" in page


def test_serve__never_closes_a_connection_whose_request_is_here(server: Server) -> None:
    """The process stands still while a request comes and many idle connections after it: it finds all at once."""
    server.process.send_signal(signal.SIGSTOP)
    asking = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    asking.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(20)]
    server.process.send_signal(signal.SIGCONT)
    try:
        assert asking.recv(15) == b"HTTP/1.1 200 OK"
    finally:
        for one in (asking, *idle):
            one.close()


def test_serve__closes_idle_connections_to_make_room(server: Server) -> None:
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=30) for _ in range(20)]
    try:
        assert [one.recv(1) for one in idle[:12]] == [b""] * 12  # the oldest
        status, answer = server.predict(IMAGE, threshold=0)
        assert status == 200
        assert answer["annotations"]
        server.wait_for_line("all 8 connections were in use")
    finally:
        for one in idle:
            one.close()


def test_most_connections__fits_the_file_handles_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    resource = pytest.importorskip("resource")
    limits = [RESERVED + 20, RESERVED + 30]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: limits.__setitem__(slice(None), both))
    assert most_connections(10) == 10
    assert limits[0] == RESERVED + 20  # enough: not changed
    assert not caplog.records
    assert most_connections(256) == 30
    assert limits == [RESERVED + 30, RESERVED + 30]
    assert "at most 30 connections instead of 256" in caplog.text


def test_serve__is_not_ready_while_all_decoders_hang_and_ends_nevertheless(server: Server) -> None:
    for _ in range(2):
        assert server.predict(IMAGE + b"hang")[0] == 504
    deadline = time.monotonic() + 120
    while (found := server.ask("GET", "/healthz"))[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert (found[0], json.loads(found[2])["status"]) == (503, "stuck")
    status, answer = server.predict(IMAGE)
    assert status == 503
    assert answer["error"].startswith("the server works on an image for longer than its timeout")
    assert server.stop(signal.SIGTERM) == 0
    assert "stopped; 2 threads still worked on images whose time was up" in "".join(server.log)
