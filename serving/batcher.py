"""Micro-batches for the backbone: one thread owns it and takes what is waiting, without ever delaying anyone.

Requests that arrive while a batch runs share the next one. A request with many images is cut into pieces that queue up one
after the other, so that a small one is never behind all of them. The features of an image do not depend on its neighbours.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batcher"]

Array = NDArray[Any]
_Item = tuple[Array, "Future[Array]", float]


class Batcher:
    """Runs ``function`` on batches.

    Args:
        function: (B, …) → (B, …), row by row.
        max_batch: Rows of one call.
        on_start: Called with the seconds that an item has waited when its batch begins.
    """

    def __init__(self, function: Callable[[Array], Array], max_batch: int, on_start: Callable[[float], None] = lambda _: None) -> None:
        self._function = function
        self._max_batch = max_batch
        self._on_start = on_start
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._left_over: _Item | None = None
        self._thread = threading.Thread(target=self._work, name="backbone", daemon=True)
        self._thread.start()

    async def __call__(self, rows: Array) -> Array:
        """``function(rows)``, together with whatever else is waiting; rows (R, …) with R ≥ 1.

        Raises:
            Exception: What ``function`` raises on these rows, and on no others.
        """
        answers: list[Array] = []
        for start in range(0, len(rows), self._max_batch):
            future: Future[Array] = Future()
            self._queue.put((rows[start : start + self._max_batch], future, time.perf_counter()))
            answers.append(await asyncio.wrap_future(future))
        return answers[0] if len(answers) == 1 else np.concatenate(answers)

    def close(self) -> None:
        """Finish what is waiting, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._next(block=True)) is not None:
            batch, size = [first], len(first[0])
            while size < self._max_batch and (item := self._next(block=False)) is not None:
                if size + len(item[0]) > self._max_batch:
                    self._left_over = item
                    break
                batch.append(item)
                size += len(item[0])
            self._start([item for item in batch if item[1].set_running_or_notify_cancel()])

    def _next(self, block: bool) -> _Item | None:
        item, self._left_over = self._left_over, None
        if item is not None:
            return item
        try:
            item = self._queue.get(block)
        except queue.Empty:
            return None
        if item is None and not block:
            self._queue.put(None)  # the end is for the outer loop
        return item

    def _start(self, batch: list[_Item]) -> None:
        now = time.perf_counter()
        for _, _, queued in batch:
            self._on_start(now - queued)
        self._run(batch)

    def _run(self, batch: list[_Item]) -> None:
        if not batch:
            return
        try:
            answers = self._function(batch[0][0] if len(batch) == 1 else np.concatenate([rows for rows, _, _ in batch]))
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
            else:
                for item in batch:  # alone, so that only the culprit fails
                    self._run([item])
            return
        stops = np.cumsum([len(rows) for rows, _, _ in batch])
        for (_, future, _), answer in zip(batch, np.split(answers, stops[:-1]), strict=True):
            future.set_result(answer)
