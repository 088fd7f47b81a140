"""Fewer errors for more executions: readout mitigation and zero-noise extrapolation, as arithmetic on estimates.

Readout: two calibration circuits prepare all measured qubits in 0 and in 1. From them comes one confusion matrix per qubit
(a tensored model: no crosstalk), whose inverse is applied to the frequencies (Bravyi et al. 2021, arXiv:2006.14044,
section II). For ⟨Z_i⟩ alone the inverse of the whole tensor product is that of qubit i,
z = (r − b)/s with r the ⟨Z_i⟩ read, s = 1 − p10 − p01 its contrast and b = p01 − p10: no table of 2^n × 2^n is needed.
A product of Z is the mean of the product of its factors (r_i − b_i)/s_i, which needs the products of fewer Z as well.
Errors of the preparation count as errors of the readout.

Extrapolation: every two-qubit gate is run λ = 1, 3, 5, … times, and a polynomial of degree min(2, factors − 1) in λ is
taken to λ = 0: through two factors a line, through three Richardson's parabola, through more by least squares (Temme et
al. 2017, arXiv:1612.02058; Giurgica-Tiron et al. 2020, arXiv:2005.10921). Its coefficients c_λ sum to 1: (1, 3) gives
1.5, −0.5 and (1, 3, 5) gives 1.875, −1.25, 0.375, so that the variance grows 2.5 and 5.2 times. As both steps are affine
their order does not matter; only the end result is bounded to [−1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.base import check_shots
from hqtl_common.circuit import ZString, single_zs
from hqtl_common.errors import CapabilityError, ConfigError

__all__ = ["MIN_CONTRAST", "MITIGATION_OPTIONS", "Calibration", "Mitigation", "coefficients", "mitigated", "mitigation_of"]

F64 = NDArray[np.float64]
Estimates = tuple[F64, F64 | None]

MITIGATION_OPTIONS = frozenset({"mitigation", "calibration_shots", "zne"})
MIN_CONTRAST = 0.1  # 1 − p10 − p01 of a qubit; below, the inverse would amplify errors more than ten times
_MIN_SIGMAS = 5.0  # contrast over its own standard error: propagation to first order needs it
_MIN_CALIBRATION_SHOTS = 100
_DEFAULT_CALIBRATION_SHOTS = (4096, 100_000)  # at least, at most; between them as many as the shots
_MAX_FACTOR = 99
_MAX_DEGREE = 2


@dataclass(frozen=True, slots=True)
class Mitigation:
    """What is done about errors; made by :func:`mitigation_of`.

    Args:
        readout: Whether readout errors are calibrated and inverted.
        calibration_shots: Repetitions of each of the two calibration circuits, None where none run or all is exact.
        factors: How often each two-qubit gate runs, (1,) without extrapolation.
    """

    readout: bool = False
    calibration_shots: int | None = None
    factors: tuple[int, ...] = (1,)

    @property
    def options(self) -> dict[str, Any]:
        """The effective options, JSON-ready; those that are off are None."""
        return {
            "mitigation": "readout" if self.readout else None,
            "calibration_shots": self.calibration_shots,
            "zne": None if self.factors == (1,) else list(self.factors),
        }

    @property
    def calibration_executions(self) -> int:
        """Executions that the calibration adds to one job."""
        return 2 * (self.calibration_shots or 0)

    def reads(self, observables: tuple[ZString, ...]) -> tuple[ZString, ...]:
        """The products of Z whose estimates :func:`mitigated` needs: all parts of these ones too, where readout is inverted."""
        if not self.readout:
            return observables
        parts = {part for string in observables for part in _parts(string) if part}
        return tuple(sorted(parts, key=lambda part: (len(part), part)))

    def executions(self, num_rows: int, shots: int) -> int:
        """All executions of one job.

        Args:
            num_rows: Parameter sets.
            shots: Repetitions per set and factor.
        """
        return num_rows * shots * len(self.factors) + self.calibration_executions

    def report(self, num_rows: int, shots: int | None, calibration: Calibration | None, num_jobs: int = 1) -> dict[str, Any]:
        """What the record says: the options, what was found, and the overhead.

        Args:
            num_rows: Parameter sets, over all jobs.
            shots: Repetitions per set and factor, None = exact.
            calibration: What was found, None without readout mitigation or where nothing ran.
            num_jobs: Jobs, each with its own calibration.
        """
        found = self.options
        if self.readout:
            found["calibration_executions"] = self.calibration_executions * num_jobs
            found["readout_errors"] = None if calibration is None else calibration.errors
        if self.factors != (1,):
            found["zne_coefficients"] = coefficients(self.factors).tolist()
            found["zne_executions"] = num_rows * (shots or 0) * (len(self.factors) - 1)
        return found


def mitigation_of(shots: int | None, mitigation: object = None, calibration_shots: int | None = None, zne: object = None) -> Mitigation:
    """Options, checked.

    Args:
        shots: Repetitions per parameter set, None = exact.
        mitigation: ``readout`` or None.
        calibration_shots: Repetitions of each calibration circuit; None takes as many as ``shots``, from 4,096 to 100,000.
        zne: Odd factors in ascending order, for example (1, 3, 5), or None.

    Raises:
        ConfigError: A value that cannot be used.
    """
    if mitigation not in (None, "readout"):
        raise ConfigError(f"mitigation must be readout or none; got {mitigation!r}")
    factors = (1,) if zne is None else _factors(zne)
    if mitigation is None or shots is None:
        if calibration_shots is not None:
            why = "mitigation is not on" if mitigation is None else "exact values are calibrated exactly"
            raise ConfigError(f"calibration_shots has no use: {why}")
        return Mitigation(mitigation is not None, None, factors)
    if calibration_shots is None:
        low, high = _DEFAULT_CALIBRATION_SHOTS
        return Mitigation(True, min(max(shots, low), high), factors)
    if (check_shots(calibration_shots) or 0) < _MIN_CALIBRATION_SHOTS:
        raise ConfigError(f"calibration_shots must be at least {_MIN_CALIBRATION_SHOTS}; got {calibration_shots}")
    return Mitigation(True, calibration_shots, factors)


def _factors(zne: object) -> tuple[int, ...]:
    factors = tuple(zne) if isinstance(zne, tuple | list) else ()
    whole = all(type(factor) is int and factor % 2 == 1 and 1 <= factor <= _MAX_FACTOR for factor in factors)
    if len(factors) < 2 or not whole or any(first >= second for first, second in pairwise(factors)):
        raise ConfigError(
            f"zne must be two or more odd factors from 1 to {_MAX_FACTOR} in ascending order, for example (1, 3, 5); got {zne!r}"
        )
    return factors


def coefficients(factors: Sequence[int]) -> F64:
    """Weight of each factor's estimate in the value at zero noise, (m,); they sum to 1 (see the module).

    Args:
        factors: m distinct noise factors.
    """
    degree = min(_MAX_DEGREE, len(factors) - 1)
    powers = np.vander(np.asarray(factors, dtype=np.float64), degree + 1, increasing=True)
    at_zero: F64 = np.round(np.linalg.pinv(powers)[0], 12)  # the same on every machine
    return at_zero


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the calibration circuits read.

    Args:
        means: (2, n) ⟨Z_i⟩ with all qubits in 0, and with all in 1.
        covs: (2, n, n) covariance of these estimates, None when exact.
    """

    means: F64
    covs: F64 | None

    @property
    def contrast(self) -> F64:
        """1 − p10 − p01 of every qubit, (n,): 1 for a perfect readout, 0 for a coin."""
        found: F64 = (self.means[0] - self.means[1]) / 2
        return found

    @property
    def errors(self) -> list[list[float]]:
        """[p10, p01] of every qubit: the probability of reading 1 for 0, and 0 for 1."""
        return [[float(1 - zero) / 2, float(1 + one) / 2] for zero, one in self.means.T]

    def check(self) -> None:
        """Refuse a readout that cannot be inverted.

        Raises:
            CapabilityError: The contrast of a qubit is below ``MIN_CONTRAST``, or below five of its standard errors.
        """
        error = np.zeros_like(self.contrast)
        if self.covs is not None:
            error = np.sqrt(np.diagonal(self.covs, axis1=1, axis2=2).sum(axis=0)) / 2
        excess = self.contrast - np.maximum(MIN_CONTRAST, _MIN_SIGMAS * error)
        worst = int(np.argmin(excess))
        if excess[worst] < 0:
            p10, p01 = self.errors[worst]
            raise CapabilityError(
                f"readout mitigation cannot invert the readout of qubit {worst}: it reads 1 for 0 with {p10:.3f} and 0 for 1 with "
                f"{p01:.3f}, and 1 less both must be at least {MIN_CONTRAST} and {_MIN_SIGMAS:g} times its standard error "
                f"({error[worst]:.3f}); use other qubits, more calibration_shots, or no mitigation"
            )


def mitigated(
    estimates: Sequence[Estimates], mitigation: Mitigation, calibration: Calibration | None, observables: tuple[ZString, ...] | None = None
) -> Estimates:
    """Expectation values (R, K) without the errors that are mitigated, and their covariance (R, K, K), None when exact.

    The covariance is propagated to first order and holds the calibration's own statistical error, which is common to all
    rows. It is that of the estimate before it is bounded to [−1, 1].

    Args:
        estimates: For each factor what :meth:`Mitigation.reads` names as read and its covariance, from independent shots.
        mitigation: What to do.
        calibration: Of the same qubits, None without readout mitigation.
        observables: K products of Z; None is every Z_i.

    Raises:
        CapabilityError: See :meth:`Calibration.check`.
    """
    if mitigation.factors == (1,) and calibration is None:
        return estimates[0]
    weights = coefficients(mitigation.factors)
    means: F64 = sum((weight * found for weight, (found, _) in zip(weights, estimates, strict=True)), start=np.zeros(()))
    covs = [weight**2 * cov for weight, (_, cov) in zip(weights, estimates, strict=True) if cov is not None]
    total: F64 | None = sum(covs, start=np.zeros(())) if covs else None
    if calibration is not None:
        wanted = single_zs(calibration.means.shape[1]) if observables is None else observables
        means, total = _without_readout(means, total, calibration, mitigation.reads(wanted))
        chosen = [mitigation.reads(wanted).index(string) for string in wanted]
        means, total = means[:, chosen], None if total is None else total[:, chosen][:, :, chosen]
    return np.clip(means, -1.0, 1.0), total


def _without_readout(means: F64, covs: F64 | None, calibration: Calibration, strings: tuple[ZString, ...]) -> Estimates:
    """The values of ``strings``, which hold all their parts.

    With u and v = ⟨Z⟩ read in 0 and in 1: z = (2r − u − v)/(u − v), ∂z/∂u = −(1 + z)/2s and ∂z/∂v = −(1 − z)/2s; for a product
    S that holds z the 1 and the z in these slopes are the products without z and with it.
    """
    calibration.check()
    contrast, bias = calibration.contrast, calibration.means.mean(axis=0)
    place = {(): 0} | {string: 1 + k for k, string in enumerate(strings)}  # 0 is the product of nothing, 1
    inverse = np.zeros((len(place), len(place)))
    inverse[0, 0] = 1.0
    for string in strings:
        for part in _parts(string):
            rest = [qubit for qubit in string if qubit not in part]
            inverse[place[string], place[part]] = np.prod(-bias[rest]) / np.prod(contrast[list(string)])
    values = np.pad(means, ((0, 0), (1, 0)), constant_values=1.0) @ inverse.T
    if covs is None or calibration.covs is None:
        return values[:, 1:], None
    covs = inverse[1:, 1:] @ covs @ inverse[1:, 1:].T
    bounded = np.clip(values, -1.0, 1.0)
    for sign, cov in zip((1.0, -1.0), calibration.covs, strict=True):
        slopes = np.zeros((len(means), len(strings), len(contrast)))
        for string in strings:
            for qubit in string:
                without = place[tuple(other for other in string if other != qubit)]
                slopes[:, place[string] - 1, qubit] = (bounded[:, without] + sign * bounded[:, place[string]]) / (2 * contrast[qubit])
        covs = covs + slopes @ cov @ slopes.transpose(0, 2, 1)
    return values[:, 1:], covs


def _parts(string: ZString) -> Iterable[ZString]:
    """All subsets, the empty one and itself too."""
    return chain.from_iterable(combinations(string, size) for size in range(len(string) + 1))
