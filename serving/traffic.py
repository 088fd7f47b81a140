"""The outermost layer but one: measures every request, and writes its one line of log."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.auth import OPEN_PATHS
from serving.logs import log_request
from serving.metrics import Metrics

__all__ = ["Traffic"]

_CLIENT_GONE = 499  # nginx's number for a client that went away before it was answered
_MAX_PATH = 200


class Traffic:
    """ASGI middleware.

    Args:
        app: What is measured.
        metrics: Where the figures go.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, started = _CLIENT_GONE, time.perf_counter()
        state = scope.setdefault("state", {})

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.begin()
        try:
            await self.app(scope, receive, watch)
        finally:
            seconds, route = time.perf_counter() - started, _route(scope)
            self._metrics.end(route, status, seconds, state.get("error_code"))
            if route not in OPEN_PATHS:
                log_request(**_line(scope, route, status), duration_ms=round(1000 * seconds, 2), **state.get("log", {}))


def _route(scope: Scope) -> str:
    """The route's own path, so that there are few of them."""
    return str(getattr(scope.get("route"), "path", "other"))


def _line(scope: Scope, route: str, status: int) -> dict[str, object]:
    state = scope["state"]
    return {
        "request_id": state.get("request_id"),
        "method": scope["method"][:20],
        "route": route,
        "path": scope["path"][:_MAX_PATH] if route == "other" else None,
        "status": status,
        "code": state.get("error_code"),
        "key": state["key"].id if "key" in state else None,
        "client": (scope.get("client") or ("",))[0] or None,
    }
