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
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    def connect(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test", timeout=120)

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with self.connect() as client:
                return await client.request(method, path, **options)

        return asyncio.run(call())

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)
