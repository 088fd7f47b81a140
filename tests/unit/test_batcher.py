"""Micro-batches: everybody gets their own rows, what waits is taken together, and an error stays with its cause."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from serving.batcher import Batcher


class Function:
    """Doubles its rows; can be held, and fails on negative ones."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.open = threading.Event()
        self.open.set()
        self.running = threading.Event()

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.running.set()
        assert self.open.wait(300)
        self.sizes.append(len(rows))
        if (rows < 0).any():
            raise ValueError("negative")
        return rows * 2


@pytest.fixture
def function() -> Function:
    return Function()


@pytest.fixture
def batcher(function: Function) -> Iterator[Batcher]:
    batcher = Batcher(function, max_batch=4)
    yield batcher
    function.open.set()
    batcher.close()


def rows(*values: float) -> np.ndarray:
    return np.array(values)[:, None]


async def behind_a_running_batch(
    function: Function, batcher: Batcher, *calls: Callable[[], Awaitable[Any]], until: Callable[[], bool] = lambda: True
) -> list[Any]:
    """Start ``calls`` while the thread is busy, so that all of them wait, until something is so; give their results or errors."""
    function.open.clear()
    function.running.clear()
    first = asyncio.create_task(batcher(rows(0)))
    await asyncio.to_thread(function.running.wait, 300)
    tasks = [asyncio.ensure_future(call()) for call in calls]
    await asyncio.sleep(0.05)
    while not until():
        await asyncio.sleep(0.01)
    function.open.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    return results


def test_each_call_gets_its_own_rows(batcher: Batcher) -> None:
    async def main() -> None:
        inputs = [np.random.default_rng(k).normal(size=(1 + k % 7, 3)) ** 2 for k in range(50)]
        for given, answer in zip(inputs, await asyncio.gather(*map(batcher, inputs)), strict=True):
            np.testing.assert_array_equal(answer, given * 2)

    asyncio.run(main())


def test_what_waits_is_taken_together_up_to_the_limit(function: Function, batcher: Batcher) -> None:
    asyncio.run(behind_a_running_batch(function, batcher, *[lambda: batcher(rows(1))] * 6))
    assert function.sizes == [1, 4, 2]


def test_an_item_that_no_longer_fits_opens_the_next_batch(function: Function, batcher: Batcher) -> None:
    calls = [lambda: batcher(rows(1, 2, 3)), lambda: batcher(rows(4, 5)), lambda: batcher(rows(6))]
    results = asyncio.run(behind_a_running_batch(function, batcher, *calls))
    assert [result.ravel().tolist() for result in results] == [[2, 4, 6], [8, 10], [12]]
    assert function.sizes == [1, 3, 3]


def test_a_small_request_is_not_behind_all_of_a_large_one(function: Function, batcher: Batcher) -> None:
    async def main() -> list[str]:
        order: list[str] = []

        async def call(name: str, size: int) -> None:
            await batcher(np.ones((size, 1)))
            order.append(name)

        await behind_a_running_batch(function, batcher, lambda: call("large", 40), lambda: call("small", 1))
        return order

    assert asyncio.run(main()) == ["small", "large"]
    assert max(function.sizes) == 4


def test_an_error_stays_with_its_cause(function: Function, batcher: Batcher) -> None:
    calls = [lambda: batcher(rows(1)), lambda: batcher(rows(-1)), lambda: batcher(rows(2))]
    good, bad, other = asyncio.run(behind_a_running_batch(function, batcher, *calls))
    assert (good.item(), other.item()) == (2, 4)
    assert isinstance(bad, ValueError)


def test_who_has_gone_is_not_computed(function: Function, batcher: Batcher) -> None:
    left: list[bool] = []

    async def gone() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher(rows(7, 7)), 0.01)
        left.append(True)

    asyncio.run(behind_a_running_batch(function, batcher, gone, lambda: batcher(rows(1)), until=lambda: bool(left)))
    assert function.sizes == [1, 1]


def test_close_finishes_what_waits(function: Function) -> None:
    batcher = Batcher(function, max_batch=2)

    async def main() -> None:
        calls = [asyncio.ensure_future(batcher(rows(k))) for k in range(5)]
        await asyncio.sleep(0)
        batcher.close()
        assert [answer.item() for answer in await asyncio.gather(*calls)] == [0, 2, 4, 6, 8]

    asyncio.run(main())
