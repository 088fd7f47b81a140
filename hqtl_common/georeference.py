"""Where the pixels of a map-making camera lie on the ground: the tags of a GeoTIFF as six numbers and a name.

Reading needs nothing but the tags; :meth:`GeoReference.lonlat`, and systems that have no EPSG number, need rasterio.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hqtl_common.errors import ConfigError, InputError

__all__ = ["GeoReference", "read_georeference"]

_PIXEL_SCALE, _TIE_POINTS, _TRANSFORMATION = "ModelPixelScale", "ModelTiepoint", "ModelTransformation"
_USER_DEFINED = 32767
_PIXEL_IS_POINT = 2
_HALF_WAY = 180  # degrees
_FARTHEST = 1e99  # in any unit; what is not a number is not less


@dataclass(frozen=True, slots=True)
class GeoReference:
    """An affine map from pixels to a coordinate system.

    Args:
        transform: (a, b, c, d, e, f) with X = a·x + b·y + c and Y = d·x + e·y + f; (x, y) counts pixels from the outer
            corner of the first one, so that its centre is (0.5, 0.5).
        crs: Name of the coordinate system, ``EPSG:n``, or its WKT; None where the file names none.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str | None

    def map_point(self, x: float, y: float) -> tuple[float, float]:
        """Coordinates (X, Y) in the image's own system, in its unit."""
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f

    def lonlat(self, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        """Longitude and latitude (WGS 84, degrees) of pixel positions; across the 180th meridian longitudes go on beyond 180.

        Args:
            points: Positions (x, y) in pixels.

        Raises:
            InputError: The image names no coordinate system, one that is unknown, or one that has no place on the earth for them.
            ConfigError: The package rasterio is not installed.
        """
        mapped = [self.map_point(x, y) for x, y in points]
        if self.crs is None:
            raise InputError("the image has map coordinates but names no coordinate system; write one into it, e.g. with gdal_edit -a_srs")
        found = mapped if self.crs in {"EPSG:4326", "OGC:CRS84"} or not mapped else _on_earth(self.crs, mapped)
        if not all(math.isfinite(longitude) and abs(latitude) <= 90 for longitude, latitude in found):
            raise InputError("the map coordinates of the image are no places on the earth in its coordinate system")
        return found


def _on_earth(crs: str, points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Coordinates in a system → longitude and latitude."""
    try:
        from rasterio.errors import CRSError
        from rasterio.warp import transform
    except ImportError as error:
        raise ConfigError("longitude and latitude need the package rasterio: pip install 'hqtl[geo]'") from error
    try:
        longitudes, latitudes = transform(crs, "EPSG:4326", *zip(*points, strict=True))[:2]
    except CRSError as error:
        raise InputError(f"unknown coordinate system {crs!r}: {error}") from error
    except Exception as error:  # what GDAL and PROJ raise has no public name
        raise InputError("coordinates in the system of the image cannot be converted to longitude and latitude") from error
    if max(longitudes) - min(longitudes) > _HALF_WAY:  # they lie on both sides of the 180th meridian, where lines would go round the earth
        longitudes = [longitude + 360 if longitude < 0 else longitude for longitude in longitudes]
    return list(zip(longitudes, latitudes, strict=True))


def read_georeference(tags: Mapping[str, Any], path: Path) -> GeoReference | None:
    """The georeference of a GeoTIFF's tags, None where they hold no position, or none that is a number.

    Source: OGC GeoTIFF Standard 1.1 (19-008r4), sections 7.1 and B.6.

    Args:
        tags: Keys by their names in the standard, as ``tifffile.TiffPage.geotiff_tags`` gives them.
        path: The file; rasterio, if it is installed, spells out a coordinate system without an EPSG number.
    """
    transform = _transform(tags)
    if transform is None or not all(abs(value) < _FARTHEST for value in transform):
        return None
    if tags.get("GTRasterTypeGeoKey") == _PIXEL_IS_POINT:  # the standard then speaks of centres
        a, b, c, d, e, f = transform
        transform = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    code = next((int(tags[key]) for key in ("ProjectedCSTypeGeoKey", "GeographicTypeGeoKey") if key in tags), _USER_DEFINED)
    return GeoReference(transform, _spelled_out(path) if code in {0, _USER_DEFINED} else f"EPSG:{code}")


def _spelled_out(path: Path) -> str | None:
    """WKT of the coordinate system."""
    try:
        import rasterio
    except ImportError:
        return None
    with suppress(OSError), path.open("rb") as file, rasterio.open(f"/dev/fd/{file.fileno()}") as opened:  # GDAL takes no odd names
        return opened.crs.to_wkt() if opened.crs else None
    return None


def _transform(tags: Mapping[str, Any]) -> tuple[float, float, float, float, float, float] | None:
    if _TRANSFORMATION in tags:
        a, b, _, c, d, e, _, f = np.ravel(tags[_TRANSFORMATION])[:8].tolist()
        return (a, b, c, d, e, f)
    if _PIXEL_SCALE not in tags or _TIE_POINTS not in tags:
        return None
    scale_x, scale_y = np.ravel(tags[_PIXEL_SCALE])[:2].tolist()
    column, row, _, x, y, _ = np.ravel(tags[_TIE_POINTS])[:6].tolist()  # the first of several
    return (scale_x, 0.0, x - scale_x * column, 0.0, -scale_y, y + scale_y * row)
