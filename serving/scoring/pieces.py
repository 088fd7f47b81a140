"""Pictures one by one → what the head takes at once.

A planned chunk of files that hold one picture each is one piece. Where files hold more, it is cut after every so many pictures, so
that what is in memory, and what a kill costs, does not grow with the length of a video.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqtl_common.tiles import TileGrid
from serving.scoring.answers import Duplicate, Facts, Failure, StackPart
from serving.scoring.heads import Part
from serving.scoring.listing import Batch
from serving.scoring.unscored import Unscored

__all__ = ["Unit", "cut_pieces", "unit_of"]

_PIECES = 24  # bits of the number of noise that count pieces within a chunk


@dataclass(frozen=True, slots=True)
class Unit:
    """One picture: a file, or a part of one.

    Args:
        batch: What its file belongs to.
        path: Of its file, relative.
        facts: What is known of it beside its pixels.
        item: Pixels (3, S, S) of what is scored whole, None when they went through the backbone; where its tiles lie; or why it needs
            no evaluation.
        parts: What the head needs of it.
        stack: Which part of its file it is; None where it is the only one.
        ends_chunk: Whether it is the last one of its chunk.
    """

    batch: Batch
    path: bytes
    facts: Facts
    item: NDArray[np.float32] | TileGrid | Failure | Duplicate | None
    parts: tuple[Part, ...] = ()
    stack: StackPart | None = None
    ends_chunk: bool = False


def unit_of(
    batch: Batch,
    place: int,
    facts: Facts,
    item: NDArray[np.float32] | TileGrid | Failure | Duplicate,
    parts: tuple[Part, ...] = (),
    stack: StackPart | None = None,
) -> Unit:
    """A picture of the file at this place of a batch; see :class:`Unit`."""
    last = batch.ends_chunk and place + 1 == len(batch.paths) and (stack is None or stack.ends)
    return Unit(batch, batch.paths[place], facts, item, parts, stack, last)


def cut_pieces(units: Iterator[Unit], chunk_size: int) -> Generator[Unscored, None, None]:
    """Pieces in order.

    Args:
        units: Pictures that went through the backbone; starts with the first one of a piece.
        chunk_size: Pictures of a piece; the last one of a chunk may have fewer.
    """
    held: list[Unit] = []
    number = 0
    for unit in units:
        held.append(unit)
        if unit.ends_chunk or len(held) == chunk_size:
            number = number or unit.batch.piece
            yield _piece(held, number)
            held, number = [], 0 if unit.ends_chunk else number + 1


def _piece(units: list[Unit], number: int) -> Unscored:
    batch = units[0].batch
    stack = tuple(unit.stack for unit in units)
    return Unscored(
        batch.chunk + (number << _PIECES),
        batch.listing_end,
        tuple(unit.path for unit in units),
        tuple(unit.facts for unit in units),
        tuple(None if isinstance(unit.item, np.ndarray) else unit.item for unit in units),
        tuple(part for unit in units for part in unit.parts),
        stack if any(part is not None for part in stack) else (),
        units[-1].ends_chunk,
    )
