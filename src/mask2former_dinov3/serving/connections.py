"""Connections: a bounded number of them, and none that stays without asking anything.

uvicorn bounds neither: it closes a connection that is silent after an answer, but waits without end for the first
request on one, and for the rest of its headers. Idle connections would take all file handles of the process.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

logger = logging.getLogger(__name__)

SECONDS_FOR_HEADERS = 10.0  # from the opening of a connection, or the last answer on it, to the end of a request's head
BACKLOG = 64  # connections that are accepted at one time
RESERVED = 6 * BACKLOG  # file handles for everything else: libraries, files, connections that are about to be refused
FEWEST = 8
SECONDS_BETWEEN_LINES = 60.0  # of the log, about connections that were closed
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 10\r\nConnection: close\r\n"
    b'Content-Length: 56\r\n\r\n{"error": "all connections are in use; try again later"}'
)


class _Door:
    """The connections of one server that wait for a request, oldest first, and what is said about those closed."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.idle: dict[_BoundedConnection, None] = {}
        self._closed = 0
        self._said = float("-inf")

    def note(self, now: float) -> None:
        """Count a connection that was closed to make room, and say so at most once a minute."""
        self._closed += 1
        if now - self._said >= SECONDS_BETWEEN_LINES:
            text = "all %d connections were in use: %d closed that asked nothing, or refused (--max-connections)"
            logger.warning(text, self.most, self._closed)
            self._closed, self._said = 0, now


class _BoundedConnection(H11Protocol):
    """A connection of uvicorn that is closed if no request comes, or to make room for another."""

    door: _Door  # of the server; set by `connections_of`
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) <= self.door.most:
            return
        if len(self.door.idle) == 1:  # the others are being answered
            self._make_room()
        else:  # the request of an older one may be here and not be read yet: the loop reads after two more rounds
            self.loop.call_soon(self.loop.call_soon, self._make_room)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_busy():
            self._stop_waiting()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self._is_busy() and not self.transport.is_closing():
            self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def close(self) -> None:
        """Close a connection on which nothing is being answered."""
        self._stop_waiting()
        self.connections.discard(self)
        self.transport.close()

    def _make_room(self) -> None:
        """Close the connection that has waited longest, if there are still too many."""
        oldest = next(iter(self.door.idle), None)
        if oldest is None or len(self.connections) <= self.door.most:
            return
        self.door.note(self.loop.time())
        if oldest is self:
            self.transport.write(FULL)
        oldest.close()

    def _is_busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_request(self) -> None:
        self._stop_waiting()
        self.door.idle[self] = None
        self._timer = self.loop.call_later(SECONDS_FOR_HEADERS, self.close)

    def _stop_waiting(self) -> None:
        self.door.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def connections_of(most: int) -> type[asyncio.Protocol]:
    """The class of the connections of one server, for `uvicorn.Config(http=…)`. most: how many there may be at once."""
    return cast(type[asyncio.Protocol], type("BoundedConnection", (_BoundedConnection,), {"door": _Door(most)}))


def most_connections(wanted: int) -> int:
    """How many connections the file handles of this process allow, at most `wanted`; raises its limit if it may.

    Says so where they are fewer.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    allowed = wanted if soft == resource.RLIM_INFINITY else min(wanted, max(soft - RESERVED, FEWEST))
    if allowed < wanted:
        text = "at most %d connections instead of %d: this process may open %d files (ulimit -n)"
        logger.warning(text, allowed, wanted, soft)
    return allowed


def uvicorn_options(most: int) -> dict[str, Any]:
    """What `uvicorn.Config` needs for bounded connections."""
    return {"http": connections_of(most), "backlog": BACKLOG}
