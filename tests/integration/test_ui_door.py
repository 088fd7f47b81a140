"""Who gets to the page and to what of it: every route of Gradio, with a key and without."""

from __future__ import annotations

import base64
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hqtl_common import ModelBundle
from hqtl_common.errors import ConfigError
from serving.app import create_app, open_ring
from serving.keys import Grants, edit_keys, new_key, revoked
from serving.predictor import Predictor
from serving.settings import ServiceSettings
from serving.ui.door import COOKIE, HOME
from tests.asgi import Client
from tests.integration.test_service import photo

pytest.importorskip("gradio", reason="needs the extra ui")

RUN = "/ui/gradio_api/run/predict"
NEEDED = {"/ui/", "/ui/config", "/ui/theme.css", "/ui/favicon.ico", "/ui/manifest.json"}


@pytest.fixture(scope="module")
def keys_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.json"


@pytest.fixture(scope="module")
def token(keys_file: Path) -> str:
    token, key = new_key("looker", Grants())
    with edit_keys(keys_file) as keys:
        keys.append(key)
    return token


@pytest.fixture(scope="module")
def predictor(bundle: ModelBundle, keys_file: Path, token: str) -> Iterator[Predictor]:
    limits = {"max_bytes": 100_000, "max_inspect_bytes": 100_000}
    predictor = Predictor(ServiceSettings(bundle=bundle.path, threads=1, decoders=1, keys=keys_file, ui=True, **limits))
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def app(predictor: Predictor, token: str) -> Iterator[Any]:
    app = create_app(predictor, open_ring(predictor.settings))
    assert Client(app).get(HOME, headers=with_key(token)).status_code == 200  # waits until the page is there
    yield app
    app.state.inspector.close()


@pytest.fixture(scope="module")
def client(app: Any) -> Client:
    return Client(app)


def with_key(token: str) -> dict[str, str]:
    return {"cookie": f"{COOKIE}={token}"}


def gradio_routes(app: Any) -> set[tuple[str, str]]:
    (mount,) = [route for route in app.routes if route.path == "/ui"]
    documented = {(method.upper(), f"/ui{path}") for path, operations in mount.app.openapi()["paths"].items() for method in operations}
    plain = {(method, f"/ui{route.path}") for route in mount.app.routes if hasattr(route, "path") for method in route.methods or ()}
    return {(method, path.replace("{", "").replace("}", "").replace(":path", "")) for method, path in documented | plain}


def run(client: Client, token: str, *data: Any, index: int = 0, **options: Any) -> httpx.Response:
    return client.post(RUN, json={"data": data, "fn_index": index, "session_hash": "x"}, headers={**with_key(token), **options})


def encoded(image: bytes) -> str:
    return base64.b64encode(image).decode()


class TestDoor:
    def test_without_a_key_there_is_the_login_and_nothing_else(self, app: Any, client: Client) -> None:
        routes = gradio_routes(app)
        assert len(routes) > 30
        for method, path in sorted(routes):
            answer = client.request(method, path)
            shown = (method, path) == ("GET", "/ui/")
            assert (answer.status_code == 200) == shown
            if path.startswith("/ui/login") and method == "POST":
                continue
            assert shown or answer.status_code in (401, 404, 303), (method, path, answer.status_code)
            assert "gradio" not in answer.text or "/ui/gradio_api" in answer.text, (method, path)
        assert 'name="key"' in client.get("/ui/").text

    def test_with_a_key_only_what_the_page_needs(self, app: Any, client: Client, token: str) -> None:
        opened = set()
        for method, path in sorted(gradio_routes(app)):
            answer = client.request(method, path, headers=with_key(token))
            if answer.status_code not in (404, 413, 303):
                opened.add(path)
        assert opened <= NEEDED
        assert "/ui/" in opened

    @pytest.mark.parametrize(
        "path",
        [
            "/ui/gradio_api/upload",
            "/ui/gradio_api/file=/etc/passwd",
            "/ui/gradio_api/proxy=http://127.0.0.1",
            "/ui/gradio_api/queue/join",
            "/ui/assets/..%2f..%2fmain.py",
            "/ui/monitoring",
            "/ui/gradio_api/heartbeat/x",
            "/ui/gradio_api/info",
        ],
    )
    def test_what_is_dangerous_is_not_there(self, client: Client, token: str, path: str) -> None:
        for method in ("GET", "POST"):
            assert client.request(method, path, headers=with_key(token)).status_code == 404

    def test_a_login_gives_a_cookie_that_no_script_and_no_other_site_can_use(self, client: Client, token: str) -> None:
        answer = client.post("/ui/login", data={"key": token})
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/")
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie
        assert "path=/ui" in cookie
        remote = Client(client.app, url="https://cracks.example").post("/ui/login", data={"key": token})
        assert "secure" in remote.headers["set-cookie"].lower()
        away = client.post("/ui/logout", headers=with_key(token))
        assert f'{COOKIE}=""' in away.headers["set-cookie"]

    @pytest.mark.parametrize("given", ["", "hqtl_wrong", "é", "a" * 200])
    def test_a_wrong_key_is_refused_with_words(self, client: Client, given: str) -> None:
        answer = client.post("/ui/login", data={"key": given})
        assert (answer.status_code, "set-cookie" in answer.headers) == (401, False)
        assert "unknown, expired or revoked" in answer.text
        assert not given or given not in answer.text
        assert client.post("/ui/login", data={"key": "a" * 5000}).status_code == 413

    def test_the_cookie_opens_the_page_only(self, client: Client, token: str) -> None:
        assert client.get("/v1/model", headers=with_key(token)).status_code == 401
        assert client.get("/ui/", headers=with_key(token)).status_code == 200
        assert client.get("/ui/", headers={"cookie": f"{COOKIE}=other"}).status_code == 401
        assert client.get("/ui/", headers={"cookie": "\x01;;="}).status_code == 200  # the login

    def test_another_site_cannot_send_anything(self, client: Client, token: str) -> None:
        assert run(client, token, "", origin="https://evil.example").status_code == 403
        assert client.post("/ui/login", data={"key": token}, headers={"origin": "null"}).status_code == 403
        assert run(client, token, "", origin="http://[::1").status_code == 403

    def test_a_call_is_json_whatever_its_sender_says(self, client: Client, token: str) -> None:
        answer = run(client, token, "", "statevector", 0, "none", 0, "", **{"content-type": "text/plain"})
        assert "choose a photograph first" in answer.json()["data"][0]

    @pytest.mark.parametrize("path", ["/ui/", "/ui/theme.css", "/ui/config", "/ui/nowhere"])
    def test_every_answer_keeps_the_browser_here(self, client: Client, token: str, path: str) -> None:
        headers = client.get(path, headers=with_key(token)).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"

    def test_a_call_that_is_too_large_is_not_read(self, client: Client, token: str) -> None:
        assert run(client, token, "a" * 400_000).status_code == 413
        assert client.post(RUN, content=b"", headers=with_key(token)).status_code == 413

    def test_a_header_that_lies_about_the_length_helps_nobody(self, client: Client, token: str) -> None:
        lying = {**with_key(token), "content-length": "10"}
        assert client.post(RUN, content=bytes(400_000), headers=lying).status_code == 413
        assert client.post("/ui/login", content=b"key=" + bytes(5000), headers={"content-length": "10"}).status_code == 413

    def test_a_revoked_key_is_out_at_once(self, client: Client, keys_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("serving.keys._LOOK_EVERY_S", 0.0)
        token, key = new_key("short", Grants())
        with edit_keys(keys_file) as keys:
            keys.append(key)
        assert client.get("/ui/config", headers=with_key(token)).status_code == 200
        with edit_keys(keys_file) as keys:
            keys[:] = revoked(keys, key.id)
        assert client.get("/ui/config", headers=with_key(token)).status_code == 401


class TestCalls:
    def test_an_answer_is_that_of_the_route(self, client: Client, token: str) -> None:
        shown = run(client, token, encoded(photo(1)), "statevector", 0, "aer", 500, "7").json()["data"]
        form = {"files": {"image": ("x", photo(1))}, "headers": {"authorization": f"Bearer {token}"}}
        for html, fields in zip(shown, ({}, {"backend": "aer", "shots": "500", "seed": "7"}), strict=True):
            (prediction,) = client.post("/v1/predict", data=fields, **form).json()["predictions"]
            assert f"{prediction['label']} <b>{100 * prediction['probability']:.1f} %</b>" in html
            assert all(f"{value:+.3f}".replace("-", "−") in html for value in prediction["expvals"])

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (("", "statevector", 0, "none", 0, ""), "choose a photograph first"),
            (("%%%", "statevector", 0, "none", 0, ""), "choose a photograph first"),
            ((encoded(b"text"), "statevector", 0, "none", 0, ""), "image 0"),
            ((encoded(photo(0)), "statevector", 10**7, "none", 0, ""), "at most 1,000,000"),
            ((encoded(photo(0)), "statevector", 10, "none", 0, "<b>"), "&lt;b&gt;"),
        ],
    )
    def test_what_is_wrong_is_shown(self, client: Client, token: str, data: tuple[Any, ...], words: str) -> None:
        answer = run(client, token, *data)
        assert answer.status_code == 200
        assert words in answer.json()["data"][0]

    def test_a_heat_map(self, client: Client, token: str) -> None:
        (html,) = run(client, token, encoded(photo(1)), "statevector", 0, 20, index=1).json()["data"]
        assert "data:image/png;base64,iVBOR" in html

    @pytest.mark.parametrize(
        "data", [(), (None,) * 6, ({"path": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}},) * 6, ("",) * 99]
    )
    @pytest.mark.parametrize("index", [0, 1, 2, 99, -1])
    def test_nonsense_is_never_an_error_of_the_service_and_nothing_is_fetched(
        self, client: Client, token: str, data: tuple[Any, ...], index: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def wire(*_: Any) -> None:
            raise AssertionError("a connection was made")

        monkeypatch.setattr(socket.socket, "connect", wire)
        assert run(client, token, *data, index=index).status_code in (200, 404, 422)


def test_without_authentication_there_is_no_login_and_this_machine_only(bundle: ModelBundle) -> None:
    predictor = Predictor(ServiceSettings(bundle=bundle.path, threads=1, decoders=1, insecure_no_auth=True, ui=True))
    try:
        local = create_app(predictor, None)
        assert "Forget the key" not in Client(local).get("/ui/config").text
        call = {"data": [encoded(photo(0)), "statevector", 0, "none", 0, ""], "fn_index": 0}
        assert "exact: no shot noise" in Client(local).post(RUN, json=call).json()["data"][0]
        assert Client(local, peer="192.168.1.7").post(RUN, json=call).status_code == 403
        assert Client(local).get("/ui/config", headers={"host": "evil.example"}).status_code == 403
    finally:
        predictor.close()


def test_without_gradio_it_says_what_to_install(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "serving.ui.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install 'hqtl\[ui\]'"):
        create_app(predictor, open_ring(predictor.settings))
