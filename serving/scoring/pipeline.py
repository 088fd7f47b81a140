"""Files → what the head needs of them: decoded by threads a few batches ahead, the backbone per batch.

What is in memory does not depend on the number of files: the pixels of the batches ahead, and the angles of one chunk.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import InputError
from hqtl_common.preprocess import open_regular_file, preprocess, read_file
from hqtl_common.specs import PreprocessSpec
from hqtl_common.tiles import TileGrid
from serving.decoder import DecoderPool, Described, WholeImage
from serving.errors import NotReadyError
from serving.photo_header import header_of
from serving.scoring.ahead import read_ahead
from serving.scoring.answers import Duplicate, Facts, Failure, PartKind
from serving.scoring.facts import hash_of, with_header
from serving.scoring.failures import failure_of
from serving.scoring.heads import parts_of
from serving.scoring.listing import Batch
from serving.scoring.pieces import Unit, cut_pieces, unit_of
from serving.scoring.seen import Earlier
from serving.scoring.stacks import stack_kind
from serving.scoring.tiled import PictureReader
from serving.scoring.unscored import Unscored

__all__ = ["Decoded", "Decoder", "featurize_batches"]

F32 = NDArray[np.float32]

_AHEAD = 64  # parts of a stack that are read while others are computed


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels (3, S, S) of one file, or why there are none, or what its parts are, which are read later; and what it says about itself."""

    pixels: F32 | Failure | PartKind
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
            if self._spec.depth is None:
                with open_regular_file(full) as file:
                    if (kind := stack_kind(file, path)) is not None:
                        return Decoded(kind, Facts(hash_of(file)))
            data = read_file(full)
            facts = Facts(hash_of(data))
            if self._processes is not None and data:
                described: Described = self._processes.submit(data).result()
                facts = with_header(facts, described.header)
                found = described.found
                assert not isinstance(found, WholeImage)  # the job asks for pixels
                return Decoded(failure_of(found, full, path) if isinstance(found, InputError) else found, facts)
            facts = with_header(facts, header_of(data))
            return Decoded(preprocess(data, self._spec), facts)
        except NotReadyError:
            raise
        except Exception as error:
            return Decoded(failure_of(error, full, path), facts)


def featurize_batches(
    classifier: HybridClassifier,
    decoder: Decoder,
    reader: PictureReader,
    batches: Iterator[Batch],
    seen: Earlier,
    number: int,
    sizes: tuple[int, int],
    within: Callable[..., None] = lambda *_: None,
) -> Generator[Unscored, None, None]:
    """What the head needs, piece by piece, in order.

    Args:
        classifier: The backbone.
        decoder: Where pixels come from.
        reader: Where the parts of stacks come from.
        batches: What is to be scored; starts with the first batch of a chunk.
        seen: Which bytes were scored before.
        number: Of the first file.
        sizes: Pictures that go through the backbone together, and of one evaluation of the head.
        within: Told how many parts of a stack are read, and of which kind.

    Raises:
        OutputError: The file system refused.
    """

    def units() -> Iterator[Unit]:
        at = number
        with closing(decoder.stream(batches)) as decoded:
            for batch, files in decoded:
                firsts = [seen.first(file.facts.sha256, at + index) for index, file in enumerate(files)]
                at += len(files)
                for place, (file, first) in enumerate(zip(files, firsts, strict=True)):
                    if first is not None:
                        yield unit_of(batch, place, file.facts, Duplicate(first))
                    elif isinstance(file.pixels, str):
                        yield from _parts(reader, batch, place, file.pixels, file.facts, sizes[0], within)
                    else:
                        yield unit_of(batch, place, file.facts, file.pixels)

    yield from cut_pieces(_featurized(classifier, units(), *sizes), sizes[1])


def _parts(
    reader: PictureReader, batch: Batch, place: int, kind: PartKind, facts: Facts, batch_size: int, within: Callable[..., None]
) -> Iterator[Unit]:
    """The parts of a stack, each with its pixels."""
    pixels: list[F32] = []  # of the picture that ends next
    parts = reader.pictures(batch.paths[place], kind, facts, 0 if place else batch.part)
    with closing(read_ahead(parts, min(2 * batch_size, _AHEAD))) as items:
        for item in items:
            if isinstance(item, np.ndarray):
                pixels = [item[0]]
                continue
            found = pixels[0] if isinstance(item.found, TileGrid) else item.found
            yield unit_of(batch, place, item.facts, found, stack=item.stack)
            within(0 if item.stack is None else item.stack.number + 1, kind)


def _featurized(classifier: HybridClassifier, units: Iterator[Unit], batch_size: int, chunk_size: int) -> Iterator[Unit]:
    """The same pictures after the backbone; the batches do not depend on where a run began."""
    held: list[Unit] = []
    count = 0
    for unit in units:
        held.append(unit)
        count += 1
        ends_piece = unit.ends_chunk or count == chunk_size
        if ends_piece or len(held) == batch_size:
            yield from _computed(classifier, held)
            held = []
        count = 0 if ends_piece else count


def _computed(classifier: HybridClassifier, units: list[Unit]) -> Iterator[Unit]:
    pixels = [unit.item for unit in units if isinstance(unit.item, np.ndarray)]
    parts = iter(parts_of(classifier, np.stack(pixels)) if pixels else [])
    return (dataclasses.replace(unit, item=None, parts=(next(parts),)) if isinstance(unit.item, np.ndarray) else unit for unit in units)


def _collected(entry: tuple[Batch, list[Future[Decoded]]]) -> tuple[Batch, list[Decoded]]:
    batch, futures = entry
    return batch, [future.result() for future in futures]
