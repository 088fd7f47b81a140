"""Regions as boxes and outlines in the JSON of the COCO data sets, which annotation tools read.

Source: https://cocodataset.org/#format-data (object detection), and ``score`` from its result format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from serving.report.regions import Region
from serving.report.results import ImageResult
from serving.scoring.rows import PART_COLUMNS

__all__ = ["CocoWriter"]


class CocoWriter:
    """Writes annotations as images come; the images are held back in a second file until :meth:`finish`.

    Args:
        file: Where the document goes, text.
        spare: An empty file for the images meanwhile, text, readable.
        positive: The positive label.
        produced: What made the annotations.
    """

    def __init__(self, file: IO[str], spare: IO[str], positive: str, produced: dict[str, Any]) -> None:
        self._file, self._spare, self._positive = file, spare, positive
        self._annotations = self._images = 0
        head = {"info": produced, "licenses": [], "categories": [{"id": 1, "name": positive, "supercategory": ""}]}
        file.write(json.dumps(head)[:-1] + ', "annotations": [')

    def add(self, image: ImageResult, regions: list[Region], map_file: str | None) -> None:
        """One image and its regions.

        Args:
            image: The image.
            regions: Of its positive tiles.
            map_file: Its map, relative to the output folder.
        """
        row = image.row
        if row["width"] is None:
            return
        entry = {"id": image.number, "file_name": row["path"], "width": row["width"], "height": row["height"]}
        entry |= {name: row[name] for name in PART_COLUMNS if row.get("part_kind") is not None}
        entry |= {"date_captured": row["taken"] or "", "map": map_file, "label": row["label"], "duplicate_of": row["duplicate_of"]}
        self._spare.write((",\n" if self._images else "\n") + json.dumps(entry))
        self._images += 1
        for annotation in self._annotated(image, regions):
            self._file.write((",\n" if self._annotations else "\n") + json.dumps(annotation))
            self._annotations += 1

    def finish(self) -> None:
        """Complete the document."""
        self._file.write('\n], "images": [')
        self._spare.seek(0)
        while block := self._spare.read(1 << 16):
            self._file.write(block)
        self._file.write("\n]}\n")

    def _annotated(self, image: ImageResult, regions: list[Region]) -> Iterator[dict[str, Any]]:
        scores = image.scores(self._positive)
        for number, region in enumerate(regions, self._annotations + 1):
            left, upper, right, lower = region.box
            yield {
                "id": number,
                "image_id": image.number,
                "category_id": 1,
                "bbox": [left, upper, right - left, lower - upper],
                "area": region.area,
                "segmentation": [[value for point in region.outer for value in point]],
                "iscrowd": 0,
                "score": float(np.max(scores[list(region.tiles)])),
                "tiles": len(region.tiles),
            }
