"""Machines and jobs of IBM's platform, through its own client; see :mod:`hqtl_common.backends.ibm_account` for the login."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import qiskit_ibm_runtime
from ibm_cloud_sdk_core import ApiException
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.primitives import BitArray
from qiskit.providers.exceptions import QiskitBackendNotFoundError
from qiskit.transpiler import Target
from qiskit_ibm_runtime import Batch, QiskitRuntimeService, SamplerV2, Session
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from requests.exceptions import RequestException

from hqtl_common.backends.ibm_account import TIMEOUTS_S, open_service, without_secrets
from hqtl_common.backends.recorded import JobStatus, Request, UncertainSubmitError
from hqtl_common.backends.sampler import counts_of
from hqtl_common.errors import BackendAuthError, BackendError, BackendUnavailableError, ConfigError, HqtlError, UnknownBackendError

__all__ = ["IBMProvider", "MachineState", "Payload", "Pub", "open_provider"]

_MODES = ("job", "batch", "session")
_SEQUENCES = (None, "XX", "XpXm", "XY4")
_STATES = {"INITIALIZING": "queued", "QUEUED": "queued", "RUNNING": "running", "DONE": "done", "ERROR": "failed"}


@dataclass(frozen=True, slots=True)
class Pub:
    """One circuit with its parameter sets.

    Args:
        circuit: Gives the ISA circuit; called only when the job is really submitted.
        parameters: Values by parameter name, as a PUB takes them.
        num_rows: Parameter sets.
        shots: Repetitions per parameter set.
    """

    circuit: Callable[[], QuantumCircuit]
    parameters: dict[Any, NDArray[np.float64]]
    num_rows: int
    shots: int


@dataclass(frozen=True, slots=True)
class Payload:
    """One job: its PUBs, whose circuits measure equally many qubits into ``meas``."""

    pubs: tuple[Pub, ...]


@dataclass(frozen=True, slots=True)
class MachineState:
    """How a machine is now.

    Args:
        queue: Jobs that wait for it.
        is_operational: Whether it takes jobs.
        calibration: Date of its last calibration (ISO 8601), None where it does not say.
    """

    queue: int
    is_operational: bool
    calibration: str | None


class IBMProvider:
    """Jobs of one account on one machine; see :class:`hqtl_common.backends.recorded.Provider`.

    Args:
        name: The backend's name, ``ibm:…``.
        service: The account.
        backend: The machine.
        mode: ``job``, ``batch`` or ``session``.
        options: SamplerV2's options by IBM's names.
        secrets: Texts that must not appear in a message.
    """

    def __init__(
        self, name: str, service: QiskitRuntimeService, backend: Any, mode: str, options: dict[str, Any], secrets: tuple[str, ...]
    ) -> None:
        self.name = name
        self._service, self._backend, self._mode, self._options, self._secrets = service, backend, mode, options, secrets
        self._execution: Session | Batch | None = None
        self._jobs: dict[str, Any] = {}

    @property
    def machine(self) -> str:
        """IBM's name of the machine."""
        return str(self._backend.name)

    @property
    def target(self) -> Target:
        """What to transpile to."""
        return self._asked("the gates", lambda: self._backend.target)

    @property
    def calibration(self) -> str | None:
        """Date of the machine's last calibration (ISO 8601)."""
        properties = self._asked("the calibration", lambda: self._backend.properties())
        return None if properties is None else properties.last_update_date.isoformat()

    def state(self) -> MachineState:
        """Queue and calibration, asked anew.

        Raises:
            BackendUnavailableError: The platform does not answer.
        """
        status = self._asked("the queue", self._backend.status)
        properties = self._asked("the calibration", lambda: self._backend.properties(refresh=True))
        return MachineState(
            queue=int(status.pending_jobs),
            is_operational=bool(status.operational),
            calibration=None if properties is None else properties.last_update_date.isoformat(),
        )

    @property
    def versions(self) -> dict[str, str]:
        """Version of the client."""
        return {"qiskit-ibm-runtime": qiskit_ibm_runtime.__version__}

    def submit(self, payload: Payload, tag: str) -> str:
        """See the protocol. The POST is sent once: the client's own repetitions could pay twice."""
        pubs = [(pub.circuit(), pub.parameters, pub.shots) for pub in payload.pubs]
        try:
            sampler = SamplerV2(mode=self._mode_object(), options={**self._options, "environment": {"job_tags": [tag]}})
            job = sampler.run(pubs)
        except Exception as error:  # the client raises its own kinds, requests' and urllib3's
            raise self._refusal(error) from None
        self._jobs[job.job_id()] = job
        return str(job.job_id())

    def find(self, tag: str) -> str | None:
        """See the protocol."""
        try:
            jobs = self._service.jobs(job_tags=[tag], limit=10, skip=0)
        except Exception as error:
            self._renew_token(error)
            raise BackendUnavailableError(f"the jobs of the account cannot be listed: {self._text(error)}") from None
        return next((str(job.job_id()) for job in jobs if tag in (job.tags or ())), None)

    def status(self, job_id: str) -> JobStatus:
        """See the protocol. Whatever is not a known state counts as unknown, and everything cancelled as failed."""
        try:
            job = self._job(job_id)
            state = str(job.status())
        except Exception as error:
            self._renew_token(error)
            if _status_code(error) == 404:
                return JobStatus("failed", "the platform knows no such job; it may have been deleted")
            return JobStatus("unknown", self._text(error))
        if state.upper().startswith("CANCELLED"):
            return JobStatus("failed", self._text(f"cancelled: {job.error_message() or 'no reason was given'}"))
        known = _STATES.get(state.upper(), "unknown")
        return JobStatus(known, self._text(job.error_message() or state) if known == "failed" else state)  # type: ignore[arg-type]

    def fetch(self, job_id: str, request: Request) -> tuple[NDArray[np.int64], float, dict[str, Any]]:
        """See the protocol; every PUB that came is checked against what was asked. Counts of all PUBs stand below each other."""
        try:
            job = self._job(job_id)
            found = [pub.data.meas for pub in job.result(timeout=TIMEOUTS_S[1])]
            metrics = job.metrics()
        except Exception as error:
            self._renew_token(error)
            raise BackendUnavailableError(f"the result of job {job_id} cannot be read: {self._text(error)}") from None
        pubs: tuple[Pub, ...] = request.payload.pubs
        if len(found) != len(pubs) or not all(_fits(bits, pub) for bits, pub in zip(found, pubs, strict=True)):
            asked = ", ".join(f"{pub.num_rows} sets of {pub.shots} shots" for pub in pubs)
            raise BackendUnavailableError(f"the result of job {job_id} is not what was asked for: expected {asked}")
        usage = (metrics or {}).get("usage", {})
        seconds = next((usage[name] for name in ("quantum_seconds", "seconds") if usage.get(name) is not None), request.qpu_seconds)
        return np.concatenate([counts_of(bits) for bits in found]), float(seconds), {}

    def cancel(self, job_id: str) -> None:
        """Cancel a job that has not finished.

        Raises:
            BackendUnavailableError: The platform did not take it.
        """
        try:
            self._job(job_id).cancel()
        except Exception as error:
            raise BackendUnavailableError(f"job {job_id} cannot be cancelled: {self._text(error)}") from None

    def close(self) -> None:
        """Close the session or batch; its jobs go on."""
        if self._execution is not None:
            with suppress(Exception):  # it ends by itself
                self._execution.close()

    def _mode_object(self) -> Any:
        if self._mode == "job":
            return self._backend
        if self._execution is None:
            self._execution = (Session if self._mode == "session" else Batch)(backend=self._backend)
        return self._execution

    def _job(self, job_id: str) -> Any:
        if job_id not in self._jobs:
            self._jobs[job_id] = self._service.job(job_id)
        return self._jobs[job_id]

    def _refusal(self, error: Exception) -> BackendError:
        code = _status_code(error)
        if code is None and not _is_of_the_network(error):
            return BackendError(f"the client refused the job for {self.machine}: {self._text(error)}")
        if code in (None, 401, 408, 429) or code >= 500:
            self._renew_token(error)
            return UncertainSubmitError(f"no answer to the submit: {self._text(error)}")
        if code == 403:
            return BackendAuthError(f"{self.machine}: the account may not do this (plan, instance or mode): {self._text(error)}")
        return BackendError(f"{self.machine} refused the job: {self._text(error)}")

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except Exception as error:
            self._renew_token(error)
            raise BackendUnavailableError(f"{what} of {self.machine} cannot be read: {self._text(error)}") from None

    def _renew_token(self, error: Exception) -> None:
        if _status_code(error) == 401:
            self._service._active_api_client._session.auth.renew()

    def _text(self, error: object) -> str:
        return without_secrets(str(error), self._secrets)


def open_provider(name: str, *, mode: str, dynamical_decoupling: str | None, twirling: bool, rep_delay: float | None) -> IBMProvider:
    """Log in and find the machine.

    Args:
        name: ``ibm:ibm_fez`` or ``ibm:least_busy``.
        mode: ``job``, ``batch`` or ``session``.
        dynamical_decoupling: Name of a sequence, None for none.
        twirling: Twirl gates and measurements.
        rep_delay: Seconds between executions, None for the machine's default.

    Raises:
        ConfigError: An option that IBM does not know.
        BackendAuthError: No account, or one that is refused.
        UnknownBackendError: The account has no such machine.
        BackendUnavailableError: The platform cannot be reached.
    """
    if mode not in _MODES or dynamical_decoupling not in _SEQUENCES:
        raise ConfigError(
            f"mode must be one of {', '.join(_MODES)} and dynamical_decoupling one of XX, XpXm, XY4; got {mode!r}, {dynamical_decoupling!r}"
        )
    options: dict[str, Any] = {"twirling": {"enable_gates": twirling, "enable_measure": twirling}}
    if dynamical_decoupling is not None:
        options["dynamical_decoupling"] = {"enable": True, "sequence_type": dynamical_decoupling}
    if rep_delay is not None:
        options["execution"] = {"rep_delay": rep_delay}
    service, secrets = open_service()
    wanted = name.partition(":")[2]
    try:
        backend = _machine(service, wanted)
    except HqtlError:
        raise
    except Exception as error:
        raise BackendUnavailableError(f"the machine {wanted!r} cannot be asked: {without_secrets(str(error), secrets)}") from None
    return IBMProvider(name, service, backend, mode, options, secrets)


def _machine(service: QiskitRuntimeService, wanted: str) -> Any:
    try:
        return service.least_busy(operational=True, simulator=False) if wanted == "least_busy" else service.backend(wanted)
    except QiskitBackendNotFoundError:
        known = ", ".join(sorted(found.name for found in service.backends())) or "none"
    raise UnknownBackendError(f"the account has no machine {wanted!r}; it has {known} (machines of the paper are retired)")


def _fits(bits: Any, pub: Pub) -> bool:
    return isinstance(bits, BitArray) and bits.shape == (pub.num_rows,) and bits.num_shots == pub.shots


def _is_of_the_network(error: BaseException | None) -> bool:
    """True if an answer may have got lost; errors of the client's own checks are certain."""
    while error is not None:
        if isinstance(error, RequestsApiError | RequestException | ApiException | OSError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _status_code(error: BaseException | None) -> Any:
    """The HTTP status behind an error of the client, None where no answer came."""
    while error is not None:
        code = getattr(error, "status_code", None)
        if isinstance(code, int) and code > 0:
            return code
        error = error.__cause__ or error.__context__
    return None
