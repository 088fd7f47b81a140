"""The exact head in torch, differentiated by torch's own backprop, for one run or for many at once.

CX and RY are real, so where an embedding makes a complex state its two parts pass through the layers as two real rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hqtl_common.circuit import cx_permutation, generators, subset_signs, z_signs, z_strings
from hqtl_common.specs import HeadSpec

__all__ = ["Head", "StatevectorHead"]


class Head(nn.Module):
    """What all heads share: angles (B, E) in radians → ⟨Z_i⟩ (B, n) float64.

    Several runs are one head with ``weights`` (S, L, n): it maps angles (S, B, E) → (S, B, n), each run with its own weights.

    Args:
        spec: The circuit.
        weights: Initial values (L, n) or (S, L, n), radians.
    """

    def __init__(self, spec: HeadSpec, weights: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.weights = nn.Parameter(weights.detach().clone().to(torch.float64))
        self.shots: int | None = None  # repetitions that are really made; None = exact
        self.num_rows = 0  # parameter sets evaluated so far on a backend, over all runs
        self.num_jobs = 0  # executions submitted so far
        self.qpu_seconds = 0.0  # billed so far

    def close(self) -> None:
        """Free what the head holds."""


class StatevectorHead(Head):
    """Exact ⟨Z_i⟩."""

    def __init__(self, spec: HeadSpec, weights: Tensor) -> None:
        super().__init__(spec, weights)
        self.circuit = _Commuting(spec) if spec.ansatz == "commuting" else _Layered(spec)

    def forward(self, angles: Tensor) -> Tensor:
        """See :class:`Head`."""
        if not torch.compiler.is_exporting():  # an exported graph has no count, and no fixed batch
            self.num_rows += math.prod(angles.shape[:-1])
            self.num_jobs += 1
        expvals: Tensor = self.circuit(angles.to(self.weights.dtype), self.weights)
        return expvals


class _Layered(nn.Module):
    """Angles (…, B, E) and weights (…, L, n) → (…, B, n); a layer is one matrix, or two with a gather where one would be large."""

    permutation: Tensor
    signs: Tensor
    quarters: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.embedding = _EMBEDDINGS[spec.embedding](spec)
        self.one_matrix = spec.num_qubits <= _MATRIX_QUBITS and spec.embedding != "reuploading"
        gather = cx_permutation(spec)
        _keep(self, "permutation", np.eye(len(gather))[:, gather] if self.one_matrix else gather)
        _keep(self, "signs", z_signs(spec.num_qubits))
        _keep(self, "quarters", np.pi / 2 * np.array([[0.0, -1.0], [1.0, 0.0]]))

    def forward(self, angles: Tensor, weights: Tensor) -> Tensor:
        state = self.embedding(angles)  # (…, B, 2^n), or (…, 2B, 2^n) of real and imaginary parts
        state = self._by_one_matrix(state, weights) if self.one_matrix else self._by_two(state, weights, angles)
        probabilities = state.square()
        if self.spec.embedding in _COMPLEX:
            probabilities = torch.unflatten(probabilities, -2, (2, -1)).sum(-3)
        return probabilities @ self.signs

    def _by_one_matrix(self, state: Tensor, weights: Tensor) -> Tensor:
        matrices = self.permutation @ _kronecker_matrix(self._turned(weights))  # the CX, then all RY
        for matrix in matrices.unbind(-3):
            state = state @ matrix
        return state

    def _by_two(self, state: Tensor, weights: Tensor, angles: Tensor) -> Tensor:
        count, layers = self.spec.num_qubits, self.spec.num_layers
        for layer in range(layers):
            turns = weights[..., layer, :]
            if self.spec.embedding == "reuploading" and layer + 1 < layers:  # RY(a)·RY(w) = RY(a + w)
                turns = turns[..., None, :] + angles[..., (layer + 1) * count : (layer + 2) * count]
            elif weights.ndim > 2:
                turns = turns[..., None, :]
            single = self._turned(turns)
            left, right = _kronecker_matrix(single[..., : count // 2, :, :]), _kronecker_matrix(single[..., count // 2 :, :, :])
            state = torch.unflatten(state[..., self.permutation], -1, (left.shape[-1], right.shape[-1]))
            state = (left.mT @ state @ right).flatten(-2)
        return state

    def _turned(self, angles: Tensor) -> Tensor:
        """RY of angles (…), transposed to be multiplied from the right: (…, 2, 2); one cosine is faster than its four parts."""
        return (angles[..., None, None] / 2 + self.quarters).cos()


class _Commuting(nn.Module):
    """The ansatz ``commuting``: for each bit string of the controls a target turns by one angle, linear in the weights."""

    signs: Tensor
    strings: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec = spec
        targets = range(spec.num_controls, spec.num_qubits)
        every = generators(spec)
        signs = z_strings(spec.num_controls, tuple(one.controls for one in every))  # (2^C, L·n)
        on_target = np.array([[one.target == target for target in targets] for one in every])
        _keep(self, "signs", signs.T[:, :, None] * on_target[:, None, :])  # (L·n, 2^C, T)
        _keep(self, "strings", z_signs(spec.num_controls))

    def forward(self, angles: Tensor, weights: Tensor) -> Tensor:
        controls = self.spec.num_controls
        turned = angles + (math.pi / 2 if self.spec.embedding == "angle" else 0.0)  # RY(a)·H|0⟩ = RY(a + π/2)|0⟩
        half = turned[..., :controls] / 2
        amplitudes = _kronecker(torch.stack((half.cos(), half.sin()), dim=-1))  # (…, B, 2^C)
        populations = amplitudes.square()
        conditional = torch.tensordot(weights.flatten(-2), self.signs, dims=1)  # (…, 2^C, T)
        target = (turned[..., None, controls:] + conditional[..., None, :, :]).cos()
        return torch.cat((populations @ self.strings, (populations[..., None] * target).sum(-2)), dim=-1)


class _Product(nn.Module):
    """One rotation from |0⟩, or from |+⟩, on every qubit: angles (…, B, E) → amplitudes (…, B, 2^n)."""

    quarters: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.count = spec.num_qubits
        offset = 0.0 if spec.embedding in ("angle_rx", "angle_ry") else np.pi / 4  # RY(a)·H|0⟩ = RY(a + π/2)|0⟩
        _keep(self, "quarters", np.array([offset, offset - np.pi / 2]))  # cosine and sine

    def forward(self, angles: Tensor) -> Tensor:
        return _kronecker((angles[..., : self.count, None] / 2 + self.quarters).cos())


class _ProductRX(_Product):
    """RX(a)|0⟩ = (cos(a/2), −i·sin(a/2)): a product state, times −i for every 1 of the bit string."""

    phases: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__(spec)
        ones = (spec.num_qubits - z_signs(spec.num_qubits).sum(axis=1)) / 2
        _keep(self, "phases", np.stack([np.cos(np.pi / 2 * ones), -np.sin(np.pi / 2 * ones)]).round())

    def forward(self, angles: Tensor) -> Tensor:
        state = super().forward(angles)
        return torch.cat((state * self.phases[0], state * self.phases[1]), dim=-2)


class _ProductRZ(nn.Module):
    """RZ(a)·H|0⟩: equal populations, and phases linear in the angles."""

    halves: Tensor

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.scale = 2 ** (-spec.num_qubits / 2)
        _keep(self, "halves", -z_signs(spec.num_qubits).T / 2)

    def forward(self, angles: Tensor) -> Tensor:
        phases = angles @ self.halves
        return self.scale * torch.cat((phases.cos(), phases.sin()), dim=-2)


class _Amplitudes(nn.Module):
    """The tree of multiplexed RY: level k turns qubit k by one angle for each bit string of the qubits before it."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.count = spec.num_qubits
        for level in range(1, spec.num_qubits):
            _keep(self, f"signs_{level}", subset_signs(level).T)

    def forward(self, angles: Tensor) -> Tensor:
        half = angles[..., :1] / 2
        state = torch.cat((half.cos(), half.sin()), dim=-1)
        for level in range(1, self.count):
            half = angles[..., 2**level - 1 : 2 ** (level + 1) - 1] @ self.get_buffer(f"signs_{level}") / 2
            state = torch.stack((state * half.cos(), state * half.sin()), dim=-1).flatten(-2)
        return state


_COMPLEX = ("angle_rx", "angle_rz")
_MATRIX_QUBITS = 5  # up to here one matrix for a layer is faster than two smaller ones and a gather
_EMBEDDINGS: dict[str, Callable[[HeadSpec], nn.Module]] = {
    "angle": _Product,
    "angle_rx": _ProductRX,
    "angle_ry": _Product,
    "angle_rz": _ProductRZ,
    "reuploading": _Product,
    "amplitude": _Amplitudes,
}


def _keep(module: nn.Module, name: str, table: NDArray[Any]) -> None:
    """A constant that moves with the module and is no part of its state."""
    module.register_buffer(name, torch.from_numpy(np.array(table, order="C")), persistent=False)


def _kronecker(vectors: Tensor) -> Tensor:
    """Kronecker product of n vectors (…, n, d) → (…, d^n), the first most significant; neighbours first, in few large steps."""
    count = vectors.shape[-2]
    if count == 1:
        return vectors[..., 0, :]
    if count % 2:
        first, last = _kronecker(vectors[..., :-1, :]), vectors[..., -1, :]
        return (first[..., :, None] * last[..., None, :]).flatten(-2)
    return _kronecker((vectors[..., ::2, :, None] * vectors[..., 1::2, None, :]).flatten(-2))


def _kronecker_matrix(matrices: Tensor) -> Tensor:
    """The same of n matrices (…, n, d, d) → (…, d^n, d^n)."""
    count = matrices.shape[-3]
    if count == 1:
        return matrices[..., 0, :, :]
    if count % 2:
        first, last = _kronecker_matrix(matrices[..., :-1, :, :]), matrices[..., -1, :, :]
        return (first[..., :, None, :, None] * last[..., None, :, None, :]).flatten(-4, -3).flatten(-2)
    return _kronecker_matrix((matrices[..., ::2, :, None, :, None] * matrices[..., 1::2, None, :, None, :]).flatten(-4, -3).flatten(-2))
