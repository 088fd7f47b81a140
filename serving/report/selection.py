"""What the page shows of any number of images: the worst ones, those to look at, and how the probabilities spread. Of bounded size."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from serving.report.results import ImageResult

__all__ = ["BINS", "FAILED", "REVIEW", "WORST", "Choice", "Selected"]

WORST, REVIEW, FAILED, BINS = 24, 100, 50, 20


@dataclass(frozen=True, slots=True, order=True)
class Choice:
    """An image the page shows; ``rank`` orders them."""

    rank: tuple[float, ...]
    number: int
    row: dict[str, Any] = field(compare=False)
    map_file: str | None = field(compare=False, default=None)


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
            _keep(self.worst, Choice(rank, image.number, row, map_file), WORST)
            self.reasons.update(row["review"])
            if row["review"]:
                self.to_review += 1
                _keep(self.review, Choice(rank, image.number, row, map_file), REVIEW)

    def ordered(self, choices: list[Choice]) -> list[Choice]:
        """The worst one first."""
        return sorted(choices, reverse=True)


def _keep(heap: list[Choice], choice: Choice, most: int) -> None:
    heapq.heappush(heap, choice)
    if len(heap) > most:
        heapq.heappop(heap)
