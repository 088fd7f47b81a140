"""Which temperature and threshold belong to an answer: fitted per backend, because noise shrinks ⟨Z⟩ and the logits with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MAX_TEMPERATURE", "MIN_TEMPERATURE", "NOISE_FREE", "Applied", "Calibration", "Recall", "Reliability", "choose_calibration"]

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
NOISE_FREE = "statevector"  # whose calibration serves every backend without noise

Share = Annotated[float, Field(ge=0, le=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Reliability(_Strict):
    """How far probabilities mean what they say, on the images of a calibration.

    Args:
        nll: Mean negative log-likelihood of the true class.
        brier: Mean squared error; of the positive class's probability with two classes, summed over the classes with more.
        ece: Expected calibration error in 15 bins.
        ece_low: Lower end of its 95 % bootstrap interval.
        ece_high: Upper end.
        ece_chance: What it would be on average if every probability were right.
    """

    nll: Annotated[float, Field(ge=0)]
    brier: Annotated[float, Field(ge=0, le=2)]
    ece: Share
    ece_low: Share
    ece_high: Share
    ece_chance: Share


class Recall(_Strict):
    """What the threshold reached on the images it was chosen on.

    Args:
        recall: Share of positive images that are found.
        interval: Its 95 % Wilson interval.
        positives: Positive images.
        false_alarms: Share of the other images that are called positive.
    """

    recall: Share
    interval: tuple[Share, Share]
    positives: Annotated[int, Field(ge=1)]
    false_alarms: Share


class Calibration(_Strict):
    """Temperature and threshold of one backend at one number of shots, and the figures they were chosen by.

    Args:
        backend: Name of the backend.
        shots: Repetitions, None = exact values.
        seed: Seed of the sampling, None where nothing was sampled.
        options: Options of the backend by its own names.
        temperature: Divisor of the logits.
        threshold: Probability from which the positive label is given; None with more than two classes.
        rule: How the threshold was chosen, in words.
        subset: Images that both were chosen on.
        num_images: How many.
        notes: What to know about the fit, for example why the temperature stayed at 1.
        before: Figures of these images at temperature 1.
        after: The same with the temperature.
        recall: What the threshold reaches; None where it has none or no image is positive.
    """

    backend: str
    shots: Annotated[int | None, Field(ge=1)] = None
    seed: int | None = None
    options: dict[str, Any] = {}
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)]
    threshold: Annotated[float | None, Field(gt=0, lt=1)] = None
    rule: str
    subset: str
    num_images: Annotated[int, Field(ge=1)]
    notes: tuple[str, ...] = ()
    before: Reliability
    after: Reliability
    recall: Recall | None = None

    @property
    def label(self) -> str:
        """The backend, and its shots where it sampled: ``fake_lima at 1024 shots``."""
        return self.backend if self.shots is None else f"{self.backend} at {self.shots} shots"


@dataclass(frozen=True, slots=True)
class Applied:
    """What is applied to the logits of an answer.

    Args:
        temperature: Divisor.
        threshold: Probability from which the positive label is given, None with more than two classes.
        name: Which calibration this is, in words; an answer records it.
    """

    temperature: float
    threshold: float | None
    name: str


def choose_calibration(
    entries: Iterable[Calibration], backend: str, shots: int | None, *, noise_free: bool
) -> tuple[Calibration | None, str]:
    """The calibration that serves a backend, and its name; None where there is none that can stand in.

    An entry of the backend itself comes first, the nearest in shots. Without one the exact simulator's entry serves: rightly
    for a backend without noise, for any other for want of a better one, which the name says.

    Args:
        entries: What a bundle holds.
        backend: Name of the backend.
        shots: Its repetitions, None = exact.
        noise_free: It has no noise but that of sampling.
    """
    entries = list(entries)
    own = [entry for entry in entries if entry.backend == backend]
    others = [entry for entry in entries if entry.backend == NOISE_FREE]
    found = min(own or others, key=lambda entry: abs(_noise(entry.shots) - _noise(shots)), default=None)
    if found is None:
        return None, f"uncalibrated for {backend}" if entries else "uncalibrated"
    return found, found.label if own or noise_free else f"uncalibrated for {backend}: {found.label}'s used"


def _noise(shots: int | None) -> float:
    """Standard error of an expval in units of its largest: what a number of shots does to the logits goes by this."""
    return 0.0 if shots is None else 1 / math.sqrt(shots)
