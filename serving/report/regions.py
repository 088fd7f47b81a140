"""Tiles with the positive label that touch each other, as outlines in pixels of the image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hqtl_common.tiles import TileGrid

__all__ = ["Region", "cell_edges", "find_regions"]

Point = tuple[int, int]
Ring = tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of an image.

    Args:
        tiles: Positions of its tiles, row by row.
        outer: Its outline: corners (x, y) in pixels, clockwise as the image is seen; the first one is not repeated.
        holes: Outlines of the holes in it, counter-clockwise.
        box: Left, upper, right and lower edge in pixels.
        area: In pixels.
    """

    tiles: tuple[int, ...]
    outer: Ring
    holes: tuple[Ring, ...]
    box: tuple[int, int, int, int]
    area: int


def cell_edges(starts: tuple[int, ...], size: int, length: int) -> list[int]:
    """Edges of the cells that tiles own along one direction: neighbours that overlap meet in the middle.

    Args:
        starts: Where the C tiles begin.
        size: Length of a tile.
        length: Length of the image.
    """
    middles = [min(one + size + other, other + length) // 2 for one, other in pairwise(starts)]  # the last tile may reach over the edge
    return [0, *middles, length]


def find_regions(grid: TileGrid, marked: NDArray[np.bool_]) -> list[Region]:
    """The regions of marked tiles, from the upper left one on; tiles that touch by a corner only are apart.

    Args:
        grid: R × C tiles.
        marked: Which of them count, (R·C,) row by row.
    """
    columns = grid.shape[1]
    xs, ys = cell_edges(grid.xs, grid.size, grid.width), cell_edges(grid.ys, grid.size, grid.height)
    left = {divmod(int(index), columns) for index in np.flatnonzero(marked)}
    regions = []
    for start in sorted(left):
        if start not in left:
            continue
        cells = _component(start, left)
        rings = [tuple((xs[column], ys[row]) for row, column in ring) for ring in _outlines(cells)]
        outer, *holes = sorted(rings, key=lambda ring: -abs(_area(ring)))
        tiles = tuple(sorted(row * columns + column for row, column in cells))
        box = (min(x for x, _ in outer), min(y for _, y in outer), max(x for x, _ in outer), max(y for _, y in outer))
        regions.append(Region(tiles, outer, tuple(holes), box, abs(sum(_area(ring) for ring in rings))))
    return regions


def _component(start: Point, left: set[Point]) -> set[Point]:
    """The cells (row, column) that hang together with ``start``; they are taken out of ``left``."""
    found, pending = set(), [start]
    left.discard(start)
    while pending:
        row, column = pending.pop()
        found.add((row, column))
        near = {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)} & left
        left -= near
        pending += near
    return found


def _outlines(cells: set[Point]) -> Iterator[list[Point]]:
    """Closed walks along the edges of the cells with the inside on the right hand, corners only, as (row, column) of the edges."""
    ways: dict[Point, list[Point]] = defaultdict(list)
    for row, column in sorted(cells):
        for near, start, end in (
            ((row - 1, column), (row, column), (row, column + 1)),
            ((row, column + 1), (row, column + 1), (row + 1, column + 1)),
            ((row + 1, column), (row + 1, column + 1), (row + 1, column)),
            ((row, column - 1), (row + 1, column), (row, column)),
        ):
            if near not in cells:
                ways[start].append(end)
    while ways:
        first = min(ways)
        walk = [first]
        while len(walk) == 1 or walk[-1] != first:
            walk.append(_next(ways, walk))
        walk.pop()
        yield [point for index, point in enumerate(walk) if _turns(walk[index - 1], point, walk[(index + 1) % len(walk)])]


def _next(ways: dict[Point, list[Point]], walk: list[Point]) -> Point:
    """The way on; where two cells touch by a corner, the turn to the right, so that an outline never crosses itself."""
    here = walk[-1]
    choices = ways[here]
    chosen = choices[0]
    if len(choices) > 1 and len(walk) > 1:
        came = (here[0] - walk[-2][0], here[1] - walk[-2][1])
        right = (here[0] + came[1], here[1] - came[0])
        chosen = right if right in choices else chosen
    choices.remove(chosen)
    if not choices:
        del ways[here]
    return chosen


def _turns(before: Point, here: Point, after: Point) -> bool:
    return (here[0] - before[0], here[1] - before[1]) != (after[0] - here[0], after[1] - here[1])


def _area(ring: Ring) -> int:
    """Signed area in pixels, positive where the walk is clockwise as the image is seen (y goes down)."""
    return sum(x * ring[(index + 1) % len(ring)][1] - ring[(index + 1) % len(ring)][0] * y for index, (x, y) in enumerate(ring)) // 2
