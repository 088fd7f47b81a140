"""Large images → answers: read window by window a few batches ahead, all tiles of an image in one evaluation of the head.

What is in memory does not depend on the size of a TIFF: the pixels of a few batches of tiles, and the angles of one chunk.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.preprocess import open_regular_file
from hqtl_common.records import Prediction
from hqtl_common.tiles import TileGrid
from serving.errors import ServiceError
from serving.scoring.answers import Answer, Duplicate, Facts, Failure, ScoredChunk, Tiled
from serving.scoring.facts import facts_of
from serving.scoring.heads import HeadRunner, Part, parts_of
from serving.scoring.listing import Batch
from serving.scoring.pipeline import failure_of
from serving.scoring.seen import Seen
from serving.scoring.tile_pixels import Cut, tile_batches
from serving.scoring.tile_process import TileProcess

__all__ = ["TileReader", "deciding_tile", "score_tiled"]

F32 = NDArray[np.float32]

_AHEAD = 3  # batches of tiles that are read while others are computed


@dataclass(frozen=True, slots=True)
class _ImageEnd:
    """One image is read: its tiles, or why there are none."""

    path: bytes
    facts: Facts
    grid: TileGrid | Failure | Duplicate
    stride: int


class TileReader:
    """Cuts the files of batches into tiles; use it as a context manager.

    Args:
        folder: What the paths are relative to.
        cut: How images are cut.
        seen: Which bytes were scored before.
        number: Of the first file.
        isolated: Cut in another process, so that an image that ends it costs only its own row.
    """

    def __init__(self, folder: Path, cut: Cut, seen: Seen, number: int, *, isolated: bool = False) -> None:
        self._folder = os.fsencode(folder)
        self._cut, self._seen, self._number = cut, seen, number
        self._process = TileProcess(cut) if isolated else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process is not None:
            self._process.close()

    def stream(self, batches: Iterator[Batch]) -> Generator[F32 | _ImageEnd | Batch, None, None]:
        """Pixels (B, 3, S, S) of the tiles of an image, then its end, and after the last image of a batch the batch."""
        for batch in batches:
            for path in batch.paths:
                yield (yield from self._read(path))
                self._number += 1
            yield batch

    def _read(self, path: bytes) -> Generator[F32, None, _ImageEnd]:
        full, facts, stride = os.fsdecode(self._folder + b"/" + path), Facts(), self._cut.stride
        try:
            with open_regular_file(full) as file:
                facts = facts_of(file)
            if (first := self._seen.first(facts.sha256, self._number)) is not None:
                return _ImageEnd(path, facts, Duplicate(first), stride)
            found = yield from (tile_batches(full, self._cut) if self._process is None else self._process.batches(full, path))
        except ServiceError:  # of the results or the process, not of the image
            raise
        except Exception as error:
            found = failure_of(error, full, path)
        if isinstance(found, TileGrid):
            facts = dataclasses.replace(facts, width=found.width, height=found.height)
        return _ImageEnd(path, facts, found, stride)


def score_tiled(
    runner: HeadRunner,
    reader: TileReader,
    batches: Iterator[Batch],
    positive: str,
    quantile: float,
    should_stop: Callable[[], bool] = lambda: False,
    within: Callable[[int], None] = lambda _: None,
) -> Generator[ScoredChunk, None, None]:
    """Answers chunk by chunk, in order.

    Args:
        runner: What runs the head.
        reader: Where tiles come from.
        batches: What is to be scored; starts with the first batch of a chunk.
        positive: The positive label.
        quantile: See :func:`deciding_tile`.
        should_stop: Asked after every batch of tiles; True ends it, and the images of the chunk are begun again on resume.
        within: Told how many tiles of an image are done.

    Raises:
        BackendError: The head could not be run.
        OutputError: The file system refused.
    """
    images: list[_ImageEnd] = []
    parts: list[Part] = []
    current: list[Part] = []
    with closing(_read_ahead(reader.stream(batches))) as items:
        for item in items:
            if should_stop():
                return
            if isinstance(item, np.ndarray):
                current += parts_of(runner.classifier, item)
                within(len(current))
            elif isinstance(item, _ImageEnd):
                images.append(item)
                parts += current if isinstance(item.grid, TileGrid) else []
                current = []
            elif item.ends_chunk:
                yield _scored(runner, images, parts, item, positive, quantile)
                images, parts = [], []


def deciding_tile(scores: Sequence[float], quantile: float) -> int:
    """The tile whose answer is that of the image: the one at a quantile of the positive label's probability.

    Args:
        scores: Probability of the positive label per tile.
        quantile: 1 is the most probable tile, 0.99 leaves one in a hundred above; of equal ones the first.
    """
    order = sorted(range(len(scores)), key=lambda index: (scores[index], -index))
    return order[max(0, int(np.ceil(quantile * len(order))) - 1)]


def _scored(
    runner: HeadRunner, images: Sequence[_ImageEnd], parts: Sequence[Part], batch: Batch, positive: str, quantile: float
) -> ScoredChunk:
    found, execution, refined = runner.run(parts, batch.chunk)
    predictions = iter(found)
    answers: list[Answer] = []
    tiled: list[Tiled | None] = []
    for image in images:
        if not isinstance(image.grid, TileGrid):
            answers.append(image.grid)
            tiled.append(None)
            continue
        tiles = tuple(islice(predictions, len(image.grid)))
        deciding = deciding_tile([tile.probabilities[positive] for tile in tiles], quantile)
        answers.append(_image_answer(tiles, deciding))
        tiled.append(Tiled(image.grid, image.stride, tiles, deciding))
    paths, facts = (tuple(getattr(image, name) for image in images) for name in ("path", "facts"))
    return ScoredChunk(paths, tuple(answers), execution, batch.listing_end, facts, tuple(tiled), refined)


def _image_answer(tiles: Sequence[Prediction], deciding: int) -> Prediction:
    """The deciding tile's answer; unfamiliar also where most of the tiles are."""
    most = 2 * sum(tile.unfamiliar for tile in tiles) > len(tiles)
    return dataclasses.replace(tiles[deciding], unfamiliar=most or tiles[deciding].unfamiliar)


def _read_ahead(items: Generator[F32 | _ImageEnd | Batch, None, None]) -> Generator[F32 | _ImageEnd | Batch, None, None]:
    """The same items, the next ones made by another thread meanwhile."""
    with closing(items), ThreadPoolExecutor(1, thread_name_prefix="tiles") as pool:
        ahead: deque[Future[F32 | _ImageEnd | Batch | None]] = deque(pool.submit(next, items, None) for _ in range(_AHEAD))
        try:
            while (item := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(next, items, None))
                yield item
        finally:
            for future in ahead:
                future.cancel()
            with suppress(Exception):
                pool.shutdown(wait=True)
