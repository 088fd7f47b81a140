"""The pages of a TIFF file, of which there may be any number, and the chain from one to the next broken or run in a circle."""

from __future__ import annotations

import struct
from typing import BinaryIO

import tifffile

from hqtl_common.errors import ImageDecodeError

__all__ = ["MAX_PAGES", "PageChain", "has_second_page"]

MAX_PAGES = 10_000


class PageChain:
    """Which pages of an opened file are pictures of full size; overviews and masks are none.

    Args:
        tiff: The file.

    Attributes:
        places: Their places in the file, counted from 0.
        is_broken: Whether the file ends, or is damaged, before its last page.

    Raises:
        ImageDecodeError: More than :data:`MAX_PAGES` pages, or none.
    """

    def __init__(self, tiff: tifffile.TiffFile) -> None:
        self.places: list[int] = []
        for place in range(MAX_PAGES + 1):
            wanted = _is_wanted(tiff, place)
            if wanted is None:
                break
            self.places += [place] * wanted
        else:
            raise ImageDecodeError(f"the TIFF file has more than {MAX_PAGES:,} pages; split it into several")
        if not self.places:
            raise ImageDecodeError("the TIFF file holds no picture")
        self.is_broken = _is_broken(tiff)


def has_second_page(file: BinaryIO) -> bool:
    """Whether a TIFF file lists more than one page, overviews and masks included; False for other files, and where it is damaged.

    Args:
        file: Read anywhere, and left anywhere.
    """
    file.seek(0)
    start = file.read(16)
    order = "<" if start[:2] == b"II" else ">"
    layout = {b"*": ("I", 4, "H", 12), b"+": ("Q", 8, "Q", 20)}.get(start[2:4].strip(b"\0"))
    if start[:2] not in (b"II", b"MM") or layout is None:
        return False
    place, at, count, tag = layout
    try:
        (first,) = struct.unpack_from(order + place, start, at)
        file.seek(first)
        (tags,) = struct.unpack(order + count, file.read(struct.calcsize(count)))
        file.seek(first + struct.calcsize(count) + tag * tags)
        return any(file.read(struct.calcsize(place)))
    except (struct.error, OverflowError, OSError, ValueError):
        return False


def _is_wanted(tiff: tifffile.TiffFile, place: int) -> bool | None:
    """Whether a page is a picture of full size; None behind the last one."""
    try:
        page = tiff.pages.get(place, aspage=True)
    except IndexError:
        return None
    except Exception:  # damaged: reading it says how
        return True
    return not (isinstance(page, tifffile.TiffPage) and (page.is_reduced or page.is_mask))


def _is_broken(tiff: tifffile.TiffFile) -> bool:
    """Whether the last place of a next page that could be read is not the end of the chain."""
    where = tiff.pages.next_page_offset
    if where is None:
        return False
    tiff.filehandle.seek(where)
    return any(tiff.filehandle.read(tiff.tiff.offsetsize))
