"""What every backend must do, measured against ``statevector``, and ``statevector`` against two independent simulators."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends import statevector
from hqtl_common.backends.base import Backend
from hqtl_common.backends.registry import FAMILIES, backend_capabilities, family_of
from hqtl_common.circuit import qiskit_circuit, z_signs
from hqtl_common.errors import ShapeError

pytest.importorskip("pennylane", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")

NAMES = ("statevector", "pennylane:default.qubit", "pennylane:lightning.qubit", "pennylane:default.mixed", "aer")
EXACT = [name for name in NAMES if backend_capabilities(name).exact]
SAMPLED = [name for name in NAMES if backend_capabilities(name).shots]
SPECS = [HeadSpec(num_qubits=n, num_layers=layers) for n, layers in [(2, 1), (3, 2), (4, 1), (4, 3), (5, 2)]]
SHOTS = 2000

every_backend = pytest.mark.parametrize("name", NAMES)
every_exact = pytest.mark.parametrize("name", EXACT)
every_sampled = pytest.mark.parametrize("name", SAMPLED)
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.num_qubits}x{spec.num_layers}")


def table(spec: HeadSpec, rows: int, seed: int = 0, *, per_row: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(-np.pi, np.pi, size=(rows, *spec.weights_shape) if per_row else spec.weights_shape)
    return weights, rng.uniform(-np.pi / 2, np.pi / 2, size=(rows, spec.num_angles))


def reference(spec: HeadSpec, weights: np.ndarray, angles: np.ndarray) -> np.ndarray:
    return get_backend("statevector").run(spec, weights, angles).expvals


def test_every_free_family_is_represented() -> None:
    noise_free = {family.pattern for family in FAMILIES if not family.capabilities.paid and family.capabilities.noise is None}
    assert {family_of(name).pattern for name in NAMES} == noise_free


# ---------------------------------------------------------------- independent oracles


@every_spec
def test_reference_against_qiskit_statevector(spec: HeadSpec) -> None:
    from qiskit.quantum_info import Statevector

    weights, angles = table(spec, 3)
    circuit = qiskit_circuit(spec)
    for row, expected in zip(angles, reference(spec, weights, angles), strict=True):
        values = {f"angles[{k}]": value for k, value in enumerate(row)} | {
            f"weights[{k}]": value for k, value in enumerate(weights.ravel())
        }
        state = Statevector(circuit.assign_parameters({p: values[p.name] for p in circuit.parameters}))
        probabilities = state.probabilities()  # qubit 0 is the lowest bit
        for qubit in range(spec.num_qubits):
            signs = 1 - 2 * (np.arange(2**spec.num_qubits) >> qubit & 1)
            assert probabilities @ signs == pytest.approx(expected[qubit], abs=1e-9)


@pytest.mark.parametrize("num_layers", [1, 2, 6])
def test_reference_against_the_formula_written_in_pennylane(num_layers: int) -> None:
    """|0⟩⁴ → H on all → RY(angle_i) → L × [CX(0,1) CX(2,3), then CX(1,2); RY(w_l,i)] → ⟨Z_i⟩."""
    import pennylane as qml

    @qml.qnode(qml.device("default.qubit", wires=4))
    def head(angles: np.ndarray, weights: np.ndarray) -> list[object]:
        for wire in range(4):
            qml.Hadamard(wire)
        for wire in range(4):
            qml.RY(angles[wire], wires=wire)
        for layer in weights:
            qml.CNOT(wires=[0, 1])
            qml.CNOT(wires=[2, 3])
            qml.CNOT(wires=[1, 2])
            for wire in range(4):
                qml.RY(layer[wire], wires=wire)
        return [qml.expval(qml.PauliZ(wire)) for wire in range(4)]

    spec = HeadSpec(num_layers=num_layers)
    weights, angles = table(spec, 3, seed=num_layers)
    expected = np.array([head(row, weights) for row in angles], dtype=np.float64)
    np.testing.assert_allclose(reference(spec, weights, angles), expected, atol=1e-9)


def test_reference_at_angles_known_by_hand() -> None:
    spec = HeadSpec(num_qubits=2)
    plus, zero, one = 0.0, -np.pi / 2, np.pi / 2  # after H: |+⟩ stays, RY(∓π/2) gives |0⟩ and |1⟩
    angles = np.array([[zero, zero], [one, zero], [one, one], [plus, zero]])
    np.testing.assert_allclose(reference(spec, np.zeros((1, 2)), angles), [[1, 1], [-1, -1], [-1, 1], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(reference(spec, np.array([[np.pi, 0]]), angles[:1]), [[-1, 1]], atol=1e-12)


def test_reference_of_many_qubits_needs_little_memory() -> None:
    """Twelve qubits: a matrix of the whole head would take 134 MB; thirteen and more would not fit."""
    import tracemalloc

    spec = HeadSpec(num_qubits=12)
    weights, angles = table(spec, 2)
    tracemalloc.start()
    got = reference(spec, weights, angles)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6
    np.testing.assert_allclose(got, get_backend("pennylane:lightning.qubit").run(spec, weights, angles).expvals, atol=1e-6)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("shots", [None, 50])
def test_long_tables_run_in_pieces_with_the_same_answer(monkeypatch: pytest.MonkeyPatch, per_row: bool, shots: int | None) -> None:
    spec = HeadSpec(num_layers=2)
    backend = get_backend("statevector", shots=shots, seed=1)
    weights, angles = table(spec, 23, per_row=per_row)
    whole = backend.run(spec, weights, angles).expvals
    monkeypatch.setattr(statevector, "_CHUNK_AMPLITUDES", 5 * 16)
    np.testing.assert_allclose(backend.run(spec, weights, angles).expvals, whole, atol=1e-12)


# ---------------------------------------------------------------- exact values


@every_exact
@every_spec
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per row"])
def test_exact_values_agree(name: str, spec: HeadSpec, per_row: bool) -> None:
    weights, angles = table(spec, 4, seed=spec.num_qubits, per_row=per_row)
    answer = get_backend(name).run(spec, weights, angles)
    assert (answer.expvals.dtype, answer.expval_covs, answer.expval_stds) == (np.float64, None, None)
    np.testing.assert_allclose(answer.expvals, reference(spec, weights, angles), atol=1e-6)


@every_exact
def test_exact_batch_is_the_concatenation_of_its_rows(name: str) -> None:
    spec, backend = HeadSpec(num_layers=2), get_backend(name)
    for per_row in (False, True):
        weights, angles = table(spec, 5, per_row=per_row)
        rows = [backend.run(spec, weights[k] if per_row else weights, angles[k : k + 1]).expvals for k in range(5)]
        np.testing.assert_allclose(backend.run(spec, weights, angles).expvals, np.concatenate(rows), atol=1e-9)


@settings(max_examples=60)
@given(st.integers(2, 7), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10**6))
def test_exact_values_are_bounded_and_even_under_full_turns(num_qubits: int, num_layers: int, rows: int, seed: int) -> None:
    spec = HeadSpec(num_qubits=num_qubits, num_layers=num_layers)
    weights, angles = table(spec, rows, seed)
    got = reference(spec, weights, angles)
    assert np.abs(got).max() <= 1 + 1e-12
    np.testing.assert_allclose(reference(spec, weights + 2 * np.pi, angles - 2 * np.pi), got, atol=1e-9)


# ---------------------------------------------------------------- sampled values


def exact_covariance(spec: HeadSpec, weights: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """(R, n, n): covariance of the signs of one shot."""
    probabilities, signs = statevector.probabilities(spec, weights, angles), z_signs(spec.num_qubits)
    means = probabilities @ signs
    return np.einsum("rb,bi,bj->rij", probabilities, signs, signs) - means[:, :, None] * means[:, None, :]


@every_sampled
@every_spec
def test_sampled_values_lie_within_five_standard_errors(name: str, spec: HeadSpec) -> None:
    weights, angles = table(spec, 6, seed=spec.num_layers, per_row=True)
    answer = get_backend(name, shots=SHOTS, seed=1).run(spec, weights, angles)
    assert answer.expval_stds is not None
    assert answer.expval_covs is not None
    scores = (answer.expvals - reference(spec, weights, angles)) / answer.expval_stds
    assert np.abs(scores).max() < 5
    assert 0.3 < np.mean(scores**2) < 2.5  # neither copied from the exact values nor too noisy
    np.testing.assert_allclose(answer.expval_covs * SHOTS, exact_covariance(spec, weights, angles), atol=5 / np.sqrt(SHOTS))


@pytest.mark.parametrize("name", [name for name in SAMPLED if name != "pennylane:default.mixed"])  # a density matrix takes minutes
def test_more_than_eight_qubits_keep_their_order(name: str) -> None:
    """Nine bits of a shot need two bytes where bytes are packed."""
    spec = HeadSpec(num_qubits=9)
    weights, angles = table(spec, 2)
    answer = get_backend(name, shots=SHOTS, seed=4).run(spec, weights, angles)
    assert answer.expval_stds is not None
    assert np.abs((answer.expvals - reference(spec, weights, angles)) / answer.expval_stds).max() < 5


@every_sampled
def test_seed_and_stream_repeat_and_others_differ(name: str) -> None:
    spec = HeadSpec()
    weights, angles = table(spec, 3)

    def draw(seed: int, stream: int) -> bytes:
        return get_backend(name, shots=500, seed=seed).run(spec, weights, angles, stream=stream).expvals.tobytes()

    backend = get_backend(name, shots=500, seed=0)
    assert draw(0, 0) == draw(0, 0) == backend.run(spec, weights, angles).expvals.tobytes()
    assert backend.run(spec, weights, angles, stream=3).expvals.tobytes() == draw(0, 3)  # whatever ran before on the object
    assert len({draw(seed, stream) for seed in (0, 1, 2**40) for stream in (0, 1, 2)}) == 9


@every_sampled
def test_fresh_seed_is_recorded_and_repeats_the_draw(name: str) -> None:
    spec = HeadSpec()
    weights, angles = table(spec, 3)
    first = get_backend(name, shots=500).run(spec, weights, angles)
    again = get_backend(name, shots=500, seed=first.record.seed).run(spec, weights, angles)
    np.testing.assert_array_equal(first.expvals, again.expvals)
    assert get_backend(name, shots=500).seed != first.record.seed


@every_sampled
def test_equal_rows_get_independent_noise(name: str) -> None:
    spec = HeadSpec()
    weights, angles = table(spec, 1)
    draws = get_backend(name, shots=200, seed=2).run(spec, weights, np.repeat(angles, 40, axis=0)).expvals
    assert len(np.unique(draws, axis=0)) > 35
    spread = draws.std(axis=0, ddof=1) / np.sqrt(np.diagonal(exact_covariance(spec, weights, angles)[0]) / 200)
    assert ((spread > 0.5) & (spread < 1.6)).all()


@every_sampled
def test_one_shot_is_a_sign_with_a_standard_error(name: str) -> None:
    spec = HeadSpec()
    answer = get_backend(name, shots=1, seed=1).run(spec, *table(spec, 5))
    assert set(np.unique(answer.expvals)) <= {-1.0, 1.0}
    np.testing.assert_allclose(answer.expval_stds, np.sqrt(2 / 9))


# ---------------------------------------------------------------- the contract


@every_backend
@pytest.mark.parametrize("shots", [None, 10])
def test_empty_table(name: str, shots: int | None) -> None:
    for spec, weights in ((HeadSpec(), np.zeros((1, 4))), (HeadSpec(num_qubits=3, num_layers=2), np.zeros((0, 2, 3)))):
        backend = get_backend(name, shots=shots)
        answer = backend.run(spec, weights, np.zeros((0, spec.num_angles)))
        assert answer.expvals.shape == (0, spec.num_qubits)
        if backend.shots is not None:
            assert answer.expval_covs is not None
            assert answer.expval_covs.shape == (0, spec.num_qubits, spec.num_qubits)
        assert answer.record.num_rows == 0


@every_backend
@pytest.mark.parametrize(
    ("weights", "angles"),
    [
        (np.zeros((1, 4)), np.zeros(4)),
        (np.zeros((1, 4)), np.zeros((2, 5))),
        (np.zeros((4, 1)), np.zeros((2, 4))),
        (np.zeros((3, 1, 4)), np.zeros((2, 4))),
        (np.zeros((1, 4)), np.array([[0, 0, np.nan, 0]])),
        (np.array([[0, np.inf, 0, 0]]), np.zeros((2, 4))),
    ],
)
def test_arrays_that_do_not_fit_are_refused(name: str, weights: np.ndarray, angles: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        get_backend(name, shots=10).run(HeadSpec(), weights, angles)


@every_backend
def test_narrower_types_are_read_and_arguments_left_alone(name: str) -> None:
    spec, backend = HeadSpec(), get_backend(name, shots=300, seed=1)
    weights, angles = (values.astype(np.float32) for values in table(spec, 3))
    before = weights.copy(), angles.copy()
    got = backend.run(spec, weights, angles).expvals
    np.testing.assert_array_equal(got, backend.run(spec, weights.astype(np.float64), angles.astype(np.float64)).expvals)
    np.testing.assert_array_equal(weights, before[0])
    np.testing.assert_array_equal(angles, before[1])


@every_backend
@pytest.mark.parametrize("shots", [None, 20])
def test_record_says_what_ran_and_is_json_ready(name: str, shots: int | None) -> None:
    spec = HeadSpec(num_layers=2)
    record = get_backend(name, shots=shots, seed=9).run(spec, *table(spec, 3)).record
    values = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    effective = shots if shots or name in EXACT else 1024
    expected = {"backend_requested": name, "backend_used": name, "reason": None, "shots": effective, "num_rows": 3, "num_jobs": 1}
    expected |= {"seed": 9 if effective else None, "job_ids": [], "qpu_seconds": 0.0, "calibration": None}
    assert expected.items() <= values.items()
    assert values["versions"]
    assert all(values["versions"].values())
    assert 0 < values["wall_seconds"] < 60


@every_backend
def test_threads_share_one_backend(name: str) -> None:
    spec, backend = HeadSpec(), get_backend(name, shots=50, seed=3)
    weights, angles = table(spec, 4)
    alone = [backend.run(spec, weights, angles + k, stream=k).expvals for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: backend.run(spec, weights, angles + k, stream=k).expvals, range(8)))
    np.testing.assert_array_equal(together, alone)


@every_backend
def test_closing_twice_does_no_harm(name: str) -> None:
    backend: Backend = get_backend(name, shots=5)
    backend.close()
    backend.close()
