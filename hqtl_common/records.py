"""The value that flows through the model, and the record of what ran the head.

=============  ================  ==============================================================
field          shape, dtype      meaning
=============  ================  ==============================================================
pixels         (B,3,S,S) f32     normalised intensity
features       (B,F) f32         output of the frozen backbone
familiarity    (B,) f32          share of held-out images that are as far from the training images; None if unknown
angles         (B,E) f32         radians, tanh(Linear)·π/2
expvals        (B,n) f64         ⟨Z_i⟩ in [−1,1]
expval_covs    (B,n,n) f64       covariance of the estimates; None when exact
logits         (B,C) f64         Linear(n,C) of the expvals
=============  ================  ==============================================================
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ShapeError

__all__ = ["CLOSE", "Evaluation", "ExecutionRecord", "InferenceBatch", "Prediction"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

CLOSE = 0.1  # an exact answer this close to the other label deserves a second look


@dataclass(frozen=True, slots=True)
class ExecutionRecord:
    """What produced an answer of the head.

    Args:
        backend_requested: Name that was asked for.
        backend_used: Name that ran; differs from the request only together with ``reason``.
        reason: Why another backend was used, else None.
        shots: Repetitions per parameter set; None = exact.
        seed: Seed of the sampling, None where nothing was sampled or no seed was given.
        num_rows: Parameter sets evaluated.
        num_jobs: Executions submitted.
        job_ids: The provider's identifiers, in order of submission.
        options: Effective value of every further option of the backend.
        layout: Physical qubit of each qubit, where the circuit was laid out.
        depth: Depth of the circuit as executed.
        two_qubit_gates: Number of two-qubit gates of the circuit as executed.
        calibration: Date of the noise data (ISO 8601), None where noise-free.
        versions: Package versions that matter.
        qpu_seconds: Billed seconds, 0 on simulators.
        wall_seconds: Duration of the call.
    """

    backend_requested: str
    backend_used: str
    shots: int | None
    seed: int | None
    num_rows: int
    num_jobs: int = 1
    reason: str | None = None
    job_ids: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    layout: tuple[int, ...] | None = None
    depth: int | None = None
    two_qubit_gates: int | None = None
    calibration: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    qpu_seconds: float = 0.0
    wall_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Answer of a backend for R parameter sets.

    Args:
        expvals: (R, n) float64, ⟨Z_i⟩ in [−1, 1]; (R, K) where K observables were asked for.
        expval_covs: (R, n, n) or (R, K, K) float64, covariance of the estimates from the same shots; None when exact.
        record: What produced it.
    """

    expvals: F64
    expval_covs: F64 | None
    record: ExecutionRecord

    @property
    def expval_stds(self) -> F64 | None:
        """(R, n) float64 standard errors of ``expvals``; None when exact."""
        return _stds_of(self.expval_covs)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    ``probability`` is the probability of ``label``, and ``interval`` its 95 % interval from shot noise
    (None when the head is exact). Arrays are one-dimensional; ``expvals`` are ⟨Z_i⟩, ``angles`` radians.
    ``shots_used`` is the number of shots of this image where it was adaptive, else None. ``calibration`` says which temperature
    and threshold were used, ``boundary`` the probability from which ``label`` is given (None with more than two classes).
    ``familiarity`` is the share of held-out images that are as far from the training images as this one, None if the bundle
    does not know; ``unfamiliar`` that it is below the bundle's level.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    interval: tuple[float, float] | None
    angles: F32
    expvals: F64
    expval_stds: F64 | None
    logits: F64
    execution: ExecutionRecord
    shots_used: int | None = None
    calibration: str | None = None
    boundary: float | None = None
    familiarity: float | None = None
    unfamiliar: bool = False

    @property
    def margin(self) -> float:
        """How far the lower end of the answer stands above another label; negative = doubtful.

        The lower end is that of the interval, or 0.1 below an exact probability.
        """
        low = self.probability - CLOSE if self.interval is None else self.interval[0]
        return low - (sorted(self.probabilities.values())[-2] if self.boundary is None else self.boundary)

    @property
    def review(self) -> tuple[str, ...]:
        """Why a person should look at the image, empty if nothing speaks for it.

        ``unfamiliar``: it is unlike the training images. ``interval``: the interval reaches another label. ``close``: the exact
        probability is within 0.1 of another label.
        """
        doubt = () if self.margin >= 0 else ("close",) if self.interval is None else ("interval",)
        return ("unfamiliar", *doubt) if self.unfamiliar else doubt

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready copy of everything but ``execution``, which several predictions share."""
        stds = self.expval_stds
        adaptive = {} if self.shots_used is None else {"shots_used": self.shots_used}
        return {
            "label": self.label,
            "probability": self.probability,
            "probabilities": dict(self.probabilities),
            "interval": None if self.interval is None else list(self.interval),
            "angles": self.angles.tolist(),
            "expvals": self.expvals.tolist(),
            "expval_stds": None if stds is None else stds.tolist(),
            "logits": self.logits.tolist(),
            "calibration": self.calibration,
            "familiarity": self.familiarity,
            "review": list(self.review),
            **adaptive,
        }


@dataclass(frozen=True, slots=True)
class InferenceBatch:
    """Every stage of B images, filled from left to right; see the table at the top of this module.

    ``probabilities`` (B, C) float64 is calibrated; ``intervals`` (B, C, 2) its 95 % intervals from shot noise.
    ``label_indices`` (B,) are positions in ``labels``. ``shots_used`` (B,) are the shots of each image where their number was
    adaptive (:mod:`hqtl_common.adaptive`), else None. ``temperature``, ``threshold`` and ``calibration`` say what made
    probabilities and labels of the logits; ``boundaries`` (C,) are the probabilities from which each label is given, empty with
    more than two classes; ``familiarity_level`` that up to which an image is unfamiliar.
    """

    pixels: F32 | None = None
    features: F32 | None = None
    angles: F32 | None = None
    expvals: F64 | None = None
    expval_covs: F64 | None = None
    logits: F64 | None = None
    probabilities: F64 | None = None
    intervals: F64 | None = None
    label_indices: NDArray[np.intp] | None = None
    labels: tuple[str, ...] = ()
    execution: ExecutionRecord | None = None
    shots_used: NDArray[np.int64] | None = None
    familiarity: F32 | None = None
    familiarity_level: float | None = None
    temperature: float | None = None
    threshold: float | None = None
    boundaries: tuple[float, ...] = ()
    calibration: str | None = None

    @property
    def unfamiliar(self) -> NDArray[np.bool_] | None:
        """(B,) images whose familiarity is not above the level; None where it is not known."""
        if self.familiarity is None or self.familiarity_level is None:
            return None
        return np.asarray(self.familiarity <= np.float32(self.familiarity_level))

    @property
    def expval_stds(self) -> F64 | None:
        """(B, n) float64 standard errors of ``expvals``; None when exact."""
        return _stds_of(self.expval_covs)

    def predictions(self) -> list[Prediction]:
        """One :class:`Prediction` per image, in order.

        Raises:
            ShapeError: The head has not run on this batch.
        """
        if self.probabilities is None:
            raise ShapeError("this batch holds no answers yet; give it to HybridClassifier.run first")
        stds, unfamiliar = self.expval_stds, self.unfamiliar
        return [self._prediction(index, stds, unfamiliar) for index in range(len(self.probabilities))]

    def _prediction(self, index: int, stds: F64 | None, unfamiliar: NDArray[np.bool_] | None) -> Prediction:
        assert self.probabilities is not None
        assert self.label_indices is not None
        assert self.execution is not None
        assert self.angles is not None
        assert self.expvals is not None
        assert self.logits is not None
        winner = int(self.label_indices[index])
        row = [float(p) for p in self.probabilities[index]]
        low_high = None if self.intervals is None else (float(self.intervals[index, winner, 0]), float(self.intervals[index, winner, 1]))
        return Prediction(
            label=self.labels[winner],
            probability=row[winner],
            probabilities=dict(zip(self.labels, row, strict=True)),
            interval=low_high,
            angles=self.angles[index],
            expvals=self.expvals[index],
            expval_stds=None if stds is None else stds[index],
            logits=self.logits[index],
            execution=self.execution,
            shots_used=None if self.shots_used is None else int(self.shots_used[index]),
            calibration=self.calibration,
            boundary=self.boundaries[winner] if self.boundaries else None,
            familiarity=None if self.familiarity is None else round(float(self.familiarity[index]), 6),
            unfamiliar=unfamiliar is not None and bool(unfamiliar[index]),
        )


def _stds_of(covs: F64 | None) -> F64 | None:
    """Square roots of the diagonals (…, n) of covariance matrices (…, n, n)."""
    return None if covs is None else np.sqrt(np.diagonal(covs, axis1=-2, axis2=-1))
