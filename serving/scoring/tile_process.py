"""A process that cuts large images, so that an image that ends it costs one row; seen from the run, and from inside.

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
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

import serving
from hqtl_common.errors import ImageDecodeError
from hqtl_common.specs import PreprocessSpec
from hqtl_common.tiles import TileGrid
from serving.errors import NotReadyError
from serving.scoring.answers import Failure
from serving.scoring.pipeline import failure_of
from serving.scoring.tile_pixels import Cut, grid_of, tile_batches

__all__ = ["TileProcess", "main"]

F32 = NDArray[np.float32]

_FRAME = struct.Struct("<BQ")  # kind, length of what follows in bytes
_READY, _PIXELS, _GRID, _FAILURE = range(4)


class TileProcess:
    """Cuts images in another process, which is started again after an image has ended it.

    Args:
        cut: How images are cut.
    """

    def __init__(self, cut: Cut) -> None:
        self._cut = cut
        self._process: subprocess.Popen[bytes] | None = None

    def batches(self, full: str, path: bytes) -> Generator[F32, None, TileGrid | Failure]:
        """Pixels of the tiles; returns where they lie, or why there are none.

        Args:
            full: The file.
            path: Its relative path, for messages.

        Raises:
            NotReadyError: The process does not start.
        """
        process, whole = self._ask({"full": full, "path": path.hex()}), False
        try:
            while (frame := _receive(_out(process))) is not None:
                kind, body = frame
                if kind == _PIXELS:
                    size = self._cut.spec.size
                    yield np.frombuffer(body, np.float32).reshape(-1, 3, size, size)
                    continue
                whole = True
                one, other = json.loads(body)
                return grid_of(one, other, self._cut.size, self._cut.stride) if kind == _GRID else Failure(one, other)
            return Failure(ImageDecodeError.__name__, f"the image could not be decoded: the decoder died of it ({_why(process)})")
        finally:
            if not whole:
                self.close()

    def close(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            self._process = None
            process.kill()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
            process.wait()

    def _ask(self, request: dict[str, str]) -> subprocess.Popen[bytes]:
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
            env={**os.environ, "PYTHONPATH": str(Path(serving.__path__[0]).parent), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is the run's
        )
        if _receive(_out(process)) != (_READY, bytearray()):
            raise NotReadyError(f"the process that cuts images does not start ({_why(process)})")
        return process


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
        _answer(out, request["full"], bytes.fromhex(request["path"]), cut)


def _answer(out: BinaryIO, full: str, path: bytes, cut: Cut) -> None:
    batches = tile_batches(full, cut)
    while True:
        try:
            pixels = next(batches)
        except StopIteration as end:
            return _send(out, _GRID, json.dumps([end.value.width, end.value.height]).encode())
        except Exception as error:
            return _send(out, _FAILURE, json.dumps(dataclasses.astuple(failure_of(error, full, path))).encode())
        _send(out, _PIXELS, np.ascontiguousarray(pixels).data.cast("B"))


def _send(out: BinaryIO, kind: int, body: bytes | memoryview) -> None:
    out.write(_FRAME.pack(kind, len(body)))
    out.write(body)
    out.flush()


def _send_line(process: subprocess.Popen[bytes], request: dict[str, str]) -> None:
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
