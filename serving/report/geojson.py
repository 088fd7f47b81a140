"""Where things are: GeoJSON in longitude and latitude where an image knows them, and in pixels where it does not.

Source: RFC 7946. Its coordinates are WGS 84, so what has none goes into a document of its own (``pixels.geojson``, x to the right,
y down); an image with map coordinates that cannot be converted here has a null geometry and its own coordinates as a property.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from hqtl_common.errors import HqtlError
from hqtl_common.georeference import GeoReference
from serving.report.originals import Originals
from serving.report.regions import Region
from serving.report.results import ImageResult
from serving.scoring.rows import PART_COLUMNS

__all__ = ["FeatureWriter", "GeoWriter"]

Corners = Sequence[tuple[float, float]]
Rings = list[list[list[float]]]


class FeatureWriter:
    """A FeatureCollection, written feature by feature.

    Args:
        file: Where it goes, text.
        members: Foreign members of the collection.
    """

    def __init__(self, file: IO[str], members: dict[str, Any]) -> None:
        self._file = file
        self.count = 0
        file.write(json.dumps({"type": "FeatureCollection", **members})[:-1] + ', "features": [')

    def add(self, geometry: dict[str, Any] | None, properties: dict[str, Any]) -> None:
        """One feature."""
        feature = {"type": "Feature", "geometry": geometry, "properties": properties}
        self._file.write((",\n" if self.count else "\n") + json.dumps(feature))
        self.count += 1

    def finish(self) -> None:
        """Complete the document."""
        self._file.write("\n]}\n")


class GeoWriter:
    """Puts each image into the document it belongs to.

    Args:
        originals: Of the scored folder.
        world: Longitude and latitude.
        pixels: Pixels.
        positive: The positive label.
    """

    def __init__(self, originals: Originals, world: FeatureWriter, pixels: FeatureWriter, positive: str) -> None:
        self._originals, self._world, self._pixels, self._positive = originals, world, pixels, positive

    def add(self, image: ImageResult, regions: list[Region], map_file: str | None) -> None:
        """The image's outline or point, and one feature per region.

        Args:
            image: The image.
            regions: Of its positive tiles.
            map_file: Its map, relative to the output folder.
        """
        row = image.row
        about = {"kind": "image", **{name: row[name] for name in ("path", "label", "probability", "familiarity", "review", "taken")}}
        about |= {"duplicate_of": row["duplicate_of"], "error": row["error"], "map": map_file}
        about |= {name: row[name] for name in PART_COLUMNS if row.get("part_kind") is not None}
        if row["width"] is None:  # nothing in it could be read
            return
        reference = self._reference(row)
        point = None if row["longitude"] is None else {"type": "Point", "coordinates": [row["longitude"], row["latitude"]]}
        frame = ((0.0, 0.0), (float(row["width"]), 0.0), (float(row["width"]), float(row["height"])), (0.0, float(row["height"])))
        if reference is not None:
            self._add_placed(reference, frame, image, regions, about)
        else:
            if point is not None:
                self._world.add(point, about)
            for rings, properties in self._shapes(frame, image, regions, about) if image.tiles else ():
                self._pixels.add(_polygon([_closed(ring) for ring in rings]), properties)

    def _add_placed(
        self, reference: GeoReference, frame: Corners, image: ImageResult, regions: list[Region], about: dict[str, Any]
    ) -> None:
        for rings, properties in self._shapes(frame, image, regions, about):
            try:
                self._world.add(_polygon([_wound(reference.lonlat(ring), hole=index > 0) for index, ring in enumerate(rings)]), properties)
            except HqtlError as error:
                own = [_closed([reference.map_point(x, y) for x, y in ring]) for ring in rings]
                self._world.add(None, {**properties, "map_coordinates": {"crs": reference.crs, "reason": str(error), "polygon": own}})

    def _shapes(
        self, frame: Corners, image: ImageResult, regions: list[Region], about: dict[str, Any]
    ) -> Iterator[tuple[list[Corners], dict[str, Any]]]:
        """The outlines, in pixels, and properties of the image and its regions."""
        yield [frame], about
        scores = image.scores(self._positive)
        for region in regions:
            values = scores[list(region.tiles)]
            yield (
                [region.outer, *region.holes],
                {
                    "kind": "region",
                    "path": image.path,
                    **{name: image.row[name] for name in PART_COLUMNS if image.row.get("part_kind") is not None},
                    "label": self._positive,
                    "probability": float(np.max(values)),
                    "mean_probability": float(np.mean(values)),
                    "tiles": len(region.tiles),
                    "pixels": region.area,
                },
            )

    def _reference(self, row: dict[str, Any]) -> GeoReference | None:
        """Map coordinates, which only a TIFF has."""
        if not row["path"].lower().endswith((".tif", ".tiff")) or row["error"] is not None:
            return None
        try:
            with self._originals.open(row) as raster:
                return raster.georeference
        except HqtlError:
            return None


def _polygon(rings: Rings) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": rings}


def _closed(ring: Corners) -> list[list[float]]:
    return [[x, y] for x, y in (*ring, ring[0])]


def _wound(ring: Corners, *, hole: bool) -> list[list[float]]:
    """Closed, counter-clockwise, a hole clockwise, as RFC 7946 wants it."""
    area = sum(x * ring[(index + 1) % len(ring)][1] - ring[(index + 1) % len(ring)][0] * y for index, (x, y) in enumerate(ring))
    ordered = ring if (area > 0) != hole else ring[::-1]
    return [[round(x, 9), round(y, 9)] for x, y in (*ordered, ordered[0])]
