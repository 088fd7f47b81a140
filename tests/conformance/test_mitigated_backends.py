"""What mitigation must do on every backend that offers it: nearer to the truth than raw answers, with errors that can be believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_ibm_runtime", reason="the extra 'quantum' is not installed")

from hqtl_common import HeadSpec, get_backend
from hqtl_common.errors import CapabilityError, ConfigError

SPEC = HeadSpec(num_layers=2)
NOISY = ("fake_kolkata", "fake_lima", "paper:ehningen", "profile:strong")
SAMPLED = (*NOISY, "aer")
QUIET = {"cx_error": 0.0, "single_qubit_error": 0.0, "t1_us": None, "t2_us": None, "gate_ns": 40, "cx_ns": 300}
PROFILES = {
    "strong": {**QUIET, "cx_error": 0.01, "single_qubit_error": 3e-4, "readout_error": 0.12},
    "readout": {**QUIET, "readout_error": 0.12},  # and nothing else
    "gates": {**QUIET, "cx_error": 0.01, "single_qubit_error": 3e-4, "readout_error": 0.0},
    "coin": {**QUIET, "readout_error": 0.46},
}


@pytest.fixture(autouse=True)
def in_folder_with_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, values in PROFILES.items():
        (tmp_path / name).write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)


def table(rows: int, seed: int = 0) -> tuple[HeadSpec, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return SPEC, rng.uniform(-np.pi, np.pi, SPEC.weights_shape), rng.uniform(-np.pi / 2, np.pi / 2, (rows, 4))


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt(np.mean(difference**2)))


# ---------------------------------------------------------------- products of Z


@pytest.mark.parametrize("options", [{}, {"shots": 3000, "seed": 5}], ids=["exact", "sampled"])
def test_products_of_z_are_mitigated_as_well(options: dict[str, Any]) -> None:
    wanted = ((0,), (2, 3), (0, 1, 2))
    rows = table(40)
    ideal = get_backend("statevector").run(*rows, observables=wanted).expvals
    raw = get_backend("profile:strong", **options).run(*rows, observables=wanted).expvals
    both: dict[str, Any] = {"mitigation": "readout", "zne": (1, 3, 5)}
    better = get_backend("profile:strong", **both, **options).run(*rows, observables=wanted)
    assert rms(better.expvals - ideal) < 0.4 * rms(raw - ideal)
    if better.expval_stds is not None:
        target = get_backend("profile:strong", **both).run(*rows, observables=wanted).expvals
        assert np.abs((better.expvals - target) / better.expval_stds).max() < 5
        alone = get_backend("profile:strong", **both, **options).run(*rows)
        np.testing.assert_allclose(alone.expvals[:, 0], better.expvals[:, 0], atol=1e-12)  # of the same shots


# ---------------------------------------------------------------- exact


@pytest.mark.parametrize("name", NOISY)
def test_exact_values_come_nearer_to_the_truth(name: str) -> None:
    rows = table(40)
    ideal = get_backend("statevector").run(*rows).expvals
    choices: list[dict[str, Any]] = [{}, {"mitigation": "readout"}, {"mitigation": "readout", "zne": (1, 3)}]
    answers = [get_backend(name, **options).run(*rows) for options in choices]
    raw, readout, both = (rms(answer.expvals - ideal) for answer in answers)
    assert readout < 0.9 * raw
    assert both < 0.5 * readout
    assert all(answer.expval_covs is None for answer in answers)
    assert max(np.abs(answer.expvals).max() for answer in answers) <= 1


@pytest.mark.parametrize("name", NOISY)
def test_three_factors_and_readout_leave_a_small_part_of_the_error(name: str) -> None:
    rows = table(40)
    ideal = get_backend("statevector").run(*rows).expvals
    raw = get_backend(name).run(*rows).expvals
    answer = get_backend(name, mitigation="readout", zne=(1, 3, 5)).run(*rows)
    assert rms(answer.expvals - ideal) < 0.15 * rms(raw - ideal)


def test_readout_errors_alone_are_undone_exactly() -> None:
    rows = table(40)
    ideal = get_backend("statevector").run(*rows).expvals
    assert rms(get_backend("profile:readout").run(*rows).expvals - ideal) > 0.1
    np.testing.assert_allclose(get_backend("profile:readout", mitigation="readout").run(*rows).expvals, ideal, atol=1e-10)


def test_what_readout_mitigation_leaves_is_the_gates_noise() -> None:
    """Up to the preparation's own error, which it takes for the readout's: two gates of 3e-4, infidelity."""
    rows = table(40)
    answer, gates = (
        get_backend(name, mitigation=how).run(*rows).expvals for name, how in (("profile:strong", "readout"), ("profile:gates", None))
    )
    np.testing.assert_allclose(answer, gates, atol=4 * 3e-4 + 1e-6)


# ---------------------------------------------------------------- sampled


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("zne", [None, (1, 3)], ids=["readout", "and zne"])
def test_stated_errors_cover_over_many_seeds(name: str, zne: tuple[int, ...] | None) -> None:
    """Against the same mitigation without shots: no bias, and 95 % intervals that hold 95 %."""
    rows, options = table(12), {"mitigation": "readout", "zne": zne}
    target = get_backend(name, **options).run(*rows).expvals
    inside = np.abs(target) < 0.9  # away from the bound
    scores = []
    for seed in range(150):
        answer = get_backend(name, shots=800, calibration_shots=800, seed=seed, **options).run(*rows)
        assert answer.expval_stds is not None
        assert np.abs(answer.expvals).max() <= 1
        scores.append((answer.expvals - target) / answer.expval_stds)
    found = np.array(scores)[:, inside]
    assert np.abs(found.mean(axis=0)).max() < 0.4  # 4.5 standard errors of a mean over 150
    assert 0.93 < np.mean(np.abs(found) < 1.96) < 0.97
    assert np.mean(np.abs(np.array(scores)) < 1.96) > 0.93  # everywhere


@pytest.mark.parametrize("method", ["density-matrix", "aer"])
def test_samples_come_nearer_to_the_truth(method: str) -> None:
    rows = table(30)
    ideal = get_backend("statevector").run(*rows).expvals
    sampled = {"shots": 4000, "seed": 3, "method": method}
    for name, gain in (("fake_kolkata", 0.95), ("profile:strong", 0.4)):
        raw = get_backend(name, **sampled).run(*rows)
        better = get_backend(name, mitigation="readout", **sampled).run(*rows)
        assert rms(better.expvals - ideal) < gain * rms(raw.expvals - ideal)
        assert raw.expval_stds is not None
        assert better.expval_stds is not None
        assert (better.expval_stds > raw.expval_stds).all()  # the price


def test_both_methods_calibrate_alike() -> None:
    rows = table(1)
    errors = []
    for method in ("density-matrix", "aer"):
        backend = get_backend("fake_lima", shots=10, seed=1, method=method, mitigation="readout", calibration_shots=100_000)
        errors.append(backend.run(*rows).record.options["readout_errors"])
    exact = get_backend("fake_lima", mitigation="readout").run(*rows).record.options["readout_errors"]
    np.testing.assert_allclose(errors[0], exact, atol=4e-3)
    np.testing.assert_allclose(errors[1], exact, atol=4e-3)


@pytest.mark.parametrize("name", ["aer", "profile:gates"])
def test_without_readout_errors_nothing_changes_beyond_the_statistical_error(name: str) -> None:
    rows = table(30)
    raw, same = (get_backend(name, shots=1000, seed=1, **o).run(*rows) for o in ({}, {"mitigation": "readout"}))
    assert raw.expval_stds is not None
    assert same.expval_stds is not None
    assert np.abs(same.expvals - raw.expvals).max() < 0.005  # the same shots; a calibration of 4,096 shots
    np.testing.assert_allclose(same.expval_stds, raw.expval_stds, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize("name", SAMPLED)
def test_the_heads_shots_are_the_same_and_seeds_repeat(name: str) -> None:
    rows = table(5)
    options = {"shots": 500, "mitigation": "readout"} | ({} if name == "aer" else {"zne": (1, 3)})

    def draw(seed: int, stream: int) -> bytes:
        return get_backend(name, seed=seed, **options).run(*rows, stream=stream).expvals.tobytes()

    assert draw(1, 0) == draw(1, 0)
    assert len({draw(seed, stream) for seed in (1, 2) for stream in (0, 1)}) == 4
    raw = get_backend(name, shots=500, seed=1).run(*rows)
    answer = get_backend(name, shots=500, seed=1, mitigation="readout").run(*rows)
    errors = np.array(answer.record.options["readout_errors"])
    expected = (raw.expvals - (errors[:, 1] - errors[:, 0])) / (1 - errors.sum(axis=1))
    np.testing.assert_allclose(answer.expvals, np.clip(expected, -1, 1), atol=1e-12)


# ---------------------------------------------------------------- records, options, large heads


@pytest.mark.parametrize("name", SAMPLED)
def test_record_names_the_overhead(name: str) -> None:
    record = get_backend(name, shots=50, seed=1, mitigation="readout", calibration_shots=200).run(*table(3)).record
    options = json.loads(json.dumps(record.to_dict(), allow_nan=False))["options"]
    assert {"mitigation": "readout", "calibration_shots": 200, "calibration_executions": 400}.items() <= options.items()
    assert np.shape(options["readout_errors"]) == (4, 2)


@pytest.mark.parametrize("shots", [None, 50])
def test_record_names_factors_and_coefficients(shots: int | None) -> None:
    options = get_backend("paper:lima", shots=shots, zne=[1, 3, 5]).run(*table(3)).record.options
    expected = {"mitigation": None, "zne": [1, 3, 5], "zne_coefficients": [1.875, -1.25, 0.375], "zne_executions": 300 if shots else 0}
    assert expected.items() <= options.items()


def test_illegal_options_are_refused() -> None:
    for name in ("statevector", "pennylane:default.qubit"):
        with pytest.raises(ConfigError, match="has no option mitigation"):
            get_backend(name, shots=10, mitigation="readout")
    with pytest.raises(ConfigError, match="has no option zne"):
        get_backend("aer", shots=10, zne=(1, 3))
    with pytest.raises(ConfigError, match="ascending order"):
        get_backend("fake_kolkata", zne=(1, 2))
    with pytest.raises(ConfigError, match="exact values are calibrated exactly"):
        get_backend("fake_kolkata", mitigation="readout", calibration_shots=1000)
    with pytest.raises(ConfigError, match="mitigation must be readout"):
        get_backend("aer", mitigation="m3")


@pytest.mark.parametrize("shots", [None, 100])
def test_a_readout_like_a_coin_is_refused(shots: int | None) -> None:
    with pytest.raises(CapabilityError, match="cannot invert the readout of qubit"):
        get_backend("profile:coin", shots=shots, seed=1, mitigation="readout").run(*table(1))


@pytest.mark.parametrize("shots", [None, 10])
def test_empty_table(shots: int | None) -> None:
    for name in NOISY if shots is None else SAMPLED:
        answer = get_backend(name, shots=shots, mitigation="readout").run(*table(0))
        assert answer.expvals.shape == (0, 4)


def test_a_head_sampled_by_aer_is_mitigated_too() -> None:
    spec = HeadSpec(num_qubits=9)
    angles = np.full((1, 9), -np.pi / 2)  # |0…0⟩
    raw, better = (
        get_backend("fake_kolkata", shots=2000, seed=2, **o).run(spec, np.zeros((1, 9)), angles).expvals
        for o in ({}, {"mitigation": "readout", "zne": (1, 3)})
    )
    assert 1 - better.mean() < 0.5 * (1 - raw.mean())
