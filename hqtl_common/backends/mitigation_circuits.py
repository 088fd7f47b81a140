"""The circuits that mitigation adds: calibration of the readout, and two-qubit gates folded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.circuit import CircuitInstruction, Parameter
from qiskit.transpiler import Target, generate_preset_pass_manager

from hqtl_common.errors import CapabilityError

__all__ = ["CALIBRATION_PARAMETER", "CALIBRATION_STATES", "calibration_circuit", "calibration_parameters", "folded", "measured_qubits"]

CALIBRATION_PARAMETER = "state"
CALIBRATION_STATES: NDArray[np.float64] = np.array([[0.0], [np.pi]])  # all qubits in 0, all in 1
CALIBRATION_STATES.setflags(write=False)


def calibration_circuit(num_qubits: int, target: Target | None = None, qubits: list[int] | None = None) -> QuantumCircuit:
    """RX(state) on every qubit, measured into ``meas``: one circuit and two parameter sets, so that both states are one PUB.

    Args:
        num_qubits: n.
        target: The machine to transpile to, None leaves the circuit as it is.
        qubits: The physical qubit whose readout is bit i, for every i.
    """
    circuit = QuantumCircuit(num_qubits, name="calibration")
    circuit.rx(Parameter(CALIBRATION_PARAMETER), range(num_qubits))
    circuit.measure_all()
    if target is None:
        return circuit
    passes = generate_preset_pass_manager(0, target=target, initial_layout=qubits)  # level 0 keeps the layout
    laid_out: QuantumCircuit = passes.run(circuit)
    return laid_out


def calibration_parameters() -> dict[Any, NDArray[np.float64]]:
    """The two states as a PUB takes them."""
    return {(CALIBRATION_PARAMETER,): CALIBRATION_STATES}


def folded(circuit: QuantumCircuit, factor: int) -> QuantumCircuit:
    """The same circuit with every two-qubit gate ``factor`` times: g(g†g)^((factor − 1)/2), where g† = g.

    Args:
        circuit: An ISA circuit.
        factor: Odd.

    Raises:
        CapabilityError: It has no two-qubit gate, or one that is not its own inverse.
    """
    if factor == 1:
        return circuit
    if not circuit.num_nonlocal_gates():
        raise CapabilityError("zero-noise extrapolation repeats two-qubit gates, and this head has none; leave zne out")
    result = circuit.copy_empty_like()
    for instruction in circuit.data:
        for _ in range(factor if _is_pair(instruction) else 1):
            result.append(instruction)
    return result


def measured_qubits(circuit: QuantumCircuit) -> list[int]:
    """The physical qubit whose measurement is bit i, for every i."""
    by_bit = {circuit.find_bit(step.clbits[0]).index: circuit.find_bit(step.qubits[0]).index for step in _measurements(circuit)}
    return [by_bit[bit] for bit in range(circuit.num_clbits)]


def _measurements(circuit: QuantumCircuit) -> Iterator[CircuitInstruction]:
    return (instruction for instruction in circuit.data if instruction.operation.name == "measure")


def _is_pair(instruction: CircuitInstruction) -> bool:
    gate = instruction.operation
    if len(instruction.qubits) != 2 or gate.name == "barrier":
        return False
    if gate.inverse() != gate:
        raise CapabilityError(f"zero-noise extrapolation needs two-qubit gates that are their own inverse; this machine has {gate.name!r}")
    return True
