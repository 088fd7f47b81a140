"""Connections that give nothing and take nothing are closed: uvicorn itself waits for ever for the head of a request, for the rest of
a body that was answered before it came, and for a client that does not read its answer.

A connection on which a request is being answered is left alone; its body is the business of :mod:`serving.desk`. At all other times
it has so many seconds to bring the next request, and an answer that is still on its way must keep moving.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn import config
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["TimedProtocol", "guard_connections"]

_MOST_FILES = 65_536
_LEAST_RATE = 1024  # bytes per second that a client must take of its answer


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time between requests; ``patience_s`` is the same for all connections."""

    patience_s = 10.0
    _waiting: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: time runs on while they are no request."""
        super().data_received(data)
        if self._is_answering:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """A request has been answered, as far as the service is concerned."""
        super().on_response_complete()
        if not self._is_answering:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._stop_waiting()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._stop_waiting()
        self._unsent = self.transport.get_write_buffer_size()
        self._waiting = self.loop.call_later(self.patience_s, self._lose_patience)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _lose_patience(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent and self._unsent - unsent >= _LEAST_RATE * self.patience_s:
            self._wait()
        else:
            self.transport.abort()


def guard_connections() -> None:
    """Let the server of this process, before it starts, use :class:`TimedProtocol` and as many connections as the machine allows."""
    config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{TimedProtocol.__name__}"
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if most == resource.RLIM_INFINITY else min(most, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
