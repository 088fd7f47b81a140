"""What every backend is: a Protocol, what it can do, and how counts become estimates."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hqtl_common.circuit import ZString, single_zs, z_strings
from hqtl_common.errors import ConfigError, ShapeError
from hqtl_common.records import Evaluation
from hqtl_common.specs import HeadSpec

__all__ = [
    "Backend",
    "Capabilities",
    "DiffMethod",
    "check_observables",
    "check_seed",
    "check_shots",
    "check_table",
    "estimate",
    "stream_seed",
]

DiffMethod = Literal["backprop", "adjoint", "commuting", "parameter-shift", "lean-shift", "finite-diff", "finite-diff-forward", "spsa"]

# Uniform prior on each ⟨Z_i⟩: two further shots that fell evenly. Keeps the error of an all-equal sample above zero.
_PRIOR_SHOTS = 2
_MAX_SHOTS = 10_000_000


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do.

    Args:
        summary: One line for people.
        exact: Can give exact expectation values (``shots=None``).
        shots: Can sample.
        noise: Where its noise comes from, None when noise-free.
        paid: Costs money or queues on hardware.
        diff_methods: Gradient methods that are legal with it, where the head has them.
    """

    summary: str
    exact: bool
    shots: bool
    noise: str | None
    paid: bool
    diff_methods: tuple[DiffMethod, ...]


class Backend(Protocol):
    """Where the head runs. Options are fixed when it is made; :meth:`run` may be called from several threads."""

    OPTIONS: ClassVar[frozenset[str]]
    name: str
    shots: int | None
    seed: int | None

    def run(
        self,
        spec: HeadSpec,
        weights: NDArray[Any],
        angles: NDArray[Any],
        *,
        stream: int = 0,
        observables: tuple[ZString, ...] | None = None,
    ) -> Evaluation:
        """Evaluate a table of parameter sets in one execution.

        Args:
            spec: The head.
            weights: (L, n) shared by all rows, or (R, L, n) one per row; radians.
            angles: (R, E), radians.
            stream: Which independent noise to draw from the seed: the same seed and stream repeat the same
                answer, another stream gives another draw (a step of a training, a chunk of a folder).
            observables: K products of Z, each as its qubits in ascending order, all estimated from the same shots; None is
                every Z_i. They change what is read from an execution, not the execution.

        Raises:
            ShapeError: The arrays or the observables do not fit the head.
            BackendError: The execution failed; the subclass says how.
        """
        ...

    def close(self) -> None:
        """Free what the backend holds; it cannot be used afterwards."""
        ...


def check_shots(shots: int | None) -> int | None:
    """``shots`` itself, or a ConfigError unless it is None or a whole number from 1 to ten million."""
    if shots is None or (isinstance(shots, int) and not isinstance(shots, bool) and 1 <= shots <= _MAX_SHOTS):
        return shots
    raise ConfigError(f"shots must be a whole number from 1 to {_MAX_SHOTS:,}, or none for exact values; got {shots!r}")


def check_seed(seed: int | None, shots: int | None) -> int | None:
    """The effective seed: None where nothing is sampled, a fresh one where none was given (so that it can be recorded)."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise ConfigError(f"seed must be a whole number from 0 to 2^63 − 1; got {seed!r}")
    if shots is None:
        return None
    return secrets.randbits(31) if seed is None else seed


def stream_seed(seed: int | None, stream: int) -> np.random.SeedSequence:
    """The source of randomness of one stream of a seed (see :meth:`Backend.run`)."""
    return np.random.SeedSequence(0 if seed is None else seed, spawn_key=(stream,))


def check_table(spec: HeadSpec, weights: NDArray[Any], angles: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights and angles as float64 of legal shapes.

    Raises:
        ShapeError: A wrong shape, or a value that is not finite.
    """
    weights64, angles64 = np.asarray(weights, dtype=np.float64), np.asarray(angles, dtype=np.float64)
    if angles64.ndim != 2 or angles64.shape[1] != spec.num_angles:
        raise ShapeError(f"angles must have the shape (rows, {spec.num_angles}); got {angles64.shape}")
    per_row = (len(angles64), *spec.weights_shape)
    if weights64.shape not in (spec.weights_shape, per_row):
        raise ShapeError(f"weights must have the shape {spec.weights_shape} or {per_row}; got {weights64.shape}")
    if not (np.isfinite(weights64).all() and np.isfinite(angles64).all()):
        raise ShapeError("angles and weights must be finite numbers in radians; got infinite or undefined values")
    return weights64, angles64


def check_observables(spec: HeadSpec, observables: tuple[ZString, ...] | None) -> tuple[ZString, ...]:
    """The products of Z to be estimated; every Z_i for None.

    Raises:
        ShapeError: One is empty, not ascending, or names a qubit that is not there.
    """
    for string in observables or ():
        if not string or list(string) != sorted(set(string)) or not 0 <= string[0] <= string[-1] < spec.num_qubits:
            raise ShapeError(f"an observable is some of the qubits 0 to {spec.num_qubits - 1} in ascending order; got {string}")
    return single_zs(spec.num_qubits) if observables is None else tuple(observables)


def estimate(
    counts: NDArray[Any], num_qubits: int, observables: tuple[ZString, ...] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Counts of outcomes → expectation values (R, K) and the covariance of these estimates (R, K, K).

    The estimate is the plain mean. Its covariance is the posterior one under a uniform prior: for a single observable
    4·p(1−p)/(N+3) with p = (k+1)/(N+2), which is never zero, also where all N shots agree.

    Args:
        counts: (R, 2^n) non-negative, qubit 0 = most significant bit; every row with at least one shot.
        num_qubits: n.
        observables: K products of Z; None is every Z_i.
    """
    signs = z_strings(num_qubits, single_zs(num_qubits) if observables is None else observables)
    shots = counts.sum(axis=1, keepdims=True).astype(np.float64)
    frequencies = counts / shots
    means: NDArray[np.float64] = frequencies @ signs
    shrink = (shots / (shots + _PRIOR_SHOTS))[:, :, None]
    second = np.einsum("rb,bi,bj->rij", frequencies, signs, signs, optimize=True) * shrink
    second[:, np.arange(signs.shape[1]), np.arange(signs.shape[1])] = 1.0
    centre = means[:, :, None] * shrink
    covs = (second - centre * centre.transpose(0, 2, 1)) / (shots[:, :, None] + _PRIOR_SHOTS + 1)
    return means, covs
