"""Every kind of head is the same in torch, NumPy, Qiskit, PennyLane and OpenQASM 3, and what its parts are elsewhere."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

pytest.importorskip("pennylane", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")

import pennylane as qml
from qiskit import QuantumCircuit, qasm3
from qiskit.circuit.library import real_amplitudes
from qiskit.quantum_info import Statevector

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends.base import estimate
from hqtl_common.circuit import generators, openqasm3, operations, qiskit_circuit, single_zs, z_strings
from hqtl_common.errors import ShapeError
from tests.closed_form import one_layer, papers_head
from tests.heads import EMBEDDINGS, ENTANGLERS, heads, layered_heads
from training.head import StatevectorHead
from training.pre_net import PreNet

SEEDS = st.integers(0, 2**32 - 1)
PRODUCTS = tuple(kind for kind in EMBEDDINGS if kind != "amplitude")


def numbers(spec: HeadSpec, seed: int, rows: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Weights (L, n) and angles (rows, E) over more than a turn."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-4, 4, spec.weights_shape), rng.uniform(-4, 4, (rows, spec.num_angles))


def of_numpy(spec: HeadSpec, weights: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return get_backend("statevector").run(spec, weights, angles).expvals


def of_circuit(circuit: QuantumCircuit) -> np.ndarray:
    """⟨Z_i⟩ of a bound circuit, by Qiskit."""
    probabilities = Statevector(circuit.remove_final_measurements(inplace=False)).probabilities()  # qubit 0 is the lowest bit
    bits = np.arange(len(probabilities))[:, None] >> np.arange(circuit.num_qubits) & 1
    return probabilities @ (1 - 2 * bits)


def bound(circuit: QuantumCircuit, angles: np.ndarray, name: str) -> QuantumCircuit:
    return circuit.assign_parameters({name.format(index): value for index, value in enumerate(angles)})


# ---------------------------------------------------------------- one head, many forms


@settings(max_examples=60)
@given(spec=heads(5), seed=SEEDS)
@example(HeadSpec(5, "amplitude", "all_to_all", 3), 0)
@example(HeadSpec(5, "reuploading", "circular", 3), 1)
@example(HeadSpec(4, "angle_rx", "linear", 2), 2)
@example(HeadSpec(4, "angle_rz", "circular", 2), 3)
@example(HeadSpec(5, num_layers=2, ansatz="commuting"), 4)
def test_all_forms_of_a_head_agree(spec: HeadSpec, seed: int) -> None:
    weights, angles = numbers(spec, seed)
    expected = of_numpy(spec, weights, angles)
    assert np.abs(expected).max() <= 1 + 1e-12
    torch_head = StatevectorHead(spec, torch.from_numpy(weights))
    np.testing.assert_allclose(torch_head(torch.from_numpy(angles)).detach(), expected, atol=1e-12)
    np.testing.assert_allclose(get_backend("pennylane:default.qubit").run(spec, weights, angles).expvals, expected, atol=1e-12)
    parsed = qasm3.loads(openqasm3(spec, weights))
    for row, values in zip(angles, expected, strict=True):
        np.testing.assert_allclose(of_circuit(bound(qiskit_circuit(spec, weights), row, "angles[{}]")), values, atol=1e-12)
        np.testing.assert_allclose(of_circuit(bound(parsed, row, "_angles_{}_")), values, atol=1e-12)


@settings(max_examples=40)
@given(spec=heads(5), seed=SEEDS)
def test_rows_with_their_own_weights_and_runs_at_once_are_rows_one_by_one(spec: HeadSpec, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights, angles = rng.normal(size=(3, *spec.weights_shape)), rng.normal(size=(3, 2, spec.num_angles))
    expected = np.stack([of_numpy(spec, one, rows) for one, rows in zip(weights, angles, strict=True)])
    together = StatevectorHead(spec, torch.from_numpy(weights))(torch.from_numpy(angles)).detach()
    np.testing.assert_allclose(together, expected, atol=1e-12)
    np.testing.assert_allclose(of_numpy(spec, weights, angles[:, 0]), expected[:, 0], atol=1e-12)
    assert of_numpy(spec, weights[:0], angles[:0, 0]).shape == (0, spec.num_qubits)


@given(spec=heads(5))
def test_every_angle_and_weight_stands_in_one_gate(spec: HeadSpec) -> None:
    used = [(gate.source, gate.index) for gate in operations(spec) if gate.source]
    assert sorted(used) == sorted([("angles", k) for k in range(spec.num_angles)] + [("weights", k) for k in range(spec.num_weights)])


@pytest.mark.parametrize("spec", [HeadSpec(10, kind, "all_to_all", 2) for kind in EMBEDDINGS] + [HeadSpec(10, ansatz="commuting")], ids=str)
def test_ten_qubits_are_quick(spec: HeadSpec) -> None:
    weights, angles = numbers(spec, 0, rows=4)
    head, rows = StatevectorHead(spec, torch.from_numpy(weights)), torch.from_numpy(angles).requires_grad_()
    expected = of_numpy(spec, weights, angles)
    started = time.process_time()
    values = head(rows)
    values.sum().backward()
    assert time.process_time() - started < 1
    np.testing.assert_allclose(values.detach(), expected, atol=1e-12)
    np.testing.assert_allclose(get_backend("pennylane:lightning.qubit").run(spec, weights, angles).expvals, expected, atol=1e-6)


# ---------------------------------------------------------------- what the parts are elsewhere


def test_the_papers_head_is_a_short_polynomial() -> None:
    weights, angles = numbers(HeadSpec(), 0, rows=50)
    np.testing.assert_allclose(papers_head(weights, angles), of_numpy(HeadSpec(), weights, angles), atol=1e-14)
    np.testing.assert_allclose(papers_head(weights, angles), one_layer(HeadSpec(), weights, angles), atol=1e-14)


@given(num_qubits=st.integers(2, 8), embedding=st.sampled_from(PRODUCTS), entangler=st.sampled_from(ENTANGLERS), seed=SEEDS)
def test_every_head_of_one_layer_is_a_short_polynomial(num_qubits: int, embedding: str, entangler: str, seed: int) -> None:
    spec = HeadSpec(num_qubits, embedding, entangler)
    weights, angles = numbers(spec, seed)
    np.testing.assert_allclose(one_layer(spec, weights, angles), of_numpy(spec, weights, angles), atol=1e-12)


@pytest.mark.parametrize("num_qubits", [2, 3, 4, 5])
def test_entanglers_are_those_of_qiskit_by_name(num_qubits: int) -> None:
    for entangler, name in (("pairwise", "pairwise"), ("linear", "linear"), ("all_to_all", "full"), ("circular", "circular")):
        circuit = real_amplitudes(num_qubits, entanglement=name, reps=1)
        pairs = [tuple(circuit.find_bit(q).index for q in step.qubits) for step in circuit.data if len(step.qubits) == 2]
        found = list(HeadSpec(num_qubits, entangler=entangler).cx_pairs)
        if entangler == "circular" and num_qubits > 2:  # Qiskit closes the circle first, PennyLane last
            assert found == pairs[1:] + pairs[:1]
        else:
            assert found == pairs


@pytest.mark.parametrize("num_qubits", [2, 3, 5])
def test_circular_is_the_ring_of_pennylane(num_qubits: int) -> None:
    ring = qml.BasicEntanglerLayers(np.zeros((1, num_qubits)), wires=range(num_qubits), rotation=qml.RY).decomposition()
    pairs = [tuple(gate.wires) for gate in ring if gate.num_wires == 2]
    assert list(HeadSpec(num_qubits, entangler="circular").cx_pairs) == pairs


@settings(max_examples=40)
@given(num_qubits=st.integers(2, 5), seed=SEEDS, zeros=st.integers(0, 3))
@example(2, 0, 3)
def test_amplitude_is_the_embedding_of_pennylane(num_qubits: int, seed: int, zeros: int) -> None:
    """From pre_net's values, signs and zeros among them, through its angles to the state before the first layer."""
    spec = HeadSpec(num_qubits, "amplitude", "linear", 2)
    rng = np.random.default_rng(seed)
    values = rng.normal(size=2**num_qubits)
    values[rng.permutation(2**num_qubits)[:zeros]] = 0.0
    weights = numbers(spec, seed)[0]

    @qml.qnode(qml.device("default.qubit", wires=num_qubits))
    def node() -> list[object]:
        qml.AmplitudeEmbedding(values, wires=range(num_qubits), normalize=True)
        for layer in weights:
            for pair in spec.cx_pairs:
                qml.CNOT(wires=pair)
            for wire, angle in enumerate(layer):
                qml.RY(angle, wires=wire)
        return [qml.expval(qml.Z(wire)) for wire in range(num_qubits)]

    to_angles = PreNet(1, spec).to_angles.double()
    angles = to_angles(torch.from_numpy(values)[None]).numpy()
    np.testing.assert_allclose(of_numpy(spec, weights, angles)[0], node(), atol=1e-6)


def test_commuting_generators_commute_and_are_different() -> None:
    paulis = {"I": np.eye(2), "Y": np.array([[0, -1j], [1j, 0]]), "Z": np.diag([1, -1])}
    for spec in (HeadSpec(4, num_layers=2, ansatz="commuting"), HeadSpec(5, num_layers=2, ansatz="commuting")):
        matrices = []
        for one in generators(spec):
            matrix = np.eye(1)
            for qubit in range(spec.num_qubits):
                matrix = np.kron(matrix, paulis["Y" if qubit == one.target else "Z" if qubit in one.controls else "I"])
            matrices.append(matrix)
        for left, right in itertools.combinations(matrices, 2):
            np.testing.assert_allclose(left @ right, right @ left)
            assert abs(np.trace(left @ right)) < 1e-12
        weights, angles = numbers(spec, 0, rows=1)
        state = np.asarray(Statevector(bound(qiskit_circuit(spec, 0 * weights), angles[0], "angles[{}]")).reverse_qargs().data)
        for weight, matrix in zip(weights.ravel(), matrices, strict=True):  # exp(−i·w/2·G), for G² = 1
            state = np.cos(weight / 2) * state - 1j * np.sin(weight / 2) * matrix @ state
        expected = np.abs(state) ** 2 @ z_strings(spec.num_qubits, single_zs(spec.num_qubits))
        np.testing.assert_allclose(of_numpy(spec, weights, angles)[0], expected, atol=1e-12)


# ---------------------------------------------------------------- products of Z

PAIRS = ((0,), (0, 2), (1, 2, 3), (3,))


@pytest.mark.parametrize("name", ["statevector", "pennylane:default.qubit", "pennylane:lightning.qubit"])
@settings(max_examples=8)
@given(spec=heads(4), seed=SEEDS)
def test_exact_products_of_z(name: str, spec: HeadSpec, seed: int) -> None:
    weights, angles = numbers(spec, seed)
    wanted = tuple(part for size in range(1, spec.num_qubits + 1) for part in itertools.combinations(range(spec.num_qubits), size))
    state = [Statevector(bound(qiskit_circuit(spec, weights), row, "angles[{}]")).reverse_qargs().probabilities() for row in angles]
    answer = get_backend(name).run(spec, weights, angles, observables=wanted)
    np.testing.assert_allclose(answer.expvals, np.array(state) @ z_strings(spec.num_qubits, wanted), atol=1e-6)


@pytest.mark.parametrize("name", ["statevector", "pennylane:default.qubit", "aer", "fake_lima"])
def test_sampled_products_of_z_come_from_the_same_shots(name: str) -> None:
    spec, backend = HeadSpec(num_layers=2), get_backend(name, shots=3000, seed=4)
    weights, angles = numbers(spec, 3, rows=6)
    answer, plain = backend.run(spec, weights, angles, observables=PAIRS), backend.run(spec, weights, angles)
    np.testing.assert_array_equal(answer.expvals[:, [0, 3]], plain.expvals[:, [0, 3]])
    exact = get_backend("fake_lima" if name == "fake_lima" else "statevector").run(spec, weights, angles, observables=PAIRS)
    scores = (answer.expvals - exact.expvals) / answer.expval_stds
    assert np.abs(scores).max() < 5
    assert 0.3 < np.mean(scores**2) < 2.5
    assert answer.expval_covs is not None
    assert answer.expval_covs.shape == (6, 4, 4)


@pytest.mark.parametrize("name", ["statevector", "pennylane:default.qubit", "aer", "fake_lima"])
def test_observables_that_are_none_are_refused(name: str) -> None:
    for observables in (((),), ((1, 0),), ((0, 0),), ((0, 4),), ((-1,),)):
        with pytest.raises(ShapeError, match="ascending order"):
            get_backend(name, shots=10).run(HeadSpec(), np.zeros((1, 4)), np.zeros((1, 4)), observables=observables)


def test_covariances_of_products_are_those_of_the_draws() -> None:
    spec = HeadSpec()
    weights, angles = numbers(spec, 5, rows=1)
    draws = get_backend("statevector", shots=400, seed=1).run(spec, weights, np.repeat(angles, 4000, axis=0), observables=PAIRS)
    assert draws.expval_covs is not None
    np.testing.assert_allclose(np.cov(draws.expvals.T), draws.expval_covs.mean(axis=0), atol=2e-4)
    means, _ = estimate(np.full((1, 16), 3), 4, PAIRS)
    np.testing.assert_array_equal(means, np.zeros((1, 4)))


@settings(max_examples=6)
@given(spec=layered_heads(3), seed=SEEDS)
def test_noisy_machines_run_every_kind_of_head(spec: HeadSpec, seed: int) -> None:
    weights, angles = numbers(spec, seed)
    exact, ideal = get_backend("paper:kolkata").run(spec, weights, angles), of_numpy(spec, weights, angles)
    assert exact.record.reason is None  # by the exact engine
    assert np.abs(exact.expvals - ideal).max() < 0.4
    drawn = get_backend("paper:kolkata", shots=500, seed=1, method="aer").run(spec, weights, angles)
    assert drawn.expval_stds is not None
    assert np.abs((drawn.expvals - exact.expvals) / drawn.expval_stds).max() < 5
