"""Every error has one status and one form, and only real bugs are a 500."""

from __future__ import annotations

import asyncio
import logging
import re

import pytest
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from hqtl_common import errors as common
from serving import errors as own
from serving.http_errors import ErrorGuard, code_of, install, status_of
from tests.asgi import Client


def make(kind: type[common.HqtlError]) -> common.HqtlError:
    extra: dict[type, tuple[object, ...]] = {
        common.JobFailedError: ("it failed", "job-7"),
        own.FieldError: ("shots", "must be small"),
        own.QuotaError: ("used up", 77),
        own.RateLimitError: ("too fast", 78),
        own.RejectedImageError: (2, "b.png", common.ImageDecodeError("cut off")),
    }
    return kind(*extra.get(kind, ("what happened",)))


def classes(module: object) -> list[type[common.HqtlError]]:
    return [getattr(module, name) for name in module.__all__]  # type: ignore[attr-defined]


EXPECTED = {
    "HqtlError": 500,
    "ConfigError": 422,
    "InputError": 422,
    "ImageDecodeError": 422,
    "UnknownImageFormatError": 415,
    "ShapeError": 422,
    "BundleError": 500,
    "BundleFormatError": 500,
    "BundleIntegrityError": 500,
    "BundleVersionError": 500,
    "BackendError": 502,
    "UnknownBackendError": 422,
    "CapabilityError": 422,
    "BackendUnavailableError": 503,
    "BackendAuthError": 503,
    "BudgetExceededError": 503,
    "BackendTimeoutError": 504,
    "JobFailedError": 502,
    "ParityError": 500,
    "BodyError": 400,
    "FieldError": 422,
    "MediaTypeError": 415,
    "TooLargeError": 413,
    "RejectedImageError": 422,
    "ForbiddenBackendError": 403,
    "OutputError": 500,
    "ServiceError": 500,
    "DeadlineError": 504,
    "UnauthorizedError": 401,
    "ForbiddenError": 403,
    "QuotaError": 429,
    "RateLimitError": 429,
    "NotFoundError": 404,
    "ConflictError": 409,
    "NotReadyError": 503,
    "KeysUnavailableError": 503,
    "OverloadedError": 429,
    "SlowClientError": 408,
}


@pytest.mark.parametrize("kind", [*classes(common), *classes(own)], ids=lambda kind: kind.__name__)
def test_every_error_of_the_trees_has_its_status(kind: type[common.HqtlError]) -> None:
    assert issubclass(kind, common.HqtlError)
    assert status_of(make(kind)) == EXPECTED[kind.__name__]


def test_codes_are_the_class_names_in_snake_case() -> None:
    assert code_of(common.UnknownImageFormatError("x")) == "unknown_image_format"
    assert code_of(own.FieldError("a", "b")) == "field"
    assert code_of(own.RejectedImageError(0, "a", own.TooLargeError("x"))) == "too_large"
    assert status_of(own.RejectedImageError(0, "a", own.TooLargeError("x"))) == 413
    assert status_of(own.RejectedImageError(0, "a", common.UnknownImageFormatError("x"))) == 415


@pytest.fixture(scope="module")
def client() -> Client:
    app = FastAPI()

    @app.get("/own/{name}")
    async def own_error(name: str) -> None:
        raise make(getattr(common, name, None) or getattr(own, name))

    @app.get("/bug")
    async def bug() -> None:
        raise RuntimeError("secret thought")

    @app.get("/http/{status}")
    async def http(status: int) -> None:
        raise HTTPException(status, headers={"x-extra": "1"})

    @app.get("/id")
    async def identity(request: Request) -> str:
        return str(request.state.request_id)

    install(app)
    return Client(app)


@pytest.mark.parametrize("name", [name for name, status in EXPECTED.items() if status != 500])
def test_the_envelope(client: Client, name: str) -> None:
    answer = client.get(f"/own/{name}")
    error = answer.json()["error"]
    assert answer.status_code == EXPECTED[name]
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"code", "message", "detail", "request_id"}
    assert error["message"] == str(make(getattr(common, name, None) or getattr(own, name)))
    assert error["request_id"] == answer.headers["x-request-id"]
    assert ("retry-after" in answer.headers) == (answer.status_code in (429, 503))
    assert ("www-authenticate" in answer.headers) == (answer.status_code == 401)


def test_a_quota_says_when_the_next_day_begins(client: Client) -> None:
    assert client.get("/own/QuotaError").headers["retry-after"] == "77"
    assert client.get("/own/RateLimitError").headers["retry-after"] == "78"


def test_details(client: Client) -> None:
    details = {name: client.get(f"/own/{name}").json()["error"]["detail"] for name in EXPECTED}
    assert {name: detail for name, detail in details.items() if detail} == {
        "RejectedImageError": {"index": 2, "filename": "b.png"},
        "FieldError": {"field": "shots"},
        "JobFailedError": {"job_id": "job-7"},
    }


@pytest.mark.parametrize("path", ["/bug", "/own/BundleIntegrityError", "/own/ParityError"])
def test_a_bug_is_logged_with_its_id_and_not_shown(client: Client, path: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "hqtl.service"):
        answer = client.get(path)
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "internal"
    assert not re.search("secret|what happened", answer.text)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.request_id == answer.headers["x-request-id"]  # type: ignore[attr-defined]


def test_errors_of_the_backends_are_logged(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    client.get("/own/JobFailedError")
    client.get("/own/FieldError")
    assert [record.getMessage() for record in caplog.records] == ["JobFailedError: it failed"]


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "message"),
    [
        ("GET", "/nowhere", 404, "not_found", "Not Found: GET /nowhere"),
        ("POST", "/bug", 405, "method_not_allowed", "Method Not Allowed: POST /bug"),
        ("GET", "/http/418", 418, "i'm_a_teapot", "I'm a Teapot: GET /http/418"),
        ("GET", "/http/xyz", 422, "field", "path.status: Input should be a valid integer, unable to parse string as an integer"),
    ],
)
def test_errors_of_the_framework(client: Client, method: str, path: str, status: int, code: str, message: str) -> None:
    answer = client.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["message"]) == (status, code, message)
    assert error["request_id"] == answer.headers["x-request-id"]
    assert status != 405 or answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-1.2_Z", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("ü", False), ("", False)]
)
def test_request_ids(client: Client, sent: str, kept: bool) -> None:
    answer = client.get("/id", headers={"x-request-id": sent.encode("latin-1")})
    assert answer.json() == answer.headers["x-request-id"]
    assert (answer.json() == sent) is kept
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,64}", answer.json())


def run_guard(app: object) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    asyncio.run(ErrorGuard(app)({"type": "http", "headers": []}, receive, send))  # type: ignore[arg-type]
    return sent


def test_a_client_that_went_away_gets_nothing() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ClientDisconnect

    assert run_guard(app) == []


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        run_guard(app)


def test_other_scopes_pass() -> None:
    passed: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    asyncio.run(ErrorGuard(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert passed == ["lifespan"]
