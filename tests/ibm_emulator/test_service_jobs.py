"""Jobs of the service on the emulated platform: paid once, adopted after a death, cancelled, bounded by the key's day."""

from __future__ import annotations

import base64
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from hqtl_common import HybridClassifier, ModelBundle, get_backend
from hqtl_common.errors import BackendUnavailableError
from hqtl_common.ledger import Ledger
from serving import limits
from serving.app import create_app, open_ring
from serving.jobs.office import open_office
from serving.jobs.store import JobStore
from serving.keys import Grants, edit_keys, new_key
from serving.metrics import Metrics
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.ibm_emulator.conftest import Running
from tests.integration.test_service import PHOTOS, body
from training.emulator import Fault

MACHINE = "ibm:ibm_lima"
WAITING = {"queue_seconds": (1e5, 1e5), "time_factor": 1.0}
ASKED = {"backend": MACHINE, "shots": 200, "seed": 3}


class Service:
    """A service whose office can be opened again on the same file."""

    def __init__(self, bundle: ModelBundle, folder: Path, **settings: Any) -> None:
        keys = {"payer": Grants(qpu_seconds_per_day=20, jobs_per_day=4), "other": Grants(qpu_seconds_per_day=20, jobs_per_day=4)}
        self.tokens = {}
        with edit_keys(folder / "keys.json") as entries:
            for name, grants in keys.items():
                self.tokens[name], key = new_key(name, grants)
                entries.append(key)
        given = {"backends": ("statevector", MACHINE), "keys": folder / "keys.json", "jobs": folder / "jobs.sqlite"}
        self.settings = ServiceSettings(
            bundle=bundle.path, threads=1, decoders=1, jobs_poll_s=0.05, jobs_settle_s=2.0, **{**given, **settings}
        )
        self.predictor = Predictor(self.settings)

    @contextmanager
    def running(self) -> Iterator[Callable[..., Client]]:
        office = open_office(self.predictor)
        assert office is not None
        app = create_app(self.predictor, open_ring(self.settings), office)
        try:
            yield lambda name="payer": Client(app, self.tokens[name])
        finally:
            office.close()

    @property
    def ledger(self) -> Ledger:
        assert self.settings.jobs is not None
        return Ledger(self.settings.jobs)


@pytest.fixture(scope="module")
def one_service(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(bundle, tmp_path_factory.mktemp("service"))
    yield service
    service.predictor.close()


@pytest.fixture(autouse=True)
def _no_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    """The day in which a test begins does not end before it."""
    today = limits.day_start(datetime.now(UTC))
    monkeypatch.setattr(limits, "day_start", lambda now=None: today)


@pytest.fixture
def service(one_service: Service) -> Service:
    """Without any job."""
    assert one_service.settings.jobs is not None
    for path in one_service.settings.jobs.parent.glob("jobs.sqlite*"):
        path.unlink()
    one_service.predictor.metrics = Metrics("0")
    return one_service


def submit(client: Client, path: str = "/v1/jobs", key: str | None = None, number: int = 3, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    return client.post(path, headers=headers, **body(PHOTOS[:number], **{**ASKED, **fields}))


def wait(client: Client, identifier: str, until: str = "done", seconds: float = 300) -> dict[str, Any]:
    limit = time.monotonic() + seconds
    while (job := client.get(f"/v1/jobs/{identifier}").json())["state"] != until:
        assert time.monotonic() < limit, job
        assert job["state"] in ("queued", "running"), job
        time.sleep(0.05)
    found: dict[str, Any] = job
    return found


def test_all_images_of_a_job_are_one_pub_and_its_answer_is_the_librarys(service: Service, running: Running, bundle: ModelBundle) -> None:
    with running() as emulator, service.running() as connect:
        client = connect()
        answer = submit(client)
        assert answer.status_code == 202, answer.text
        kept = answer.json()
        assert answer.headers["location"] == f"/v1/jobs/{kept['id']}"
        assert (kept["state"], kept["images"], kept["answer"]) == ("queued", 3, None)
        assert kept["estimate"]["jobs"] == 1
        job = wait(client, kept["id"])
        stats = emulator.stats()
        assert (stats["submits_received"], stats["jobs_executed"]) == (1, 1)
        (entry,) = service.ledger.find()
        assert entry.details["pubs"] == [[3, 200]]
        assert job["job_ids"] == [entry.job_id] == job["answer"]["execution"]["job_ids"]
        assert job["qpu_seconds"] == stats["qpu_seconds"] == job["answer"]["execution"]["qpu_seconds"]
        assert job["created"] <= job["started"] <= job["submitted"] <= job["finished"]
        assert [one["filename"] for one in job["answer"]["predictions"]] == [name for name, _ in PHOTOS[:3]]
        assert all(one["interval"][0] < one["probability"] < one["interval"][1] for one in job["answer"]["predictions"])
        backend = get_backend(MACHINE, shots=200, seed=3, scope=job["id"], ledger=service.settings.jobs, max_jobs=1)
        with HybridClassifier(bundle, backend, threads=1) as library:
            expected = [one.to_dict() for one in library.predict_many([data for _, data in PHOTOS[:3]])]
        backend.close()
        assert [{**one, "filename": name} for one, (name, _) in zip(expected, PHOTOS, strict=False)] == job["answer"]["predictions"]
        assert emulator.stats()["submits_received"] == 1
        metrics = client.get("/metrics").text
        assert f'hqtl_qpu_seconds_total{{backend="{MACHINE}"}} {job["qpu_seconds"]}' in metrics
        assert 'hqtl_jobs{state="done"} 1.0' in metrics
        assert 'hqtl_queue_seconds_count{stage="job"} 1.0' in metrics


def test_a_paid_prediction_is_a_job_or_the_exact_answer_now(service: Service, running: Running) -> None:
    with running(), service.running() as connect:
        client = connect()
        first = submit(client, "/v1/predict")
        assert first.status_code == 202
        wait(client, first.json()["id"])
        now = submit(client, "/v1/predict", fallback="statevector", explain="true")
        assert now.status_code == 200, now.text
        execution = now.json()["execution"]
        assert (execution["backend_requested"], execution["backend_used"], execution["shots"]) == (MACHINE, "statevector", None)
        assert "follows as a job" in execution["reason"]
        exact = client.post("/v1/predict", **body(PHOTOS[:3], explain="true")).json()
        assert now.json()["predictions"] == exact["predictions"]
        assert now.json()["explanation"] == exact["explanation"]
        job = wait(client, now.json()["job_id"])
        assert now.headers["location"] == f"/v1/jobs/{job['id']}"
        assert job["fallback"] == {name: value for name, value in now.json().items() if name != "job_id"}
        assert job["backend_used"] == MACHINE
        assert job["answer"]["predictions"] != job["fallback"]["predictions"]
        assert f'hqtl_fallbacks_total{{requested="{MACHINE}",used="statevector"}} 1.0' in client.get("/metrics").text
        refused = submit(client, "/v1/predict", explain="true")
        assert (refused.status_code, refused.json()["error"]["detail"]) == (422, {"field": "explain"})


def test_a_paid_default_answers_by_jobs_only(bundle: ModelBundle, tmp_path: Path, running: Running) -> None:
    service = Service(bundle, tmp_path, backends=(MACHINE,))
    inputs = [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(PHOTOS[0][1]).decode()]}]
    try:
        with running() as emulator, service.running() as connect:
            client = connect()
            refused = client.post("/v1/inspect", content=PHOTOS[0][1], headers={"content-type": "application/octet-stream"})
            assert (refused.status_code, refused.json()["error"]["detail"]) == (422, {"field": "backend"})
            refused = client.post("/v2/models/hqtl/infer", json={"inputs": inputs})
            assert refused.status_code == 422
            assert refused.json()["error"].endswith(f"{MACHINE} is paid: use POST /v1/jobs")
            answer = client.post("/v1/predict", **body(PHOTOS[:1], shots="200"))
            assert answer.status_code == 202, answer.text
            wait(client, answer.json()["id"])
            assert emulator.stats()["submits_received"] == 1
    finally:
        service.predictor.close()


def test_the_same_idempotency_key_pays_once(service: Service, running: Running) -> None:
    with running(**WAITING) as emulator, service.running() as connect:
        first, again = submit(connect(), key="order-1"), submit(connect(), key="order-1")
        assert first.json()["id"] == again.json()["id"]
        for other in (submit(connect(), key="order-1", shots=201), submit(connect(), key="order-1", number=2)):
            assert (other.status_code, other.json()["error"]["code"]) == (409, "conflict")
        assert submit(connect("other"), key="order-1").json()["id"] != first.json()["id"]
        assert submit(connect(), key="order-2").json()["id"] != first.json()["id"]
        assert submit(connect(), key="two words").status_code == 422
        wait_for(lambda: emulator.stats()["submits_received"] == 3)


def test_the_day_of_a_key_is_bounded(service: Service, running: Running) -> None:
    with running(**WAITING) as emulator, service.running() as connect:
        client = connect()
        asked = {"backend": MACHINE, "shots": 200, "images": 3}
        before = client.get("/v1/estimate", params=asked).json()
        assert (before["allowed"], before["jobs_left"], before["qpu_seconds_left"]) == (True, 4, 20)
        assert before["needs"]["jobs"] == 1
        assert before["needs"]["executions"] == 600
        assert submit(client, shots=40_000).json()["error"]["code"] == "quota"  # 120,000 × 253 µs are 30 s
        assert client.get("/v1/estimate", params={**asked, "shots": 40_000}).json()["allowed"] is False
        assert [submit(client).status_code for _ in range(5)] == [202] * 4 + [429]
        after = client.get("/v1/estimate", params=asked).json()
        assert (after["allowed"], after["jobs_left"]) == (False, 0)
        assert after["qpu_seconds_left"] == pytest.approx(20 - 4 * before["needs"]["qpu_seconds"])
        assert submit(connect("other")).status_code == 202
        free = submit(client, backend="statevector")
        assert free.status_code == 202, "what costs nothing is not counted"
        wait_for(lambda: emulator.stats()["jobs_accepted"] == 5)


def test_the_day_of_the_service_is_bounded_for_all_keys_together(bundle: ModelBundle, tmp_path: Path, running: Running) -> None:
    service = Service(bundle, tmp_path, max_paid_jobs_per_day=3, max_qpu_seconds_per_day=12)
    try:
        with running(**WAITING) as emulator, service.running() as connect:
            asked = {"backend": MACHINE, "shots": 200, "images": 3}
            before = connect("other").get("/v1/estimate", params=asked).json()
            assert (before["allowed"], before["service_jobs_left"], before["service_qpu_seconds_left"]) == (True, 3, 12)
            assert submit(connect(), shots=20_000).json()["error"]["message"].startswith("this service spends 12 QPU seconds a day")
            assert [submit(connect(name)).status_code for name in ("payer", "other", "payer", "other")] == [202] * 3 + [429]
            refused = submit(connect("other"))
            assert refused.json()["error"]["message"] == "this service submits 3 paid jobs a day and has submitted 3"
            assert int(refused.headers["retry-after"]) > 0
            after = connect("other").get("/v1/estimate", params=asked).json()
            assert (after["allowed"], after["jobs_left"], after["service_jobs_left"]) == (False, 3, 0)
            assert after["service_qpu_seconds_left"] == pytest.approx(12 - 3 * before["needs"]["qpu_seconds"])
            assert submit(connect("other"), backend="statevector").status_code == 202, "what costs nothing is not counted"
            wait_for(lambda: emulator.stats()["jobs_accepted"] == 3)
    finally:
        service.predictor.close()


def test_a_file_of_jobs_that_cannot_be_read_is_a_503_and_costs_nothing(service: Service, running: Running, tmp_path: Path) -> None:
    assert service.settings.jobs is not None
    file, away, folder = (service.settings.jobs.with_suffix(suffix) for suffix in (".sqlite", ".away", ".folder"))
    with running(**WAITING) as emulator, service.running() as connect:
        client = connect()
        identifier = submit(client).json()["id"]
        wait_for(lambda: emulator.stats()["jobs_accepted"] == 1)
        away.hardlink_to(file)
        folder.symlink_to(tmp_path)
        folder.replace(file)  # at once: a thread of the service must not make a new file in between
        try:
            calls = [("GET", "/v1/jobs"), ("GET", f"/v1/jobs/{identifier}"), ("DELETE", f"/v1/jobs/{identifier}")]
            answers = [client.request(*call) for call in calls]
            answers += [client.get("/v1/estimate", params={"backend": MACHINE}), submit(client)]
            assert [(answer.status_code, answer.json()["error"]["code"]) for answer in answers] == [(503, "not_ready")] * 5
            assert all(answer.headers["retry-after"] for answer in answers)
            assert client.post("/v1/predict", **body(PHOTOS[:1])).status_code == 200
            wait_for(lambda: [client.get(path).status_code for path in ("/livez", "/readyz", "/v2/health/ready")] == [200, 503, 503])
        finally:
            away.replace(file)
        wait_for(lambda: client.get("/readyz").status_code == 200)
        assert client.get(f"/v1/jobs/{identifier}").json()["state"] in ("queued", "running")
        assert emulator.stats()["submits_received"] == 1


def test_a_ledger_that_fails_after_the_submit_pays_once(service: Service, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is there and cannot be written down: the job is not given up, and is not submitted again."""
    monkeypatch.setattr("serving.jobs.runner._FIRST_PAUSE_S", 0.1)
    finish, failed = Ledger.finish, []

    def full(self: Ledger, *values: Any) -> None:
        if len(failed) < 2:
            failed.append(1)
            raise sqlite3.OperationalError("database or disk is full")
        finish(self, *values)

    monkeypatch.setattr(Ledger, "finish", full)
    with running() as emulator, service.running() as connect:
        job = wait(connect(), submit(connect()).json()["id"])
        assert len(failed) == 2
        assert (emulator.stats()["submits_received"], emulator.stats()["jobs_executed"]) == (1, 1)
        assert len(job["answer"]["predictions"]) == 3


def test_jobs_belong_to_their_key(service: Service, running: Running) -> None:
    with running(**WAITING) as emulator, service.running() as connect:
        mine, theirs = connect(), connect("other")
        identifier = submit(mine).json()["id"]
        for answer in (theirs.get(f"/v1/jobs/{identifier}"), theirs.request("DELETE", f"/v1/jobs/{identifier}")):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert theirs.get("/v1/jobs").json() == {"jobs": [], "next": None}
        assert theirs.get("/v1/jobs", params={"before": identifier}).status_code == 404
        assert mine.get(f"/v1/jobs/{identifier}").json()["state"] in ("queued", "running")
        wait_for(lambda: emulator.stats()["jobs_accepted"] == 1)


def test_cancelling_reaches_the_platform(service: Service, running: Running) -> None:
    with running(**WAITING) as emulator, service.running() as connect:
        client = connect()
        identifier = submit(client).json()["id"]
        wait_for(lambda: emulator.stats()["jobs_accepted"] == 1)
        answer = client.request("DELETE", f"/v1/jobs/{identifier}")
        assert (answer.status_code, answer.json()["cancelling"]) == (202, True)
        job = wait(client, identifier, "cancelled")
        assert emulator.stats()["jobs"] == {"Cancelled": 1}
        assert (job["answer"], job["position"], job["cancelling"]) == (None, None, False)
        assert client.request("DELETE", f"/v1/jobs/{identifier}").status_code == 200
        assert emulator.stats()["qpu_seconds"] == 0


def test_what_is_done_cannot_be_cancelled(service: Service, running: Running) -> None:
    with running(), service.running() as connect:
        client = connect()
        identifier = submit(client).json()["id"]
        wait(client, identifier)
        answer = client.request("DELETE", f"/v1/jobs/{identifier}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")


def test_a_job_that_fails_says_why_and_is_not_paid_again(service: Service, running: Running) -> None:
    with running() as emulator:
        emulator.faults.add(Fault(kind="fail", detail="the qubits are cold"))
        with service.running() as connect:
            identifier = submit(connect()).json()["id"]
            job = wait(connect(), identifier, "failed")
        assert job["error"]["code"] == "job_failed"
        assert "the qubits are cold" in job["error"]["message"]
        with service.running() as connect:
            assert connect().get(f"/v1/jobs/{identifier}").json()["state"] == "failed"
        assert emulator.stats()["submits_received"] == 1


@pytest.mark.parametrize("place", ["hqtl_common.ledger.Ledger.submitted", "hqtl_common.backends.recorded.RecordedExecutor._wait"])
def test_a_service_that_died_goes_on_with_its_job(place: str, service: Service, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that does not come back stands for a process that was killed; the lock and the file are as after a death."""
    monkeypatch.setattr("serving.jobs.runner._END_S", 0.1)
    buried = threading.Event()

    def die(*_: Any) -> None:
        buried.wait()
        raise BackendUnavailableError("the process is dead")

    with ExitStack() as after, running() as emulator:
        after.callback(buried.set)
        with monkeypatch.context() as patched, service.running() as connect:
            patched.setattr(place, die)
            identifier = submit(connect()).json()["id"]
            wait_for(lambda: emulator.stats()["jobs_accepted"] == 1)
            assert connect().get(f"/v1/jobs/{identifier}").json()["state"] == "running"
        with service.running() as connect:
            job = wait(connect(), identifier)
        assert len(job["answer"]["predictions"]) == 3
        assert (emulator.stats()["submits_received"], emulator.stats()["jobs_executed"]) == (1, 1)


def test_closing_ends_the_threads_that_wait_for_jobs(service: Service, running: Running) -> None:
    with running(**WAITING) as emulator:
        with service.running() as connect:
            identifier = submit(connect()).json()["id"]
            wait_for(lambda: emulator.stats()["jobs_accepted"] == 1)
            waiting = [thread for thread in threading.enumerate() if thread.name == f"job-{identifier[:8]}"]
            assert len(waiting) == 1
        wait_for(lambda: not waiting[0].is_alive())
        with service.running() as connect:
            assert connect().get(f"/v1/jobs/{identifier}").json()["state"] in ("queued", "running")
        assert emulator.stats()["submits_received"] == 1


def test_a_platform_that_is_down_is_asked_again(service: Service, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.jobs.runner._FIRST_PAUSE_S", 0.1)
    with running() as emulator:
        emulator.faults.add(Fault(kind="drop", routes=("search.instances",)))
        with service.running() as connect:
            job = wait(connect(), submit(connect()).json()["id"])
        assert emulator.stats()["jobs_executed"] == 1
        assert service.settings.jobs is not None
        assert JobStore(service.settings.jobs, 9).get(job["id"]).tries > 1


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
