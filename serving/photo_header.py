"""What a photograph or video says about itself: its size, and by EXIF or its container when and where it was taken."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from typing import Any, BinaryIO, Self

from PIL import ExifTags, Image

from hqtl_common.preprocess import FORMATS

__all__ = ["PhotoHeader", "header_of", "header_of_video"]

_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_PLACES = ("com.apple.quicktime.location.ISO6709", "location")  # where FFmpeg shows the position of QuickTime and MP4 files
_PLACE = re.compile(r"([+-]\d{1,2}(?:\.\d+)?)([+-]\d{1,3}(?:\.\d+)?)(?![\d.])")  # ISO 6709, decimal degrees
_CLOCK_NOT_SET = 1970  # containers count from 1904 or 1970


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


def header_of_video(about: Mapping[str, str]) -> PhotoHeader:
    """When, mostly in universal time, and where a video was taken; what its container does not say is None.

    Args:
        about: Of :class:`hqtl_common.videos.VideoFrames`.
    """
    taken = None
    with suppress(ValueError):
        begun = datetime.fromisoformat(about.get("creation_time", "")).replace(microsecond=0)
        taken = begun.isoformat() if begun.year > _CLOCK_NOT_SET else None
    for place in filter(None, (_PLACE.match(about.get(name, "")) for name in _PLACES)):
        latitude, longitude = float(place[1]), float(place[2])
        if abs(latitude) <= 90 and abs(longitude) <= 180:
            return PhotoHeader(taken=taken, longitude=longitude, latitude=latitude)
    return PhotoHeader(taken=taken)


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
    value = (degrees + minutes / 60 + seconds / 3600) * {signs[0]: 1, signs[1]: -1}[letter[:1]]
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return round(value, 9)
