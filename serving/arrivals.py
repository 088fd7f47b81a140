"""The body of a request on its way, and how long its client has been waited for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from starlette.requests import Request

__all__ = ["SLOW_S", "Arrival"]

SLOW_S = 2.0  # from then on a body that has not arrived gives way to other requests


class Arrival:
    """See the module; ``waiting`` while the next chunk is the client's to send, ``gave_way`` once others have its place.

    Args:
        request: Whose body it is.
    """

    def __init__(self, request: Request) -> None:
        self._body = request.stream()
        self._waited, self._since = 0.0, time.monotonic()
        self.waiting = self.gave_way = False
        self.received = 0

    @property
    def waited(self) -> float:
        """Seconds that the client has been waited for."""
        return self._waited + (time.monotonic() - self._since if self.waiting else 0.0)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        self._wait()
        async for chunk in self._body:
            self._go_on()
            self.received += len(chunk)
            yield chunk
            self._wait()
        self._go_on()

    def _wait(self) -> None:
        self.waiting, self._since = True, time.monotonic()

    def _go_on(self) -> None:
        self._waited, self.waiting = self.waited, False
