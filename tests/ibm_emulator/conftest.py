"""The real client of IBM, turned to an emulator, in a process that cannot reach anything but loopback."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import requests
from ibm_cloud_sdk_core.token_managers.token_manager import TokenManager
from numpy.typing import NDArray
from qiskit import QuantumCircuit
from qiskit.transpiler import generate_preset_pass_manager
from qiskit_ibm_runtime import QiskitRuntimeService, SamplerV2
from qiskit_ibm_runtime.api import auth

from hqtl_common import HeadSpec
from hqtl_common.circuit import qiskit_circuit
from training.emulator import Emulator, EmulatorOptions, emulated_environment, start
from training.emulator import tokens as issuers

# What the pinned client itself warns of.
CLIENT_WARNINGS = (
    "ignore:The RuntimeOptions class is deprecated:DeprecationWarning",
    "ignore:Since backends now support running jobs:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "ibm_emulator":
            for text in CLIENT_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(text))


@pytest.fixture(autouse=True)
def trip_wire(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Fails on any connection that leaves the machine; the addresses connected to."""
    seen: set[str] = set()
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            seen.add(address[0])
            assert ipaddress.ip_address(address[0]).is_loopback, f"a connection to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    return seen


Running = Callable[..., AbstractContextManager[Emulator]]


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Running:
    """``with running(plan=..., **options) as emulator``: an emulator that this process takes for the platform."""

    @contextmanager
    def run(plan: str = "pay-as-you-go", **options: Any) -> Iterator[Emulator]:
        with start(EmulatorOptions(**{"backends": ("ibm_lima",), **options})) as emulator:
            redirect(monkeypatch, emulator, plan)
            try:
                yield emulator
            finally:
                emulator.faults.clear()
                for thread in threading.enumerate():
                    if thread.name.startswith("machine-"):  # of a service; it would ask whatever platform comes next
                        thread.join(60)

    return run


@pytest.fixture
def emulator(running: Running) -> Iterator[Emulator]:
    with running() as emulator:
        yield emulator


@pytest.fixture
def service(emulator: Emulator) -> QiskitRuntimeService:
    return QiskitRuntimeService()


@pytest.fixture
def backend(service: QiskitRuntimeService) -> Any:
    return service.backend("ibm_lima")


def redirect(monkeypatch: pytest.MonkeyPatch, emulator: Emulator, plan: str = "pay-as-you-go") -> None:
    """All that a process needs: the variables, and the token exchange whose address the client has fixed."""
    environment = emulated_environment(emulator, plan=plan)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("USAGE_DATA_OPT_OUT", "True")  # without it the client walks the stack for every request
    manager = auth.IAMTokenManager if not hasattr(auth.IAMTokenManager, "original") else auth.IAMTokenManager.original

    def redirected(api_key: str, *, url: str, **options: Any) -> Any:
        return manager(api_key, url=environment["HQTL_IBM_IAM_URL"], **options)

    redirected.original = manager  # type: ignore[attr-defined]
    monkeypatch.setattr(auth, "IAMTokenManager", redirected)


def end_waiting(emulator: Emulator) -> None:
    """The queue, and the time in which a job is in no listing, are over."""
    book = emulator._server.application.platform.book
    for job in book.select(lambda job: True):
        job.ready_at = job.hidden_until = 0.0
        book.add(job)  # wakes the machine up


@pytest.fixture
def tokens_age(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``tokens_age(seconds)``: for the platform and for the client it is so much later, as far as tokens are concerned."""
    ahead = 0.0

    def age(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(issuers, "time", SimpleNamespace(time=lambda: time.time() + ahead))
    monkeypatch.setattr(TokenManager, "_get_current_time", staticmethod(lambda: int(time.time() + ahead)))
    return age


def isa_head(backend: Any) -> QuantumCircuit:
    """The head of the paper on a machine."""
    circuit = qiskit_circuit(HeadSpec(), measure=True)
    return generate_preset_pass_manager(1, backend=backend, seed_transpiler=1).run(circuit)


def values(rows: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(-2, 2, (rows, 8))


def submit(backend: Any, rows: int = 2, *, shots: int = 32, seed: int = 0, tags: tuple[str, ...] = (), **options: Any) -> Any:
    """One small job."""
    sampler = SamplerV2(mode=backend, options={"environment": {"job_tags": list(tags)}, **options})
    return sampler.run([(isa_head(sampler.backend()), values(rows, seed))], shots=shots)


def without_retries(service: QiskitRuntimeService) -> None:
    """One POST per submit, as a caller must have it who pays."""
    for client in (service._active_api_client, *service._api_clients.values()):
        client._session.mount("http://", requests.adapters.HTTPAdapter(max_retries=0))
