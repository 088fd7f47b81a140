"""``head.qasm`` read by itself: the gates that the file says, not those that this package would write.

Only what such a file holds is read (gates of ``stdgates.inc`` on one register, angles that are numbers or input variables), so
that no further parser is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from hqtl_common.errors import ParityError

__all__ = ["qasm_expvals"]

_INPUT = re.compile(r"input float\[64\] (\w+);")
_REGISTER = re.compile(r"qubit\[(\d+)\] q;")
_GATE = re.compile(r"(h|rx|ry|rz|cx)(?:\(([^()]+)\))? (q\[\d+\](?:, q\[\d+\])*);")
_OTHER = re.compile(r"OPENQASM 3(\.\d)?;|include \"stdgates\.inc\";|bit\[\d+\] \w+;|barrier .*;|\w+\[\d+\] = measure q\[\d+\];")
_NUMBER = re.compile(r"q\[(\d+)\]")


def qasm_expvals(text: str, angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """⟨Z_i⟩ (B, n) of the circuit in ``text`` by Qiskit, for angles (B, E), radians, given to its inputs in their order.

    Raises:
        ParityError: The text is not such a circuit, or has another number of inputs.
    """
    from qiskit import QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp, Statevector

    lines = [line.strip() for line in text.splitlines() if line.strip()]
    inputs = [match[1] for line in lines if (match := _INPUT.fullmatch(line))]
    width = next((int(match[1]) for line in lines if (match := _REGISTER.fullmatch(line))), 0)
    if len(inputs) != angles.shape[1] or not width:
        raise ParityError(f"head.qasm has {len(inputs)} inputs and {width} qubits; the head has {angles.shape[1]} angles")
    observables = [SparsePauliOp.from_sparse_list([("Z", [qubit], 1.0)], width) for qubit in range(width)]
    gates = list(_gates(lines))
    rows = []
    for row in angles:
        circuit, values = QuantumCircuit(width), dict(zip(inputs, row, strict=True))
        for gate, argument, qubits in gates:
            getattr(circuit, gate)(*([] if argument is None else [_value(argument, values)]), *qubits)
        state = Statevector(circuit)
        rows.append([state.expectation_value(observable).real for observable in observables])
    return np.array(rows)


def _gates(lines: list[str]) -> Iterator[tuple[str, str | None, list[int]]]:
    for line in lines:
        if match := _GATE.fullmatch(line):
            yield match[1], match[2], [int(number) for number in _NUMBER.findall(match[3])]
        elif not any(known.fullmatch(line) for known in (_INPUT, _REGISTER, _OTHER)):
            raise ParityError(f"head.qasm holds a line that no head has: {line!r}")


def _value(argument: str, values: dict[str, float]) -> float:
    try:
        return values[argument] if argument in values else float(argument)
    except ValueError as error:
        raise ParityError(f"head.qasm holds an angle that is no number and no input: {argument!r}") from error
