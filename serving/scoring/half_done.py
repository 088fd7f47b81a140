"""``half.bin``: what the head needs of the tiles of the image in work, so that a kill inside a huge one does not begin it again."""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from serving.scoring.heads import Part
from serving.scoring.storage import open_at, output_errors, write_all

__all__ = ["Begun", "HalfDone"]

_NAME = "half.bin"
_SECONDS = 5.0  # between two writes: an image that takes less leaves nothing
_HEAD = struct.Struct("<8s32s")  # what it is, SHA-256 of the image
_FRAME = struct.Struct("<IIII")  # tiles, numbers per tile, whether the last one is the familiarity, CRC-32 of the numbers
_MAGIC = b"hqtl-hd1"


@dataclass(frozen=True, slots=True)
class Begun:
    """An image begins.

    Args:
        sha256: Of its bytes, hexadecimal; None: nothing of it is kept.
        parts: Of its first tiles, from an earlier run.
        end: Where the file stands behind them, bytes.
    """

    sha256: str | None
    parts: tuple[Part, ...] = ()
    end: int = 0


class HalfDone:
    """Keeps the tiles of one image at a time, in whole batches: the next image takes its place.

    Every write is checked by a sum, so that one that was cut off or never reached the disk counts as not made.

    Args:
        out: The output folder; None keeps nothing.
    """

    def __init__(self, out: Path | None) -> None:
        self._path = None if out is None else out / _NAME
        self._image = Begun(None)
        self._pending: list[Part] = []
        self._written = 0.0

    def find(self, sha256: str | None) -> Begun:
        """What an earlier run kept of an image.

        Args:
            sha256: Of its bytes, hexadecimal.
        """
        if self._path is None or sha256 is None:
            return Begun(None)
        try:
            data = self._path.read_bytes()
        except OSError:
            data = b""
        if data[: _HEAD.size] != _head(sha256):
            return Begun(sha256)
        parts: list[Part] = []
        end = _HEAD.size
        for found, behind in _frames(data):
            parts += found
            end = behind
        return Begun(sha256, tuple(parts), end)

    def begin(self, image: Begun) -> None:
        """This image is in work now."""
        self._image, self._pending, self._written = image, [], time.monotonic()

    def add(self, parts: Sequence[Part]) -> None:
        """One more batch of its tiles.

        Raises:
            OutputError: The file system refused.
        """
        if self._image.sha256 is None:
            return
        self._pending += parts
        if time.monotonic() - self._written >= _SECONDS:
            self._write()

    def keep(self) -> None:
        """Write what there is, since the run is about to stop.

        Raises:
            OutputError: The file system refused.
        """
        if self._pending:
            self._write()

    def end(self) -> None:
        """All its tiles are there; what was kept stays until another image takes its place, since its row is not written yet.

        Raises:
            OutputError: The file system refused.
        """
        if self._image.end:
            self.keep()
        self._image, self._pending = Begun(None), []

    def remove(self) -> None:
        """Nothing is in work any more.

        Raises:
            OutputError: The file system refused.
        """
        if self._path is not None:
            with output_errors(self._path):
                self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        assert self._path is not None
        assert self._image.sha256 is not None
        data = (b"" if self._image.end else _head(self._image.sha256)) + _frame(self._pending)
        descriptor = open_at(self._path, self._image.end)
        try:
            with output_errors(self._path):
                write_all(descriptor, data)
        finally:
            os.close(descriptor)
        self._image = Begun(self._image.sha256, (), self._image.end + len(data))
        self._pending, self._written = [], time.monotonic()


def _head(sha256: str) -> bytes:
    return _HEAD.pack(_MAGIC, bytes.fromhex(sha256))


def _frame(parts: Sequence[Part]) -> bytes:
    known = parts[0].familiarity is not None
    values = [part.angles if part.familiarity is None else np.append(part.angles, part.familiarity) for part in parts]
    numbers = np.asarray(values, dtype="<f4")
    data = numbers.tobytes()
    return _FRAME.pack(len(parts), numbers.shape[1], known, zlib.crc32(data)) + data


def _frames(data: bytes) -> Iterator[tuple[list[Part], int]]:
    """The parts of each whole write, and where the file stands behind it."""
    at = _HEAD.size
    while at + _FRAME.size <= len(data):
        count, width, known, checksum = _FRAME.unpack_from(data, at)
        start, at = at + _FRAME.size, at + _FRAME.size + 4 * count * width
        if at > len(data) or zlib.crc32(data[start:at]) != checksum:
            return
        numbers = np.frombuffer(data, "<f4", count * width, start).reshape(count, width).astype(np.float32)
        angles = numbers[:, : width - known]
        yield [Part(row, numbers[index, -1] if known else None) for index, row in enumerate(angles)], at
