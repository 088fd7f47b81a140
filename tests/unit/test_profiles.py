"""Machines made from averages: the paper's table 2, and a user's file."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("qiskit_aer", reason="the extra 'quantum' is not installed")

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends.profiles import PAPER_PROFILES, Profile, load_profile, paper_machine, profile_machine
from hqtl_common.errors import CapabilityError, ConfigError, UnknownBackendError

GOOD = {
    "cx_error": 0.01,
    "single_qubit_error": 0.0003,
    "readout_error": 0.02,
    "t1_us": 100.0,
    "t2_us": 120.0,
    "gate_ns": 36.0,
    "cx_ns": 400.0,
}
ANGLES = np.array([[0.3, -1.2, 0.8, 1.1]])


def write(folder: Path, values: object) -> Path:
    path = folder / "machine.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values), "utf-8")
    return path


def test_paper_profiles_hold_its_table() -> None:
    """Geng et al. 2023, table 2: CX, single-qubit and readout error in %, T1 and T2 in µs."""
    table = {
        "kolkata": (0.835, 0.021, 1.000, 122.23, 64.40),
        "ehningen": (0.740, 0.024, 0.880, 172.28, 172.45),
        "lima": (1.097, 0.048, 2.580, 75.00, 103.41),
    }
    found = {
        name: (100 * p.cx_error, 100 * p.single_qubit_error, 100 * p.readout_error, p.t1_us, p.t2_us) for name, p in PAPER_PROFILES.items()
    }
    assert found == {name: pytest.approx(row) for name, row in table.items()}


@pytest.mark.parametrize("name", PAPER_PROFILES)
def test_record_of_a_stand_in_says_so(name: str) -> None:
    record = get_backend(f"paper:{name}", shots=50, seed=1).run(HeadSpec(), np.zeros((1, 4)), ANGLES).record
    assert record.options["stand_in_for"] == f"ibmq_{name}"
    assert record.options["profile"]["cx_error"] == PAPER_PROFILES[name].cx_error
    assert record.calibration == "2023-07"
    assert record.two_qubit_gates == 3
    assert "qiskit-ibm-runtime" not in record.versions
    json.dumps(record.to_dict(), allow_nan=False)


def test_lima_has_five_qubits_in_a_t() -> None:
    """A head of five qubits needs swaps there and none on a line; six do not fit, as on the machine."""
    spec = HeadSpec(num_qubits=5)
    gates = {
        name: get_backend(name).run(spec, np.zeros((1, 5)), np.ones((1, 5))).record.two_qubit_gates
        for name in ("paper:lima", "paper:kolkata")
    }
    assert gates["paper:kolkata"] == 4
    assert gates["paper:lima"] is not None
    assert gates["paper:lima"] > 4
    with pytest.raises(CapabilityError, match=r"6 qubits does not fit on 'paper:lima' \(5 qubits\)"):
        get_backend("paper:lima").run(HeadSpec(num_qubits=6), np.zeros((1, 6)), np.zeros((1, 6)))


def test_machine_that_the_paper_has_not_is_refused() -> None:
    with pytest.raises(UnknownBackendError, match="paper:kolkata, paper:ehningen, paper:lima"):
        get_backend("paper:yorktown")


def test_errors_of_the_target_are_those_of_the_profile() -> None:
    target = paper_machine("paper:lima").target
    assert {properties.error for properties in target["cx"].values()} == {0.01097}
    assert {properties.error for properties in target["sx"].values()} == {0.00048}
    assert {properties.error for properties in target["measure"].values()} == {0.0258}
    assert [(q.t1, q.t2) for q in target.qubit_properties] == [pytest.approx((75e-6, 103.41e-6))] * 5
    assert set(target["cx"]) == {(0, 1), (1, 0), (1, 2), (2, 1), (1, 3), (3, 1), (3, 4), (4, 3)}


@pytest.mark.parametrize("name", PAPER_PROFILES)
def test_noise_model_gives_back_the_errors(name: str) -> None:
    """Aer takes the gate errors as infidelities that contain relaxation; where relaxation alone is more, it stands."""
    from qiskit.quantum_info import SuperOp, average_gate_fidelity
    from qiskit_aer.noise import QuantumError

    from hqtl_common.backends.isa import isa_head

    noise = isa_head(paper_machine(f"paper:{name}"), HeadSpec(), 2, 0).noise
    profile = PAPER_PROFILES[name]
    wanted = {"cx": profile.cx_error, "sx": profile.single_qubit_error}
    for entry in noise.to_dict()["errors"]:
        if entry["type"] == "qerror":
            infidelity = 1 - average_gate_fidelity(SuperOp(QuantumError.from_dict(entry)))
            assert infidelity == pytest.approx(wanted[entry["operations"][0]], rel=0.12)


# ---------------------------------------------------------------- a user's file


def test_file_is_a_backend(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "stand_in_for": "our lab's machine", "date": "2026-03-01"})
    answer = get_backend(f"profile:{path}").run(HeadSpec(), np.zeros((1, 4)), ANGLES)
    assert answer.record.calibration == "2026-03-01"
    assert answer.record.options["stand_in_for"] == "our lab's machine"
    assert answer.record.options["profile"] == GOOD
    assert load_profile(path).date == datetime.date(2026, 3, 1)


def test_file_without_name_and_date(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    record = get_backend(f"profile:{path}").run(HeadSpec(), np.zeros((1, 4)), ANGLES).record
    assert (record.calibration, record.options["stand_in_for"]) == (None, str(path))


def test_changed_file_is_another_machine(tmp_path: Path) -> None:
    first = get_backend(f"profile:{write(tmp_path, GOOD)}").run(HeadSpec(), np.zeros((1, 4)), ANGLES)
    second = get_backend(f"profile:{write(tmp_path, {**GOOD, 'readout_error': 0.2})}").run(HeadSpec(), np.zeros((1, 4)), ANGLES)
    assert np.abs(first.expvals - second.expvals).max() > 0.05


def test_equal_profiles_share_one_machine() -> None:
    assert profile_machine("profile:a", Profile(**GOOD)) is profile_machine("profile:a", Profile(**GOOD))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t2_us": 201.0}, r"T2 can be at most 2·T1 = 200 µs; got t2_us = 201"),
        ({"cx_error": 1.097}, r"cx_error: .* 0\.5"),
        ({"readout_error": -0.1}, r"readout_error: "),
        ({"single_qubit_error": "much"}, r"single_qubit_error: "),
        ({"t1_us": 0}, r"t1_us: "),
        ({"gate_ns": -1}, r"gate_ns: "),
        ({"cx_errors": 0.1}, r"cx_errors: Extra inputs"),
        ({"date": "yesterday"}, r"date: "),
    ],
)
def test_field_out_of_range_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path, GOOD | change)
    with pytest.raises(ConfigError, match=message) as caught:
        get_backend(f"profile:{path}")
    assert str(path) in str(caught.value)


def test_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cx_ns: Field required.*the fields are cx_error, single_qubit_error"):
        get_backend(f"profile:{write(tmp_path, {k: v for k, v in GOOD.items() if k != 'cx_ns'})}")


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "[" * 10**5, '{"cx_error": NaN}', "null", "\udcff"])
def test_text_that_is_no_profile_is_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape") + b" " * 3)
    with pytest.raises(ConfigError, match="cannot be used"):
        get_backend(f"profile:{path}")


def test_contents_of_another_file_do_not_reach_the_message(tmp_path: Path) -> None:
    for text in ("token = hunter2", '{"token": "hunter2", "cx_error": "hunter2"}', '"hunter2"'):
        with pytest.raises(ConfigError) as caught:
            get_backend(f"profile:{write(tmp_path, text)}")
        assert "hunter2" not in str(caught.value)


def test_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            get_backend(f"profile:{path}")


@pytest.mark.parametrize(
    "none",
    [
        {"t1_us": None, "t2_us": None},
        {"gate_ns": 0, "cx_ns": 0},
    ],
)
def test_no_errors_at_all_are_the_exact_head(tmp_path: Path, none: dict[str, Any]) -> None:
    spec = HeadSpec(num_layers=3)
    rng = np.random.default_rng(0)
    weights, angles = rng.normal(size=spec.weights_shape), rng.normal(size=(40, 4))
    path = write(tmp_path, GOOD | {"cx_error": 0, "single_qubit_error": 0, "readout_error": 0} | none)
    found = get_backend(f"profile:{path}").run(spec, weights, angles).expvals
    np.testing.assert_allclose(found, get_backend("statevector").run(spec, weights, angles).expvals, atol=1e-9)


def test_dephasing_needs_no_relaxation() -> None:
    machine = profile_machine("profile:x", Profile(**(GOOD | {"t1_us": None, "t2_us": 50.0})))
    assert machine.target.qubit_properties[0].t1 is None
    assert machine.target.qubit_properties[0].t2 == pytest.approx(50e-6)
