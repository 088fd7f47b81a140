"""The files of a chunk between the backbone and the head, and how the head's answers become theirs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np

from hqtl_common.records import ExecutionRecord, Prediction
from hqtl_common.tiles import TileGrid
from serving.scoring.answers import Answer, Duplicate, Facts, Failure, ScoredChunk, StackPart, Tiled
from serving.scoring.heads import Part

__all__ = ["Head", "TileRule", "Unscored", "deciding_tile", "scored"]


@dataclass(frozen=True, slots=True)
class Unscored:
    """The files of one evaluation of the head, before it.

    Args:
        chunk: Which independent noise the head draws: the position of the chunk among all chunks, and of the piece in the chunk.
        listing_end: Where it ends in the list, bytes.
        paths: Relative paths.
        facts: What each file says about itself.
        grids: Where the tiles of each file lie, None where it is scored whole, or why it needs no evaluation.
        parts: What the head needs: one part per whole image, one per tile, in the order of the files.
        stack: See :class:`serving.scoring.answers.ScoredChunk`.
        ends: See there.
    """

    chunk: int
    listing_end: int
    paths: tuple[bytes, ...]
    facts: tuple[Facts, ...]
    grids: tuple[TileGrid | Failure | Duplicate | None, ...]
    parts: tuple[Part, ...]
    stack: tuple[StackPart | None, ...] = ()
    ends: bool = True


@dataclass(frozen=True, slots=True)
class TileRule:
    """How the answers of tiles become that of their image.

    Args:
        stride: Distance between neighbouring tiles in pixels.
        positive: The positive label.
        quantile: See :func:`deciding_tile`.
    """

    stride: int
    positive: str
    quantile: float


class Head(Protocol):
    """What gives answers; see :class:`serving.scoring.heads.HeadRunner`."""

    def run(self, parts: Sequence[Part], stream: int) -> tuple[list[Prediction], ExecutionRecord | None, ExecutionRecord | None]:
        """One answer per part, and what ran the head the first and the second time."""


def scored(head: Head, chunk: Unscored, rule: TileRule | None) -> ScoredChunk:
    """Run the head for one chunk.

    Args:
        head: What runs it.
        chunk: The files.
        rule: For tiles; None where images are scored whole.

    Raises:
        BackendError: The head could not be run.
    """
    found, execution, refined = head.run(chunk.parts, chunk.chunk)
    predictions = iter(found)
    pairs = [_answered(grid, predictions, rule) for grid in chunk.grids]
    answers = tuple(answer for answer, _ in pairs)
    tiled = tuple(tiles for _, tiles in pairs) if rule else ()
    return ScoredChunk(chunk.paths, answers, execution, chunk.listing_end, chunk.facts, tiled, refined, chunk.stack, chunk.ends)


def deciding_tile(scores: Sequence[float], quantile: float) -> int:
    """The tile whose answer is that of the image: the one at a quantile of the positive label's probability.

    Args:
        scores: Probability of the positive label per tile.
        quantile: 1 is the most probable tile, 0.99 leaves one in a hundred above; of equal ones the first.
    """
    order = sorted(range(len(scores)), key=lambda index: (scores[index], -index))
    return order[max(0, int(np.ceil(quantile * len(order))) - 1)]


def _answered(
    grid: TileGrid | Failure | Duplicate | None, predictions: Iterator[Prediction], rule: TileRule | None
) -> tuple[Answer, Tiled | None]:
    if isinstance(grid, (Failure, Duplicate)):
        return grid, None
    if grid is None:
        return next(predictions), None
    assert rule is not None
    tiles = tuple(islice(predictions, len(grid)))
    deciding = deciding_tile([tile.probabilities[rule.positive] for tile in tiles], rule.quantile)
    return _image_answer(tiles, deciding), Tiled(grid, rule.stride, tiles, deciding)


def _image_answer(tiles: Sequence[Prediction], deciding: int) -> Prediction:
    """The deciding tile's answer; unfamiliar also where most of the tiles are."""
    most = 2 * sum(tile.unfamiliar for tile in tiles) > len(tiles)
    return dataclasses.replace(tiles[deciding], unfamiliar=most or tiles[deciding].unfamiliar)
