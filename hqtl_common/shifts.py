"""Gradient methods as tables: which shifted points to evaluate, and how to combine them.

A table for P parameters is ``offsets`` (S, P), radians, whose first row is zero (the forward point), and ``coefficients``
(P, S), such that ``∂f/∂θ_p ≈ Σ_s coefficients[p, s] · f(θ + offsets[s])``. The table does not depend on the loss, so
forward and backward share one execution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ConfigError

__all__ = ["SHIFT_METHODS", "ShiftTable", "finite_diff", "forward_only", "parameter_shift", "shift_table", "spsa"]

F64 = NDArray[np.float64]

FINITE_DIFF_STEP = 0.01  # radians; its central difference errs by 2e-5 of the third derivative
SPSA_STEP = 0.1


@dataclass(frozen=True, slots=True)
class ShiftTable:
    """See the module's docstring.

    Args:
        offsets: (S, P), radians; row 0 is zero.
        coefficients: (P, S), 1/radian.
    """

    offsets: F64
    coefficients: F64

    @property
    def num_points(self) -> int:
        """Evaluations per parameter set, the forward one included."""
        return len(self.offsets)

    def rows(self, theta: F64) -> F64:
        """Parameter sets (B, P) → the points to evaluate (B·S, P), S consecutive rows per set."""
        return (theta[:, None, :] + self.offsets).reshape(-1, theta.shape[1])

    def jacobian(self, values: F64) -> F64:
        """Values (B·S, n) at these points → ∂f_i/∂θ_p (B, P, n)."""
        grouped = values.reshape(-1, self.num_points, values.shape[1])
        jacobian: F64 = np.einsum("ps,bsi->bpi", self.coefficients, grouped)
        return jacobian


def forward_only(num_parameters: int) -> ShiftTable:
    """The table without a gradient: one point."""
    return ShiftTable(np.zeros((1, num_parameters)), np.zeros((num_parameters, 1)))


def parameter_shift(num_parameters: int) -> ShiftTable:
    """``∂f/∂θ = [f(θ+π/2) − f(θ−π/2)] / 2``, exact for rotations (Schuld et al. 2019, arXiv:1811.11184, eq. 9)."""
    return _symmetric(np.eye(num_parameters), np.pi / 2, 0.5)


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


def _parameter_shift(num_parameters: int, rng: np.random.Generator, step: float | None) -> ShiftTable:
    if step is not None:
        raise ConfigError(f"parameter-shift has no step to choose, its shift is π/2; got {step}")
    return parameter_shift(num_parameters)


SHIFT_METHODS: dict[str, Callable[[int, np.random.Generator, float | None], ShiftTable]] = {
    "parameter-shift": _parameter_shift,
    "finite-diff": lambda num_parameters, rng, step: finite_diff(num_parameters, FINITE_DIFF_STEP if step is None else step),
    "finite-diff-forward": lambda num_parameters, rng, step: finite_diff(
        num_parameters, FINITE_DIFF_STEP if step is None else step, central=False
    ),
    "spsa": lambda num_parameters, rng, step: spsa(num_parameters, rng, SPSA_STEP if step is None else step),
}


def shift_table(diff_method: str, num_parameters: int, rng: np.random.Generator, step: float | None = None) -> ShiftTable:
    """The table of a method.

    Args:
        diff_method: A key of ``SHIFT_METHODS``.
        num_parameters: P.
        rng: Source of random directions.
        step: h in radians of a finite difference or of spsa (default: the method's own).

    Raises:
        ConfigError: Not a method of this module, or a step that it does not have.
    """
    if diff_method not in SHIFT_METHODS:
        raise ConfigError(f"diff_method must be one of {', '.join(SHIFT_METHODS)}; got {diff_method!r}")
    return SHIFT_METHODS[diff_method](num_parameters, rng, step)
