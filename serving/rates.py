"""How many requests a key may send in a minute: a token bucket per key, shared by all workers of the service.

A bucket is one number, the time at which it would be full again (the generic cell rate algorithm of ITU-T I.371). The numbers of all
keys lie in a small file beside BentoML's figures, where all workers of a service meet.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.errors import RateLimitError

__all__ = ["RequestRates"]

_MINUTE_S = 60.0
_ROUNDING_S = 1e-6
_ENTRY = struct.Struct("16sd")  # identifier of a key, time on the machine's monotonic clock
_ENTRIES = 4096


class RequestRates:
    """See the module.

    Args:
        folder: Where the workers of a service meet; None where there is one worker.
    """

    def __init__(self, folder: Path | None) -> None:
        size = _ENTRIES * _ENTRY.size
        self._file: int | None = None
        if folder is None:
            self._memory = mmap.mmap(-1, size)
            return
        self._file = os.open(folder / "hqtl-rates", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, size)
        self._memory = mmap.mmap(self._file, size)

    def take(self, key: str, per_minute: int | None, now: float | None = None) -> None:
        """Count one request of a key: as many as a minute allows may come at once, and then as fast as the minute refills.

        Args:
            key: Identifier of the key, at most 16 bytes.
            per_minute: How many it was granted; None = without limit.
            now: Seconds on the machine's monotonic clock.

        Raises:
            RateLimitError: Too many have come.
        """
        if per_minute is None:
            return
        now, interval = time.monotonic() if now is None else now, _MINUTE_S / per_minute
        with self._locked():
            at, full_at = self._find(key.encode(), now)
            wait = full_at + interval - now - _MINUTE_S
            if wait > _ROUNDING_S:
                raise RateLimitError(f"the key {key} may send {per_minute:,} requests a minute", max(1, math.ceil(wait)))
            _ENTRY.pack_into(self._memory, at, key.encode(), full_at + interval)

    def _find(self, key: bytes, now: float) -> tuple[int, float]:
        """Where the bucket of a key lies and when it is full: its own, else one that is free or full already."""
        free: int | None = None
        for at in range(0, len(self._memory), _ENTRY.size):
            found, full_at = _ENTRY.unpack_from(self._memory, at)
            name, counts = found.rstrip(b"\0"), now < full_at <= now + _MINUTE_S + _ROUNDING_S  # else full, or of an earlier start
            if name == key:
                return at, full_at if counts else now
            if free is None and not counts:
                free = at
            if not name:
                break
        if free is None:
            raise RateLimitError("more keys than this service can count are sending requests", 1)
        return free, now

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._file is None:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
