"""How many requests a key may send: against a bucket of tokens that is simulated step by step, and across processes."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import RateLimitError
from serving.rates import RequestRates


class Bucket:
    """Tokens as everybody explains them: a minute's worth at most, refilled as time goes."""

    def __init__(self, per_minute: int) -> None:
        self.per_minute, self.tokens, self.at = per_minute, float(per_minute), 0.0

    def take(self, now: float) -> bool:
        self.tokens = min(self.per_minute, self.tokens + (now - self.at) * self.per_minute / 60)
        self.at = now
        if self.tokens < 1 - 1e-9:
            return False
        self.tokens -= 1
        return True


def takes(rates: RequestRates, key: str, per_minute: int | None, now: float) -> bool:
    try:
        rates.take(key, per_minute, now)
    except RateLimitError:
        return False
    return True


@given(st.integers(1, 40), st.lists(st.integers(0, 4000), max_size=120))
def test_it_is_a_bucket_of_tokens(per_minute: int, gaps: list[int]) -> None:
    rates, bucket, now = RequestRates(None), Bucket(per_minute), 100.0
    bucket.at = now
    for gap in gaps:  # a hundredth of a second each, so that no request falls on the very edge
        now += gap / 100 + 0.0037
        assert takes(rates, "key", per_minute, now) == bucket.take(now)


def test_whoever_waits_as_told_is_let_in() -> None:
    rates = RequestRates(None)
    for _ in range(3):
        rates.take("key", 3, 50.0)
    with pytest.raises(RateLimitError, match="3 requests a minute") as caught:
        rates.take("key", 3, 50.0)
    assert caught.value.retry_after_s == 20
    rates.take("key", 3, 70.0)
    assert takes(rates, "other", 3, 70.0), "each key has its own"
    assert all(takes(rates, "any", None, 70.0) for _ in range(100))


def test_the_file_of_an_earlier_start_locks_nobody_out(tmp_path: Path) -> None:
    """The clock of a machine begins anew when the machine does."""
    RequestRates(tmp_path).take("key", 1, 1e6)
    later = RequestRates(tmp_path)
    assert takes(later, "key", 1, 5.0)
    assert not takes(later, "key", 1, 64.0)
    assert takes(later, "key", 1, 65.0)


def test_buckets_that_are_full_again_make_room() -> None:
    rates = RequestRates(None)
    for number in range(4096):
        rates.take(f"{number:08x}", 60, 100.0)
    with pytest.raises(RateLimitError, match="more keys"):
        rates.take("one more", 60, 100.0)
    rates.take("one more", 60, 101.5)
    assert takes(rates, "00000001", 1, 101.5)


def _ask(folder: Path, start: float, count: int) -> int:
    rates = RequestRates(folder)
    return sum(takes(rates, "key", 20, start) for _ in range(count))


def test_all_workers_count_together(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(_ask, [(tmp_path, time.monotonic(), 30)] * 3)
    assert sum(found) == 20
