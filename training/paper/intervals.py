"""Means, differences and slopes with 95 % intervals, ready for JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import linregress, t

from training import significance

__all__ = ["mean_interval", "paired_difference", "slope_interval"]


def mean_interval(values: Sequence[float], within: tuple[float, float] = (-math.inf, math.inf)) -> dict[str, Any]:
    """``mean``, ``low``, ``high`` and ``count`` by Student's t over independent repetitions; a single one has no limits (None).

    Args:
        values: One per repetition.
        within: See :func:`training.significance.mean_interval`.
    """
    found = significance.mean_interval(values, within)
    low, high = found["interval"] or (None, None)
    return {"mean": found["mean"], "low": low, "high": high, "count": found["count"]}


def paired_difference(values: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """:func:`mean_interval` of ``values − reference``, paired by position."""
    return mean_interval([value - other for value, other in zip(values, reference, strict=True)])


def slope_interval(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """``slope``, its ``low`` and ``high`` and ``r2`` of a straight line fitted by least squares.

    Limits and ``r2`` are None below 3 points, ``r2`` also where ``y`` does not vary.
    """
    if len(set(x)) < 2 or np.ptp(y) == 0:
        limit = 0.0 if len(set(x)) > 1 and len(x) > 2 else None
        return {"slope": 0.0, "low": limit, "high": limit, "r2": None}
    fit = linregress(x, y)
    slope = float(fit.slope)
    if len(x) < 3:
        return {"slope": slope, "low": None, "high": None, "r2": None}
    half = float(t.ppf(0.975, len(x) - 2) * fit.stderr)
    return {"slope": slope, "low": slope - half, "high": slope + half, "r2": float(fit.rvalue) ** 2}
