"""Is the difference more than chance? Paired tests between the model and its twins, and intervals over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

__all__ = ["mcnemar", "mean_interval", "pooled", "range_of"]

_ANY = (-math.inf, math.inf)


def mcnemar(right: NDArray[np.bool_], twin_right: NDArray[np.bool_]) -> dict[str, Any]:
    """McNemar's exact test (1947): the images on which only one of two classifiers is right are a fair coin under equality.

    Args:
        right: (N,) whether the model is right about an image.
        twin_right: (N,) whether its twin is.

    Returns:
        ``only_model`` (b) and ``only_twin`` (c), numbers of images; ``p_value``, two-sided, 1 where they never differ.
    """
    return _exact(int((right & ~twin_right).sum()), int((~right & twin_right).sum()))


def _exact(only_model: int, only_twin: int) -> dict[str, Any]:
    differing = only_model + only_twin
    p_value = float(stats.binomtest(only_model, differing, 0.5).pvalue) if differing else 1.0
    return {"only_model": only_model, "only_twin": only_twin, "p_value": p_value}


def pooled(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One test from several answers of :func:`mcnemar` on different images, as the folds of one data set give."""
    return _exact(sum(test["only_model"] for test in tests), sum(test["only_twin"] for test in tests))


def range_of(figure: str) -> tuple[float, float]:
    """The values that a measured figure can take, by its name: a loss or a time is not negative, everything else is a share."""
    return (0.0, math.inf if figure.endswith(("loss", "seconds")) else 1.0)


def mean_interval(values: Sequence[float], within: tuple[float, float] = _ANY) -> dict[str, Any]:
    """Mean, sample standard deviation and 95 % interval of the mean by Student's t; these two are None for a single value.

    Args:
        values: One per seed or fold, at least one.
        within: The values that the mean can take; the interval is cut to them, which leaves out no possible one.
    """
    mean = statistics.fmean(values)
    if len(values) == 1:
        return {"mean": mean, "std": None, "interval": None, "count": 1}
    spread = statistics.stdev(values)
    half = float(stats.t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))
    interval = [max(mean - half, within[0]), min(mean + half, within[1])]
    return {"mean": mean, "std": spread, "interval": interval, "count": len(values)}
