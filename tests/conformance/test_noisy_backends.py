"""What every noisy backend must do: bounded answers, honest records, shots that follow its own exact noisy values."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")
pytest.importorskip("qiskit_ibm_runtime", reason="the extra 'quantum' is not installed")

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends import fake, isa
from hqtl_common.backends.base import estimate
from hqtl_common.backends.noisy import probabilities
from hqtl_common.backends.registry import FAMILIES, backend_capabilities, family_of
from hqtl_common.backends.snapshots import snapshot_names
from hqtl_common.errors import CapabilityError, ConfigError, ShapeError, UnknownBackendError
from hqtl_common.shifts import parameter_shift

NAMES = ("fake_kolkata", "fake_lima", "fake_brisbane", "paper:kolkata", "paper:ehningen", "paper:lima", "profile:FILE")
SPECS = [HeadSpec(num_qubits=n, num_layers=layers) for n, layers in [(2, 1), (3, 2), (4, 1), (5, 2)]]
SHOTS = 4000

every_backend = pytest.mark.parametrize("name", NAMES)
every_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.num_qubits}x{spec.num_layers}")


@pytest.fixture(autouse=True)
def in_folder_with_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"cx_error": 0.02, "single_qubit_error": 1e-3, "readout_error": 0.03, "t1_us": 60, "t2_us": 70, "gate_ns": 40, "cx_ns": 300}
    (tmp_path / "FILE").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)


def table(spec: HeadSpec, rows: int, seed: int = 0, *, per_row: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = rng.uniform(-np.pi, np.pi, size=(rows, *spec.weights_shape) if per_row else spec.weights_shape)
    return weights, rng.uniform(-np.pi / 2, np.pi / 2, size=(rows, spec.num_angles))


def test_every_noisy_family_is_represented() -> None:
    noisy = {family.pattern for family in FAMILIES if family.capabilities.noise and not family.capabilities.paid}
    assert {family_of(name).pattern for name in NAMES} == noisy
    for name in NAMES:
        capabilities = backend_capabilities(name)
        assert capabilities.exact
        assert capabilities.shots
        assert not {"backprop", "adjoint"} & set(capabilities.diff_methods)


# ---------------------------------------------------------------- exact noisy values


@every_backend
@every_spec
def test_exact_values_are_bounded_and_shrunk(name: str, spec: HeadSpec) -> None:
    weights, angles = table(spec, 40, per_row=True)
    answer = get_backend(name).run(spec, weights, angles)
    ideal = get_backend("statevector").run(spec, weights, angles).expvals
    assert (answer.expvals.dtype, answer.expval_covs, answer.expval_stds) == (np.float64, None, None)
    assert np.abs(answer.expvals).max() <= 1
    assert 0.5 < np.abs(answer.expvals).mean() / np.abs(ideal).mean() < 0.995
    assert np.abs(answer.expvals - ideal).max() < 0.45
    assert np.corrcoef(answer.expvals.ravel(), ideal.ravel())[0, 1] > 0.97


@every_backend
@pytest.mark.parametrize("per_row", [False, True], ids=["shared", "per row"])
def test_exact_batch_is_the_concatenation_of_its_rows(name: str, per_row: bool) -> None:
    spec, backend = HeadSpec(num_layers=2), get_backend(name)
    weights, angles = table(spec, 20, per_row=per_row)
    rows = [backend.run(spec, weights[k] if per_row else weights, angles[k : k + 1]).expvals for k in range(20)]
    np.testing.assert_allclose(backend.run(spec, weights, angles).expvals, np.concatenate(rows), atol=1e-12)


@every_backend
def test_shared_weights_are_the_same_weights_in_every_row(name: str) -> None:
    spec, backend = HeadSpec(num_layers=2), get_backend(name)
    weights, angles = table(spec, 20)
    repeated = np.broadcast_to(weights, (20, *weights.shape))
    np.testing.assert_allclose(backend.run(spec, weights, angles).expvals, backend.run(spec, repeated, angles).expvals, atol=1e-12)


@pytest.mark.parametrize("name", ["fake_kolkata", "fake_boeblingen", "fake_fractional", "paper:lima"])
def test_parameter_shift_is_the_derivative_of_the_noisy_values(name: str) -> None:
    """Noise stands between the rotations and does not depend on their angles, so the rule stays exact."""
    spec, backend, step = HeadSpec(), get_backend(name), 1e-4
    weights, angles = table(spec, 1)
    table_of = parameter_shift(8)
    theta = np.hstack([angles, weights.reshape(1, 4)])
    rows = table_of.rows(theta)
    found = table_of.jacobian(backend.run(spec, rows[:, 4:].reshape(-1, 1, 4), rows[:, :4]).expvals)[0]
    for parameter, unit in enumerate(np.eye(8) * step):
        ends = np.vstack([theta + unit, theta - unit])
        high, low = backend.run(spec, ends[:, 4:].reshape(-1, 1, 4), ends[:, :4]).expvals
        np.testing.assert_allclose(found[parameter], (high - low) / (2 * step), atol=1e-7)


def test_more_layers_shrink_more() -> None:
    """Weights of zero leave the angles' ⟨Z⟩ in place up to signs: what is lost is noise."""
    angles = np.full((1, 4), -np.pi / 2)  # |0000⟩, which CX leaves alone
    found = [get_backend("paper:kolkata").run(HeadSpec(num_layers=n), np.zeros((n, 4)), angles).expvals.mean() for n in (1, 2, 4, 6)]
    assert found[0] > found[1] > found[2] > found[3] > 0.8


def test_paper_machines_differ_as_their_errors() -> None:
    """Of |0000⟩ little is lost but by readout and depolarisation: lima is worst. No ⟨Z⟩ can exceed what the readout leaves."""
    angles = np.full((1, 4), -np.pi / 2)
    names = ("paper:lima", "paper:kolkata", "paper:ehningen")
    lima, kolkata, ehningen = (get_backend(name).run(HeadSpec(), np.zeros((1, 4)), angles).expvals for name in names)
    assert lima.max() < 1 - 2 * 0.0258
    assert lima.max() < kolkata.min() < 1 - 2 * 0.01
    assert lima.max() < ehningen.min() < 1 - 2 * 0.0088


# ---------------------------------------------------------------- sampled


@every_backend
@every_spec
def test_shots_lie_within_five_standard_errors_of_the_exact_noisy_values(name: str, spec: HeadSpec) -> None:
    weights, angles = table(spec, 8, seed=spec.num_layers, per_row=True)
    answer = get_backend(name, shots=SHOTS, seed=1).run(spec, weights, angles)
    assert answer.expval_stds is not None
    scores = (answer.expvals - get_backend(name).run(spec, weights, angles).expvals) / answer.expval_stds
    assert np.abs(scores).max() < 5
    assert 0.3 < np.mean(scores**2) < 2.5


@pytest.mark.parametrize("method", ["density-matrix", "aer"])
def test_our_draw_and_aers_shots_have_the_same_distribution(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both against the exact noisy probabilities, outcome by outcome (chi-square), and ⟨Z⟩ by ⟨Z⟩."""
    spec, counts = HeadSpec(), []

    def kept(drawn: np.ndarray, num_qubits: int, strings: tuple) -> tuple[np.ndarray, np.ndarray]:
        counts.append(drawn.sum(axis=0))
        return estimate(drawn, num_qubits, strings)

    monkeypatch.setattr(fake, "estimate", kept)
    weights, angles = table(spec, 1, seed=3)
    answer = get_backend("fake_lima", shots=1000, seed=5, method=method).run(spec, weights, np.repeat(angles, 20, axis=0))
    assert answer.record.options["method"] == method
    assert answer.expval_stds is not None
    scores = (answer.expvals - get_backend("fake_lima").run(spec, weights, angles).expvals) / answer.expval_stds
    assert np.abs(scores).max() < 5
    assert 0.5 < np.mean(scores**2) < 1.7
    program = isa.isa_head(fake.machine_of("fake_lima"), spec, 2, 0).program
    assert program is not None
    expected = 20_000 * probabilities(program, angles, weights.reshape(spec.num_weights))[0]
    assert ((counts[0] - expected) ** 2 / expected).sum() < 15 + 5 * np.sqrt(30)  # 15 degrees of freedom: mean 15, variance 30


@pytest.mark.parametrize("method", ["density-matrix", "aer"])
def test_seed_and_stream_repeat_and_others_differ(method: str) -> None:
    spec = HeadSpec()
    weights, angles = table(spec, 3)

    def draw(seed: int, stream: int) -> bytes:
        return get_backend("fake_lima", shots=500, seed=seed, method=method).run(spec, weights, angles, stream=stream).expvals.tobytes()

    backend = get_backend("fake_lima", shots=500, seed=0, method=method)
    assert draw(0, 0) == draw(0, 0) == backend.run(spec, weights, angles).expvals.tobytes()
    assert backend.run(spec, weights, angles, stream=3).expvals.tobytes() == draw(0, 3)
    assert len({draw(seed, stream) for seed in (0, 1, 2**40) for stream in (0, 1, 2)}) == 9


@every_backend
def test_fresh_seed_is_recorded_and_repeats_the_draw(name: str) -> None:
    spec = HeadSpec()
    weights, angles = table(spec, 3)
    first = get_backend(name, shots=500).run(spec, weights, angles)
    again = get_backend(name, shots=500, seed=first.record.seed).run(spec, weights, angles)
    np.testing.assert_array_equal(first.expvals, again.expvals)


# ---------------------------------------------------------------- records and options


@every_backend
@pytest.mark.parametrize("shots", [None, 20])
def test_record_says_what_ran_and_is_json_ready(name: str, shots: int | None) -> None:
    spec = HeadSpec(num_layers=2)
    record = get_backend(name, shots=shots, seed=9, optimization_level=3, seed_transpiler=4).run(spec, *table(spec, 3)).record
    values = json.loads(json.dumps(record.to_dict(), allow_nan=False))
    expected = {"backend_requested": name, "backend_used": name, "reason": None, "shots": shots, "num_rows": 3, "num_jobs": 1}
    expected |= {"seed": 9 if shots else None, "job_ids": [], "qpu_seconds": 0.0, "two_qubit_gates": 6}
    assert expected.items() <= values.items()
    assert {"method": "density-matrix", "optimization_level": 3, "seed_transpiler": 4}.items() <= values["options"].items()
    assert len(set(values["layout"])) == 4
    assert values["depth"] > 10
    assert all(values["versions"].values())
    assert values["wall_seconds"] > 0


def test_calibration_is_the_day_of_the_snapshot() -> None:
    dates = {name: get_backend(name).run(HeadSpec(), *table(HeadSpec(), 1)).record.calibration for name in ("fake_kolkata", "fake_lima")}
    assert {name: (date or "")[:10] for name, date in dates.items()} == {"fake_kolkata": "2021-12-09", "fake_lima": "2021-03-15"}


def test_one_circuit_is_transpiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = isa.generate_preset_pass_manager

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(isa, "generate_preset_pass_manager", counted)
    spec = HeadSpec(num_qubits=3, num_layers=4)
    for _ in range(2):
        for shots in (None, 10):
            run = get_backend("fake_manila", shots=shots, seed_transpiler=123).run
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(run, [spec] * 6, *zip(*[table(spec, 4)] * 6, strict=True)))
    assert len(calls) == 1
    get_backend("fake_manila", seed_transpiler=124).run(spec, *table(spec, 4))
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimization_level": 0}, "optimization_level must be a whole number from 1 to 3; got 0"),
        ({"optimization_level": True}, "optimization_level must be a whole number"),
        ({"seed_transpiler": -1}, "seed_transpiler must be a whole number from 0"),
        ({"method": "statevector"}, "method must be one of density-matrix, aer"),
        ({"shots": 0}, "shots must be"),
        ({"noise": None}, "has no option noise; it knows calibration_shots, method, mitigation, .*, shots, zne"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        get_backend("fake_lima", **options)


def test_exact_values_by_sampling_are_refused() -> None:
    with pytest.raises(CapabilityError, match="only samples; give shots"):
        get_backend("fake_lima", method="aer")


def test_unknown_snapshot_names_those_that_are_close() -> None:
    with pytest.raises(UnknownBackendError, match=r"did you mean .*fake_rome"):
        get_backend("fake_nope")
    with pytest.raises(UnknownBackendError, match="did you mean fake_kolkata"):
        get_backend("fake_kolkatta")
    with pytest.raises(UnknownBackendError, match="known are fake_algiers, "):
        get_backend("fake_0000000000000000000000000000")


@pytest.mark.parametrize("shots", [None, 10])
def test_empty_table(shots: int | None) -> None:
    for method in ("density-matrix", "aer") if shots else ("density-matrix",):
        answer = get_backend("fake_lima", shots=shots, method=method).run(HeadSpec(), np.zeros((1, 4)), np.zeros((0, 4)))
        assert answer.expvals.shape == (0, 4)
        assert (answer.expval_covs is None) == (shots is None)


@every_backend
def test_arrays_that_do_not_fit_are_refused(name: str) -> None:
    for weights, angles in (
        (np.zeros((1, 4)), np.zeros((2, 5))),
        (np.zeros((3, 1, 4)), np.zeros((2, 4))),
        (np.zeros((1, 4)), np.full((1, 4), np.nan)),
    ):
        with pytest.raises(ShapeError):
            get_backend(name, shots=10).run(HeadSpec(), weights, angles)


def test_threads_share_one_backend() -> None:
    spec, backend = HeadSpec(), get_backend("fake_kolkata", shots=50, seed=3)
    weights, angles = table(spec, 4)
    alone = [backend.run(spec, weights, angles + k, stream=k).expvals for k in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: backend.run(spec, weights, angles + k, stream=k).expvals, range(8)))
    np.testing.assert_array_equal(together, alone)
    backend.close()
    backend.close()


# ---------------------------------------------------------------- large heads, and all snapshots


def test_head_too_large_for_a_density_matrix_is_sampled_by_aer_and_says_so() -> None:
    spec = HeadSpec(num_qubits=9)
    weights, angles = np.zeros((1, 9)), np.full((1, 9), -np.pi / 2)  # |0…0⟩
    with pytest.raises(CapabilityError, match=r"9 qubits are too many .* \(at most 8\); give shots"):
        get_backend("fake_kolkata").run(spec, weights, angles)
    answer = get_backend("fake_kolkata", shots=200, seed=2).run(spec, weights, angles)
    assert answer.record.reason == "sampled by Aer: 9 qubits are too many for an exact density matrix (at most 8)"
    assert answer.record.options["method"] == "aer"
    assert answer.expvals.min() > 0.7
    asked = get_backend("fake_kolkata", shots=200, seed=2, method="aer").run(spec, weights, angles)
    assert asked.record.reason is None
    np.testing.assert_array_equal(asked.expvals, answer.expvals)


def test_eight_qubits_are_exact() -> None:
    spec = HeadSpec(num_qubits=8)
    weights, angles = table(spec, 2)
    found = get_backend("fake_kolkata").run(spec, weights, angles)
    ideal = get_backend("statevector").run(spec, weights, angles).expvals
    assert found.record.reason is None
    assert np.abs(found.expvals - ideal).max() < 0.2


def test_every_snapshot_runs_or_says_why_not() -> None:
    spec = HeadSpec(num_qubits=2)
    weights, angles = table(spec, 3)
    ideal = get_backend("statevector").run(spec, weights, angles).expvals
    refused = {}
    for name in snapshot_names():
        try:
            answer = get_backend(name).run(spec, weights, angles)
        except CapabilityError as error:
            refused[name] = str(error)
            continue
        assert np.abs(answer.expvals - ideal).max() < 0.4, name
        assert answer.record.two_qubit_gates == 1, name
        assert (answer.record.calibration or "")[:2] == "20", name
        assert ("caveat" in answer.record.options) == (name == "fake_nighthawk")
    assert len(snapshot_names()) >= 60
    assert refused.keys() == {"fake_armonk", "fake_kyoto"}
    assert "does not fit on 'fake_armonk' (1 qubits)" in refused["fake_armonk"]
    assert "marks ecr on" in refused["fake_kyoto"]
