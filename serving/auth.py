"""The door: every request shows a key, except to the health routes. What is not let in never reaches a route.

Without authentication (``HQTL_INSECURE_NO_AUTH``) only this machine is served: both ends of the connection must be loopback
addresses, and so must the names that a browser says it asked (``Host``) and comes from (``Origin``); otherwise a web page could
use the service through the browser of whoever runs it.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hqtl_common.errors import HqtlError
from serving.errors import ForbiddenError, UnauthorizedError
from serving.http_errors import answer_error
from serving.keys import LOCAL, Key, KeyRing
from serving.rates import RequestRates

__all__ = ["OPEN_PATHS", "Authenticate", "is_loopback"]

OPEN_PATHS = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
_PAGE = "/ui/"
_HOW = "send it as 'Authorization: Bearer KEY' (keys are made by hqtl-keys add)"


class Authenticate:
    """ASGI middleware: puts the :class:`serving.keys.Key` of a request at ``request.state.key``, or refuses it.

    Args:
        app: What is behind the door.
        ring: The keys; None serves this machine without any.
        rates: Counts the requests of each key.
    """

    def __init__(self, app: ASGIApp, ring: KeyRing | None, rates: RequestRates) -> None:
        self.app = app
        self._ring = ring
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            request = Request(scope)
            try:
                request.state.key = self._admit(request)
            except HqtlError as error:
                await answer_error(request, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _admit(self, request: Request) -> Key:
        if self._ring is None:
            _check_local(request)
            return LOCAL
        key = self._ring.find(_token(request))
        if not request.scope["path"].startswith(_PAGE):  # what the page asks for comes by here as well
            self._rates.take(key.id, key.grants.requests_per_minute)
        return key


def is_loopback(host: str | None) -> bool:
    """True for ``localhost`` and loopback addresses, also with brackets; nothing is looked up."""
    name = (host or "").strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _token(request: Request) -> str:
    bearer, plain = request.headers.getlist("authorization"), request.headers.getlist("x-api-key")
    if len(bearer) + len(plain) != 1:
        raise UnauthorizedError(f"{'one key only' if bearer or plain else 'a key is needed'}; {_HOW}")
    if plain:
        return plain[0]
    scheme, _, token = bearer[0].partition(" ")
    if scheme.lower() != "bearer":
        raise UnauthorizedError(f"only the scheme Bearer is known; {_HOW}")
    return token.strip()


def _check_local(request: Request) -> None:
    ends = [(request.scope.get(end) or ("",))[0] for end in ("client", "server")]
    hosts = [_host_of(f"//{host}") for host in request.headers.getlist("host")]
    origins = [_host_of(origin) for origin in request.headers.getlist("origin")]
    if not all(is_loopback(host) for host in [*ends, *hosts, *origins]):
        raise ForbiddenError("this service runs without authentication and answers only the machine it runs on, by a loopback address")


def _host_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
