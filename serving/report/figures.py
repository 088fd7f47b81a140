"""Precision, recall and F1 with 95 % intervals from counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["Counts", "wilson"]

_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(hits: int, total: int) -> tuple[float, float] | None:
    """95 % interval of a share; None of nothing.

    Source: Wilson, Journal of the American Statistical Association 22 (1927) 209, score interval.
    """
    if not total:
        return None
    share, square = hits / total, _Z95**2
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = _Z95 / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total**2))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(slots=True)
class Counts:
    """Answers against truth.

    Args:
        tp: Positive, and called so.
        fp: Negative, called positive.
        fn: Positive, called negative.
        tn: Negative, and called so.
        unclear: Truth decides nothing; not counted above.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0
    unclear: int = 0

    def add(self, truth: bool | None, called: bool) -> None:
        """One more answer."""
        if truth is None:
            self.unclear += 1
        elif truth:
            self.tp, self.fn = self.tp + called, self.fn + (not called)
        else:
            self.fp, self.tn = self.fp + called, self.tn + (not called)

    def to_dict(self) -> dict[str, Any]:
        """Counts and figures, JSON-ready; a figure is None where nothing defines it.

        The interval of F1 = 2J/(1+J) is that of J = tp/(tp+fp+fn), a share, carried over.
        """
        jaccard = wilson(self.tp, self.tp + self.fp + self.fn)
        total = 2 * self.tp + self.fp + self.fn
        return {
            **{name: getattr(self, name) for name in ("tp", "fp", "fn", "tn", "unclear")},
            "precision": _share(self.tp, self.tp + self.fp),
            "recall": _share(self.tp, self.tp + self.fn),
            "f1": {
                "value": 2 * self.tp / total if total else None,
                "interval": None if jaccard is None else [2 * bound / (1 + bound) for bound in jaccard],
            },
        }


def _share(hits: int, total: int) -> dict[str, Any]:
    interval = wilson(hits, total)
    return {"value": hits / total if total else None, "interval": None if interval is None else list(interval)}
