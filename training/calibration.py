"""Temperature and threshold from answers to held-out images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax

from hqtl_common.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, Recall, Reliability
from hqtl_common.classifier import softmax
from hqtl_common.errors import ConfigError, InputError
from training.metrics import wilson_interval
from training.reliability import reliability_figures

__all__ = ["MIN_IMAGES", "ThresholdRule", "calibrate", "choose_threshold", "fit_temperature", "measure_recall"]

F64 = NDArray[np.float64]

MIN_IMAGES = 20  # a temperature from fewer is a guess
_Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
_EDGE = 1e-6  # a threshold stays so far from 0 and 1


@dataclass(frozen=True, slots=True)
class ThresholdRule:
    """How the threshold of two classes is chosen; without anything it is 0.5.

    Args:
        recall: Share of the positive images that must be found.
        cost_miss: Cost of a positive image that is missed …
        cost_false_alarm: … in the unit of that of a false alarm.

    Raises:
        ConfigError: Both ways at once, only one of the costs, or a value out of range.
    """

    recall: float | None = None
    cost_miss: float | None = None
    cost_false_alarm: float | None = None

    def __post_init__(self) -> None:
        costs = (self.cost_miss, self.cost_false_alarm)
        if (costs[0] is None) != (costs[1] is None):
            raise ConfigError("give both costs, --cost-miss and --cost-false-alarm, or none")
        if self.recall is not None and costs[0] is not None:
            raise ConfigError("the threshold is chosen by --recall or by costs; give one of them")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise ConfigError(f"recall must lie between 0 and 1; got {self.recall}")
        if any(cost is not None and not 0 < cost < math.inf for cost in costs):
            raise ConfigError(f"costs must be above 0; got {costs[0]} and {costs[1]}")

    @property
    def chosen(self) -> bool:
        """Something was asked for."""
        return self.recall is not None or self.cost_miss is not None

    @property
    def words(self) -> str:
        """The rule for people."""
        if self.recall is not None:
            return f"recall {self.recall:g}"
        if self.cost_miss is not None:
            return f"costs, miss {self.cost_miss:g} : false alarm {self.cost_false_alarm:g}"
        return "even odds"


def calibrate(
    logits: F64,
    truth: NDArray[np.intp],
    labels: Sequence[str],
    positive: str,
    rule: ThresholdRule,
    *,
    backend: str,
    shots: int | None,
    subset: str,
    seed: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> Calibration:
    """Fit the temperature, choose the threshold on the calibrated probabilities, and measure both on the same images.

    Args:
        logits: (N, C) of images that the model was not trained on.
        truth: (N,) positions in ``labels``.
        labels: C class names.
        positive: One of them.
        rule: How the threshold is chosen.
        backend: What gave the logits.
        shots: Its repetitions, None = exact.
        subset: What the images are called.
        seed: Seed of the sampling.
        options: Options of the backend by its own names.

    Raises:
        InputError: No image.
        ConfigError: A rule for a threshold with more than two classes, or by recall without a positive image.
    """
    if not len(truth):
        raise InputError("there is no usable image to calibrate on")
    index, binary = list(labels).index(positive), len(labels) == 2
    if rule.chosen and not binary:
        raise ConfigError(f"a threshold needs two classes; the model has {len(labels)}: leave --recall and the costs out")
    temperature, notes = fit_temperature(logits, truth)
    probabilities = softmax(logits / temperature)
    threshold = None
    if binary:
        threshold, more = choose_threshold(probabilities[:, index], truth == index, rule)
        notes += more
    return Calibration(
        backend=backend,
        shots=shots,
        seed=seed,
        options=dict(options or {}),
        temperature=temperature,
        threshold=threshold,
        rule=rule.words if binary else "the most probable class",
        subset=subset,
        num_images=len(truth),
        notes=tuple(notes),
        before=_rounded(reliability_figures(softmax(logits), truth, index)),
        after=_rounded(reliability_figures(probabilities, truth, index)),
        recall=None if threshold is None else measure_recall(probabilities[:, index], truth == index, threshold),
    )


def fit_temperature(logits: F64, truth: NDArray[np.intp]) -> tuple[float, list[str]]:
    """The divisor of the logits that makes the truth most likely (Guo et al. 2017, arXiv:1706.04599), and what to know about it.

    With β = 1/T the loss is convex, and its derivative, the mean of E_p[z] − z_true, rises with β: its zero is found between
    the bounds. It has none where every image is right, for any larger β then is better. 1 is kept there, where the images are
    too few, and where the log-likelihood gains no more than the 1 that a free parameter costs (Akaike 1974): such a temperature
    is as likely to harm on other images as to help.

    Args:
        logits: (N, C).
        truth: (N,) positions of the true classes.

    Returns:
        The temperature, with six digits, so that the last bits of a sum do not show in a bundle; and notes for people.
    """
    rows = np.arange(len(truth))
    if len(truth) < MIN_IMAGES:
        return 1.0, [f"the temperature stays at 1: {len(truth)} images are too few to fit it ({MIN_IMAGES} are needed)"]
    if (logits[rows, truth] >= logits.max(axis=1)).all():
        return 1.0, ["the temperature stays at 1: every image is answered rightly, and any colder one would fit better still"]

    def slope(beta: float) -> float:
        return float(((softmax(beta * logits) * logits).sum(axis=1) - logits[rows, truth]).mean())

    coldest, hottest = 1 / MIN_TEMPERATURE, 1 / MAX_TEMPERATURE
    if slope(coldest) <= 0:
        return MIN_TEMPERATURE, [f"the temperature is at its lower bound, {MIN_TEMPERATURE}"]
    if slope(hottest) >= 0:
        return MAX_TEMPERATURE, [f"the temperature is at its upper bound, {MAX_TEMPERATURE:g}: the answers say next to nothing"]
    found = float(f"{1 / brentq(slope, hottest, coldest, xtol=1e-12):.6g}")
    if _log_likelihood(logits / found, truth) - _log_likelihood(logits, truth) <= 1:
        return 1.0, [f"the temperature stays at 1: {found:.3g} fits {len(truth)} images no better than it would by chance"]
    return min(max(found, MIN_TEMPERATURE), MAX_TEMPERATURE), []


def choose_threshold(scores: F64, is_positive: NDArray[np.bool_], rule: ThresholdRule) -> tuple[float, list[str]]:
    """The probability from which the positive label is given, and what to know about it.

    By recall: the highest that finds the wanted share of the positive images, put half-way to the next lower score. By costs:
    c_false / (c_false + c_miss), the least expected cost where probabilities are right (Elkan 2001).

    Args:
        scores: (N,) probability of the positive class.
        is_positive: (N,).
        rule: How to choose.

    Raises:
        ConfigError: By recall, and no image is positive.
    """
    if rule.cost_miss is not None and rule.cost_false_alarm is not None:
        return _inside(rule.cost_false_alarm / (rule.cost_false_alarm + rule.cost_miss)), []
    if rule.recall is None:
        return 0.5, []
    found = np.sort(scores[is_positive])
    if not len(found):
        raise ConfigError("a threshold by recall needs positive images; the images to calibrate on have none")
    allowed = math.floor((1 - rule.recall) * len(found) + 1e-9)  # images that may be missed
    lower = scores[scores < found[allowed]]
    threshold = _inside(float(found[allowed] + (lower.max() if len(lower) else 0.0)) / 2)
    needed = math.ceil(rule.recall * _Z95**2 / (1 - rule.recall)) if rule.recall < 1 else None
    if needed is not None and len(found) >= needed:
        return threshold, []
    enough = f"{needed:,} are needed" if needed else "no number can"
    low = wilson_interval(len(found), len(found))[0]
    return threshold, [
        f"{len(found)} positive images cannot prove recall {rule.recall:g} ({enough}): even if all are found, its 95 % interval "
        f"begins at {low:.3f}"
    ]


def measure_recall(scores: F64, is_positive: NDArray[np.bool_], threshold: float) -> Recall | None:
    """What a threshold reaches; None where no image is positive.

    Args:
        scores: (N,) probability of the positive class.
        is_positive: (N,).
        threshold: Probability from which the positive label is given.
    """
    called, positives = scores >= threshold, int(is_positive.sum())
    if not positives:
        return None
    found = int((called & is_positive).sum())
    others = called[~is_positive]
    return Recall(
        recall=found / positives,
        interval=wilson_interval(found, positives),
        positives=positives,
        false_alarms=float(others.mean()) if len(others) else 0.0,
    )


def _log_likelihood(logits: F64, truth: NDArray[np.intp]) -> float:
    return float(log_softmax(logits, axis=1)[np.arange(len(truth)), truth].sum())


def _inside(threshold: float) -> float:
    return min(max(threshold, _EDGE), 1 - _EDGE)


def _rounded(figures: dict[str, float]) -> Reliability:
    return Reliability(**{name: float(f"{value:.6g}") for name, value in figures.items()})
