"""Large images and stacks → what the head needs of their pictures: read window by window a few batches ahead.

What is in memory does not depend on the size of a TIFF or the length of a video: the pixels of a few batches, and the angles of
one piece.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hqtl_common.classifier import HybridClassifier
from hqtl_common.preprocess import open_regular_file
from hqtl_common.tiles import TileGrid
from serving.photo_header import PhotoHeader
from serving.scoring.ahead import read_ahead
from serving.scoring.answers import Duplicate, Facts, Failure, PartKind, StackPart
from serving.scoring.facts import hash_of, with_header
from serving.scoring.failures import failure_of
from serving.scoring.half_done import Begun, HalfDone
from serving.scoring.heads import Part, parts_of
from serving.scoring.listing import Batch
from serving.scoring.pieces import Unit, cut_pieces, unit_of
from serving.scoring.seen import Earlier
from serving.scoring.stacks import stack_kind
from serving.scoring.tile_pixels import Cut, PictureEnd, picture_items
from serving.scoring.tile_process import TileProcess
from serving.scoring.unscored import Unscored

__all__ = ["Picture", "PictureReader", "TileReader", "featurize_tiles"]

F32 = NDArray[np.float32]

_AHEAD = 3  # batches of tiles that are read while others are computed


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture is read: its tiles, or why there are none.

    Args:
        facts: What is known of it.
        found: Where its tiles lie, or why there are none.
        stack: Which part of its file it is; None where it is the only one.
    """

    facts: Facts
    found: TileGrid | Failure | Duplicate
    stack: StackPart | None = None


class PictureReader:
    """Reads the pictures of files.

    Args:
        folder: What the paths are relative to.
        cut: How pictures are cut.
        process: Reads in its place, so that a picture that ends it costs no more than the rows of its file.
    """

    def __init__(self, folder: Path, cut: Cut, process: TileProcess | None = None) -> None:
        self._folder = os.fsencode(folder)
        self._cut, self._process = cut, process

    def look(self, path: bytes) -> tuple[PartKind | None, Facts | Failure]:
        """What the parts of a file are, None for a file of one picture, and which bytes it holds."""
        full = self.full(path)
        try:
            with open_regular_file(full) as file:
                return stack_kind(file, path), Facts(hash_of(file))
        except Exception as error:
            return None, failure_of(error, full, path)

    def pictures(self, path: bytes, kind: PartKind | None, facts: Facts, start: int, skip: int = 0) -> Generator[F32 | Picture, None, None]:
        """Of each picture the pixels (B, 3, S, S) of its tiles, then its end.

        Args:
            path: Of the file, relative.
            kind: What its parts are; None for a file of one picture.
            facts: Which bytes it holds.
            start: How many pictures are left out.
            skip: How many tiles of a file of one picture are left out, whole batches.

        Raises:
            NotReadyError: The process does not start.
        """
        full, process = self.full(path), self._process
        if process is None:
            items = picture_items(full, path, kind, self._cut, start, skip)
        else:
            items = process.pictures(full, path, kind, start, skip)
        with closing(items):
            for item in items:
                if isinstance(item, PhotoHeader):
                    facts = with_header(facts, item)
                elif isinstance(item, np.ndarray):
                    yield item
                elif isinstance(item, PictureEnd):
                    own = facts if item.part is None else dataclasses.replace(facts, width=None, height=None)
                    if isinstance(item.found, TileGrid):
                        own = dataclasses.replace(own, width=item.found.width, height=item.found.height)
                    yield Picture(own, item.found, item.part)

    def full(self, path: bytes) -> str:
        """Where a file is."""
        return os.fsdecode(self._folder + b"/" + path)


class TileReader:
    """Cuts the files of batches into tiles.

    Args:
        reader: Where pictures come from.
        seen: Which bytes were scored before.
        number: Of the first file.
        half: What an earlier run has kept of an image.
    """

    def __init__(self, reader: PictureReader, seen: Earlier, number: int, half: HalfDone) -> None:
        self._reader, self._seen, self._number, self._half = reader, seen, number, half

    def stream(self, batches: Iterator[Batch]) -> Generator[Begun | F32 | Unit, None, None]:
        """An image begins; pixels (B, 3, S, S) of the tiles of a picture, then the picture without what the head needs of it."""
        for batch in batches:
            for place, path in enumerate(batch.paths):
                for item in self._read(path, 0 if place else batch.part):
                    yield item if isinstance(item, (Begun, np.ndarray)) else unit_of(batch, place, item.facts, item.found, stack=item.stack)
                self._number += 1

    def _read(self, path: bytes, start: int) -> Generator[Begun | F32 | Picture, None, None]:
        kind, facts = self._reader.look(path)
        sha256 = None if isinstance(facts, Failure) else facts.sha256
        if (first := self._seen.first(sha256, self._number)) is not None:
            yield Picture(facts if isinstance(facts, Facts) else Facts(), Duplicate(first))
        elif isinstance(facts, Failure):
            yield Picture(Facts(), facts)
        else:
            yield (begun := self._half.find(facts.sha256 if kind is None else None))
            yield from self._reader.pictures(path, kind, facts, start, len(begun.parts))


def featurize_tiles(
    classifier: HybridClassifier,
    reader: TileReader,
    batches: Iterator[Batch],
    chunk_size: int,
    half: HalfDone,
    should_stop: Callable[[], bool] = lambda: False,
    within: Callable[..., None] = lambda *_: None,
) -> Generator[Unscored, None, None]:
    """What the head needs, piece by piece, in order.

    Args:
        classifier: The backbone.
        reader: Where tiles come from.
        batches: What is to be scored; starts with the first batch of a chunk.
        chunk_size: Pictures of one evaluation of the head.
        half: Where the tiles of the image in work are kept.
        should_stop: Asked after every batch of tiles; True ends it.
        within: Told how many tiles of a picture are done, or how many pictures of a file and of which kind.

    Raises:
        OutputError: The file system refused.
    """

    def units() -> Iterator[Unit]:
        current: list[Part] = []
        with closing(read_ahead(reader.stream(batches), _AHEAD)) as items:
            for item in items:
                if should_stop():
                    half.keep()
                    return
                if isinstance(item, Begun):
                    half.begin(item)
                    current = list(item.parts)
                elif isinstance(item, np.ndarray):
                    new = parts_of(classifier, item)
                    half.add(new)
                    current += new
                    within(len(current))
                else:
                    parts = tuple(current) if isinstance(item.item, TileGrid) else ()
                    current = []
                    half.end()
                    if item.stack is not None:
                        within(item.stack.number + 1, item.stack.kind)
                    yield dataclasses.replace(item, parts=parts)

    yield from cut_pieces(units(), chunk_size)
