"""Files → answers: decoded by threads a few batches ahead, the backbone per batch, the head once per chunk.

What is in memory does not depend on the number of files: the pixels of the batches ahead, and the angles of one chunk.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import HqtlError, ImageDecodeError
from hqtl_common.preprocess import preprocess, read_file
from hqtl_common.records import ExecutionRecord, InferenceBatch, Prediction
from hqtl_common.specs import PreprocessSpec
from serving.scoring.listing import Batch

__all__ = ["Answer", "Decoder", "Failure", "ScoredChunk", "score_batches"]

F32 = NDArray[np.float32]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object, in a message: differs from run to run


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one file has no answer: the name of the error's class, and its message."""

    code: str
    message: str


Answer = Prediction | Failure


@dataclass(frozen=True, slots=True)
class ScoredChunk:
    """The files of one evaluation of the head.

    Args:
        paths: Relative paths.
        answers: One per path.
        execution: What ran the head; None where no file of the chunk could be read.
        listing_end: Where the chunk ends in the list, bytes.
    """

    paths: tuple[bytes, ...]
    answers: tuple[Answer, ...]
    execution: ExecutionRecord | None
    listing_end: int


class Decoder:
    """A pool of threads that reads files and makes pixels of them; use it as a context manager.

    Pillow and NumPy let other threads run while they work, so threads use several cores.

    Args:
        folder: What the paths are relative to.
        spec: The preprocessing.
        workers: Number of threads.
    """

    def __init__(self, folder: Path, spec: PreprocessSpec, workers: int) -> None:
        self._folder = os.fsencode(folder)
        self._spec = spec
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stream(self, batches: Iterator[Batch]) -> Generator[tuple[Batch, list[F32 | Failure]], None, None]:
        """Each batch with the pixels (3, S, S) of its files, in order; the next ones are being decoded meanwhile."""
        ahead: deque[tuple[Batch, list[Future[F32 | Failure]]]] = deque()
        for batch in batches:
            ahead.append((batch, [self._pool.submit(self.decode, path) for path in batch.paths]))
            if len(ahead) > 1 + max(1, -(-2 * self._workers // len(batch.paths))):
                yield _collected(ahead.popleft())
        while ahead:
            yield _collected(ahead.popleft())

    def decode(self, path: bytes) -> F32 | Failure:
        """Pixels (3, S, S) of one file, or why there are none; never an exception, whatever the file holds."""
        full = os.fsdecode(self._folder + b"/" + path)
        try:
            return preprocess(read_file(full), self._spec)
        except HqtlError as error:
            return Failure(type(error).__name__, _stable(str(error).replace(repr(full), repr(os.fsdecode(path)))))
        except Exception as error:
            return Failure(ImageDecodeError.__name__, _stable(f"the image cannot be decoded: {type(error).__name__}: {error}"))


def score_batches(
    classifier: HybridClassifier, decoder: Decoder, batches: Iterator[Batch], max_shots: int | None = None
) -> Generator[ScoredChunk, None, None]:
    """Answers chunk by chunk, in order.

    Args:
        classifier: Bundle and backend.
        decoder: Where pixels come from.
        batches: What is to be scored; starts with the first batch of a chunk.
        max_shots: See :meth:`hqtl_common.classifier.HybridClassifier.run`.

    Raises:
        BackendError: The head could not be run.
    """
    paths: list[bytes] = []
    parts: list[F32 | Failure] = []  # (E,) angles per file
    with closing(decoder.stream(batches)) as decoded:
        for batch, pixels in decoded:
            paths += batch.paths
            parts += _angles(classifier, pixels)
            if batch.ends_chunk:
                answers, execution = _run_head(classifier, parts, batch.chunk, max_shots)
                yield ScoredChunk(tuple(paths), answers, execution, batch.listing_end)
                paths, parts = [], []


def _angles(classifier: HybridClassifier, pixels: Sequence[F32 | Failure]) -> list[F32 | Failure]:
    usable = [item for item in pixels if not isinstance(item, Failure)]
    if not usable:
        return list(pixels)
    angles = classifier.featurize(InferenceBatch(pixels=np.stack(usable))).angles
    assert angles is not None
    return _refill(pixels, iter(angles))


def _run_head(
    classifier: HybridClassifier, parts: Sequence[F32 | Failure], chunk: int, max_shots: int | None
) -> tuple[tuple[Answer, ...], ExecutionRecord | None]:
    usable = [item for item in parts if not isinstance(item, Failure)]
    if not usable:
        return tuple(item for item in parts if isinstance(item, Failure)), None
    result = classifier.run(InferenceBatch(angles=np.stack(usable)), stream=chunk, max_shots=max_shots)
    predictions = iter(result.predictions())
    return tuple(item if isinstance(item, Failure) else next(predictions) for item in parts), result.execution


def _refill(items: Sequence[F32 | Failure], results: Iterator[F32]) -> list[F32 | Failure]:
    return [item if isinstance(item, Failure) else next(results) for item in items]


def _collected(entry: tuple[Batch, list[Future[F32 | Failure]]]) -> tuple[Batch, list[F32 | Failure]]:
    batch, futures = entry
    return batch, [future.result() for future in futures]


def _stable(message: str) -> str:
    return _ADDRESS.sub("", message)
