"""What is special about single devices of PennyLane."""

from __future__ import annotations

import numpy as np
import pytest

from hqtl_common import HeadSpec, get_backend
from hqtl_common.errors import BackendUnavailableError, CapabilityError, ConfigError, UnknownBackendError

SPEC = HeadSpec()
REMOTE_WARNINGS = "ignore::DeprecationWarning"


@pytest.mark.filterwarnings(REMOTE_WARNINGS)
def test_the_remote_device_runs_on_a_snapshot() -> None:
    angles = np.random.default_rng(0).normal(size=(2, 4))
    backend = get_backend("pennylane:qiskit.remote", shots=400, fake_backend="fake_lima")
    answer = backend.run(SPEC, np.zeros((1, 4)), angles)
    exact = get_backend("fake_lima").run(SPEC, np.zeros((1, 4)), angles).expvals
    assert answer.expval_stds is not None
    assert (np.abs(answer.expvals - exact) < 5 * answer.expval_stds + 0.02).all()  # it lays the circuit out by itself
    assert answer.record.options == {"fake_backend": "fake_lima"}
    assert answer.record.seed is None


@pytest.mark.filterwarnings(REMOTE_WARNINGS)
def test_the_remote_device_only_samples() -> None:
    with pytest.raises(CapabilityError, match="give shots"):
        get_backend("pennylane:qiskit.remote", fake_backend="fake_lima")


def test_snapshots_are_for_the_remote_device_only() -> None:
    with pytest.raises(BackendUnavailableError, match="backend"):
        get_backend("pennylane:qiskit.remote", shots=10)
    with pytest.raises(UnknownBackendError, match="fake_lima"):
        get_backend("pennylane:qiskit.remote", shots=10, fake_backend="fake_limo")
    with pytest.raises(ConfigError, match=r"default\.qubit"):
        get_backend("pennylane:default.qubit", fake_backend="fake_lima")


def test_aer_says_which_devices_it_has() -> None:
    assert get_backend("aer", device="CPU", shots=8).run(SPEC, np.zeros((1, 4)), np.zeros((1, 4))).record.options["device"] == "CPU"
    with pytest.raises(CapabilityError, match="runs on CPU"):
        get_backend("aer", device="TPU")


@pytest.mark.filterwarnings(REMOTE_WARNINGS)
@pytest.mark.parametrize("device", ["qiskit.aer", "qiskit.basicsim"])
def test_devices_of_the_old_interface_agree_with_the_exact_head(device: str) -> None:
    rng = np.random.default_rng(1)
    spec = HeadSpec(num_layers=2)
    weights, angles = rng.normal(size=(2, 4)), rng.normal(size=(3, 4))
    answer = get_backend(f"pennylane:{device}", shots=2000).run(spec, weights, angles)
    assert answer.expval_stds is not None
    assert (np.abs(answer.expvals - get_backend("statevector").run(spec, weights, angles).expvals) < 5 * answer.expval_stds).all()
    assert (answer.record.shots, answer.record.seed) == (2000, None)
