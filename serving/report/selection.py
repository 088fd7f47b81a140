"""What the page shows of any number of images: the worst ones, those to look at, and how the probabilities spread. Of bounded size."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from serving.report.results import ImageResult

__all__ = ["BINS", "FAILED", "OF_FILE", "REVIEW", "WORST", "Choice", "Place", "Selected", "worst_places"]

WORST, REVIEW, FAILED, BINS = 24, 100, 50, 20
OF_FILE = 6  # frames, pages or slices of one file among the worst
_PLACES = 4  # of an image


@dataclass(frozen=True, slots=True)
class Place:
    """A tile to look at: its upper left corner in pixels, and its probability of the positive label."""

    x: int
    y: int
    score: float


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """An image the page shows; ``rank`` orders them."""

    rank: tuple[float, ...]
    number: int
    row: dict[str, Any] = field(compare=False)
    map_file: str | None = field(compare=False, default=None)
    places: tuple[Place, ...] = field(compare=False, default=())


@dataclass(slots=True)
class Selected:
    """Collects the images of a run.

    Args:
        positive: The positive label.
    """

    positive: str
    worst: list[Choice] = field(default_factory=list)
    review: list[Choice] = field(default_factory=list)
    failed: list[Choice] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    to_review: int = 0
    histogram: list[int] = field(default_factory=lambda: [0] * BINS)

    def add(self, image: ImageResult, map_file: str | None) -> None:
        """One more image; a duplicate stands behind its first."""
        row = image.row
        if row["error"] is not None:
            self.failed = [*self.failed, Choice((), image.number, row)][:FAILED]
        elif row["duplicate_of"] is None:
            score = image.score(self.positive)
            self.histogram[min(BINS - 1, int(score * BINS))] += 1
            share = (row["tiles"]["positive"] / row["tiles"]["count"]) if row["tiles"] else 0.0
            rank = (float(row["label"] == self.positive), round(score, 3), share, float(-image.number))
            if len(self.worst) < WORST or rank > self.worst[0].rank:
                choice = Choice(rank, image.number, row, map_file, worst_places(image, self.positive))
                if _make_room(self.worst, choice):
                    _keep(self.worst, choice, WORST)
            self.reasons.update(row["review"])
            if row["review"]:
                self.to_review += 1
                _keep(self.review, Choice(rank, image.number, row, map_file), REVIEW)

    def ordered(self, choices: list[Choice]) -> list[Choice]:
        """The worst one first."""
        return sorted(choices, reverse=True)


def worst_places(image: ImageResult, positive: str) -> tuple[Place, ...]:
    """The most suspicious tiles that do not overlap, the worst one first: those with the positive label, at least one.

    Args:
        image: With its tiles.
        positive: The positive label.
    """
    found: list[Place] = []
    for index in (-image.scores(positive)).argsort(kind="stable"):
        tile, size = image.tiles[index], image.row["tiles"]["size"]
        if found and (len(found) == _PLACES or tile["label"] != positive):
            break
        if all(abs(tile["x"] - other.x) >= size or abs(tile["y"] - other.y) >= size for other in found):
            found.append(Place(tile["x"], tile["y"], tile["probabilities"][positive]))
    return tuple(found)


def _make_room(heap: list[Choice], choice: Choice) -> bool:
    """Whether one more of this file may be shown, in the place of its least suspicious one where there are enough."""
    same = [other for other in heap if other.row["path"] == choice.row["path"]]
    if len(same) < OF_FILE:
        return True
    if choice < min(same):
        return False
    heap.remove(min(same))
    heapq.heapify(heap)
    return True


def _keep(heap: list[Choice], choice: Choice, most: int) -> None:
    heapq.heappush(heap, choice)
    if len(heap) > most:
        heapq.heappop(heap)
