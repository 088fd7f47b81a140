"""``fake_NAME``, ``paper:NAME`` and ``profile:PATH``: the head with the noise of a machine, exact or sampled.

The noise is Aer's ``NoiseModel.from_backend``: after every gate depolarisation and thermal relaxation, and readout errors;
idle qubits keep their state. By default a density matrix gives exact noisy probabilities, and shots are a seeded draw from
them: with noise that has no memory this is the distribution of Aer's own shots.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import qiskit
import qiskit_aer
from numpy.typing import NDArray

from hqtl_common.backends.base import check_observables, check_seed, check_shots, check_table, estimate, stream_seed
from hqtl_common.backends.isa import IsaHead, isa_calibration, isa_head
from hqtl_common.backends.machine import Machine
from hqtl_common.backends.mitigation import MITIGATION_OPTIONS, Calibration, mitigated, mitigation_of
from hqtl_common.backends.mitigation_circuits import CALIBRATION_STATES, calibration_parameters
from hqtl_common.backends.noisy import probabilities
from hqtl_common.backends.profiles import load_profile, paper_machine, profile_machine
from hqtl_common.backends.sampler import bindings, sample_counts
from hqtl_common.circuit import ZString, single_zs, z_strings
from hqtl_common.errors import CapabilityError, ConfigError
from hqtl_common.records import Evaluation, ExecutionRecord
from hqtl_common.specs import HeadSpec

__all__ = ["DEFAULT_OPTIMIZATION_LEVEL", "METHODS", "NoisyBackend", "machine_of"]

F64 = NDArray[np.float64]

METHODS = ("density-matrix", "aer")
_MAKING = threading.Lock()  # one object per machine, also when threads ask at once

# Qiskit's own default. The layout decides most of the noise: level 1 keeps qubits 0, 1, 2, … where they happen to be joined,
# 2 and 3 look for good ones, and the search of level 3 can take far longer.
DEFAULT_OPTIMIZATION_LEVEL = 2


@dataclass(frozen=True, slots=True)
class _Table:
    """Rows for both engines: values by name, and (R, E) columns with (W,) or (R, W) further ones."""

    bindings: dict[Any, F64]
    angles: F64
    weights: F64


class NoisyBackend:
    """A machine imitated; see :class:`hqtl_common.backends.base.Backend`.

    Args:
        name: ``fake_kolkata``, ``paper:lima``, ``profile:my_machine.json``, …
        shots: Repetitions, or None for exact noisy expectation values.
        seed: Seed of the sampling.
        optimization_level: Effort of Qiskit's transpiler, 1 to 3.
        seed_transpiler: Its seed.
        method: How shots are drawn: ``density-matrix`` from exact noisy probabilities, ``aer`` by Aer's SamplerV2 (slow).
            Where the exact engine cannot hold the circuit Aer draws, and the record's ``reason`` says so.
        mitigation: ``readout`` or None; see :mod:`hqtl_common.backends.mitigation`. Exact values are mitigated exactly.
        calibration_shots: Repetitions of each calibration circuit, with shots only.
        zne: Odd factors of the zero-noise extrapolation, for example (1, 3, 5); each takes ``shots`` of its own.

    Raises:
        UnknownBackendError: There is no such machine.
        ConfigError: An option outside its range, or a profile that cannot be used.
        CapabilityError: Exact values by Aer.
    """

    OPTIONS: ClassVar[frozenset[str]] = MITIGATION_OPTIONS | {"shots", "seed", "optimization_level", "seed_transpiler", "method"}

    def __init__(
        self,
        name: str,
        *,
        shots: int | None = None,
        seed: int | None = None,
        optimization_level: int = DEFAULT_OPTIMIZATION_LEVEL,
        seed_transpiler: int = 0,
        method: str = METHODS[0],
        mitigation: str | None = None,
        calibration_shots: int | None = None,
        zne: tuple[int, ...] | None = None,
    ) -> None:
        self.name = name
        self.shots = check_shots(shots)
        self.seed = check_seed(seed, self.shots)
        self.optimization_level = _check_integer("optimization_level", optimization_level, 1, 3)
        self.seed_transpiler = _check_integer("seed_transpiler", seed_transpiler, 0, 2**31 - 1)
        if method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
        if method == "aer" and self.shots is None:
            raise CapabilityError(f"{name!r} with method 'aer' only samples; give shots, or leave the method out for exact values")
        self.method = method
        self._mitigation = mitigation_of(self.shots, mitigation, calibration_shots, zne)
        self._machine = machine_of(name)
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
        head = self._head(spec)
        if head.program is None and self.shots is None:
            raise CapabilityError(f"{self.name!r} has no exact values for this head: {head.reason}; give shots")
        method = "aer" if head.program is None else self.method
        table = _Table(bindings(spec, weights64, angles64), angles64, weights64.reshape(*weights64.shape[:-2], spec.num_weights))
        head_seed = stream_seed(self.seed, stream)  # with and without mitigation the head has the same shots
        calibration_seed, *more_seeds = head_seed.spawn(len(self._mitigation.factors))
        circuits = [self._head(spec, factor) for factor in self._mitigation.factors]
        seeds = [head_seed, *more_seeds]
        strings = self._mitigation.reads(wanted)
        estimates = [self._estimate(one, method, table, self.shots, seed, strings) for one, seed in zip(circuits, seeds, strict=True)]
        calibration = self._calibration(head, method, calibration_seed) if self._mitigation.readout else None
        expvals, covs = mitigated(estimates, self._mitigation, calibration, wanted)
        record = ExecutionRecord(
            backend_requested=self.name,
            backend_used=self.name,
            reason=None if head.reason is None or self.method == "aer" else f"sampled by Aer: {head.reason}",
            shots=self.shots,
            seed=self.seed,
            num_rows=len(angles64),
            options=self._options(method) | self._mitigation.report(len(angles64), self.shots, calibration),
            layout=head.layout,
            depth=head.depth,
            two_qubit_gates=head.two_qubit_gates,
            calibration=self._machine.calibration,
            versions=_versions() | self._machine.versions,
            wall_seconds=time.perf_counter() - started,
        )
        return Evaluation(expvals, covs, record)

    def close(self) -> None:
        """Nothing is held."""

    def _options(self, method: str) -> dict[str, Any]:
        effective = {"method": method, "optimization_level": self.optimization_level, "seed_transpiler": self.seed_transpiler}
        return effective | self._machine.options

    def _head(self, spec: HeadSpec, factor: int = 1) -> IsaHead:
        return isa_head(self._machine, spec, self.optimization_level, self.seed_transpiler, factor)

    def _estimate(
        self, circuit: IsaHead, method: str, table: _Table, shots: int | None, seed: np.random.SeedSequence, strings: tuple[ZString, ...]
    ) -> tuple[F64, F64 | None]:
        num_qubits = circuit.circuit.num_clbits
        if method == "aer":
            assert shots is not None
            with self._lock:
                counts: NDArray[Any] = sample_counts(circuit.circuit, table.bindings, shots, seed, noise=circuit.noise)
            return estimate(counts, num_qubits, strings)
        assert circuit.program is not None
        exact = probabilities(circuit.program, table.angles, table.weights)
        if shots is None:
            return exact @ z_strings(num_qubits, strings), None
        draw = np.random.default_rng(seed).multinomial(shots, exact / exact.sum(axis=1, keepdims=True))
        return estimate(draw, num_qubits, strings)

    def _calibration(self, head: IsaHead, method: str, seed: np.random.SeedSequence) -> Calibration:
        table = _Table(calibration_parameters(), CALIBRATION_STATES, np.zeros(0))
        circuit = isa_calibration(self._machine, head)
        single = single_zs(circuit.circuit.num_clbits)
        return Calibration(*self._estimate(circuit, method, table, self._mitigation.calibration_shots, seed, single))


def machine_of(name: str) -> Machine:
    """The machine behind a backend's name.

    Raises:
        UnknownBackendError: There is no such machine.
        ConfigError: A profile that cannot be used.
    """
    family, colon, rest = name.partition(":")
    with _MAKING:
        if not colon:
            from hqtl_common.backends.snapshots import snapshot

            return snapshot(name)
        return paper_machine(name) if family == "paper" else profile_machine(name, load_profile(Path(rest)))


def _check_integer(name: str, value: int, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"{name} must be a whole number from {low} to {high}; got {value!r}")
    return value


def _versions() -> dict[str, str]:
    return {"numpy": np.__version__, "qiskit": qiskit.__version__, "qiskit-aer": qiskit_aer.__version__}
