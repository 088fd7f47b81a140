"""What goes to the service and what comes back, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

__all__ = ["Answer", "Estimate", "Inspection", "Job", "Options", "Prediction", "Tile"]

_FINISHED = ("done", "failed", "cancelled")


class _Parsed:
    """A dataclass made of a JSON object; fields that a newer service adds are ignored."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """From JSON."""
        return cls._known(values)

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> Self:
        known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in values.items() if name in known})


@dataclass(frozen=True, slots=True)
class Options:
    """What a request chooses; None = the service's default. See ``docs/guide.md``."""

    backend: str | None = None
    shots: int | None = None
    max_shots: int | None = None
    seed: int | None = None
    threshold: float | None = None
    mitigation: Literal["none", "readout", "zne", "readout+zne"] | None = None
    deadline_s: float | None = None
    explain: bool = False
    fallback: Literal["statevector"] | None = None
    webhook: str | None = None

    @property
    def fields(self) -> dict[str, str]:
        """As they are sent."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if value not in (None, False)}
        return {name: "true" if value is True else str(value) for name, value in chosen.items()}


@dataclass(frozen=True, slots=True)
class Prediction(_Parsed):
    """The answer for one image; ``interval`` is None where the head was exact."""

    filename: str
    label: str
    probability: float
    probabilities: dict[str, float]
    interval: list[float] | None
    angles: list[float]
    expvals: list[float]
    expval_stds: list[float] | None
    logits: list[float]
    calibration: str | None
    familiarity: float | None
    review: list[str]
    shots_used: int | None = None


@dataclass(frozen=True, slots=True)
class Answer(_Parsed):
    """The answers in the order of the images; ``job_id`` where the hardware's answer follows as a job."""

    predictions: list[Prediction]
    execution: dict[str, Any]
    runtime: dict[str, Any] | None = None
    explanation: dict[str, Any] | None = None
    job_id: str | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Answer:
        """From JSON."""
        return cls._known({**values, "predictions": [Prediction.of(one) for one in values["predictions"]]})


@dataclass(frozen=True, slots=True)
class Job(_Parsed):
    """A job; times are ISO 8601."""

    id: str
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    backend_requested: str
    backend_used: str | None
    reason: str | None
    images: int
    estimate: dict[str, float]
    qpu_seconds: float
    job_ids: list[str]
    position: int | None
    created: str
    started: str | None
    submitted: str | None
    finished: str | None
    cancelling: bool
    answer: Answer | None
    fallback: Answer | None
    error: dict[str, str] | None
    webhook: dict[str, Any] | None
    options: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """True once nothing changes any more."""
        return self.state in _FINISHED

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Job:
        """From JSON."""
        return cls._known({**values, **{name: values[name] and Answer.of(values[name]) for name in ("answer", "fallback")}})


@dataclass(frozen=True, slots=True)
class Estimate(_Parsed):
    """What a request would need, and what the key and the service have left of the day; None is without limit."""

    backend: str
    images: int
    needs: dict[str, float]
    qpu_seconds_left: float | None
    jobs_left: int | None
    service_qpu_seconds_left: float | None
    service_jobs_left: int | None
    allowed: bool


@dataclass(frozen=True, slots=True)
class Tile(_Parsed):
    """One tile of a large image, in its pixels; the rest as for a :class:`Prediction`."""

    x: int
    y: int
    width: int
    height: int
    label: str
    probability: float
    probabilities: dict[str, float]
    interval: list[float] | None
    familiarity: float | None
    review: list[str]


@dataclass(frozen=True, slots=True)
class Inspection(_Parsed):
    """The tiles of a large image, row by row."""

    width: int
    height: int
    label: str
    tiles: list[Tile]
    execution: dict[str, Any]
    runtime: dict[str, Any] | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Inspection:
        """From JSON."""
        return cls._known({**values, "tiles": [Tile.of(one) for one in values["tiles"]]})
