"""The arithmetic of mitigation: inverses, extrapolation, covariance, bounds, options; and the circuits it adds."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hqtl_common.backends.base import estimate
from hqtl_common.backends.mitigation import Calibration, Mitigation, coefficients, mitigated, mitigation_of
from hqtl_common.circuit import z_signs, z_strings
from hqtl_common.errors import CapabilityError, ConfigError

ERRORS = np.array([[0.02, 0.05], [0.10, 0.03], [0.004, 0.15]])  # p10, p01 of three qubits
READOUT = Mitigation(readout=True, calibration_shots=4096)
PRODUCTS = ((1,), (0, 2), (0, 1, 2))


def confusion(errors: np.ndarray) -> np.ndarray:
    """(2^n, 2^n), row = true, column = read."""
    return reduce(np.kron, [np.array([[1 - p10, p10], [p01, 1 - p01]]) for p10, p01 in errors])


def exact_calibration(errors: np.ndarray) -> Calibration:
    return Calibration(np.stack([1 - 2 * errors[:, 0], 2 * errors[:, 1] - 1]), None)


def drawn_calibration(errors: np.ndarray, shots: int, rng: np.random.Generator) -> Calibration:
    matrix = confusion(errors)
    return Calibration(*estimate(np.stack([rng.multinomial(shots, matrix[0]), rng.multinomial(shots, matrix[-1])]), len(errors)))


# ---------------------------------------------------------------- readout


@given(st.integers(0, 2**32), st.integers(1, 4))
def test_the_marginal_formula_is_the_tensored_inverse(seed: int, num_qubits: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0, 0.3, (num_qubits, 2))
    frequencies = rng.dirichlet(np.ones(2**num_qubits), size=5)
    inverse = frequencies @ np.linalg.inv(confusion(errors))
    expected = np.clip(inverse @ z_signs(num_qubits), -1, 1)
    found, covs = mitigated([(frequencies @ z_signs(num_qubits), None)], READOUT, exact_calibration(errors))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert covs is None


def test_readout_errors_are_undone_exactly_where_nothing_is_sampled() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(8), size=20)
    read = probabilities @ confusion(ERRORS) @ z_signs(3)
    found, _ = mitigated([(read, None)], READOUT, exact_calibration(ERRORS))
    np.testing.assert_allclose(found, probabilities @ z_signs(3), atol=1e-12)


def test_a_calibration_names_its_errors() -> None:
    calibration = exact_calibration(ERRORS)
    np.testing.assert_allclose(calibration.errors, ERRORS, atol=1e-12)
    np.testing.assert_allclose(calibration.contrast, 1 - ERRORS.sum(axis=1))


@pytest.mark.parametrize("calibration_shots", [500, 20_000])
def test_covariance_is_what_repeated_experiments_show(calibration_shots: int) -> None:
    """Shots and calibration are drawn anew each time; few calibration shots make the calibration's share the larger one."""
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.full(8, 0.3))
    found, covs = [], []
    for _ in range(3000):
        counts = rng.multinomial(2000, probabilities @ confusion(ERRORS))
        value, cov = mitigated([estimate(counts[None], 3)], READOUT, drawn_calibration(ERRORS, calibration_shots, rng))
        found.append(value[0])
        assert cov is not None
        covs.append(cov[0])
    truth, stated, observed = probabilities @ z_signs(3), np.mean(covs, axis=0), np.cov(np.array(found).T)
    np.testing.assert_allclose(stated, observed, atol=0.1 * np.diagonal(observed).max())
    scores = (np.array(found) - truth) / np.sqrt(np.diagonal(covs, axis1=1, axis2=2))
    assert np.abs(scores.mean(axis=0)).max() < 0.1
    assert 0.93 < np.mean(np.abs(scores) < 1.96) < 0.97


def test_without_the_calibrations_share_the_errors_would_be_too_small() -> None:
    rng = np.random.default_rng(2)
    counts = rng.multinomial(100_000, confusion(ERRORS)[0])
    _, little = mitigated([estimate(counts[None], 3)], READOUT, drawn_calibration(ERRORS, 500, rng))
    _, much = mitigated([estimate(counts[None], 3)], READOUT, drawn_calibration(ERRORS, 100_000, rng))
    assert little is not None
    assert much is not None
    assert (np.diagonal(little[0]) > 20 * np.diagonal(much[0])).all()


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_results_are_bounded_and_their_covariance_is_positive(seed: int, shots: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(shots, rng.dirichlet(np.full(8, 0.2)), size=6)
    mitigation = mitigation_of(shots, "readout", 2000, (1, 3, 5))
    estimates = [estimate(np.roll(counts, k, axis=0), 3) for k in range(3)]
    found, covs = mitigated(estimates, mitigation, drawn_calibration(ERRORS, 2000, rng))
    assert covs is not None
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(covs, covs.transpose(0, 2, 1), rtol=1e-12, atol=1e-15)
    assert np.linalg.eigvalsh(covs).min() > 0


def test_a_perfect_readout_changes_no_value() -> None:
    counts = np.random.default_rng(0).multinomial(1000, np.full(8, 1 / 8), size=4)
    raw, raw_covs = estimate(counts, 3)
    perfect = Calibration(*estimate(np.eye(8, dtype=int)[[0, -1]] * 4096, 3))
    found, covs = mitigated([(raw, raw_covs)], READOUT, perfect)
    assert covs is not None
    np.testing.assert_array_equal(found, raw)
    np.testing.assert_allclose(covs, raw_covs, atol=1e-6)  # 4,096 shots without an error still leave one below 1/4096
    assert (np.diagonal(covs - raw_covs, axis1=1, axis2=2) > 0).all()


@pytest.mark.parametrize("errors", [(0.5, 0.5), (0.45, 0.46), (0.9, 0.9), (0.0, 1.0)])
def test_a_readout_that_tells_nothing_is_refused(errors: tuple[float, float]) -> None:
    calibration = exact_calibration(np.array([[0.01, 0.01], errors]))
    with pytest.raises(CapabilityError, match=r"readout of qubit 1: .* at least 0\.1"):
        mitigated([(np.zeros((1, 2)), None)], READOUT, calibration)


def test_a_contrast_that_may_be_chance_is_refused() -> None:
    counts = np.array([[58, 42], [42, 58]])
    with pytest.raises(CapabilityError, match="more calibration_shots"):
        mitigated([estimate(counts[:1], 1)], READOUT, Calibration(*estimate(counts, 1)))
    found, _ = mitigated([estimate(counts[:1], 1)], READOUT, Calibration(*estimate(100 * counts, 1)))
    np.testing.assert_allclose(found, [[1.0]])


# ---------------------------------------------------------------- products of Z


def test_products_are_read_with_all_their_parts_where_readout_is_inverted() -> None:
    assert Mitigation().reads(PRODUCTS) == PRODUCTS
    assert READOUT.reads(PRODUCTS) == ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))
    assert READOUT.reads(((2,), (0,))) == ((0,), (2,))


@given(st.integers(0, 2**32))
def test_products_are_the_tensored_inverse_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.uniform(0, 0.3, (3, 2))
    probabilities = rng.dirichlet(np.ones(8), size=5)
    read = probabilities @ confusion(errors) @ z_strings(3, READOUT.reads(PRODUCTS))
    found, covs = mitigated([(read, None)], READOUT, exact_calibration(errors), PRODUCTS)
    np.testing.assert_allclose(found, probabilities @ z_strings(3, PRODUCTS), atol=1e-12)
    assert covs is None


@pytest.mark.parametrize("calibration_shots", [500, 20_000])
def test_covariance_of_products_is_what_repeated_experiments_show(calibration_shots: int) -> None:
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet(np.full(8, 0.5))
    found, covs = [], []
    for _ in range(1000):
        counts = rng.multinomial(2000, probabilities @ confusion(ERRORS))
        read = estimate(counts[None], 3, READOUT.reads(PRODUCTS))
        value, cov = mitigated([read], READOUT, drawn_calibration(ERRORS, calibration_shots, rng), PRODUCTS)
        found.append(value[0])
        assert cov is not None
        covs.append(cov[0])
    stated, observed = np.mean(covs, axis=0), np.cov(np.array(found).T)
    np.testing.assert_allclose(stated, observed, atol=0.15 * np.diagonal(observed).max())
    scores = (np.array(found) - probabilities @ z_strings(3, PRODUCTS)) / np.sqrt(np.diagonal(covs, axis1=1, axis2=2))
    assert 0.93 < np.mean(np.abs(scores) < 1.96) < 0.97


# ---------------------------------------------------------------- extrapolation


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((1, 3), (1.5, -0.5)),
        ((1, 5), (1.25, -0.25)),
        ((1, 3, 5), (1.875, -1.25, 0.375)),
        ((1, 3, 5, 7), (1.5375, -0.2375, -0.6375, 0.3375)),
    ],
)
def test_coefficients_of_the_documents(factors: tuple[int, ...], expected: tuple[float, ...]) -> None:
    np.testing.assert_allclose(coefficients(factors), expected, atol=1e-12)


@given(st.sets(st.integers(0, 20), min_size=2, max_size=6))
def test_extrapolation_is_exact_for_polynomials(halves: set[int]) -> None:
    factors = sorted(2 * half + 1 for half in halves)
    weights = coefficients(factors)
    assert weights.sum() == pytest.approx(1)
    for power in range(1, min(2, len(factors) - 1) + 1):
        assert weights @ np.array([float(factor) ** power for factor in factors]) == pytest.approx(0, abs=1e-8)


def test_exponential_decay_is_taken_to_its_beginning() -> None:
    begin = np.array([[0.9, -0.5]])
    estimates: list[Any] = [(begin * math.exp(-0.03 * factor), None) for factor in (1, 3, 5)]
    line, _ = mitigated(estimates[:2], Mitigation(factors=(1, 3)), None)
    parabola, _ = mitigated(estimates, Mitigation(factors=(1, 3, 5)), None)
    errors = [np.abs(found - begin).max() for found in (estimates[0][0], line, parabola)]
    assert errors[0] > 15 * errors[1]
    assert errors[1] > 15 * errors[2]


def test_mitigating_first_and_extrapolating_first_are_the_same() -> None:
    rng = np.random.default_rng(3)
    values = [rng.uniform(-0.4, 0.4, (5, 3)) for _ in range(3)]
    calibration = exact_calibration(ERRORS)
    together, _ = mitigated([(value, None) for value in values], Mitigation(True, None, (1, 3, 5)), calibration)
    separate = [mitigated([(value, None)], READOUT, calibration)[0] for value in values]
    one_by_one = sum(weight * value for weight, value in zip(coefficients((1, 3, 5)), separate, strict=True))
    np.testing.assert_allclose(together, np.clip(one_by_one, -1, 1), atol=1e-12)


def test_extrapolated_covariance_is_what_repeated_experiments_show() -> None:
    rng = np.random.default_rng(4)
    mitigation = Mitigation(True, 1000, (1, 3, 5))
    probabilities = [np.full(8, (1 - keep) / 8) + keep * np.eye(8)[0] for keep in (0.72, 0.66, 0.60)]
    found, covs = [], []
    for _ in range(2000):
        counts = [rng.multinomial(3000, one @ confusion(ERRORS))[None] for one in probabilities]
        value, cov = mitigated([estimate(one, 3) for one in counts], mitigation, drawn_calibration(ERRORS, 1000, rng))
        assert cov is not None
        found.append(value[0])
        covs.append(cov[0])
    observed = np.cov(np.array(found).T)
    np.testing.assert_allclose(np.mean(covs, axis=0), observed, atol=0.12 * np.diagonal(observed).max())
    np.testing.assert_allclose(np.mean(found, axis=0), 0.75, atol=0.01)


def test_nothing_asked_is_nothing_done() -> None:
    estimates = estimate(np.array([[3, 4]]), 1)
    assert mitigated([estimates], Mitigation(), None) is estimates


# ---------------------------------------------------------------- options and overhead


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mitigation": "trex"}, "mitigation must be readout or none; got 'trex'"),
        ({"mitigation": True}, "mitigation must be readout"),
        ({"calibration_shots": 1000}, "no use: mitigation is not on"),
        ({"shots": None, "mitigation": "readout", "calibration_shots": 1000}, "no use: exact values are calibrated exactly"),
        ({"mitigation": "readout", "calibration_shots": 99}, "at least 100; got 99"),
        ({"mitigation": "readout", "calibration_shots": 1e4}, "whole number"),
        *(
            ({"zne": zne}, "zne must be two or more odd")
            for zne in ((), (1,), (1, 2), (3, 1), (1, 1), (1, 3.0), (True, 3), (1, 101), "13", 3)
        ),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mitigation_of(**{"shots": 1000, **options})


def test_defaults_and_overhead() -> None:
    assert mitigation_of(1000) == Mitigation()
    shots = {given: mitigation_of(given, "readout").calibration_shots for given in (1, 4096, 5000, 10**6)}
    assert shots == {1: 4096, 4096: 4096, 5000: 5000, 10**6: 100_000}
    full = mitigation_of(1000, "readout", 300, [1, 3, 5])
    assert full.executions(7, 1000) == 3 * 7000 + 600
    assert full.report(7, 1000, exact_calibration(np.zeros((1, 2))), num_jobs=2) == {
        "mitigation": "readout",
        "calibration_shots": 300,
        "zne": [1, 3, 5],
        "calibration_executions": 1200,
        "readout_errors": [[0.0, 0.0]],
        "zne_coefficients": [1.875, -1.25, 0.375],
        "zne_executions": 14_000,
    }
    assert Mitigation().report(7, 1000, None) == {"mitigation": None, "calibration_shots": None, "zne": None}


# ---------------------------------------------------------------- circuits


def test_folding_repeats_every_two_qubit_gate_and_nothing_else() -> None:
    pytest.importorskip("qiskit", reason="the extra 'quantum' is not installed")
    from qiskit.quantum_info import Operator

    from hqtl_common import HeadSpec
    from hqtl_common.backends.mitigation_circuits import folded
    from hqtl_common.circuit import qiskit_circuit

    circuit = qiskit_circuit(HeadSpec(num_layers=2), measure=True)
    for factor in (1, 3, 5):
        result = folded(circuit, factor)
        assert result.num_nonlocal_gates() == 6 * factor
        assert {k: v for k, v in result.count_ops().items() if k != "cx"} == {k: v for k, v in circuit.count_ops().items() if k != "cx"}
        values = np.linspace(-2, 2, circuit.num_parameters)
        bound = [one.assign_parameters(values).remove_final_measurements(inplace=False) for one in (circuit, result)]
        np.testing.assert_allclose(Operator(bound[1]).data, Operator(bound[0]).data, atol=1e-12)


def test_circuits_that_cannot_be_folded() -> None:
    qiskit = pytest.importorskip("qiskit", reason="the extra 'quantum' is not installed")
    from hqtl_common.backends.mitigation_circuits import folded

    single, turning = qiskit.QuantumCircuit(2), qiskit.QuantumCircuit(2)
    single.h(0)
    turning.iswap(0, 1)
    with pytest.raises(CapabilityError, match="this head has none"):
        folded(single, 3)
    with pytest.raises(CapabilityError, match="this machine has 'iswap'"):
        folded(turning, 3)
    assert folded(turning, 1) is turning


@pytest.mark.parametrize(
    "name", ["fake_kolkata", "fake_lima", "fake_brisbane", "fake_boeblingen", "fake_fez", "fake_fractional", "paper:lima"]
)
def test_a_calibration_reads_the_qubits_of_the_head(name: str) -> None:
    """On machines with CX, ECR and CZ, also with U gates and with RX: in the order of the head's bits, and in both states."""
    pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")
    pytest.importorskip("qiskit_ibm_runtime", reason="the extra 'quantum' is not installed")
    from hqtl_common import HeadSpec
    from hqtl_common.backends.fake import machine_of
    from hqtl_common.backends.isa import isa_calibration, isa_head
    from hqtl_common.backends.mitigation_circuits import CALIBRATION_STATES, folded, measured_qubits
    from hqtl_common.backends.noisy import probabilities

    machine = machine_of(name)
    head = isa_head(machine, HeadSpec(), 2, 0)
    calibration = isa_calibration(machine, head)
    qubits = measured_qubits(head.circuit)
    assert measured_qubits(calibration.circuit) == qubits == list(calibration.layout)
    used = {calibration.circuit.find_bit(qubit).index for step in calibration.circuit.data for qubit in step.qubits}
    assert used == set(qubits)
    assert calibration.program is not None
    read = probabilities(calibration.program, CALIBRATION_STATES, np.zeros(0)) @ z_signs(4)
    found = np.array(Calibration(read, None).errors).mean(axis=1)
    stated = np.array([machine.target["measure"][(qubit,)].error for qubit in qubits])
    assert (found - stated >= -1e-9).all()  # the preparation's error is on top
    np.testing.assert_allclose(found, stated, atol=4e-3)
    assert isa_calibration(machine, head) is calibration
    assert folded(head.circuit, 3).num_nonlocal_gates() == 3 * head.two_qubit_gates
