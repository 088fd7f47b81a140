"""A small pool of processes that decode uploads (:mod:`serving.decoder_process`), seen from the service.

A crash, a hang or a lack of memory costs the one image that caused it: the nursery puts a new child in the place of the dead
one. The service itself starts a process only when it starts, or when somebody has killed the nursery.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import mmap
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import serving
from hqtl_common.errors import ImageDecodeError, InputError, UnknownImageFormatError
from hqtl_common.georeference import GeoReference
from serving.decoder_process import DAMAGED, DIED, OK, REPLY, REQUEST, TOO_LARGE, UNKNOWN, Job
from serving.errors import NotReadyError, TooLargeError
from serving.photo_header import PhotoHeader

__all__ = ["DecoderPool", "Described", "WholeImage"]

logger = logging.getLogger("hqtl.decoder")

F32 = NDArray[np.float32]

_START_S = 60.0  # a cold start on a busy machine
_GRACE_S = 5.0  # a child ends itself in time; only a dead nursery makes anybody wait so long
_ERRORS: dict[int, type[InputError]] = {DAMAGED: ImageDecodeError, UNKNOWN: UnknownImageFormatError, TOO_LARGE: TooLargeError}
_KEPT = ("LANG", "LC_ALL", "PATH", "LD_LIBRARY_PATH", "TZ")  # of our environment; no key or token goes to a decoder


@dataclass(frozen=True, slots=True)
class WholeImage:
    """An upright image.

    Args:
        values: (H, W) or (H, W, 3) uint8, or (H, W) float32 in [0, 1].
        georeference: Where it lies on the ground, None where it does not say so.
    """

    values: NDArray[Any]
    georeference: GeoReference | None


@dataclass(frozen=True, slots=True)
class Described:
    """An image and what it says about itself.

    Args:
        found: What :meth:`DecoderPool.submit` gives without this, or the error that it raises.
        header: Empty where the image ended its process.
    """

    found: F32 | WholeImage | InputError
    header: PhotoHeader


class DecoderPool:
    """Decodes in ``workers`` processes.

    Args:
        job: Preprocessing and limits.
        workers: Processes, and threads here that wait for them.
        on_death: Called with the name of the signal whenever an image has ended a process.
    """

    def __init__(self, job: Job, workers: int, on_death: Callable[[str], None] = lambda _: None) -> None:
        self._job = job
        self._workers = workers
        self._on_death = on_death
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self._nursery = _Nursery(job, workers)
        for slot in self._nursery.slots:
            self._free.put(slot)

    @property
    def process_id(self) -> int:
        """Of the nursery."""
        return self._nursery.process.pid

    def submit(self, data: bytes | bytearray) -> Future[Any]:
        """One encoded image → pixels (3, S, S) float32, or a :class:`WholeImage` where the job says so; in the order of the calls.

        Where the job says so, it gives a :class:`Described` and raises only the last of these errors. The future raises:
            TooLargeError: Too many bytes or pixels, or too much memory.
            UnknownImageFormatError: No image of an allowed format.
            ImageDecodeError: Empty, damaged, not done in time, or the decoder died of it.
            NotReadyError: The processes do not answer, not even after a new start.
        """
        return self._threads.submit(self._decode, data)

    def wait_ready(self) -> None:
        """Wait until every process has decoded something.

        Raises:
            NotReadyError: They do not start.
        """
        slots = [self._free.get() for _ in range(self._workers)]
        try:
            for slot in slots:
                slot.exchange(b"", _START_S)
        except OSError as error:
            raise NotReadyError("the processes that decode images do not start") from error
        finally:
            for slot in slots:
                self._free.put(slot)

    def close(self) -> None:
        """Finish what has begun, then end the processes."""
        self._threads.shutdown(cancel_futures=True)
        with self._lock:
            self._closed = True
            self._nursery.close()

    def _decode(self, data: bytes | bytearray) -> F32 | WholeImage | Described:
        about: list[PhotoHeader] = []
        try:
            found = self._decoded(data, about)
        except InputError as error:
            if not self._job.described:
                raise
            return Described(error, about[0] if about else PhotoHeader())
        return Described(found, about[0]) if self._job.described else found

    def _decoded(self, data: bytes | bytearray, about: list[PhotoHeader]) -> F32 | WholeImage:
        if not data:
            raise ImageDecodeError("the file is empty")
        if len(data) > self._job.max_bytes:
            raise TooLargeError(f"the image has {len(data):,} bytes; the limit of this service is {self._job.max_bytes:,}")
        slot = self._free.get()
        try:
            try:
                code, text = slot.exchange(data, self._job.timeout_s + _GRACE_S)
            except OSError as error:
                slot = self._replace(slot, error)
                code, text = slot.exchange(data, _START_S)
            if self._job.described and code != DIED:
                header, _, text = text.partition("\n")
                about.append(PhotoHeader.from_text(header))
            if code == OK:
                return slot.take_whole(text) if self._job.whole else slot.pixels.copy()
        except OSError as error:
            raise NotReadyError("the processes that decode images do not answer") from error
        finally:
            self._free.put(slot)
        if code == DIED:
            self._on_death(text)
            why = f"it took more than {self._job.timeout_s:g} s" if text == "SIGALRM" else f"the decoder died of it ({text})"
            raise ImageDecodeError(f"the image could not be decoded: {why}")
        raise _ERRORS.get(code, ImageDecodeError)(text)

    def _replace(self, slot: _Slot, why: OSError) -> _Slot:
        """A slot of a nursery that lives, in place of one that does not answer."""
        with self._lock:
            if slot in self._nursery.slots and not self._closed:
                logger.error("the decoders do not answer and are started again: %s", why)
                self._nursery.close()
                self._nursery = _Nursery(self._job, self._workers)
            return next(new for new in self._nursery.slots if new.index == slot.index)


class _Nursery:
    """One start of the decoders: the process, and our ends of its slots."""

    def __init__(self, job: Job, workers: int) -> None:
        self.slots: list[_Slot] = []
        theirs: list[tuple[socket.socket, int]] = []
        try:
            for index in range(workers):
                ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                memory = os.memfd_create("hqtl-decoder")
                theirs.append((other, memory))
                os.ftruncate(memory, job.memory_size)
                self.slots.append(_Slot(index, ours, mmap.mmap(memory, job.memory_size), job))
            numbers = [(control.fileno(), memory) for control, memory in theirs]
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "serving.decoder_process", job.to_json(), json.dumps(numbers)],
                env={name: os.environ[name] for name in _KEPT if name in os.environ} | _package_path(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[number for pair in numbers for number in pair],
                start_new_session=True,
            )
        finally:
            for control, memory in theirs:
                control.close()
                os.close(memory)

    def close(self) -> None:
        """End the processes: each child ends when its slot closes, and the nursery with the last of them."""
        for slot in self.slots:
            with contextlib.suppress(OSError):
                slot.control.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits
            slot.control.close()
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, 9)
            self.process.wait()


class _Slot:
    """Our end of one child."""

    def __init__(self, index: int, control: socket.socket, memory: mmap.mmap, job: Job) -> None:
        self.index = index
        self.control = control
        self._memory = memory
        self._image_at, self._pixels_at = job.image_at, job.pixels_at
        self._number = 0
        if not job.whole:
            self.pixels: F32 = np.frombuffer(memory, np.float32, job.num_values, job.pixels_at).reshape(3, job.spec.size, job.spec.size)

    def exchange(self, data: bytes | bytearray, timeout_s: float) -> tuple[int, str]:
        """Let the child decode; the code and text of its reply, or of the nursery's if it died.

        Raises:
            OSError: Nobody answers.
        """
        self._number += 1
        self._memory[self._image_at : self._image_at + len(data)] = data
        self.control.settimeout(timeout_s)
        self.control.send(REQUEST.pack(self._number, len(data)))
        while True:
            reply = self.control.recv(4096)
            if len(reply) < REPLY.size:
                raise ConnectionError("the nursery has gone")
            number, code = REPLY.unpack_from(reply)
            if number == self._number:  # else it died after its last answer
                return code, reply[REPLY.size :].decode("utf-8", "replace")

    def take_whole(self, text: str) -> WholeImage:
        """A copy of the image that a child has described; the memory that it took is given back."""
        about = json.loads(text)
        shape, dtype = tuple(about["shape"]), np.dtype(about["dtype"])
        values = np.frombuffer(self._memory, dtype, math.prod(shape), self._pixels_at).reshape(shape).copy()
        self._memory.madvise(mmap.MADV_REMOVE)
        return WholeImage(values, GeoReference(tuple(about["transform"]), about["crs"]) if "transform" in about else None)


def _package_path() -> dict[str, str]:
    root = Path(serving.__path__[0]).parent
    return {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
