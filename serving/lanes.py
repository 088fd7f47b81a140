"""Where heads run: a lane, one thread, per family of backends, so that a slow one never holds up a fast one.

Requests that wait in a lane with the same options become one evaluation, which costs a simulator hardly more than one of them.
Those with a seed do not: the draws of a row depend on its place in the table, and the same seed must repeat the same answer
whoever asks at the same time. Simulators that share global state run one evaluation at a time.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.records import InferenceBatch
from serving.forms import PredictOptions

__all__ = ["HeadLane"]

_MAX_ROWS = 64


@dataclass(frozen=True, slots=True)
class _Item:
    batch: InferenceBatch
    options: PredictOptions
    future: Future[InferenceBatch] = field(default_factory=Future)
    since: float = field(default_factory=time.perf_counter)

    @property
    def num_rows(self) -> int:
        return len(next(iter(_arrays(self.batch).values())))

    @property
    def group(self) -> Hashable:
        """What requests must have in common to be evaluated together; None for one that stays alone."""
        options = self.options
        if options.seed is not None or options.max_shots is not None:
            return None
        return options.backend, options.shots, options.mitigation, options.threshold, tuple(_arrays(self.batch))


class HeadLane:
    """Runs heads one after the other.

    Args:
        run: A batch with features or angles, and options → the answers, row by row.
        name: Of the thread.
        max_total_shots: Shots times rows of what is put together.
        on_start: Called with the seconds that a request has waited when its head begins.
    """

    def __init__(
        self,
        run: Callable[[InferenceBatch, PredictOptions], InferenceBatch],
        name: str,
        max_total_shots: int,
        on_start: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._max_total_shots = max_total_shots
        self._on_start = on_start
        self._arrivals: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._waiting: deque[_Item] = deque()
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, batch: InferenceBatch, options: PredictOptions) -> Future[InferenceBatch]:
        """The answers to one request; the future raises what ``run`` raises on it, and on no others."""
        item = _Item(batch, options)
        with self._lock:
            if self._closing:
                item.future.cancel()
            else:
                self._arrivals.put(item)
        return item.future

    def close(self) -> None:
        """Finish what runs and cancel what waits."""
        with self._lock:
            self._closing = True
            self._arrivals.put(None)
        self._thread.join()

    def _work(self) -> None:
        while not self._closing:
            self._take_arrivals()
            if not self._closing and self._waiting:
                self._evaluate(self._next_group())
        while not self._arrivals.empty():
            self._take_arrivals()
        for item in self._waiting:
            item.future.cancel()

    def _take_arrivals(self) -> None:
        """Wait for something to do, and take all that there is."""
        wait = not self._waiting
        while wait or not self._arrivals.empty():
            item = self._arrivals.get()
            wait = False
            if item is not None:
                self._waiting.append(item)

    def _next_group(self) -> list[_Item]:
        """The first that waits, and those behind it that go with it."""
        first = self._waiting.popleft()
        group, key, rows = [first], first.group, first.num_rows
        if key is not None:
            others, self._waiting = self._waiting, deque()
            for item in others:
                if item.group == key and self._fits(rows + item.num_rows, first.options):
                    group.append(item)
                    rows += item.num_rows
                else:
                    self._waiting.append(item)
        return [item for item in group if item.future.set_running_or_notify_cancel()]

    def _fits(self, rows: int, options: PredictOptions) -> bool:
        return rows <= _MAX_ROWS and rows * (options.shots or 0) <= self._max_total_shots

    def _evaluate(self, group: list[_Item]) -> None:
        now = time.perf_counter()
        for item in group:
            self._on_start(now - item.since)
        try:
            answers = self._run_together(group)
        except Exception as error:
            if len(group) == 1:
                group[0].future.set_exception(error)
            else:
                for item in group:  # alone, so that only the culprit fails
                    self._evaluate([item])
            return
        for item, answer in zip(group, answers, strict=True):
            item.future.set_result(answer)

    def _run_together(self, group: list[_Item]) -> list[InferenceBatch]:
        if len(group) < 2:
            return [self._run(item.batch, item.options) for item in group]
        parts = [_arrays(item.batch) for item in group]
        together: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        whole = self._run(InferenceBatch(**together), group[0].options)
        stops = np.cumsum([0, *(item.num_rows for item in group)])
        return [_rows(whole, int(start), int(stop)) for start, stop in pairwise(stops)]


def _arrays(batch: InferenceBatch) -> dict[str, NDArray[Any]]:
    """What is filled of a batch, row by row."""
    values = ((entry.name, getattr(batch, entry.name)) for entry in dataclasses.fields(batch))
    return {name: value for name, value in values if isinstance(value, np.ndarray)}


def _rows(batch: InferenceBatch, start: int, stop: int) -> InferenceBatch:
    """Some of the images; the record counts their rows and says nothing of the others."""
    assert batch.execution is not None
    parts: dict[str, Any] = {name: value[start:stop] for name, value in _arrays(batch).items()}
    return dataclasses.replace(batch, **parts, execution=dataclasses.replace(batch.execution, num_rows=stop - start))
