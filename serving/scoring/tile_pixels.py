"""One large image → the pixels of its tiles, a batch at a time."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import ImageDecodeError
from hqtl_common.preprocess import image_to_pixels
from hqtl_common.rasters import Raster, Window, open_raster
from hqtl_common.specs import PreprocessSpec
from hqtl_common.tiles import TileGrid, read_tile, tile_grid

__all__ = ["Cut", "grid_of", "tile_batches"]

F32 = NDArray[np.float32]

_MAX_TILES = 200_000  # whose answers take some hundred megabytes


@dataclass(frozen=True, slots=True)
class Cut:
    """How images are cut.

    Args:
        spec: The preprocessing of a tile.
        size: Edge length of a tile in pixels of the image.
        stride: Distance between neighbouring tiles in pixels of the image.
        batch_size: Tiles that go through the backbone together.
    """

    spec: PreprocessSpec
    size: int
    stride: int
    batch_size: int


def grid_of(width: int, height: int, size: int, stride: int) -> TileGrid:
    """The tiles of an image; one that is no larger than a tile in either direction is a single tile, however small.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Edge length of a tile in pixels.
        stride: Distance between neighbouring tiles in pixels.
    """
    return tile_grid(width, height, size, stride, edges="pad")


def tile_batches(path: str, cut: Cut) -> Generator[F32, None, TileGrid]:
    """Pixels (B, 3, S, S) of the tiles, row by row; returns where they lie.

    Args:
        path: Of the image.
        cut: How it is cut.

    Raises:
        InputError: The file cannot be read.
        ImageDecodeError: It is damaged, holds several pages, or makes too many tiles.
    """
    with open_raster(path) as raster:
        if raster.num_pages > 1:
            raise ImageDecodeError(f"the file holds {raster.num_pages} pages; save the wanted one as a file of its own")
        grid = grid_of(raster.width, raster.height, cut.size, cut.stride)
        if len(grid) > _MAX_TILES:
            raise ImageDecodeError(f"the image makes {len(grid):,} tiles, more than {_MAX_TILES:,}; give larger tiles or less overlap")
        corners = iter(grid)
        while block := list(islice(corners, cut.batch_size)):
            yield np.stack([_pixels(raster, x, y, cut) for x, y in block])
        return grid


def _pixels(raster: Raster, x: int, y: int, cut: Cut) -> F32:
    if max(raster.width, raster.height) <= cut.size:
        window = raster.read(0, 0, raster.width, raster.height)
    else:
        window = read_tile(raster, x, y, cut.size)
    return image_to_pixels(_as_image(window), cut.spec)


def _as_image(window: Window) -> Image.Image:
    image = Image.fromarray(window)
    return image if image.mode == "F" else image.convert("RGB")
