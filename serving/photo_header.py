"""What a photograph says about itself: its size, and by EXIF when and where it was taken."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, BinaryIO, Self

from PIL import ExifTags, Image

from hqtl_common.preprocess import FORMATS

__all__ = ["PhotoHeader", "header_of"]

_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height


@dataclass(frozen=True, slots=True)
class PhotoHeader:
    """What a file says about itself beside its pixels; None where it says nothing.

    Args:
        width: Width in pixels, upright.
        height: Height in pixels, upright.
        taken: When the photograph was taken, ISO 8601; with an offset only where the camera wrote one.
        longitude: Degrees east (WGS 84) of the camera.
        latitude: Degrees north.
    """

    width: int | None = None
    height: int | None = None
    taken: str | None = None
    longitude: float | None = None
    latitude: float | None = None

    def to_text(self) -> str:
        """One line of ASCII."""
        return json.dumps(astuple(self))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The reverse of :meth:`to_text`."""
        return cls(*json.loads(text))


def header_of(source: bytes | BinaryIO) -> PhotoHeader:
    """Read from the header only; what cannot be read is None, never an error.

    Args:
        source: An encoded image, or a file that holds one; the file is left anywhere.
    """
    with suppress(Exception), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        exif = image.getexif()
        turned = exif.get(ExifTags.Base.Orientation) in _TURNED
        width, height = image.size[::-1] if turned else image.size
        longitude, latitude = _position(exif.get_ifd(ExifTags.IFD.GPSInfo))
        return PhotoHeader(width, height, _taken(exif), longitude, latitude)
    return PhotoHeader()


def _taken(exif: Image.Exif) -> str | None:
    """Source: CIPA DC-008 (Exif 2.32), DateTimeOriginal and OffsetTimeOriginal."""
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    when = inner.get(ExifTags.Base.DateTimeOriginal) or exif.get(ExifTags.Base.DateTime)
    offset = str(inner.get(ExifTags.Base.OffsetTimeOriginal) or "").strip("\0 ")
    with suppress(ValueError, TypeError):
        taken = datetime.strptime(str(when).strip("\0 "), "%Y:%m:%d %H:%M:%S").isoformat()
        with suppress(ValueError):
            return datetime.fromisoformat(taken + offset).isoformat()
        return taken
    return None


def _position(gps: dict[int, Any]) -> tuple[float, float] | tuple[None, None]:
    """Longitude and latitude."""
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        latitude = _degrees(gps[ExifTags.GPS.GPSLatitude], gps[ExifTags.GPS.GPSLatitudeRef], "NS")
        longitude = _degrees(gps[ExifTags.GPS.GPSLongitude], gps[ExifTags.GPS.GPSLongitudeRef], "EW")
        if abs(latitude) <= 90 and abs(longitude) <= 180:
            return longitude, latitude
    return None, None


def _degrees(parts: Sequence[Any], reference: object, signs: str) -> float:
    """Degrees, minutes, seconds → degrees; the second letter of ``signs`` is negative."""
    letter = reference.decode("ascii", "replace") if isinstance(reference, bytes) else str(reference)
    degrees, minutes, seconds = (float(part) for part in parts)
    value = (degrees + minutes / 60 + seconds / 3600) * (1, -1)[signs.index(letter[:1])]
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return round(value, 9)
