"""The head as a circuit: one list of operations that every renderer and simulator reads.

Array conventions: a basis state of n qubits is the integer whose most significant bit is qubit 0 (PennyLane's order);
Qiskit's integers read the other way round and are converted where they enter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from hqtl_common.specs import HeadSpec

if TYPE_CHECKING:
    from qiskit import QuantumCircuit

__all__ = [
    "Generator",
    "Operation",
    "ZString",
    "circuit_drawing",
    "cx_permutation",
    "generators",
    "gray_subsets",
    "openqasm3",
    "operations",
    "qiskit_circuit",
    "single_zs",
    "subset_signs",
    "z_signs",
    "z_strings",
]

ZString = tuple[int, ...]  # the qubits, ascending, whose Z are multiplied

_HADAMARDS = ("angle", "angle_rz", "reuploading")
_ROTATIONS: dict[str, Literal["rx", "rz"]] = {"angle_rx": "rx", "angle_rz": "rz"}


@dataclass(frozen=True, slots=True)
class Operation:
    """One gate.

    Args:
        gate: ``h``, ``rx``, ``ry``, ``rz`` or ``cx``.
        qubits: The qubit it acts on; (control, target) for ``cx``.
        source: For a rotation where its angle (radians) comes from: ``angles`` or ``weights``; else None.
        index: Position in the flattened source.
    """

    gate: Literal["h", "rx", "ry", "rz", "cx"]
    qubits: tuple[int, ...]
    source: Literal["angles", "weights"] | None = None
    index: int = 0


@dataclass(frozen=True, slots=True)
class Generator:
    """``Y_target · Z_controls``: what one weight of the ansatz ``commuting`` rotates about."""

    target: int
    controls: tuple[int, ...]


def operations(spec: HeadSpec) -> Iterator[Operation]:
    """The gates of the head in order; every angle and every weight stands in exactly one of them.

    ``real_amplitudes`` is Geng et al. 2023, section 4 and figure 4. ``commuting`` takes one target after the other: CX from
    its controls around each RY(w), which is ``exp(−i·w/2·Y_t·Z_S)``, in an order that changes one control at a time.
    """
    count = spec.num_qubits
    yield from _embedding(spec)
    if spec.ansatz == "commuting":
        chosen = generators(spec)
        for target in range(spec.num_controls, count):
            steps = [(one.controls, index) for index, one in enumerate(chosen) if one.target == target]
            yield from _multiplexed(target, steps, "weights")
        return
    for layer in range(spec.num_layers):
        if layer and spec.embedding == "reuploading":
            yield from (Operation("ry", (qubit,), "angles", layer * count + qubit) for qubit in range(count))
        yield from (Operation("cx", pair) for pair in spec.cx_pairs)
        yield from (Operation("ry", (qubit,), "weights", layer * count + qubit) for qubit in range(count))


def _embedding(spec: HeadSpec) -> Iterator[Operation]:
    """``amplitude`` is the tree of Möttönen et al. 2004 (arXiv:quant-ph/0407010): for real amplitudes RY and CX alone."""
    qubits = range(spec.num_qubits)
    if spec.embedding == "amplitude":
        for target in qubits:
            steps = [(subset, 2**target - 1 + index) for index, subset in enumerate(gray_subsets(target))]
            yield from _multiplexed(target, steps, "angles")
        return
    if spec.embedding in _HADAMARDS:
        yield from (Operation("h", (qubit,)) for qubit in qubits)
    yield from (Operation(_ROTATIONS.get(spec.embedding, "ry"), (qubit,), "angles", qubit) for qubit in qubits)


def _multiplexed(target: int, steps: Iterable[tuple[tuple[int, ...], int]], source: Literal["angles", "weights"]) -> Iterator[Operation]:
    """``exp(−i·θ/2·Y_target·Z_S)`` for each (S, index of θ); CX of a control only where it enters or leaves S."""
    around: set[int] = set()
    for controls, index in steps:
        yield from (Operation("cx", (control, target)) for control in sorted(around ^ set(controls)))
        yield Operation("ry", (target,), source, index)
        around = set(controls)
    yield from (Operation("cx", (control, target)) for control in sorted(around))


@lru_cache(maxsize=64)
def gray_subsets(count: int) -> tuple[tuple[int, ...], ...]:
    """The 2^count subsets of 0 … count − 1, each ascending, neighbours (the last and the first too) differing in one member.

    A reflected Gray code, whose fastest member is count − 1, the control next to the target.
    """
    codes = (number ^ number >> 1 for number in range(2**count))
    return tuple(tuple(member for member in range(count) if code >> (count - 1 - member) & 1) for code in codes)


@lru_cache(maxsize=64)
def subset_signs(count: int) -> NDArray[np.float64]:
    """(−1)^(members of S that are 1), (2^count bit strings, 2^count subsets) of ±1, the subsets as in :func:`gray_subsets`.

    A multiplexed rotation with plain angles θ_S turns its target by ``subset_signs @ θ`` for each bit string of its controls
    (0 the most significant); the inverse is ``subset_signs.T / 2^count``.
    """
    return z_strings(count, gray_subsets(count))


@lru_cache(maxsize=64)
def generators(spec: HeadSpec) -> tuple[Generator, ...]:
    """The L·n generators of the ansatz ``commuting``, one per weight in the flattened order of the weights.

    All targets with no control, then all targets with the second subset of :func:`gray_subsets`, and so on; the j-th target
    counts its controls from the j-th on, so that the first layers already join different pairs of qubits.
    """
    controls, targets = spec.num_controls, range(spec.num_controls, spec.num_qubits)
    every = [
        Generator(target, tuple(sorted((member + place) % controls for member in subset)))
        for subset in gray_subsets(controls)
        for place, target in enumerate(targets)
    ]
    return tuple(every[: spec.num_weights])


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


@lru_cache(maxsize=256)
def z_strings(num_qubits: int, strings: tuple[ZString, ...]) -> NDArray[np.float64]:
    """Eigenvalues of products of Z on every basis state, (2^n, K) float64 of ±1: ``expvals = probabilities @ z_strings(…)``."""
    basis = np.arange(2**num_qubits)
    bits = basis[:, None] >> np.arange(num_qubits - 1, -1, -1) & 1
    signs = np.empty((2**num_qubits, len(strings)))
    for column, string in enumerate(strings):
        signs[:, column] = 1.0 - 2.0 * (bits[:, list(string)].sum(axis=1) & 1)
    signs.setflags(write=False)
    return signs


def single_zs(num_qubits: int) -> tuple[ZString, ...]:
    """Z_0, Z_1, …: what a head measures."""
    return tuple((qubit,) for qubit in range(num_qubits))


def z_signs(num_qubits: int) -> NDArray[np.float64]:
    """:func:`z_strings` of the single Z_i, (2^n, n)."""
    return z_strings(num_qubits, single_zs(num_qubits))


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
