"""Around every request to the server: an id, a limit on its body, a line in the log, counts for Prometheus."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG = logging.getLogger(__name__)

GONE = 499  # the client hung up: nginx's number, in the log and the counts alone
ROUTES = ("/predict", "/healthz", "/metrics", "/docs", "/openapi.json")  # all others count as "page"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Refused(Exception):
    """A request that gets an error for an answer; reason: one word for the counts of what was rejected."""

    def __init__(self, status: int, message: str, reason: str | None = None, headers: dict[str, str] | None = None):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = headers


class Metrics:
    """What /metrics shows, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def made(kind: Any, name: str, text: str, labels: tuple[str, ...] = (), **options: Any) -> Any:
            return kind(f"mask2former_{name}", text, labels, registry=self.registry, **options)

        self.requests = made(Counter, "requests_total", "Requests answered.", ("route", "status"))
        buckets = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)
        self.seconds = made(
            Histogram, "request_seconds", "Seconds to the end of an answer.", ("route",), buckets=buckets
        )
        self.rejected = made(Counter, "rejected_total", "Images not predicted, by reason.", ("reason",))
        self.images = made(Counter, "images_total", "Images that the model has worked on.")
        self.batch = made(Histogram, "batch_size", "Images in a forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64))
        self.queue = made(Gauge, "queue_length", "Requests in the house: being read, waiting, or in the model.")

    def predicted(self, images: int) -> None:
        """The model has worked on one batch."""
        self.images.inc(images)
        self.batch.observe(images)


class Watch:
    """ASGI middleware around everything.

    The request id comes from X-Request-ID if it is one (letters, digits, . _ -, at most 64), else it is made; it is in
    the answer's headers, in every error and in the log. A body of more than max_bytes ends in Refused(413) as it is
    read. Handlers may put what the log should say into `request.state.noted`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, max_bytes: int) -> None:
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

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_bytes:
                raise too_many_bytes(self.max_bytes)
            return message

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = state["request_id"]
            await send(message)

        try:
            await self.app(scope, counted, answer)
        except Exception:
            LOG.exception("request %s failed", state["request_id"])
            if not status:
                await error_response(500, "the server failed; its log has the reason", state["request_id"])(
                    scope, receive, answer
                )
        finally:
            self._note(scope, status, time.perf_counter() - begun, size)

    def _note(self, scope: Scope, status: int, seconds: float, size: int) -> None:
        path = scope["path"]
        route = path if path in ROUTES else "page"
        noted: dict[str, Any] = scope["state"]["noted"]
        status = noted.pop("status", status)
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        line = {"request_id": scope["state"]["request_id"], "method": scope["method"], "path": path[:200]}
        line |= {"status": status, "ms": round(1000 * seconds, 1), "bytes": size, **noted}
        # The page's files and what asks every few seconds whether the server lives would bury the rest.
        LOG.log(logging.INFO if route == "/predict" or status >= 400 else logging.DEBUG, "%s", json.dumps(line))


def too_many_bytes(most: int) -> Refused:
    """For a body that is, or says it is, longer than `most`."""
    return Refused(413, f"expected a request of at most {most:,} bytes, got more; send a smaller image", "bytes")


def error_response(
    status: int, message: str, request_id: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """What every error looks like."""
    return JSONResponse({"error": message, "request_id": request_id}, status, headers)
