"""Work that another thread does ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from typing import TypeVar

__all__ = ["read_ahead"]

T = TypeVar("T")


def read_ahead(items: Generator[T, None, None], count: int) -> Generator[T, None, None]:
    """The same items, none of them None, the next ``count`` made by another thread meanwhile."""
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        ahead: deque[Future[T | None]] = deque(pool.submit(next, items, None) for _ in range(count))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in ahead:
                future.cancel()
            with suppress(Exception):
                pool.shutdown(wait=True)
