"""Gradient methods as tables: which shifted points to evaluate, and how to combine them.

A table for P parameters is ``offsets`` (S, P), radians, whose first row is zero (the forward point), and ``coefficients``
(P, S), such that ``∂f/∂θ_p ≈ Σ_s coefficients[p, s] · f(θ + offsets[s])``. The table does not depend on the loss, so
forward and backward share one execution. The parameters of a head are its angles and then its weights.

Where rotations commute with everything behind them, one shifted point serves many parameters: shifting all of them by π/2
measures the same state in a second basis. For the last layer of ``real_amplitudes`` (``lean-shift``) ∂⟨Z_i⟩/∂w_i is ⟨Z_i⟩ there,
and the other derivatives are zero; for all weights of the ansatz ``commuting`` ∂⟨Z_t⟩/∂w_{t,S} is ⟨Z_t·Z_S⟩ there, because the
generator Y_t·Z_S anticommutes with Z_t (Bowles, Wierichs and Park 2023, arXiv:2306.14962, section III). Such tables have
coefficients for every output of their own, and may read other products of Z than the outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hqtl_common.circuit import ZString, generators, single_zs
from hqtl_common.errors import ConfigError
from hqtl_common.specs import HeadSpec

__all__ = [
    "SHIFT_METHODS",
    "ShiftTable",
    "commuting",
    "finite_diff",
    "forward_only",
    "head_table",
    "lean_shift",
    "parameter_shift",
    "spsa",
]

F64 = NDArray[np.float64]

FINITE_DIFF_STEP = 0.01  # radians; its central difference errs by 2e-5 of the third derivative
SPSA_STEP = 0.1


@dataclass(frozen=True, slots=True)
class ShiftTable:
    """See the module's docstring.

    Args:
        offsets: (S, P), radians; row 0 is zero.
        coefficients: (P, S), 1/radian, or (P, S, n) where they differ between the n outputs.
        observables: The K products of Z to evaluate, the n outputs first; None where these are all.
        reads: (P, n), which of the K values the derivative of an output combines; None where it is the output's own.
    """

    offsets: F64
    coefficients: F64
    observables: tuple[ZString, ...] | None = None
    reads: NDArray[np.intp] | None = None

    @property
    def num_points(self) -> int:
        """Evaluations per parameter set, the forward one included."""
        return len(self.offsets)

    def rows(self, theta: F64) -> F64:
        """Parameter sets (B, P) → the points to evaluate (B·S, P), S consecutive rows per set."""
        return (theta[:, None, :] + self.offsets).reshape(-1, theta.shape[1])

    def jacobian(self, values: F64) -> F64:
        """Values (B·S, K) at these points → ∂f_i/∂θ_p (B, P, n)."""
        grouped = values.reshape(-1, self.num_points, values.shape[1])
        if self.coefficients.ndim == 2:
            jacobian: F64 = np.einsum("ps,bsi->bpi", self.coefficients, grouped)
        elif self.reads is None:
            jacobian = np.einsum("psi,bsi->bpi", self.coefficients, grouped)
        else:
            jacobian = np.einsum("psi,bspi->bpi", self.coefficients, grouped[:, :, self.reads])
        return jacobian

    def without(self, count: int) -> ShiftTable:
        """The table without its first ``count`` parameters, and without the points that only they need."""
        kept = self.coefficients[count:]
        needed = np.abs(kept).sum(axis=(0, *range(2, kept.ndim))) > 0
        needed[0] = True
        reads = None if self.reads is None else self.reads[count:]
        return ShiftTable(self.offsets[needed, count:], kept[:, needed], self.observables, reads)


def forward_only(num_parameters: int) -> ShiftTable:
    """The table without a gradient: one point."""
    return ShiftTable(np.zeros((1, num_parameters)), np.zeros((num_parameters, 1)))


def parameter_shift(num_parameters: int) -> ShiftTable:
    """``∂f/∂θ = [f(θ+π/2) − f(θ−π/2)] / 2``, exact for rotations (Schuld et al. 2019, arXiv:1811.11184, eq. 9)."""
    return _symmetric(np.eye(num_parameters), np.pi / 2, 0.5)


@lru_cache(maxsize=64)
def lean_shift(spec: HeadSpec) -> ShiftTable:
    """Parameter-shift, with one point for all weights of the last layer: 2 + 2·(E + (L − 1)·n) points instead of 1 + 2·(E + L·n).

    The last RY of the circuit commute with each other, and RY(w_j) with Z_i where j ≠ i; see the module.

    Raises:
        ConfigError: The ansatz has no last layer of RY.
    """
    if spec.ansatz != "real_amplitudes":
        raise ConfigError(f"lean-shift is made for the ansatz real_amplitudes; got {spec.ansatz}, whose own method is commuting")
    count = spec.num_angles + spec.num_weights
    last = np.arange(count) >= count - spec.num_qubits
    own = np.zeros((count, spec.num_qubits))
    own[last] = np.eye(spec.num_qubits)
    return _with_shared_point(count, ~last, last, own)


@lru_cache(maxsize=64)
def commuting(spec: HeadSpec) -> ShiftTable:
    """One point for all weights and the angles of all targets, two for each angle of a control: 2 + 2·C points at any L.

    An angle of a target turns about Y_t as well, so its derivative is ⟨Z_t⟩ at the shared point.

    Raises:
        ConfigError: Another ansatz.
    """
    if spec.ansatz != "commuting":
        raise ConfigError(f"the gradient method commuting belongs to the ansatz of that name; got the ansatz {spec.ansatz}")
    qubits, every = spec.num_qubits, generators(spec)
    count = spec.num_angles + spec.num_weights
    single = single_zs(qubits)
    strings = {tuple(sorted((*one.controls, one.target))) for one in every} - set(single)
    observables = single + tuple(sorted(strings, key=lambda string: (len(string), string)))
    reads = np.tile(np.arange(qubits), (count, 1))
    own = np.zeros((count, qubits))
    shared = np.zeros(count, dtype=bool)
    for target in range(spec.num_controls, qubits):
        own[target, target] = 1.0
    for index, one in enumerate(every, start=spec.num_angles):
        own[index, one.target] = 1.0
        reads[index, one.target] = observables.index(tuple(sorted((*one.controls, one.target))))
        shared[index] = not one.controls
    table = _with_shared_point(count, np.arange(count) < spec.num_controls, shared, own)
    return ShiftTable(table.offsets, table.coefficients, observables, reads)


def _with_shared_point(num_parameters: int, alone: NDArray[np.bool_], shared: NDArray[np.bool_], own: F64) -> ShiftTable:
    """Parameter-shift for the parameters ``alone``, and a last point with all of ``shared`` at π/2 together.

    Args:
        num_parameters: P.
        alone: (P,).
        shared: (P,).
        own: (P, n), coefficients of the last point.
    """
    pairs = _symmetric(np.eye(num_parameters)[alone], np.pi / 2, 0.5)
    coefficients = np.repeat(pairs.coefficients[:, :, None], own.shape[1], axis=2)
    offsets = np.vstack([pairs.offsets, np.pi / 2 * shared])
    return ShiftTable(offsets, np.concatenate([coefficients, own[:, None]], axis=1))


def finite_diff(num_parameters: int, step: float = FINITE_DIFF_STEP, *, central: bool = True) -> ShiftTable:
    """``[f(θ+h) − f(θ−h)] / 2h``, or with ``central=False`` ``[f(θ+h) − f(θ)] / h`` (Geng et al. 2023, eq. 6).

    Args:
        num_parameters: P.
        step: h in radians, above 0.
        central: Two shifted points per parameter (error h²) instead of one (error h).

    Raises:
        ConfigError: ``step`` is not above zero.
    """
    _check_step(step)
    identity = np.eye(num_parameters)
    if central:
        return _symmetric(identity, step, 0.5 / step)
    offsets = np.vstack([np.zeros(num_parameters), step * identity])
    return ShiftTable(offsets, np.hstack([np.full((num_parameters, 1), -1 / step), identity / step]))


def spsa(num_parameters: int, rng: np.random.Generator, step: float = SPSA_STEP, directions: int = 1) -> ShiftTable:
    """Simultaneous perturbation (Spall 1992): two points per random direction of ±1, whatever the number of parameters.

    Args:
        num_parameters: P.
        rng: Source of the directions.
        step: Size of the perturbation in radians, above 0.
        directions: Directions averaged, at least 1.

    Raises:
        ConfigError: ``step`` or ``directions`` out of range.
    """
    _check_step(step)
    if directions < 1:
        raise ConfigError(f"spsa needs at least 1 direction; got {directions}")
    delta = rng.choice([-1.0, 1.0], size=(directions, num_parameters))
    table = _symmetric(delta, step, 0.5 / step)
    return ShiftTable(table.offsets, table.coefficients / directions)


def _symmetric(directions: F64, shift: float, factor: float) -> ShiftTable:
    """Points at ± shift along each direction (D, P); 1/δ = δ for the entries ±1 of a direction."""
    num_parameters = directions.shape[1]
    offsets = np.vstack([np.zeros(num_parameters), shift * directions, -shift * directions])
    return ShiftTable(offsets, np.hstack([np.zeros((num_parameters, 1)), factor * directions.T, -factor * directions.T]))


def _check_step(step: float) -> None:
    if not step > 0:
        raise ConfigError(f"the step of a finite difference must be above 0 radians; got {step}")


def _without_step(step: float | None, name: str) -> None:
    if step is not None:
        raise ConfigError(f"{name} has no step to choose, its shift is π/2; got {step}")


def _parameter_shift(num_parameters: int, rng: np.random.Generator, step: float | None) -> ShiftTable:
    _without_step(step, "parameter-shift")
    return parameter_shift(num_parameters)


_BY_COUNT: dict[str, Callable[[int, np.random.Generator, float | None], ShiftTable]] = {
    "parameter-shift": _parameter_shift,
    "finite-diff": lambda num_parameters, rng, step: finite_diff(num_parameters, FINITE_DIFF_STEP if step is None else step),
    "finite-diff-forward": lambda num_parameters, rng, step: finite_diff(
        num_parameters, FINITE_DIFF_STEP if step is None else step, central=False
    ),
    "spsa": lambda num_parameters, rng, step: spsa(num_parameters, rng, SPSA_STEP if step is None else step),
}
_BY_HEAD: dict[str, Callable[[HeadSpec], ShiftTable]] = {"lean-shift": lean_shift, "commuting": commuting}
SHIFT_METHODS = (*_BY_COUNT, *_BY_HEAD)


def head_table(diff_method: str, spec: HeadSpec, rng: np.random.Generator, step: float | None = None) -> ShiftTable:
    """The table of a method for the E angles and L·n weights of a head.

    Args:
        diff_method: One of ``SHIFT_METHODS``.
        spec: The head.
        rng: Source of random directions.
        step: h in radians of a finite difference or of spsa (default: the method's own).

    Raises:
        ConfigError: Not a method of this module or not one of this head, or a step that it does not have.
    """
    if diff_method not in SHIFT_METHODS:
        raise ConfigError(f"diff_method must be one of {', '.join(SHIFT_METHODS)}; got {diff_method!r}")
    if diff_method in _BY_HEAD:
        _without_step(step, diff_method)
        return _BY_HEAD[diff_method](spec)
    return _BY_COUNT[diff_method](spec.num_angles + spec.num_weights, rng, step)
