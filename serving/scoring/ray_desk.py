"""Where workers ask which bytes came before: one for all of them, on the machine of the run.

Whether a file is a duplicate depends on all files before it, wherever those are read. A worker therefore says what the files of
its chunk hash to, and waits; the run answers chunk by chunk in the order of the list. Nobody waits for a chunk that begins later,
and a waiting worker gives its core back, so that this always goes on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

__all__ = ["Desk"]

_TRIES = 10  # a chunk whose workers die so often will not live any more


class Desk:
    """An asynchronous Ray actor; what it is told of a chunk stays until the chunk is done, so that a chunk can be begun again."""

    def __init__(self) -> None:
        self._questions: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._tries: Counter[int] = Counter()
        self._progress: asyncio.Queue[tuple[int, str]] = asyncio.Queue()

    async def ask(self, chunk: int, question: dict[str, Any]) -> dict[str, Any]:
        """Of a worker: the answer, as soon as it is known; the same to whoever asks for the chunk again.

        Args:
            chunk: Position of the chunk among all chunks.
            question: JSON-ready; counts the first time only.
        """
        self._tries[chunk] += 1
        if self._tries[chunk] > _TRIES:
            return {"error": ["NotReadyError", f"{_TRIES} workers of the cluster have died of the same files"]}
        asked = _slot(self._questions, chunk)
        if not asked.done():
            asked.set_result(question)
        return await asyncio.shield(_slot(self._answers, chunk))

    async def asked(self, chunk: int) -> dict[str, Any]:
        """Of the run: the question of a chunk, as soon as it is asked."""
        return await asyncio.shield(_slot(self._questions, chunk))

    async def answer(self, chunk: int, answer: dict[str, Any]) -> None:
        """Of the run: the answer of a chunk."""
        _slot(self._answers, chunk).set_result(answer)

    async def tell(self, done: int, kind: str) -> None:
        """Of a worker: so many tiles, frames, pages or slices of the file in work are done."""
        await self._progress.put((done, kind))

    async def told(self) -> tuple[int, str]:
        """Of the run: what a worker tells next."""
        return await self._progress.get()

    async def forget(self, chunk: int) -> None:
        """Of the run: a chunk is done."""
        for known in (self._questions, self._answers, self._tries):
            known.pop(chunk, None)


def _slot(slots: dict[int, asyncio.Future[dict[str, Any]]], chunk: int) -> asyncio.Future[dict[str, Any]]:
    if chunk not in slots:
        slots[chunk] = asyncio.get_running_loop().create_future()
    return slots[chunk]
