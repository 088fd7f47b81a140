"""The chunks of a run, scored in this process."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from types import TracebackType
from typing import Self

from hqtl_common.classifier import HybridClassifier
from hqtl_common.errors import HqtlError
from hqtl_common.preprocess import MAX_BYTES, MAX_PIXELS, open_regular_file
from hqtl_common.stages import available_cores
from serving.decoder import DecoderPool
from serving.decoder_process import Job
from serving.scoring.answers import ScoredChunk
from serving.scoring.facts import hash_of
from serving.scoring.half_done import HalfDone
from serving.scoring.heads import HeadRunner
from serving.scoring.listing import Batch
from serving.scoring.pipeline import Decoder, featurize_batches
from serving.scoring.run import Run, Where
from serving.scoring.seen import Earlier
from serving.scoring.tile_pixels import Cut
from serving.scoring.tile_process import TileProcess
from serving.scoring.tiled import PictureReader, TileReader, featurize_tiles
from serving.scoring.unscored import Unscored, scored

__all__ = ["Featurizer", "LocalEngine", "with_decoders"]

_DECODE_SECONDS = 600.0  # of one image; far beyond what any sound one takes, so that a busy machine gives the same rows


class LocalEngine:
    """See :class:`serving.scoring.engines.Engine`."""

    def check(self, where: Where) -> None:
        """See :class:`serving.scoring.engines.Engine`; nothing is needed."""

    def chunks(
        self, run: Run, runner: HeadRunner, batches: Iterator[Batch], seen: Earlier, files: int
    ) -> Generator[ScoredChunk, None, None]:
        """See :class:`serving.scoring.engines.Engine`."""
        with Featurizer(run, runner.classifier) as featurizer, closing(featurizer.chunks(batches, seen, files)) as chunks:
            for chunk in chunks:
                yield scored(runner, chunk, run.tile_rule)


class Featurizer:
    """Everything before the head: files are read, decoded, and go through the backbone; use it as a context manager.

    Args:
        run: What is scored and how.
        classifier: The backbone.
    """

    def __init__(self, run: Run, classifier: HybridClassifier) -> None:
        self._run, self._classifier = run, classifier
        self._workers = run.where.workers or available_cores()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        run, spec, options = self._run, self._run.bundle.preprocess, self._run.options
        cut = Cut(spec, options.tiles or 0, options.stride, options.batch_size, options.every)
        process = self._stack.enter_context(closing(TileProcess(cut))) if run.where.isolated else None  # starts when it is asked
        self._reader = PictureReader(run.folder, cut, process)
        self._pool = None
        if run.where.isolated and options.tiles is None and spec.depth is None:
            self._pool = run.pool or self._stack.enter_context(_decoders(run, self._workers))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def chunks(self, batches: Iterator[Batch], seen: Earlier, files: int) -> Generator[Unscored, None, None]:
        """What the head needs, chunk by chunk, in order.

        Args:
            batches: What is to be scored; starts with the first batch of a chunk.
            seen: Which bytes were scored before.
            files: Number of files before.

        Raises:
            OutputError: The file system refused.
            ServiceError: The processes that decode do not answer, or ``seen`` refuses.
        """
        run, sizes = self._run, (self._run.options.batch_size, self._run.options.chunk_size)
        if run.options.tiles is not None:
            half = HalfDone(run.out if run.where.engine == "local" else None)
            reader = TileReader(self._reader, seen, files, half)
            yield from featurize_tiles(self._classifier, reader, batches, sizes[1], half, run.should_stop, run.reporter.within)
            return
        with Decoder(run.folder, run.bundle.preprocess, self._workers, self._pool) as decoder:
            yield from featurize_batches(self._classifier, decoder, self._reader, batches, seen, files, sizes, run.reporter.within)

    def hash_of(self, path: bytes) -> str | None:
        """SHA-256 of the bytes of a file, by which duplicates are known; None where it cannot be read.

        Args:
            path: Relative path.
        """
        full = self._full(path)
        with suppress(HqtlError, OSError), open_regular_file(full) as file:
            return hash_of(file)
        return None

    def exists(self, path: bytes) -> bool:
        """Whether there is anything at a relative path, whatever it is."""
        return os.path.lexists(self._full(path))

    def _full(self, path: bytes) -> str:
        return os.fsdecode(os.fsencode(self._run.folder) + b"/" + path)


@contextmanager
def with_decoders(run: Run) -> Iterator[Run]:
    """The run with the processes that decode, so that they start while the model is loaded; as it is where it needs none."""
    if run.where.engine != "local" or not run.where.isolated or run.options.tiles is not None or run.bundle.preprocess.depth is not None:
        yield run
        return
    with _decoders(run, run.where.workers or available_cores()) as pool:
        yield dataclasses.replace(run, pool=pool)


@contextmanager
def _decoders(run: Run, workers: int) -> Iterator[DecoderPool | None]:
    """Processes that decode; None, and a note, where the system does not grant them."""
    try:
        pool = DecoderPool(Job(run.bundle.preprocess, MAX_BYTES, MAX_PIXELS, _DECODE_SECONDS, described=True), workers)
    except OSError as error:
        run.reporter.note(f"images are decoded in this process, which a broken one may end: {error.strerror}")
        yield None
        return
    with closing(pool):
        yield pool
