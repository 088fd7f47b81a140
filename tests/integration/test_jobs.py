"""Jobs on simulators, through the typed client and a real socket: what is slow goes on, what is finished is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

import serving.predictor as predictor_module
from hqtl_common import HybridClassifier, ModelBundle, get_backend
from serving.app import create_app, open_ring
from serving.client import Answer, ApiError, Client, Job, Options
from serving.jobs.office import open_office
from serving.jobs.store import JobStore
from serving.keys import Grants, edit_keys, new_key
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client as Plain
from tests.integration.test_inspect import encoded, wall
from tests.integration.test_openapi import CONFIG, hold, schemathesis
from tests.integration.test_service import PHOTOS, body

IMAGES = [data for _, data in PHOTOS[:3]]


@pytest.fixture(scope="module")
def told() -> Iterator[HTTPServer]:
    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.messages.append(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
            self.send_response(200 if len(server.messages) > 1 else 503)  # type: ignore[attr-defined]
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        server.messages = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def app(bundle: ModelBundle, told: HTTPServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("jobs")
    token, key = new_key("tester", Grants())
    with edit_keys(folder / "keys.json") as entries:
        entries.append(key)
    settings = ServiceSettings(
        bundle=bundle.path,
        backends=("statevector", "aer"),
        threads=1,
        decoders=1,
        keys=folder / "keys.json",
        jobs=folder / "jobs.sqlite",
        max_shots=5000,
        max_images=4,
        webhook_hosts=(f"127.0.0.1:{told.server_port}",),
        webhook_secret="a secret of some length",
        webhook_private=True,
    )
    predictor = Predictor(settings)
    office = open_office(predictor)
    app = create_app(predictor, open_ring(settings), office)
    app.state.token = token
    yield app
    app.state.inspector.close()
    assert office is not None
    office.close()
    predictor.close()


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[Client]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Client(f"http://127.0.0.1:{port}/", app.state.token)
    server.should_exit = True
    thread.join()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Until it is set, backends take their time."""
    gate, original = threading.Event(), get_backend
    monkeypatch.setattr(predictor_module, "get_backend", lambda *a, **o: gate.wait(300) and original(*a, **o))
    yield gate
    gate.set()


def library(bundle: ModelBundle, backend: str = "statevector", **options: Any) -> list[dict[str, float]]:
    with HybridClassifier(bundle, get_backend(backend, **options), threads=1) as classifier:
        return [one.probabilities for one in classifier.predict_many(IMAGES)]


def probabilities(answer: Answer | None) -> list[dict[str, float]]:
    assert answer is not None
    return [one.probabilities for one in answer.predictions]


def test_a_prediction_and_a_job_give_the_same(client: Client, bundle: ModelBundle) -> None:
    options = Options(backend="aer", shots=300, seed=5)
    answer = client.predict(IMAGES, options)
    assert isinstance(answer, Answer)
    job = client.submit(IMAGES, options)
    assert (job.is_finished, job.images, job.estimate) == (False, 3, {"jobs": 0, "executions": 0, "qpu_seconds": 0.0})
    done = client.wait(job, 300)
    assert done.is_finished
    assert probabilities(done.answer) == probabilities(answer) == library(bundle, "aer", shots=300, seed=5)
    assert (done.backend_used, done.qpu_seconds, done.job_ids, done.reason) == ("aer", 0.0, [], None)
    assert done.answer is not None
    assert done.answer.predictions[0].interval is not None
    assert done.id in [one.id for one in client.jobs(state="done")]
    assert client.jobs(before=done.id) == [] or client.jobs(before=done.id)[0].created <= done.created


def test_what_is_not_done_in_time_goes_on_as_a_job(client: Client, bundle: ModelBundle, gate: threading.Event) -> None:
    began = time.monotonic()
    job = client.predict(IMAGES, Options(deadline_s=2))
    assert time.monotonic() - began < 40, "the service allows 50 s"
    assert isinstance(job, Job)
    assert (job.state, job.reason, job.answer) == ("running", "it was not done in time and goes on", None)
    gate.set()
    assert probabilities(client.wait(job, 300).answer) == library(bundle)


def test_or_the_exact_answer_comes_at_once(client: Client, bundle: ModelBundle, gate: threading.Event) -> None:
    answer = client.predict(IMAGES, Options(backend="aer", shots=300, seed=5, deadline_s=2, fallback="statevector"))
    assert isinstance(answer, Answer)
    assert probabilities(answer) == library(bundle)
    assert (answer.execution["backend_requested"], answer.execution["backend_used"]) == ("aer", "statevector")
    assert answer.execution["reason"]
    assert answer.job_id is not None
    gate.set()
    job = client.wait(answer.job_id, 300)
    assert probabilities(job.answer) == library(bundle, "aer", shots=300, seed=5)
    assert job.fallback is not None
    assert job.fallback.predictions == answer.predictions


def test_a_fast_backend_needs_no_fallback(client: Client) -> None:
    answer = client.predict(IMAGES, Options(fallback="statevector"))
    assert isinstance(answer, Answer)
    assert (answer.job_id, answer.execution["reason"]) == (None, None)


def test_an_explanation_is_not_kept_for_later(client: Client, gate: threading.Event) -> None:
    with pytest.raises(ApiError) as caught:
        client.predict(IMAGES, Options(deadline_s=0.3, explain=True))
    assert (caught.value.status, caught.value.code) == (504, "deadline")


def test_a_job_that_fails_and_one_that_is_cancelled(client: Client, gate: threading.Event) -> None:
    running = client.predict(IMAGES, Options(deadline_s=2))
    assert isinstance(running, Job)
    assert client.cancel(running.id).state == "cancelled"
    gate.set()
    with pytest.raises(ApiError, match="cancelled"):
        client.wait(running)
    assert client.cancel(running.id).answer is None
    failed = client.submit(IMAGES, Options(backend="aer", mitigation="readout+zne", shots=10))
    with pytest.raises(ApiError) as caught:
        client.wait(failed, 300)
    assert caught.value.code in ("capability", "config")
    with pytest.raises(TimeoutError):
        client.wait(client.submit(IMAGES), 0.0)


def test_a_hook_is_told_and_told_again(client: Client, told: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.jobs.runner._FIRST_PAUSE_S", 0.05)
    url = f"http://127.0.0.1:{told.server_port}/done"
    job = client.wait(client.submit(IMAGES, Options(webhook=url)), 300)
    until(lambda: (client.job(job.id).webhook or {})["state"] == "delivered")
    assert client.job(job.id).webhook == {"url": url, "state": "delivered", "tries": 2}
    assert len(told.messages) == 2
    assert all(job.id.encode() in message and b'"answer": null' in message for message in told.messages)
    with pytest.raises(ApiError) as caught:
        client.submit(IMAGES, Options(webhook="http://169.254.169.254/latest/"))
    assert (caught.value.status, caught.value.detail) == (422, {"field": "webhook"})


def test_errors_come_out_of_the_envelope(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ApiError) as caught:
        client.predict([b"no image", IMAGES[0]])
    error = caught.value
    assert (error.status, error.code, error.detail["index"]) == (415, "unknown_image_format", 0)
    assert error.request_id
    for call in (lambda: client.job("../predict"), lambda: client.job("0" * 32), lambda: client.cancel("x")):
        with pytest.raises(ApiError) as caught:
            call()
        assert (caught.value.status, caught.value.code) == (404, "not_found")
    with pytest.raises(ApiError, match="does not answer") as caught:
        Client("http://127.0.0.1:1", "key").model()
    assert (caught.value.status, "key" in repr(Client("http://127.0.0.1:1", "key"))) == (0, False)
    with pytest.raises(ApiError) as caught:
        client.estimate(1, Options(backend="quantum"))
    assert caught.value.code == "unknown_backend"


def test_names_of_files_arrive_as_they_are(client: Client, tmp_path: Path) -> None:
    names = ['a "b" ü.png', "c;d\\e.png"]
    for name in names:
        (tmp_path / name).write_bytes(IMAGES[0])
    answer = client.predict([tmp_path / name for name in names])
    assert isinstance(answer, Answer)
    assert [one.filename.replace("%22", '"') for one in answer.predictions] == names


def test_the_rest_of_the_client(client: Client) -> None:
    assert client.model()["labels"] == ["crack", "no_crack"]
    assert [one["name"] for one in client.backends()] == ["statevector", "aer"]
    estimate = client.estimate(3, Options(backend="aer", shots=100))
    assert (estimate.needs["jobs"], estimate.allowed, estimate.jobs_left) == (0, True, 0)
    found = client.inspect(encoded(wall()), Options(shots=100, seed=1), tile=250)
    assert (found.width, found.height, len(found.tiles)) == (700, 500, 6)
    assert found.tiles[1].x == 250
    assert all(one.interval for one in found.tiles)
    runtime = client.model()["runtime"]
    answer = client.predict(IMAGES)
    assert isinstance(answer, Answer)
    assert runtime == found.runtime == answer.runtime
    assert runtime["precision"] == "fp32"
    assert client.inspect_map(encoded(wall()))[:4] == b"\x89PNG"
    assert client.inspect_map(encoded(wall()), form="geojson").startswith(b'{"type":"FeatureCollection"')


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "state=lost", "before=", "status=done", "limit=1&limit=2"])
def test_a_wrong_query_is_a_422(app: Any, query: str) -> None:
    assert Plain(app, app.state.token).get(f"/v1/jobs?{query}").status_code == 422


@pytest.mark.parametrize("query", ["images=0", "images=x", "colour=red", "shots=1&shots=2", "shots=-1", "fallback=statevector"])
def test_a_wrong_estimate_is_a_422(app: Any, query: str) -> None:
    assert Plain(app, app.state.token).get(f"/v1/estimate?{query}").status_code == 422


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/estimate"])
def test_too_many_fields_in_a_query_are_a_400_as_documented(app: Any, path: str) -> None:
    assert Plain(app, app.state.token).get(f"{path}?{'&'.join(f'f{number}=1' for number in range(33))}").status_code == 400
    assert "400" in app.openapi()["paths"][path]["get"]["responses"]


def test_a_job_that_is_kept_is_not_answered_as_late(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its client would send it again, and pay twice."""
    add, added = JobStore.add, threading.Event()

    def slowly(self: JobStore, *values: Any) -> Any:
        added.set()
        time.sleep(deadline_s)
        return add(self, *values)

    monkeypatch.setattr(JobStore, "add", slowly)
    for deadline_s in (0.5, 5, 45):
        answer = Plain(app, app.state.token).post("/v1/jobs", **body(PHOTOS[:1], deadline_s=str(deadline_s)))
        if added.is_set():  # else this machine was too busy to come so far
            break
    assert answer.status_code == 202, answer.text


def test_waiting_outlasts_a_restart_also_behind_a_proxy(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.client.api._FIRST_PAUSE_S", 0.01)
    done = client.wait(client.submit(IMAGES), 300)
    errors = iter([0, 502, 503, 504, 429])

    def ask(identifier: str) -> Job:
        if (status := next(errors, None)) is not None:
            raise ApiError(status, "http", "not now")
        return done

    monkeypatch.setattr(client, "job", ask)
    assert client.wait(done.id, 300) is done


def test_an_answer_that_breaks_off_is_an_error_of_the_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ApiError, match="does not answer") as caught:
            Client(f"http://127.0.0.1:{listening.getsockname()[1]}").model()
        thread.join()
    assert (caught.value.status, caught.value.code) == (0, "unreachable")


def test_nothing_of_it_is_seen_without_a_key(app: Any) -> None:
    for method, path in (
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("DELETE", "/v1/jobs/x"),
        ("GET", "/v1/estimate"),
        ("POST", "/v1/inspect"),
    ):
        assert Plain(app).request(method, path).status_code == 401


def test_pages_of_jobs(app: Any) -> None:
    client = Plain(app, app.state.token)
    made = [client.post("/v1/jobs", **body(PHOTOS[:1])).json()["id"] for _ in range(3)]
    first = client.get("/v1/jobs?limit=2").json()
    second = client.get(f"/v1/jobs?limit=2&before={first['next']}").json()
    assert [job["id"] for job in first["jobs"]] == made[:0:-1]
    assert second["jobs"][0]["id"] == made[0]
    assert client.get(f"/v1/jobs?limit=100&before={made[0]}").json()["next"] is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("examples", [8, pytest.param(100, marks=pytest.mark.slow)])
def test_every_answer_of_the_routes_of_jobs_is_as_the_document_says(app: Any, examples: int) -> None:
    header = {"Authorization": f"Bearer {app.state.token}"}
    document = schemathesis.openapi.from_asgi("/v1/openapi.json", app, config=CONFIG, headers=header).include(
        path_regex="jobs|estimate|inspect"
    )
    seen = hold(document, app.state.token, examples)
    assert {label for label, _ in seen} >= {"POST /v1/jobs", "GET /v1/jobs", "GET /v1/estimate", "POST /v1/inspect"}
    assert seen["POST /v1/jobs", 202] > 0
    assert seen["POST /v1/inspect", 200] > 0


def until(condition: Callable[[], bool], seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)
