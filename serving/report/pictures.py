"""Pictures inside of the page: small JPEGs as data addresses."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from PIL import Image

from hqtl_common.errors import HqtlError
from hqtl_common.rasters import Raster
from serving.report.overview import cut_out, overview_of
from serving.report.selection import Place

__all__ = ["as_address", "close_ups", "thumbnail"]

_EDGE, _CLOSE, _QUALITY = 900, 240, 80


def as_address(picture: Image.Image, *, lossless: bool = False) -> str:
    """A data address of the picture."""
    data = io.BytesIO()
    if lossless:
        picture.save(data, "PNG")
    else:
        picture.save(data, "JPEG", quality=_QUALITY)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def close_ups(opened: AbstractContextManager[Raster], places: Sequence[Place], size: int) -> list[tuple[Place, str]]:
    """Each place with its picture at the resolution of the image, larger tiles made smaller; none where it cannot be read.

    Args:
        opened: The image.
        places: Where its tiles begin.
        size: Edge length of a tile in pixels.
    """
    try:
        with opened as raster:
            pictures = [cut_out(raster, place.x, place.y, size) for place in places]
    except HqtlError:
        return []
    for picture in pictures:
        picture.thumbnail((_CLOSE, _CLOSE), Image.Resampling.LANCZOS)
    return [(place, as_address(picture)) for place, picture in zip(places, pictures, strict=True)]


def thumbnail(opened: AbstractContextManager[Raster], map_path: Path | None) -> str | None:
    """A small copy of the map, else of the image; None where neither can be read.

    Args:
        opened: The image.
        map_path: Its map.
    """
    try:
        if map_path is not None and map_path.exists():
            with Image.open(map_path) as picture:
                small = picture.convert("RGB")
                small.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
                return as_address(small)
        with opened as raster:
            return as_address(overview_of(raster, _EDGE // 2))
    except (HqtlError, OSError):
        return None
