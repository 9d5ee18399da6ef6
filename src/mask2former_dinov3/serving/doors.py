"""Whom the server answers: the names under which it may be called, and no script of another site.

A browser that shows a hostile page sends requests to this machine on behalf of that page. The name in `Host` is then
the page's own (DNS rebinding), or `Origin` names the page (a cross-site post); both are refused. `Doorkeeper` also
removes CORS headers, with which the libraries of the page would let scripts of other local servers read answers.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import OptionError, mismatch
from .middleware import error_response

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
ANY_HOST = "*"
CORS = "access-control-"
ALLOW_IT = "start the server with --allowed-host"


@dataclass(frozen=True)
class Doors:
    """What the server opens.

    names: host names and addresses, in lower case, that `Host` may have. asked: those that the user gave; `Origin` may
    have them, too. any_address: `Host` may be any IP address, which no hostile page can have as its name. metrics,
    docs: whether there are /metrics, and /docs with /openapi.json.
    """

    names: frozenset[str] = frozenset(LOCAL_NAMES)
    asked: frozenset[str] = frozenset()
    any_address: bool = False
    metrics: bool = True
    docs: bool = True

    @classmethod
    def at(cls, host: str, allowed: Iterable[str] = (), *, metrics: bool = True, docs: bool = True) -> Doors:
        """The doors of a server that listens on `host`; at 0.0.0.0 or :: it is known by all addresses of the machine.

        allowed: further names, such as that of a reverse proxy; "*" is any. Raises OptionError for one that is no name.
        """
        asked = frozenset(name.strip().lower().strip("[]") for name in allowed)
        for name in asked - {ANY_HOST}:
            if not name or _host_of(f"//[{name}]" if ":" in name else f"//{name}") != name:
                raise OptionError("allowed_host", "a host name or address without a port, or *", name)
        everywhere = _is_unspecified(host)
        own = {socket.gethostname().lower()} if everywhere else {host.lower()}
        return cls(frozenset(LOCAL_NAMES) | own | asked, asked, everywhere, metrics, docs)

    def describe(self) -> str:
        """The names under which the server answers, for the log."""
        if ANY_HOST in self.asked:
            return "any host name"
        return ", ".join(sorted(self.names)) + ", any IP address" * self.any_address

    def refusal(self, headers: Headers) -> str | None:
        """Why a request with these headers is not answered, None if it is."""
        host, origin = headers.get("host"), headers.get("origin")
        if ANY_HOST not in self.asked and host is not None and not self._knows(_host_of(f"//{host}")):
            return f"Host: {mismatch('a name of this server', host[:100], f'{ALLOW_IT} to add one')}"
        if origin is None or ANY_HOST in self.asked:
            return None
        same = host is not None and _place_of(origin) == host.lower()
        if same or _host_of(origin) in self.asked:
            return None
        advice = f"scripts of other sites are not answered; {ALLOW_IT} for the name of a proxy"
        return f"Origin: {mismatch('the page of this server', origin[:100], advice)}"

    def _knows(self, name: str | None) -> bool:
        return name is not None and (name in self.names or (self.any_address and _is_address(name)))


class Doorkeeper:
    """ASGI middleware: answers 403 to requests that `Doors` refuses, and sends no CORS headers."""

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self.app = app
        self.doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_without_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name in [name for name in headers if name.startswith(CORS)]:
                    del headers[name]
            await send(message)

        if (refusal := self.doors.refusal(Headers(scope=scope))) is None:
            await self.app(scope, receive, send_without_cors)
            return
        scope["state"]["noted"]["error"] = refusal
        await error_response(403, refusal, scope["state"]["request_id"])(scope, receive, send)


def _host_of(url: str) -> str | None:
    """The host in a URL, in lower case and without port; None if there is none, or something else with it."""
    try:
        parts = urlsplit(url)
        valid = parts.port is None or parts.port > 0
    except ValueError:
        return None
    return parts.hostname if valid and parts.username is None and not (parts.path or parts.query) else None


def _place_of(origin: str) -> str | None:
    """Host and port of an `Origin` as `Host` has them; None for "null" and what is no URL."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return None
    return parts.netloc.lower() if parts.scheme in ("http", "https") and parts.netloc else None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_unspecified(host: str) -> bool:
    return host == "" or (_is_address(host) and ipaddress.ip_address(host).is_unspecified)
