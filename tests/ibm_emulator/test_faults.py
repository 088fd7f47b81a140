"""Every fault, as the real client sees it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import requests
from pydantic import ValidationError
from qiskit.providers.exceptions import QiskitBackendNotFoundError
from qiskit_ibm_runtime import QiskitRuntimeService
from qiskit_ibm_runtime.api.exceptions import RequestsApiError
from qiskit_ibm_runtime.exceptions import (
    IBMNotAuthorizedError,
    IBMRuntimeError,
    RuntimeJobFailureError,
    RuntimeJobMaxTimeoutError,
    RuntimeJobTimeoutError,
)

from tests.ibm_emulator.conftest import Running, end_waiting, submit, without_retries
from training.emulator import ROUTE_NAMES, Emulator, Fault, FaultSchedule
from training.emulator.routes import ROUTES
from training.emulator.server import DOMAIN

TIMEOUT_S = 60


def counts(emulator: Emulator) -> tuple[int, int]:
    """Submits received and jobs accepted."""
    stats = emulator.stats()
    return stats["submits_received"], stats["jobs_accepted"]


def direct(emulator: Emulator) -> QiskitRuntimeService:
    """A service whose runtime is not behind the proxy."""
    return QiskitRuntimeService(url_resolver=lambda *_: f"{emulator.address}/api/v1")


def test_the_client_repeats_a_dropped_read(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="drop"))
    assert backend.status().operational
    assert [fault["fired"] for fault in emulator.faults.state()] == [1]


@pytest.mark.parametrize(("kind", "accepted"), [("drop", 0), ("drop_after", 1)])
def test_a_dropped_submit_is_not_repeated(emulator: Emulator, kind: Any, accepted: int) -> None:
    service = direct(emulator)
    emulator.faults.add(Fault(kind=kind, routes=("jobs.submit",)))
    with pytest.raises(IBMRuntimeError, match="Connection aborted"):
        submit(service.backend("ibm_lima"), tags=("lost",))
    assert counts(emulator) == (1, accepted)
    assert len(service.jobs(job_tags=["lost"])) == accepted


def test_behind_a_proxy_urllib3_repeats_a_dropped_submit(emulator: Emulator, backend: Any) -> None:
    # http.client closes the connection, and urllib3 then takes the proxy for never reached.
    emulator.faults.add(Fault(kind="drop_after"))
    submit(backend).result()
    assert counts(emulator) == (2, 2)


@pytest.mark.parametrize(("kind", "status", "accepted"), [("error", 500, 1), ("error", 503, 1), ("error_after", 504, 2)])
def test_the_client_repeats_a_submit_after_5xx_by_itself(emulator: Emulator, backend: Any, kind: Any, status: int, accepted: int) -> None:
    emulator.faults.add(Fault(kind=kind, status=status, routes=("jobs.submit",)))
    submit(backend).result()
    assert counts(emulator) == (2, accepted)


@pytest.mark.parametrize(("kind", "accepted"), [("error", 0), ("error_after", 1), ("drop", 0), ("drop_after", 1)])
def test_without_retries_a_submit_is_one_request(
    emulator: Emulator, backend: Any, service: QiskitRuntimeService, kind: Any, accepted: int
) -> None:
    without_retries(service)
    emulator.faults.add(Fault(kind=kind, routes=("jobs.submit",)))
    with pytest.raises(IBMRuntimeError, match=r"500|504|RemoteDisconnected"):
        submit(backend, tags=("once",))
    assert counts(emulator) == (1, accepted)
    assert len(service.jobs(job_tags=["once"])) == accepted


def test_too_many_submits_are_refused_and_reads_wait(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="rate_limit", seconds=1), Fault(kind="rate_limit", seconds=1, routes=("backends.status",), after=1))
    with pytest.raises(IBMRuntimeError, match=r"429.*1202"):
        submit(backend)
    started = time.monotonic()
    assert backend.status().operational
    assert time.monotonic() - started >= 1


def test_the_limit_of_submits_a_minute(running: Running) -> None:
    with running(submits_per_minute=2, time_factor=100.0) as emulator:  # a minute lasts longer than any test
        backend = QiskitRuntimeService().backend("ibm_lima")
        for seed in range(2):
            submit(backend, seed=seed)
        with pytest.raises(IBMRuntimeError, match="the limit is 2 per minute"):
            submit(backend, seed=2)
        assert emulator.stats()["submits_received"] == 3


def test_the_limit_of_submits_ends_with_the_minute(running: Running) -> None:
    with running(submits_per_minute=1, time_factor=0.01) as emulator:  # a minute lasts 0.6 s
        backend = QiskitRuntimeService().backend("ibm_lima")
        submit(backend, seed=0)
        time.sleep(0.6)
        submit(backend, seed=1).result()
        assert counts(emulator) == (2, 2)


def test_an_expired_token(emulator: Emulator, backend: Any, service: QiskitRuntimeService) -> None:
    emulator.faults.add(Fault(kind="expired_token", routes=("jobs.submit",)))
    with pytest.raises(IBMNotAuthorizedError, match="1201"):
        submit(backend)
    submit(backend).result()


def test_tokens_that_expire_are_renewed_by_the_client(emulator: Emulator, backend: Any, tokens_age: Callable[[float], None]) -> None:
    before = emulator.stats()["requests"]["iam.token"]
    token = backend._api_client._session.auth.get_headers()
    url = f"{emulator.address}/api/v1/backends"
    assert requests.get(url, headers=token, timeout=TIMEOUT_S).status_code == 200
    tokens_age(3601)
    backend.status()
    assert emulator.stats()["requests"]["iam.token"] > before
    for refused in (token, {"Authorization": "Bearer a.b.c"}, {"Authorization": "apikey emulated-api-key"}):
        assert requests.get(url, headers=refused, timeout=TIMEOUT_S).status_code == 401


def test_a_new_job_may_be_in_no_listing_yet(emulator: Emulator, backend: Any, service: QiskitRuntimeService) -> None:
    emulator.faults.add(Fault(kind="listing_lag", seconds=1e5))
    job = submit(backend, tags=("late",))
    assert service.jobs(job_tags=["late"]) == []
    assert service.job(job.job_id()).job_id() == job.job_id()
    end_waiting(emulator)
    assert len(service.jobs(job_tags=["late"])) == 1


def test_half_a_result_is_a_string(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="truncate"))
    job = submit(backend)
    assert isinstance(job.result(), str)
    assert job.result()[0].data.meas.num_shots == 32


def test_a_result_that_breaks_off(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="cut_body"))
    job = submit(backend)
    with pytest.raises(RequestsApiError, match="IncompleteRead"):
        job.result()
    assert job.result()[0].data.meas.num_shots == 32


@pytest.mark.parametrize(("missing", "shapes"), [("rows", [(1, 32, 1)]), ("shots", [(2, 31, 1)]), ("pubs", []), ("register", [None])])
def test_a_result_of_another_shape(emulator: Emulator, backend: Any, missing: str, shapes: list[Any]) -> None:
    emulator.faults.add(Fault(kind="wrong_shape", detail=missing))
    result = submit(backend).result()
    assert [pub.data.meas.array.shape if "meas" in pub.data else None for pub in result] == shapes


def test_an_unknown_status_is_passed_on_and_waited_for_without_end(emulator: Emulator, backend: Any) -> None:
    job = submit(backend)
    job.wait_for_final_state()
    emulator.faults.add(Fault(kind="unknown_status", count=None, detail="Validating"))
    again = QiskitRuntimeService().job(job.job_id())
    assert again.status() == "VALIDATING"
    with pytest.raises(RuntimeJobTimeoutError):
        again.result(timeout=0.3)
    emulator.faults.clear()
    assert again.status() == "DONE"


def test_maintenance(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="maintenance", count=None))
    assert (backend.status().operational, backend.status().status_msg) == (False, "maintenance")
    with pytest.raises(QiskitBackendNotFoundError):
        QiskitRuntimeService().least_busy()


def test_a_calibration_between_jobs(emulator: Emulator, backend: Any) -> None:
    old, error = backend.properties().last_update_date, backend.properties().gate_error("cx", [0, 1])
    emulator.faults.add(Fault(kind="calibration", factor=1.5))
    submit(backend)
    assert backend.properties().last_update_date == old
    assert backend.properties(refresh=True).last_update_date == old + timedelta(days=1)
    assert backend.properties().gate_error("cx", [0, 1]) == pytest.approx(1.5 * error)


def test_a_job_cancelled_for_running_too_long(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="ran_too_long"), Fault(kind="ran_too_long", detail="status", after=1))
    with pytest.raises(RuntimeJobMaxTimeoutError):
        submit(backend).result()
    job = submit(backend)
    with pytest.raises(RuntimeJobTimeoutError):  # the client takes this older spelling for a state that passes
        job.result(timeout=0.5)
    assert job.status() == "CANCELLED - RAN TOO LONG"
    assert emulator.stats()["jobs_executed"] == 2


def test_a_job_that_fails(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="fail", detail="Broken."))
    with pytest.raises(RuntimeJobFailureError, match="Broken"):
        submit(backend).result()
    assert emulator.stats()["jobs_executed"] == 0


def test_a_slow_answer(emulator: Emulator, backend: Any) -> None:
    emulator.faults.add(Fault(kind="slow", seconds=0.3, routes=("backends.status",)))
    started = time.monotonic()
    backend.status()
    assert time.monotonic() - started >= 0.3


def test_a_client_that_dies_while_sending_submits_nothing(emulator: Emulator) -> None:
    port = int(emulator.address.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = f"POST http://quantum.{DOMAIN}/api/v1/jobs HTTP/1.1\r\nHost: quantum.{DOMAIN}\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode() + b'{"program_id": "sampler"')
    time.sleep(0.1)
    assert counts(emulator) == (0, 0)


def test_faults_and_statistics_over_http(emulator: Emulator, backend: Any) -> None:
    url = f"{emulator.address}/_emulator"
    added = requests.post(f"{url}/faults", json=[{"kind": "error", "routes": ["backends.status"], "status": 500}], timeout=TIMEOUT_S)
    assert added.json()[0]["kind"] == "error"
    backend.status()
    assert requests.get(f"{url}/faults", timeout=TIMEOUT_S).json()[0]["fired"] == 1
    stats = requests.get(f"{url}/stats", timeout=TIMEOUT_S).json()
    assert stats["requests"]["backends.status"] == 2
    assert stats["statuses"]["backends.status 500"] == 1
    assert requests.delete(f"{url}/faults", timeout=TIMEOUT_S).json() == []
    for body in ('[{"kind": "explode"}]', '[{"kind": "drop", "unknown": 1}]', "{"):
        assert requests.post(f"{url}/faults", data=body, timeout=TIMEOUT_S).status_code == 400
    assert requests.get(f"{url}/nothing", timeout=TIMEOUT_S).status_code == 404


def test_the_admin_routes_answer_only_to_loopback_names(emulator: Emulator) -> None:
    assert requests.get(f"{emulator.address}/_emulator/stats", headers={"Host": "example.org"}, timeout=TIMEOUT_S).status_code == 403
    assert requests.get(f"http://quantum.{DOMAIN}/_emulator/stats", timeout=TIMEOUT_S).status_code == 404


def test_an_unknown_route_is_refused_in_the_platform_s_form_and_counted(emulator: Emulator) -> None:
    answer = requests.get(f"http://quantum.{DOMAIN}/api/v1/qubits?token=hidden", timeout=TIMEOUT_S)
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["message"] == "There is no GET /api/v1/qubits."
    assert emulator.stats()["unknown"] == {"GET /api/v1/qubits": 1}
    bad = requests.post(f"http://quantum.{DOMAIN}/api/v1/jobs", data="[", timeout=TIMEOUT_S)
    assert bad.status_code == 401


def test_chances_are_seeded() -> None:
    def fired(seed: int) -> list[bool]:
        schedule = FaultSchedule(seed)
        schedule.add(Fault(kind="drop", probability=0.3, count=None))
        return ["drop" in schedule.draw("jobs.get") for _ in range(200)]

    assert fired(0) == fired(0) != fired(1)
    assert 30 < sum(fired(0)) < 90


def test_a_schedule_counts_what_it_lets_pass() -> None:
    schedule = FaultSchedule()
    schedule.add(Fault(kind="slow", routes=("jobs.*",), after=1, count=2, seconds=1))
    drawn = [bool(schedule.draw(route)) for route in ("jobs.get", "usage.get", "jobs.list", "jobs.get", "jobs.get")]
    assert drawn == [False, False, True, True, False]
    assert json.loads(json.dumps(schedule.state()))[0]["fired"] == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"kind": "error", "status": 200}, "greater than or equal to 400"),
        ({"kind": "drop", "routes": ["jobs.sumbit"]}, "no route is called 'jobs.sumbit'"),
        ({"kind": "wrong_shape", "detail": "row"}, "is one of"),
        ({"kind": "drop", "probability": 2}, "less than or equal to 1"),
    ],
)
def test_a_fault_that_cannot_happen_is_refused(fault: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Fault.model_validate(fault)


def test_the_routes_have_the_names_that_faults_use() -> None:
    assert {route.name for route in ROUTES} == set(ROUTE_NAMES)
