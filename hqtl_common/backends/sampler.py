"""``aer``, and how every backend samples with Qiskit Aer's SamplerV2: one parametric circuit, all rows as one PUB."""

from __future__ import annotations

import threading
import time
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import qiskit
import qiskit_aer
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.primitives import BitArray
from qiskit_aer.primitives import SamplerV2

from hqtl_common.backends.base import check_observables, check_seed, check_shots, check_table, estimate, stream_seed
from hqtl_common.backends.mitigation import Calibration, mitigated, mitigation_of
from hqtl_common.backends.mitigation_circuits import calibration_circuit, calibration_parameters
from hqtl_common.circuit import ZString, qiskit_circuit
from hqtl_common.errors import CapabilityError
from hqtl_common.records import Evaluation, ExecutionRecord
from hqtl_common.specs import HeadSpec

__all__ = ["DEFAULT_SHOTS", "AerBackend", "bindings", "counts_of", "sample_counts"]

DEFAULT_SHOTS = 1024


class AerBackend:
    """Noise-free sampling by Aer; see :class:`hqtl_common.backends.base.Backend`.

    Args:
        name: ``aer``.
        shots: Repetitions (None: 1024, and the record says so).
        seed: Seed of the sampling.
        mitigation: ``readout`` or None; see :mod:`hqtl_common.backends.mitigation`. Without noise it only costs.
        calibration_shots: Repetitions of each calibration circuit.
        device: ``CPU``, or ``GPU`` where Aer was built for one (the package qiskit-aer-gpu).

    Raises:
        ConfigError: An option outside its range.
        CapabilityError: The installed Aer has no such device.
    """

    OPTIONS: ClassVar[frozenset[str]] = frozenset({"shots", "seed", "mitigation", "calibration_shots", "device"})

    def __init__(
        self,
        name: str = "aer",
        *,
        shots: int | None = None,
        seed: int | None = None,
        mitigation: str | None = None,
        calibration_shots: int | None = None,
        device: str = "CPU",
    ) -> None:
        available = qiskit_aer.AerSimulator().available_devices()
        if device not in available:
            raise CapabilityError(f"the installed Aer runs on {', '.join(available)}; got the device {device!r}")
        self.name = name
        self._device = device
        self.shots = check_shots(shots) or DEFAULT_SHOTS
        self.seed = check_seed(seed, self.shots)
        self._mitigation = mitigation_of(self.shots, mitigation, calibration_shots)
        self._lock = threading.Lock()  # Aer's simulator object is shared and not thread-safe

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
        circuit = _measured_circuit(spec)
        seed = stream_seed(self.seed, stream)
        with self._lock:
            counts = sample_counts(circuit, bindings(spec, weights64, angles64), self.shots, seed, device=self._device)
            calibration = self._calibration(spec.num_qubits, seed)
        estimates = [estimate(counts, spec.num_qubits, self._mitigation.reads(wanted))]
        expvals, covs = mitigated(estimates, self._mitigation, calibration, wanted)
        found = self._mitigation.report(len(angles64), self.shots, calibration)
        record = ExecutionRecord(
            backend_requested=self.name,
            backend_used=self.name,
            shots=self.shots,
            seed=self.seed,
            num_rows=len(angles64),
            options={"device": self._device, **{name: value for name, value in found.items() if name != "zne"}},
            depth=circuit.depth(),
            two_qubit_gates=circuit.num_nonlocal_gates(),
            versions={"qiskit": qiskit.__version__, "qiskit-aer": qiskit_aer.__version__},
            wall_seconds=time.perf_counter() - started,
        )
        return Evaluation(expvals, covs, record)

    def close(self) -> None:
        """Nothing is held."""

    def _calibration(self, num_qubits: int, seed: np.random.SeedSequence) -> Calibration | None:
        shots = self._mitigation.calibration_shots
        if shots is None:
            return None
        counts = sample_counts(calibration_circuit(num_qubits), calibration_parameters(), shots, seed.spawn(1)[0])
        return Calibration(*estimate(counts, num_qubits))


@lru_cache(maxsize=64)
def _measured_circuit(spec: HeadSpec) -> QuantumCircuit:
    return qiskit_circuit(spec, measure=True)  # all gates of a head are native to Aer: nothing to transpile


def sample_counts(
    circuit: QuantumCircuit,
    parameters: dict[Any, NDArray[np.float64]],
    shots: int,
    seed: np.random.SeedSequence,
    *,
    noise: Any = None,
    device: str = "CPU",
) -> NDArray[np.int64]:
    """Counts (R, 2^n) of Aer's shots, qubit 0 most significant; not to be called from two threads at once.

    Args:
        circuit: With its parameters, measured into ``meas``; as Aer or the machine can run it.
        parameters: Values of R rows by name, each (R, ·); see :func:`bindings`.
        shots: Repetitions per row.
        seed: Source of the sampler's seed.
        noise: Aer's noise model, None for none.
        device: Aer's name of the processor.
    """
    if not len(next(iter(parameters.values()))):
        return np.zeros((0, 2**circuit.num_clbits), dtype=np.int64)
    options = {"device": device} | ({} if noise is None else {"noise_model": noise})
    sampler = SamplerV2(default_shots=shots, seed=int(seed.generate_state(1)[0] >> 1), options={"backend_options": options})
    bits: BitArray = sampler.run([(circuit, parameters)]).result()[0].data.meas
    return counts_of(bits)


def bindings(spec: HeadSpec, weights: NDArray[np.float64], angles: NDArray[np.float64]) -> dict[Any, NDArray[np.float64]]:
    """Parameter values of R rows by name, as a PUB takes them: (R, L·n) and (R, E); never by position."""
    per_row = np.broadcast_to(weights, (len(angles), *spec.weights_shape)).reshape(len(angles), spec.num_weights)
    return {
        tuple(f"angles[{k}]" for k in range(spec.num_angles)): angles,
        tuple(f"weights[{k}]" for k in range(spec.num_weights)): per_row,
    }


def counts_of(bits: BitArray) -> NDArray[np.int64]:
    """Qiskit's shots of R rows → counts (R, 2^n), qubit 0 most significant."""
    outcomes = np.zeros(bits.array.shape[:2], dtype=np.int64)
    for byte in range(bits.array.shape[-1]):  # big-endian bytes, qubit 0 in the lowest bit
        outcomes = outcomes << 8 | bits.array[..., byte]
    reversed_outcomes = np.zeros_like(outcomes)
    for qubit in range(bits.num_bits):
        reversed_outcomes = reversed_outcomes << 1 | outcomes >> qubit & 1
    cells = reversed_outcomes + (np.arange(len(outcomes)) << bits.num_bits)[:, None]
    return np.bincount(cells.ravel(), minlength=len(outcomes) << bits.num_bits).reshape(len(outcomes), -1)
