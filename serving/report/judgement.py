"""Answers against truth, and the picture of the worst misses."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hqtl_common.errors import HqtlError
from serving.report.figures import Counts
from serving.report.originals import Originals
from serving.report.overview import cut_out, overview_of
from serving.report.results import ImageResult
from serving.report.truth import CRACK_PIXELS, Truth

__all__ = ["Judgement", "draw_misses"]

_SHOWN = 24  # misses of each kind
_EDGE, _COLUMNS, _GAP = 150, 8, 8


@dataclass(frozen=True, slots=True, order=True)
class _Miss:
    """A wrong answer; the larger ``wrong``, the farther off."""

    wrong: float
    path: str
    x: int = 0
    y: int = 0
    size: int = 0
    number: int = 0
    row: dict[str, Any] = field(default_factory=dict, compare=False)


@dataclass(slots=True)
class Judgement:
    """Collects what truth says of each image.

    Args:
        truth: Where it comes from.
        positive: The positive label.
    """

    truth: Truth
    positive: str
    images: Counts = field(default_factory=Counts)
    tiles: Counts = field(default_factory=Counts)
    without_truth: int = 0
    problems: list[str] = field(default_factory=list)
    missed: list[_Miss] = field(default_factory=list)
    alarms: list[_Miss] = field(default_factory=list)

    def add(self, image: ImageResult) -> None:
        """One more image; duplicates and files without an answer do not count."""
        if not image.answered:
            return
        try:
            found = self.truth.of_image(image)
        except HqtlError as error:
            self.problems = [*self.problems, str(error)][:5]
            found = None
        if found is None:
            self.without_truth += 1
            return
        whole, tiles = found
        called = image.row["label"] == self.positive
        self.images.add(whole, called)
        if not tiles:
            self._note(whole, called, image.score(self.positive), _Miss(0.0, image.path, number=image.number, row=image.row))
        for known, tile in zip(tiles, image.tiles, strict=False):
            called = tile["label"] == self.positive
            self.tiles.add(known, called)
            size = image.row["tiles"]["size"]
            self._note(
                known,
                called,
                tile["probabilities"][self.positive],
                _Miss(0.0, image.path, tile["x"], tile["y"], size, image.number, image.row),
            )

    def to_dict(self, source: Path) -> dict[str, Any]:
        """JSON-ready figures."""
        rule = f"from {CRACK_PIXELS} crack pixels per 224 × 224 on (value 128 or more); clear only without any from value 32 on"
        return {
            "source": str(source),
            "kind": self.truth.kind,
            **({"rule": rule} if self.truth.kind == "masks" else {}),
            "images": self.images.to_dict(),
            "tiles": self.tiles.to_dict() if self.tiles != Counts() else None,
            "without_truth": self.without_truth,
            "problems": self.problems,
        }

    def _note(self, known: bool | None, called: bool, score: float, miss: _Miss) -> None:
        if known is None or known == called:
            return
        heap, wrong = (self.missed, 1 - score) if known else (self.alarms, score)
        heapq.heappush(heap, replace(miss, wrong=wrong))
        if len(heap) > _SHOWN:
            heapq.heappop(heap)


def draw_misses(judgement: Judgement, originals: Originals) -> Image.Image | None:
    """The worst misses and false alarms with the probability given; None where nothing was wrong.

    Args:
        judgement: What was collected.
        originals: Of the scored folder.
    """
    parts = [("missed", sorted(judgement.missed, reverse=True)), ("false alarms", sorted(judgement.alarms, reverse=True))]
    parts = [(title, misses) for title, misses in parts if misses]
    if not parts:
        return None
    font = ImageFont.load_default(15)
    step = _EDGE + _GAP + 20
    heights = [34 + step * -(-len(misses) // _COLUMNS) for _, misses in parts]
    sheet = Image.new("RGB", (_GAP + _COLUMNS * (_EDGE + _GAP), sum(heights) + _GAP), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for (title, misses), height in zip(parts, heights, strict=True):
        pen.text((_GAP, top + 10), f"{title}, the worst {len(misses)} first; number of the image and probability given", "black", font)
        for index, miss in enumerate(misses):
            x, y = _GAP + index % _COLUMNS * (_EDGE + _GAP), top + 34 + index // _COLUMNS * step
            sheet.paste(_cut(originals, miss), (x, y))
            given = 1 - miss.wrong if title == "missed" else miss.wrong
            pen.text((x, y + _EDGE + 1), f"{miss.number}: {given:.3f}", "black", font)
        top += height
    return sheet


def _cut(originals: Originals, miss: _Miss) -> Image.Image:
    """The tile, or the image where it was scored whole, in a square."""
    square = Image.new("RGB", (_EDGE, _EDGE), (235, 235, 235))
    try:
        with originals.open(miss.row) as raster:
            picture = cut_out(raster, miss.x, miss.y, miss.size) if miss.size else overview_of(raster, _EDGE)
    except HqtlError:
        return square
    picture.thumbnail((_EDGE, _EDGE))
    square.paste(picture, (0, 0))
    return square
