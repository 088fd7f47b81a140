"""Web-hooks: signed, and no way into the network behind the service."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import pytest

from serving.errors import FieldError
from serving.jobs import webhook as module
from serving.jobs.webhook import SIGNATURE, WebHook, WebHookError, signature

SECRET = "a secret of some length"
HOOK = WebHook(("hooks.example.org", "other.example.org:8443"), SECRET)


class Receiver(BaseHTTPRequestHandler):
    got: list[tuple[str, dict[str, str], bytes]]
    status = 204

    def do_POST(self) -> None:
        self.got.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.status)
        self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[type[Receiver]]:
    class Fresh(Receiver):
        got: ClassVar[list[Any]] = []

    with HTTPServer(("127.0.0.1", 0), Fresh) as server:
        Fresh.port = server.server_port  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Fresh
        server.shutdown()
        thread.join()


def local(receiver: Any) -> tuple[WebHook, str]:
    return WebHook((f"127.0.0.1:{receiver.port}",), SECRET, private=True), f"http://127.0.0.1:{receiver.port}/done?x=1"


def test_a_message_is_signed(receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    hook, url = local(receiver)
    hook.tell(url, {"id": "j", "state": "done"})
    ((path, headers, body),) = receiver.got
    assert (path, json.loads(body)) == ("/done?x=1", {"id": "j", "state": "done"})
    stamp, mine = (part.partition("=")[2] for part in headers[SIGNATURE].split(","))
    assert mine == signature(SECRET, int(stamp), body) != signature("another", int(stamp), body)


@pytest.mark.parametrize("status", [302, 307, 404, 500])
def test_what_is_not_a_success_is_not_delivered_and_nothing_is_followed(receiver: Any, status: int) -> None:
    receiver.status = status
    hook, url = local(receiver)
    with pytest.raises(WebHookError, match=str(status)):
        hook.tell(url, {})
    assert len(receiver.got) == 1


@pytest.mark.parametrize("url", ["https://hooks.example.org/", "https://HOOKS.example.org:443/a?b=c", "https://other.example.org:8443/x"])
def test_listed_hosts(url: str) -> None:
    HOOK.check(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://hooks.example.org/", "ftp://hooks.example.org/", "file:///etc/passwd", "hooks.example.org", "//hooks.example.org/", ""),
        *(
            "https://hooks.example.org:8443/",
            "https://other.example.org/",
            "https://hooks.example.org:99999/",
            "https://hooks.example.org:x/",
        ),
        *(
            "https://evil.org/",
            "https://hooks.example.org.evil.org/",
            "https://evil.org/hooks.example.org",
            "https://evil.org#hooks.example.org",
        ),
        *("https://hooks.example.org@evil.org/", "https://user:pass@hooks.example.org/", "https://evil.org\\@hooks.example.org/"),
        *("https://hooks.example.org/\r\nX: y", "https://hooks.example.org/a b", "https://hooks.example.org/ä", "https://[::1/"),
        *("https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest/", "https://2130706433/", "https://localhost/"),
    ],
)
def test_everything_else_is_refused_without_a_look_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    with pytest.raises(FieldError):
        HOOK.check(url)
    with pytest.raises(FieldError):
        HOOK.tell(url, {})
    with pytest.raises(FieldError):
        WebHook((), "").check(url)


PRIVATE = ["127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"]
PRIVATE += [
    "::1",
    "::",
    "fe80::1%eth0",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "64:ff9b::7f00:1",
    "::127.0.0.1",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_a_listed_name_with_a_private_address_is_not_connected_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a public one stands beside it."""
    found = [(0, 0, 0, "", (one, 443)) for one in ("93.184.216.34", address)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was opened"))
    with pytest.raises(WebHookError, match="not public"):
        HOOK.tell("https://hooks.example.org/", {})


def test_the_connection_goes_to_the_address_that_was_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that has another address at the second look-up gains nothing: there is none."""
    seen: list[Any] = []

    def connect(address: tuple[str, int], timeout: float) -> Any:
        seen.append((address, timeout))
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("93.184.216.34", 443))])
    monkeypatch.setattr(module.socket, "create_connection", connect)
    with pytest.raises(WebHookError, match="ConnectionRefusedError"):
        HOOK.tell("https://hooks.example.org/", {})
    assert seen == [(("93.184.216.34", 443), 10.0)]
