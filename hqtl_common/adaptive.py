"""Adaptive shots: sample again only the images whose decision is still in doubt.

Shots double from look to look, so that a bound of 2^k times the base needs k+1 looks: few jobs, and an error rate that
is split over few looks. A backend's shots are fixed when it is made, so more shots of an image are more rows of the
same table: a round is one call of the backend (one job) with every image in doubt repeated as often as needed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.base import Backend, check_shots
from hqtl_common.errors import CapabilityError, ConfigError
from hqtl_common.records import Evaluation, ExecutionRecord
from hqtl_common.specs import HeadSpec

__all__ = ["ERROR_RATE", "AdaptiveEvaluation", "DecisionRule", "ShotPlan", "evaluate_adaptively", "pool", "round_stream"]

F64 = NDArray[np.float64]

ERROR_RATE = 0.05
_MAX_RATIO = 1024  # rows of one image; bounds the table of a round
_PRIOR_SHOTS = 2  # of hqtl_common.backends.base.estimate
_STREAMS = 2**48  # callers' own streams lie below


@dataclass(frozen=True, slots=True)
class ShotPlan:
    """How many shots an image may get, and how surely it is decided before.

    Args:
        shots: Of one row, and of every image in the first round.
        max_shots: Most shots of one image; what does not make a whole row is not used.
        error_rate: Bound α on the probability that an image declared decided has another label than infinitely many
            shots would give it.

    Raises:
        ConfigError: ``max_shots`` below ``shots`` or beyond 1024 times of it, or an error rate outside (0, 0.5).
    """

    shots: int
    max_shots: int
    error_rate: float = ERROR_RATE

    def __post_init__(self) -> None:
        check_shots(self.max_shots)
        if not self.shots <= self.max_shots <= _MAX_RATIO * self.shots:
            raise ConfigError(
                f"max_shots must lie between shots and {_MAX_RATIO:,} times of it; got {self.max_shots:,} with {self.shots:,} shots"
            )
        if not 0 < self.error_rate < 0.5:
            raise ConfigError(f"error_rate must lie between 0 and 0.5; got {self.error_rate}")

    @classmethod
    def of(cls, backend: Backend, max_shots: int, error_rate: float = ERROR_RATE) -> Self:
        """The plan of a backend.

        Raises:
            CapabilityError: It gives exact values.
            ConfigError: See :class:`ShotPlan`.
        """
        if backend.shots is None:
            raise CapabilityError(f"max_shots is for sampled answers, and {backend.name!r} gives exact ones here; set shots, too")
        return cls(backend.shots, max_shots, error_rate)

    @property
    def looks(self) -> tuple[int, ...]:
        """Rows (of ``shots`` each) an image in doubt has behind it at each look: 1, 2, 4, … and the most that fit."""
        most = self.max_shots // self.shots
        return (*(2**k for k in range((most - 1).bit_length())), most)

    def quantile(self, num_classes: int) -> float:
        """z of one look: Φ(z) = 1 − α / (looks · (classes − 1)).

        Only an error in one direction counts: the true label must fall behind another one, and there are classes − 1 others.
        """
        return NormalDist().inv_cdf(1 - self.error_rate / (len(self.looks) * max(1, num_classes - 1)))


@dataclass(frozen=True, slots=True)
class DecisionRule:
    """The label of the largest score, scores = expvals · weight + bias; a threshold on a probability is part of the bias.

    Args:
        weight: (n, C), calibrated logits per expval.
        bias: (C,).
    """

    weight: F64
    bias: F64

    @classmethod
    def of(cls, weight: F64, bias: F64, positive: int, threshold: float | None) -> Self:
        """The rule of :func:`hqtl_common.classifier.decide`: p ≥ threshold is a lead of the logits of at least log t/(1−t)."""
        shift = np.zeros(len(bias))
        if threshold is not None:
            shift[positive] = np.log(threshold) - np.log1p(-threshold)
        return cls(weight, bias - shift)

    def in_doubt(self, expvals: F64, covs: F64, shots: int, quantile: float) -> NDArray[np.bool_]:
        """Which images (B,) are not decided: somewhere the winner's lead d over another class is below z·σ + z²·r/(2N).

        σ is the standard error of d from the whole covariance. The second term is the shift of Wilson's score interval for
        rare outcomes, r the largest difference one shot can make to d: without it, N equal shots (σ near 0) would decide too
        soon. It falls by 1/N and hardly matters beyond some hundred shots.

        Args:
            expvals: (B, n).
            covs: (B, n, n).
            shots: N, behind every row.
            quantile: z.
        """
        scores = expvals @ self.weight + self.bias
        winners = scores.argmax(axis=1)
        leads = scores[np.arange(len(scores)), winners][:, None] - scores
        contrasts = self.weight.T[winners][:, None, :] - self.weight.T  # (B, C, n); zero for the winner itself
        errors = np.sqrt(np.maximum(np.einsum("bci,bij,bcj->bc", contrasts, covs, contrasts), 0.0))
        ranges = 2 * np.abs(contrasts).sum(axis=2)
        doubts: NDArray[np.bool_] = (leads < quantile * errors + quantile**2 * ranges / (2 * shots)).any(axis=1)
        return doubts


@dataclass(frozen=True, slots=True)
class AdaptiveEvaluation:
    """What :func:`evaluate_adaptively` found.

    Args:
        answer: (B, n) expvals and (B, n, n) covariances of all shots of each image, and the record of all rounds.
        shots_used: (B,) int64.
        decided: (B,) bool; False = still in doubt with all shots spent, so that the error rate says nothing about it.
    """

    answer: Evaluation
    shots_used: NDArray[np.int64]
    decided: NDArray[np.bool_]


def evaluate_adaptively(
    backend: Backend, spec: HeadSpec, weights: NDArray[Any], angles: NDArray[Any], rule: DecisionRule, plan: ShotPlan, *, stream: int = 0
) -> AdaptiveEvaluation:
    """Sample every image once, then those in doubt until they are decided or ``plan.max_shots`` are spent.

    The probability that an image is declared decided with another label than infinitely many shots would give is at most
    ``plan.error_rate``: at each of the K looks an error has at most the K-th part of it (:meth:`ShotPlan.quantile`), by the
    normal approximation of the lead's distribution with a term for few shots (:meth:`DecisionRule.in_doubt`). Images still in
    doubt at the end get the likelier label and no such promise. Estimates of images that were stopped early lean a little
    away from the decision's boundary, as with every sequential rule.

    The draw of the first round is that of a plain run with the same stream; an answer depends on the whole batch, the seed and
    the stream, and on nothing else.

    Args:
        backend: Where the head runs, with ``plan.shots`` shots.
        spec: The head.
        weights: (L, n), radians.
        angles: (B, E), radians.
        rule: What is to be decided.
        plan: When to stop.
        stream: See :func:`round_stream`.

    Raises:
        ShapeError: The arrays do not fit the head.
        CapabilityError: The backend mitigates errors.
        BackendError: An execution failed.
    """
    quantile = plan.quantile(len(rule.bias))
    first = backend.run(spec, weights, angles, stream=stream)
    assert first.expval_covs is not None
    _check_plain(first.record)
    expvals, covs, records = first.expvals.copy(), first.expval_covs.copy(), [first.record]
    used = np.full(len(angles), plan.shots, dtype=np.int64)
    doubtful = np.flatnonzero(rule.in_doubt(expvals, covs, plan.shots, quantile))
    for number, (before, rows) in enumerate(pairwise(plan.looks), start=1):
        if not len(doubtful):
            break
        table = np.repeat(angles[doubtful], rows - before, axis=0)
        more = backend.run(spec, weights, table, stream=round_stream(stream, number))
        assert more.expval_covs is not None
        known = Evaluation(expvals[doubtful], covs[doubtful], first.record)
        means, spreads = _joined(known, more, before, plan.shots)
        expvals[doubtful], covs[doubtful], used[doubtful] = means, spreads, rows * plan.shots
        records.append(more.record)
        doubtful = doubtful[rule.in_doubt(means, spreads, rows * plan.shots, quantile)]
    decided = np.ones(len(angles), dtype=np.bool_)
    decided[doubtful] = False
    return AdaptiveEvaluation(Evaluation(expvals, covs, _record_of(records, plan, len(doubtful))), used, decided)


def round_stream(stream: int, number: int) -> int:
    """The stream of a round: ``stream`` itself for the first (0), which no other pair has while streams are below 2^48.

    Raises:
        ConfigError: ``stream`` is not below 2^48.
    """
    if not 0 <= stream < _STREAMS:
        raise ConfigError(f"stream must be a whole number from 0 to 2^48 − 1; got {stream!r}")
    return stream + number * _STREAMS


def pool(means: F64, covs: F64, shots: NDArray[np.int64]) -> tuple[F64, F64]:
    """Independent samples of the same circuits as one sample: (k, B, n), (k, B, n, n), (k,) → (B, n), (B, n, n).

    Means are weighted by shots. A covariance of :func:`hqtl_common.backends.base.estimate` of N shots with mean m holds the
    second moments S of the shots: (N+3)·cov + (N/(N+2))²·m·mᵀ = (N·S + 2·I)/(N+2). The S are averaged, weighted by shots, and
    the same formula at the sum of the shots gives exactly the covariance of the joint sample: the prior counts once, not k
    times, and the scatter between the samples is part of it.
    """
    weights = shots / shots.sum()
    identity = np.eye(means.shape[-1])
    column = shots[:, None, None, None].astype(np.float64)
    centres = _outer(means) * (column / (column + _PRIOR_SHOTS)) ** 2
    seconds = ((covs * (column + _PRIOR_SHOTS + 1) + centres) * (column + _PRIOR_SHOTS) - _PRIOR_SHOTS * identity) / column
    mean, second = np.tensordot(weights, means, axes=1), np.tensordot(weights, seconds, axes=1)
    total = float(shots.sum())
    spread = (total * second + _PRIOR_SHOTS * identity) / (total + _PRIOR_SHOTS) - _outer(mean) * (total / (total + _PRIOR_SHOTS)) ** 2
    return mean, spread / (total + _PRIOR_SHOTS + 1)


def _check_plain(record: ExecutionRecord) -> None:
    """Refuse mitigated estimates: their errors are partly common to all rows of a job, and one shot can move them further."""
    active = [name for name in ("mitigation", "zne") if record.options.get(name)]
    if active:
        raise CapabilityError(
            f"max_shots cannot promise its error rate with {' and '.join(active)} on {record.backend_used!r}; leave out one or the other"
        )


def _outer(vectors: F64) -> F64:
    return vectors[..., :, None] * vectors[..., None, :]


def _joined(known: Evaluation, more: Evaluation, rows: int, shots: int) -> tuple[F64, F64]:
    """What ``rows`` rows of each of B images gave, joined with a table of some further rows of each."""
    assert known.expval_covs is not None
    assert more.expval_covs is not None
    images, width = known.expvals.shape
    means = more.expvals.reshape(images, -1, width).swapaxes(0, 1)
    covs = more.expval_covs.reshape(images, -1, width, width).swapaxes(0, 1)
    sizes = np.array([rows * shots] + [shots] * len(means), dtype=np.int64)
    return pool(np.concatenate([known.expvals[None], means]), np.concatenate([known.expval_covs[None], covs]), sizes)


def _record_of(records: list[ExecutionRecord], plan: ShotPlan, undecided: int) -> ExecutionRecord:
    """One record of all rounds.

    Its options say the rule (``max_shots``, ``error_rate``, ``rounds`` = most rounds), the ``executions`` that were made, and
    how many images are ``undecided``.
    """
    num_rows = sum(record.num_rows for record in records)
    rule = {"max_shots": plan.max_shots, "error_rate": plan.error_rate, "rounds": len(plan.looks)}
    found = {"executions": num_rows * plan.shots, "undecided": undecided}
    return dataclasses.replace(
        records[0],
        num_rows=num_rows,
        num_jobs=sum(record.num_jobs for record in records),
        job_ids=tuple(job for record in records for job in record.job_ids),
        options={**records[0].options, **rule, **found},
        qpu_seconds=sum(record.qpu_seconds for record in records),
        wall_seconds=sum(record.wall_seconds for record in records),
    )
