"""Large images, read window by window.

A TIFF or BigTIFF is read strip by strip or tile by tile in constant memory; other formats, and what only Pillow decodes,
are decoded as a whole once in their stored mode and converted window by window. The values are those of
:func:`hqtl_common.preprocess.open_image`: the same file gives the same numbers, large or small.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np

from hqtl_common.errors import HqtlError, ImageDecodeError, ShapeError
from hqtl_common.georeference import GeoReference
from hqtl_common.preprocess import open_regular_file
from hqtl_common.raster_sources import HeldValues, WholeImage, Window, check_size
from hqtl_common.volumes import TIFF_STARTS

if TYPE_CHECKING:
    from hqtl_common.tiff_windows import TiffWindows

__all__ = ["MAX_RASTER_PIXELS", "Raster", "Window", "decoding", "open_page", "open_raster", "raster_of", "raster_of_values"]

MAX_RASTER_PIXELS = 1 << 30


class _Source(Protocol):
    """Windows of an image as it is stored, before its orientation is applied."""

    width: int
    height: int
    num_pages: int
    orientation: int

    @property
    def bands(self) -> int: ...
    @property
    def is_deep(self) -> bool: ...
    @property
    def georeference(self) -> GeoReference | None: ...
    def read(self, page: int, x: int, y: int, width: int, height: int) -> Window: ...
    def close(self) -> None: ...


class Raster:
    """An opened image whose windows can be read; EXIF or TIFF orientation is applied. Not safe for several threads at once.

    Args:
        source: Where the windows come from; made by :func:`open_raster`.

    Attributes:
        width: Width in pixels, upright.
        height: Height in pixels, upright.
        num_pages: Number of pages (1 but for a TIFF of several pages).
    """

    def __init__(self, source: _Source) -> None:
        self._source = source
        self.num_pages = source.num_pages
        self._flip_y, self._flip_x, self._transposed = _STORED.get(source.orientation, (False, False, False))
        self.width, self.height = (source.height, source.width) if self._transposed else (source.width, source.height)

    @property
    def bands(self) -> int:
        """1 for grey, 3 for colour."""
        return self._source.bands

    @property
    def is_deep(self) -> bool:
        """Whether windows are float32 in [0, 1] (grey with more than 8 bits) instead of uint8."""
        return self._source.is_deep

    @property
    def georeference(self) -> GeoReference | None:
        """Where the pixels lie on the ground; None without map coordinates, or where the image was turned upright.

        Raises:
            ImageDecodeError: What the file says of it is damaged.
        """
        with decoding():
            return None if self._source.orientation in _STORED else self._source.georeference

    def read(self, x: int, y: int, width: int, height: int, page: int = 0) -> Window:
        """The window whose upper left pixel is (x, y): (height, width) for grey, (height, width, 3) for colour.

        uint8, or float32 in [0, 1] for deep grey, scaled by its declared range.

        Args:
            x: Left edge in pixels.
            y: Upper edge in pixels.
            width: Width in pixels, at least 1.
            height: Height in pixels, at least 1.
            page: Page of a file of several.

        Raises:
            ShapeError: The window does not lie inside the image, or there is no such page.
            ImageDecodeError: The file is damaged there, or its value range is not declared.
        """
        inside = 0 <= x < x + width <= self.width and 0 <= y < y + height <= self.height
        if not inside or not 0 <= page < self.num_pages:
            raise ShapeError(
                f"the window {width} × {height} at ({x}, {y}) on page {page} is not inside the image of "
                f"{self.width} × {self.height} pixels and {self.num_pages} page(s)"
            )
        if self._flip_x:
            x = self.width - x - width
        if self._flip_y:
            y = self.height - y - height
        if self._transposed:
            x, y, width, height = y, x, height, width
        with decoding():
            window: Any = self._source.read(page, x, y, width, height)
        if self._transposed:
            window = window.swapaxes(0, 1)
        return np.ascontiguousarray(window[:: -1 if self._flip_y else 1, :: -1 if self._flip_x else 1])

    def close(self) -> None:
        """Release the file and what was decoded."""
        self._source.close()


@contextmanager
def open_raster(path: str | os.PathLike[str], max_pixels: int = MAX_RASTER_PIXELS) -> Iterator[Raster]:
    """An image of any size, opened for reading windows.

    Args:
        path: A PNG, JPEG, TIFF, BigTIFF, BMP or WebP file.
        max_pixels: Largest width × height of a page; checked before any pixel is decoded. A TIFF takes no memory for it; other
            formats are decoded as a whole, 1 byte per pixel for 8-bit grey, 2 for 16-bit grey, 3 or 4 for colour.

    Raises:
        InputError: The file cannot be read.
        UnknownImageFormatError: Not an image of these formats.
        ImageDecodeError: Damaged or too large.
    """
    path = Path(path)
    raster = raster_of(open_regular_file(path), path, max_pixels)
    try:
        yield raster
    finally:
        raster.close()


def raster_of(file: BinaryIO, path: Path, max_pixels: int = MAX_RASTER_PIXELS) -> Raster:
    """An image in an opened file, which is closed with it.

    Args:
        file: The file, also one in memory.
        path: Its path, for messages and for coordinate systems that only rasterio can name.
        max_pixels: See :func:`open_raster`.

    Raises:
        UnknownImageFormatError: Not an image of these formats.
        ImageDecodeError: Damaged or too large.
    """
    try:
        with decoding():
            return Raster(_open_source(file, path, max_pixels))
    except BaseException:
        file.close()
        raise


def raster_of_values(values: Window) -> Raster:
    """Pixels in memory, (H, W) or (H, W, 3) uint8 or (H, W) float32 in [0, 1], to be read like an image in a file."""
    return Raster(HeldValues(values))


@contextmanager
def open_page(tiff: TiffWindows, place: int, max_pixels: int = MAX_RASTER_PIXELS) -> Iterator[Raster]:
    """One page of an opened TIFF as an image of its own, whatever the others are.

    Args:
        tiff: The file, which stays open.
        place: Of the page in the file.
        max_pixels: See :func:`open_raster`.

    Raises:
        InputError: The file cannot be read any more.
        ImageDecodeError: Damaged or too large.
    """
    with ExitStack() as stack:
        with decoding():
            tiff.show((place,))
            check_size(tiff.width, tiff.height, max_pixels)
            raster = Raster(tiff if tiff.is_direct else _whole_page(stack.enter_context(open_regular_file(tiff.path)), place, max_pixels))
        yield raster


# How a window of the upright image is found in the stored one, by EXIF orientation: the upright image is the stored one,
# transposed or not, then flipped in y or x or both.
_STORED: dict[int, tuple[bool, bool, bool]] = {
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (False, True, True),
    7: (True, True, True),
    8: (True, False, True),
}


@contextmanager
def decoding() -> Iterator[None]:
    """Turn whatever a parser stumbles over into an error of ours.

    Raises:
        ImageDecodeError: The body raised anything else than an error of ours.
    """
    try:
        yield
    except HqtlError:
        raise
    except Exception as error:  # parsers raise whatever they stumble over: struct.error, IndexError, zlib.error, …
        raise ImageDecodeError(f"the image is damaged or cut off: {type(error).__name__}: {error}") from error


def _whole_page(file: BinaryIO, place: int, max_pixels: int) -> WholeImage:
    return WholeImage(file, file.read(16), max_pixels, place)


def _open_source(file: BinaryIO, path: Path, max_pixels: int) -> _Source:
    start = file.read(16)
    file.seek(0)
    if start.startswith(TIFF_STARTS):
        from hqtl_common.tiff_windows import TiffWindows

        tiff = TiffWindows(file, path)
        check_size(tiff.width, tiff.height, max_pixels)
        if tiff.is_direct:
            return tiff
        if tiff.num_pages > 1:
            raise ImageDecodeError("a TIFF of several pages in a kind that cannot be read in windows; save it as 8- or 16-bit grey or RGB")
        file.seek(0)
    return WholeImage(file, start, max_pixels)
