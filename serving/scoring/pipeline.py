"""Files → answers: decoded by threads a few batches ahead, the backbone per batch, the head once per chunk.

What is in memory does not depend on the number of files: the pixels of the batches ahead, and the angles of one chunk.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import HqtlError, ImageDecodeError
from hqtl_common.preprocess import preprocess, read_file
from hqtl_common.specs import PreprocessSpec
from serving.decoder import DecoderPool
from serving.errors import NotReadyError
from serving.scoring.answers import Answer, Duplicate, Facts, Failure, ScoredChunk
from serving.scoring.facts import facts_of
from serving.scoring.heads import HeadRunner, Part, parts_of
from serving.scoring.listing import Batch
from serving.scoring.seen import Seen

__all__ = ["Decoded", "Decoder", "failure_of", "score_batches"]

F32 = NDArray[np.float32]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object, in a message: differs from run to run


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels (3, S, S) of one file, or why there are none, and what the file says about itself."""

    pixels: F32 | Failure
    facts: Facts


class Decoder:
    """A pool of threads that reads files and makes pixels of them; use it as a context manager.

    Pillow and NumPy let other threads run while they work, so threads use several cores.

    Args:
        folder: What the paths are relative to.
        spec: The preprocessing.
        workers: Number of threads.
        pool: Processes that decode in their place, as many as threads: an image that ends one costs only its own row.
    """

    def __init__(self, folder: Path, spec: PreprocessSpec, workers: int, pool: DecoderPool | None = None) -> None:
        self._folder = os.fsencode(folder)
        self._spec = spec
        self._workers = workers
        self._processes = pool
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def stream(self, batches: Iterator[Batch]) -> Generator[tuple[Batch, list[Decoded]], None, None]:
        """Each batch with its files decoded, in order; the next ones are being decoded meanwhile."""
        ahead: deque[tuple[Batch, list[Future[Decoded]]]] = deque()
        for batch in batches:
            ahead.append((batch, [self._pool.submit(self.decode, path) for path in batch.paths]))
            if len(ahead) > 1 + max(1, -(-2 * self._workers // len(batch.paths))):
                yield _collected(ahead.popleft())
        while ahead:
            yield _collected(ahead.popleft())

    def decode(self, path: bytes) -> Decoded:
        """One file; no exception, whatever the file holds.

        Raises:
            NotReadyError: The processes that decode do not answer.
        """
        full = os.fsdecode(self._folder + b"/" + path)
        facts = Facts()
        try:
            data = read_file(full)
            facts = facts_of(data)
            pixels = self._processes.submit(data).result() if self._processes and data else preprocess(data, self._spec)
            return Decoded(pixels, facts)
        except NotReadyError:
            raise
        except Exception as error:
            return Decoded(failure_of(error, full, path), facts)


def failure_of(error: Exception, full: str, path: bytes) -> Failure:
    """The failure that an error while reading a file becomes; the same in every run.

    Args:
        error: What was raised.
        full: The file's path as it was opened; the message names it by ``path``.
        path: Relative path.
    """
    if isinstance(error, HqtlError):
        return Failure(type(error).__name__, _ADDRESS.sub("", str(error).replace(repr(full), repr(os.fsdecode(path)))))
    return Failure(ImageDecodeError.__name__, _ADDRESS.sub("", f"the image cannot be decoded: {type(error).__name__}: {error}"))


def score_batches(
    runner: HeadRunner, decoder: Decoder, batches: Iterator[Batch], seen: Seen, number: int
) -> Generator[ScoredChunk, None, None]:
    """Answers chunk by chunk, in order.

    Args:
        runner: What runs the head.
        decoder: Where pixels come from.
        batches: What is to be scored; starts with the first batch of a chunk.
        seen: Which bytes were scored before.
        number: Of the first file.

    Raises:
        BackendError: The head could not be run.
        OutputError: The file system refused.
    """
    paths: list[bytes] = []
    items: list[Part | Failure | Duplicate] = []
    facts: list[Facts] = []
    with closing(decoder.stream(batches)) as decoded:
        for batch, files in decoded:
            firsts = [seen.first(file.facts.sha256, number + index) for index, file in enumerate(files)]
            number += len(files)
            paths += batch.paths
            facts += [file.facts for file in files]
            items += _featurized(runner, files, firsts)
            if batch.ends_chunk:
                found, execution, refined = runner.run([item for item in items if isinstance(item, Part)], batch.chunk)
                predictions = iter(found)
                answers: list[Answer] = [next(predictions) if isinstance(item, Part) else item for item in items]
                yield ScoredChunk(tuple(paths), tuple(answers), execution, batch.listing_end, tuple(facts), refined=refined)
                paths, items, facts = [], [], []


def _featurized(runner: HeadRunner, files: list[Decoded], firsts: list[int | None]) -> list[Part | Failure | Duplicate]:
    items = [file.pixels if first is None else Duplicate(first) for file, first in zip(files, firsts, strict=True)]
    pixels = [item for item in items if isinstance(item, np.ndarray)]
    parts = iter(parts_of(runner.classifier, np.stack(pixels)) if pixels else [])
    return [next(parts) if isinstance(item, np.ndarray) else item for item in items]


def _collected(entry: tuple[Batch, list[Future[Decoded]]]) -> tuple[Batch, list[Decoded]]:
    batch, futures = entry
    return batch, [future.result() for future in futures]
