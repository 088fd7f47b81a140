"""The page that comes after the service: who waits for it and who does not."""

from __future__ import annotations

import threading

import pytest
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from hqtl_common.errors import ConfigError
from serving.http_errors import install
from serving.ui import late
from serving.ui.late import LatePage, check_installed
from tests.asgi import Client


def make_app(work: threading.Event, problem: Exception | None = None) -> tuple[Client, list[str]]:
    app, made = FastAPI(), []

    def make() -> None:
        made.append(threading.current_thread().name)
        assert work.wait(300)
        if problem:
            raise problem
        app.router.routes.append(Route("/ui/", lambda _: PlainTextResponse("the page")))

    app.router.routes.append(Route("/readyz", lambda _: PlainTextResponse("ready")))
    app.add_middleware(LatePage, make=make)
    install(app)
    return Client(app), made


def test_the_first_request_begins_it_and_does_not_wait() -> None:
    work = threading.Event()
    client, made = make_app(work)
    assert made == []
    assert client.get("/readyz").text == "ready"
    assert client.get("/readyz").text == "ready"
    work.set()
    assert client.get("/ui/").text == "the page"
    assert made == ["page"]


def test_who_wants_it_waits() -> None:
    work = threading.Event()
    client, _ = make_app(work)
    threading.Timer(0.2, work.set).start()
    assert client.get("/ui/").text == "the page"


def test_a_page_that_cannot_be_made_is_said_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    work = threading.Event()
    work.set()
    client, _ = make_app(work, RuntimeError("no theme"))
    answer = client.get("/ui/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "not_ready")
    assert "no theme" in caplog.text
    assert client.get("/readyz").text == "ready"


def test_a_missing_package_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr(late, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package gradio"):
        check_installed()
