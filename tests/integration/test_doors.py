"""Who gets in: every route with every kind of key, and without authentication every kind of peer."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.types import Message

from hqtl_common import ModelBundle
from hqtl_common.errors import ConfigError
from serving.app import create_app, open_ring
from serving.auth import OPEN_PATHS, is_loopback
from serving.keys import Grants, edit_keys, new_key, revoked
from serving.logs import JsonFormatter
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from tests.asgi import Client
from tests.integration.test_service import body, photo

IMAGE = [("wall.png", photo(0))]
Keys = dict[str, str | None]


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def keys(keys_file: Path) -> Keys:
    """Kinds of keys, by name."""
    kinds = {
        "good": new_key("good", Grants()),
        "expired": new_key("expired", Grants(), datetime.now(UTC) - timedelta(days=1)),
        "revoked": new_key("revoked", Grants()),
        "limited": new_key("limited", Grants(backends=("stat*",), max_shots=100)),
        "figures": new_key("figures", Grants(backends=())),
        "elsewhere": new_key("of another service", Grants()),
    }
    with edit_keys(keys_file) as entries:
        entries += [key for name, (_, key) in kinds.items() if name != "elsewhere"]
        entries[:] = revoked(entries, kinds["revoked"][1].id)
    made: Keys = {name: token for name, (token, _) in kinds.items()}
    return {"none": None, "nonsense": "abc", **made}


@pytest.fixture(scope="module")
def app(bundle: ModelBundle, keys_file: Path, keys: Keys) -> Iterator[Any]:
    settings = ServiceSettings(bundle=bundle.path, threads=1, keys=keys_file, decoders=1)
    predictor = Predictor(settings)
    yield create_app(predictor, open_ring(settings))
    predictor.close()


@pytest.fixture(scope="module")
def local(bundle: ModelBundle) -> Iterator[Any]:
    """The application without authentication."""
    settings = ServiceSettings(bundle=bundle.path, threads=1, insecure_no_auth=True, decoders=1)
    predictor = Predictor(settings)
    yield create_app(predictor, open_ring(settings))
    predictor.close()


READING = [("GET", "/"), ("GET", "/v1/model"), ("GET", "/v1/backends"), ("GET", "/v1/openapi.json"), ("GET", "/metrics")]
NOWHERE = [("GET", "/nowhere"), ("GET", "/docs"), ("GET", "/schema.json"), ("GET", "/v1/predict"), ("GET", "/livez/x"), ("GET", "/livez/")]
JOBS = [
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs"),
    ("GET", "/v1/jobs/{job_id}"),
    ("DELETE", "/v1/jobs/{job_id}"),
    ("GET", "/v1/estimate"),
]
_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
PROTOCOL = [
    ("GET", "/v2"),
    *((method, f"{path}{end}") for path in _MODELS for method, end in (("GET", ""), ("GET", "/ready"), ("POST", "/infer"))),
]
SHUT = ("none", "nonsense", "expired", "revoked", "elsewhere")


def test_the_matrix_knows_every_route(app: Any) -> None:
    routes = {(method, route.path) for route in app.routes for method in route.methods - {"HEAD"}}
    assert routes == {*READING, *JOBS, *PROTOCOL, ("POST", "/v1/predict"), ("POST", "/v1/inspect"), *(("GET", path) for path in OPEN_PATHS)}


@pytest.mark.parametrize("kind", [*SHUT, "good", "limited", "figures"])
class TestMatrix:
    @pytest.mark.parametrize(("method", "path"), READING)
    def test_reading(self, app: Any, keys: Keys, kind: str, method: str, path: str) -> None:
        self.expect(Client(app, keys[kind]).request(method, path), 401 if kind in SHUT else 200)

    @pytest.mark.parametrize(("method", "path"), NOWHERE)
    def test_what_does_not_exist_says_so_only_to_those_who_are_in(self, app: Any, keys: Keys, kind: str, method: str, path: str) -> None:
        self.expect(Client(app, keys[kind]).request(method, path), 401 if kind in SHUT else 405 if path == "/v1/predict" else 404)

    @pytest.mark.parametrize(("method", "path"), JOBS)
    def test_jobs_are_behind_the_door_and_not_there_without_a_file(self, app: Any, keys: Keys, kind: str, method: str, path: str) -> None:
        self.expect(Client(app, keys[kind]).request(method, path), 401 if kind in SHUT else 404)

    @pytest.mark.parametrize("path", sorted(OPEN_PATHS))
    def test_health_is_open(self, app: Any, keys: Keys, kind: str, path: str) -> None:
        self.expect(Client(app, keys[kind]).get(path), 200)

    @pytest.mark.parametrize(
        ("fields", "needs"),
        [
            ({}, "stat*"),
            ({"shots": 100, "seed": 1}, "stat*"),
            ({"shots": 101}, "shots"),
            ({"shots": 50, "max_shots": 101}, "shots"),
            ({"backend": "pennylane:default.qubit"}, "all"),
            ({"backend": "ibm:ibm_fez"}, "nobody"),
        ],
    )
    def test_predicting(self, app: Any, keys: Keys, kind: str, fields: dict[str, Any], needs: str) -> None:
        may = {"good": {"stat*", "shots", "all"}, "limited": {"stat*"}}.get(kind, set())
        answer = Client(app, keys[kind]).post("/v1/predict", **body(IMAGE, **fields))
        self.expect(answer, 401 if kind in SHUT else 200 if needs in may else 403)

    @pytest.mark.parametrize(("method", "path"), PROTOCOL)
    def test_the_open_inference_protocol_with_errors_of_its_own(self, app: Any, keys: Keys, kind: str, method: str, path: str) -> None:
        answer = Client(app, keys[kind]).request(method, path.format(name="hqtl", version="1"))
        status = 404 if "version" in path else 400 if method == "POST" else 200
        assert answer.status_code == (401 if kind in SHUT else status)
        assert status == 200 or isinstance(answer.json()["error"], str)
        assert kind not in SHUT or answer.headers["www-authenticate"] == "Bearer"

    def expect(self, answer: httpx.Response, status: int) -> None:
        assert answer.status_code == status, answer.text
        assert answer.headers["x-request-id"]
        if status >= 400:
            assert answer.json()["error"].keys() == {"code", "message", "detail", "request_id"}
        if status == 401:
            assert answer.json()["error"]["code"] == "unauthorized"
            assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("authorization", "Bearer {}")], 200),
        ([("Authorization", "bearer {}")], 200),
        ([("x-api-key", "{}")], 200),
        ([("authorization", "Basic {}")], 401),
        ([("authorization", "{}")], 401),
        ([("authorization", "Bearer")], 401),
        ([("authorization", "Bearer {} x")], 401),
        ([("authorization", "Bearer {}"), ("x-api-key", "{}")], 401),
        ([("authorization", "Bearer {}"), ("authorization", "Bearer {}")], 401),
        ([("cookie", "key={}")], 401),
    ],
)
def test_how_a_key_is_sent(app: Any, keys: Keys, headers: list[tuple[str, str]], status: int) -> None:
    sent = [(name, value.format(keys["good"])) for name, value in headers]
    assert Client(app).get("/v1/model", headers=sent).status_code == status


def test_a_key_in_the_address_is_not_taken(app: Any, keys: Keys) -> None:
    assert Client(app).get(f"/v1/model?key={keys['good']}&authorization=Bearer%20{keys['good']}").status_code == 401


def test_nothing_of_a_body_is_read_before_the_key(app: Any) -> None:
    async def untouched() -> Message:
        raise AssertionError("read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": [], "query_string": b"", "state": {}, "client": None}
    asyncio.run(app({**scope, "server": None, "http_version": "1.1"}, untouched, send))
    assert sent[0]["status"] == 401


def test_a_websocket_is_shut(app: Any) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(app({"type": "websocket", "path": "/", "headers": [], "query_string": b""}, None, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_backends_say_what_the_key_may_use(app: Any, keys: Keys) -> None:
    answers = {kind: Client(app, keys[kind]).get("/v1/backends").json() for kind in ("good", "limited", "figures")}
    allowed = {kind: [entry["name"] for entry in answer["backends"] if entry["allowed"]] for kind, answer in answers.items()}
    assert allowed == {"good": ["statevector", "pennylane:default.qubit", "aer"], "limited": ["statevector"], "figures": []}
    assert answers["limited"]["key"]["grants"]["max_shots"] == 100
    assert "sha256" not in json.dumps(answers)


def test_keys_that_cannot_be_read_make_it_unready(app: Any, keys: Keys, keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.keys._LOOK_EVERY_S", 0.0)
    client = Client(app, keys["good"])
    assert client.get("/readyz").status_code == 200
    keys_file.chmod(0o644)
    shut = [client.get(where) for where in ("/readyz", "/v1/model")]
    keys_file.chmod(0o600)
    assert [(answer.status_code, answer.json()["error"]["code"]) for answer in shut] == [(503, "keys_unavailable")] * 2
    assert client.get("/livez").status_code == client.get("/v1/model").status_code == 200


class TestWithoutAuthentication:
    @pytest.mark.parametrize(
        ("peer", "url", "headers", "status"),
        [
            ("127.0.0.1", "http://127.0.0.1:3000", {}, 200),
            ("::1", "http://[::1]:3000", {}, 200),
            ("127.0.0.1", "http://localhost:3000", {"origin": "http://localhost:3000"}, 200),
            ("::ffff:127.0.0.1", "http://127.0.0.1:3000", {}, 200),
            ("192.168.1.7", "http://127.0.0.1:3000", {}, 403),
            ("127.0.0.1", "http://192.168.1.7:3000", {}, 403),
            ("127.0.0.1", "http://127.0.0.1:3000", {"host": "evil.example"}, 403),
            ("127.0.0.1", "http://127.0.0.1:3000", {"host": "127.0.0.1.evil.example"}, 403),
            ("127.0.0.1", "http://127.0.0.1:3000", {"host": "[::1"}, 403),
            ("127.0.0.1", "http://127.0.0.1:3000", {"origin": "https://evil.example"}, 403),
            ("127.0.0.1", "http://127.0.0.1:3000", {"origin": "null"}, 403),
            ("10.0.0.1", "http://10.0.0.2:3000", {"x-forwarded-for": "127.0.0.1"}, 403),
            ("", "http://127.0.0.1:3000", {}, 403),
        ],
    )
    def test_only_this_machine_is_served(self, local: Any, peer: str, url: str, headers: dict[str, str], status: int) -> None:
        answer = Client(local, peer=peer, url=url).get("/v1/model", headers=headers)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["code"] == "forbidden"

    def test_predictions_work(self, local: Any) -> None:
        assert Client(local).post("/v1/predict", **body(IMAGE)).status_code == 200

    def test_default_is_deny(self, bundle: ModelBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        with pytest.raises(ConfigError, match=r"there is no file of keys .* hqtl-keys add NAME .* HQTL_INSECURE_NO_AUTH=1"):
            open_ring(ServiceSettings(bundle=bundle.path))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "LOCALHOST", "::ffff:127.0.0.1"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", [None, "", "0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", "127.1", "2130706433", "0x7f000001"])
def test_not_loopback(host: str | None) -> None:
    assert not is_loopback(host)


class TestLog:
    def lines(self, caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
        return [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "hqtl.request"]

    def test_a_request_is_one_line_without_secrets(self, app: Any, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
        client = Client(app, keys["good"])
        with caplog.at_level(logging.INFO, "hqtl"):
            client.post("/v1/predict", headers={"x-request-id": "mine-1"}, **body(IMAGE * 2, shots=10))
            Client(app, "hqtl_wrong").get("/v1/model?token=hush")
            client.get("/a%0Ab?x=hush")
            client.get("/livez")
        first, second, third = self.lines(caplog)
        expected = {"request_id": "mine-1", "method": "POST", "route": "/v1/predict", "status": 200, "images": 2, "shots": 20}
        assert expected.items() <= first.items()
        assert first["backend"] == "statevector"
        assert first["duration_ms"] > 0
        assert first["bytes_in"] > 2 * len(IMAGE[0][1])
        assert first["key"] == str(keys["good"]).split("_")[1]
        assert (second["status"], second["code"], second.get("key")) == (401, "unauthorized", None)
        assert (third["status"], third["route"], third["path"]) == (404, "other", "/a\nb")
        assert not any(secret in caplog.text for secret in (str(keys["good"]), "hush", "hqtl_wrong", "wall.png"))

    def test_a_traceback_stays_within_its_line(self) -> None:
        try:
            raise ValueError("deep\ninside")
        except ValueError as error:
            record = logging.LogRecord("hqtl", logging.ERROR, "f", 1, "oh %s", ("no",), (ValueError, error, error.__traceback__))
        line = JsonFormatter().format(record)
        assert "\n" not in line
        assert json.loads(line)["message"] == "oh no"
        assert "deep\ninside" in json.loads(line)["exception"]


class TestFigures:
    def figures(self, app: Any, keys: Keys) -> dict[str, float]:
        text = Client(app, keys["figures"]).get("/metrics").text
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))}

    def test_they_count_what_happens(self, app: Any, keys: Keys) -> None:
        client, before = Client(app, keys["good"]), self.figures(app, keys)
        client.post("/v1/predict", **body(IMAGE * 3, shots=10))
        client.post("/v1/predict", **body([("a", b"text")]))
        for k in range(20):
            client.get(f"/random/{k}")
        after = self.figures(app, keys)
        grown = {name: value - before.get(name, 0) for name, value in after.items()}
        assert grown['hqtl_shots_total{backend="statevector"}'] == 30
        assert grown['hqtl_images_total{backend="statevector"}'] == grown["hqtl_score_count"] == 3
        assert grown['hqtl_rejected_total{reason="unknown_image_format"}'] == 1
        assert grown['hqtl_rejected_total{reason="not_found"}'] == 20
        assert grown['hqtl_queue_seconds_count{stage="backbone"}'] == grown['hqtl_queue_seconds_count{stage="head"}'] == 1
        assert sum(value for name, value in grown.items() if 'endpoint="other"' in name and "request_total" in name) == 20
        assert not any("random" in name for name in after)
        assert 0 < after['hqtl_recent_mean{quantity="score"}'] < 1
        assert all(value == 1 for name, value in after.items() if "in_progress" in name)  # the one that asks


def test_a_key_that_sends_too_fast_is_told_when_to_come_again(app: Any, keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.keys._LOOK_EVERY_S", 0.0)
    token, key = new_key("hasty", Grants(requests_per_minute=2))
    with edit_keys(keys_file) as entries:
        entries.append(key)
    hasty, clock = Client(app, token), iter([50.0, 50.0, 50.0, 51.0, 80.1, 80.2])
    monkeypatch.setattr("serving.rates.time", SimpleNamespace(monotonic=lambda: next(clock)))
    answers = [hasty.get("/v1/model") for _ in range(6)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429, 200, 429]
    assert [answer.headers.get("retry-after") for answer in answers] == [None, None, "30", "29", None, "30"]
    assert answers[2].json()["error"]["code"] == "rate_limit"
    assert hasty.get("/readyz").status_code == 200, "health is not counted"
