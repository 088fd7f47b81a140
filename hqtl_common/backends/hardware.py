"""``ibm:NAME``: the head on a machine of IBM, through the ledger; see :mod:`hqtl_common.backends.ibm` for the client.

A call is one job, split only where the platform's limit on executions asks for it. Its PUBs are the head, the head with
two-qubit gates folded (a PUB for each further factor) and the calibration of the readout; the ledger keeps the raw counts
of all of them, below each other in this order, so that a replay mitigates the same counts.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import qiskit
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qiskit.transpiler.exceptions import TranspilerError

from hqtl_common.backends.base import check_observables, check_seed, check_shots, check_table, estimate
from hqtl_common.backends.costs import MAX_EXECUTIONS, estimated_qpu_seconds
from hqtl_common.backends.ibm import IBMProvider, Payload, Pub, open_provider
from hqtl_common.backends.mitigation import Calibration, mitigated, mitigation_of
from hqtl_common.backends.mitigation_circuits import (
    CALIBRATION_STATES,
    calibration_circuit,
    calibration_parameters,
    folded,
    measured_qubits,
)
from hqtl_common.backends.recorded import Budget, JobStatus, RecordedExecutor, Request, Timing
from hqtl_common.backends.sampler import DEFAULT_SHOTS, bindings
from hqtl_common.circuit import ZString, qiskit_circuit
from hqtl_common.errors import BackendUnavailableError, CapabilityError, ConfigError
from hqtl_common.ledger import Entry, Ledger, default_ledger_path, request_key
from hqtl_common.records import Evaluation, ExecutionRecord
from hqtl_common.specs import HeadSpec

__all__ = ["HardwareBackend"]

logger = logging.getLogger("hqtl.hardware")

F64 = NDArray[np.float64]

_STATES = len(CALIBRATION_STATES)
_DEPTH = 30  # of the paper's head, for the estimate: nothing is transpiled before it


@dataclass(frozen=True, slots=True)
class _Isa:
    circuit: QuantumCircuit
    layout: tuple[int, ...]


class HardwareBackend:
    """See :class:`hqtl_common.backends.base.Backend`. Everything submitted is recorded first; nothing is paid twice.

    Args:
        name: ``ibm:ibm_fez``, ``ibm:least_busy``, ….
        shots: Repetitions (None: 1024, and the record says so).
        seed: Not used by a machine; part of the request's key, so that another seed asks again.
        mode: IBM's execution mode: ``job``, ``batch`` or ``session``.
        optimization_level: Effort of Qiskit's transpiler, 0 to 3.
        seed_transpiler: Its seed.
        initial_layout: Physical qubits to use, None lets the transpiler choose.
        dynamical_decoupling: Name of a sequence (``XX``, ``XpXm``, ``XY4``), None for none.
        twirling: Twirl gates and measurements.
        rep_delay: Seconds between executions, None for the machine's default.
        mitigation: ``readout`` or None; see :mod:`hqtl_common.backends.mitigation`.
        calibration_shots: Repetitions of each calibration circuit, in every job.
        zne: Odd factors of the zero-noise extrapolation, for example (1, 3, 5); each takes ``shots`` of its own.
        max_jobs: Limit on jobs of the scope.
        max_qpu_seconds: Limit on billed seconds of the scope.
        yes: Start without a limit.
        scope: What the executions belong to; the same scope replays what it has paid (default: a new one).
        ledger: The ledger's file (default: the user's).
        settle_s: See :class:`hqtl_common.backends.recorded.Timing`, like the next three.
        poll_s: First pause between two looks at a job.
        max_poll_s: Longest pause.
        deadline_s: Give up waiting after this.

    Raises:
        ConfigError: An option outside its range, or no limit and no ``yes``.
        BackendAuthError: No account, or one that is refused.
        UnknownBackendError: The account has no such machine.
        BackendUnavailableError: The platform cannot be reached.
    """

    def __init__(
        self,
        name: str,
        *,
        shots: int | None = None,
        seed: int | None = None,
        mode: str = "job",
        optimization_level: int = 3,
        seed_transpiler: int = 0,
        initial_layout: tuple[int, ...] | None = None,
        dynamical_decoupling: str | None = None,
        twirling: bool = False,
        rep_delay: float | None = None,
        mitigation: str | None = None,
        calibration_shots: int | None = None,
        zne: tuple[int, ...] | None = None,
        max_jobs: int | None = None,
        max_qpu_seconds: float | None = None,
        yes: bool = False,
        scope: str | None = None,
        ledger: Path | None = None,
        settle_s: float = 60.0,
        poll_s: float = 5.0,
        max_poll_s: float = 60.0,
        deadline_s: float | None = None,
    ) -> None:
        if max_jobs is None and max_qpu_seconds is None and not yes:
            raise ConfigError(f"{name!r} costs money or queues: set max_jobs or max_qpu_seconds, or say yes (--yes) to run without a limit")
        _check_numbers(optimization_level=optimization_level, seed_transpiler=seed_transpiler, settle_s=settle_s, poll_s=poll_s)
        _check_numbers(max_poll_s=max_poll_s, deadline_s=deadline_s, rep_delay=rep_delay)
        if initial_layout is not None and not (isinstance(initial_layout, list | tuple) and all(type(q) is int for q in initial_layout)):
            raise ConfigError(f"initial_layout must be a list of physical qubits, for example [0,1,4,7]; got {initial_layout!r}")
        self.name = name
        self.shots: int = check_shots(shots) or DEFAULT_SHOTS
        self.seed = check_seed(0 if seed is None else seed, self.shots)
        self._mitigation = mitigation_of(self.shots, mitigation, calibration_shots, zne)
        if (needed := self._mitigation.executions(1, self.shots)) > MAX_EXECUTIONS:
            raise ConfigError(
                f"shots={self.shots} with {self._mitigation.options} needs {needed:,} executions for one parameter set, "
                f"and a job has at most {MAX_EXECUTIONS:,}"
            )
        self._provider: IBMProvider = open_provider(
            name, mode=mode, dynamical_decoupling=dynamical_decoupling, twirling=twirling, rep_delay=rep_delay
        )
        self._transpile = (optimization_level, seed_transpiler, None if initial_layout is None else tuple(initial_layout))
        self._options = {
            "mode": mode,
            "optimization_level": optimization_level,
            "seed_transpiler": seed_transpiler,
            "initial_layout": None if initial_layout is None else list(initial_layout),
            "dynamical_decoupling": dynamical_decoupling,
            "twirling": twirling,
            "rep_delay": rep_delay,
        }
        self._executor = RecordedExecutor(
            Ledger(ledger or default_ledger_path()),
            self._provider,
            scope or f"call-{uuid.uuid4().hex}",
            Budget(max_jobs, max_qpu_seconds),
            Timing(settle_s, poll_s, max_poll_s, deadline_s),
            _log_status,
            self._pause,
        )
        self._closing = threading.Event()
        self._isa = lru_cache(maxsize=16)(self._transpiled)

    OPTIONS: ClassVar[frozenset[str]] = frozenset(signature(__init__).parameters) - {"self", "name"}

    def run(
        self,
        spec: HeadSpec,
        weights: NDArray[Any],
        angles: NDArray[Any],
        *,
        stream: int = 0,
        observables: tuple[ZString, ...] | None = None,
    ) -> Evaluation:
        """See :meth:`hqtl_common.backends.base.Backend.run`.

        Raises:
            BudgetExceededError: A limit would be passed; nothing was submitted, and the same call can be made again later.
            JobFailedError: A job ended without a result.
        """
        started = time.perf_counter()
        weights64, angles64 = check_table(spec, weights, angles)
        wanted = check_observables(spec, observables)
        per_row = np.broadcast_to(weights64, (len(angles64), *spec.weights_shape))
        rows = self._rows_of_a_job()
        entries = [
            self._run_part(spec, per_row[start : start + rows], angles64[start : start + rows], stream)
            for start in range(0, len(angles64), rows)
        ]
        answers = [self._answer(entry, spec.num_qubits, wanted) for entry in entries] or [
            estimate(np.zeros((0, 2**spec.num_qubits)), spec.num_qubits, wanted)
        ]
        expvals, covs = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return Evaluation(expvals, covs, self._record(entries, spec.num_qubits, len(angles64), time.perf_counter() - started))

    def close(self) -> None:
        """End the waiting of every thread that runs something here, and close the session or batch, if one was opened."""
        self._closing.set()
        self._provider.close()

    def _pause(self, seconds: float) -> None:
        if self._closing.wait(seconds):
            raise BackendUnavailableError(f"{self.name} was closed while it waited; the same call goes on waiting for what is submitted")

    def _run_part(self, spec: HeadSpec, weights: F64, angles: F64, stream: int) -> Entry:
        active = {name: value for name, value in self._mitigation.options.items() if value is not None}
        options = {**self._options, **active, "shots": self.shots, "seed": self.seed}
        key = request_key(self._executor.scope, self.name, options, spec, weights, angles, stream)
        payload = Payload(tuple(self._pubs(spec, weights, angles)))
        executions = self._mitigation.executions(len(angles), self.shots)
        seconds = estimated_qpu_seconds(1, executions, _DEPTH * max(self._mitigation.factors))
        return self._executor.run(Request(key, len(angles), self.shots, seconds, payload, lambda: self._facts(spec, payload)))

    def _pubs(self, spec: HeadSpec, weights: F64, angles: F64) -> Iterator[Pub]:
        table = bindings(spec, weights, angles)
        for factor in self._mitigation.factors:
            yield Pub(partial(self._folded, spec, factor), table, len(angles), self.shots)
        if self._mitigation.calibration_shots is not None:
            yield Pub(partial(self._calibrating, spec), calibration_parameters(), _STATES, self._mitigation.calibration_shots)

    def _folded(self, spec: HeadSpec, factor: int) -> QuantumCircuit:
        return folded(self._isa(spec).circuit, factor)

    def _calibrating(self, spec: HeadSpec) -> QuantumCircuit:
        return calibration_circuit(spec.num_qubits, self._provider.target, measured_qubits(self._isa(spec).circuit))

    def _rows_of_a_job(self) -> int:
        """As many as the platform's limit allows."""
        return (MAX_EXECUTIONS - self._mitigation.calibration_executions) // (self.shots * len(self._mitigation.factors))

    def _answer(self, entry: Entry, num_qubits: int, wanted: tuple[ZString, ...]) -> tuple[F64, F64]:
        """Of one job from its counts: R rows of every factor, then the calibration."""
        assert entry.counts is not None
        tables = entry.counts[: entry.num_rows * len(self._mitigation.factors)].reshape(-1, entry.num_rows, 2**num_qubits)
        expvals, covs = mitigated(
            [estimate(counts, num_qubits, self._mitigation.reads(wanted)) for counts in tables],
            self._mitigation,
            self._calibration([entry], num_qubits),
            wanted,
        )
        assert covs is not None
        return expvals, covs

    def _calibration(self, entries: list[Entry], num_qubits: int) -> Calibration | None:
        """From the calibration of all these jobs together."""
        counts = [entry.counts[-_STATES:] for entry in entries if entry.counts is not None]
        return Calibration(*estimate(np.sum(counts, axis=0), num_qubits)) if self._mitigation.readout and counts else None

    def _facts(self, spec: HeadSpec, payload: Payload) -> dict[str, Any]:
        isa = self._isa(spec)
        return {
            "pubs": [[pub.num_rows, pub.shots] for pub in payload.pubs],
            "executions": sum(pub.num_rows * pub.shots for pub in payload.pubs),
            "layout": list(isa.layout),
            "depth": isa.circuit.depth(),
            "two_qubit_gates": isa.circuit.num_nonlocal_gates(),
            "calibration": self._provider.calibration,
            "machine": self._provider.machine,
        }

    def _transpiled(self, spec: HeadSpec) -> _Isa:
        level, seed, layout = self._transpile
        passes = generate_preset_pass_manager(level, target=self._provider.target, seed_transpiler=seed, initial_layout=layout)
        try:
            circuit = passes.run(qiskit_circuit(spec, measure=True))
        except TranspilerError as error:
            raise CapabilityError(f"the head does not fit on {self._provider.machine!r}: {error}") from error
        return _Isa(circuit, tuple(circuit.layout.initial_index_layout(filter_ancillas=True)))

    def _record(self, entries: list[Entry], num_qubits: int, num_rows: int, seconds: float) -> ExecutionRecord:
        facts = entries[-1].details if entries else {}
        return ExecutionRecord(
            backend_requested=self.name,
            backend_used=f"ibm:{facts.get('machine', self._provider.machine)}",
            shots=self.shots,
            seed=self.seed,
            num_rows=num_rows,
            num_jobs=len(entries),
            reason="the least busy machine was asked for" if self.name == "ibm:least_busy" else None,
            job_ids=tuple(entry.job_id for entry in entries if entry.job_id is not None),
            options=self._options | self._mitigation.report(num_rows, self.shots, self._calibration(entries, num_qubits), len(entries)),
            layout=tuple(facts["layout"]) if "layout" in facts else None,
            depth=facts.get("depth"),
            two_qubit_gates=facts.get("two_qubit_gates"),
            calibration=facts.get("calibration"),
            versions={"qiskit": qiskit.__version__, **self._provider.versions},
            qpu_seconds=sum(entry.qpu_seconds for entry in entries),
            wall_seconds=seconds,
        )


def _check_numbers(**values: Any) -> None:
    for name, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9):
            raise ConfigError(f"{name} must be a number from 0 on; got {value!r}")


def _log_status(job_id: str, status: JobStatus) -> None:
    logger.info("job %s is %s%s", job_id, status.state, f": {status.reason}" if status.reason else "")
