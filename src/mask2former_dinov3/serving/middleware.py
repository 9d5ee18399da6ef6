"""ASGI middleware around every request: its id, the limit on its body, its line in the log, counts for Prometheus."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import mismatch

logger = logging.getLogger(__name__)

CLIENT_GONE = 499  # the client closed the connection: nginx's number, used in the log and the counts only
ROUTES = ("/predict", "/healthz", "/metrics", "/docs", "/openapi.json")  # all others count as "page"
PREFIX = "mask2former"  # of the names in /metrics
SECONDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Refused(Exception):
    """A request that is answered with an error. reason: its label in the count of rejected requests."""

    def __init__(self, status: int, message: str, reason: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = headers


class ServerMetrics:
    """The numbers of /metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            f"{PREFIX}_requests_total", "Requests answered.", ("route", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "Seconds from the start of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rejected = Counter(
            f"{PREFIX}_rejected_total", "Images not predicted, by reason.", ("reason",), registry=self.registry
        )
        self.images = Counter(
            f"{PREFIX}_images_total", "Images and tiles that the model has predicted.", registry=self.registry
        )
        self.batch = Histogram(
            f"{PREFIX}_batch_size", "Images per forward pass.", buckets=BATCH_SIZES, registry=self.registry
        )
        self.queue = Gauge(
            f"{PREFIX}_queue_length",
            "Requests in the server: being received, waiting, or in the model.",
            registry=self.registry,
        )

    def count_batch(self, images: int) -> None:
        """Count one forward pass over `images` images."""
        self.images.inc(images)
        self.batch.observe(images)


class Watch:
    """Gives each request an id, limits its body, counts and logs it.

    The request id is that of the header X-Request-ID if it is valid (letters, digits, . _ -, at most 64), otherwise a
    new one; it is in the headers of the answer, in every error and in the log. A body of more than max_bytes raises
    Refused(413) while it is read. Handlers may add keys to the line in the log with `request.state.noted`.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, max_bytes: int) -> None:
        self.app = app
        self.metrics = metrics
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.perf_counter()
        given = Headers(scope=scope).get("x-request-id", "")
        state = scope.setdefault("state", {})
        state["request_id"] = given if _ID.fullmatch(given) else uuid.uuid4().hex
        state["noted"] = {}
        status = 0
        size = 0

        async def receive_counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise too_many_bytes(self.max_bytes)
            return message

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = state["request_id"]
            await send(message)

        try:
            await self.app(scope, receive_counted, send_with_id)
        except Exception:
            logger.exception("request %s failed", state["request_id"])
            if not status:
                answer = error_response(500, "the server failed; its log has the reason", state["request_id"])
                await answer(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - begun, size)

    def _note(self, scope: Scope, status: int, seconds: float, size: int) -> None:
        """Count a request that has ended and write its line in the log."""
        path = scope["path"]
        route = path if path in ROUTES else "page"
        noted: dict[str, object] = scope["state"]["noted"]
        line = {"request_id": scope["state"]["request_id"], "method": scope["method"], "path": path[:200]}
        line |= {"status": status, "ms": round(1000 * seconds, 1), "bytes": size} | noted
        self.metrics.requests.labels(route, str(line["status"])).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        # The page's files and the regular questions for /healthz would hide all other lines.
        logger.log(logging.INFO if route == "/predict" or line["status"] >= 400 else logging.DEBUG, json.dumps(line))


def too_many_bytes(limit: int) -> Refused:
    """The error for a body that is longer than `limit` bytes, or says so in its header."""
    message = mismatch(f"a request of at most {limit:,} bytes", "more", "send a smaller image")
    return Refused(413, message, "bytes")


def error_response(
    status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as JSON; all errors have this form."""
    return JSONResponse({"error": message, "request_id": request_id}, status, headers)
