"""``statevector``: the exact head in NumPy, and noise-free shots drawn from its exact probabilities.

H, RY and CX are real, so a state is 2^n real amplitudes. The embedding gives a product state; with weights shared by all
rows the variational part is one orthogonal matrix, built once per call.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.base import check_seed, check_shots, check_table, estimate, stream_seed
from hqtl_common.circuit import cx_permutation, z_signs
from hqtl_common.records import Evaluation, ExecutionRecord
from hqtl_common.specs import HeadSpec

__all__ = ["StatevectorBackend", "probabilities", "product_state"]

F64 = NDArray[np.float64]

_CHUNK_AMPLITUDES = 2**22  # 32 MiB of float64 at a time
_MATRIX_QUBITS = 6  # beyond, building one 2^n × 2^n matrix costs more than applying the gates to a few rows


class StatevectorBackend:
    """The reference backend; see :class:`hqtl_common.backends.base.Backend`.

    Args:
        name: ``statevector``.
        shots: Repetitions, or None for exact values.
        seed: Seed of the draw.

    Raises:
        ConfigError: An option outside its range.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"shots", "seed"})

    def __init__(self, name: str = "statevector", *, shots: int | None = None, seed: int | None = None) -> None:
        self.name = name
        self.shots = check_shots(shots)
        self.seed = check_seed(seed, self.shots)

    def run(self, spec: HeadSpec, weights: NDArray[Any], angles: NDArray[Any], *, stream: int = 0) -> Evaluation:
        """See :meth:`hqtl_common.backends.base.Backend.run`."""
        started = time.perf_counter()
        weights64, angles64 = check_table(spec, weights, angles)
        rng = np.random.default_rng(stream_seed(self.seed, stream))
        rows = max(1, _CHUNK_AMPLITUDES >> spec.num_qubits)
        parts = [
            self._evaluate(spec, weights64 if weights64.ndim == 2 else weights64[k : k + rows], angles64[k : k + rows], rng)
            for k in range(0, max(1, len(angles64)), rows)
        ]
        expvals = np.concatenate([means for means, _ in parts])
        covs = [cov for _, cov in parts if cov is not None]
        record = ExecutionRecord(
            backend_requested=self.name,
            backend_used=self.name,
            shots=self.shots,
            seed=self.seed,
            num_rows=len(angles64),
            versions={"numpy": np.__version__},
            wall_seconds=time.perf_counter() - started,
        )
        return Evaluation(expvals, np.concatenate(covs) if covs else None, record)

    def close(self) -> None:
        """Nothing is held."""

    def _evaluate(self, spec: HeadSpec, weights: F64, angles: F64, rng: np.random.Generator) -> tuple[F64, F64 | None]:
        exact = probabilities(spec, weights, angles)
        if self.shots is None:
            return exact @ z_signs(spec.num_qubits), None
        return estimate(rng.multinomial(self.shots, exact / exact.sum(axis=1, keepdims=True)), spec.num_qubits)


def product_state(angles: F64) -> F64:
    """Real amplitudes (R, 2^n) of ⊗ RY(angle_i)·H|0⟩ for angles (R, n) in radians."""
    cos, sin = np.cos(angles / 2), np.sin(angles / 2)
    qubits = np.stack([cos - sin, cos + sin], axis=-1) / np.sqrt(2)
    state: F64 = qubits[:, 0]
    for qubit in range(1, angles.shape[1]):
        state = (state[:, :, None] * qubits[:, qubit, None, :]).reshape(len(angles), 2 ** (qubit + 1))
    return state


def probabilities(spec: HeadSpec, weights: F64, angles: F64) -> F64:
    """Exact outcome probabilities (R, 2^n); weights (L, n) or (R, L, n), angles (R, n), radians."""
    state = product_state(angles)
    if weights.ndim == 2 and spec.num_qubits <= _MATRIX_QUBITS:
        matrix = _variational(spec, weights[None], np.eye(2**spec.num_qubits))
        state = state @ matrix
    else:
        state = _variational(spec, weights.reshape(-1, *spec.weights_shape), state)
    squared: F64 = np.square(state)
    return squared


def _variational(spec: HeadSpec, weights: F64, state: F64) -> F64:
    """Apply the layers to real amplitudes (R, 2^n); weights (R or 1, L, n). Rows lie last meanwhile: long, even strides."""
    permutation = cx_permutation(spec)
    half = weights.transpose(1, 2, 0) / 2
    cos, sin = np.cos(half), np.sin(half)
    amplitudes = np.ascontiguousarray(state.T)
    for layer in range(spec.num_layers):
        amplitudes = amplitudes[permutation]
        for qubit in range(spec.num_qubits):
            pairs = amplitudes.reshape(2**qubit, 2, 2 ** (spec.num_qubits - 1 - qubit), len(state))
            rotated = pairs * cos[layer, qubit]
            turned = pairs * sin[layer, qubit]
            rotated[:, 0] -= turned[:, 1]
            rotated[:, 1] += turned[:, 0]
            amplitudes = rotated.reshape(2**spec.num_qubits, len(state))
    return amplitudes.T
