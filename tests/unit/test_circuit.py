"""The list of gates, and its three renderings: gather, Qiskit, OpenQASM 3."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hqtl_common.circuit import (
    circuit_drawing,
    cx_permutation,
    generators,
    gray_subsets,
    openqasm3,
    operations,
    qiskit_circuit,
    subset_signs,
    z_signs,
    z_strings,
)
from hqtl_common.specs import HeadSpec

SPECS = [HeadSpec(num_qubits=n, num_layers=layers) for n, layers in [(2, 1), (3, 2), (4, 1), (5, 3)]]
OTHERS = [
    HeadSpec(3, "angle_rx", "circular", 2),
    HeadSpec(3, "angle_rz", "all_to_all"),
    HeadSpec(3, "reuploading", "linear", 2),
    HeadSpec(4, "amplitude"),
    HeadSpec(4, "angle_ry", num_layers=2, ansatz="commuting"),
]


def cx_matrix(control: int, target: int, num_qubits: int) -> np.ndarray:
    """CX as a sum of products of projectors, qubit 0 leftmost in the Kronecker product."""
    result = np.zeros((2**num_qubits, 2**num_qubits))
    for projector, action in [(np.diag([1.0, 0]), np.eye(2)), (np.diag([0, 1.0]), np.array([[0, 1.0], [1, 0]]))]:
        factors = [projector if q == control else action if q == target else np.eye(2) for q in range(num_qubits)]
        product = factors[0]
        for factor in factors[1:]:
            product = np.kron(product, factor)
        result += product
    return result


def test_operations_of_the_papers_head() -> None:
    gates = [(operation.gate, operation.qubits, operation.source, operation.index) for operation in operations(HeadSpec())]
    assert gates == [
        *[("h", (q,), None, 0) for q in range(4)],
        *[("ry", (q,), "angles", q) for q in range(4)],
        ("cx", (0, 1), None, 0),
        ("cx", (2, 3), None, 0),
        ("cx", (1, 2), None, 0),
        *[("ry", (q,), "weights", q) for q in range(4)],
    ]


@pytest.mark.parametrize("spec", SPECS + OTHERS, ids=str)
def test_every_parameter_is_used_exactly_once(spec: HeadSpec) -> None:
    used = [(operation.source, operation.index) for operation in operations(spec) if operation.source]
    assert sorted(used) == sorted([("angles", k) for k in range(spec.num_angles)] + [("weights", k) for k in range(spec.num_weights)])
    circuit = qiskit_circuit(spec)
    assert {p.name for p in circuit.parameters} == {f"{source}[{k}]" for source, k in used}
    assert qiskit_circuit(spec, np.ones(spec.weights_shape)).num_parameters == spec.num_angles


@pytest.mark.parametrize("spec", SPECS + OTHERS, ids=str)
def test_gather_is_the_product_of_the_cx_matrices(spec: HeadSpec) -> None:
    layer = np.eye(2**spec.num_qubits)
    for control, target in spec.cx_pairs:
        layer = cx_matrix(control, target, spec.num_qubits) @ layer
    state = np.random.default_rng(0).normal(size=2**spec.num_qubits)
    np.testing.assert_array_equal(state[cx_permutation(spec)], layer @ state)


@pytest.mark.parametrize("num_qubits", [1, 2, 4])
def test_signs_are_the_diagonals_of_z(num_qubits: int) -> None:
    for qubit in range(num_qubits):
        diagonal = np.ones(1)
        for q in range(num_qubits):
            diagonal = np.kron(diagonal, [1.0, -1.0] if q == qubit else [1.0, 1.0])
        np.testing.assert_array_equal(z_signs(num_qubits)[:, qubit], diagonal)


def test_signs_of_products_are_products_of_signs() -> None:
    single = z_signs(4)
    np.testing.assert_array_equal(z_strings(4, ((0, 3), (1, 2, 3)))[:, 0], single[:, 0] * single[:, 3])
    np.testing.assert_array_equal(z_strings(4, ((0, 3), (1, 2, 3)))[:, 1], single[:, 1] * single[:, 2] * single[:, 3])


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_subsets_change_by_one_member_all_around(count: int) -> None:
    subsets = gray_subsets(count)
    assert len(set(subsets)) == len(subsets) == 2**count
    assert subsets[0] == ()
    if count:
        assert all(len(set(one) ^ set(other)) == 1 for one, other in zip(subsets, (*subsets[1:], subsets[0]), strict=True))
        assert subsets[1] == (count - 1,)
    np.testing.assert_array_equal(subset_signs(count).T @ subset_signs(count), 2**count * np.eye(2**count))


def test_gates_of_the_commuting_ansatz() -> None:
    """Two layers on four qubits: all subsets of the controls for both targets, the second target's with the controls swapped."""
    spec = HeadSpec(num_layers=2, ansatz="commuting")
    assert [(one.target, one.controls) for one in generators(spec)] == [
        *((2, ()), (3, ()), (2, (1,)), (3, (0,))),
        *((2, (0, 1)), (3, (0, 1)), (2, (0,)), (3, (1,))),
    ]
    gates = [(gate.qubits, gate.index) if gate.gate == "ry" else gate.qubits for gate in operations(spec)][8:]
    assert gates[:8] == [((2,), 0), (1, 2), ((2,), 2), (0, 2), ((2,), 4), (1, 2), ((2,), 6), (0, 2)]
    assert gates[8:] == [((3,), 1), (0, 3), ((3,), 3), (1, 3), ((3,), 5), (0, 3), ((3,), 7), (1, 3)]


def test_gates_of_the_amplitude_tree() -> None:
    gates = [(gate.gate, gate.qubits, gate.index) for gate in operations(HeadSpec(3, "amplitude"))][:13]
    assert sum(gate == "ry" for gate, _, _ in gates) == 7
    tree = [("ry", (0,), 0), ("ry", (1,), 1), ("cx", (0, 1), 0), ("ry", (1,), 2), ("cx", (0, 1), 0)]
    last = [("ry", (2,), 3), ("cx", (1, 2), 0), ("ry", (2,), 4), ("cx", (0, 2), 0), ("ry", (2,), 5), ("cx", (1, 2), 0), ("ry", (2,), 6)]
    assert gates == [*tree, *last, ("cx", (0, 2), 0)]


def test_cached_tables_cannot_be_changed() -> None:
    for table in (z_signs(3), cx_permutation(HeadSpec(num_qubits=3))):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


def parse_qasm(text: str) -> tuple[list[tuple[str, str, tuple[int, ...]]], dict[str, str]]:
    """(gate, argument, qubits) of every gate line, and the declarations by name."""
    gates = re.findall(r"^(h|rx|ry|rz|cx)(?:\((.*)\))? ([^;]*);$", text, re.MULTILINE)
    declared = re.findall(r"^(input float\[64\]|bit\[\d+\]|qubit\[\d+\]) (\w+);$", text, re.MULTILINE)
    return [(gate, argument, tuple(map(int, re.findall(r"\[(\d+)\]", qubits)))) for gate, argument, qubits in gates], {
        name: kind for kind, name in declared
    }


@pytest.mark.parametrize("spec", SPECS + OTHERS, ids=str)
def test_qasm_holds_every_gate_in_order_and_the_weights_to_the_last_bit(spec: HeadSpec) -> None:
    weights = np.random.default_rng(1).uniform(-np.pi, np.pi, size=spec.weights_shape)
    weights[0, 0], weights[0, 1] = np.pi / 2 * (1 + 1e-10), 1e-17  # an exporter that looks for fractions of π would round these
    text = openqasm3(spec, weights)
    gates, declared = parse_qasm(text)
    assert text.startswith('OPENQASM 3.0;\ninclude "stdgates.inc";\n')
    assert declared == {"q": f"qubit[{spec.num_qubits}]", "meas": f"bit[{spec.num_qubits}]"} | {
        f"_angles_{k}_": "input float[64]" for k in range(spec.num_angles)
    }
    expected = list(operations(spec))
    assert [(gate, qubits) for gate, _, qubits in gates] == [(operation.gate, operation.qubits) for operation in expected]
    for operation, (_, argument, _) in zip(expected, gates, strict=True):
        if operation.source == "weights":
            assert float(argument) == weights.ravel()[operation.index]
        elif operation.source == "angles":
            assert argument == f"_angles_{operation.index}_"
    assert re.findall(r"^meas\[(\d+)\] = measure q\[(\d+)\];$", text, re.MULTILINE) == [(str(q), str(q)) for q in range(spec.num_qubits)]


def test_qasm_without_weights_declares_them_as_inputs() -> None:
    _, declared = parse_qasm(openqasm3(HeadSpec(num_layers=2)))
    assert sum(name.startswith("_weights_") for name in declared) == 8


def test_drawing_shows_gates_and_names() -> None:
    drawing = circuit_drawing(HeadSpec())
    assert len(re.findall(r"Ry\(angles\[\d\]\)", drawing)) == len(re.findall(r"Ry\(weights\[\d\]\)", drawing)) == 4
    assert drawing.count("┤ H ├") == drawing.count("┤M├") == 4
