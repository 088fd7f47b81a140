"""Pictures inside of the page: small JPEGs as data addresses."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from hqtl_common.errors import HqtlError
from serving.report.overview import overview

__all__ = ["as_address", "thumbnail"]

_EDGE, _QUALITY = 900, 80


def as_address(picture: Image.Image, *, lossless: bool = False) -> str:
    """A data address of the picture."""
    data = io.BytesIO()
    if lossless:
        picture.save(data, "PNG")
    else:
        picture.save(data, "JPEG", quality=_QUALITY)
    return f"data:image/{'png' if lossless else 'jpeg'};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def thumbnail(path: Path, map_path: Path | None) -> str | None:
    """A small copy of the map, else of the image; None where neither can be read.

    Args:
        path: The image.
        map_path: Its map.
    """
    try:
        if map_path is not None and map_path.exists():
            with Image.open(map_path) as picture:
                small = picture.convert("RGB")
                small.thumbnail((_EDGE, _EDGE), Image.Resampling.LANCZOS)
                return as_address(small)
        return as_address(overview(path, _EDGE // 2))
    except (HqtlError, OSError):
        return None
