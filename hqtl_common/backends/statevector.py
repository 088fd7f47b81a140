"""``statevector``: the exact head in NumPy, and noise-free shots drawn from its exact probabilities.

RY and CX are real, so a state is 2^n real amplitudes, and where an embedding makes it complex its two parts pass through the
layers as two real rows. With weights shared by all rows the variational part is one orthogonal matrix, built once per call.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hqtl_common.backends.base import check_observables, check_seed, check_shots, check_table, estimate, stream_seed
from hqtl_common.circuit import ZString, cx_permutation, generators, subset_signs, z_signs, z_strings
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

    def run(
        self,
        spec: HeadSpec,
        weights: NDArray[Any],
        angles: NDArray[Any],
        *,
        stream: int = 0,
        observables: tuple[ZString, ...] | None = None,
    ) -> Evaluation:
        """See :meth:`hqtl_common.backends.base.Backend.run`."""
        started = time.perf_counter()
        weights64, angles64 = check_table(spec, weights, angles)
        wanted = check_observables(spec, observables)
        rng = np.random.default_rng(stream_seed(self.seed, stream))
        rows = max(1, _CHUNK_AMPLITUDES >> spec.num_qubits)
        parts = [
            self._evaluate(spec, weights64 if weights64.ndim == 2 else weights64[k : k + rows], angles64[k : k + rows], rng, wanted)
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

    def _evaluate(
        self, spec: HeadSpec, weights: F64, angles: F64, rng: np.random.Generator, wanted: tuple[ZString, ...]
    ) -> tuple[F64, F64 | None]:
        exact = probabilities(spec, weights, angles)
        if self.shots is None:
            return exact @ z_strings(spec.num_qubits, wanted), None
        return estimate(rng.multinomial(self.shots, exact / exact.sum(axis=1, keepdims=True)), spec.num_qubits, wanted)


def product_state(angles: F64) -> F64:
    """Real amplitudes (R, 2^n) of ⊗ RY(angle_i)|0⟩ for angles (R, n) in radians."""
    qubits = np.stack([np.cos(angles / 2), np.sin(angles / 2)], axis=-1)
    state: F64 = qubits[:, 0]
    for qubit in range(1, angles.shape[1]):
        state = (state[:, :, None] * qubits[:, qubit, None, :]).reshape(len(angles), 2 ** (qubit + 1))
    return state


def probabilities(spec: HeadSpec, weights: F64, angles: F64) -> F64:
    """Exact outcome probabilities (R, 2^n); weights (L, n) or (R, L, n), angles (R, E), radians."""
    if spec.ansatz == "commuting":
        squared: F64 = np.square(_commuting(spec, weights, angles))
        return squared
    state = _embedded(spec, angles)  # (R, 2^n), or (2R, 2^n) of real and imaginary parts
    if weights.ndim == 2 and spec.num_qubits <= _MATRIX_QUBITS and spec.embedding != "reuploading":
        state = state @ _variational(spec, weights[None], np.eye(2**spec.num_qubits))
    else:
        state = _variational(spec, _turns(spec, weights, angles, len(state)), state)
    squared = np.square(state)
    return squared if len(squared) == len(angles) else squared.reshape(2, len(angles), -1).sum(axis=0)


def _embedded(spec: HeadSpec, angles: F64) -> F64:
    """The state after the embedding's first block, real (R, 2^n), or its real and then its imaginary parts (2R, 2^n)."""
    if spec.embedding == "amplitude":
        return _tree(spec, angles)
    if spec.embedding == "angle_rz":
        phases = angles @ (-z_signs(spec.num_qubits).T / 2)
        halves: F64 = np.concatenate([np.cos(phases), np.sin(phases)]) / np.sqrt(2**spec.num_qubits)
        return halves
    if spec.embedding == "angle_rx":  # RX(a)|0⟩ = (cos(a/2), −i·sin(a/2)): −i for every 1 of the bit string
        ones = (spec.num_qubits - z_signs(spec.num_qubits).sum(axis=1)).astype(int) // 2
        product = product_state(angles)
        return np.concatenate([product * (-(1j**ones)).real, product * (-(1j**ones)).imag])
    return product_state(_from_zero(spec, angles[:, : spec.num_qubits]))


def _from_zero(spec: HeadSpec, angles: F64) -> F64:
    """RY(a)·H|0⟩ = RY(a + π/2)|0⟩."""
    return angles if spec.embedding == "angle_ry" else angles + np.pi / 2


def _tree(spec: HeadSpec, angles: F64) -> F64:
    """Multiplexed RY: level k turns qubit k by one angle for each bit string of the qubits before it."""
    state = np.ones((len(angles), 1))
    for level in range(spec.num_qubits):
        half = angles[:, 2**level - 1 : 2 ** (level + 1) - 1] @ subset_signs(level).T / 2
        state = np.stack([state * np.cos(half), state * np.sin(half)], axis=-1).reshape(len(angles), 2 ** (level + 1))
    return state


def _turns(spec: HeadSpec, weights: F64, angles: F64, num_states: int) -> F64:
    """The RY of every layer, (states or 1, L, n): the weights, and data that is uploaded after them."""
    turns = weights.reshape(-1, *spec.weights_shape)
    if spec.embedding == "reuploading":
        again = angles.reshape(-1, *spec.weights_shape)
        after: F64 = np.concatenate([again[:, 1:], np.zeros((len(again), 1, spec.num_qubits))], axis=1)
        return turns + after
    return np.tile(turns, (num_states // len(angles), 1, 1)) if len(turns) > 1 else turns


def _commuting(spec: HeadSpec, weights: F64, angles: F64) -> F64:
    """Amplitudes (R, 2^n) of the ansatz ``commuting``: each target turns by an angle for each bit string of the controls."""
    start, controls = _from_zero(spec, angles), spec.num_controls
    state: F64 = product_state(start[:, :controls])[:, :, None]  # (R, 2^C, 2^targets so far)
    every, flat = generators(spec), weights.reshape(-1, spec.num_weights)
    for target in range(controls, spec.num_qubits):
        chosen = [index for index, one in enumerate(every) if one.target == target]
        half = (start[:, target, None] + flat[:, chosen] @ z_strings(controls, tuple(every[k].controls for k in chosen)).T) / 2
        turned = np.stack([np.cos(half), np.sin(half)], axis=-1)
        state = (state[:, :, :, None] * turned[:, :, None, :]).reshape(len(angles), 2**controls, 2 * state.shape[2])
    return state.reshape(len(angles), 2**spec.num_qubits)


def _variational(spec: HeadSpec, turns: F64, state: F64) -> F64:
    """Apply the layers to real amplitudes (R, 2^n); RY of (R or 1, L, n) radians. Rows lie last meanwhile: long, even strides."""
    permutation = cx_permutation(spec)
    half = turns.transpose(1, 2, 0) / 2
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
