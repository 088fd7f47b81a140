"""Queues and calibrations of machines in ``GET /v1/backends``: from the platform, kept a while, and never in anybody's way."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from hqtl_common import ModelBundle
from hqtl_common.backends.ibm import MachineState
from hqtl_common.errors import BackendUnavailableError
from serving import machines as module
from serving.machines import Machines, Provider, open_machine
from tests.asgi import Client
from tests.ibm_emulator.conftest import Running
from tests.ibm_emulator.test_service_jobs import MACHINE, WAITING, Service, submit, wait_for
from training.emulator import Fault


def entry_of(client: Client, name: str = MACHINE) -> dict[str, Any]:
    answer = client.get("/v1/backends")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = next(one for one in answer.json()["backends"] if one["name"] == name)
    return found


def known(client: Client) -> dict[str, Any]:
    wait_for(lambda: entry_of(client)["checked"] is not None)
    return entry_of(client)


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FRESH_S", 0.0)


@pytest.mark.usefixtures("no_memory")
def test_the_queue_is_the_platforms(bundle: ModelBundle, tmp_path: Path, running: Running) -> None:
    service = Service(bundle, tmp_path)
    try:
        with running(**WAITING) as emulator, service.running() as connect:
            client = connect()
            empty = known(client)
            assert (empty["queue"], empty["operational"], empty["unknown_because"]) == (0, True, None)
            assert empty["price_class"] == "paid"
            assert empty["allowed"] is True
            assert empty["calibration"].startswith("2021-03")  # of the snapshot of ibmq_lima
            assert empty["calibration_age_days"] > 1000
            for number in range(2):
                submit(client, key=f"order-{number}")
            wait_for(lambda: emulator.stats()["jobs_accepted"] == 2)
            wait_for(lambda: entry_of(client)["queue"] == 2)
            free = entry_of(client, "statevector")
            assert (free["queue"], free["checked"], free["unknown_because"]) == (None, None, None)
            emulator.faults.add(Fault(kind="error", status=503, routes=("backends.status",), count=None))
            wait_for(lambda: entry_of(client)["queue"] is None)
            assert "ibm_lima" in entry_of(client)["unknown_because"]
    finally:
        service.predictor.close()


class Machine:
    def __init__(self, gate: threading.Event | None = None, error: Exception | None = None) -> None:
        self.asked, self.gate, self.error = 0, gate, error

    def state(self) -> MachineState:
        self.asked += 1
        if self.gate is not None:
            assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        return MachineState(queue=self.asked, is_operational=False, calibration=None)


def run(machines: Machines, *names: str) -> list[dict[str, Any]]:
    return asyncio.run(machines.describe([{"name": name, "paid": True, "calibration": None} for name in names]))


def test_a_platform_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOMENT_S", 0.05)
    gate = threading.Event()
    silent, quick = Machine(gate), Machine()
    machines = Machines(lambda name: silent if name == "ibm:silent" else quick)
    for _ in range(5):
        waiting, answered = run(machines, "ibm:silent", "ibm:quick")
        assert (waiting["queue"], waiting["operational"], waiting["checked"]) == (None, None, None)
        assert "is being asked" in waiting["unknown_because"]
    wait_for(lambda: run(machines, "ibm:quick")[0]["checked"] is not None)
    (answered,) = run(machines, "ibm:quick")
    assert (answered["queue"], answered["operational"], answered["unknown_because"]) == (1, False, None)
    assert (silent.asked, quick.asked) == (1, 1), "what is fresh, or on its way, is not asked again"
    gate.set()
    wait_for(lambda: run(machines, "ibm:silent")[0]["queue"] == 1)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize(
    ("error", "words"),
    [(BackendUnavailableError("the line is dead"), "the line is dead"), (KeyError("x"), "the log of the service says why")],
)
def test_what_goes_wrong_is_the_reason_and_it_logs_in_again(error: Exception, words: str) -> None:
    made: list[Machine] = []

    def open_one(_: str) -> Provider:
        made.append(Machine(error=error if not made else None))
        return made[-1]

    machines = Machines(open_one)
    seen: list[dict[str, Any]] = []

    def again() -> bool:
        seen.extend(run(machines, "ibm:x"))
        return seen[-1]["queue"] is not None

    wait_for(again)
    assert any(words in (one["unknown_because"] or "") for one in seen)
    assert len(made) == 2


def test_without_an_account_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("QISKIT_IBM_TOKEN", "QISKIT_IBM_INSTANCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("hqtl_common.backends.ibm_account._ACCOUNT_FILE", Path("/nowhere/qiskit-ibm.json"))
    machines = Machines(open_machine)
    wait_for(lambda: run(machines, "ibm:ibm_fez")[0]["checked"] is not None)
    (found,) = run(machines, "ibm:ibm_fez")
    assert "no IBM account" in found["unknown_because"]
