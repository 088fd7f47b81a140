"""A large image as square tiles on a grid, and the tiles' values as a map.

Two ways at a ragged edge: ``"shift"`` moves the last row and column inward until they fit (no pixel is made up; tiles overlap
more there), ``"pad"`` lets them reach over the edge and repeats the outermost pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError, ShapeError
from hqtl_common.rasters import Raster, Window

__all__ = ["Edges", "TileGrid", "blend_map", "read_tile", "tile_grid"]

Edges = Literal["shift", "pad"]


@dataclass(frozen=True, slots=True)
class TileGrid:
    """Where the tiles of an image lie.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Edge length of a tile in pixels.
        xs: Left edges of the C columns, ascending.
        ys: Upper edges of the R rows, ascending.
    """

    width: int
    height: int
    size: int
    xs: tuple[int, ...]
    ys: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.xs) * len(self.ys)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Upper left pixels (x, y) row by row."""
        return ((x, y) for y in self.ys for x in self.xs)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns (R, C)."""
        return (len(self.ys), len(self.xs))


def tile_grid(width: int, height: int, size: int = 224, stride: int | None = None, edges: Edges = "shift") -> TileGrid:
    """Tiles that cover every pixel of an image.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Edge length of a tile in pixels.
        stride: Distance between neighbouring tiles in pixels, 1 to ``size`` (default: ``size``, no overlap).
        edges: What happens at a ragged edge; with ``"shift"`` no tile leaves the image.

    Raises:
        ConfigError: The stride is not within 1 to ``size``.
        ShapeError: The image is smaller than a tile and ``edges`` is ``"shift"``.
    """
    stride = size if stride is None else stride
    if not 1 <= stride <= size:
        raise ConfigError(f"the stride must be 1 to the size of a tile, {size}, so that no pixel is left out; got {stride}")
    if edges == "shift" and min(width, height) < size:
        raise ShapeError(f"the image of {width} × {height} pixels is smaller than a tile of {size} × {size}")
    return TileGrid(width, height, size, _starts(width, size, stride, edges), _starts(height, size, stride, edges))


def read_tile(raster: Raster, x: int, y: int, size: int, page: int = 0) -> Window:
    """The tile (size, size) or (size, size, 3) at (x, y); where it reaches over the edge the outermost pixels are repeated.

    Raises:
        ShapeError: The tile's upper left pixel is outside of the image.
        ImageDecodeError: See :meth:`hqtl_common.rasters.Raster.read`.
    """
    width, height = min(size, raster.width - x), min(size, raster.height - y)
    window = raster.read(x, y, width, height, page)
    rows, columns = (np.minimum(np.arange(size), edge - 1) for edge in (height, width))
    return window if (width, height) == (size, size) else window[rows[:, None], columns]


def blend_map(grid: TileGrid, values: NDArray[np.float64], cell: int = 8) -> NDArray[np.float32]:
    """One value per tile → a smooth map of the image, (⌈height / cell⌉, ⌈width / cell⌉) float32.

    At the centre of each cell the values of the tiles above it are averaged, weighted by a pyramid that falls from the
    tile's centre to nearly nothing at its edge. The weights are a product of one factor per direction, so the map is two
    small matrix products however many tiles overlap.

    Args:
        grid: R × C tiles.
        values: (R, C), or (R·C,) row by row; NaN where a tile has no value. Cells that only such tiles cover are NaN.
        cell: Edge length of a cell in pixels; 1 gives the map at full resolution.

    Raises:
        ShapeError: There is not one value per tile.
    """
    if values.size != len(grid):
        raise ShapeError(f"expected one value for each of {len(grid)} tiles; got {values.size}")
    table = np.asarray(values, dtype=np.float64).reshape(grid.shape)
    known = np.isfinite(table)
    down, across = (_weights(starts, grid.size, length, cell) for starts, length in ((grid.ys, grid.height), (grid.xs, grid.width)))
    total = down.T @ np.where(known, table, 0) @ across
    weight = down.T @ known.astype(np.float64) @ across
    with np.errstate(invalid="ignore"):
        return (total / weight).astype(np.float32)


def _starts(length: int, size: int, stride: int, edges: Edges) -> tuple[int, ...]:
    regular = range(0, max(length - size, 0) + stride, stride)
    return tuple(dict.fromkeys(min(start, length - size) for start in regular)) if edges == "shift" else tuple(regular)


def _weights(starts: tuple[int, ...], size: int, length: int, cell: int) -> NDArray[np.float64]:
    """Weight of each tile (rows) at the centre of each cell (columns) along one direction."""
    centres = np.minimum((np.arange(-(-length // cell)) + 0.5) * cell, length - 0.5)
    distance = np.abs(centres[None] - (np.asarray(starts)[:, None] + size / 2)) / (size / 2)
    return np.where(distance <= 1, 1.0 - distance + 1e-6, 0.0)  # a centre on the border of two tiles belongs to both
