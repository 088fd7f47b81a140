"""Pixels in memory that are read window by window: a decoded image, or an array."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from hqtl_common.errors import ImageDecodeError, UnknownImageFormatError
from hqtl_common.georeference import GeoReference
from hqtl_common.preprocess import FORMATS, is_several_pages, to_rgb_or_unit

__all__ = ["HeldValues", "WholeImage", "Window", "check_size"]

Window = NDArray[np.uint8] | NDArray[np.float32]

_GREY_MODES = frozenset({"1", "L"})


class WholeImage:
    """An image that Pillow decoded as a whole and keeps in its stored mode.

    Args:
        file: The file; closed with the image.
        start: Its first 16 bytes.
        max_pixels: Largest width × height, checked before any pixel is decoded.
        page: Of a TIFF, the place of the page wanted; None refuses a file of several.

    Raises:
        UnknownImageFormatError: Not an image of these formats.
        ImageDecodeError: Too large, or several pages.
    """

    num_pages = 1
    georeference: GeoReference | None = None

    def __init__(self, file: BinaryIO, start: bytes, max_pixels: int, page: int | None = None) -> None:
        self._image = _open_without_limit(file, start)
        if page is not None:
            self._image.seek(page)
        check_size(*self._image.size, max_pixels)
        if page is None and is_several_pages(self._image):
            raise ImageDecodeError(f"the {self._image.format} file holds several frames; save the wanted one as a file of its own")
        self._image.load()
        self._tags = dict(getattr(self._image, "tag_v2", {}))
        self.orientation = int(self._image.getexif().get(ExifTags.Base.Orientation, 1))
        self.width, self.height = self._image.size
        self._file = file
        sample = to_rgb_or_unit(self._image.crop((0, 0, 1, 1)), self._tags)
        self.is_deep = sample.mode == "F"
        self._grey = self._image.mode in _GREY_MODES and "transparency" not in self._image.info
        self.bands = 1 if self.is_deep or self._grey else 3

    def read(self, page: int, x: int, y: int, width: int, height: int) -> Window:
        """See :meth:`hqtl_common.rasters.Raster.read`."""
        box = self._image.crop((x, y, x + width, y + height))
        return np.asarray(box.convert("L") if self._grey else to_rgb_or_unit(box, self._tags))

    def close(self) -> None:
        """Release the pixels and the file."""
        self._image.close()
        self._file.close()


class HeldValues:
    """Pixels in memory.

    Args:
        values: (H, W) or (H, W, 3) uint8, or (H, W) float32 in [0, 1].
    """

    num_pages, orientation = 1, 1
    georeference: GeoReference | None = None

    def __init__(self, values: Window) -> None:
        self._values = values
        self.height, self.width = values.shape[:2]
        self.bands = 1 if values.ndim == 2 else 3
        self.is_deep = values.dtype == np.float32

    def read(self, page: int, x: int, y: int, width: int, height: int) -> Window:
        """See :meth:`hqtl_common.rasters.Raster.read`."""
        return self._values[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is open."""


def _open_without_limit(file: BinaryIO, start: bytes) -> Image.Image:
    """What ``Image.open`` does, without its limit of 179 million pixels: the caller has one of its own."""
    Image.preinit()
    Image.init()
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(start) is True:
            file.seek(0)
            return factory(file, "")
    raise UnknownImageFormatError(f"not a {', '.join(FORMATS)} image")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Refuse an image without pixels or with too many.

    Raises:
        ImageDecodeError: It has none, or more than ``max_pixels``.
    """
    if not width or not height or width * height > max_pixels:
        raise ImageDecodeError(f"the image has {width} × {height} pixels; at least 1 and at most {max_pixels:,} are allowed")
