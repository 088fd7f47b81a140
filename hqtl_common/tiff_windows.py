"""Windows of a TIFF or BigTIFF: only the strips or tiles that a window touches are read and decoded."""

from __future__ import annotations

import io
import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from hqtl_common.errors import ImageDecodeError
from hqtl_common.georeference import GeoReference, read_georeference
from hqtl_common.preprocess import to_rgb_or_unit
from hqtl_common.tiff_chain import PageChain
from hqtl_common.value_ranges import to_unit_values

__all__ = ["TiffWindows"]

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # its warnings about odd tags are not for our users

_CACHE_BYTES = 64 << 20
_GREY, _RGB, _PALETTE = (0, 1), 2, 3  # PhotometricInterpretation
_WHITE_IS_ZERO = 0
_ORIENTATION, _PHOTOMETRIC = 274, 262
_UNASSOCIATED_ALPHA = 2
_MAX_SEGMENTS = 1 << 24
_PLAIN_COMPRESSIONS = (1, 8, 32946, 32773)  # none, deflate, PackBits: decoded without the package imagecodecs


class TiffWindows:
    """Windows of the pages of an opened TIFF file, as they are stored (its orientation is left to the caller).

    Args:
        file: The opened file.
        path: Its path.

    Attributes:
        path: Its path.
        chain: All pages of the file.
        width: Width in pixels of a page as it is stored.
        height: Height in pixels of a page as it is stored.
        num_pages: Number of full-size pages; overviews and masks do not count.
        orientation: EXIF orientation, 1 to 8.

    Raises:
        ImageDecodeError: The file is damaged.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file, self.path = file, path
        self._tiff = tifffile.TiffFile(file, name=path.name)
        self.chain = PageChain(self._tiff)
        self._segments: OrderedDict[tuple[int, int], NDArray[Any]] = OrderedDict()
        self.show(self.chain.places)

    def show(self, places: Sequence[int]) -> None:
        """Present these pages, by their places in the file, as all there are; they may differ in size and kind from others.

        Raises:
            ImageDecodeError: The first of them is damaged.
        """
        self._places = places
        self._parsed: dict[int, tifffile.TiffPage] = {}
        self._segments.clear()
        first = self._page(0)
        self.width, self.height, self.num_pages = first.imagewidth, first.imagelength, len(places)
        self.orientation = int(first.tags.valueof(_ORIENTATION, 1))
        self._cached_bytes = 0

    @property
    def georeference(self) -> GeoReference | None:
        """Where the pixels lie on the ground, None for a picture without map coordinates."""
        tags = self._page(0).geotiff_tags
        return None if tags is None else read_georeference(tags, self.path)

    @property
    def is_direct(self) -> bool:
        """Whether windows can be decoded here; anything else must be decoded as a whole by another reader."""
        page = self._page(0)
        return self.bands > 0 and page.imagedepth == 1 and len(page.dataoffsets) <= _MAX_SEGMENTS and _has_decoder(page)

    @property
    def bands(self) -> int:
        """1 for grey, 3 for colour, 0 for what is left to another reader."""
        page = self._page(0)
        bits, samples, kind = page.bitspersample, page.samplesperpixel, page.photometric
        if samples == 1 and kind in _GREY:
            return int(_grey_kind(page) is not None)
        if samples == 1 and kind == _PALETTE and bits == 8 and page.colormap is not None:
            return 3
        alpha = page.extrasamples in ((), (0,), (_UNASSOCIATED_ALPHA,))
        plain = page.dtype in (np.uint8, np.uint16) and bits in (8, 16)
        return 3 if plain and alpha and samples in (3, 4) and (kind == _RGB or self._is_jpeg_colour()) else 0

    @property
    def is_deep(self) -> bool:
        """Whether grey values have more than 8 bits and come as float32 in [0, 1]."""
        return self.bands == 1 and _grey_kind(self._page(0)) not in ("1-bit", "8-bit")

    def read(self, page: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8] | NDArray[np.float32]:
        """The window (height, width) or (height, width, 3) of a page: uint8, or float32 in [0, 1] where values are deep.

        Raises:
            ImageDecodeError: The page differs in size or kind from the first, or the window is damaged.
        """
        chosen = self._page(page)
        first = self._page(0)
        if (chosen.shaped, chosen.dtype, chosen.photometric) != (first.shaped, first.dtype, first.photometric):
            raise ImageDecodeError(f"page {page} of the TIFF has another size or kind than its first; save the pages as files of their own")
        samples = self._samples(page, x, y, width, height)
        return _present(samples, chosen)

    def close(self) -> None:
        """Close the file."""
        self._segments.clear()
        self._tiff.close()
        self._file.close()

    def _page(self, index: int) -> tifffile.TiffPage:
        """The tags of a page that is shown."""
        if index not in self._parsed:
            found = self._tiff.pages.get(self._places[index], aspage=True)
            assert isinstance(found, tifffile.TiffPage)
            self._parsed = {kept: page for kept, page in self._parsed.items() if kept == 0} | {index: found}
        return self._parsed[index]

    def _is_jpeg_colour(self) -> bool:
        """JPEG in TIFF: stored as YCbCr, decoded to RGB."""
        page = self._page(0)
        return page.compression in (6, 7) and page.photometric == 6

    def _samples(self, page: int, x: int, y: int, width: int, height: int) -> NDArray[Any]:
        """Stored values (height, width, samples)."""
        chosen = self._page(page)
        planes = chosen.shaped[0]
        out = np.empty((height, width, chosen.samplesperpixel), dtype=chosen.dtype)
        for plane in range(planes):
            target = out if planes == 1 else out[:, :, plane : plane + 1]
            if chosen.is_final:
                self._copy_rows(chosen, plane, x, y, target)
            else:
                self._copy_segments(page, plane, x, y, target)
        return out

    def _copy_rows(self, page: tifffile.TiffPage, plane: int, x: int, y: int, out: NDArray[Any]) -> None:
        """Uncompressed pages in one piece: the bytes of each row lie where arithmetic says."""
        height, width, samples = out.shape
        stored = np.dtype(page.dtype).newbyteorder(self._tiff.byteorder)
        pixel = stored.itemsize * samples
        start = page.dataoffsets[0] + (plane * page.imagelength * page.imagewidth) * pixel
        for row in range(height):
            offset = start + ((y + row) * page.imagewidth + x) * pixel
            data = self._bytes(width * pixel, offset)
            if len(data) != width * pixel:
                raise ImageDecodeError(f"the file ends within row {y + row} of {page.imagelength}")
            out[row] = np.frombuffer(data, stored).reshape(width, samples)

    def _bytes(self, count: int, offset: int) -> bytes:
        """Some bytes of the file, which may be one in memory."""
        if not isinstance(self._file, io.BytesIO):
            return os.pread(self._file.fileno(), count, offset)
        self._file.seek(offset)
        return self._file.read(count)

    def _copy_segments(self, page: int, plane: int, x: int, y: int, out: NDArray[Any]) -> None:
        """Compressed or scattered pages: strips or tiles, decoded one by one and kept for the neighbouring window."""
        height, width, _ = out.shape
        chosen = self._page(page)
        step_x, step_y = (chosen.tilewidth, chosen.tilelength) if chosen.is_tiled else (chosen.imagewidth, chosen.rowsperstrip)
        columns, rows = -(-chosen.imagewidth // step_x), -(-chosen.imagelength // step_y)
        for row in range(y // step_y, (y + height - 1) // step_y + 1):
            for column in range(x // step_x, (x + width - 1) // step_x + 1):
                segment = self._segment(page, (plane * rows + row) * columns + column)
                left, top = column * step_x, row * step_y
                ys = slice(max(y, top), min(y + height, top + step_y))
                xs = slice(max(x, left), min(x + width, left + step_x))
                out[ys.start - y : ys.stop - y, xs.start - x : xs.stop - x] = segment[
                    ys.start - top : ys.stop - top, xs.start - left : xs.stop - left
                ]

    def _segment(self, page: int, index: int) -> NDArray[Any]:
        """Decoded strip or tile (rows, columns, samples)."""
        if (page, index) in self._segments:
            self._segments.move_to_end((page, index))
            return self._segments[page, index]
        decoded = self._decode(self._page(page), index)
        self._segments[page, index] = decoded
        self._cached_bytes += decoded.nbytes
        while self._cached_bytes > _CACHE_BYTES and len(self._segments) > 1:
            self._cached_bytes -= self._segments.popitem(last=False)[1].nbytes
        return decoded

    def _decode(self, page: tifffile.TiffPage, index: int) -> NDArray[Any]:
        if index >= len(page.dataoffsets):
            raise ImageDecodeError(f"the TIFF lists {len(page.dataoffsets)} strips or tiles; number {index + 1} is missing")
        count = page.databytecounts[index]
        data = self._bytes(count, page.dataoffsets[index]) if count else None
        if data is not None and len(data) != count:
            raise ImageDecodeError(f"the file ends within strip or tile {index + 1} of {len(page.dataoffsets)}")
        array, _, (_, rows, columns, samples) = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        if array is None:  # a hole in a sparse file
            return np.full((rows, columns, samples), page.nodata, dtype=page.dtype)
        segment: NDArray[Any] = np.asarray(array)[0]
        return segment


def _grey_kind(page: tifffile.TiffPage) -> str | None:
    if page.bitspersample == 1 or page.dtype == np.bool_:
        return "1-bit"
    if page.dtype == np.uint8 and page.bitspersample == 8:
        return "8-bit"
    if page.dtype == np.uint16:
        return "16-bit"
    if page.dtype in (np.int16, np.int32, np.uint32):
        return "32-bit"
    return "float" if page.dtype is not None and page.dtype.kind == "f" else None


def _present(samples: NDArray[Any], page: tifffile.TiffPage) -> NDArray[np.uint8] | NDArray[np.float32]:
    """Stored values as the preprocessing sees them."""
    if page.photometric == _PALETTE and page.colormap is not None:
        table = (page.colormap >> 8).astype(np.uint8).T
        return np.ascontiguousarray(table[samples[:, :, 0]])
    if samples.shape[2] == 1:
        return _present_grey(samples[:, :, 0], page)
    eight = samples if samples.dtype == np.uint8 else (samples >> 8).astype(np.uint8)
    if page.extrasamples == (_UNASSOCIATED_ALPHA,):
        return np.asarray(to_rgb_or_unit(Image.fromarray(eight)))
    return np.ascontiguousarray(eight[:, :, :3])


def _present_grey(values: NDArray[Any], page: tifffile.TiffPage) -> NDArray[np.uint8] | NDArray[np.float32]:
    kind = _grey_kind(page)
    if kind in ("1-bit", "8-bit"):
        eight = values.astype(np.uint8) * np.uint8(255 if kind == "1-bit" else 1)
        return np.invert(eight) if page.photometric == _WHITE_IS_ZERO else eight
    tags = {tag.code: tag.value for tag in page.tags if tag.code in _RANGE_TAGS}
    return to_unit_values(values.astype(np.float32), tags, str(kind))


_RANGE_TAGS = frozenset({258, _PHOTOMETRIC, 280, 281, 340, 341})


def _has_decoder(page: tifffile.TiffPage) -> bool:
    """Whether the packages that are installed can decode the strips or tiles."""
    if page.is_final:
        return True
    if page.compression not in _PLAIN_COMPRESSIONS and find_spec("imagecodecs") is None:
        return False
    try:
        tifffile.TIFF.DECOMPRESSORS[page.compression] if page.compression != 1 else None
        tifffile.TIFF.UNPREDICTORS[page.predictor] if page.predictor != 1 else None
    except KeyError:
        return False
    return not page.is_subsampled or page.compression in (6, 7)
