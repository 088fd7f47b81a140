"""A process that takes stacks to pieces and cuts large images, so that one that ends it costs no more than its own rows.
Seen from the run, and from inside.

Started as ``python -m serving.scoring.tile_process``. Requests are lines of JSON, answers are frames of a fixed form; nothing is
ever unpickled. It ends when the run closes it, or is gone.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import warnings
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

import serving
from hqtl_common.errors import ImageDecodeError
from hqtl_common.specs import PreprocessSpec
from serving.errors import NotReadyError
from serving.photo_header import PhotoHeader
from serving.scoring.answers import Failure, PartKind, StackPart
from serving.scoring.tile_pixels import Cut, PictureEnd, PictureItem, grid_of, picture_items

__all__ = ["TileProcess", "main"]

F32 = NDArray[np.float32]

_KEPT = ("LANG", "LC_ALL", "PATH", "LD_LIBRARY_PATH", "TZ", "TMPDIR")  # of our environment; no key or token goes to a decoder
_SET = {"PYTHONPATH": str(Path(serving.__path__[0]).parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_OVERTIME = signal.SIGPROF
_COMPUTING_S = 600.0  # between two frames of an answer, of the processor and not of the clock, so that a busy machine gives the same rows
_FRAME = struct.Struct("<BQ")  # kind, length of what follows in bytes
_READY, _HEADER, _PART, _PIXELS, _GRID, _FAILURE, _END = range(7)


class TileProcess:
    """Cuts images in another process, which is started again after an image has ended it.

    Args:
        cut: How images are cut.
    """

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._process: subprocess.Popen[bytes] | None = None

    def pictures(
        self, full: str, path: bytes, kind: PartKind | None = None, start: int = 0, skip: int = 0
    ) -> Generator[PictureItem, None, None]:
        """What :func:`serving.scoring.tile_pixels.picture_items` gives; where a picture ends the process, that is its end and the file's.

        Args:
            full: The file.
            path: Its relative path, for messages.
            kind: What its parts are; None for a file of one picture.
            start: How many of its pictures are left out.
            skip: How many tiles of a file of one picture are left out.

        Raises:
            NotReadyError: The process does not start.
        """
        process = self._ask({"full": full, "path": path.hex(), "kind": kind, "start": start, "skip": skip})
        part: StackPart | None = None
        done, whole = False, False
        try:
            while (frame := _receive(_out(process))) is not None:
                if frame[0] == _END:
                    whole = True
                    return
                item = self._item(part, *frame)
                part = item if isinstance(item, StackPart) else part
                done = isinstance(item, PictureEnd)
                yield item
            if not done or (part is not None and not part.ends):
                why = _why(process)
                why = f"it took more than {_COMPUTING_S:g} s" if why == _OVERTIME.name else f"the decoder died of it ({why})"
                yield PictureEnd(_last(part, done), Failure(ImageDecodeError.__name__, f"the image could not be decoded: {why}"))
        finally:
            if not whole:
                self.close()

    def _item(self, part: StackPart | None, kind: int, body: bytearray) -> PictureItem:
        if kind == _PIXELS:
            size = self._cut.spec.size
            return np.frombuffer(body, np.float32).reshape(-1, 3, size, size)
        values = json.loads(body)
        if kind == _HEADER:
            return PhotoHeader(*values)
        if kind == _PART:
            return StackPart(*values)
        if kind == _GRID:
            return PictureEnd(part, grid_of(values[0], values[1], self._cut.size, self._cut.stride))
        return PictureEnd(part, Failure(*values))

    def close(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()

    def _ask(self, request: dict[str, Any]) -> subprocess.Popen[bytes]:
        """The process, with a request; another one where somebody has ended it meanwhile."""
        process = self._process = self._process or self._start()
        try:
            _send_line(process, request)
        except BrokenPipeError:
            self.close()
            process = self._process = self._start()
            _send_line(process, request)
        return process

    def _start(self) -> subprocess.Popen[bytes]:
        job = {**dataclasses.asdict(self._cut), "spec": self._cut.spec.to_dict()}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serving.scoring.tile_process", json.dumps(job)],
            env={name: os.environ[name] for name in _KEPT if name in os.environ} | _SET,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the run's
        )
        if _receive(_out(process)) != (_READY, bytearray()):
            raise NotReadyError(f"the process that cuts images does not start ({_why(process)})")
        return process


def _last(part: StackPart | None, done: bool) -> StackPart | None:
    """The part that a file ends with whose decoder died: the one in work, or the unknown one after it."""
    if part is None:
        return None
    part = dataclasses.replace(part, index=None, time_s=None, number=part.number + 1) if done else part
    return dataclasses.replace(part, count=part.number + 1)


def main() -> None:
    """Cut what the requests name, until there are no more."""
    job = json.loads(sys.argv[1])
    cut = Cut(**{**job, "spec": PreprocessSpec.from_dict(job["spec"])})
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a decoder prints stays out of the frames
    _send(out, _READY, b"")
    for line in sys.stdin.buffer:
        request = json.loads(line)
        path = bytes.fromhex(request["path"])
        for item in _timed(picture_items(request["full"], path, request["kind"], cut, request["start"], request["skip"])):
            _send(out, *_framed(item))
        _send(out, _END, b"")


def _framed(item: PictureItem) -> tuple[int, bytes | memoryview]:
    if isinstance(item, np.ndarray):
        return _PIXELS, np.ascontiguousarray(item).data.cast("B")
    if isinstance(item, PhotoHeader):
        return _HEADER, item.to_text().encode("ascii")
    if isinstance(item, StackPart):
        return _PART, json.dumps(dataclasses.astuple(item)).encode()
    if isinstance(item.found, Failure):
        return _FAILURE, json.dumps(dataclasses.astuple(item.found)).encode()
    return _GRID, json.dumps([item.found.width, item.found.height]).encode()


def _timed(items: Iterator[PictureItem]) -> Iterator[PictureItem]:
    """The same items; the process ends where one of them takes too long."""
    while True:
        signal.setitimer(signal.ITIMER_PROF, _COMPUTING_S)
        item = next(items, None)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if item is None:
            return
        yield item


def _send(out: BinaryIO, kind: int, body: bytes | memoryview) -> None:
    out.write(_FRAME.pack(kind, len(body)))
    out.write(body)
    out.flush()


def _send_line(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(request).encode("ascii") + b"\n")


def _out(process: subprocess.Popen[bytes]) -> BinaryIO:
    assert process.stdout is not None
    return process.stdout  # type: ignore[return-value]


def _receive(stream: BinaryIO) -> tuple[int, bytearray] | None:
    """The next frame, None where the process has ended."""
    head = _exactly(stream, _FRAME.size)
    if head is None:
        return None
    kind, length = _FRAME.unpack(head)
    body = _exactly(stream, length)
    return None if body is None else (kind, body)


def _exactly(stream: BinaryIO, length: int) -> bytearray | None:
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        read = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not read:
            return None
        done += read
    return data


def _why(process: subprocess.Popen[bytes]) -> str:
    code = process.wait()
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    main()
