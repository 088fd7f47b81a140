"""The head as a circuit: one list of operations that every renderer and simulator reads.

Array conventions: a basis state of n qubits is the integer whose most significant bit is qubit 0 (PennyLane's order);
Qiskit's integers read the other way round and are converted where they enter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hqtl_common.specs import HeadSpec

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

__all__ = ["Operation", "circuit_drawing", "cx_permutation", "openqasm3", "operations", "qiskit_circuit", "z_signs"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One gate.

    Args:
        gate: ``h``, ``ry`` or ``cx``.
        qubits: The qubit it acts on; (control, target) for ``cx``.
        source: For ``ry`` where its angle (radians) comes from: ``angles`` or ``weights``; else None.
        index: Position in the flattened source.
    """

    gate: Literal["h", "ry", "cx"]
    qubits: tuple[int, ...]
    source: Literal["angles", "weights"] | None = None
    index: int = 0


def operations(spec: HeadSpec) -> Iterator[Operation]:
    """The gates of the head in order (Geng et al. 2023, section 4 and figure 4)."""
    for qubit in range(spec.num_qubits):
        yield Operation("h", (qubit,))
    for qubit in range(spec.num_qubits):
        yield Operation("ry", (qubit,), "angles", qubit)
    for layer in range(spec.num_layers):
        for pair in spec.cx_pairs:
            yield Operation("cx", pair)
        for qubit in range(spec.num_qubits):
            yield Operation("ry", (qubit,), "weights", layer * spec.num_qubits + qubit)


@lru_cache(maxsize=64)
def cx_permutation(spec: HeadSpec) -> NDArray[np.intp]:
    """The CX gates of one layer as one gather, (2^n,) int: ``new_state = state[..., permutation]``."""
    basis = np.arange(2**spec.num_qubits)
    source = basis.copy()
    for control, target in reversed(spec.cx_pairs):
        control_bit = source >> (spec.num_qubits - 1 - control) & 1
        source = source ^ (control_bit << (spec.num_qubits - 1 - target))
    source.setflags(write=False)
    return source


@lru_cache(maxsize=64)
def z_signs(num_qubits: int) -> NDArray[np.float64]:
    """Eigenvalues of Z_i on every basis state, (2^n, n) float64 of ±1: ``expvals = probabilities @ z_signs(n)``."""
    basis = np.arange(2**num_qubits)[:, None]
    bits = basis >> np.arange(num_qubits - 1, -1, -1) & 1
    signs: NDArray[np.float64] = np.where(bits == 1, -1.0, 1.0)
    signs.setflags(write=False)
    return signs


def qiskit_circuit(spec: HeadSpec, weights: NDArray[np.float64] | None = None, *, measure: bool = False) -> QuantumCircuit:
    """The head as a Qiskit circuit with parameter vectors ``angles`` and ``weights``, both in radians.

    Args:
        spec: The head.
        weights: (L, n) values to write into the circuit in place of the parameters ``weights``.
        measure: Append a measurement of every qubit into the classical register ``meas``.
    """
    from qiskit import QuantumCircuit
    from qiskit.circuit import ParameterVector

    values = {
        "angles": ParameterVector("angles", spec.num_angles),
        "weights": ParameterVector("weights", spec.num_weights) if weights is None else np.ravel(weights).tolist(),
    }
    circuit = QuantumCircuit(spec.num_qubits, name="head")
    for operation in operations(spec):
        arguments = [] if operation.source is None else [values[operation.source][operation.index]]
        getattr(circuit, operation.gate)(*arguments, *operation.qubits)
    if measure:
        circuit.measure_all()
    return circuit


def openqasm3(spec: HeadSpec, weights: NDArray[np.float64] | None = None) -> str:
    """OpenQASM 3 text of the measured head: angles are ``input`` variables, weights too unless given."""
    from qiskit import qasm3

    # Without disable_constants an angle within 1e-9 of a fraction of π is rounded to it.
    text: str = qasm3.dumps(qiskit_circuit(spec, weights, measure=True), disable_constants=True)
    return text


def circuit_drawing(spec: HeadSpec) -> str:
    """The head drawn as text."""
    return str(qiskit_circuit(spec, measure=True).draw("text", fold=160))
