"""The rows of a finished run, image by image with its tiles, in constant memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import InputError
from hqtl_common.tiles import TileGrid
from serving.scoring.rows import part_text
from serving.scoring.state import JSONL, TILES
from serving.scoring.tile_pixels import grid_of

__all__ = ["ImageResult", "name_of", "read_results"]


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image of a run.

    Args:
        number: Its place among all rows, from 1.
        row: Its row.
        tiles: Rows of its tiles; empty where it was scored whole, failed, or is a duplicate.
    """

    number: int
    row: dict[str, Any]
    tiles: tuple[dict[str, Any], ...] = ()

    @property
    def path(self) -> str:
        """Relative path; bytes that are not UTF-8 are surrogates."""
        return str(self.row["path"])

    @property
    def name(self) -> str:
        """The path, and which part of the file it is."""
        return name_of(self.row)

    @property
    def answered(self) -> bool:
        """Whether the image has an answer of its own."""
        return self.row["error"] is None and self.row["duplicate_of"] is None

    @property
    def grid(self) -> TileGrid:
        """Where the tiles lie."""
        cut = self.row["tiles"]
        return grid_of(self.row["width"], self.row["height"], cut["size"], cut["stride"])

    def score(self, positive: str) -> float:
        """Probability of the positive label."""
        return float(self.row["probabilities"][positive])

    def scores(self, positive: str) -> NDArray[np.float64]:
        """Probability of the positive label per tile, (T,)."""
        return np.array([tile["probabilities"][positive] for tile in self.tiles], dtype=np.float64)

    def marked(self, positive: str) -> NDArray[np.bool_]:
        """Which tiles have the positive label, (T,)."""
        return np.array([tile["label"] == positive for tile in self.tiles], dtype=np.bool_)


def name_of(row: dict[str, Any]) -> str:
    """What a row is about: the path of its file and, where it holds several pictures, which one it is."""
    kind = row.get("part_kind")
    return str(row["path"]) if kind is None else f"{row['path']}, {part_text(kind, row['part'], row['time_s'])}"


def read_results(out: Path) -> Iterator[ImageResult]:
    """Every file of a run, in order.

    Args:
        out: The output folder.

    Raises:
        InputError: The rows cannot be read or were changed.
    """
    try:
        with (out / JSONL).open("rb") as lines:
            tiles = _lines(out / TILES)
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                own = () if row["tiles"] is None or row["duplicate_of"] is not None else tuple(islice(tiles, row["tiles"]["count"]))
                yield ImageResult(number, row, own)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"the rows in {str(out)!r} cannot be read: {error}; score the folder again into another one") from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        with path.open("rb") as file:
            for line in file:
                yield json.loads(line)
