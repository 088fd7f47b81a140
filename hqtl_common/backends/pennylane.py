"""``pennylane:NAME``: the head as a PennyLane QNode on any installed device. Qubits are called wires only here."""

from __future__ import annotations

import time
from collections.abc import Callable
from inspect import signature
from typing import Any, ClassVar

import numpy as np
import pennylane as qml
from numpy.typing import NDArray

from hqtl_common.backends.base import check_observables, check_seed, check_shots, check_table, estimate, stream_seed
from hqtl_common.circuit import ZString, operations
from hqtl_common.errors import BackendUnavailableError, CapabilityError, ConfigError, UnknownBackendError
from hqtl_common.records import Evaluation, ExecutionRecord
from hqtl_common.specs import HeadSpec

__all__ = ["PennyLaneBackend", "make_device", "queue_head"]

_REMOTE = "qiskit.remote"
_GATES: dict[str, Callable[..., Any]] = {"h": qml.Hadamard, "rx": qml.RX, "ry": qml.RY, "rz": qml.RZ, "cx": qml.CNOT}


class PennyLaneBackend:
    """See :class:`hqtl_common.backends.base.Backend`; rows are one broadcast execution.

    Args:
        name: ``pennylane:`` and the device's name, for example ``pennylane:default.qubit``.
        shots: Repetitions, or None for exact values.
        seed: Seed of the device, for devices that take one.
        fake_backend: For ``qiskit.remote``: the snapshot that it runs on, for example ``fake_kolkata``. It transpiles and
            submits every image by itself, in seconds each; the backend ``fake_kolkata`` does the same in microseconds.

    Raises:
        ConfigError: An option outside its range, a seed for a device that takes none, a snapshot for another device.
        CapabilityError: Exact values (``shots=None``) of a device that only samples.
        UnknownBackendError: PennyLane has no such device, or qiskit-ibm-runtime no such snapshot.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"shots", "seed", "fake_backend"})

    def __init__(self, name: str, *, shots: int | None = None, seed: int | None = None, fake_backend: str | None = None) -> None:
        self.name = name
        self.device_name = name.partition(":")[2]
        self.shots = check_shots(shots)
        self._options = _device_options(self.device_name, fake_backend)
        device = make_device(self.device_name, 2, **self._options)
        if seed is not None and not _takes_seed(device):
            raise ConfigError(f"the device of {name!r} takes no seed; leave it out")
        if self.shots is None and (self.device_name == _REMOTE or _only_samples(device)):
            raise CapabilityError(f"{name!r} has no exact values: its answers are estimates from samples; give shots")
        self.seed = check_seed(seed, self.shots) if _takes_seed(device) else None

    def run(
        self,
        spec: HeadSpec,
        weights: NDArray[Any],
        angles: NDArray[Any],
        *,
        stream: int = 0,
        observables: tuple[ZString, ...] | None = None,
    ) -> Evaluation:
        """See :meth:`hqtl_common.backends.base.Backend.run`."""
        started = time.perf_counter()
        weights64, angles64 = check_table(spec, weights, angles)
        wanted = check_observables(spec, observables)
        try:
            expvals, covs = self._evaluate(spec, weights64, angles64, stream, wanted)
        except qml.exceptions.DeviceError as error:
            raise CapabilityError(f"{self.name} with shots={self.shots}: {error}") from error
        record = ExecutionRecord(
            backend_requested=self.name,
            backend_used=self.name,
            shots=self.shots,
            seed=self.seed,
            num_rows=len(angles64),
            options={} if not self._options else {"fake_backend": self._options["backend"].name},
            versions={"pennylane": qml.__version__},
            wall_seconds=time.perf_counter() - started,
        )
        return Evaluation(expvals, covs, record)

    def close(self) -> None:
        """Nothing is held."""

    def _evaluate(
        self, spec: HeadSpec, weights: NDArray[np.float64], angles: NDArray[np.float64], stream: int, wanted: tuple[ZString, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        if not len(angles):
            empty = np.zeros((0, len(wanted)))
            return empty, None if self.shots is None else np.zeros((0, len(wanted), len(wanted)))
        seed = None if self.seed is None else stream_seed(self.seed, stream)
        device = make_device(self.device_name, spec.num_qubits, **({} if seed is None else {"seed": seed}), **self._options)
        wires = range(spec.num_qubits)

        def circuit() -> Any:
            queue_head(spec, weights, angles)
            return [qml.expval(qml.prod(*map(qml.Z, string))) for string in wanted] if self.shots is None else qml.sample(wires=wires)

        node = qml.QNode(circuit, device, interface="numpy", diff_method=None)
        if self.shots is None:
            return np.stack([np.broadcast_to(np.asarray(z, dtype=np.float64), len(angles)) for z in node()], axis=-1), None
        bits = np.asarray(qml.set_shots(node, shots=self.shots)(), dtype=np.int64).reshape(len(angles), self.shots, spec.num_qubits)
        return estimate(_count(bits), spec.num_qubits, wanted)


def make_device(device_name: str, num_qubits: int, **options: Any) -> Any:
    """A PennyLane device, with its own options.

    Raises:
        UnknownBackendError: PennyLane has no such device.
        BackendUnavailableError: The device needs something that is missing.
    """
    if device_name not in qml.plugin_devices:
        known = ", ".join(sorted(qml.plugin_devices))
        raise UnknownBackendError(f"PennyLane has no device {device_name!r} here; it has {known}")
    try:
        return qml.device(device_name, wires=num_qubits, **options)
    except (qml.exceptions.DeviceError, TypeError, ValueError, ImportError) as error:
        raise BackendUnavailableError(f"PennyLane cannot make the device {device_name!r}: {error}") from error


def queue_head(spec: HeadSpec, weights: Any, angles: Any) -> None:
    """Queue the head's gates; arrays or tensors with rows in front of their last axes broadcast."""
    flat = {"angles": angles, "weights": weights.reshape(*weights.shape[:-2], spec.num_weights)}
    for operation in operations(spec):
        arguments = [] if operation.source is None else [flat[operation.source][..., operation.index]]
        _GATES[operation.gate](*arguments, wires=operation.qubits)


def _device_options(device_name: str, fake_backend: str | None) -> dict[str, Any]:
    if fake_backend is None:
        return {}
    if device_name != _REMOTE:
        raise ConfigError(f"fake_backend is an option of pennylane:{_REMOTE}; the device is {device_name!r}")
    from hqtl_common.backends.snapshots import snapshot_class

    return {"backend": snapshot_class(fake_backend)()}


def _takes_seed(device: Any) -> bool:
    return "seed" in signature(type(device).__init__).parameters


def _only_samples(device: Any) -> bool:
    """Legacy devices without access to the state answer ``shots=None`` with samples and no more than a warning."""
    return isinstance(device, qml.devices.LegacyDeviceFacade) and not device.target_device.capabilities().get("returns_state")


def _count(bits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Outcomes (R, shots, n) of 0 and 1 → counts (R, 2^n), the first qubit most significant."""
    num_rows, _, num_qubits = bits.shape
    outcomes = bits @ (1 << np.arange(num_qubits - 1, -1, -1))
    cells = outcomes + (np.arange(num_rows) << num_qubits)[:, None]
    return np.bincount(cells.ravel(), minlength=num_rows << num_qubits).reshape(num_rows, -1)
