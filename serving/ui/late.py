"""The page comes late: what it is made with takes seconds to load, and the service answers in the meantime."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from hqtl_common.errors import ConfigError
from serving.collector import exempt_imports
from serving.errors import NotReadyError
from serving.http_errors import answer_error

__all__ = ["LatePage", "check_installed"]

logger = logging.getLogger("hqtl.ui")


def check_installed() -> None:
    """Refuse to promise a page that cannot be made.

    Raises:
        ConfigError: A package is not installed.
    """
    for name in ("gradio", "httpx"):
        if find_spec(name) is None:
            raise ConfigError(f"HQTL_UI=1 needs the package {name}: pip install 'hqtl[ui]', or unset it")


class LatePage:
    """ASGI middleware behind :class:`serving.ui.door.PageDoor`: whoever is let in waits until the page is there.

    It is made in a thread of its own, from the first request of any kind on: a probe that finds the service ready, for example.

    Args:
        app: What the page is part of.
        make: Adds the page to the application.
    """

    def __init__(self, app: ASGIApp, make: Callable[[], None]) -> None:
        self.app = app
        self._make = make
        self._made: Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "http":
            self._made = made = self._made or self._begin()
            if re.match(r"/ui(/|$)", scope["path"]):
                try:
                    await asyncio.shield(asyncio.wrap_future(made))
                except Exception:
                    error = NotReadyError("the page cannot be shown; the log of the service says why")
                    await answer_error(Request(scope), error)(scope, receive, send)
                    return
        await self.app(scope, receive, send)

    def _begin(self) -> Future[None]:
        made: Future[None] = Future()

        def work() -> None:
            try:
                with exempt_imports():
                    self._make()
            except Exception as error:
                logger.exception("the page cannot be shown")
                made.set_exception(error)
            else:
                made.set_result(None)

        threading.Thread(target=work, name="page", daemon=True).start()
        return made
