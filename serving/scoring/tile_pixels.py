"""The pictures of one file → their pixels: whole, or the tiles of each, a batch at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import HqtlError, ImageDecodeError
from hqtl_common.frame_choice import Every
from hqtl_common.preprocess import MAX_PIXELS, image_to_pixels, open_regular_file
from hqtl_common.raster_sources import check_size
from hqtl_common.rasters import Raster, Window, open_raster
from hqtl_common.specs import PreprocessSpec
from hqtl_common.tiles import TileGrid, read_tile, tile_grid
from serving.photo_header import PhotoHeader, header_of
from serving.scoring.answers import Failure, PartKind, StackPart
from serving.scoring.failures import failure_of
from serving.scoring.stacks import open_stack

__all__ = ["Cut", "PictureEnd", "PictureItem", "grid_of", "picture_items"]

F32 = NDArray[np.float32]

_MAX_TILES = 200_000  # whose answers take some hundred megabytes


@dataclass(frozen=True, slots=True)
class Cut:
    """How images are cut.

    Args:
        spec: The preprocessing of a tile.
        size: Edge length of a tile in pixels of the image; 0 = the image is a single one.
        stride: Distance between neighbouring tiles in pixels of the image.
        batch_size: Tiles that go through the backbone together.
        every: Which frames of a video are looked at; see :meth:`hqtl_common.frame_choice.Every.parse`.
    """

    spec: PreprocessSpec
    size: int
    stride: int
    batch_size: int
    every: str | None = None


@dataclass(frozen=True, slots=True)
class PictureEnd:
    """A picture is read.

    Args:
        part: Which part of its file it is; None where it is the only one.
        found: Where its tiles lie, or why there are none.
    """

    part: StackPart | None
    found: TileGrid | Failure


PictureItem = PhotoHeader | StackPart | F32 | PictureEnd


def grid_of(width: int, height: int, size: int, stride: int) -> TileGrid:
    """The tiles of an image; one that is no larger than a tile in either direction is a single tile, however small.

    Args:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        size: Edge length of a tile in pixels; 0 = as large as the image.
        stride: Distance between neighbouring tiles in pixels.
    """
    return tile_grid(width, height, size or max(width, height), stride or None, edges="pad")


def picture_items(
    full: str, path: bytes, kind: PartKind | None, cut: Cut, start: int = 0, skip: int = 0
) -> Generator[PictureItem, None, None]:
    """What the file says about itself; of each picture which part it is, pixels (B, 3, S, S) of its tiles row by row, and its end.

    No exception, whatever the file holds.

    Args:
        full: The file.
        path: Its relative path, for messages.
        kind: What its parts are; None for a file of one picture.
        cut: How pictures are cut.
        start: How many of its pictures are left out.
        skip: How many tiles of a file of one picture are left out, whole batches.
    """
    if kind in (None, "page"):
        yield _header(full)
    if kind is None:
        yield PictureEnd(None, (yield from _batches(open_raster(full), full, path, cut, skip)))
        return
    part, done = None, False
    try:
        with open_stack(full, kind, Every.parse(cut.every)) as stack:
            if stack.about is not None:
                yield stack.about
            for part, picture in stack.parts(start):
                if part is not None:
                    yield part
                yield PictureEnd(part, (yield from _batches(picture, full, path, cut)))
            if start and part is None:
                raise ImageDecodeError(f"the file holds no more than {start:,} pictures now: it was changed while it was scored")
            done = True
    except Exception as error:
        if not done:
            yield PictureEnd(None, failure_of(error, full, path))


def _header(full: str) -> PhotoHeader:
    with suppress(HqtlError), open_regular_file(full) as file:
        return header_of(file)
    return PhotoHeader()


def _batches(
    picture: AbstractContextManager[Raster], full: str, path: bytes, cut: Cut, skip: int = 0
) -> Generator[F32, None, TileGrid | Failure]:
    try:
        with picture as raster:
            grid = grid_of(raster.width, raster.height, cut.size, cut.stride)
            if len(grid) > _MAX_TILES:
                raise ImageDecodeError(f"the image makes {len(grid):,} tiles, more than {_MAX_TILES:,}; give larger tiles or less overlap")
            if not cut.size:
                check_size(raster.width, raster.height, MAX_PIXELS)
            yield from _cut(raster, grid, cut, skip)
            return grid
    except Exception as error:
        return failure_of(error, full, path)


def _cut(raster: Raster, grid: TileGrid, cut: Cut, skip: int) -> Iterator[F32]:
    corners = islice(grid, skip, None)
    while block := list(islice(corners, cut.batch_size)):
        yield np.stack([_pixels(raster, x, y, grid.size, cut.spec) for x, y in block])


def _pixels(raster: Raster, x: int, y: int, size: int, spec: PreprocessSpec) -> F32:
    whole = max(raster.width, raster.height) <= size  # however small, it fills the model's input
    window = raster.read(0, 0, raster.width, raster.height) if whole else read_tile(raster, x, y, size)
    return image_to_pixels(_as_image(window), spec)


def _as_image(window: Window) -> Image.Image:
    image = Image.fromarray(window)
    return image if image.mode == "F" else image.convert("RGB")
