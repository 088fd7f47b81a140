"""Calls an ASGI application in this process, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

__all__ = ["Client"]


class Client:
    """Synchronous calls; each runs in an event loop of its own.

    Args:
        app: The application.
        key: Sent with every call.
        peer: Address that the calls come from.
        url: What they ask for.
    """

    def __init__(self, app: Any, key: str | None = None, peer: str = "127.0.0.1", url: str = "http://127.0.0.1:3000") -> None:
        self.app = app
        self.url = url
        self.peer = (peer, 40000)
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}

    def connect(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app, client=self.peer)
        return httpx.AsyncClient(transport=transport, base_url=self.url, headers=self.headers, timeout=120)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with self.connect() as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)
