"""Web-hooks: signed, and no way into the network behind the service."""

from __future__ import annotations

import datetime
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from hqtl_common.errors import ConfigError
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
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
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


def certified(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate of its own authority for some names: the authority's file, and one with certificate and key."""
    now = datetime.datetime.now(datetime.UTC)

    def signed(subject: str, key: Any, issuer: str, issuer_key: Any, *extensions: x509.ExtensionType) -> x509.Certificate:
        built = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
        built = built.issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)])).public_key(key.public_key())
        built = built.serial_number(x509.random_serial_number())
        built = built.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        for extension in extensions:
            built = built.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return built.sign(issuer_key, hashes.SHA256())

    own, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = signed("authority", own, "authority", own, x509.BasicConstraints(ca=True, path_length=0))
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(own.public_key())
    certificate = signed(names[0], key, "authority", own, alternatives, issuer)
    plain = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + plain)
    return folder / "authority.pem", folder / "server.pem"


class TestOverTLS:
    """A real receiver on this machine, whose name is looked up as the test says."""

    @pytest.fixture
    def served(self, receiver: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Path]]:
        authority, server = certified(tmp_path, "hooks.example.org")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(server)
        with HTTPServer(("127.0.0.1", 0), receiver) as https:
            https.socket = context.wrap_socket(https.socket, server_side=True)
            https.handle_error = lambda *_: None  # type: ignore[method-assign]
            receiver.port = https.server_port
            here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", https.server_port))]
            monkeypatch.setattr(module.socket, "getaddrinfo", lambda *_, **__: here)
            thread = threading.Thread(target=https.serve_forever, args=(0.02,))
            thread.start()
            yield receiver, authority
            https.shutdown()
            thread.join()

    def test_a_message_arrives_signed(self, served: tuple[Any, Path]) -> None:
        receiver, authority = served
        hook = WebHook((f"hooks.example.org:{receiver.port}",), SECRET, private=True, trusted=authority)
        hook.tell(f"https://hooks.example.org:{receiver.port}/done", {"id": "j"})
        ((path, headers, body),) = receiver.got
        assert (path, json.loads(body), headers["Host"]) == ("/done", {"id": "j"}, f"hooks.example.org:{receiver.port}")
        stamp, mine = (part.partition("=")[2] for part in headers[SIGNATURE].split(","))
        assert mine == signature(SECRET, int(stamp), body)

    @pytest.mark.parametrize(("host", "trusts"), [("hooks.example.org", False), ("other.example.org", True)])
    def test_a_certificate_of_nobody_or_of_another_name_gets_nothing(self, served: tuple[Any, Path], host: str, trusts: bool) -> None:
        receiver, authority = served
        hook = WebHook((f"{host}:{receiver.port}",), SECRET, private=True, trusted=authority if trusts else None)
        with pytest.raises(WebHookError, match="certificate"):
            hook.tell(f"https://{host}:{receiver.port}/done", {"id": "j"})
        assert receiver.got == []

    def test_a_private_address_stays_closed_whatever_its_certificate(self, served: tuple[Any, Path]) -> None:
        receiver, authority = served
        with pytest.raises(WebHookError, match="not public"):
            WebHook((f"hooks.example.org:{receiver.port}",), SECRET, trusted=authority).tell(
                f"https://hooks.example.org:{receiver.port}/", {}
            )
        assert receiver.got == []

    def test_a_file_that_holds_no_certificate_is_refused_at_the_start(self, tmp_path: Path) -> None:
        (tmp_path / "empty.pem").write_text("nothing")
        for path in (tmp_path / "empty.pem", tmp_path / "none.pem"):
            with pytest.raises(ConfigError, match="HQTL_WEBHOOK_CA must be a file of certificates"):
                WebHook(("hooks.example.org",), SECRET, trusted=path)
