"""``ibm:NAME`` through the real client: right values, one job a call, whole records, and no secret anywhere."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
import traceback
import urllib.parse
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hqtl_common import HeadSpec, get_backend
from hqtl_common.backends import hardware, ibm_account
from hqtl_common.backends.base import Backend
from hqtl_common.backends.costs import estimated_qpu_seconds
from hqtl_common.errors import (
    BackendAuthError,
    BackendError,
    BackendTimeoutError,
    BackendUnavailableError,
    BudgetExceededError,
    ConfigError,
    HqtlError,
    JobFailedError,
    UnknownBackendError,
)
from hqtl_common.ledger import Ledger
from tests.ibm_emulator.conftest import Running, end_waiting
from training.emulator import INSTANCES, Emulator, Fault

ROOT = Path(__file__).parents[2]
SPEC = HeadSpec()
RNG = np.random.default_rng(0)
WEIGHTS, ANGLES = RNG.uniform(-2, 2, (1, 4)), RNG.uniform(-1.5, 1.5, (6, 4))
QUICK = {"poll_s": 0.05, "max_poll_s": 0.5, "settle_s": 1.0, "optimization_level": 1}


def machine(path: Path, name: str = "ibm:ibm_lima", **options: Any) -> Backend:
    given = {"shots": 100, "seed": 1, "max_jobs": 9, "scope": "s", "ledger": path / "ledger.sqlite", **QUICK}
    return get_backend(name, **{**given, **options})


# ---------------------------------------------------------------- values and records


def test_values_are_those_of_the_snapshot(running: Running, tmp_path: Path) -> None:
    per_row = RNG.uniform(-2, 2, (6, 2, 4))
    with running(backends=("ibm_kolkata",)) as emulator:
        backend = machine(tmp_path, "ibm:ibm_kolkata", shots=4000, optimization_level=2)
        exact = get_backend("fake_kolkata", optimization_level=2)
        for spec, weights in ((SPEC, WEIGHTS), (HeadSpec(num_layers=2), per_row)):
            answer, expected = backend.run(spec, weights, ANGLES), exact.run(spec, weights, ANGLES)
            assert answer.record.layout == expected.record.layout
            assert answer.record.two_qubit_gates == expected.record.two_qubit_gates
            assert answer.expval_stds is not None
            assert np.abs((answer.expvals - expected.expvals) / answer.expval_stds).max() < 5
        stats = emulator.stats()
        assert (stats["submits_received"], stats["jobs_executed"]) == (2, 2)


def test_products_of_z_are_read_from_the_recorded_counts(emulator: Emulator, tmp_path: Path) -> None:
    """What is read does not change the request: a replay answers for other observables without a job."""
    backend, wanted = machine(tmp_path, mitigation="readout", calibration_shots=2000), ((0,), (1,), (0, 2), (0, 1, 3))
    singles = backend.run(SPEC, WEIGHTS, ANGLES)
    answer = backend.run(SPEC, WEIGHTS, ANGLES, observables=wanted)
    assert answer.record.job_ids == singles.record.job_ids
    assert emulator.stats()["submits_received"] == 1
    np.testing.assert_allclose(answer.expvals[:, :2], singles.expvals[:, :2], atol=1e-12)
    ideal = get_backend("statevector").run(SPEC, WEIGHTS, ANGLES, observables=wanted).expvals
    assert answer.expval_covs is not None
    assert answer.expval_covs.shape == (6, 4, 4)
    assert np.corrcoef(answer.expvals[:, 2:].ravel(), ideal[:, 2:].ravel())[0, 1] > 0.6
    assert backend.run(SPEC, WEIGHTS, ANGLES[:0], observables=wanted).expvals.shape == (0, 4)


def test_the_record_is_whole(emulator: Emulator, tmp_path: Path) -> None:
    record = machine(tmp_path, twirling=True, dynamical_decoupling="XY4", rep_delay=300e-6).run(SPEC, WEIGHTS, ANGLES).record
    (entry,) = Ledger(tmp_path / "ledger.sqlite").find()
    assert (record.backend_requested, record.backend_used, record.reason) == ("ibm:ibm_lima", "ibm:ibm_lima", None)
    assert (record.shots, record.seed, record.num_rows, record.num_jobs, record.job_ids) == (100, 1, 6, 1, (entry.job_id,))
    assert record.layout is not None
    assert len(set(record.layout)) == 4
    assert record.depth is not None
    assert record.two_qubit_gates is not None
    assert record.depth > record.two_qubit_gates >= 3
    assert record.calibration is not None
    assert record.calibration.startswith("2021-03-15")
    assert {"qiskit", "qiskit-ibm-runtime"} <= record.versions.keys()
    assert record.qpu_seconds == emulator.stats()["qpu_seconds"] == pytest.approx(estimated_qpu_seconds(1, 600), rel=0.2)
    assert record.wall_seconds > 0
    wanted = {"mode": "job", "optimization_level": 1, "seed_transpiler": 0, "initial_layout": None}
    wanted |= {"twirling": True, "dynamical_decoupling": "XY4", "rep_delay": 300e-6, "mitigation": None, "zne": None}
    assert wanted.items() <= record.options.items()


def test_an_empty_table_submits_nothing(emulator: Emulator, tmp_path: Path) -> None:
    answer = machine(tmp_path).run(SPEC, WEIGHTS, ANGLES[:0])
    assert (answer.expvals.shape, answer.record.num_jobs, answer.record.job_ids, answer.record.qpu_seconds) == ((0, 4), 0, (), 0)
    assert emulator.stats()["submits_received"] == 0


def test_one_pub_and_one_job_per_call_and_one_transpilation(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    original = hardware.generate_preset_pass_manager
    monkeypatch.setattr(hardware, "generate_preset_pass_manager", lambda *a, **o: made.append(a) or original(*a, **o))
    book = emulator._server.application.platform.book
    backend = machine(tmp_path)
    for stream in range(3):
        backend.run(SPEC, WEIGHTS, ANGLES, stream=stream)
    jobs = book.select(lambda job: True)
    assert (len(jobs), emulator.stats()["submits_received"], len(made)) == (3, 3, 1)
    entries = Ledger(tmp_path / "ledger.sqlite").find()
    assert sorted(tag for job in jobs for tag in job.tags) == sorted(entry.tag for entry in entries)
    assert all(entry.counts is not None and entry.counts.shape == (6, 16) for entry in entries)


def test_a_call_is_split_at_the_limit_and_says_so(running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "MAX_EXECUTIONS", 250)
    per_row = RNG.uniform(-2, 2, (5, 1, 4))
    with running(max_executions=250) as emulator:
        answer = machine(tmp_path).run(SPEC, per_row, ANGLES[:5])
        assert emulator.stats()["jobs_executed"] == answer.record.num_jobs == len(answer.record.job_ids) == 3
        assert [entry.num_rows for entry in Ledger(tmp_path / "ledger.sqlite").find()] == [2, 2, 1]
        again = machine(tmp_path).run(SPEC, per_row, ANGLES[:5])
        assert again.record.job_ids == answer.record.job_ids
    assert answer.expvals.shape == (5, 4)
    ideal = get_backend("statevector").run(SPEC, per_row, ANGLES[:5]).expvals
    assert np.abs(answer.expvals - ideal).max() < 0.75, "rows must not change places"
    assert np.corrcoef(answer.expvals.ravel(), ideal.ravel())[0, 1] > 0.9


# ---------------------------------------------------------------- what is paid


def test_a_replay_costs_nothing_and_another_question_does(emulator: Emulator, tmp_path: Path) -> None:
    first = machine(tmp_path, max_jobs=1).run(SPEC, WEIGHTS, ANGLES)
    again = machine(tmp_path, max_jobs=1).run(SPEC, WEIGHTS, ANGLES)
    assert first.expvals.tobytes() == again.expvals.tobytes()
    assert replace(first.record, wall_seconds=0) == replace(again.record, wall_seconds=0)
    assert emulator.stats()["submits_received"] == 1
    for change in ({"seed": 2}, {"scope": "t"}, {"shots": 50}, {"scope": None}, {"scope": None}):
        machine(tmp_path, **change).run(SPEC, WEIGHTS, ANGLES)
    machine(tmp_path).run(SPEC, WEIGHTS, ANGLES, stream=1)
    assert emulator.stats()["jobs_executed"] == 7


def test_budgets_stop_before_the_submit(emulator: Emulator, tmp_path: Path) -> None:
    backend = machine(tmp_path, max_jobs=2)
    for stream in range(2):
        backend.run(SPEC, WEIGHTS, ANGLES, stream=stream)
    with pytest.raises(BudgetExceededError, match="raise --max-jobs and resume"):
        backend.run(SPEC, WEIGHTS, ANGLES, stream=2)
    with pytest.raises(BudgetExceededError, match="raise --max-qpu-seconds and resume"):
        machine(tmp_path, max_jobs=None, max_qpu_seconds=5.0).run(SPEC, WEIGHTS, ANGLES, stream=2)
    assert emulator.stats()["submits_received"] == 2
    machine(tmp_path, max_jobs=3).run(SPEC, WEIGHTS, ANGLES, stream=2)


def test_a_failed_job_is_named(emulator: Emulator, tmp_path: Path) -> None:
    emulator.faults.add(Fault(kind="ran_too_long"))
    with pytest.raises(JobFailedError, match=r"Ran too long; running the command again submits it anew") as caught:
        machine(tmp_path).run(SPEC, WEIGHTS, ANGLES)
    (entry,) = Ledger(tmp_path / "ledger.sqlite").find()
    assert (entry.state, entry.job_id) == ("failed", caught.value.job_id)
    assert machine(tmp_path).run(SPEC, WEIGHTS, ANGLES).record.job_ids != (entry.job_id,)


def test_a_deadline_leaves_the_job_to_the_next_run(running: Running, tmp_path: Path) -> None:
    with running(queue_seconds=(1e5, 1e5), time_factor=1.0) as emulator:
        with pytest.raises(BackendTimeoutError, match="is queued"):
            machine(tmp_path, deadline_s=0.3).run(SPEC, WEIGHTS, ANGLES)
        end_waiting(emulator)
        machine(tmp_path).run(SPEC, WEIGHTS, ANGLES)
        assert emulator.stats()["submits_received"] == 1


def test_closing_ends_the_waiting_of_another_thread(running: Running, tmp_path: Path) -> None:
    with running(queue_seconds=(1e5, 1e5), time_factor=1.0) as emulator, ThreadPoolExecutor(1) as threads:
        backend = machine(tmp_path, poll_s=600.0, max_poll_s=600.0)
        waiting = threads.submit(backend.run, SPEC, WEIGHTS, ANGLES)
        while not Ledger(tmp_path / "ledger.sqlite").find(state="submitted"):
            assert not waiting.done()
            time.sleep(0.05)
        backend.close()
        with pytest.raises(BackendUnavailableError, match="ibm:ibm_lima was closed while it waited"):
            waiting.result(300)
        assert emulator.stats()["submits_received"] == 1


TWIN = """
import sys, time, numpy as np
from pathlib import Path
from hqtl_common import HeadSpec, get_backend
backend = get_backend("ibm:ibm_lima", shots=100, seed=1, max_jobs=1, scope="s", ledger=Path(sys.argv[1]), optimization_level=1,
                      poll_s=0.05, max_poll_s=0.3, settle_s=60.0)
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
answer = backend.run(HeadSpec(), np.full((1, 4), 0.3), np.full((2, 4), 0.1))
print(answer.expvals.tolist(), answer.record.job_ids)
"""


def test_two_processes_on_one_ledger_pay_once(running: Running, tmp_path: Path) -> None:
    with running(time_factor=0.1) as emulator:
        emulator.faults.add(Fault(kind="slow", seconds=0.7, routes=("jobs.submit",), count=None))
        command = [sys.executable, "-W", "ignore", "-c", TWIN, str(tmp_path / "ledger"), str(time.time() + 6)]
        twins = [subprocess.Popen(command, cwd=ROOT, env={**os.environ}, stdout=-1, stderr=-1, text=True) for _ in range(2)]
        answers = [twin.communicate(timeout=300) for twin in twins]
        assert [twin.returncode for twin in twins] == [0, 0], answers
        assert answers[0][0] == answers[1][0]
        assert emulator.stats()["submits_received"] == emulator.stats()["jobs_executed"] == 1
    assert len(Ledger(tmp_path / "ledger").find()) == 1


# ---------------------------------------------------------------- modes and machines


@pytest.mark.parametrize("mode", ["job", "batch", "session"])
def test_modes(mode: str, emulator: Emulator, tmp_path: Path) -> None:
    backend = machine(tmp_path, mode=mode)
    for stream in range(2):
        assert backend.run(SPEC, WEIGHTS, ANGLES, stream=stream).record.options["mode"] == mode
    backend.close()
    requests = emulator.stats()["requests"]
    assert requests.get("sessions.create", 0) == (mode != "job")
    assert emulator.stats()["jobs_executed"] == 2
    if mode != "job":
        assert len({job.session_id for job in emulator._server.application.platform.book.select(lambda job: True)}) == 1


def test_a_replay_opens_no_session(emulator: Emulator, tmp_path: Path) -> None:
    for _ in range(2):
        backend = machine(tmp_path, mode="session")
        backend.run(SPEC, WEIGHTS, ANGLES)
        backend.close()
    assert emulator.stats()["requests"]["sessions.create"] == 1


def test_the_open_plan_has_no_sessions(running: Running, tmp_path: Path) -> None:
    with running("open") as emulator:
        with pytest.raises(BackendError, match=r"(?i)open plan|session|mode") as caught:
            machine(tmp_path, mode="session").run(SPEC, WEIGHTS, ANGLES)
        assert not isinstance(caught.value, BackendUnavailableError), "it must not be tried again and again"
        assert Ledger(tmp_path / "ledger.sqlite").find() == []
        assert emulator.stats()["submits_received"] == 0
        machine(tmp_path).run(SPEC, WEIGHTS, ANGLES)


def test_unknown_modes_and_sequences(emulator: Emulator, tmp_path: Path) -> None:
    for options in ({"mode": "jobs"}, {"dynamical_decoupling": "XYZ"}):
        with pytest.raises(ConfigError, match="mode must be one of job, batch, session"):
            machine(tmp_path, **options)
    with pytest.raises(ConfigError, match="--yes"):
        get_backend("ibm:ibm_lima", shots=10)
    assert emulator.stats()["requests"] == {}


def test_an_unknown_machine_is_answered_with_those_there_are(running: Running, tmp_path: Path) -> None:
    with (
        running(backends=("ibm_lima", "ibm_quito")),
        pytest.raises(UnknownBackendError, match="no machine 'ibm_kolkata'; it has ibm_lima, ibm_quito"),
    ):
        machine(tmp_path, "ibm:ibm_kolkata")


def test_the_least_busy_machine_says_which_it_was(emulator: Emulator, tmp_path: Path) -> None:
    record = machine(tmp_path, "ibm:least_busy").run(SPEC, WEIGHTS, ANGLES).record
    assert (record.backend_requested, record.backend_used) == ("ibm:least_busy", "ibm:ibm_lima")
    assert record.reason


def test_a_head_that_does_not_fit(emulator: Emulator, tmp_path: Path) -> None:
    spec = HeadSpec(num_qubits=6)
    with pytest.raises(HqtlError, match="does not fit on 'ibm_lima'"):
        machine(tmp_path).run(spec, np.zeros(spec.weights_shape), np.zeros((1, 6)))
    assert Ledger(tmp_path / "ledger.sqlite").find() == []


# ---------------------------------------------------------------- the account


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home without an account; where the client would save one."""
    for name in [name for name in os.environ if name.startswith("QISKIT_IBM_")]:
        monkeypatch.delenv(name)
    path = tmp_path / "home" / ".qiskit" / "qiskit-ibm.json"
    monkeypatch.setattr(ibm_account, "_ACCOUNT_FILE", path)
    return path


def test_no_account(emulator: Emulator, no_account: Path, tmp_path: Path) -> None:
    with pytest.raises(BackendAuthError, match="no IBM account: set QISKIT_IBM_TOKEN and QISKIT_IBM_INSTANCE"):
        machine(tmp_path)
    assert emulator.stats()["requests"] == {}


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o604])
def test_an_account_that_others_can_read(mode: int, emulator: Emulator, no_account: Path, tmp_path: Path) -> None:
    no_account.parent.mkdir(parents=True)
    no_account.write_text("{}")
    no_account.chmod(mode)
    with pytest.raises(BackendAuthError, match="can be read by others; run: chmod 600"):
        machine(tmp_path)
    assert emulator.stats()["requests"] == {}


def test_an_account_without_a_crn(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QISKIT_IBM_INSTANCE")
    with pytest.raises(BackendAuthError, match=r"set QISKIT_IBM_INSTANCE to its CRN"):
        machine(tmp_path)


def test_a_foreign_place_for_the_key_is_refused(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("https://iam.example.com", "http://10.0.0.1", "http://localhost.example.com", "http://127.0.0.1@example.com", "nonsense"):
        monkeypatch.setenv("HQTL_IBM_IAM_URL", url)
        with pytest.raises((BackendAuthError, ConfigError), match="HQTL_IBM_IAM_URL is for stand-ins on this machine only"):
            machine(tmp_path)
    assert emulator.stats()["requests"] == {}
    assert emulator.stats()["refused_hosts"] == {}


def listen(emulator: Emulator) -> list[Any]:
    """Every request that the emulator gets from now on."""
    application, seen = emulator._server.application, []
    answer = application.answer

    def noted(request: Any) -> Any:
        seen.append(request)
        return answer(request)

    application.answer = noted
    return seen


CANARY = "canary-7d0c41b6e2f9"


def everything(request: Any) -> str:
    return f"{request.path} {request.query} {request.authorization}"


def test_no_token_no_request(emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client would send the key itself instead of a token."""
    monkeypatch.setenv("QISKIT_IBM_TOKEN", CANARY)
    seen = listen(emulator)
    emulator.faults.add(Fault(kind="error", status=400, detail="no such key", routes=("iam.token",), count=None))
    with pytest.raises(BackendAuthError, match="did not let the account in") as caught:
        machine(tmp_path)
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    assert seen
    assert not [request for request in seen if CANARY in everything(request)]
    assert not [request for request in seen if request.authorization]


def test_the_token_exchange_fails_in_the_middle(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens_age: Callable[[float], None]
) -> None:
    monkeypatch.setenv("QISKIT_IBM_TOKEN", CANARY)
    backend = machine(tmp_path)
    backend.run(SPEC, WEIGHTS, ANGLES)
    seen = listen(emulator)
    tokens_age(3601)
    emulator.faults.add(Fault(kind="error", status=503, routes=("iam.token",), count=2))
    answer = backend.run(SPEC, WEIGHTS, ANGLES, stream=1)
    assert [fault["fired"] for fault in emulator.faults.state()] == [2]
    assert (answer.record.num_jobs, emulator.stats()["jobs_executed"]) == (1, 2)
    assert not [request for request in seen if CANARY in everything(request)]
    assert {request.authorization[:7] for request in seen} <= {"", "Bearer "}


def test_an_expired_token_is_renewed(emulator: Emulator, tmp_path: Path) -> None:
    backend = machine(tmp_path)
    emulator.faults.add(*(Fault(kind="expired_token", routes=(route,)) for route in ("jobs.submit", "jobs.get", "jobs.results")))
    answer = backend.run(SPEC, WEIGHTS, ANGLES)
    assert [fault["fired"] for fault in emulator.faults.state()] == [1, 1, 1]
    assert answer.record.num_jobs == emulator.stats()["jobs_executed"] == 1


# ---------------------------------------------------------------- the canary


FAULTS: dict[str, tuple[Fault, ...]] = {
    "none": (),
    "refused": (Fault(kind="error", status=400, detail=f"bad key {CANARY}", routes=("jobs.submit",)),),
    "properties": (Fault(kind="error", status=400, detail=f"bad key {CANARY}", routes=("backends.properties",)),),
    "forbidden": (Fault(kind="error", status=403, detail=f"not {CANARY}", routes=("jobs.submit",), count=None),),
    "submit down": (Fault(kind="error", status=500, detail=CANARY, routes=("jobs.submit",), count=None),),
    "dropped": (Fault(kind="drop", routes=("jobs.submit",), count=None),),
    "listing down": (Fault(kind="drop", routes=("jobs.*",), count=None),),
    "unauthorized": (Fault(kind="expired_token", routes=("jobs.*",), count=None),),
    "failed": (Fault(kind="fail", detail=f"wrong {CANARY}"),),
    "cancelled": (Fault(kind="ran_too_long"),),
    "no result": (Fault(kind="truncate", count=None),),
    "backends down": (Fault(kind="error", status=500, detail=CANARY, routes=("backends.*",), count=None),),
    "backends dropped": (Fault(kind="drop", routes=("backends.*",), count=None),),
    "iam down": (Fault(kind="error", status=500, detail=CANARY, routes=("iam.token",), count=None),),
    "iam refuses": (Fault(kind="error", status=401, detail=CANARY, routes=("iam.token",), count=None),),
    "instances down": (Fault(kind="error", status=500, detail=CANARY, routes=("search.instances", "instance.get"), count=None),),
    "unknown machine": (),
    "overview": (Fault(kind="error", status=500, detail=CANARY, routes=("usage.get",), count=None),),
}


class overview:  # noqa: N801
    """`hqtl-train backends --check`, as a backend."""

    def run(self, *_: Any) -> Any:
        return ibm_account.account_overview()


def secrets_of(crn: str) -> list[str]:
    return [CANARY, crn, urllib.parse.quote(crn), urllib.parse.quote(crn, safe=""), urllib.parse.quote_plus(crn)]


@pytest.mark.parametrize("kind", list(FAULTS))
def test_no_secret_is_told(
    kind: str, running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with running() as emulator:
        caplog.set_level(logging.DEBUG, "hqtl_common")
        monkeypatch.setenv("QISKIT_IBM_TOKEN", CANARY)
        told: list[str] = []
        act: Callable[[], Any] = lambda: machine(tmp_path, settle_s=0.05, poll_s=0.01, max_poll_s=0.01)  # noqa: E731
        if kind == "unknown machine":
            act = lambda: machine(tmp_path, "ibm:ibm_kolkata")  # noqa: E731
        if kind == "overview":
            act = overview
        early = any(route.startswith(("iam", "search", "backends")) for fault in FAULTS[kind] for route in fault.routes or ())
        if early:
            emulator.faults.add(*FAULTS[kind])
        try:
            backend = act()
            told += [repr(backend), str(getattr(backend, "_provider", "")), repr(getattr(backend, "_executor", ""))]
            if not early:
                emulator.faults.add(*FAULTS[kind])
            told.append(repr(backend.run(SPEC, WEIGHTS, ANGLES)))
        except HqtlError as error:
            told += traceback.format_exception(error)
            told += [repr(error), repr(error.__cause__)]
        else:
            assert kind == "none"
    told += [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    if not any(CANARY in fault.detail for fault in FAULTS[kind]):  # the client logs what the platform says
        told += [record.getMessage() for record in caplog.records]
    text = "\n".join(told)
    found = [secret for secret in secrets_of({i.plan: i.crn for i in INSTANCES}["pay-as-you-go"]) if secret in text]
    assert not found, [line for line in text.splitlines() if any(secret in line for secret in found)][:5]


def test_a_scope_is_made_where_none_is_given(emulator: Emulator, tmp_path: Path) -> None:
    machine(tmp_path, scope=None).run(SPEC, WEIGHTS, ANGLES)
    (entry,) = Ledger(tmp_path / "ledger.sqlite").find()
    assert uuid.UUID(entry.scope.removeprefix("call-"))
